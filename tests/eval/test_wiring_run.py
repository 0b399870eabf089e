"""Hand-overs of an evaluation run: what it opens it closes, what shards hold it merges, and what the command line names it does."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from known import evaluate
from scripted import Scripted

from eval import base, miniworld_truth, models, run, score
from eval.extraction import EXTRACTION_TASK
from eval.judge_validation.stored import QUESTIONS
from eval.measures import measures
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.base import Request, SamplingError, TransientError
from fgrpo.schema import Config
from fgrpo.shards import Shard
from fgrpo.types import EvalRecord, Rollout, Sample, Verdict
from judges.base import JudgeSet
from rewards.consistency import CONSISTENCY_TASK
from rewards.semantic_grounding import GROUNDING_TASK


class Closing(Scripted):
    """Counts how often it was closed; `fails` ends the first request with an error."""

    closed = 0
    fails = False

    async def sample(self, request: Request) -> Any:
        if Closing.fails:
            raise RuntimeError("the engine died")
        return await super().sample(request)

    async def close(self) -> None:
        Closing.closed += 1


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    Closing.closed, Closing.fails = 0, False


def test_the_engine_is_closed_once_whatever_happens(world: Config, tmp_path: Path) -> None:
    evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"], engine=Closing)
    assert Closing.closed == 1
    Closing.fails = True
    with pytest.raises((RuntimeError, ExceptionGroup)):
        evaluate(world, tmp_path / "b", "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"], engine=Closing)
    assert Closing.closed == 2
    assert not (tmp_path / "b" / world.preset / "eval" / "fgrpo" / "done").exists()


@pytest.fixture
def judges_closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each set of judges that was closed."""
    closed: list[str] = []
    real = run.evaluation_judges

    def judges(*args: Any) -> JudgeSet:
        made = real(*args)

        async def close() -> None:
            closed.append(made.name)
            await made.close()

        return dataclasses.replace(made, close=close)

    monkeypatch.setattr(run, "evaluation_judges", judges)
    return closed


def test_the_judges_are_closed_after_scoring_and_after_a_failure(
    world: Config, tmp_path: Path, judges_closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    assert len(judges_closed) == 1

    async def broken(*_: Any) -> Any:
        raise UserError("scoring failed")

    monkeypatch.setattr(score, "score_file", broken)
    with pytest.raises(UserError, match="scoring failed"):
        evaluate(world, tmp_path / "b", "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    assert len(judges_closed) == 2


def test_the_manifest_names_the_judges_and_what_they_cost(world: Config, tmp_path: Path) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    manifest = json.loads((folder / "manifest.json").read_text())
    identity = manifest["judges"]
    for role in ("evaluation", "extraction"):
        configured = getattr(world.judges, role)
        assert (identity[role]["backend"], identity[role]["model"]) == (configured.backend, configured.model)
    assert identity["box_normaliser"] == world.rl.box_normaliser
    assert identity["prompts"] == {}  # the oracle reads no prompts
    judging = manifest["judging"]
    assert list(judging) == ["oracle"] and judging["oracle"]["calls"] == 16  # two questions about each of eight answers
    outputs = json.dumps(manifest)
    assert all(name in outputs for name in ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json"))
    assert manifest["model"] == "fgrpo"


def test_judges_that_read_prompts_are_identified_by_them(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed prompt of any task scores again, so each task's hash is kept."""
    real = run.evaluation_judges
    monkeypatch.setattr(run, "evaluation_judges", lambda *args: dataclasses.replace(real(*args), has_prompts=True, delegates={}))  # fmt: skip
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    prompts = json.loads((folder / "manifest.json").read_text())["judges"]["prompts"]
    tasks = (CONSISTENCY_TASK, EXTRACTION_TASK, GROUNDING_TASK)
    assert prompts == {task.name: task.prompt_hash for task in tasks}


class RefusesOne(Scripted):
    """Refuses one greedy request."""

    refused: tuple[str, tuple[str, ...]] = ("", ())
    error = SamplingError

    async def sample(self, request: Request) -> Any:
        if not request.temperature and RefusesOne.refused in (("", ()), (request.text, request.images)):
            RefusesOne.refused = (request.text, request.images)
            self.asked.append(request)
            raise RefusesOne.error("too long")
        return await super().sample(request)


@pytest.mark.parametrize(
    ("error", "share", "advice"),
    [
        (SamplingError, "(0 for reasons that may pass)", "/done and rerun to retry them)"),
        (TransientError, "(1 for reasons that may pass)", "(rerun to request them again)"),
    ],
)
def test_a_request_without_an_answer_says_whether_a_rerun_helps(
    error: type[SamplingError], share: str, advice: str, world: Config, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(RefusesOne, "error", error)
    RefusesOne.refused = ("", ())
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, benchmarks=["mmvp"], engine=RefusesOne)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "have no answer" in line]
    assert "1 of 8 requests" in line and share in line and line.endswith(advice)
    assert (str(folder / "done") in line) is (error is SamplingError)


def test_the_number_of_questions_with_downscaled_images_is_counted(
    world: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_shrunk(samples: Sequence[Sample], *rest: Any) -> list[Sample]:
        first, *others = samples
        return [dataclasses.replace(first, meta={**first.meta, "shrunk": 0.5}), *others]

    monkeypatch.setattr(run, "fit", one_shrunk)
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, benchmarks=["mmvp"])
    assert "downscaled the images of 1 questions" in capsys.readouterr().out
    assert json.loads((folder / "manifest.json").read_text())["counts"]["questions with downscaled images"] == 1


def test_a_merge_takes_the_answers_of_shards_but_not_what_they_were_refused(world: Config, tmp_path: Path) -> None:
    """Answers of benchmarks that the merge does not want stay in the shard too."""
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    folder = tmp_path / world.preset / "rl-fgrpo" / "final"
    evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, benchmarks=["sat_real"], engine=Scripted)  # writes the model
    assert folder.is_dir()
    RefusesOne.refused = ("", ())
    engine = RefusesOne(book)
    part = run.evaluate(world, "fgrpo", ["mmvp", "cvb_2d"], tmp_path, engine, Shard(1, 2))
    held = [item for item in read_jsonl(part / "generations.jsonl") if item["sample_id"].startswith("mmvp")]
    refused = [item["id"] for item in read_jsonl(part / "generations.jsonl") if item["finish"] == "error"]
    assert len(refused) == 1 and len(held) > 1
    merging = Scripted(book)
    merged = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, merging)
    stored = {item["id"]: item for item in read_jsonl(merged / "generations.jsonl")}
    wanted = {s.id for name in ("sat_real", "mmvp") for s in base.load(name, world).samples}
    assert {item["sample_id"] for item in stored.values()} == wanted
    assert all(item["finish"] != "error" for item in stored.values())
    of_mmvp = [item for item in stored.values() if item["sample_id"].startswith("mmvp")]
    usable = [item for item in held if item["finish"] != "error"]
    assert len(merging.asked) == len(of_mmvp) - len(usable)
    assert all(stored[item["id"]]["text"] == item["text"] for item in usable)
    assert {s["id"] for s in read_jsonl(merged / QUESTIONS)} == wanted


def test_a_finished_evaluation_generates_nothing_and_says_so(
    world: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    assert run.is_evaluated(world, "fgrpo", ["mmvp"], tmp_path)
    assert not run.is_evaluated(world, "fgrpo", ["mmvp", "cvb_2d"], tmp_path)
    assert not run.is_evaluated(world, "fgrpo", (), tmp_path)  # all benchmarks of the configuration
    capsys.readouterr()
    assert evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"], engine=Closing) == folder
    assert capsys.readouterr().out == f"{folder}: already evaluated\n" and Closing.closed == 0
    evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["cvb_2d"])
    assert run.is_evaluated(world, "fgrpo", ["mmvp", "cvb_2d"], tmp_path)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    samples = [s for name in ("mmvp", "cvb_2d") for s in base.load(name, world).samples]
    assert counts["finish/stop"] == 2 * len(samples) == sum(1 for _ in read_jsonl(folder / "scores.jsonl"))


def refusing() -> JudgeSet:
    class Never:
        async def answer(self, task: Any, items: Sequence[Any]) -> Any:
            raise AssertionError("no judge should be called")

    return JudgeSet(Never(), "never")


SAMPLE = Sample("mmvp/test/3", (), "Where is it?", ("left", "right"), "right", meta={"group": "g"})


@pytest.mark.parametrize(("model", "mode"), [("fgrpo", "think"), ("backbone-direct", "direct")])
def test_a_refused_rollout_has_failed_scores_of_all_that_its_model_is_scored_on(model: str, mode: str) -> None:
    spec = models.load(model)
    assert spec.mode == mode
    scorer = score.Scorer(spec, model, refusing())
    refused = Rollout("r", SAMPLE.id, "", "error", 0, {"kind": "sampled"})
    (got,) = asyncio.run(scorer.score([(SAMPLE, refused)]))
    expected = {m.score for m in measures()} if mode == "think" else {"accuracy"}
    assert set(got.scores) == expected
    assert {(s.state, s.reason) for s in got.scores.values()} == {("failed", score.REFUSED)}
    assert (got.id, got.benchmark, got.model, got.sample_id) == ("r", "mmvp", model, "mmvp/test/3")
    assert {k: got.meta[k] for k in ("kind", "group", "finish", "answer", "answer_from", "judge")} == {
        "kind": "sampled", "group": "g", "finish": "error", "answer": None, "answer_from": "refused", "judge": "never",
    }  # fmt: skip


def test_records_keep_the_order_of_the_rollouts_with_refused_ones_between() -> None:
    texts = {"a": "right", "b": None, "c": "left", "d": None, "e": "right"}
    pairs = [
        (SAMPLE, Rollout(n, SAMPLE.id, f"<answer>{t}</answer>" if t else "", "stop" if t else "error"))
        for n, t in texts.items()
    ]
    scorer = score.Scorer(models.load("backbone-direct"), "backbone-direct", refusing())
    got = asyncio.run(scorer.score(pairs))
    assert [(r.id, r.scores["accuracy"].value) for r in got] == [
        ("a", 1.0),
        ("b", None),
        ("c", 0.0),
        ("d", None),
        ("e", 1.0),
    ]
    assert all(set(r.scores) == {"accuracy"} for r in got)


@pytest.mark.parametrize(("grounding", "words"), [("points", "points, not boxes"), ("none", "not asked for boxes")])
def test_a_model_without_boxes_is_not_scored_on_them(grounding: str, words: str) -> None:
    class Yes:
        async def answer(self, task: Any, items: Sequence[Any]) -> Any:
            label = {"consistency": "CONSISTENT", "grounding": "CORRECT"}[task.name]
            return [(Verdict(label),) * task.size(item) for item in items]

    spec = models.load("fgrpo").model_copy(update={"grounding": grounding})
    text = "<think>The red car is on the right side.</think><answer>right</answer>"
    (got,) = asyncio.run(score.Scorer(spec, "fgrpo", JudgeSet(Yes())).score([(SAMPLE, Rollout("r", SAMPLE.id, text))]))
    assert got.scores["spatial_grounding"].state == "not_applicable" and words in got.scores["spatial_grounding"].reason
    assert got.scores["semantic_grounding"].value == got.scores["consistency"].value == 1.0


def test_an_open_question_is_scored_by_its_text_and_no_answer_is_wrong() -> None:
    scorer = score.Scorer(models.load("backbone-direct"), "m", refusing())
    open_question = dataclasses.replace(SAMPLE, choices=(), answer="Seven")
    texts = {"a": "<answer>seven</answer>", "b": "<answer>eight</answer>", "c": ""}
    got = asyncio.run(scorer.score([(open_question, Rollout(n, SAMPLE.id, t)) for n, t in texts.items()]))
    assert [r.scores["accuracy"].value for r in got] == [1.0, 0.0, 0.0]
    assert [(r.meta["answer"], r.meta["answer_from"]) for r in got[:2]] == [("seven", "rules"), ("eight", "rules")]


def command(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> None:
    monkeypatch.setattr(
        "sys.argv", ["eval.run", "--preset", "smoke", "--method", "grpo-t", "--runs", str(root), *words]
    )
    run.main()


def test_models_are_evaluated_in_processes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[dict[str, list[str]], int]] = []
    failing: list[str] = []
    monkeypatch.setattr(run.parallel, "run", lambda commands, jobs: seen.append((commands, jobs)) or failing)
    monkeypatch.setattr(run, "is_evaluated", lambda config, name, benchmarks, root: name == "gpt-4o")
    monkeypatch.setattr(run.models, "checkpoint", lambda *_: "")
    words = ["--model", "gpt-4o,gpt-5-nano,fgrpo", "--benchmarks", "mmvp,cvb_2d", "--jobs", "3", "--set", "seed=5", "eval.limit=2"]  # fmt: skip
    command(monkeypatch, tmp_path, *words)
    ((commands, jobs),) = seen
    own = [sys.executable, "-m", "eval.run", "--preset", "smoke", "--method", "grpo-t", "--runs", str(tmp_path)]
    given = ["--set", "seed=5", "eval.limit=2", "--benchmarks", "mmvp,cvb_2d"]
    assert commands == {name: [*own, *given, "--model", name] for name in ("gpt-5-nano", "fgrpo")} and jobs == 3
    assert capsys.readouterr().out == "already evaluated: gpt-4o\n"
    command(monkeypatch, tmp_path, "--model", "gpt-4o,fgrpo", "--jobs", "2", "--shard", "2/3")
    assert seen[1][0] == {n: [*own, "--shard", "2/3", "--model", n] for n in ("gpt-4o", "fgrpo")}
    monkeypatch.setattr(run, "is_evaluated", lambda *_: True)
    command(monkeypatch, tmp_path, "--model", "gpt-4o,fgrpo", "--jobs", "2")
    assert len(seen) == 2 and "gpt-4o, fgrpo" in capsys.readouterr().out
    failing.append("fgrpo")
    monkeypatch.setattr(run, "is_evaluated", lambda *_: False)
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, "--model", "gpt-4o,fgrpo", "--jobs", "2")
    assert "evaluation of fgrpo failed" in capsys.readouterr().err


def test_one_process_evaluates_the_models_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    checked: list[str] = []
    monkeypatch.setattr(run, "evaluate", lambda config, name, benchmarks, root, shard: seen.append((name, benchmarks, shard)) or Path(name))  # fmt: skip
    monkeypatch.setattr(run, "headline", lambda path: f"figures of {path}")
    monkeypatch.setattr(run.models, "checkpoint", lambda spec, *_: checked.append(spec.title) or "")
    monkeypatch.setattr(run, "with_checkpoints", lambda chosen, config, root: [*chosen, f"{chosen[0]}@{config.seed}"])
    command(monkeypatch, tmp_path, "--model", "fgrpo,gpt-4o", "--shard", "2/3")
    assert seen == [("fgrpo", (), Shard(2, 3)), ("gpt-4o", (), Shard(2, 3))]
    assert capsys.readouterr().out.count("a run without --shard merges the shards") == 2
    seen.clear(), checked.clear()
    command(monkeypatch, tmp_path, "--checkpoints", "--model", "fgrpo", "--set", "seed=4")
    assert [name for name, _, _ in seen] == ["fgrpo", "fgrpo@4"] and checked == ["FGRPO", "FGRPO, step 4"]
    assert capsys.readouterr().out.splitlines() == [
        "evaluated fgrpo: fgrpo",
        "  figures of fgrpo",
        "evaluated fgrpo@4: fgrpo@4",
        "  figures of fgrpo@4",
    ]
    seen.clear()
    command(monkeypatch, tmp_path, "--jobs", "2", "--set", "eval.models=[sft]")  # one model needs no second process
    assert [name for name, _, _ in seen] == ["sft"]
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path, "--benchmarks", "mmvpp")
    assert "mmvp" in capsys.readouterr().err


def test_scores_of_other_benchmarks_stay_when_one_is_scored(world: Config, tmp_path: Path) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp", "cvb_2d"])
    before = {r["id"]: r for r in read_jsonl(folder / "scores.jsonl")}
    samples = {s.id: s for s in base.load("cvb_2d", world).samples}
    scorer = score.Scorer(models.load("fgrpo"), "fgrpo", refusing())  # nothing is left to score
    ticks: list[int] = []
    got = asyncio.run(score.score_file(scorer, samples, folder / "generations.jsonl", folder, ticks.append))
    assert {r.benchmark for r in got} == {"cvb_2d"} and ticks == [len(got)]  # the bar is full at once
    after = list(read_jsonl(folder / "scores.jsonl"))
    assert {r["id"]: r for r in after} == before
    assert [EvalRecord.from_dict(r).benchmark for r in after] == ["cvb_2d"] * len(got) + ["mmvp"] * (
        len(after) - len(got)
    )
    assert [r["id"] for r in read_jsonl(folder / "verdicts.jsonl")] == [r["id"] for r in after]
    with pytest.raises(UserError, match="holds no answer to these questions"):
        asyncio.run(score.score_file(scorer, {}, folder / "generations.jsonl", folder))
