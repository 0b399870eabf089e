"""Rewards that read the policy's own numbers, by hand-worked values; every way to have no score is counted by its cause."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from fgrpo.response import parse
from fgrpo.schema_rl import Probing
from fgrpo.types import Sample, Score
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load, needs_of
from rewards.probes import Absent, Probes, dependence

LEFT = Sample("vgr/train/0", (), "Where is the car?", ("left", "right"), "left")
RIGHT_ANSWER, WRONG_ANSWER = "<think>t</think><answer>left</answer>", "<think>t</think><answer>right</answer>"
FULL = Probes(
    answer=(2, 4),
    evidence=(0.0, 0.0, 1.0, 3.0),
    controls=((9.0, 9.0, 0.5, 0.5), (9.0, 9.0, 0.0, 0.2)),
    patches=(0.0, 1.0),
    attention=(0.1, 0.2, 0.6, 0.9),
)
GONE = Absent("no_boxes", "no boxes are annotated")
DOWN = Absent("not_finite", "broken", True)


def score(name: str, probes: Probes | None, no_judge: JudgeSet, text: str = RIGHT_ANSWER, **options: Any) -> Score:
    context = RewardContext(no_judge, mask="correct", probing=Probing(**options))
    (found,) = asyncio.run(load(name)([RewardItem("r", LEFT, parse(text), probes=probes)], context))
    return found


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_evidence_margin_by_hand(no_judge: JudgeSet) -> None:
    """Answer tokens 2 and 3: drops 1 and 3 give 2; the controls give 0.5 and 0.1, their mean 0.3."""
    found = score("evidence_margin", FULL, no_judge, margin_scale=2.0, scope="answer")
    assert found.value == pytest.approx(sigmoid((2 - 0.3) / 2.0))
    assert found.detail["evidence"] == 2 and found.detail["controls"] == pytest.approx([0.5, 0.1])
    assert found.detail["monitor"] == {"evidence_drop": 2, "control_drop": pytest.approx(0.3)}
    everything = score("evidence_margin", FULL, no_judge, margin_scale=2.0, scope="all")
    assert everything.value == pytest.approx(sigmoid((1 - (19 / 4 + 18.2 / 4) / 2) / 2.0))


def test_the_control_margin_compares_controls_alone(no_judge: JudgeSet) -> None:
    assert score("control_margin", FULL, no_judge, scope="answer").value == pytest.approx(sigmoid((0.5 - 0.1) / 0.2))
    one = Probes(answer=(2, 4), evidence=FULL.evidence, controls=((0.0,) * 4,))
    assert score("control_margin", one, no_judge).detail == {"cause": "one_control"}


def test_a_policy_that_any_change_disturbs_shows_in_the_drop_of_the_controls_alone(no_judge: JudgeSet) -> None:
    """Twice the drop wherever the image is blanked: both margins stay at 0.5, and the controls' mean drop doubles."""
    found = {}
    for drop in (1.0, 2.0):
        same = Probes(answer=(0, 2), evidence=(drop,) * 2, controls=((drop,) * 2,) * 2)
        for name in ("evidence_margin", "control_margin"):
            assert score(name, same, no_judge).value == 0.5
        found[drop] = score("evidence_margin", same, no_judge).detail["monitor"]["control_drop"]
    assert found == {1.0: 1.0, 2.0: 2.0}


def test_vision_dependence_is_the_mean_of_k3(no_judge: JudgeSet) -> None:
    assert score("vision_dependence", FULL, no_judge).value == pytest.approx(math.exp(-1) / 2)
    assert score("vision_dependence", FULL, no_judge, WRONG_ANSWER).value is not None
    assert dependence([-20.0, 20.0]) == [10.0, 10.0], "both ends are bounded"


def test_attention_counts_where_the_evidence_matters(no_judge: JudgeSet) -> None:
    """Tokens without dependence (δ = 0) count nothing, wherever they look."""
    s2, s3 = math.exp(-1), math.exp(-3) + 2
    found = score("attention_where_it_matters", FULL, no_judge)
    assert found.value == pytest.approx((0.6 * s2 + 0.9 * s3) / (s2 + s3))
    assert found.detail["unweighted"] == pytest.approx(0.45)
    blind = Probes(evidence=(0.0, 0.01, 0.0, 0.0), attention=FULL.attention)
    assert score("attention_where_it_matters", blind, no_judge).detail == {"cause": "blind"}


OF_BOXES = ("evidence_margin", "control_margin", "attention_where_it_matters")


@pytest.mark.parametrize("name", OF_BOXES)
def test_a_wrong_answer_has_no_score_in_training(name: str, no_judge: JudgeSet) -> None:
    found = score(name, FULL, no_judge, WRONG_ANSWER)
    assert found.state == "not_applicable" and found.detail == {"cause": "wrong_answer"}


@pytest.mark.parametrize("name", [*OF_BOXES, "vision_dependence"])
@pytest.mark.parametrize("probes", [None, Probes()])
def test_nothing_measured_is_not_applicable_and_counted(name: str, probes: Any, no_judge: JudgeSet) -> None:
    """As for a model behind an endpoint."""
    found = score(name, probes, no_judge)
    assert found.state == "not_applicable" and found.detail == {"cause": "not_measured"}


@pytest.mark.parametrize("name", [*OF_BOXES, "vision_dependence"])
@pytest.mark.parametrize(("absent", "state"), [(GONE, "not_applicable"), (DOWN, "failed")])
def test_an_absent_number_is_no_score_and_never_zero(name: str, absent: Absent, state: str, no_judge: JudgeSet) -> None:
    for field in needs_of(load(name)):
        found = score(name, Probes(**{**vars(FULL), field: absent}), no_judge)
        assert found.value is None and found.state == state and found.reason == absent.reason
        assert state == "failed" or found.detail == {"cause": absent.cause}


def test_an_answer_whose_tokens_are_unknown(no_judge: JudgeSet) -> None:
    lost = Probes(**{**vars(FULL), "answer": Absent("no_answer", "none")})
    assert score("evidence_margin", lost, no_judge, scope="answer").detail == {"cause": "no_answer"}
    assert score("evidence_margin", lost, no_judge, scope="all").value is not None
