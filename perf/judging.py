"""The judging service: its overhead over the plain client, and the cost of faults over the unavoidable.

The server, in its own process, answers at once; the plain `openai` client and the service alternate, 64 calls in flight, with
the same prompts. Then about one request in three fails (500, 503, 429, cut, garbage, truncated, never answered) at 500 ms per
request. The floor is the time that all requests occupy of 64 slots, retries and time-outs included.

Command: `python -m perf.judging`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from fgrpo.schema import Judge
from judges.backends.openai import BACKEND
from judges.client import OpenAITransport
from perf import faults as faulty
from perf.common import median, show
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem

IN_FLIGHT, CALLS, ROUNDS = 64, 1000, 5
ROLLOUTS, FAULTS, SERVICE_S, LIMIT_S = 2000, 0.3, 0.5, 4.0
BASE = "the plain `openai` client's `post`"
VERDICT = json.dumps({"why": "It says so.", "label": "CONSISTENT"})


def reply(text: str) -> bytes:
    """An HTTP response that holds a completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 400, "completion_tokens": 20, "total_tokens": 420}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return faulty.response(200, json.dumps(body))


class Server:
    """Answers every request after `service_s`; a share `faults` of them fails (`perf.faults`)."""

    def __init__(self, service_s: float, faults: float) -> None:
        self.service_s, self.faults, self.good = service_s, faulty.Faults(faults), reply(VERDICT)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"(?i)content-length: *(\d+)", head).group(1)))  # type: ignore[union-attr]
                if self.service_s:
                    await asyncio.sleep(self.service_s)
                if not await faulty.send(writer, self.faults.draw(), self.good):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _serve(service_s: float, faults: float) -> None:
    listener = await asyncio.start_server(Server(service_s, faults).serve, "127.0.0.1", 0, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # pending requests stay unanswered


@contextmanager
def served(service_s: float, faults: float) -> Iterator[str]:
    """The address of a server in its own process."""
    command = [sys.executable, "-m", "perf.judging", "--serve", str(service_s), str(faults)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"  # type: ignore[union-attr]
    finally:
        process.communicate()


def items(count: int, start: int) -> list[ConsistencyItem]:
    """`count` different questions, with traces of about 100 words."""
    trace = "The red circle is left of the blue square, and nothing stands between them. " * 7
    return [
        ConsistencyItem(str(n), "Where is it?", ("left", "right"), f"{trace}{start + n}.", "left") for n in range(count)
    ]


def config(url: str, **more: Any) -> Judge:
    """The judge at `url`."""
    return Judge(backend="openai", model="m", endpoints=(url,), max_completion_tokens=64, concurrency=IN_FLIGHT, **more)


async def plain(url: str, asked: list[ConsistencyItem], bare: bool) -> None:
    """The client alone: the same bodies, as many in flight, the text of each reply.

    Args:
        bare: use its `post`, as the service does, without `create`'s walk over the body.
    """
    judge = config(url)
    arguments = OpenAITransport(judge, BACKEND(judge, Path()).meter)._body
    bodies = [arguments(CONSISTENCY_TASK.call(item), ()) for item in asked]
    free = asyncio.Semaphore(IN_FLIGHT)
    http = openai.DefaultAsyncHttpxClient(timeout=60.0)
    client = openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, timeout=60.0, http_client=http)

    async def one(body: dict[str, Any]) -> str | None:
        async with free:
            completion = await (
                client.post("/chat/completions", cast_to=ChatCompletion, body=body)
                if bare
                else client.chat.completions.create(**body)
            )
        return completion.choices[0].message.content

    began = time.perf_counter(), time.process_time()
    assert await asyncio.gather(*map(one, bodies)) == [VERDICT] * len(asked)
    spent.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    await client.close()


async def service(url: str, asked: list[ConsistencyItem], **more: Any) -> None:
    """The service, from items to verdicts."""
    judges = BACKEND(config(url, **more), Path())
    began = time.perf_counter(), time.process_time()
    verdicts = await judges.ask(CONSISTENCY_TASK, asked)
    spent.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    assert not any(v.failed for v in verdicts)
    await judges.close()


spent: list[tuple[float, float]] = []  # (wall, CPU) seconds of each measurement


def measured(work: Awaitable[None]) -> tuple[float, float]:
    """Milliseconds per call: (wall, CPU)."""

    async def go() -> None:
        await work

    asyncio.run(go())
    wall, processor = spent.pop()
    return 1000 * wall / CALLS, 1000 * processor / CALLS


def overhead() -> None:
    """One table."""
    kinds: dict[str, Callable[[str, int, str], Awaitable[None]]] = {
        BASE: lambda url, n, cache: plain(url, items(CALLS, n), bare=True),
        "its `chat.completions.create`": lambda url, n, cache: plain(url, items(CALLS, n), bare=False),
        "the service, no cache": lambda url, n, cache: service(url, items(CALLS, n)),
        "the service, filling a cache": lambda url, n, cache: service(url, items(CALLS, n), cache=cache),
        "the service, from the cache": lambda url, n, cache: service(url, items(CALLS, n), cache=cache),
    }
    measurements: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    with served(0.0, 0.0) as url, TemporaryDirectory() as folder:
        for n in range(ROUNDS + 1):
            for name, work in kinds.items():
                measurements[name].append(measured(work(url, n * CALLS, f"{folder}/cache.sqlite")))
    base, rows = measurements[BASE][1:], []
    for name, all_rounds in measurements.items():
        rounds = all_rounds[1:]
        more = [median([r[k] - b[k] for r, b in zip(rounds, base, strict=True)]) for k in (0, 1)]
        beyond = ("–", "–") if rounds == base else tuple(f"{m:+.2f} ms" for m in more)
        rows.append((name, *(f"{median([r[k] for r in rounds]):.2f} ms" for k in (0, 1)), *beyond))
    show(
        "Judging: overhead of the service",
        f"Per call, 64 in flight, against a server in another process that answers at once; {ROUNDS} alternating rounds of "
        f"{CALLS:,} calls. The service renders and fences the prompt, merges equal calls, limits, meters, and parses the reply strictly.",
        ("call by", "wall", "CPU", "wall over the client", "CPU over the client"),
        rows,
    )


def faults() -> None:
    """One table."""
    with served(SERVICE_S, FAULTS) as url:
        given = config(url, attempts=14, timeout_s=LIMIT_S, backoff_s=0.05)

        async def go() -> tuple[list[float], Any, int]:
            judges, failed, took = BACKEND(given, Path()), 0, list[float]()
            began = time.perf_counter()

            async def one(item: ConsistencyItem) -> None:
                nonlocal failed
                (verdict,) = await judges.ask(CONSISTENCY_TASK, [item])
                failed += verdict.failed
                took.append(time.perf_counter() - began)

            await asyncio.gather(*map(one, items(ROLLOUTS, 0)))
            await judges.close()
            return sorted(took), judges.meter, failed

        took, meter, failed = asyncio.run(go())
    late = meter.faults.get("time-out", 0)
    floor = ((meter.requests - late) * SERVICE_S + late * LIMIT_S) / IN_FLIGHT
    show(
        "Judging: cost of faults",
        f"{ROLLOUTS:,} rollouts, 64 in flight, {FAULTS:.0%} of the requests fail ({SERVICE_S * 1000:.0f} ms per request, time-out "
        f"after {LIMIT_S:.0f} s). The floor is the time that all requests occupy of 64 slots.",
        ("", "figure"),
        [
            ("requests, of which retries", f"{meter.requests:,}, {meter.retries:,}"),
            ("faults by kind", ", ".join(f"{kind} {n}" for kind, n in sorted(meter.faults.items()))),
            ("rollouts without a verdict", failed),
            ("wall time until 99% have their verdict, over the floor", f"{took[ROLLOUTS * 99 // 100] / floor:.2f}"),
            ("wall time until all have, over the floor", f"{took[-1] / floor:.2f}"),
        ],
    )


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--serve", nargs=2, type=float, metavar=("SECONDS", "FAULTS"), help="be the server")
    args = arguments.parse_args()
    if args.serve:
        asyncio.run(_serve(*args.serve))
        return
    overhead()
    faults()


if __name__ == "__main__":
    main()
