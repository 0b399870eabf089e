"""A reward of the user's own is in every table, figure, card and failure limit; a method needs no model file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

import rewards.base as rewards
from eval import comparisons, examples, measures, miniworld_truth, models, run, score, scored_answers, summary, tables
from eval.results import SCORING, find, read_records
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Score

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"
KINDS = ("greedy", "sampled")


class Brevity:
    """1 for a trace of at most `most` words, else 0."""

    name = "brevity"
    report = rewards.Report(
        "long_windedness", "long-windedness", higher_is_better=False, inverted=True, binary=True, colour="#123456"
    )

    async def __call__(self, items: Sequence[Any], context: Any) -> list[Score]:
        return [Score.of(float(len(item.response.think.split()) <= 20)) for item in items]


@pytest.fixture
def brevity(monkeypatch: pytest.MonkeyPatch) -> None:
    names, load_reward = rewards.names, rewards.load
    monkeypatch.setattr(rewards, "names", lambda: [*names(), "brevity"])
    monkeypatch.setattr(rewards, "load", lambda name: Brevity() if name == "brevity" else load_reward(name))


def evaluate(config: Config, root: Path, name: str, *benchmarks: str) -> Path:
    folder = root / config.preset / ("sft" if name == "sft" else f"rl-{name}") / "final"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model": name}))
    shutil.copy(BACKBONE / "processor_config.json", folder)
    book = miniworld_truth.book(config.data.root)
    assert book is not None
    return run.evaluate(config, name, benchmarks, root, Scripted(book, inconsistent=0.1 if name == "fgrpo" else 0.5))


def test_measures_are_rewards_in_their_order_and_what_is_no_reward(brevity: None) -> None:
    assert [m.metric for m in measures.measures()] == [
        *("accuracy", "inconsistency", "semantic_grounding", "spatial_grounding"),
        *("long_windedness", "flip", "statement", "format"),
    ]
    assert [m.heading for m in measures.measures_of(["accuracy", "long_windedness"])] == [
        "accuracy ↑",
        "long-windedness ↓",
    ]
    with pytest.raises(UserError, match="no reward reports the metric 'brevity'; metrics: accuracy, inconsistency"):
        measures.measures_of(["brevity"])


def test_every_measure_but_format_and_statement_has_a_card(brevity: None) -> None:
    without = {m.metric for m in measures.measures() if not m.headline}
    assert without == {"format", "statement"}


def test_two_measures_of_one_metric_are_an_error(brevity: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Brevity, "report", rewards.Report("flip", "flip"))
    with pytest.raises(UserError, match="two measures have the metric 'flip'"):
        measures.measures()


def test_a_reward_added_later_is_scored_without_generating(world: Config, tmp_path: Path, request: Any) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "mmvp")
    before = (folder / "generations.jsonl").read_bytes()
    request.getfixturevalue("brevity")
    evaluate(world, tmp_path, "fgrpo", "mmvp")
    assert "brevity" in json.loads((folder / SCORING).read_text())["judges"]["rewards"]
    assert all("brevity" in r.scores for r in read_records(folder / "scores.jsonl"))
    assert (folder / "generations.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["accuracy", "consistency", "semantic_grounding", "spatial_grounding", "brevity"])
def test_every_score_has_the_failure_limit(name: str, brevity: None) -> None:
    config = load("mini", "fgrpo", ["rl.max_failed_share=0.2"])
    others = {m.score: Score.of(1.0) for m in measures.measures()}

    def records(failures: int) -> list[EvalRecord]:
        scores = [Score.failure("gone")] * failures + [Score.of(1.0)] * (10 - failures)
        return [
            EvalRecord(str(n), "mmvp", "m", "s", {**others, name: s}, {"finish": "stop"}) for n, s in enumerate(scores)
        ]

    scored_answers.check_failures(records(2), config)
    with pytest.raises(UserError, match=rf"3 of 10 judgements of {name} failed"):
        scored_answers.check_failures(records(3), config)


def test_a_reward_that_needs_boxes_is_not_applicable_to_a_model_without(
    world: Config, brevity: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from eval import base
    from eval.run import evaluation_judges
    from fgrpo.types import Rollout

    monkeypatch.setattr(Brevity, "report", rewards.Report("short", "short", needs_boxes=True))
    sample = base.load("mmvp", world).samples[0]
    rollout = Rollout("r", sample.id, f"<think>It is here.</think><answer>{sample.answer}</answer>")
    states = {}
    for name in ("fgrpo", "gpt-4o"):
        scorer = score.Scorer(models.configured(name, world), name, evaluation_judges(world))
        (record,) = asyncio.run(scorer.score([(sample, rollout)]))
        states[name] = (record.scores["brevity"].state, record.scores["consistency"].state)
    assert states == {"fgrpo": ("scored", "scored"), "gpt-4o": ("not_applicable", "scored")}


def test_scores_of_an_older_version_say_what_to_do(world: Config, tmp_path: Path) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "mmvp")
    old = [
        {**r, "scores": {"semantic": r["scores"]["semantic_grounding"]}} for r in read_jsonl(folder / "scores.jsonl")
    ]
    write_jsonl(folder / "scores.jsonl", old)
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))  # else the change itself is refused
    with pytest.raises(
        UserError, match=r"scores\.jsonl holds the scores semantic, which no reward has; run `make eval`"
    ):
        find(world, tmp_path)["fgrpo"].records()
    found = json.loads((folder / "summary.json").read_text())
    found["greedy"]["average"]["semantic"] = found["greedy"]["average"].pop("semantic_grounding")
    (folder / "summary.json").write_text(json.dumps(found))
    with pytest.raises(
        UserError, match=r"summary\.json holds the metrics semantic, which no reward reports; run `make eval`"
    ):
        find(world, tmp_path)


def test_a_constraint_is_titled_by_its_score_and_not_by_its_complement() -> None:
    inverted = measures.Measure("own_thing", rewards.Report("own_error", "own errors", inverted=True), is_reward=True)
    plain = measures.Measure("own_thing", rewards.Report("own_thing", "things of one's own"), is_reward=True)
    assert (inverted.score_title, plain.score_title) == ("own thing", "things of one's own")


def test_a_method_is_a_model_without_a_file(tmp_path: Path) -> None:
    methods = tmp_path / "method"
    methods.mkdir()
    (methods / "fgrpo-brevity.yaml").touch()
    spec = models.load("fgrpo-brevity", methods=methods)
    assert (spec.title, spec.path, spec.made_by) == (
        "FGRPO-BREVITY",
        "{run}/rl-fgrpo-brevity/final",
        "rl-fgrpo-brevity",
    )
    assert (spec.prompt, spec.prompt_open, spec.mode) == ("{think}", "think-open", "think")
    assert models.load("fgrpo-brevity@20", methods=methods).path == "{run}/rl-fgrpo-brevity/checkpoints/checkpoint-20"
    ablation = models.load("fgrpo-consistency")  # a file with a method's name changes its title only
    assert (ablation.title, ablation.made_by) == ("FGRPO, consistency only", "rl-fgrpo-consistency")
    with pytest.raises(UserError, match="did you mean 'fgrpo-brevity'"):
        models.load("fgrpo-brevty", methods=methods)


def test_own_checkpoints_write_boxes_as_the_policy_and_others_as_their_file() -> None:
    config = load("mini", "fgrpo", ["policy.box_tag=box", "policy.box_frame=thousand"])
    boxes = {n: (s.box_tag, s.box_frame) for n in models.names() for s in [models.configured(n, config)]}
    own = {n for n, value in boxes.items() if value == ("box", "thousand")}
    methods = {path.stem for path in models.METHODS.glob("*.yaml")}
    assert own == {"sft", "anchor", "backbone-cot", "backbone-direct", *methods}
    assert boxes["treevgr"] == ("box", "model") and boxes["qwen2.5-vl-7b-cot"] == ("bbox", "model")
    assert models.configured("fgrpo@20", config).box_tag == "box"


def test_the_policys_boxes_reach_the_scores_of_an_evaluation(world: Config, tmp_path: Path) -> None:
    """The scripted engine writes pixels: read as thousandths, its boxes lie elsewhere; the answers stay."""
    folder = evaluate(world, tmp_path, "fgrpo", "cvb_2d")
    before = (folder / "generations.jsonl").read_bytes()
    assert run.is_evaluated(world, "fgrpo", ["cvb_2d"], tmp_path)
    old = {r.id: r.scores["spatial_grounding"].value for r in read_records(folder / "scores.jsonl")}
    other = world.model_copy(update={"policy": world.policy.model_copy(update={"box_frame": "thousand"})})
    assert not run.is_evaluated(other, "fgrpo", ["cvb_2d"], tmp_path)
    evaluate(other, tmp_path, "fgrpo", "cvb_2d")
    new = {r.id: r.scores["spatial_grounding"].value for r in read_records(folder / "scores.jsonl")}
    assert old.keys() == new.keys() and all(new[i] < old[i] for i in old if old[i] > 0.3)
    assert sum(value > 0.3 for value in old.values()) > 1 and (folder / "generations.jsonl").read_bytes() == before


def stored(config: Config, root: Path, model: str, right: float) -> None:
    """A finished evaluation of ten answers per decoding, of which the share `right` is correct and consistent."""
    folder = root / config.preset / "eval" / model
    folder.mkdir(parents=True)
    values = {m.score: 0.5 for m in measures.measures()}
    found = [
        EvalRecord(f"mmvp/{n}#{kind}", "mmvp", model, f"mmvp/{n}",
                   {k: Score.of(float(n < 10 * right) if k in ("accuracy", "consistency") else v) for k, v in values.items()},
                   {"kind": kind, "group": f"mmvp/{n}", "finish": "stop", "answer_from": "rules"})
        for kind in KINDS for n in range(10)
    ]  # fmt: skip
    write_jsonl(folder / "scores.jsonl", (r.to_dict() for r in found))
    (folder / "summary.json").write_text(json.dumps({"mode": "think", **summary.summarise(found, (), config.eval)}))
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))
    (folder / "done").touch()


def test_the_overview_is_the_end_of_the_tables_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the trained models alone, one line per comparison, and where the files are."""
    config = load("mini", "fgrpo", ["eval.bootstrap_samples=50"])
    for model, right in (("backbone-cot", 0.2), ("sft", 0.5), ("grpo-t", 0.1), ("fgrpo", 1.0)):
        stored(config, tmp_path, model, right)
    results = find(config, tmp_path)
    assert comparisons.main_pair(results, config) == ("grpo-t", "fgrpo")
    assert comparisons.pairs(results, config) == [
        ("backbone-cot", "sft"), ("sft", "grpo-t"), ("sft", "fgrpo"), ("grpo-t", "fgrpo"),
    ]  # fmt: skip
    command = ["tables", "--preset", "mini", "--runs", str(tmp_path), "--set", "eval.bootstrap_samples=50"]
    monkeypatch.setattr("sys.argv", command)
    tables.main()
    printed = capsys.readouterr().out
    assert printed.startswith("Results, % (sampled answers, temperature 1)")
    rows = [line.split(") ") for line in printed.splitlines()[3:6]]
    assert [(title, rest.split()[0]) for title, rest in rows] == [
        (f"{title} (1 of 7 benchmarks", mean)
        for title, mean in (("SFT", "50.0"), ("GRPO-T", "10.0"), ("FGRPO", "100.0"))
    ]
    assert "Partial: the average of SFT is of MMVP" in printed
    assert "Backbone" not in "\n".join(printed.splitlines()[:7]) and "McNemar" not in printed
    assert "Also evaluated (figures in the report and in all.md below): Backbone, CoT" in printed
    lines = [line for line in printed.splitlines() if "→" in line]
    assert [line.partition(":")[0] for line in lines] == ["SFT → GRPO-T", "SFT → FGRPO", "GRPO-T → FGRPO"]
    assert lines[0].endswith(
        "accuracy -40.0 (worse), inconsistency +40.0 (worse), semantic grounding +0.0 (no clear change), "
        "spatial grounding +0.0 (no clear change)"
    )
    assert f"tables: {tmp_path}/mini/tables" in printed
    out = tmp_path / "mini/tables"
    assert (
        "| GRPO-T (1 of 7 benchmarks) | 10.0" in (out / "overview.md").read_text()
        and f"- {lines[0]}" in (out / "overview.md").read_text()
    )
    assert json.loads((out / "overview.json").read_text())["kind"] == "sampled"
    monkeypatch.setattr("sys.argv", [*command, "--all"])
    tables.main()
    printed = capsys.readouterr().out
    assert "McNemar p" in printed and "Backbone, CoT" in printed


def test_a_method_against_the_one_of_the_configuration(tmp_path: Path) -> None:
    config = load("mini", "grpo-t", ["eval.bootstrap_samples=50"])
    for model in ("sft", "fgrpo", "fgrpo-fixed", "grpo-t"):
        stored(config, tmp_path, model, 0.5)
    results = find(config, tmp_path)
    assert comparisons.pairs(results, config) == [
        ("sft", "grpo-t"), ("sft", "fgrpo"), ("fgrpo", "grpo-t"), ("fgrpo-fixed", "grpo-t"),
    ]  # fmt: skip
    assert comparisons.main_pair(results, config) == ("fgrpo", "grpo-t")


def test_filter_words_are_those_that_examples_carry(brevity: None) -> None:
    values = {
        "accuracy": 0.0,
        "consistency": 0.0,
        "semantic_grounding": 0.5,
        "spatial_grounding": 1.0,
        "brevity": 0.0,
        "flip": 1.0,
    }
    record = EvalRecord("r", "mmvp", "m", "s", {k: Score.of(v) for k, v in values.items()}, {"kind": "greedy"})
    tags = examples._tags(record)
    assert tags == ("wrong", "no-consistency", "low-semantic_grounding", "no-brevity", "flip", "wrong-fails")
    assert set(tags) < set(examples.tag_titles())
