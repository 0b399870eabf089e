"""An anchored policy on the real vLLM: prompts with its token, to the id; the token never sampled; FGRPO with anchoring and probes."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests as http
import torch

from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.images import open_rgb
from fgrpo.inference.base import Request
from fgrpo.inference.openai_engine import FORBIDDEN_BIAS, OpenAISampler
from fgrpo.inference.serve import order
from fgrpo.inference.vllm_server import Server
from fgrpo.policy import focus, loading, tokens
from rl.vllm_rollouts import collapse
from tests.vllm.test_rollouts import LIMIT_S, PYTHON, ROOT, check_metrics, world_of

STEPS = 2
WANTED = 60.0  # the logit of the token that the model is made to want
MEASURED = ("evidence_margin", "vision_dependence", "attention_where_it_matters")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs root with questions, and the backbone with the token as what the anchor stage left."""
    folder = tmp_path_factory.mktemp("anchored")
    final = world_of(folder) / "anchor" / "final"
    final.parent.mkdir()
    focus.add("miniworld/backbone", final, add_row=True)
    return folder


@pytest.fixture(scope="module")
def eager(root: Path, requests: list[Request]) -> Path:
    """The same policy with a row of the token that makes it the first one it would write after a prompt."""
    folder, source = root / "eager", root / "mini" / "anchor" / "final"
    model, processor = loading.load_policy(source)
    index, given = focus.focus_id(processor.tokenizer), encoded(processor, requests[0])
    with torch.no_grad():
        for _ in range(8):  # the row is also that of the prompt's own token
            out = model(**given, output_hidden_states=True)
            last = out.hidden_states[-1][0, -1]
            model.get_output_embeddings().weight[index] = WANTED * last / last.pow(2).sum()
        logits = model(**given).logits[0, -1]
    assert int(logits.argmax()) == index
    assert float(logits[index]) + FORBIDDEN_BIAS < float(logits.sort().values[-2]), "what forbids it outweighs it"
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    return folder


def encoded(processor: Any, request: Request) -> Any:
    """The trainer's own form of a request."""
    text = loading.render_prompt(processor, request.images, request.text) + request.prefix
    return processor(text=[text], images=[open_rgb(path) for path in request.images], return_tensors="pt")


@pytest.fixture(scope="module")
def server(root: Path, eager: Path) -> Iterator[Server]:
    """`make serve-rollouts METHOD=<one that starts anchored>`, with the eager policy in place of the stage's."""
    ordered = order(load("mini", overrides=["rl.start=anchor"]), "rollouts", [], root=root)
    assert ordered.model == str(root / "mini" / "anchor" / "final"), "the stage from which the method starts"
    ordered = order(load("mini"), "rollouts", [], str(eager), root=root)
    log, environment = root / "server.log", ordered.environment
    with Server(ordered.model, log=log, flags=ordered.flags, environment=environment, timeout_s=LIMIT_S) as running:
        yield running


def replies(server: Server, eager: Path, asked: Sequence[Request], forbidden: Sequence[int] | None) -> list[Any]:
    """The server's JSON replies to requests as evaluation makes them; `forbidden` None: what the tokenizer says."""
    sampler = OpenAISampler([server.url], str(eager), tokenizer=str(eager), forbidden=forbidden)

    async def bodies() -> list[Any]:
        return [await sampler._body(request, True) for request in asked]

    made = [
        http.post(f"{sampler.urls[0]}/chat/completions", json=body, timeout=LIMIT_S) for body in asyncio.run(bodies())
    ]
    assert all(reply.ok for reply in made), made[0].text
    return [reply.json() for reply in made]


@pytest.fixture(scope="module")
def requests(greedy: list[Request]) -> list[Request]:
    """Prompts with one and two pictures, and one whose trace has begun."""
    from dataclasses import replace

    short = [replace(request, max_new_tokens=8) for request in (*greedy[:3], greedy[5])]
    return [*short, replace(short[0], prefix="<think>")]


def test_vllm_reads_the_trainers_prompts_and_their_token(server: Server, eager: Path, requests: list[Request]) -> None:
    processor = loading.load_processor(eager)
    index, image = focus.focus_id(processor.tokenizer), processor.image_token_id
    assert {len(request.images) for request in requests} == {1, 2}
    for request, reply in zip(requests, replies(server, eager, requests, None), strict=True):
        own = encoded(processor, request)["input_ids"][0].tolist()
        assert own.count(index) == 1
        assert collapse(reply["prompt_token_ids"], image) == collapse(own, image)


def test_the_token_is_never_sampled(server: Server, eager: Path, requests: list[Request]) -> None:
    index = focus.focus_id(loading.load_processor(eager).tokenizer)
    assert index in tokens.forbidden_token_ids(str(eager))
    free, bound = (
        [list(reply["choices"][0]["token_ids"]) for reply in replies(server, eager, requests, forbidden)]
        for forbidden in ((), None)
    )
    assert free[0][0] == index, "it is what the model would write"
    assert all(bound) and not any(index in ids for ids in bound)


def test_fgrpo_with_anchoring_and_probes_on_rollouts_of_vllm(root: Path) -> None:
    """The colocated engine, whose prompts the trainer compares to the token; engine and policy agree on each token's probability."""
    shutil.rmtree(root / "mini" / "rl-fgrpo", ignore_errors=True)
    settings = (
        f"data.root={root / 'world'}", "data.boxes_from=[vgr]", "rl.start=anchor", "rl.rollout_engine=vllm-colocate",
        f"rl.max_steps={STEPS}", "rl.rollout_batch=3", "rl.global_batch=3", "rl.group_size=4", "rl.micro_batch=12",
        "rl.max_response_length=48", "rl.learning_rate=1.0e-3", "rl.dual.min_applicable=1",
        "rl.auxiliary={anchoring: {weight: 0.1, options: {at_most: 0.5, lr: 0.1}}}",
        "rl.constraints.evidence_margin.tau=0.7", f"rl.monitor=[consistency,{','.join(MEASURED)}]",
    )  # fmt: skip
    words = ["-m", "rl.train", "--preset", "mini", "--method", "fgrpo", "--runs", str(root), "--set", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(PYTHON), *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = root / "mini" / "rl-fgrpo"
    check_metrics(folder / "metrics.jsonl", STEPS)
    lines: list[dict[str, Any]] = list(read_jsonl(folder / "metrics.jsonl"))
    for line in lines:
        assert line["aux/anchoring/with_boxes"] == 1.0 and 0 < line["aux/anchoring/inside"] < 1
        assert line["monitor/vision_dependence/mean"] > 0 and line["seconds/probes"] > 0
    assert lines[0]["aux/anchoring/weight"] != lines[1]["aux/anchoring/weight"]
    assert any(line.get("constraint/evidence_margin/n") for line in lines)
    assert "<|focus|>" in (folder / "final" / "chat_template.jinja").read_text()
