"""A loopback endpoint with the OpenAI API: a vLLM server of any model below /vllm/v1, OpenAI's own below /openai/v1.

Replies are a function of the request. The first lists its models as vLLM's, returns token ids with log-probabilities, and
takes vLLM's parameters; the second refuses what GPT's reasoning models refuse: a temperature other than 1, max_tokens,
log-probabilities, and every parameter that is vLLM's.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

from scripts.rehearsal_paper.styles import Written, answer, steps, verdict

Document = dict[str, Any]
_OPTION = re.compile(r"(?m)^\(?([A-F])[.):]\)? (.+)$")
VLLM_ONLY = (
    *("top_k", "min_p", "repetition_penalty", "include_stop_str_in_output", "return_token_ids", "structured_outputs"),
    *("add_generation_prompt", "continue_final_message"),
)


class Refused(Exception):
    """A request that the endpoint refuses with HTTP 400, and what it says."""


class Endpoint:
    """The models it serves, and what it was asked for and replied, by (server, kind, style)."""

    def __init__(self, vllm: Sequence[str], openai: Sequence[str], tokenize: Callable[[str], Sequence[int]]) -> None:
        self.models = {"vllm": list(vllm), "openai": list(openai)}
        self.tokenize = tokenize
        self.replied: Counter[tuple[str, str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.images: Counter[str] = Counter()  # mode of each image that came
        self.by_model: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.address = ""

    def url(self, server: str) -> str:
        """The API root of "vllm" or "openai"."""
        return f"{self.address}/{server}/v1"

    def listing(self, server: str) -> Document:
        """The body of GET /models."""
        models = [{"id": name, "object": "model", "owned_by": server} for name in self.models[server]]
        return {"object": "list", "data": models}

    def complete(self, server: str, body: Document) -> Document:
        """The body of a chat completion.

        Raises:
            Refused: as the server would.
        """
        if body["model"] not in self.models[server]:
            raise Refused(f"The model `{body['model']}` does not exist.")
        if server == "openai":
            refuse_as_gpt(body)
        for url in image_urls(body):
            self._look(url)
        choices, total = [], 0
        for index in range(body.get("n", 1)):
            kind, names, written = write(body, index)
            with self.lock:
                self.replied.update((server, kind, name) for name in names)
                self.by_model[body["model"]] += 1
            ids = list(self.tokenize(written.text)) if body.get("logprobs") else []
            total += len(ids) or len(written.text) // 4
            choices.append(choice(index, written, ids, body))
        usage = {"prompt_tokens": 1000, "completion_tokens": total, "total_tokens": 1000 + total}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**head, "choices": choices, "usage": usage}

    def _look(self, url: str) -> None:
        """Decode an image as a server would. Raises Refused."""
        try:
            with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
                image.draft("RGB", (64, 64))
                image.load()
                with self.lock:
                    self.images[f"{image.format} {image.mode}"] += 1
        except (OSError, ValueError) as error:
            raise Refused(f"Failed to load image: {error}") from error


def refuse_as_gpt(body: Document) -> None:
    """Refuse what GPT's reasoning models refuse. Raises Refused."""
    if body.get("temperature", 1) != 1:
        raise Refused(
            f"Unsupported value: 'temperature' does not support {body['temperature']} with this model. Only the default (1) value is supported."
        )
    if "max_tokens" in body:
        raise Refused(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
    for name in ("logprobs", "logit_bias", "stop", "top_p"):
        if body.get(name):
            raise Refused(f"Unsupported parameter: '{name}' is not supported with this model.")
    for name in VLLM_ONLY:
        if name in body:
            raise Refused(f"Unrecognized request argument supplied: {name}")


def image_urls(body: Document) -> list[str]:
    """The data URLs of a request's images."""
    contents = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    return [part["image_url"]["url"] for content in contents for part in content if part["type"] == "image_url"]


def write(body: Document, index: int) -> tuple[str, list[str], Written]:
    """(kind of request, names of the styles, reply) of choice `index`."""
    turns = [message["content"] for message in body["messages"] if message["role"] == "user"]
    text = turns[0] if isinstance(turns[0], str) else turns[0][-1]["text"]
    last = body["messages"][-1]
    prefix = last["content"] if last["role"] == "assistant" else ""
    rng = random.Random(zlib.crc32(json.dumps([body["model"], text, prefix, body.get("seed"), index]).encode()))
    if "structured_outputs" in body:
        return "choice", ["choice"], Written(rng.choice(body["structured_outputs"]["choice"]))
    if "response_format" in body:
        name, written = verdict(body["response_format"]["json_schema"]["schema"], rng)
        return "verdict", [name], written
    options = _OPTION.findall(text) or [("A", "yes"), ("B", "no")]
    letter, option = rng.choice(options)
    if body.get("stop"):
        names, written = steps(prefix, letter, "\n" not in body["stop"], rng)
        return "search", names, written
    name, written = answer(letter, option.strip(), rng)
    return "answer", [name], written


def choice(index: int, written: Written, ids: Sequence[int], body: Document) -> Document:
    """One entry of `choices`."""
    message: Document = {"role": "assistant", "content": written.text}
    if written.reasoning:
        message["reasoning_content"] = written.reasoning
    out: Document = {"index": index, "finish_reason": written.finish, "message": message}
    if ids:
        rng = random.Random(len(written.text))
        out["logprobs"] = {"content": [{"token": "", "logprob": -0.1 - rng.random()} for _ in ids]}
        if body.get("return_token_ids"):
            out["token_ids"] = list(ids)
    return out


@contextmanager
def running(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve `endpoint` on a free port of the loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server = self.path.strip("/").split("/")[0]
            if server not in endpoint.models or not self.path.endswith("/models"):
                return self.send(404, {"error": {"message": "Not Found"}})
            self.send(200, endpoint.listing(server))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server = self.path.strip("/").split("/")[0]
            try:
                self.send(200, endpoint.complete(server, body))
            except Refused as error:
                with endpoint.lock:
                    endpoint.refused[str(error)] += 1
                self.send(400, {"error": {"message": str(error), "type": "invalid_request_error", "code": None}})

        def send(self, status: int, document: Document) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
