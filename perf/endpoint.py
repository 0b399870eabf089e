"""An OpenAI-compatible endpoint on the loopback that takes a fixed time per request in one of a few slots, and counts.

It identifies itself as vLLM, so that the real client uses vLLM's request form (prefix, stop strings, token ids). Its text is
`perf.scripted.write`, a pure function of the request. Tests can take it down and up again.

Command: `python -m perf.endpoint --slots 32 --service-ms 500` prints its address and serves until its input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from perf.faults import Fault, Faults, response, send
from perf.scripted import write

MODEL = "scripted"
HOLD_S = 0.005  # between two looks at `hold_at`


class Endpoint:
    """The server in its own thread; use as a context manager.

    Args:
        slots: requests served at a time; the others wait.
        service_s: seconds a request takes in its slot.
        refuses: the status to refuse a request with (None: serve it), for tests.
        faults: what happens to replies on their way; a request whose reply is lost has been served.

    Attributes:
        served, refused, lost: requests so far, and how many of the served got a fault for a reply.
        began_at: seconds since the epoch at the first request; 0 before it.
        hold_at: once so many are served, the others keep their slots without a reply until this is None again.
    """

    def __init__(
        self,
        slots: int,
        service_s: float,
        refuses: Callable[[dict[str, Any]], int | None] = lambda asked: None,
        faults: Faults | None = None,
    ) -> None:
        self._slots, self._service_s, self.refuses = slots, service_s, refuses
        self._faults = faults or Faults(0.0)
        self.is_down = False
        self.hold_at: int | None = None
        self.served, self.refused, self.lost, self.most, self.began_at = 0, 0, 0, 0, 0.0
        self._now, self._busy, self._changed, self._first, self._last = 0, 0.0, 0.0, 0.0, 0.0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def statistics(self) -> dict[str, float]:
        """Requests served, requests per second, and the share of slot time in use, from the first request to the last reply.

        A slot is in use until the endpoint is done with it, also if a busy machine wakes the endpoint late.
        """
        span = self._last - self._first
        busy, rate = (self._busy / self._slots / span, self.served / span) if span else (0.0, 0.0)
        counts = {"served": self.served, "lost": self.lost, "most": self.most}
        return {**counts, "per_second": rate, "busy": busy, "span_s": span}

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._gate, self._stop = asyncio.Semaphore(self._slots), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # this loop is ours alone
            task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.is_down:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                status, reply, fault = await self._answer(head[0].split(" ")[1], body)
                if self.is_down or not await send(writer, fault, response(status, json.dumps(reply))):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any], Fault | None]:
        if path.endswith("/models"):
            entry = {"id": MODEL, "object": "model", "owned_by": "vllm", "created": 0}
            return 200, {"object": "list", "data": [entry]}, None
        asked = json.loads(body)
        refused = self.refuses(asked)
        if refused is not None:
            self.refused += 1
            return refused, {"error": {"message": "not now", "type": "x", "code": None}}, None
        self._first, self.began_at = self._first or time.perf_counter(), self.began_at or time.time()
        async with self._gate:
            self._change(+1)
            await asyncio.sleep(self._service_s)
            while self.hold_at is not None and self.served >= self.hold_at:
                await asyncio.sleep(HOLD_S)
            self.served += 1
            self._change(-1)
        fault = self._faults.draw()
        self.lost += fault is not None
        return 200, _completion(asked), fault

    def _change(self, by: int) -> None:
        """Integrate the slots in use over time."""
        now = time.perf_counter()
        self._busy += self._now * (now - self._changed)
        self._changed = self._last = now
        self._now += by
        self.most = max(self.most, self._now)


def _completion(asked: dict[str, Any]) -> dict[str, Any]:
    turn = asked["messages"][-1]
    prefix = turn["content"] if turn["role"] == "assistant" else ""
    choices, total = [], 0
    for index in range(asked.get("n", 1)):
        text, logprobs = write(prefix, asked.get("stop") or (), asked.get("seed"), index)
        total += len(logprobs)
        choices.append(
            {
                "index": index,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "token_ids": [0] * len(logprobs),
                "logprobs": {"content": [{"token": "x", "logprob": v, "top_logprobs": []} for v in logprobs]},
            }
        )
    usage = {"prompt_tokens": 1, "completion_tokens": total, "total_tokens": total + 1}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices, "usage": usage}


@contextmanager
def in_own_process(
    slots: int, service_s: float, faults: float = 0.0
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """(address, function that ends the endpoint and gives its statistics; call it once, last)."""
    command = [sys.executable, "-m", "perf.endpoint", "--slots", str(slots), "--service-ms", str(1000 * service_s)]
    process = subprocess.Popen(
        [*command, "--faults", str(faults)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    source, out = process.stdin, process.stdout

    def statistics() -> dict[str, float]:
        source.close()  # it ends when its input does, and says its statistics
        found: dict[str, float] = json.loads(out.read())
        return found

    try:
        yield out.readline().strip(), statistics
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Serve until standard input is closed; print the address first and the statistics last."""
    arguments = argparse.ArgumentParser(description="an endpoint with a fixed service time and limited parallelism")
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--service-ms", type=float, default=500.0)
    arguments.add_argument("--faults", type=float, default=0.0, help="share of the replies that are lost (perf.faults)")
    args = arguments.parse_args()
    with Endpoint(args.slots, args.service_ms / 1000, faults=Faults(args.faults)) as endpoint:
        print(endpoint.url, flush=True)
        sys.stdin.read()
        print(json.dumps(endpoint.statistics()), flush=True)


if __name__ == "__main__":
    main()
