"""Semantic grounding reward R_G (Section 3.2, Appendix A.1): the share of visual sentences that the picture bears out.

The trace is cut into sentences; trivial ones (sentence_rules.yaml) are not judged; a judge calls each other sentence, given
all sentences before it, CORRECT (1), INCORRECT (0; false, or repeated without new evidence) or SKIP (left out).
R_G = mean over what is left. Not applicable: no scorable sentence, and in training (mask "correct") a wrong answer.
One sentence without a verdict makes the rollout's score failed: a mean over a part would be another reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo import pictures
from fgrpo.types import Score, Verdict
from judges import GroundingItem
from rewards.base import Reward, RewardContext, RewardItem, model_sizes
from rewards.rules import Rules, rules
from rewards.task import is_correct

# A sentence may end after stops (with closing quotes or brackets): Latin ones before a blank, those of other scripts anywhere.
_END = re.compile(r"([.!?…。！？｡।؟۔]++)[\"'”’)\]*」』）]*+")
_LATIN = ".!?…"
_PROTECTED = re.compile(r"<(\w{1,10})>[^<\n]{0,200}</\1>|\[[^\[\]\n]{0,200}\]")
_BULLET = re.compile(r"\s*(?:[-*•–+>#]+\s+|\(?(?:\d{1,3}|[a-zA-Z])[.)](?:\s+|\Z))*")
_BARE_MARKER = re.compile(r"\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\Z")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘*]{1,20}\Z")
_WORD = re.compile(r"[^\W\d_]+")
_EVIDENCE = re.compile(r"\d|<bbox>")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace; `visual` if it may make a claim about the picture, and so is judged."""

    text: str
    visual: bool


def sentences(think: str) -> list[Sentence]:
    """The sentences of a trace, in order: cut at line ends and sentence ends; not inside a box or coordinates, nor after an
    abbreviation, a decimal point or a list marker. Bullets are taken off; lines without a word or number are left out."""
    found = []
    table = rules()
    for line in think.splitlines():
        for text in _split(line, table):
            text = text.strip()
            if any(c.isalnum() for c in text):
                found.append(Sentence(text, _is_visual(text, table)))
    return found


def _split(line: str, table: Rules) -> list[str]:
    begin = _BULLET.match(line).end()  # type: ignore[union-attr]  # matches always, if only the empty string
    ends = [end for end in _END.finditer(line, begin) if _may_end(end, line)]
    if not ends:
        return [line[begin:]]
    spans = [m.span() for m in _PROTECTED.finditer(line, begin)]
    parts, at = [], 0
    for end in ends:
        while at < len(spans) and spans[at][1] <= end.start():
            at += 1
        if at < len(spans) and spans[at][0] <= end.start():
            continue
        if end.group() == "." and _is_no_end(line[max(begin, end.start() - 24) : end.start()], table):
            continue
        parts.append(line[begin : end.end()])
        begin = end.end()
    parts.append(line[begin:])
    return parts


def _may_end(end: re.Match[str], line: str) -> bool:
    """Whether something follows, and after a Latin stop a blank."""
    after = end.end()
    return after < len(line) and (line[after].isspace() or end.group(1)[-1] not in _LATIN)


def _is_no_end(before: str, table: Rules) -> bool:
    """Whether a single full stop after `before` belongs to an abbreviation or a list marker ("2.")."""
    if _BARE_MARKER.match(before + "."):
        return True
    word = _LAST_WORD.search(before)
    if word is None:
        return False
    return word.group().casefold() in table.abbreviations


def _is_visual(text: str, table: Rules) -> bool:
    if table.trivial.match(text.rstrip(" .!?。")):
        return False
    if not table.prefixes.match(text) or _EVIDENCE.search(text):
        return True
    words = {word.casefold() for word in _WORD.findall(text)}
    singular = {w[:-1] for w in words if w.endswith("s")} | {w[:-2] for w in words if w.endswith("es")}
    return not table.visual_words.isdisjoint(words | singular)


class SemanticGroundingReward:
    """R_G, with detail {"sentences": [{"text", "visual", "label", "reason"}]} (label None for trivial ones)."""

    name = "semantic_grounding"

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        scores: list[Score | None] = []
        asked: list[tuple[int, list[Sentence], GroundingItem]] = []
        for i, item in enumerate(items):
            split = sentences(item.response.think)
            scores.append(_before_the_judge(item, split, context))
            if scores[-1] is None:
                asked.append((i, split, _question(item, split, context)))
        if asked:
            verdicts = await context.judges.grounding.judge([question for _, _, question in asked])
            for (i, split, _), of_rollout in zip(asked, verdicts, strict=True):
                scores[i] = _score(split, of_rollout)
        return [score for score in scores if score is not None]


def _before_the_judge(item: RewardItem, split: Sequence[Sentence], context: RewardContext) -> Score | None:
    if context.mask == "correct" and not is_correct(item):
        return Score.not_applicable("the answer is wrong")
    if not any(s.visual for s in split):
        return Score.not_applicable("no scorable sentence")
    return None


def _question(item: RewardItem, split: Sequence[Sentence], context: RewardContext) -> GroundingItem:
    texts = [s.text for s in split]
    visual = [i for i, s in enumerate(split) if s.visual]
    try:
        is_original = context.box_frame == "original"
        images = item.sample.images
        sizes = tuple(map(pictures.size, images)) if is_original else model_sizes(images, context)
    except pictures.ERRORS:
        sizes = ()  # the judge looks at the picture itself, and says so if it cannot
    return GroundingItem(
        item.rollout_id,
        item.sample.images,
        item.sample.question,
        tuple(texts[i] for i in visual),
        tuple(tuple(texts[:i]) for i in visual),
        sizes,
        context.box_tag,
        context.box_frame,
    )


def _score(split: Sequence[Sentence], verdicts: Sequence[Verdict]) -> Score:
    """The mean of one rollout's verdicts, which belong to its visual sentences in order."""
    for verdict in verdicts:
        if verdict.failed or verdict.label not in ("CORRECT", "INCORRECT", "SKIP"):
            return Score.failure(verdict.reason or f"unusable label {verdict.label!r}")
    of_visual = iter(verdicts)
    detail = []
    for s in split:
        said = next(of_visual) if s.visual else None
        label, reason = (said.label, said.reason) if said else (None, "")
        detail.append({"text": s.text, "visual": s.visual, "label": label, "reason": reason})
    values = [float(v.label == "CORRECT") for v in verdicts if v.label != "SKIP"]
    if not values:
        return Score(None, "no sentence with a claim about the picture", False, {"sentences": detail})
    return Score.of(sum(values) / len(values), sentences=detail, judge=verdicts[0].judge)


REWARD: Reward = SemanticGroundingReward()
