"""A small JSON server on loopback for tests: subclass `Replies`, answer with `reply`, run it with `serving`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Replies(BaseHTTPRequestHandler):
    """Keeps connections open and writes no log."""

    protocol_version = "HTTP/1.1"

    def body(self) -> str:
        """What the client sent."""
        return self.rfile.read(int(self.headers["Content-Length"])).decode()

    def reply(self, status: int, content: object) -> None:
        """Answer with `content` as JSON."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def verdict(self, label: str, **more: object) -> None:
        """Answer a consistency judge's question with a chat completion; `more` are further keys of it."""
        message = {"role": "assistant", "content": json.dumps({"why": "", "label": label})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        self.reply(200, {**head, "choices": [choice], **more})

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(handler: type[Replies]) -> Iterator[str]:
    """The address of an OpenAI-compatible endpoint served by `handler`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
