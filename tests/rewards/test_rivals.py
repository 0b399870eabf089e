"""Rewards of rival methods against hand-worked numbers: FAPO and the groupwise ranking, with judges that fail and lie."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from fgrpo import config
from fgrpo.response import parse
from fgrpo.types import Sample, Score, Verdict
from judges import JudgeSet, build
from judges.base import Meter
from judges.cached_client import CachedClient
from judges.requests import Unusable
from miniworld import questions, truth
from miniworld.render import render
from rewards import ced, fapo, groupwise, grpo_care
from rewards.base import RewardContext, RewardItem, by_group
from rewards.groupwise import RANKING_TASK, RankingItem, win_rates
from rewards.probes import Absent, Probes

SAMPLE = Sample("sat/train/0", (), "Where is the car?", ("left", "right"), "left")
TRACES = ("The car is at the left edge.", "The car stands left of the bus.", "I see a bus and the car is left.")


def item(think: str, answer: str = "left", group: str = "0/0", name: str = "r", well_formed: bool = True) -> RewardItem:
    text = f"<think>{think}</think><answer>{answer}</answer>" + ("" if well_formed else " and more")
    return RewardItem(name, SAMPLE, parse(text), group=group)


def scored(reward: Any, items: list[RewardItem], judges: JudgeSet, **options: Any) -> list[Score]:
    return asyncio.run(reward(items, RewardContext(judges, mask="correct", **options)))


# --- FAPO -----------------------------------------------------------------------------------------------------------------


def judges_of(scripted: Any, table: dict[str, tuple[str | None, str | None]]) -> JudgeSet:
    """By trace: labels of consistency and of its one sentence; None fails."""

    def answer(asked: Any) -> Any:
        of_think, of_sentence = table[asked.think if hasattr(asked, "think") else asked.sentences[0]]
        label = of_think if hasattr(asked, "think") else of_sentence
        verdict = Verdict(None, "timeout", True) if label is None else Verdict(label)
        return verdict if hasattr(asked, "think") else (verdict,) * len(asked.sentences)

    return JudgeSet(scripted(answer), "scripted")


def test_fapo_by_hand(scripted: Any) -> None:
    """Correct and sound 1, flawed 0, wrong −1, each beside the format's 1 (or 0); a failure counts only if no flaw is known."""
    good, bad = ("CONSISTENT", "INCONSISTENT"), ("CORRECT", "INCORRECT")
    table: dict[str, tuple[str | None, str | None]] = {
        "The car is at the left edge.": (good[0], bad[0]),
        "The car stands left of the bus.": (good[1], bad[0]),
        "The car is far left there.": (good[0], bad[1]),
        "The car waits at the left side.": (None, bad[0]),
        "The car parks at the left wall.": (None, bad[1]),
        "The car turns to the left street.": (good[0], None),
        "The car drives on the left lane.": (good[1], None),
    }
    items = [item(think) for think in table]
    items += [item("The car is at the left edge.", well_formed=False), item("The car is right there.", "right")]
    found = scored(fapo.REWARD, items, judges_of(scripted, table))
    assert [score.value for score in found] == [2.0, 1.0, 1.0, None, 1.0, None, 1.0, 1.0, 0.0]
    assert found[1].reason == "the trace does not entail the answer"
    assert found[2].reason == "a sentence about the image is false"
    assert [n for n, score in enumerate(found) if score.failed] == [3, 5] and found[3].reason == "timeout"
    assert [score.detail.get("monitor", {}).get("flawed") for score in found] == [0, 1, 1, None, 1, None, 1, 0, None]
    assert [score.detail.get("accuracy") for score in found] == [1, 1, 1, None, 1, None, 1, 1, 0]


def test_fapo_asks_about_correct_answers_only(no_judge: JudgeSet) -> None:
    (wrong,) = scored(fapo.REWARD, [item("The car is at the right edge.", "right")], no_judge)
    assert (wrong.value, wrong.reason) == (0.0, "the answer is wrong")


@pytest.mark.parametrize(("unscorable", "value"), [("zero", 1.0), ("not_applicable", 2.0)])
def test_a_trace_without_a_claim_is_flawed_where_it_counts_as_zero(
    scripted: Any, unscorable: Any, value: float
) -> None:
    judges = judges_of(scripted, {TRACES[0]: ("CONSISTENT", "SKIP")})
    (found,) = scored(fapo.REWARD, [item(TRACES[0])], judges, unscorable=unscorable)
    assert found.value == value


# --- groupwise ------------------------------------------------------------------------------------------------------------


def ranked(scripted: Any, tiers: dict[str, str]) -> Any:
    """A judge that gives each trace its tier."""
    return scripted(lambda asked: tuple(Verdict(tiers[trace]) for trace in asked.traces))


def test_win_rates_by_hand() -> None:
    """Of tiers 1, 2, 2, 3: wins 3, 1, 1, 0 and ties 0, 1, 1, 0 over three rivals. The mean is always 1/2."""
    found = win_rates([1, 2, 2, 3])
    assert found == pytest.approx([1.0, 1.5 / 3, 1.5 / 3, 0.0]) and sum(found) / 4 == pytest.approx(0.5)
    assert win_rates([7, 7]) == [0.5, 0.5]


def test_groupwise_by_hand(scripted: Any) -> None:
    """Two groups of four: three correct ones of tiers 2, 1, 2, and a lone one. Wrong answers have no score; one call in all."""
    judge = ranked(scripted, dict(zip(TRACES, ("2", "1", "2"), strict=True)))
    items = [item(TRACES[0]), item("x y z car right", "right"), item(TRACES[1]), item(TRACES[2])]
    items += [item(TRACES[0], group="0/1"), *(item("It is right there.", "right", group="0/1") for _ in range(3))]
    found = scored(groupwise.REWARD, items, JudgeSet(judge, "scripted"))
    assert [score.value for score in found] == [-0.25, None, 0.5, -0.25, 0.0, None, None, None]
    assert [score.state for score in found] == ["scored", "not_applicable", *["scored"] * 3, *["not_applicable"] * 3]
    assert [(asked.id, asked.traces) for asked in judge.items] == [("0/0", TRACES)]
    assert [score.detail.get("tier") for score in found[:4]] == [2, None, 1, 2]


def test_groups_are_told_apart_in_whatever_order_they_come(scripted: Any) -> None:
    judge = ranked(scripted, dict(zip(TRACES, ("1", "2", "2"), strict=True)))
    items = [
        item(TRACES[0], group="a"),
        item(TRACES[1], group="b"),
        item(TRACES[2], group="a"),
        item(TRACES[0], group="b"),
    ]
    found = scored(groupwise.REWARD, items, JudgeSet(judge, "scripted"))
    assert [score.value for score in found] == [0.5, -0.5, -0.5, 0.5]
    assert [asked.traces for asked in judge.items] == [(TRACES[0], TRACES[2]), (TRACES[1], TRACES[0])]


def test_equal_traces_are_tied_and_empty_ones_are_behind(scripted: Any) -> None:
    judge = ranked(scripted, dict(zip(TRACES, ("2", "1", "3"), strict=True)))
    items = [item(TRACES[0]), item(f" {TRACES[0]} "), item(TRACES[1]), item(":")]
    found = scored(groupwise.REWARD, items, JudgeSet(judge, "scripted"))
    assert [score.value for score in found] == pytest.approx([1.5 / 3 - 0.5, 1.5 / 3 - 0.5, 0.5, -0.5])
    assert [asked.traces for asked in judge.items] == [TRACES[:2]]


def test_one_kind_of_trace_needs_no_judge(no_judge: JudgeSet) -> None:
    assert [s.value for s in scored(groupwise.REWARD, [item(TRACES[0])] * 3, no_judge)] == [0.0] * 3
    assert [s.value for s in scored(groupwise.REWARD, [item(TRACES[0]), item(":")], no_judge)] == [0.5, -0.5]
    assert [s.value for s in scored(groupwise.REWARD, [item(":"), item(".")], no_judge)] == [0.0, 0.0]


@pytest.mark.parametrize("bad", [Verdict(None, "timeout", True), Verdict("4"), Verdict("0"), Verdict(None)])
def test_a_judge_that_does_not_rank_fails_the_whole_group(scripted: Any, bad: Verdict) -> None:
    judge = scripted(lambda asked: (Verdict("1"), bad, Verdict("2")))
    items = [*(item(trace) for trace in TRACES), item("It is right there.", "right")]
    found = scored(groupwise.REWARD, items, JudgeSet(judge, "scripted"))
    assert [score.state for score in found] == ["failed"] * 3 + ["not_applicable"]


def test_a_rollout_of_no_group_is_refused(no_judge: JudgeSet) -> None:
    with pytest.raises(ValueError, match="rollout r belongs to no group"):
        by_group([item(TRACES[0], group="")])


ITEM = RankingItem("0/3", ("a.png",), "Where is the car?", ("left", "right"), "left", TRACES)


def test_the_ranking_prompt_has_each_part_under_its_own_heading() -> None:
    call = RANKING_TASK.call(ITEM)
    lines = call.text.splitlines()
    assert 'question: "Where is the car?"' in lines and 'answer: "left"' in lines
    assert 'options: {"A": "left", "B": "right"}' in lines
    assert [line for line in lines if line[:2] in ("1.", "2.", "3.")] == [
        f"{n}. {json.dumps(t)}" for n, t in enumerate(TRACES, 1)
    ]
    assert (call.images, call.size, call.role) == ((), 3, "ranking"), "the judge reads text alone"
    for change in ({"question": "q"}, {"choices": ("up",)}, {"answer": "right"}, {"traces": TRACES[::-1]}):
        assert RANKING_TASK.call(dataclasses.replace(ITEM, **change)).text != call.text, change
    assert RANKING_TASK.call(dataclasses.replace(ITEM, id="other")).text == call.text


@pytest.mark.parametrize("labels", ["plain", "nonce"])
@pytest.mark.parametrize(
    ("reply", "wrong"),
    [
        ({"1": "2", "2": "1"}, "another shape"),
        ({"1": "2", "2": "1", "3": "4"}, "not offered"),
        ({"1": "2", "2": "1", "3": "best"}, "not offered"),
        ({"1": "2", "2": "1", "3": "1", "4": "1"}, "not there"),
        (
            '{"1": {"why": "", "label": "1"}, "1": {"why": "", "label": "2"}, "2": {"why": "", "label": "1"}}',
            "stands twice",
        ),
        ("The second is best.", "not JSON"),
        (["1", "2", "3"], "another shape"),
    ],
)
def test_a_reply_that_is_no_ranking_is_unusable(labels: Any, reply: Any, wrong: str) -> None:
    call = RANKING_TASK.call(ITEM, labels=labels)
    assert call.schema is not None
    shown = call.schema["properties"]["1"]["properties"]["label"]["enum"]
    of_plain = {str(n + 1): label for n, label in enumerate(shown)}
    if isinstance(reply, dict):
        reply = json.dumps({n: {"why": "", "label": of_plain.get(tier, tier)} for n, tier in reply.items()})
    elif not isinstance(reply, str):
        reply = json.dumps(reply)
    with pytest.raises(Unusable, match=wrong):
        call.parse(reply)
    good = json.dumps({n: {"why": "w", "label": of_plain[tier]} for n, tier in (("1", "2"), ("2", "1"), ("3", "2"))})
    assert [label for label, _ in call.parse(good)] == ["2", "1", "2"], "ties are allowed"


def test_a_cache_keys_the_whole_group(tmp_path: Path) -> None:
    """The same traces again cost no call; one trace more, or another order, is another question."""
    sent: list[str] = []

    class Transport:
        async def ask(self, call: Any, urls: Any, widened: int = 0) -> str:
            sent.append(call.text)
            return json.dumps({str(n + 1): {"why": "", "label": "1"} for n in range(call.size)})

        async def close(self) -> None: ...

    named = {"backend": "openai", "model": "m", "cache": str(tmp_path / "cache.sqlite")}
    settings = config.load("mini").judges.training.model_copy(update=named)
    client = CachedClient(settings, Meter(), Transport())  # type: ignore[arg-type]
    three = RANKING_TASK.call(ITEM)
    others = [
        dataclasses.replace(ITEM, id="9/9"),
        dataclasses.replace(ITEM, traces=TRACES[:2]),
        dataclasses.replace(ITEM, traces=TRACES[::-1]),
    ]

    async def ask() -> list[int]:
        counts = []
        for call in (three, *(RANKING_TASK.call(other) for other in others)):
            await client.ask(call)
            counts.append(len(sent))
        await client.close()
        return counts

    assert asyncio.run(ask()) == [1, 1, 2, 3]


def test_the_oracle_ranks_by_exact_faithfulness(tmp_path: Path) -> None:
    """A true and consistent trace, the same with a false sentence, and one that ends at another answer."""
    rng = random.Random(5)
    question = questions.make("hrel", rng)
    path = tmp_path / "0.png"
    render(question.scenes[0], rng).save(path)
    with (tmp_path / "scenes.jsonl").open("w") as file:
        file.write(json.dumps({"key": truth.image_key(path), "scene": question.scenes[0].to_dict()}) + "\n")
    a, b = question.targets[:2]
    other = next(choice for choice in question.choices if choice != question.answer)
    side = {"left": "to the left of", "right": "to the right of"}
    best = f"The {a} is {side[question.answer]} the {b}."
    mixed = f"There is a purple elephant. {best}"
    worst = f"The {a} is {side[other]} the {b}."
    asked = RankingItem("0/0", (str(path),), question.text, question.choices, question.answer, (mixed, worst, best))
    judges = build(config.load("mini").judges.training, tmp_path)
    (verdicts,) = asyncio.run(judges.ask_several(RANKING_TASK, [asked]))
    assert [verdict.label for verdict in verdicts] == ["2", "3", "1"], [verdict.reason for verdict in verdicts]
    (elsewhere,) = asyncio.run(judges.ask_several(RANKING_TASK, [dataclasses.replace(asked, question="Why?")]))
    assert all(verdict.failed for verdict in elsewhere)


# --- GRPO-CARE ------------------------------------------------------------------------------------------------------------


def likely(p: float | Absent | None, answer: str = "left", group: str = "0/0") -> RewardItem:
    """A rollout whose answer has the likelihood p, or none."""
    value = math.log(p) if isinstance(p, float) else p
    return dataclasses.replace(item(TRACES[0], answer, group), probes=Probes(answer_likelihood=value))


def test_grpo_care_by_hand(no_judge: JudgeSet) -> None:
    """Group 1: 0.5, 0.3, 0.1 correct, mean 0.3: the first two; a wrong one of 0.9 is in no mean. Group 2: 0.99 counts as 0.95,
    so with 0.945 the mean is 0.9475, which 0.945 reaches within 0.01, and 0.8 would not."""
    items = [likely(0.5), likely(0.9, "right"), likely(0.3), likely(0.1)]
    items += [
        likely(0.99, group="0/1"),
        likely(0.945, group="0/1"),
        likely(0.2, "right", "0/1"),
        likely(0.9, "right", "0/1"),
    ]
    found = scored(grpo_care.REWARD, items, no_judge)
    assert [score.value for score in found] == [0.5, None, 0.5, 0.0, 0.5, 0.5, None, None]
    assert found[4].detail["likelihood"] == 0.95 and found[4].detail["of_group"] == pytest.approx(0.9475)
    assert found[0].detail["of_group"] == pytest.approx(0.3)


def test_a_likelihood_that_failed_is_in_no_mean(no_judge: JudgeSet) -> None:
    """Mean of 0.6 and 0.5, not with the failed one: 0.5 misses 0.55 − 0.01."""
    broken = Absent("not_finite", "not finite", True)
    found = scored(grpo_care.REWARD, [likely(0.6), likely(broken), likely(0.5), likely(None)], no_judge)
    assert [score.value for score in found] == [0.5, None, 0.0, None]
    assert [score.state for score in found] == ["scored", "failed", "scored", "not_applicable"]
    (bare,) = scored(grpo_care.REWARD, [item(TRACES[0])], no_judge)
    assert (bare.state, bare.detail["cause"]) == ("not_applicable", "not_measured")


def test_equal_likelihoods_all_reach_their_mean(no_judge: JudgeSet) -> None:
    assert [s.value for s in scored(grpo_care.REWARD, [likely(0.1)] * 3, no_judge)] == [0.5] * 3


# --- Evidence-RL ----------------------------------------------------------------------------------------------------------


def measured(evidence: Any, controls: Any, answer: str = "left", well_formed: bool = True) -> RewardItem:
    """A rollout of three tokens, of which the second and third wrote the answer."""
    probes = Probes(answer=(1, 3), evidence=evidence, controls=controls)
    return dataclasses.replace(item(TRACES[0], answer, well_formed=well_formed), probes=probes)


def test_ced_by_hand(no_judge: JudgeSet) -> None:
    """Δ_ev 0.4; controls 0.2, 0.3, 0.4 over the answer's tokens: mean 0.3, deviation √(2/3)/10, m = tanh(0.1/(0.0816… + 1e-6))."""
    evidence = (9.0, 0.3, 0.5)
    controls = ((9.0, 0.2, 0.2), (9.0, 0.2, 0.4), (9.0, 0.4, 0.4))
    m = math.tanh(0.1 / (math.sqrt(2 / 3) / 10 + 1e-6))
    g = (1 + math.tanh(m / 0.2)) / 2
    items = [
        measured(evidence, controls),
        measured(evidence, controls, "right"),
        measured(evidence, controls, well_formed=False),
    ]
    found = scored(ced.REWARD, items, no_judge)
    assert [score.value for score in found] == pytest.approx([1 + g + 0.1 * m, 1 - 0.25 * g + 0.1 * m, g + 0.1 * m])
    assert found[0].detail["margin"] == pytest.approx(m) and found[1].detail["accuracy"] == 0
    (against,) = scored(ced.REWARD, [measured((0.0, 0.0, 0.0), controls)], no_judge)
    assert against.value == pytest.approx(1 + (1 + math.tanh(-math.tanh(0.3 / (math.sqrt(2 / 3) / 10 + 1e-6)) / 0.2)) / 2
                                          - 0.1 * math.tanh(0.3 / (math.sqrt(2 / 3) / 10 + 1e-6)))  # fmt: skip


def test_without_evidence_correctness_alone_counts_and_a_failure_is_one(no_judge: JudgeSet) -> None:
    none, broken = Absent("no_boxes", "no boxes are annotated"), Absent("not_finite", "not finite", True)
    items = [measured(none, none), measured(none, none, "right"), measured(broken, ((0.0,) * 3,)), item(TRACES[0])]
    found = scored(ced.REWARD, items, no_judge)
    assert [score.value for score in found] == [2.0, 0.75, None, 2.0]
    assert [score.state for score in found] == ["scored", "scored", "failed", "scored"]
    assert [score.detail.get("cause") for score in found] == ["no_boxes", "no_boxes", None, "not_measured"]


@pytest.mark.parametrize(
    "controls",
    [
        ((9.0, 0.2, 0.4), (9.0, 0.2, 0.4), (9.0, 0.2, 0.4)),  # the same cells three times
        ((0.0, 0.3, 0.3), (9.0, 0.2, 0.4000001), (5.0, 0.4, 0.2)),  # round-off apart
        ((9.0, 0.2, 0.4),),  # only one fits
    ],
)
def test_controls_that_do_not_differ_decide_nothing(no_judge: JudgeSet, controls: Any) -> None:
    """A deviation of 0 would make a drop of 0.0001 nats more a margin of 1: R = 1 + 1 + 0.1 and 1 - 0.25 + 0.1."""
    items = [measured((0.0, 0.3001, 0.3001), controls, answer) for answer in ("left", "right")]
    found = scored(ced.REWARD, items, no_judge)
    assert [score.value for score in found] == [2.0, 0.75]
    assert all(score.detail["cause"] == "equal_controls" and "margin" not in score.detail for score in found)
    (differs,) = scored(ced.REWARD, [measured((0.0, 0.3001, 0.3001), (controls[0], (0.0, 0.3, 0.5)))], no_judge)
    assert "cause" not in differs.detail
