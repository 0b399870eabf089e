"""A small OpenAI-compatible server on loopback with scripted faults, and configurations that reach it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from fgrpo.schema import Judge

Reply = (
    str | int | dict[str, Any]
)  # a completion's text, a status, or {"status", "headers", "body", "text", "finish", "wait", "drip"}


class FaultServer:
    """Answers chat completions with `behave(number of the request, its body)`; keeps the bodies.

    "cut" in a reply closes the connection without a word; "drip" sends the answer byte by byte and slowly.
    """

    def __init__(self, behave: Callable[[int, dict[str, Any]], Reply]) -> None:
        self.behave = behave
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length.group(1))) if length else b""
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if not await self._answer(head, body, writer):
                        return
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if head.startswith(b"GET"):
            models = {
                "object": "list",
                "data": [{"id": "served-model", "object": "model", "created": 0, "owned_by": "x"}],
            }
            writer.write(http(200, json.dumps(models)))
            return True
        found = re.search(rb"authorization: *([^\r]+)", head, re.IGNORECASE)
        self.authorizations.append(found.group(1).decode() if found else "")
        self.bodies.append(json.loads(body))
        reply = self.behave(len(self.bodies) - 1, self.bodies[-1])
        if isinstance(reply, int):
            reply = {"status": reply, "body": json.dumps({"error": {"message": f"status {reply}"}})}
        if isinstance(reply, str):
            reply = {"text": reply}
        await asyncio.sleep(reply.get("wait", 0))
        if reply.get("cut"):
            return False
        text = reply["body"] if "body" in reply else completion(reply["text"], reply.get("finish", "stop"))
        raw = http(reply.get("status", 200), text, reply.get("headers", {}))
        if reply.get("drip"):
            for at in range(len(raw)):
                writer.write(raw[at : at + 1])
                await writer.drain()
                await asyncio.sleep(reply["drip"])
            return True
        writer.write(raw)
        await writer.drain()
        return True


def completion(text: str, finish: str = "stop") -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


def http(status: int, body: str, headers: dict[str, str] | None = None) -> bytes:
    raw = body.encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(raw)}"]
    lines += [f"{k}: {v}" for k, v in {"Content-Type": "application/json", **(headers or {})}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + raw


@asynccontextmanager
async def running(behave: Callable[[int, dict[str, Any]], Reply], port: int = 0) -> AsyncIterator[FaultServer]:
    server = FaultServer(behave)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", port, reuse_address=True)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()


@contextmanager
def in_a_thread(behave: Callable[[int, dict[str, Any]], Reply]) -> Iterator[FaultServer]:
    """`running`, for tests whose own code is not asynchronous."""
    ready, stop, servers = threading.Event(), threading.Event(), list[FaultServer]()

    async def serve() -> None:
        async with running(behave) as server:
            servers.append(server)
            ready.set()
            while not stop.is_set():
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(60)
    try:
        yield servers[0]
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def fault_server() -> Any:
    """`async with fault_server(behave) as server` runs one."""
    return running


@pytest.fixture
def judge_config() -> Callable[..., Judge]:
    """A quick configuration for an endpoint."""

    def make(*urls: str, **more: Any) -> Judge:
        given = {
            "backoff_s": 0.005,
            "timeout_s": 5.0,
            "attempts": 8,
            "patience_s": 0.0,
            "concurrency": 16,
            "max_completion_tokens": 64,
            **more,
        }
        return Judge(backend="openai", model=given.pop("model", "served-model"), endpoints=urls, **given)

    return make
