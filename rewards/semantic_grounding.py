"""Semantic grounding reward R_G (Section 3.2, Appendix A.1): the share of visual sentences that the picture bears out.

The trace is cut into sentences; trivial ones (sentence_rules.yaml) are not judged; a judge calls each other sentence, given
all sentences before it, CORRECT (1), INCORRECT (0; false, or repeated without new evidence) or SKIP (left out). Where the judge lets a claim pass that was made
before in the very same words, with no box in between, that is INCORRECT all the same: repetition must not buy reward.
R_G = mean over what is left. Not applicable: no scorable sentence, and in training (mask "correct") a wrong answer.
One sentence without a verdict makes the rollout's score failed: a mean over a part would be another reward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.types import Score, Verdict
from judges import GroundingItem
from rewards.base import Report, Reward, RewardContext, RewardItem, model_sizes
from rewards.rules import Rules, rules
from rewards.task import is_correct

# A sentence may end after stops (with closing quotes or brackets): Latin ones before a blank, those of other scripts anywhere.
_END = re.compile(r"([.!?…。！？｡।؟۔][.!?…。！？｡।؟۔]*+)[\"'”’)\]*」』）]*+")
_ASCII_END = re.compile(r"([.!?][.!?]*+)[\"')\]*]*+")  # the same, for a line that has no other
_LATIN = ".!?…"
_PROTECTED = re.compile(r"<(\w{1,10})>[^<\n]{0,200}</\1>|\[[^\[\]\n]{0,200}\]|\([\d\s.,;+-]{0,200}\)")
_MARKER = r"\(?(?:(?:[Ss]tep )?\d{1,3}|[ivxIVX]{1,4}|[a-zA-Z])[.)]"
_BULLET = re.compile(rf"\s*(?:[-*•–+>#]+\s+|{_MARKER}(?:\s+|\Z))*")
_BARE_MARKER = re.compile(rf"\s*{_MARKER}\Z")
_OPENING = "([\"'“‘*"
_LONGEST_MARKER = 12
_INITIALS = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # "U.S", "p.m" before their last full stop
_WORD = re.compile(r"[^\W\d_]+")
_ALNUM = re.compile(r"[^\W_]")
_DIGIT = re.compile(r"\d")
_BOX = re.compile(r"<\w{1,12}>\s*\[")
_SAME = re.compile(r"\w+")  # what makes two sentences the same: words and numbers
REPEATED = "the same claim in the same words, without new evidence"


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
            if _ALNUM.search(text):
                found.append(Sentence(text, _is_visual(text, table)))
    return found


def _split(line: str, table: Rules) -> list[str]:
    begin = _BULLET.match(line).end()  # type: ignore[union-attr]  # matches always, if only the empty string
    pattern = _ASCII_END if line.isascii() else _END
    parts: list[str] = []
    spans: list[tuple[int, int]] | None = None  # looked for where there is an end inside the line
    at, size = 0, len(line)
    for end in pattern.finditer(line, begin):
        after = end.end()
        if after >= size:
            break
        if line[after] != " " and not _may_end(end, line):
            continue
        if spans is None:
            is_plain = "[" not in line and "<" not in line and "(" not in line
            spans = [] if is_plain else [m.span() for m in _PROTECTED.finditer(line, begin)]
        start = end.start()
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        if at < len(spans) and spans[at][0] <= start:
            continue
        if end.group() == "." and _is_no_end(line[max(begin, start - 24) : start], line, after, table):
            continue
        parts.append(line[begin:after])
        begin = after
    parts.append(line[begin:])
    return parts


def _may_end(end: re.Match[str], line: str) -> bool:
    """Whether after a Latin stop a blank follows; or, where the blank was forgotten ("red.The bus"), a word."""
    after = end.end()
    if line[after].isspace() or end.group(1)[-1] not in _LATIN:
        return True
    before = line[max(0, end.start() - 2) : end.start()]
    return len(before) == 2 and before.isalpha() and before.islower() and line[after : after + 2].istitle()


def _is_no_end(before: str, line: str, after: int, table: Rules) -> bool:
    """Whether a single full stop between `before` and `line[after:]` belongs to an abbreviation or a list marker ("2.")."""
    if len(before) <= _LONGEST_MARKER and _BARE_MARKER.match(before + "."):
        return True
    word = before[before.rfind(" ") + 1 :].lstrip(_OPENING).casefold()
    if word in table.abbreviations:
        return True
    is_unit = word in table.units or ("." in word and _INITIALS.fullmatch(word) is not None)
    if not is_unit and word not in table.numbered:
        return False
    follows = line[after : after + 20].lstrip()[:1]
    return follows.islower() if is_unit else follows.isdigit()


def _is_visual(text: str, table: Rules) -> bool:
    plain = text.lower()
    if table.trivial.match(plain.rstrip(" .!?。")):
        return False
    if not table.prefixes.match(plain) or _DIGIT.search(text) or _BOX.search(text):
        return True
    words = {word.casefold() for word in _WORD.findall(text)}
    singular = {w[:-1] for w in words if w.endswith("s")} | {w[:-2] for w in words if w.endswith("es")}
    return not table.visual_words.isdisjoint(words | singular)


class SemanticGroundingReward:
    """R_G, with detail {"sentences": [{"text", "visual", "label", "reason"}]} (label None for trivial ones)."""

    name = "semantic_grounding"
    report = Report("semantic_grounding", "semantic grounding", symbol="G", colour="#0072B2")

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
        sizes = tuple(map(image_size, images)) if is_original else model_sizes(images, context)
    except IMAGE_ERRORS:
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
    repeats = _repeats(split)
    for i, s in enumerate(split):
        said = next(of_visual) if s.visual else None
        label, reason = (said.label, said.reason) if said else (None, "")
        by_rule = label == "CORRECT" and i in repeats
        if by_rule:
            label, reason = "INCORRECT", REPEATED
        rule = {"by_rule": True} if by_rule else {}  # not the judge's own label
        detail.append({"text": s.text, "visual": s.visual, "label": label, "reason": reason, **rule})
    values = [float(d["label"] == "CORRECT") for d in detail if d["label"] not in (None, "SKIP")]
    if not values:
        return Score(None, "no sentence with a claim about the picture", False, {"sentences": detail})
    return Score.of(sum(values) / len(values), sentences=detail, judge=verdicts[0].judge)


def _repeats(split: Sequence[Sentence]) -> set[int]:
    """Places of sentences that were said before, word for word, with no box given in between."""
    last_said: dict[tuple[str, ...], int] = {}
    found, last_box = set(), -1
    for i, s in enumerate(split):
        has_box = _BOX.search(s.text) is not None
        words = tuple(_SAME.findall(s.text.casefold()))
        before = last_said.get(words)
        if before is not None and (has_box or last_box <= before):
            found.add(i)
        last_said[words] = i
        if has_box and before is None:  # the same box again is no news
            last_box = i
    return found


REWARD: Reward = SemanticGroundingReward()
