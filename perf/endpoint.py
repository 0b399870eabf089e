"""An OpenAI-compatible endpoint on the loopback that takes a fixed time per request in one of a few slots, and counts.

It identifies itself as vLLM, so that the real client uses vLLM's request form (prefix, stop strings, token ids). Its text is
`perf.scripted.write`, a pure function of the request. Tests can take it down and up again.

Command: `python -m perf.endpoint --slots 32 --service-ms 500` prints its address and serves until its input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from perf.scripted import write

MODEL = "scripted"


class Endpoint:
    """The server in its own thread; use as a context manager.

    Args:
        slots: requests served at a time; the others wait.
        service_s: seconds a request takes in its slot.
        refuses: the status to refuse a request with (None: serve it), for tests.
    """

    def __init__(
        self, slots: int, service_s: float, refuses: Callable[[dict[str, Any]], int | None] = lambda asked: None
    ) -> None:
        self._slots, self._service_s, self.refuses = slots, service_s, refuses
        self.is_down = False
        self.served, self.refused, self.most = 0, 0, 0
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
        return {"served": self.served, "per_second": rate, "busy": busy, "most": self.most}

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
                status, reply = await self._answer(head[0].split(" ")[1], body)
                if self.is_down:
                    break
                data = json.dumps(reply).encode()
                writer.write(
                    f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                )
                writer.write(data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path.endswith("/models"):
            return 200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "created": 0}]}
        asked = json.loads(body)
        refused = self.refuses(asked)
        if refused is not None:
            self.refused += 1
            return refused, {"error": {"message": "not now", "type": "x", "code": None}}
        self._first = self._first or time.perf_counter()
        async with self._gate:
            self._change(+1)
            await asyncio.sleep(self._service_s)
            self._change(-1)
        self.served += 1
        return 200, _completion(asked)

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


def main() -> None:
    """Serve until standard input is closed; print the address first and the statistics last."""
    arguments = argparse.ArgumentParser(description="an endpoint with a fixed service time and limited parallelism")
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--service-ms", type=float, default=500.0)
    args = arguments.parse_args()
    with Endpoint(args.slots, args.service_ms / 1000) as endpoint:
        print(endpoint.url, flush=True)
        sys.stdin.read()
        print(json.dumps(endpoint.statistics()), flush=True)


if __name__ == "__main__":
    main()
