"""Exact verdicts on a policy's statements about a scene; they replace the two LLM judges of the paper (Appendix E).

`judge_sentence` is the judge of semantic grounding (R_G of Eq. 2), `judge_conclusion` that of consistency (R_C of Eq. 2). The
paper uses language models as judges; in the miniature world the truth is known, so no model is needed. Pure functions of text
and scenes that never raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from miniworld import relations as rel
from miniworld.language import CUE, Claim, ParsedQuestion, normalise, number_word, parse_claims, parse_question
from miniworld.scene import Scene

Label = Literal["CORRECT", "INCORRECT", "SKIP"]
BOX_IOU = 0.3  # minimum IoU of a box sentence with the box of the thing it names


@lru_cache(maxsize=16384)  # each sentence is parsed again as context of later sentences
def _claims(text: str) -> tuple[Claim, ...]:
    return tuple(parse_claims(text))


@lru_cache(maxsize=16384)
def _parsed(question: str) -> ParsedQuestion | None:
    return parse_question(question)


def _resolved(claim: Claim, parsed: ParsedQuestion | None, image_count: int) -> Claim:
    """`claim` with its implicit parts filled in from the question, so that equivalent claims have equal keys.

    The image is the one that the claim names, else the one that the question names, else the last one. "Nearer" without a rival
    refers to the question's other option. From behind, only left, right, closer and farther change.
    """
    if claim.kind == "moved":
        return replace(claim, image_index=None, behind=False)
    index = claim.image_index
    if index is None:
        index = parsed.image_index if parsed is not None else None
    names = claim.names
    if claim.kind == "nearer" and len(names) == 2 and parsed is not None and parsed.family == "nearer":
        rival = [name for name in parsed.options if name != names[1]]
        names = (*names, *rival) if parsed.names[0] == names[0] and len(rival) == 1 else names
    is_mirrored = claim.kind == "relation" and rel.AXIS_OF[claim.value] != "vrel"
    return replace(
        claim, names=names, image_index=image_count - 1 if index is None else index, behind=claim.behind and is_mirrored
    )


def _scene_of(scenes: Sequence[Scene], claim: Claim) -> Scene | None:
    index = claim.image_index
    return scenes[index] if index is not None and 0 <= index < len(scenes) else None


def _nearer_holds(scene: Scene, claim: Claim) -> bool:
    """Whether the subject is nearer to the target than the named rival is, or than every other thing is."""
    subject, target = claim.names[0], claim.names[1]
    if len(claim.names) == 3:
        rivals = [claim.names[2]]
    else:
        rivals = [t.name for t in scene.things if t.name not in (subject, target)]
    a, b = scene.by_name(subject), scene.by_name(target)
    if a is None or b is None or a is b:
        return False
    others = [scene.by_name(name) for name in rivals]
    return all(c is not None and rel.nearer(a.box, b.box, c.box) == 0 for c in others)


def _moved_holds(scenes: Sequence[Scene], claim: Claim) -> bool:
    if len(scenes) < 2:
        return False
    before, after = scenes[0].by_name(claim.names[0]), scenes[1].by_name(claim.names[0])
    if before is None or after is None:
        return False
    return rel.relation("hrel", after.box, before.box) == claim.value


def _holds(scenes: Sequence[Scene], claim: Claim) -> tuple[bool, str]:
    """Whether `claim` (from `_resolved`) is true in the images, and the reason."""
    if claim.kind == "unreadable":
        return False, "not a readable claim about the image"
    if claim.kind == "moved":
        return _moved_holds(scenes, claim), "movement between the two images"
    scene = _scene_of(scenes, claim)
    if scene is None:
        return False, "no such image"
    if claim.kind == "count":
        return rel.NUMBERS[rel.count(scene, claim.names[0])] == claim.value, f"number of {claim.names[0]}s"
    things = [scene.by_name(name) for name in claim.names]
    missing = [name for name, thing in zip(claim.names, things, strict=True) if thing is None]
    if missing:
        return False, f"no {missing[0]} in the image"
    if claim.kind == "box":
        thing = things[0]
        assert thing is not None
        overlap = rel.iou(claim.box, thing.box)
        return overlap >= BOX_IOU, f"IoU {overlap:.2f} with the {thing.name}"
    if claim.kind == "relation":
        a, b = things
        assert a is not None and b is not None
        axis = rel.AXIS_OF[claim.value]
        truth = rel.relation(axis, a.box, b.box)
        if truth is not None and claim.behind:
            truth = rel.from_behind(axis, truth)
        return truth == claim.value, f"truth: {truth or 'neither'}"
    if claim.kind == "nearer":
        return _nearer_holds(scene, claim), "distances between centres"
    return True, "the named things exist"  # exists, mention


def _repeated(scenes: Sequence[Scene], claim: Claim, context: Sequence[Claim]) -> bool:
    """Whether `claim` was made before, without new evidence since.

    Evidence is a new, true box of one of its things in an image that the claim is about. A box claim is evidence itself, so the
    same box is never new again.
    """
    last = max((i for i, c in enumerate(context) if c.key() == claim.key()), default=None)
    if last is None:
        return False
    if claim.kind == "box":
        return True
    earlier = {c.key() for c in context[: last + 1]}
    fresh = (c for c in context[last + 1 :] if c.kind == "box" and c.key() not in earlier)
    about = (c for c in fresh if set(c.names) & set(claim.names) and claim.image_index in (None, c.image_index))
    return not any(_holds(scenes, c)[0] for c in about)


def judge_sentence(scenes: Sequence[Scene], question: str, context: Sequence[str], sentence: str) -> tuple[Label, str]:
    """Whether `sentence`, which follows the sentences of `context` in a reply to `question`, is true in the images.

    INCORRECT: a false or unreadable claim, a thing or image that does not exist, a box whose IoU with the named thing is below
    BOX_IOU, or a claim repeated without new evidence. SKIP: no claim about the image. A text of several sentences is CORRECT if
    it has claims and all are correct.

    Returns:
        The label and a reason.
    """
    parsed = _parsed(question)
    before = [_resolved(c, parsed, len(scenes)) for text in context for c in _claims(text)]
    label: Label = "SKIP"
    reason = "no claim about the image"
    for stated in _claims(sentence):
        if stated.kind == "answer":
            continue
        claim = _resolved(stated, parsed, len(scenes))
        holds, explanation = _holds(scenes, claim)
        if not holds:
            return "INCORRECT", explanation
        if claim.kind == "mention":
            continue
        if _repeated(scenes, claim, before):
            return "INCORRECT", "repeats an earlier claim without new evidence"
        before.append(claim)
        label, reason = "CORRECT", explanation
    return label, reason


def _implied(parsed: ParsedQuestion, claim: Claim) -> str | None:
    """The answer to the question that `claim` implies; None if the claim does not concern the question."""
    if claim.kind == "answer":
        return claim.value
    if parsed.family == "count":
        return claim.value if claim.kind == "count" and claim.names == (parsed.noun,) else None
    if parsed.family == "moved":
        return claim.value if claim.kind == "moved" and claim.names == parsed.names else None
    if parsed.family == "nearer":
        if claim.kind != "nearer" or claim.names[0] != parsed.names[0] or claim.value not in parsed.options:
            return None
        return claim.value if set(claim.names[1:]) <= set(parsed.options) else None
    if claim.kind != "relation" or rel.AXIS_OF[claim.value] != parsed.axis or claim.behind != parsed.behind:
        return None
    if claim.image_index is not None and claim.image_index != (parsed.image_index or 0):
        return None
    if claim.names == parsed.names:
        return claim.value
    return rel.OPPOSITE[claim.value] if claim.names == parsed.names[::-1] else None


def _statements(question: str, think: str) -> list[str]:
    """The answers that the statements of `think` imply, in order.

    Statements before the last "Wait, this seems off" are excluded, because the trace retracts them itself.
    """
    parsed = _parsed(question)
    if parsed is None:
        return []
    remaining = CUE.split(think)[-1]
    implied = (_implied(parsed, claim) for claim in _claims(remaining))
    return [answer for answer in implied if answer is not None]


def stated_answer(question: str, think: str) -> str | None:
    """The option word that the last relevant statement of `think` implies; None if there is none."""
    statements = _statements(question, think)
    return statements[-1] if statements else None


def option_word(answer: str, choices: Sequence[str]) -> str:
    """`answer` as an option word: "B", "(b)" and "B. right" become the option at that index; other text is unchanged."""
    normalized = normalise(answer).strip(" .!")
    words = [normalise(c).strip(" .!") for c in choices]
    if normalized in words:
        return normalized
    head, _, remainder = normalized.lstrip("(").replace(")", ".").partition(".")
    index = ord(head) - ord("a") if len(head) == 1 and head.isalpha() else -1
    if 0 <= index < len(words) and remainder.strip() in ("", words[index]):
        return words[index]
    return number_word(normalized.removeprefix("the "))


def judge_conclusion(question: str, think: str, answer: str, choices: Sequence[str]) -> tuple[bool, str]:
    """Whether `answer` follows from `think`: at least one relevant statement is not retracted, and all of them imply `answer`.

    Uses the text only, never the image.

    Returns:
        The verdict and a reason.
    """
    statements = _statements(question, think)
    if not statements:
        return False, "the reasoning states nothing about the question"
    option = option_word(answer, choices)
    conflicting = [s for s in statements if s != option]
    if conflicting:
        return False, f"the reasoning states {conflicting[-1]!r}, the answer is {option!r}"
    return True, f"all {len(statements)} statements imply {option!r}"
