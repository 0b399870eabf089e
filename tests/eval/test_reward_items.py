"""What a reward sees of a rollout in evaluation, and what an edited reward does to stored scores."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eval import models, rescore, run, run_folder
from eval.results import read_records
from fgrpo.inference.base import Completion, Request
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.schema import Config
from fgrpo.sealed import CHECKSUM
from fgrpo.types import Score
from rewards.base import RewardContext, RewardItem
from tests.eval.test_chain import checkpoint, engine
from tests.loopback import Replies, serving


class Short:
    """E[1 - tokens/limit], of answers whose length is known."""

    name = "consistency"
    report = None

    def __init__(self) -> None:
        self.items: list[RewardItem] = []

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        self.items += items
        limit = context.token_limit
        assert limit is not None
        return [Score.not_applicable("?") if i.tokens is None else Score.of(1 - i.tokens / limit) for i in items]


def test_a_reward_sees_tokens_finish_group_and_limit(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short()
    original = importlib.import_module("rewards.consistency").REWARD
    short.report = original.report
    monkeypatch.setattr(importlib.import_module("rewards.consistency"), "REWARD", short)
    checkpoint(world, tmp_path, "rl-fgrpo")
    sampler = engine(world)
    write, unknown = sampler.write, ""

    async def sample(request: Request) -> list[Completion]:
        text = write(request)
        if request.temperature == 0:
            return [Completion(text, "length", tuple(range(24)))]
        return [Completion(text, "stop", reported_tokens=48 if "left" in request.text else 0)]

    monkeypatch.setattr(sampler, "sample", sample)
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, sampler)
    by_id = {item.rollout_id: item for item in short.items}
    limit = models.token_limit(models.configured("fgrpo", world), world)
    assert limit == world.eval.max_new_tokens == 96 and len(by_id) == 8
    for record in read_records(folder / "scores.jsonl"):
        item, value = by_id[record.id], record.scores["consistency"].value
        assert item.group == record.sample_id and item.finish == record.meta["finish"]
        if record.meta["kind"] == "greedy":
            assert (item.tokens, item.finish, value) == (24, "length", 0.75)
        else:
            assert (item.tokens, value) in ((48, 0.5), (None, None))  # unknown is not 0
            unknown += "x" * (item.tokens is None)
    assert unknown
    # another judge, under a preset with another limit: the answers' own limit counts
    other = world.model_copy(update={"eval": world.eval.model_copy(update={"max_new_tokens": 48})})
    rescored = read_records(rescore.rescore(other, folder, "oracle") / "scores.jsonl")
    before = {r.id: r.scores["consistency"].value for r in read_records(folder / "scores.jsonl")}
    assert {r.id: r.scores["consistency"].value for r in rescored} == before


class Counted(Replies):
    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.body()
        self.verdict("CONSISTENT", usage={"prompt_tokens": 5, "completion_tokens": 17, "total_tokens": 22})


def test_an_endpoint_without_token_ids_reports_the_length() -> None:
    async def lengths(url: str) -> list[int]:
        sampler = OpenAISampler([url], "m")
        try:
            (one,) = await sampler.sample(Request((), "q"))
            return [one.tokens, len(one.token_ids)]
        finally:
            await sampler.close()

    with serving(Counted) as url:
        assert asyncio.run(lengths(url)) == [17, 0]


def test_an_edited_reward_scores_stored_answers_again_and_keeps_the_old_scores(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    sampler = engine(world)
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, sampler)
    asked, before = len(sampler.asked), (folder / "scores.jsonl").read_bytes()
    code = run_folder.reward_code()

    def hashes(package: str, names: Sequence[str]) -> dict[str, Any]:
        return {**code, "semantic_grounding": "edited"}

    monkeypatch.setattr(run_folder, "code_hashes", hashes)
    assert not run.is_evaluated(world, "fgrpo", ["mmvp"], tmp_path)
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, sampler)
    assert len(sampler.asked) == asked
    (kept,) = (folder / "scored").glob("*/scores.jsonl")
    assert kept.read_bytes() == before
    monkeypatch.undo()
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, sampler)  # undone: the first scores come back
    assert (folder / "scores.jsonl").read_bytes() == before and len(sampler.asked) == asked


def test_scores_of_an_older_version_which_records_no_code_stay(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    path = folder / "scoring.json"
    text = path.read_text()

    stored = {key: value for key, value in json.loads(text).items() if key != CHECKSUM}
    stored["judges"]["rewards"] = sorted(stored["judges"]["rewards"])  # names alone
    path.write_text(json.dumps(stored))
    assert run.is_evaluated(world, "fgrpo", ["mmvp"], tmp_path)
    assert json.loads(path.read_text()) == json.loads(text) and not (folder / "scored").exists()


def test_a_new_method_file_is_evaluated_without_another_file(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = tmp_path / "method"
    methods.mkdir()
    for name in ("fgrpo", "grpo-t", "mine"):
        (methods / f"{name}.yaml").write_text("# mine\nextends: fgrpo\n")
    monkeypatch.setattr(models, "METHODS", methods)
    monkeypatch.setattr(models.load, "__defaults__", (models.FOLDER, methods))
    monkeypatch.setattr(models.names, "__defaults__", (models.FOLDER, methods))
    checkpoint(world, tmp_path, "rl-mine")
    folder = run.evaluate(world, "mine", ["mmvp"], tmp_path, engine(world))
    assert folder.name == "mine" and models.load("mine").title == "MINE"
