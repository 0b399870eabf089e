"""What can go wrong outside: pictures, counts, models, endpoints, memory, empty folders. One clear line; what was made stays."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scripted import Scripted

from eval import base, figures, generate, miniworld_truth, models, report, rescore, run, tables
from fgrpo import inference
from fgrpo.cli import explain
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import json_line, read_ids, read_jsonl
from fgrpo.inference.base import Request
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.schema import Config
from tests.loopback import Replies, serving

ROOT = Path(__file__).resolve().parents[2]
NO_PICTURES = "At most 0 image(s) may be provided in one prompt."


class Blind(Replies):
    """An endpoint whose model takes no pictures, as vLLM says it; text alone is answered."""

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        if any(part["type"] == "image_url" for part in body["messages"][0]["content"]):
            return self.reply(400, {"error": {"message": NO_PICTURES, "type": "BadRequestError", "code": 400}})
        self.reply(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []})


@pytest.fixture
def blind() -> Iterator[str]:
    with serving(Blind) as address:
        yield address


def engine(world: Config) -> Scripted:
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    return Scripted(book)


def checkpoint(world: Config, root: Path, stage: str = "rl-fgrpo") -> None:
    folder = root / world.preset / stage / "final"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"stage": stage}))
    shutil.copy(ROOT / "miniworld/backbone/processor_config.json", folder)


def test_an_endpoint_that_rejects_pictures(world: Config, tmp_path: Path, blind: str) -> None:
    checkpoint(world, tmp_path)
    everything = ("mmvp", "cvb_2d", "cvb_3d", "mindcube", "omnispatial", "sat_real")
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    folder = tmp_path / world.preset / "eval/fgrpo"
    before = (folder / "generations.jsonl").read_bytes()
    remote = OpenAISampler([blind], "m", forbidden=(), longest_wait_s=0.1)
    with pytest.raises(UserError) as refused:
        run.evaluate(world, "fgrpo", everything, tmp_path, remote)
    words = str(refused.value)
    assert (
        "answered none of this run's requests" in words
        and NO_PICTURES in words
        and "does its model take images" in words
    )
    assert "finished answers are kept" in words
    held = [row for row in read_jsonl(folder / "generations.jsonl") if row["finish"] != "error"]
    assert [json_line(row) for row in held] == before.decode().splitlines()
    again = engine(world)
    run.evaluate(world, "fgrpo", everything, tmp_path, again)
    assert again.asked and all(row["finish"] == "stop" for row in read_jsonl(folder / "generations.jsonl"))


def test_out_of_memory_says_which_setting_to_lower(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real engine over the real model, whose forward pass runs out of memory in the second batch."""
    config = load("smoke", "fgrpo", [f"data.root={world.data.root}", "eval.batch_size=4", "eval.max_new_tokens=4"])
    complete, calls = TransformersSampler.complete, 0

    def hungry(self: TransformersSampler, requests: Sequence[Request]) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return complete(self, requests)

    monkeypatch.setattr(TransformersSampler, "complete", hungry)
    with pytest.raises(UserError, match=r"out of memory while 4 .*20\.00 GiB.*lower the batch size \(eval\.batch_size"):
        run.evaluate(config, "backbone-direct", ["mmvp", "cvb_2d"], tmp_path)
    kept = tmp_path / "smoke/eval/backbone-direct/generations.jsonl"
    first = read_ids(kept)
    assert len(first) == 4
    monkeypatch.setattr(TransformersSampler, "complete", complete)
    run.evaluate(config, "backbone-direct", ["mmvp", "cvb_2d"], tmp_path)
    assert first < read_ids(kept)


def test_memory_of_the_cpu_is_memory_too(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: TransformersSampler, requests: Sequence[Request]) -> object:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to …")

    monkeypatch.setattr(TransformersSampler, "complete", hungry)
    config = load("smoke", "fgrpo", [f"data.root={world.data.root}"])
    with pytest.raises(UserError, match="lower the batch size"):
        run.evaluate(config, "backbone-direct", ["mmvp"], tmp_path)


def test_models_that_are_not_there(world: Config, tmp_path: Path, blind: str) -> None:
    here = [f"data.root={world.data.root}"]
    gone = load("smoke", "fgrpo", [*here, f"models.base={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match=r"nowhere is neither a folder with a model nor"):
        run.evaluate(gone, "backbone-direct", ["mmvp"], tmp_path)
    served = load("smoke", "fgrpo", [*here, "eval.engine=openai", f"engine.endpoints={json.dumps([blind])}"])
    with pytest.raises(UserError, match=r"does not serve 'miniworld/backbone' but m; set engine\.model_name"):
        run.evaluate(served, "backbone-direct", ["mmvp"], tmp_path)
    nowhere = load("smoke", "fgrpo", [*here, "eval.engine=openai"])
    with pytest.raises(UserError, match=r"engine\.endpoints .*no address of a server of miniworld/backbone"):
        run.evaluate(nowhere, "backbone-direct", ["mmvp"], tmp_path)


def test_pictures_gone_and_wrong_counts_stop_before_the_first_token(
    real_like: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(real_like.data.root) / "bench/OmniSpatial/Complex_Logic/0.png").unlink()
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr(run, "_build_sampler", lambda *_: pytest.fail("a model was loaded"))
    here = [f"data.root={real_like.data.root}", 'judges.extraction.endpoints=["http://127.0.0.1:9/v1"]']
    loose = load("paper-7b", "fgrpo", [*here, "eval.counts=null"])
    with pytest.raises(
        UserError, match=r"omnispatial: 1 of 3 images are missing .*0\.png.*`make data-download .*OmniSpatial"
    ):
        run.evaluate(loose, "gpt-4o", ["mmvp", "omnispatial"], tmp_path / "runs")
    short = load("paper-7b", "fgrpo", here)
    with pytest.raises(
        UserError, match=r"mmvp: 4 trials instead of the published 300; `make data-download .*eval\.counts\.mmvp=4"
    ):
        run.evaluate(short, "gpt-4o", ["mmvp"], tmp_path / "runs")


def test_an_empty_run_folder(world: Config, tmp_path: Path) -> None:
    """Nothing there, and an evaluation that was begun and not finished."""
    for work in (tables.build, report.write):
        with pytest.raises(UserError, match=r"no evaluated model below .*run `make eval PRESET=smoke` first"):
            work(world, tmp_path)
    assert figures.draw(world, tmp_path) == []
    with pytest.raises(UserError, match=r"generations\.jsonl is missing; run `make eval`"):
        rescore.rescore(world, tmp_path, "oracle")
    checkpoint(world, tmp_path)
    dying = engine(world)
    dying.die_after = 2
    with pytest.raises(BaseExceptionGroup):
        run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, dying)
    with pytest.raises(UserError, match=r"fgrpo is not finished; run `make eval"):
        tables.build(world, tmp_path)


def test_an_empty_benchmark(real_like: Config) -> None:
    path = Path(real_like.data.root) / "bench/OmniSpatial/data.json"
    path.write_text("[]")
    with pytest.raises(UserError, match="omnispatial holds no usable question"):
        base.load("omnispatial", real_like)
    path.write_text('{"rows": []}')
    with pytest.raises(UserError, match="must hold a list of questions"):
        base.load("omnispatial", real_like)


def test_a_broken_picture_is_one_refused_answer(world: Config, tmp_path: Path) -> None:
    """Found when it is sent, not when the benchmark is read; the others are answered."""
    samples = base.load("mmvp", world).samples
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(samples[0].images[0]).read_bytes()[:60])
    todo = generate.jobs(
        [replace(samples[0], images=(str(broken),)), samples[1]], models.load("backbone-direct"), world
    )
    sampler = TransformersSampler.load("miniworld/backbone")
    path = tmp_path / "generations.jsonl"
    counts = asyncio.run(generate.generate(todo, sampler, path, concurrency=4))
    assert counts["error"] == 1 and sum(counts.values()) == 2
    assert "broken.png cannot be decoded" in generate.first_refusal(path)


def test_user_errors_are_one_line(world: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError) as found:
        tables.build(world, tmp_path)
    assert "\n" not in (explain(found.value) or "\n")


def test_a_vllm_engine_that_does_not_start_says_what_to_lower(world: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """What vLLM raises where its engine's process died, for instance for want of memory; the cause stands in its log."""

    class Engine:
        @staticmethod
        def from_engine_args(arguments: dict[str, object]) -> object:
            assert arguments["max_num_seqs"] == world.eval.batch_size
            assert arguments["max_model_len"] == world.eval.context_length
            raise RuntimeError("Engine core initialization failed. See root cause above.")

    stubs = {name: ModuleType(name) for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.async_llm")}
    vars(stubs["vllm"])["AsyncEngineArgs"] = dict
    vars(stubs["vllm.v1.engine.async_llm"])["AsyncLLM"] = Engine
    for name, module in stubs.items():
        monkeypatch.setitem(sys.modules, name, module)
    config = world.model_copy(update={"eval": world.eval.model_copy(update={"engine": "vllm"})})
    wanted = models.engine_config(models.load("backbone-cot"), config)
    with pytest.raises(UserError, match=r"lower engine\.gpu_memory, eval\.context_length or .*\(eval\.batch_size\)"):
        inference.build(wanted, "miniworld/backbone")
