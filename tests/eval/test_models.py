"""Evaluated models as configuration: what each file says, how boxes are read, and judge validation among the tables."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from eval import base, generate, judging, layout, miniworld_truth, models, results, run_folder, score, tables
from fgrpo.errors import UserError
from fgrpo.schema import Config
from fgrpo.types import Rollout
from judges.base import build

OTHERS = ("r1-onevision", "vision-r1", "vigorl-spatial", "treevgr", "vl-rethinker")


def test_every_row_of_table_1_has_a_model_file() -> None:
    rows = {row["model"] for name in ("table1", "table2", "table3") for row in results.paper()[name]}
    assert rows <= set(models.names())


def test_a_model_that_takes_one_temperature_only(world: Config) -> None:
    """GPT-5's family refuses a temperature of 0; the others are asked greedily."""
    samples = base.load("mmvp", world).samples[:1]
    asked = {name: generate.jobs(samples, models.load(name), world)[0].request for name in ("gpt-5-nano", "gpt-4o")}
    assert {name: request.temperature for name, request in asked.items()} == {"gpt-5-nano": 1.0, "gpt-4o": 0.0}
    plain, other = models.load("gpt-4o"), models.load("gpt-4o").model_copy(update={"temperature": 1.0})
    assert run_folder.generation_identity(plain, "gpt-4o", world) != run_folder.generation_identity(
        other, "gpt-4o", world
    )


@pytest.mark.parametrize("name", OTHERS)
def test_files_say_where_a_published_prompt_goes_and_what_is_not_verified(name: str) -> None:
    text = (models.FOLDER / f"{name}.yaml").read_text()
    assert f"eval/prompts/{name}.txt" in text and f"`prompt: {name}`" in text and "not looked up here" in text


def test_a_prompt_of_the_models_own(world: Config, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("Q: {question}\nChoices:\n{options}\nReason, then answer.")
    spec = models.load("vision-r1").model_copy(update={"prompt": str(own)})
    sample = base.load("mmvp", world).samples[0]
    text = models.user_text(sample, spec, models.template(spec, world))
    assert text.startswith(f"Q: {sample.question}") and text.endswith("Reason, then answer.") and "(A) " in text


@pytest.mark.parametrize(
    ("name", "reason"), [("vigorl-spatial", "points, not boxes"), ("gpt-4o", "not asked for boxes")]
)
def test_spatial_grounding_is_not_applicable_without_boxes(world: Config, name: str, reason: str) -> None:
    sample = next(s for s in base.load("cvb_2d", world).samples if len(s.choices) == 2)
    judges = build(world.judges.evaluation, world.data.root)
    text = f"<think>It is at (10, 20).</think><answer>{sample.answer}</answer>"
    for model, value in ((name, None), ("fgrpo", 0.0)):  # who should have written boxes and did not scores 0
        scorer = score.Scorer(models.load(model), model, judges, miniworld_truth.book(world.data.root))
        record = asyncio.run(scorer.score([(sample, Rollout("x", sample.id, text))]))[0]
        found = record.scores["spatial_grounding"]
        assert found.value == value and not found.failed
        assert value is not None or reason in found.reason


def test_free_form_answers_are_scored_by_rules(world: Config) -> None:
    sample = replace(base.load("cvb_2d", world).samples[0], choices=(), answer="3")
    scorer = score.Scorer(models.load("fgrpo"), "x", build(world.judges.evaluation, world.data.root))
    for answer, value, source in (
        *(("3", 1.0, "rules"), ("There are three lanes.", 1.0, "rules"), ("13", 0.0, "rules")),
        *(("3 or 4", 0.0, "unresolved"), ("not 3", 0.0, "unresolved")),
    ):
        rollout = Rollout("x", sample.id, f"<think>I count.</think><answer>{answer}</answer>")
        record = asyncio.run(scorer.score([(sample, rollout)]))[0]
        assert record.scores["accuracy"].value == value, answer
        assert (record.meta["answer"], record.meta["answer_from"]) == (answer, source)


def test_judge_validation_is_a_table_of_its_own(world: Config, tmp_path: Path) -> None:
    assert judging.build(world, tmp_path) == []
    path = tmp_path / world.preset / "judge_validation" / judging.FILE
    path.parent.mkdir(parents=True)
    agreement = {
        "role": "consistency", "first": "a", "second": "b", "n": 40, "clusters": 20, "agreement": 0.9, "kappa": 0.75,
        "low": 0.5, "high": 0.95, "labels": [], "confusion": [], "left_out": {},
    }  # fmt: skip
    rate = {
        "kind": "swapped answer",
        "n": 10,
        "wrong": 1,
        "rate": 0.1,
        "low": 0.02,
        "high": 0.4,
        "failed": 0,
        "labels": {},
    }
    undefined = {**agreement, "kappa": None, "low": None, "high": None, "agreement": None}
    section = {"title": "run x", "agreements": [agreement, undefined], "errors": {"consistency": [rate]}}
    path.write_text(json.dumps({"sections": [section]}))
    kappa, errors = judging.build(world, tmp_path)
    assert kappa.rows[0] == ("run x", "a, b", "consistency", "0.750 [0.500, 0.950]", "90.0", "40", "20")
    assert kappa.rows[1][3:5] == (layout.DASH, layout.DASH)
    assert errors.rows == (("run x", "consistency", "swapped answer", "10.0 [2.0, 40.0]", "1", "10", "0"),)
    assert r"$\kappa$" in kappa.latex() and "lll" in kappa.latex()
    path.write_text("{}")
    with pytest.raises(UserError, match="is no judge validation"):
        judging.build(world, tmp_path)


def test_paper_cells_hold_ours_interval_the_papers_and_the_difference() -> None:
    cell = {"value": 0.824, "low": 0.80, "high": 0.85, "n": 9}
    beside = tables._beside(cell, 79.97)
    assert beside == {
        "ours": pytest.approx(82.4),
        "low": pytest.approx(80),
        "high": pytest.approx(85),
        "paper": 79.97,
        "difference": pytest.approx(2.43),
    }
    assert tables._shown(beside) == "82.4 ±2.5 / 80.0 (+2.4)"
    assert tables._shown(tables._beside(None, 79.97)) == "– / 80.0"
    assert layout.Table("t", "50% & more_", ("a", "≠"), (("x", "±1 – {}"),)).latex().count(r"$\neq$") == 1


def test_a_misspelt_key_is_named_before_what_it_leaves_missing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("titel: Mine\npath: mine\nprompt: think\n")
    with pytest.raises(UserError, match=r"unknown key of .*mine.yaml 'titel'; did you mean 'title'"):
        models.load("mine", tmp_path, tmp_path)
    (tmp_path / "mine.yaml").write_text("title: Mine\npath: mine\nprompt: think\nengine: {api_key_evn: MY_KEY}\n")
    with pytest.raises(UserError, match=r"did you mean 'engine.api_key_env'"):
        models.load("mine", tmp_path, tmp_path)
    (tmp_path / "mine.yaml").write_text("title: Mine\npath: mine\nprompt: think\nengine: {api_key_env: sk-secret}\n")
    with pytest.raises(UserError, match="is the name of an environment variable") as raised:
        models.load("mine", tmp_path, tmp_path)
    assert "sk-secret" not in str(raised.value)


def test_the_key_of_a_model_reaches_its_sampler(world: Config) -> None:
    spec = models.ModelSpec(
        title="m", path="m", prompt="think", engine=models.EngineOverride(kind="openai", api_key_env="MY_KEY")
    )
    assert models.engine_config(spec, world).engine.api_key_env == "MY_KEY"
    one = world.model_copy(update={"engine": world.engine.model_copy(update={"api_key_env": "PRESET_KEY"})})
    assert models.engine_config(
        spec.model_copy(update={"engine": models.EngineOverride()}), one
    ).engine.api_key_env == ("PRESET_KEY")


def test_a_misspelt_prompt_suggests_those_of_both_folders(world: Config) -> None:
    spec = models.load("gpt-4o").model_copy(update={"prompt": "plain-thinkk"})
    with pytest.raises(UserError, match="unknown prompt 'plain-thinkk'; did you mean 'plain-think'"):
        models.template(spec, world)


def test_a_models_prompt_asks_for_boxes_as_it_writes_them(world: Config) -> None:
    own = world.model_copy(update={"policy": world.policy.model_copy(update={"box_frame": "unit"})})
    asked = {n: models.template(models.configured(n, own), own) for n in ("qwen2.5-vl-7b-cot", "qwen3-vl-8b-cot")}
    assert "absolute pixel coordinates" in asked["qwen2.5-vl-7b-cot"] and "0 to 1000" in asked["qwen3-vl-8b-cot"]
    open_ended = models.template(models.configured("fgrpo", own), own, has_choices=False)
    assert "coordinates from 0 to 1 across" in open_ended
