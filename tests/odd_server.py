"""One OpenAI-compatible server on the loopback that misbehaves by name: `http://host/<behaviour>/<anything>/v1`.

`BEHAVIOURS` says for each name what the server does and what its clients make of it. The behaviour "mixed" gives three requests
in ten another one of those that pass, chosen by a hash of the request and of how often it came, so that every run is the same.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar, cast

from miniworld.language import parse_question
from perf.scripted import write

MODEL, KEY, TEXT = "m", "sk-known-key-123456", "A"
Outcome = Literal["retried", "refused", "stops", "read"]
Document = dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """An HTTP answer: bytes of the body, or `cut` after so many bytes of it; `wire` replaces all of it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    wait_s: float = 0.0
    wire: bytes | None = None


@dataclass(frozen=True)
class Behaviour:
    """`act` turns the right answer into the odd one. `outcome` is what the client does; `says` is part of its message."""

    act: Callable[[Document], Raw]
    outcome: Outcome
    says: str = ""
    models: Callable[[], Raw] | None = None  # instead of the right list of models
    only: str = ""  # "sampler" or "judge"


def right(document: object, status: int = 200, **headers: str) -> Raw:
    return Raw(status, json.dumps(document).encode(), headers)


def raw(body: str | bytes, status: int = 200, kind: str = "application/json", **headers: str) -> Raw:
    data = body if isinstance(body, bytes) else body.encode()
    return Raw(status, data, {"Content-Type": kind, **headers})


def fixed(body: str | bytes, status: int = 200, kind: str = "application/json", **headers: str) -> Callable[..., Raw]:
    return lambda *_: raw(body, status, kind, **headers)


def of(document: object, status: int = 200, **headers: str) -> Callable[..., Raw]:
    return lambda *_: right(document, status, **headers)


def choice(**changed: Any) -> Callable[[Document], Raw]:
    """The right answer with other keys in its choices; `None` as a function removes."""
    return lambda good: right({**good, "choices": [{**each, **changed} for each in good["choices"]]})


def message(**changed: Any) -> Callable[[Document], Raw]:
    def act(good: Document) -> Raw:
        choices = [{**each, "message": {"role": "assistant", **changed}} for each in good["choices"]]
        return right({**good, "choices": choices})

    return act


def text(change: Callable[[str], object]) -> Callable[[Document], Raw]:
    def act(good: Document) -> Raw:
        texts = [each["message"]["content"] for each in good["choices"]]
        choices = [
            {**each, "message": {"role": "assistant", "content": change(content)}}
            for each, content in zip(good["choices"], texts, strict=True)
        ]
        return right({**good, "choices": choices})

    return act


def logprob(value: object) -> Callable[[Document], Raw]:
    """The first log-probability is another; NaN and infinity as Python's JSON writes them."""

    def act(good: Document) -> Raw:
        changed = json.loads(json.dumps(good))
        changed["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": value}]}
        changed["choices"][0]["token_ids"] = [1]
        return right(changed)

    return act


def status(code: int, words: str = "odd", **headers: str) -> Behaviour:
    """An error status with words of its own."""
    does: Outcome = "retried" if code in (404, 408, 409, 425, 429) or code >= 500 else "refused"
    does = "stops" if code in (401, 402, 403) else "refused" if code in (501, 505) else does
    return Behaviour(of({"error": {"message": words}}, code, **headers), does)


def error(**fields: Any) -> Callable[..., Raw]:
    return of({"error": {"message": "try later, please", **fields}})


_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"  # which the server then does


def wired(header: str) -> Callable[[Document], Raw]:
    """The right answer under a header that does not fit it."""
    return lambda good: Raw(wire=_HEAD + header.encode() + b"\r\n\r\n" + json.dumps(good).encode())


LIST = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm"}]}
PAGE = "<html><body>gateway</body></html>"
QUOTA = {"error": {"message": "no money", "code": "insufficient_quota"}}
SSE = 'data: {"choices": [{"delta": {"content": "A"}}]}\n\ndata: [DONE]\n\n'
BEHAVIOURS: dict[str, Behaviour] = {
    # HTTP 200 without JSON
    "page": Behaviour(fixed(PAGE, kind="text/html"), "retried", "gateway"),
    "page-as-json": Behaviour(fixed(PAGE), "retried", "no JSON"),
    "event-stream": Behaviour(fixed(SSE, kind="text/event-stream"), "retried", "data:"),
    "plain": Behaviour(fixed("upstream is starting", kind="text/plain"), "retried", "upstream is starting"),
    "empty-body": Behaviour(fixed(""), "retried"),
    "blank-body": Behaviour(fixed(" \n "), "retried"),
    "half": Behaviour(lambda good: raw(json.dumps(good)[:40]), "retried"),
    "not-utf8": Behaviour(fixed(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), "retried", "not UTF-8"),
    "deep": Behaviour(fixed("[" * 100_000), "retried"),
    "no-content": Behaviour(lambda good: Raw(204), "retried"),
    "gzip": Behaviour(
        lambda good: raw(gzip.compress(json.dumps(good).encode()), **{"Content-Encoding": "gzip"}), "read"
    ),
    "broken-gzip": Behaviour(fixed(b"no gzip", **{"Content-Encoding": "gzip"}), "retried"),
    # other JSON
    "list": Behaviour(of([]), "retried", "without a completion"),
    "null": Behaviour(of(None), "retried"),
    "number": Behaviour(of(3), "retried"),
    "string": Behaviour(of("busy"), "retried", "busy"),
    "true": Behaviour(of(True), "retried"),
    "object": Behaviour(of({}), "retried"),
    "choices-null": Behaviour(of({"choices": None}), "retried"),
    "choices-text": Behaviour(of({"choices": "A"}), "retried"),
    "choices-empty": Behaviour(of({"choices": []}), "retried", "0 came"),
    "too-many": Behaviour(lambda good: right({**good, "choices": good["choices"] * 3}), "retried", "3 came"),
    "choice-null": Behaviour(of({"choices": [None]}), "retried", "without a message"),
    "choice-empty": Behaviour(of({"choices": [{}]}), "retried", "without a message"),
    "message-null": Behaviour(choice(message=None), "retried", "without a message"),
    "message-text": Behaviour(choice(message="A"), "retried", "without a message"),
    # no text
    "content-null": Behaviour(message(content=None), "retried", "no text"),
    "content-empty": Behaviour(message(content=""), "retried", "no text"),
    "content-blank": Behaviour(message(content=" \n"), "retried", "no text"),
    "content-missing": Behaviour(message(), "retried", "no text"),
    "content-number": Behaviour(message(content=3), "retried", "no text"),
    "content-object": Behaviour(message(content={"text": "A"}), "retried", "no text"),
    "content-empty-list": Behaviour(message(content=[]), "retried", "no text"),
    "refusal": Behaviour(message(content=None, refusal="I cannot help."), "retried", "I cannot help"),
    "reasoning-alone": Behaviour(message(content=None, reasoning_content="It is A."), "retried", "no text"),
    "tool-call": Behaviour(message(content=None, tool_calls=[{"id": "x"}]), "retried", "no text"),
    "finish-filter": Behaviour(choice(finish_reason="content_filter"), "retried", "content_filter"),
    "finish-null": Behaviour(choice(finish_reason=None), "retried", "ended with"),
    "finish-abort": Behaviour(choice(finish_reason="abort"), "retried", "abort"),
    "finish-number": Behaviour(choice(finish_reason=3), "retried", "ended with"),
    # an error with HTTP 200
    "error-429": Behaviour(error(code=429), "retried", "try later, please"),
    "error-503-text": Behaviour(error(code="503"), "retried", "try later, please"),
    "error-rate-limit": Behaviour(error(code="rate_limit_exceeded"), "retried", "try later, please"),
    "error-type": Behaviour(error(type="overloaded_error"), "retried", "try later, please"),
    "error-without-code": Behaviour(error(), "retried", "try later, please"),
    "error-text": Behaviour(of({"error": "try later"}), "retried", "try later"),
    "error-vllm": Behaviour(of({"object": "error", "message": "dead", "code": 500}), "retried", "dead"),
    "error-detail": Behaviour(of({"detail": "not ready"}), "retried", "not ready"),
    "error-in-choice": Behaviour(choice(error={"code": 502, "message": "upstream"}), "retried", "upstream"),
    "error-400": Behaviour(error(code=400), "refused", "try later, please"),
    "error-context": Behaviour(error(code="context_length_exceeded"), "refused", "try later, please"),
    "error-key": Behaviour(error(code="invalid_api_key"), "stops", "refuses the key"),
    "error-quota": Behaviour(of(QUOTA), "stops", "quota of the key"),
    # log-probabilities
    "logprob-nan": Behaviour(logprob(float("nan")), "retried", "log-probability"),
    "logprob-infinite": Behaviour(logprob(float("-inf")), "retried", "log-probability"),
    "logprob-null": Behaviour(logprob(None), "retried", "log-probability"),
    "logprob-text": Behaviour(logprob("-0.1"), "retried", "log-probability"),
    "logprob-missing": Behaviour(choice(token_ids=[1, 2], logprobs=None), "retried", "0 log-probabilities"),
    "token-texts": Behaviour(choice(token_ids=["x"]), "retried", "token ids"),
    # size and wire
    "ten-megabytes": Behaviour(text(lambda words: words + " " * 10_000_000), "retried", "more than"),
    "error-page-of-ten-megabytes": Behaviour(fixed(b"x" * 10_000_000, 500, "text/html"), "retried", "more than"),
    "cut": Behaviour(lambda good: Raw(wire=b""), "retried"),
    "cut-body": Behaviour(lambda good: Raw(200, json.dumps(good).encode(), cut=30), "retried"),
    "no-http": Behaviour(lambda good: Raw(wire=b"SSH-2.0-OpenSSH_9.6\r\n"), "retried"),
    "slow": Behaviour(lambda good: Raw(200, json.dumps(good).encode(), wait_s=0.6), "retried"),
    "redirect-loop": Behaviour(fixed("", 302, Location="/redirect-loop/x/v1/chat/completions"), "retried"),
    # statuses
    **{f"status-{code}": status(code) for code in (304, 400, 401, 402, 403, 404, 405, 408, 409, 413, 415, 422, 425)},
    **{f"status-{code}": status(code) for code in (429, 500, 501, 502, 503, 504, 505, 520, 529)},
    "retry-after": status(429, **{"Retry-After": "20"}),
    "retry-after-date": status(503, **{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    "retry-after-nonsense": status(503, **{"Retry-After": "nan"}),
    "quota": Behaviour(of(QUOTA, 429), "stops", "quota of the key"),
    "status-page": Behaviour(fixed(PAGE, 502, "text/html"), "retried", "gateway"),
    "status-not-utf8": Behaviour(fixed(b"\xff\xfe", 500, "text/plain"), "retried"),
    "status-400-null": Behaviour(of(None, 400), "refused"),
    "status-400-list": Behaviour(of([{"error": "x"}], 400), "refused"),
    "parameter": Behaviour(
        of({"error": {"message": "Unsupported parameter: 'max_completion_tokens' is not supported"}}, 400),
        "refused",
        "does not take max_completion_tokens",
    ),
    "key-in-error": Behaviour(of({"error": {"message": f"Bearer {KEY} is wrong"}}, 400), "refused", "Bearer ***"),
    "key-in-401": Behaviour(of({"error": {"message": f"Bearer {KEY} is wrong"}}, 401), "stops", "refuses the key"),
    "other-model": Behaviour(
        of({"error": {"message": "no such model"}}, 404), "stops", "does not serve 'm'", of({"data": [{"id": "gpt"}]})
    ),
    "404-and-no-list": Behaviour(of({"detail": "Not Found"}, 404), "retried", "is the address right", fixed(PAGE)),
    # words and values that only some gateways send
    "error-in-lines": Behaviour(of({"error": {"message": "a\nb\x1b[2J"}}, 400), "refused", "a b [2J"),
    "finish-list": Behaviour(choice(finish_reason=["stop"]), "retried", "ended with"),
    "retry-after-negative": status(503, **{"Retry-After": "-5"}),
    "retry-after-infinite": status(503, **{"Retry-After": "1e999"}),
    "retry-after-text": status(429, **{"Retry-After": "soon"}),
    "status-999": Behaviour(
        lambda good: Raw(wire=b"HTTP/1.1 999 Odd\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"), "retried"
    ),
    "length-too-short": Behaviour(wired("Content-Length: 5"), "retried"),
    "length-too-long": Behaviour(wired("Content-Length: 99999"), "retried"),
    "length-negative": Behaviour(wired("Content-Length: -5"), "retried"),
    "broken-chunks": Behaviour(
        lambda good: Raw(wire=_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"), "retried"
    ),
    "redirect-to-file": Behaviour(fixed("", 302, Location="file:///dev/null"), "retried"),
    "utf-16": Behaviour(lambda good: raw(json.dumps(good).encode("utf-16")), "retried", "not UTF-8"),
    "huge-number": Behaviour(lambda good: raw(json.dumps(good)[:-1] + ', "x": ' + "9" * 10_000 + "}"), "retried"),
    "two-documents": Behaviour(lambda good: raw(json.dumps(good) * 2), "retried"),
    "error-code-list": Behaviour(error(code=[429]), "retried", "try later, please"),
    "error-code-huge": Behaviour(error(code=10**30), "retried", "try later, please"),
    "logprob-positive": Behaviour(logprob(3.0), "retried", "log-probability"),
    "logprob-huge": Behaviour(logprob(-(10**400)), "retried", "log-probability"),
    "anthropic": Behaviour(of({"type": "message", "content": [{"type": "text", "text": "A"}]}), "retried"),
    "surrogate-in-error": Behaviour(fixed('{"error": {"message": "\\ud800 x"}}', 400), "refused"),
    # read as they are meant
    "parts": Behaviour(
        text(lambda words: [{"type": "text", "text": words[:1]}, {"type": "text", "text": words[1:]}]), "read"
    ),
    "parts-plain": Behaviour(text(lambda words: [words]), "read"),
    "byte-order-mark": Behaviour(lambda good: raw(b"\xef\xbb\xbf" + json.dumps(good).encode()), "read"),
    "as-text": Behaviour(lambda good: raw(json.dumps(good), kind="text/plain"), "read"),
    "finish-upper": Behaviour(choice(finish_reason="STOP"), "read"),
    "finish-eos": Behaviour(choice(finish_reason="eos_token"), "read"),
    "index-missing": Behaviour(choice(index=None), "read"),
    "usage-null": Behaviour(lambda good: right({**good, "usage": None}), "read"),
    "usage-odd": Behaviour(
        lambda good: right({**good, "usage": {"prompt_tokens": -1, "completion_tokens": "x"}}), "read"
    ),
    "error-null": Behaviour(lambda good: right({**good, "error": None, "extra": {"x": [1]}}), "read"),
    "usage-nan": Behaviour(lambda good: right({**good, "usage": {"prompt_tokens": float("nan")}}), "read"),
    "usage-huge": Behaviour(lambda good: right({**good, "usage": {"prompt_tokens": 10**30}}), "read"),
    "index-text": Behaviour(choice(index="0"), "read"),
    "other-charset": Behaviour(lambda good: raw(json.dumps(good), kind="application/json; charset=utf-16"), "read"),
    "continue-first": Behaviour(
        lambda good: Raw(
            wire=b"HTTP/1.1 100 Continue\r\n\r\n" + _HEAD + b"Connection: close\r\n\r\n" + json.dumps(good).encode()
        ),
        "read",
    ),
    # lists of models
    "models-page": Behaviour(right, "read", models=fixed(PAGE, kind="text/html")),
    "models-null": Behaviour(right, "read", models=of(None)),
    "models-404": Behaviour(right, "read", models=of({"detail": "Not Found"}, 404)),
    "models-405": Behaviour(right, "read", models=of({"detail": "Method Not Allowed"}, 405)),
    "models-no-data": Behaviour(right, "read", models=of({"object": "list"})),
    "models-empty": Behaviour(right, "read", models=of({"data": []})),
    "models-odd-entries": Behaviour(right, "read", models=of({"data": [None, "m", {"id": 3}, {"id": MODEL}]})),
    "models-nul": Behaviour(
        right, "read", models=of({"data": [{"id": f"{MODEL}\0"}, {"id": MODEL, "max_model_len": {}}]})
    ),
    "models-surrogate": Behaviour(right, "read", models=fixed('{"data": [{"id": "\\ud800"}, {"id": "m"}]}')),
    "models-bare-list": Behaviour(right, "read", models=of([{"id": MODEL}])),
}
PASSING = tuple(
    name
    for name, behaviour in BEHAVIOURS.items()
    if behaviour.outcome == "retried" and behaviour.models is None and not name.endswith("megabytes")
    if name not in ("slow", "redirect-loop", "deep")
)


def answer(body: Document) -> Document:
    """The right answer to a request: a judge's label, a step of a scripted teacher, or a trace with an answer."""
    last = body["messages"][-1]
    content = body["messages"][0]["content"]
    prompt = content if isinstance(content, str) else content[-1]["text"]
    prefix = last["content"] if last["role"] == "assistant" else ""
    choices, total = [], 0
    for index in range(body.get("n", 1)):
        words, logprobs = _words(body, prompt, prefix, index)
        total += len(words)
        extra = {
            "token_ids": [0] * len(logprobs),
            "logprobs": {"content": [{"token": "x", "logprob": value} for value in logprobs]},
        }
        turn = {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}
        choices.append({**turn, **(extra if logprobs else {})})
    usage = {"prompt_tokens": 10, "completion_tokens": total, "total_tokens": total + 10}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": choices, "usage": usage}


def _words(body: Document, prompt: str, prefix: str, index: int) -> tuple[str, list[float]]:
    if "the former" in prompt:
        return TEXT, []
    rng = random.Random(zlib.crc32(f"{prompt}\n{prefix}\n{body.get('seed')}\n{index}".encode("utf-8", "replace")))
    if "structured_outputs" in body:
        return rng.choice(body["structured_outputs"]["choice"]), []
    if "response_format" in body:
        return json.dumps(_verdicts(body["response_format"]["json_schema"]["schema"], rng)), []
    if body.get("stop"):
        return write(prefix, body["stop"], body.get("seed"), index)
    asked = parse_question(prompt)
    if asked is None:
        return TEXT, []
    chosen = rng.choice(asked.options[:2])
    opening = "" if prefix else "<think>"
    return f"{opening}The first thing is red. The answer is {chosen}.</think><answer>{chosen}</answer>", [-0.5] * 8


def _verdicts(schema: Document, rng: random.Random) -> Any:
    if "enum" in schema:
        return rng.choice(schema["enum"])
    if schema["type"] == "string":
        return ""
    return {name: _verdicts(part, rng) for name, part in schema["properties"].items()}


class OddServer:
    """The running server: `url(name)`, and how many requests came by behaviour and were faulty."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.good: Counter[int] = Counter()  # right answers, by the request's hash
        self.down = False
        self.share = 0.3
        self.for_good: set[str] = set()
        self.bodies: list[Document] = []
        self.lock = threading.Lock()
        self.address = ""

    def url(self, name: str, who: str = "x") -> str:
        """The API root where the server behaves so."""
        return f"{self.address}/{name}/{who}/v1"

    def respond(self, path: str, body: bytes | None) -> Raw:
        """The answer to a request; `body` None is a GET."""
        name, who = path.strip("/").split("/")[:2]
        behaviour = BEHAVIOURS.get(name)
        if body is None:
            return behaviour.models() if behaviour and behaviour.models else right(LIST)
        asked = json.loads(body)
        good, key = answer(asked), zlib.crc32(body)
        with self.lock:
            self.bodies.append(asked)
            seen = self.asked[f"{name}/{who}/{key}"]
            self.asked[f"{name}/{who}/{key}"] += 1
        if name == "mixed":
            rng = random.Random(f"{key} {seen}")
            if rng.random() < self.share:
                fault = rng.choice(PASSING)
                if fault == "content-blank" and asked.get("stop"):  # where steps end at a line break, it is one
                    fault = "content-empty"
                with self.lock:
                    self.faults[fault] += 1
                return BEHAVIOURS[fault].act(good)
        elif behaviour is not None and (behaviour.outcome != "retried" or seen < 2 or who in self.for_good):
            return behaviour.act(good)
        with self.lock:
            self.good[key] += 1
        return right(good)


Server = TypeVar("Server", bound=OddServer)


@contextmanager
def running(odd: Server | None = None) -> Iterator[Server]:
    """A server that runs until the block ends."""
    odd = cast(Server, OddServer()) if odd is None else odd

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond(None)

        def do_POST(self) -> None:
            body = self.rfile.read(size := int(self.headers["Content-Length"]))
            if len(body) == size:  # else its client was killed
                self.respond(body)

        def respond(self, body: bytes | None) -> None:
            if odd.down:
                self.close_connection = True
                return
            out = odd.respond(re.sub(r"\?.*", "", self.path), body)
            time.sleep(out.wait_s)
            if out.wire is not None:
                self.wfile.write(out.wire)
                self.close_connection = True
                return
            self.send_response(out.status)
            for name, value in {"Content-Type": "application/json", **out.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(out.body)))
            self.end_headers()
            if out.cut is not None:
                self.close_connection = True
            if out.status not in (204, 304):
                self.wfile.write(out.body if out.cut is None else out.body[: out.cut])

        def handle(self) -> None:
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    odd.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield odd
    finally:
        server.shutdown()
        server.server_close()
