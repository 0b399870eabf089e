"""Validation of judges: kappa against sklearn and by hand, a judge with known errors, stored answers, swapped answers."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from eval import models
from eval.judge_validation import page, run
from eval.judge_validation import stored as stored_files
from eval.judge_validation.planted import BESIDE, world
from eval.judge_validation.stats import BY_RULE, FAILED, MISSING, NOT_APPLICABLE, Pair, compare, error_rate, kappa
from eval.judge_validation.stored import Stored, agreements, swapped
from fgrpo import config, schema
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.response import parse
from fgrpo.types import EvalRecord, Rollout, Sample, Score, Verdict
from judges.base import JudgeSet, Meter, build, failed_verdict
from miniworld.planted import CONTROLS, ERRORS
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_TASK

YN = ("yes", "no")


def pairs_of(a: Sequence[str], b: Sequence[str]) -> list[Pair]:
    return [Pair(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]


def test_kappa_by_hand() -> None:
    # Cohen's own kind of table: 45 agreements of 60, margins 25/35 and 30/30: chance is .5, kappa (.75 - .5) / .5
    a = ["yes"] * 25 + ["no"] * 35
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 25
    got = compare("role", "A", "B", pairs_of(a, b), YN)
    assert got.confusion == ((20, 5), (10, 25)) and got.n == got.clusters == 60
    assert got.agreement == 0.75 and got.kappa == pytest.approx(0.5)
    assert got.low is not None and got.high is not None and 0.2 < got.low < 0.5 < got.high < 0.8
    assert compare("role", "A", "B", pairs_of(["yes", "no"], ["no", "yes"]), YN).kappa == pytest.approx(-1)


def test_kappa_is_sklearns() -> None:
    rng = random.Random(0)
    for size in (2, 3, 5):
        labels = [str(i) for i in range(size)]
        for _ in range(60):
            a = rng.choices(labels, k=40)
            b = [x if rng.random() < 0.6 else rng.choice(labels) for x in a]
            got = compare("role", "A", "B", pairs_of(a, b), labels, samples=10)
            assert got.kappa == pytest.approx(cohen_kappa_score(a, b, labels=labels))
            assert np.array_equal(got.confusion, confusion_matrix(a, b, labels=labels))


def test_kappa_that_is_not_defined() -> None:
    assert math.isnan(kappa(np.zeros((2, 2)))) and math.isnan(kappa(np.array([[7, 0], [0, 0]])))
    same = compare("role", "A", "B", pairs_of(["yes"] * 9, ["yes"] * 9), YN)
    assert (same.agreement, same.kappa, same.low, same.high) == (1.0, None, None, None)
    nothing = compare("role", "A", "B", [], YN)
    assert (nothing.n, nothing.agreement, nothing.kappa) == (0, None, None)


def test_the_interval_covers_and_whole_rollouts_are_resampled() -> None:
    """90% intervals hold the true kappa about 90% of the time; copies of each thing in one cluster do not narrow them."""
    rng = np.random.default_rng(0)
    truth, hits, trials = 0.4, 0, 200  # two labels, even margins: agreement is (1 + kappa) / 2
    for _ in range(trials):
        a = rng.integers(0, 2, 150)
        b = np.where(rng.random(150) < (1 + truth) / 2, a, 1 - a)
        both = pairs_of([YN[i] for i in a], [YN[i] for i in b])
        got = compare("role", "A", "B", both, YN, samples=300, confidence=0.9)
        assert got.low is not None and got.high is not None
        hits += got.low <= truth <= got.high
    assert 0.82 * trials < hits < 0.97 * trials
    thrice = compare("role", "A", "B", [p for p in both for _ in range(3)], YN, samples=300, confidence=0.9)
    assert (thrice.n, thrice.clusters) == (450, 150) and (thrice.low, thrice.high) == (got.low, got.high)
    again = compare("role", "A", "B", both, YN, samples=300, confidence=0.9)
    assert again == got  # seeded


def test_what_is_no_label_is_counted_apart() -> None:
    given = pairs_of(["yes", FAILED, "no", NOT_APPLICABLE, "yes"], ["yes", "no", MISSING, NOT_APPLICABLE, BY_RULE])
    got = compare("role", "A", "B", given, YN)
    assert (got.n, got.agreement) == (1, 1.0)
    assert got.left_out == {
        "A: failed": 1,
        "A: not applicable": 1,
        "B: decided by a rule": 1,
        "B: not applicable": 1,
        "B: not judged": 1,
    }
    with pytest.raises(ValueError, match="'maybe'"):
        compare("role", "A", "B", pairs_of(["maybe"], ["yes"]), YN)


def test_error_rates() -> None:
    got = error_rate("kind", [("yes", "yes")] * 8 + [("yes", "no")] * 2 + [("no", FAILED)] * 5)
    assert (got.n, got.wrong, got.failed, got.rate, got.labels) == (10, 2, 5, 0.2, {"no": 2, "yes": 8})
    assert (got.low, got.high) == (pytest.approx(0.0567, abs=1e-4), pytest.approx(0.5098, abs=1e-4))  # Wilson, by hand
    assert error_rate("kind", [("no", FAILED)]).rate is None


@pytest.fixture(scope="module")
def mini() -> schema.Config:
    return config.load("mini", "fgrpo", ["eval.bootstrap_samples=50"])


class Erring:
    """The oracle, with errors put in where `says` gives another label than None."""

    def __init__(self, judges: JudgeSet, **says: Callable[[Any, int, Verdict], Verdict | None]) -> None:
        self._judges, self._says = judges, says

    async def answer(self, task: Any, items: Sequence[Any]) -> list[Any]:
        says = self._says.get(task.name, lambda item, i, v: None)
        answers = await self._judges.ask_several(task, items)
        return [tuple(says(item, i, v) or v for i, v in enumerate(a)) for item, a in zip(items, answers, strict=True)]


def oracle(folder: Path) -> JudgeSet:
    return build(schema.Judge(backend="oracle", model="oracle", max_completion_tokens=1, concurrency=1), folder)


def rates(section: dict[str, Any], role: str) -> dict[str, tuple[int, int, int]]:
    return {r["kind"]: (r["n"], r["wrong"], r["failed"]) for r in section["errors"][role]}


def test_known_errors_of_a_judge_are_found_by_kind(mini: schema.Config, tmp_path: Path) -> None:
    """Blind to boxes, fooled by flipped answers, and failing on some: exactly that stands in the table, nothing else."""
    items = world(8, tmp_path)
    perfect = oracle(tmp_path)

    def text(item: Any, i: int, v: Verdict) -> Verdict | None:
        if item.id.endswith("/flipped_answer"):
            return Verdict("CONSISTENT")
        return failed_verdict("time-out") if item.id.startswith("00003/") else None

    def seen(item: Any, i: int, v: Verdict) -> Verdict | None:
        return Verdict("CORRECT") if "<bbox>" in item.sentences[i] and item.id.endswith("/wrong_box") else None

    erring = JudgeSet(Erring(perfect, consistency=text, grounding=seen), "erring")
    ratings = asyncio.run(run.rate(erring, [x.item for x in items]))
    section = run.against_truth("erring", items, ratings, mini.eval)
    got = rates(section, "consistency")
    assert set(got) == {*ERRORS, *CONTROLS}
    assert got.pop("flipped_answer") == (8, 8, 0)
    assert set(got.values()) == {(7, 0, 1)}
    got = rates(section, "semantic_grounding")
    assert set(got) == {*ERRORS, *CONTROLS, BESIDE} - {"flipped_answer", "no_conclusion"}
    assert got.pop("wrong_box") == (8, 8, 0)
    assert all(wrong == failed == 0 for _, wrong, failed in got.values())
    consistency, grounding = section["agreements"]
    assert consistency["left_out"] == {"erring: failed": len(ERRORS) + len(CONTROLS) - 1}
    assert consistency["kappa"] < 1 and grounding["kappa"] < 1 and consistency["n"] == 8 * 14 - 13
    assert grounding["confusion"][1][0] == 8  # truth INCORRECT, label CORRECT
    exact = asyncio.run(run.rate(perfect, [x.item for x in items]))
    assert exact == [x.truth for x in items]


def test_a_judge_that_gives_no_verdict_at_all_is_an_error(tmp_path: Path) -> None:
    perfect = oracle(tmp_path)
    judges = JudgeSet(Erring(perfect, consistency=lambda item, i, v: failed_verdict("connection refused")), "dead")
    item = ConsistencyItem("x", "Is it left or right?", ("left", "right"), "It is left.", "left")
    with pytest.raises(UserError, match="no verdict on any of 1 items; the first: connection refused"):
        asyncio.run(run.rate(judges, [item]))


QUESTION = "Is the red circle left or right of the blue square?"
SAID = "The red circle is left of the blue square."
TEXTS = {
    "hrel/t/0": f"<think>{SAID}</think><answer>left</answer>",
    "hrel/t/1": f"<think>{SAID}</think><answer>right</answer>",
    "hrel/t/2": f"<think>{SAID}</think><answer>up there</answer>",
    "hrel/t/3": f"<think>{SAID}</think>",
}


def stored_run(folder: Path) -> Path:
    """An evaluated folder by hand: four answers, the run's own judge and a second one that differs once and failed once."""
    folder.mkdir(parents=True)
    samples = [Sample(i, (), QUESTION, ("left", "right"), "left") for i in TEXTS]
    write_jsonl(folder / "questions.jsonl", [s.to_dict() for s in samples])
    write_jsonl(folder / "generations.jsonl", [Rollout(i, i, text).to_dict() for i, text in TEXTS.items()])

    def record(i: str, consistency: Score, label: str, judge: str) -> dict[str, Any]:
        details = [
            {"text": "Let me see.", "visual": False, "label": None, "reason": ""},
            {"text": SAID, "visual": True, "label": label, "reason": ""},
        ]
        semantic = Score.failure("time-out") if label == "failed" else Score.of(1.0, sentences=details)
        scores = {"consistency": consistency, "semantic_grounding": semantic}
        read = {"answer": "left", "answer_from": "rules"}
        if i == "hrel/t/2":  # "up there": for the extraction judge
            read = {"answer": "right", "answer_from": "judge"} if judge == "qwen" else {"answer_from": "unresolved"}
        return EvalRecord(i, "hrel", "m", i, scores, {"judge": judge, **read}).to_dict()

    def verdict(value: float) -> Score:
        return Score.of(value, cause="judge")

    rule = Score.of(0.0, "there is no single closed answer", cause="no_answer")
    ids = list(TEXTS)
    own = [verdict(1), verdict(0), verdict(1), rule]
    other = [verdict(1), verdict(1), Score.failure("time-out"), rule]
    (folder / "rescored" / "gpt").mkdir(parents=True)
    rows = [record(i, s, label, "qwen") for i, s, label in zip(ids, own, ("CORRECT",) * 3 + ("SKIP",), strict=True)]
    write_jsonl(folder / "scores.jsonl", rows)
    labels = ("CORRECT", "INCORRECT", "failed", "SKIP")
    rows = [record(i, s, label, "gpt-5") for i, s, label in zip(ids, other, labels, strict=True)]
    write_jsonl(folder / "rescored" / "gpt" / "scores.jsonl", rows)
    return folder


def test_two_judges_of_stored_answers(tmp_path: Path) -> None:
    found = stored_files.read(stored_run(tmp_path / "m"))
    assert [s.judge for s in found.judged] == ["qwen", "gpt (rescored)"] and len(found.rollouts) == 4
    consistency, grounding, extraction = agreements(*found.judged)
    assert (extraction.labels, extraction.confusion) == (("B", "0"), ((0, 1), (0, 0)))
    assert extraction.left_out == {"gpt (rescored): decided by a rule": 3, "qwen: decided by a rule": 3}
    assert consistency.confusion == ((1, 0), (1, 0)) and consistency.kappa == 0
    assert consistency.left_out == {
        "gpt (rescored): decided by a rule": 1,
        "gpt (rescored): failed": 1,
        "qwen: decided by a rule": 1,
    }
    assert grounding.confusion == ((1, 1, 0), (0, 0, 0), (0, 0, 1)) and grounding.n == 3
    assert grounding.left_out == {"gpt (rescored): failed": 1}  # one sentence was judged by the first alone
    one, _ = found.judged
    assert [a.agreement for a in agreements(one, one)] == [1.0, 1.0, 1.0]
    repeated = Score.of(0.0, sentences=[{"text": SAID, "visual": True, "label": "INCORRECT", "by_rule": True}])
    one.add("hrel/t/9", None, repeated)
    assert one.grounding.pop("hrel/t/9") == ((SAID, BY_RULE),)  # not the judge's own label
    other = Stored("other", grounding={"hrel/t/0": (("Another sentence.", "CORRECT"),)})
    with pytest.raises(UserError, match=r"hrel/t/0.*different sentences"):
        agreements(one, other)


def test_items_are_read_in_the_tags_of_the_evaluated_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = models.ModelSpec(title="M", path="m", prompt="think", think_tags=("[REASON]",), answer_tags=("<final>",))
    monkeypatch.setattr(models, "names", lambda: ["own-model"])
    monkeypatch.setattr(models, "load", lambda name: spec)
    folder = stored_run(tmp_path / "own-model")
    text = f"[REASON]{SAID}[/REASON]<final>left</final>"
    write_jsonl(folder / "generations.jsonl", [Rollout("hrel/t/0", "hrel/t/0", text).to_dict()])
    found = stored_files.read(folder)
    samples = stored_files.questions(found.questions)
    items = stored_files.judged_items(found.judged[0], found.rollouts, samples, (3136, 12845056), found.tags)
    (text_item,) = [item for item in items if isinstance(item, ConsistencyItem)]
    assert (text_item.think, text_item.answer) == (SAID, "left")
    (negative,), _ = swapped(found.judged[0], found.rollouts, samples, found.tags)
    assert (negative.item.think, negative.item.answer) == (SAID, "right")  # type: ignore[union-attr]


def test_a_damaged_description_of_a_model_is_named(tmp_path: Path) -> None:
    folder = stored_run(tmp_path / "theirs")
    spec = models.ModelSpec(title="M", path="external", prompt="", think_tags=("[REASON]",))
    (folder / models.SPEC_FILE).write_text(spec.model_dump_json())
    assert stored_files.read(folder).tags == spec.tags
    for text in ("{", '{"title": 1}'):
        (folder / models.SPEC_FILE).write_text(text)
        with pytest.raises(
            UserError, match=r"(?s)model.json describes no model .* run the command that wrote it again"
        ):
            stored_files.read(folder)


def test_swapped_answers_are_made_from_consistent_traces_alone(tmp_path: Path) -> None:
    found = stored_files.read(stored_run(tmp_path / "m"))
    samples = stored_files.questions(found.questions)
    items, dropped = swapped(found.judged[0], found.rollouts, samples)
    assert [(x.item.id, x.item.answer, x.truth) for x in items] == [("hrel/t/0", "right", ("INCONSISTENT",))]  # type: ignore[union-attr]
    assert dropped == {"its answer is not one option's letter or text": 1}  # "up there"
    assert swapped(found.judged[0], found.rollouts, {})[1] == {"its question is missing": 2}
    verdicts = asyncio.run(oracle(tmp_path).ask(CONSISTENCY_TASK, [x.item for x in items]))  # type: ignore[misc]
    assert [v.label for v in verdicts] == ["INCONSISTENT"]


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["validation", "--preset", "mini", "--set", "eval.bootstrap_samples=50", *words])
    run.main()


def test_command_on_a_stored_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stored_run(tmp_path / "m")
    command(monkeypatch, f"--run={folder}")
    printed = capsys.readouterr().out
    assert "qwen and gpt (rescored)" in printed and "| CONSISTENT | 1 | 0 |" in printed
    monkeypatch.setattr(run, "_pixels", lambda folder, config: (3136, 12845056, 28))
    monkeypatch.setattr(run.base, "build", lambda chosen, root, run: text_oracle())
    command(monkeypatch, f"--run={folder}", "--judge=oracle")
    printed = capsys.readouterr().out
    assert (
        "oracle on swapped answers of consistent traces" in printed and "| swapped answer | 1 | 0 | 0.0% |" in printed
    )
    page = json.loads((folder / "judge_validation.json").read_text())["sections"]
    asked = next(s for s in page if "asked now" in s["title"])
    consistency, grounding, extraction = asked["agreements"]
    assert extraction["confusion"] == [[0, 1], [0, 0]]
    assert consistency["confusion"] == [[1, 1], [0, 1]]  # "up there" does not follow, says the oracle
    assert grounding["n"] == 0 and grounding["left_out"]["oracle (now): failed"] == 4  # no picture, no verdict
    assert len(page) == 3 and (folder / "judge_validation.md").read_text().count("## ") == 3
    command(monkeypatch, f"--run={folder}")  # the same sections again: replaced, not doubled
    assert len(json.loads((folder / "judge_validation.json").read_text())["sections"]) == 3


def text_oracle() -> JudgeSet:
    """The oracle where there are no pictures: consistency alone gives verdicts."""

    class Blind:
        async def answer(self, task: Any, items: Sequence[Any]) -> list[Any]:
            return [(failed_verdict("no image"),) * len(item.sentences) for item in items]

    return oracle(Path("nowhere")).with_task(GROUNDING_TASK, JudgeSet(Blind()))


def test_command_on_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "--world=8", "--judge=oracle", f"--out={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    assert "oracle on planted errors (8 scenes)" in printed and "kappa 1.000" in printed
    (section,) = json.loads((tmp_path / "out" / "judge_validation.json").read_text())["sections"]
    assert [a["agreement"] for a in section["agreements"]] == [1.0, 1.0]
    assert {r["wrong"] for role in section["errors"].values() for r in role} == {0}
    assert section["judging"]["calls"] == sum(a["clusters"] for a in section["agreements"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--judge=oracel"], "unknown judge 'oracel'; did you mean 'oracle'"),
        (["--labelled=vsr"], "give the set and its path"),
        (["--labelled=vrs:/x"], "unknown labelled set 'vrs'; did you mean 'vsr'"),
        (["--labelled=vsr:/not/there"], "does not exist"),
        (["--run=/not/there"], "neither scores.jsonl"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, *words, f"--out={tmp_path}")
    assert stopped.value.code == 2 and says in capsys.readouterr().err


def test_one_judge_alone_and_missing_questions(tmp_path: Path, mini: schema.Config) -> None:
    folder = stored_run(tmp_path / "m")
    (folder / "rescored" / "gpt" / "scores.jsonl").unlink()
    with pytest.raises(UserError, match="one judge alone"):
        run.check_run(mini, folder, None, None, None)
    (folder / "questions.jsonl").unlink()
    with pytest.raises(UserError, match=r"questions\.jsonl is missing"):
        run.check_run(mini, folder, "oracle", None, None)
    (folder / "judge_validation.json").write_text("{")
    with pytest.raises(UserError, match=r"judge_validation\.json cannot be read"):
        page.add(folder, [])


def test_rollouts_of_training(tmp_path: Path) -> None:
    """The parquet files of an RL run, as its logbook writes them: what the training judge said, and what to ask another."""
    import pandas as pd

    sentences = [{"text": SAID, "visual": True, "label": "CORRECT", "reason": ""}]
    row: dict[str, Any] = {"id": "r0", "step": 1, "sample_id": "hrel/t/0", "images": [], "text": TEXTS["hrel/t/0"]}
    row |= {"consistency": 1.0, "consistency/state": "scored", "consistency/detail": '{"cause": "judge"}'}
    row |= {"semantic_grounding": 1.0, "semantic_grounding/state": "scored"}
    row["semantic_grounding/detail"] = json.dumps({"sentences": sentences})
    masked = {**row, "id": "r1", "consistency": None, "consistency/state": "not_applicable", "consistency/detail": "{}"}
    masked |= {"semantic_grounding": None, "semantic_grounding/state": "failed", "semantic_grounding/detail": "{}"}
    (tmp_path / "rl" / "rollouts").mkdir(parents=True)
    pd.DataFrame([row, masked]).to_parquet(tmp_path / "rl" / "rollouts" / "000001.parquet")
    found = stored_files.read(tmp_path / "rl")
    (stored,) = found.judged
    assert stored.consistency == {"1/r0": "CONSISTENT", "1/r1": NOT_APPLICABLE}
    assert stored.grounding == {"1/r0": ((SAID, "CORRECT"),), "1/r1": FAILED}
    sample = Sample("hrel/t/0", (), QUESTION, ("left", "right"), "left")
    again = stored_files.judged_items(stored, found.rollouts, {sample.id: sample}, (3136, 12845056))
    assert [type(item).__name__ for item in again] == ["ConsistencyItem", "GroundingItem"]
    text, seen = again
    assert (text.think, text.answer) == (parse(row["text"]).think, "left")  # type: ignore[union-attr]
    assert (seen.sentences, seen.contexts) == ((SAID,), ((),))  # type: ignore[union-attr]
    second = stored_files.from_ratings("now", stored, again, [("INCONSISTENT",), ("CORRECT",)])
    consistency, grounding = agreements(stored, second)
    assert consistency.confusion == ((0, 1), (0, 0)) and grounding.agreement == 1.0
    assert consistency.left_out == {"now: not judged": 1, "training: not applicable": 1}


class Mute:
    """A judge of which every second call gets no reply, for a reason."""

    def __init__(self, kind: str, meter: Meter) -> None:
        self.kind, self.meter, self.asked = kind, meter, 0

    async def answer(self, task: Any, items: Any) -> Any:
        out = []
        for item in items:
            self.asked += 1
            self.meter.count("calls")
            if self.asked % 2:
                self.meter.fail(self.kind)
                out.append((failed_verdict(f"{self.kind}: x"),) * task.size(item))
            else:
                out.append((Verdict(task.labels[0], ""),) * task.size(item))
        return out


@pytest.mark.parametrize("kind", ["no connection", "HTTP 502", "unusable reply"])
def test_an_endpoint_that_is_down_is_no_result(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls without a reply beyond rl.max_failed_share end the validation; unusable replies are what it measures."""
    kept: list[Any] = []

    def build(chosen: Any, root: Any, run: Any) -> JudgeSet:
        kept.append(run)
        meter = Meter()
        return JudgeSet(Mute(kind, meter), "mute", meter=meter)

    monkeypatch.setattr(run.base, "build", build)
    mini = config.load("mini")
    if kind == "unusable reply":
        assert run.check_world(mini, "evaluation", 2, tmp_path / "replies")["errors"]
    else:
        with pytest.raises(UserError, match=r"got no reply \(" + kind + r".*rerun to resume"):
            run.check_world(mini, "evaluation", 2, tmp_path / "replies")
    assert kept == [tmp_path / "replies"] and kept[0].is_dir()
