"""A fake hub on the loopback interface: the two calls for listing and fetching, with ranges, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class FakeHub:
    """Serves `repos` (name -> path -> content). Large files have a SHA-256, the others git's blob hash.

    Attributes:
        cut: path -> number of bytes after which the connection breaks, once per entry of the list.
        lies: number of times that the content of a path arrives damaged.
        down: no request is answered.
        portal: the listing returns an unrelated page.
        sent: bytes sent, by path.
        ranges: (path, Range header) of each ranged request.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]], gated: tuple[str, ...] = ()) -> None:
        self.repos, self.gated = repos, gated
        self.cut: dict[str, list[int]] = {}
        self.lies: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges: list[tuple[str, str]] = []
        self.down = self.portal = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, send=True)

            def do_HEAD(self) -> None:
                hub.answer(self, send=False)

            def log_message(self, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, to: Any, *, send: bool) -> None:
        """Answer one request."""
        path = unquote(urlsplit(to.path).path)
        if self.down:
            to.close_connection = True
            to.connection.close()
            return
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._info(to, match.group(1))
        elif (match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)) and is_lfs(match.group(2)):
            to.send_response(302)  # large files are on another host, as on the real hub
            to.send_header("Location", f"{self.url}/cdn/{quote(match.group(1))}/{quote(match.group(2))}?signed=yes")
            to.send_header("Content-Length", "0")
            to.end_headers()
        elif match := re.fullmatch(r"/(?:datasets|cdn)/([^/]+/[^/]+)/(?:resolve/[^/]+/)?(.+)", path):
            self._file(to, match.group(1), match.group(2), send)
        else:
            self._refuse(to, 404, "EntryNotFound")

    def _refuse(self, to: Any, status: int, code: str) -> None:
        body = b'{"error": "no"}'
        to.send_response(status)
        to.send_header("X-Error-Code", code)
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        if to.command != "HEAD":
            to.wfile.write(body)

    def _info(self, to: Any, repo: str) -> None:
        if self.portal:
            to.send_response(200)
            to.send_header("Content-Length", "6")
            to.end_headers()
            to.wfile.write(b"<html>")
            return
        if repo not in self.repos:
            self._refuse(to, 404, "RepoNotFound")
            return
        if repo in self.gated:
            self._refuse(to, 403, "GatedRepo")
            return
        siblings = []
        for name, content in self.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
            if is_lfs(name):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": COMMIT, "private": False, "siblings": siblings}).encode()
        to.send_response(200)
        to.send_header("Content-Type", "application/json")
        to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        to.wfile.write(body)

    def _file(self, to: Any, repo: str, name: str, send: bool) -> None:
        content = self.repos.get(repo, {}).get(name)
        if content is None:
            self._refuse(to, 404, "EntryNotFound")
            return
        etag = sha256(content) if is_lfs(name) else git_digest(content)
        start = 0
        byte_range = to.headers.get("Range")
        if send and byte_range:
            self.ranges.append((name, byte_range))
            start = int(byte_range.removeprefix("bytes=").split("-")[0])
        to.send_response(206 if start else 200)
        to.send_header("ETag", f'"{etag}"')
        to.send_header("X-Repo-Commit", COMMIT)
        to.send_header("Accept-Ranges", "bytes")
        to.send_header("Content-Length", str(len(content) - start))
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        to.end_headers()
        if not send:
            return
        body = content[start:]
        if self.lies[name] > 0:
            self.lies[name] -= 1
            body = bytes([body[0] ^ 1]) + body[1:]
        limit = self.cut[name].pop(0) if self.cut.get(name) else len(body)
        self.sent[name] += len(body[:limit])
        to.wfile.write(body[:limit])
        if limit < len(body):
            to.wfile.flush()
            to.close_connection = True
            to.connection.close()


def is_lfs(name: str) -> bool:
    return not name.endswith((".csv", ".jsonl", ".md"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_digest(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
