"""The groupwise ranking reward (arXiv 2604.18892): a judge ranks the traces of a group's correct answers, all in one call.

    s_i = (wins_i + ties_i / 2) / (K − 1) over the group's K correct rollouts        R_i = s_i − mean s = s_i − 1/2
    K < 2: R = 0. A wrong answer has no score, which adds nothing to the task reward (`rl.combine: additive`).

A rollout wins against every rollout of a worse tier. The judge reads question, options, answer and traces, never the image. It gives
each trace a tier, 1 for the best; traces of one tier are tied. Equal texts are shown once, so they are tied. Traces without
content (rewards/content.py) are not shown; they are tied behind all others. A reply that leaves a trace out, names one twice, or
gives a tier that was not offered is not a ranking: all correct rollouts of the group then have a failed score.

In the miniature world the oracle ranks by exact faithfulness: traces that entail the answer first, then by the share of their
sentences about the image that are true.

Differs from the original: no published prompt, so the question is ours; the judge is the one that is configured (theirs is
gpt-oss-20B); the order of the traces is that of the group, without repeated calls in other orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgrpo.types import Score, Verdict
from judges.requests import NUMBERED_LABELS, Labelled, Trusted, fence, fence_options
from judges.task import BoxFrame, JudgeTask, NoAnswer, Truth
from miniworld.language import parse_question
from miniworld.oracle import judge_conclusion, judge_sentence
from rewards.base import Report, Reward, RewardContext, RewardItem, by_group
from rewards.boxes_in_text import without_tags
from rewards.content import is_contentless
from rewards.sentences import sentences
from rewards.task import is_correct


@dataclass(frozen=True)
class RankingItem:
    """Correct traces of one group, all different, to be put in order.

    Attributes:
        id: the group's.
        images: paths; only the oracle uses them.
        choices: option texts in the order of their letters.
        answer: the gold answer, which all of them give.
    """

    id: str
    images: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    answer: str
    traces: tuple[str, ...]


def _tiers(item: RankingItem) -> tuple[str, ...]:
    return tuple(str(n + 1) for n in range(len(item.traces)))


def _render(item: RankingItem, frame: BoxFrame) -> Mapping[str, str]:
    lines = [f"{n}. {fence(without_tags(trace))}" for n, trace in enumerate(item.traces, start=1)]
    return {
        "question": item.question,
        "options": fence_options(item.choices) if item.choices else Trusted("(none)"),
        "answer": item.answer,
        "traces": Trusted("\n".join(lines)),
    }


def _oracle(item: RankingItem, truth: Truth) -> list[Labelled]:
    if parse_question(item.question) is None:
        raise NoAnswer("not a question of the miniature world")
    scenes = truth.scenes(item.images)
    keys = []
    for trace in item.traces:
        parts = sentences(trace)
        texts = [part.text for part in parts]
        visual = [n for n, part in enumerate(parts) if part.visual]
        labels = [judge_sentence(scenes, item.question, texts[:n], texts[n])[0] for n in visual]
        known = [label == "CORRECT" for label in labels if label != "SKIP"]
        follows = judge_conclusion(item.question, trace, item.answer, item.choices)[0]
        keys.append((follows, sum(known) / len(known) if known else 0.0))
    order = sorted(set(keys), reverse=True)
    return [(str(order.index(key) + 1), f"consistent: {key[0]}, true: {key[1]:.2f}") for key in keys]


RANKING_TASK: JudgeTask[RankingItem] = JudgeTask(
    "ranking",
    Path(__file__).resolve().parent / "prompts" / "groupwise.txt",
    _tiers,
    _render,
    reply=NUMBERED_LABELS,
    size=lambda item: len(item.traces),
    oracle=_oracle,
    record_kind="RankingItem",
)
"""In which order are these traces? One tier per trace; one call per group, whose key in a cache is all of its text."""


class GroupwiseReward:
    """R, with detail {"tier", "of"}: the trace's tier, and the number of correct rollouts in its group."""

    name = "groupwise"
    report: Report | None = None  # a rank among the rollouts of a group says nothing about one answer
    judge_task: JudgeTask[Any] | None = RANKING_TASK
    needs_group = True

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores: dict[int, Score] = {}
        groups = []
        for places in by_group(items).values():
            right = [place for place in places if is_correct(items[place])]
            if len(right) < 2:
                scores |= dict.fromkeys(right, Score.of(0.0, "the only correct answer of its group", of=len(right)))
                continue
            groups.append((right, _shown([items[place] for place in right])))
        asked = [_item([items[place] for place in right], shown) for right, shown in groups if len(shown) > 1]
        answers = iter(await context.judges.ask_several(RANKING_TASK, asked) if asked else ())
        for right, shown in groups:
            verdicts = next(answers) if len(shown) > 1 else ()
            scores |= dict(zip(right, _scores([items[place] for place in right], shown, verdicts), strict=True))
        return [scores.get(place) or Score.not_applicable("the answer is wrong") for place in range(len(items))]


def win_rates(tiers: Sequence[float]) -> list[float]:
    """s of each of K >= 2 members: the share of the others that it beats, a tie counting half. 1 is the best tier."""
    rivals = len(tiers) - 1
    wins = [sum(other > own for other in tiers) for own in tiers]
    ties = [sum(other == own for other in tiers) - 1 for own in tiers]
    return [(won + tied / 2) / rivals for won, tied in zip(wins, ties, strict=True)]


def _shown(right: Sequence[RewardItem]) -> tuple[str, ...]:
    """The different traces with content, in the order of the group."""
    sample = right[0].sample
    words = " ".join((sample.question, *sample.choices))
    traces = (item.response.think.strip() for item in right)
    return tuple(dict.fromkeys(trace for trace in traces if not is_contentless(trace, words)))


def _item(right: Sequence[RewardItem], shown: tuple[str, ...]) -> RankingItem:
    sample = right[0].sample
    return RankingItem(right[0].group, sample.images, sample.question, sample.choices, sample.answer, shown)


def _scores(right: Sequence[RewardItem], shown: Sequence[str], verdicts: Sequence[Verdict]) -> list[Score]:
    """Scores of a group's correct rollouts from the judge's tiers of the traces that it was shown."""
    offered = {str(n + 1): n + 1 for n in range(len(shown))}
    for verdict in verdicts:
        if verdict.failed or verdict.label not in offered:
            return [Score.failure(verdict.reason or f"unusable tier {verdict.label!r}")] * len(right)
    tier = (
        {text: offered[str(verdict.label)] for text, verdict in zip(shown, verdicts, strict=True)} if verdicts else {}
    )
    alone = dict.fromkeys(shown, 1)
    last = len(shown) + 1  # of traces without content
    tiers = [(tier or alone).get(item.response.think.strip(), last) for item in right]
    return [
        Score.of(rate - 0.5, tier=own, of=len(right), judge=verdicts[0].judge if verdicts else "")
        for rate, own in zip(win_rates(tiers), tiers, strict=True)
    ]


REWARD: Reward = GroupwiseReward()
