"""The endpoint engine against a real HTTP server that answers from a script: what is sent, retried, refused."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgrpo.errors import UserError
from fgrpo.images import data_url
from fgrpo.inference.addresses import normal_url
from fgrpo.inference.base import Completion, Request, SamplingError, Unreachable, UnusableImage
from fgrpo.inference.openai_engine import OpenAISampler
from tests.loopback import Replies


class Scripted:
    """An endpoint that gives each chat request the next (status, n) of its script, then 200s; remembers what it was sent."""

    def __init__(
        self,
        owned_by: str = "vllm",
        script: Sequence[int] = (),
        wait_s: float = 0.0,
        short: int = 0,
        mute: Sequence[Sequence[int]] = (),
    ) -> None:
        self.asked: list[dict[str, Any]] = []
        self.script, self.owned_by, self.wait_s, self.short = list(script), owned_by, wait_s, short
        self.mute = list(mute)  # choices of each reply that have no text
        self.now = self.most = 0
        lock, outer = threading.Lock(), self

        class Handler(Replies):
            def do_GET(self) -> None:
                self.reply(
                    200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": outer.owned_by}]}
                )

            def do_POST(self) -> None:
                body = json.loads(self.body())
                with lock:
                    outer.asked.append(body)
                    status = outer.script.pop(0) if outer.script else 200
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                time.sleep(outer.wait_s)
                with lock:
                    outer.now -= 1
                if status == 0:  # a proxy's page instead of JSON
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "6")
                    self.end_headers()
                    self.wfile.write(b"<html>")
                    return None
                if status != 200:
                    return self.reply(status, {"error": {"message": f"scripted {status}", "code": status}})
                choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": "left.\n"}}
                extra = {
                    "logprobs": {"content": [{"token": "x", "logprob": -0.5, "top_logprobs": []}]},
                    "token_ids": [7],
                }
                choices = [{**choice, **extra, "index": i} for i in reversed(range(body.get("n", 1) - outer.short))]
                for index in outer.mute.pop(0) if outer.mute else ():
                    choices[-1 - index] = {**choices[-1 - index], "message": {"role": "assistant", "content": ""}}
                self.reply(
                    200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
                )

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def endpoints() -> Iterator[list[Scripted]]:
    servers: list[Scripted] = []
    yield servers
    for endpoint in servers:
        endpoint.close()


def ask(sampler: OpenAISampler, asked: Sequence[Request]) -> list[Sequence[Completion] | BaseException]:
    async def go() -> list[Sequence[Completion] | BaseException]:
        try:
            return await asyncio.gather(*(sampler.sample(r) for r in asked), return_exceptions=True)
        finally:
            await sampler.close()

    return asyncio.run(go())


def sampler_of(*endpoints: Scripted, **more: Any) -> OpenAISampler:
    return OpenAISampler([e.url for e in endpoints], "m", **{"forbidden": (3, 5), "longest_wait_s": 0.01, **more})


def picture(path: Path, mode: str = "RGB", **more: Any) -> str:
    Image.new(mode, (6, 4), 120 if mode == "L" else (10, 20, 30)).save(path, **more)
    return str(path)


def test_what_a_vllm_server_is_sent(endpoints: list[Scripted], tmp_path: Path) -> None:
    endpoints.append(server := Scripted())
    images = (picture(tmp_path / "a.png"), picture(tmp_path / "b.png"))
    request = Request(
        images, "Where?", "<think>", n=2, max_new_tokens=9, temperature=0.3, top_p=0.9, stop=("\n",), seed=2
    )
    (answer,) = ask(sampler_of(server), [request])
    assert answer == [Completion("left.\n", "stop", (7,), (-0.5,))] * 2
    (sent,) = server.asked
    kinds = [part["type"] for part in sent["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert sent["messages"][1] == {"role": "assistant", "content": "<think>"}
    expected = {
        "continue_final_message": True,
        "add_generation_prompt": False,
        "include_stop_str_in_output": True,
        "stop": ["\n"],
        "logit_bias": {"3": -100.0, "5": -100.0},
        "logprobs": True,
        "seed": 2,
        "n": 2,
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": -1,
        "repetition_penalty": 1.0,
        "max_completion_tokens": 9,
    }
    assert {key: sent.get(key) for key in expected} == expected


def test_what_a_closed_model_is_sent(endpoints: list[Scripted]) -> None:
    endpoints.append(server := Scripted(owned_by="system"))
    fine, refused = ask(sampler_of(server), [Request((), "Where?"), Request((), "Where?", "<think>")])
    assert isinstance(fine, list)
    assert isinstance(refused, SamplingError)
    assert "prefix" in str(refused)
    assert not {"logit_bias", "top_k", "include_stop_str_in_output", "logprobs"} & set(server.asked[0])


@pytest.mark.parametrize("status", [0, 404, 408, 409, 425, 429, 500, 503])
def test_what_another_attempt_may_resolve_is_retried(endpoints: list[Scripted], status: int) -> None:
    endpoints.append(server := Scripted(script=[status, status]))
    (answer,) = ask(sampler_of(server), [Request((), "Where?")])
    assert isinstance(answer, list)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 405, 422, 501])
def test_a_refused_request_fails_at_once_and_alone(endpoints: list[Scripted], status: int) -> None:
    endpoints.append(server := Scripted(script=[status]))
    sampler = sampler_of(server, concurrency=1)
    bad, good = ask(sampler, [Request((), "The bad one?"), Request((), "The good one?")])
    assert isinstance(bad, SamplingError)
    assert "The bad one?" in str(bad)
    assert str(status) in str(bad)
    assert isinstance(good, list)
    assert len(server.asked) == 2


def test_it_gives_up_after_its_attempts(endpoints: list[Scripted]) -> None:
    endpoints.append(server := Scripted(script=[500] * 10))
    (answer,) = ask(sampler_of(server, attempts=3), [Request((), "Where?")])
    assert isinstance(answer, SamplingError) and not isinstance(
        answer, Unreachable
    )  # it may be this one request's fault
    assert "500 after 3 attempts" in str(answer)
    assert len(server.asked) == 3


def test_a_dead_endpoint_is_skipped(endpoints: list[Scripted]) -> None:
    endpoints.append(server := Scripted())
    dead = OpenAISampler(["http://127.0.0.1:9/v1", server.url], "m", forbidden=(), longest_wait_s=0.01)
    answers = ask(dead, [Request((), f"{n}?") for n in range(8)])
    assert all(isinstance(answer, list) for answer in answers)
    (unreachable,) = ask(
        OpenAISampler(["http://127.0.0.1:9/v1"], "m", attempts=2, longest_wait_s=0.01), [Request((), "x")]
    )
    assert isinstance(unreachable, Unreachable)
    assert "is a server running there" in str(unreachable)


def test_load_is_shared_and_bounded(endpoints: list[Scripted]) -> None:
    endpoints += [Scripted(wait_s=0.05), Scripted(wait_s=0.05)]
    ask(sampler_of(*endpoints, concurrency=4), [Request((), f"{n}?") for n in range(16)])
    assert [len(e.asked) for e in endpoints] == pytest.approx([8, 8], abs=2)
    assert max(e.most for e in endpoints) <= 3


def test_fewer_continuations_than_requested_are_an_error(endpoints: list[Scripted]) -> None:
    endpoints.append(server := Scripted(short=1))
    (answer,) = ask(sampler_of(server), [Request((), "Where?", n=3)])
    assert isinstance(answer, SamplingError)
    assert "2 came" in str(answer)


def test_a_wrong_model_and_a_missing_tokenizer_are_user_errors(endpoints: list[Scripted], tmp_path: Path) -> None:
    endpoints.append(server := Scripted())
    (other,) = ask(OpenAISampler([server.url], "other", forbidden=()), [Request((), "Where?")])
    assert isinstance(other, UserError)
    assert "does not serve 'other' but m" in str(other)
    (tmp_path / "tokenizer.json").write_text("{}")
    (unknown,) = ask(OpenAISampler([server.url], "m", tokenizer=str(tmp_path)), [Request((), "Where?")])
    assert isinstance(unknown, UserError)
    assert not server.asked


def test_one_sampler_serves_several_event_loops(endpoints: list[Scripted]) -> None:
    endpoints.append(server := Scripted())
    sampler = sampler_of(server)
    for _ in range(2):
        assert asyncio.run(sampler.sample(Request((), "Where?")))


def test_images_are_sent_as_all_engines_read_them(tmp_path: Path) -> None:
    plain = picture(tmp_path / "plain.png")
    assert base64.b64decode(data_url(plain).split(",")[1]) == Path(plain).read_bytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    for path in (picture(tmp_path / "turned.jpg", exif=turned), picture(tmp_path / "grey.png", "L")):
        kind, size = ("jpeg", (4, 6)) if "turned" in path else ("png", (6, 4))
        url = data_url(path)
        assert url.startswith(f"data:image/{kind};base64,")
        sent = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert (sent.mode, sent.size, sent.getexif().get(0x0112)) == ("RGB", size, None)


def test_unusable_images_are_refused_and_the_others_answered(endpoints: list[Scripted], tmp_path: Path) -> None:
    endpoints.append(server := Scripted())
    Image.new("RGB", (2001, 10)).save(tmp_path / "narrow.png")
    (tmp_path / "empty.png").touch()
    names = ("narrow.png", "good.png", "empty.png", "missing.png")
    picture(tmp_path / "good.png")
    answers = ask(sampler_of(server), [Request((str(tmp_path / name),), "Where?") for name in names])
    for name, answer in zip(names, answers, strict=True):
        assert isinstance(answer, UnusableImage) == (name != "good.png")
        assert name == "good.png" or name in str(answer)
    assert len(server.asked) == 1


def test_addresses(endpoints: list[Scripted]) -> None:
    assert normal_url("http://host:8000") == "http://host:8000/v1"
    assert normal_url("https://host/api/v2/") == "https://host/api/v2"
    assert normal_url("http://host/v1/chat/completions/") == normal_url(" http://host/v1/models\n") == "http://host/v1"
    assert normal_url("https://host/openai?api-version=2&x=1") == "https://host/openai?api-version=2&x=1"
    assert normal_url("https://host?x=1") == "https://host/v1?x=1"
    assert normal_url("https://host/chat/completions") == "https://host"
    for wrong in (
        "host:8000",
        "",
        "ftp://host/v1",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://:80",
        "https://?k=s",
    ):
        with pytest.raises(UserError):
            normal_url(wrong)
    with pytest.raises(UserError, match="the endpoint at host has a user or password") as raised:
        normal_url("https://me:sk-secret@host/v1")
    assert "sk-secret" not in str(raised.value)
    with pytest.raises(UserError, match=r"engine\.endpoints is empty"):
        OpenAISampler([], "m")


def test_a_choice_without_text_is_requested_again(endpoints: list[Scripted]) -> None:
    """Three times as it is, then alone with another seed; good choices are kept, and each fault is counted."""
    passing = Scripted(mute=[[1, 2]])
    endpoints.append(passing)
    ((*replies,),) = ask(sampler_of(passing), [Request((), "q", n=4, seed=5)])  # type: ignore[misc]
    assert [reply.text for reply in replies] == ["left.\n"] * 4
    assert [(body["n"], body["seed"]) for body in passing.asked] == [(4, 5), (4, 5)], "as if there had been no fault"

    lasting = Scripted(mute=[[1, 2], [1, 2, 3], [1, 2], [0]])
    endpoints.append(lasting)
    sampler = sampler_of(lasting)
    ((*replies,),) = ask(sampler, [Request((), "q", n=4, seed=5)])  # type: ignore[misc]
    assert [reply.text for reply in replies] == ["left.\n"] * 4
    assert [body["n"] for body in lasting.asked] == [4, 4, 4, 2, 1]
    seeds = [body["seed"] for body in lasting.asked]
    assert seeds[:3] == [5] * 3 and len(set(seeds)) == 3
    assert sampler.meter.faults["no text"] == 8
