"""Exact verdicts on what a policy says about a scene: they stand in for the two LLM judges of the paper (Appendix E).

`judge_sentence` is the judge of semantic grounding (R_G of Eq. 2), `judge_conclusion` that of consistency (R_C of Eq. 2).
The paper asks language models; in the miniature world the truth is known, so nobody is asked. Pure functions of text
and scenes; no text makes them raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from miniworld import relations as rel
from miniworld.language import CUE, Asked, Claim, normalise, number_word, parse_claims, parse_question
from miniworld.scene import Scene

Label = Literal["CORRECT", "INCORRECT", "SKIP"]
BOX_IOU = 0.3  # a box sentence is true if its box overlaps the named thing's box by at least this much


@lru_cache(maxsize=16384)  # a sentence is read again as context of those that follow it
def _claims(text: str) -> tuple[Claim, ...]:
    return tuple(parse_claims(text))


@lru_cache(maxsize=16384)
def _asked(question: str) -> Asked | None:
    return parse_question(question)


def _meant(claim: Claim, asked: Asked | None, pictures: int) -> Claim:
    """`claim` with what it leaves to the question put in, so that two ways to say one thing have one key.

    The picture is the one it names, else the one the question names, else the last one; a statement "nearer" without a rival
    means the question's other option; behind the scene only left, right, closer and farther change.
    """
    if claim.kind == "moved":
        return replace(claim, picture=None, behind=False)
    index = claim.picture
    if index is None:
        index = asked.picture if asked is not None else None
    names = claim.names
    if claim.kind == "nearer" and len(names) == 2 and asked is not None and asked.family == "nearer":
        rival = [name for name in asked.options if name != names[1]]
        names = (*names, *rival) if asked.names[0] == names[0] and len(rival) == 1 else names
    turns = claim.kind == "relation" and rel.AXIS_OF[claim.value] != "vrel"
    return replace(claim, names=names, picture=pictures - 1 if index is None else index, behind=claim.behind and turns)


def _scene_of(scenes: Sequence[Scene], claim: Claim) -> Scene | None:
    index = claim.picture
    return scenes[index] if index is not None and 0 <= index < len(scenes) else None


def _nearer_holds(scene: Scene, claim: Claim) -> bool:
    """Nearer than the rival named, else than every other thing."""
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
    """Whether the pictures bear `claim` (as `_meant`) out, and why (not)."""
    if claim.kind == "unreadable":
        return False, "cannot be read as a claim about the picture"
    if claim.kind == "moved":
        return _moved_holds(scenes, claim), "movement between the two pictures"
    scene = _scene_of(scenes, claim)
    if scene is None:
        return False, "there is no such picture"
    if claim.kind == "count":
        return rel.NUMBERS[rel.count(scene, claim.names[0])] == claim.value, f"number of {claim.names[0]}s"
    things = [scene.by_name(name) for name in claim.names]
    missing = [name for name, thing in zip(claim.names, things, strict=True) if thing is None]
    if missing:
        return False, f"there is no {missing[0]} in the picture"
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
    return True, "the things named are there"  # exists, mention


def _repeated(scenes: Sequence[Scene], claim: Claim, context: Sequence[Claim]) -> bool:
    """Whether `claim` was made before, and no new and true box of one of its things, in a picture it is about, came since.

    A box is evidence itself, and nothing that came in between makes the same box new.
    """
    last = max((i for i, c in enumerate(context) if c.key() == claim.key()), default=None)
    if last is None:
        return False
    if claim.kind == "box":
        return True
    earlier = {c.key() for c in context[: last + 1]}
    fresh = (c for c in context[last + 1 :] if c.kind == "box" and c.key() not in earlier)
    about = (c for c in fresh if set(c.names) & set(claim.names) and claim.picture in (None, c.picture))
    return not any(_holds(scenes, c)[0] for c in about)


def judge_sentence(scenes: Sequence[Scene], question: str, context: Sequence[str], sentence: str) -> tuple[Label, str]:
    """Whether the pictures bear out `sentence`, said after the sentences `context` in reply to `question`.

    INCORRECT: a false claim, a thing or picture that is not there, an unreadable claim, a box whose IoU with the named
    thing is below BOX_IOU, a claim repeated without new evidence. SKIP: no claim about the picture. A text of several
    sentences is CORRECT if it has claims and all are. Returns the label and a reason.
    """
    asked = _asked(question)
    before = [_meant(c, asked, len(scenes)) for text in context for c in _claims(text)]
    label: Label = "SKIP"
    reason = "no claim about the picture"
    for said in _claims(sentence):
        if said.kind == "answer":
            continue
        claim = _meant(said, asked, len(scenes))
        true, why = _holds(scenes, claim)
        if not true:
            return "INCORRECT", why
        if claim.kind == "mention":
            continue
        if _repeated(scenes, claim, before):
            return "INCORRECT", "repeats an earlier claim without new evidence"
        before.append(claim)
        label, reason = "CORRECT", why
    return label, reason


def _implied(asked: Asked, claim: Claim) -> str | None:
    """The answer to the question that `claim` states, None if it is not about what is asked."""
    if claim.kind == "answer":
        return claim.value
    if asked.family == "count":
        return claim.value if claim.kind == "count" and claim.names == (asked.noun,) else None
    if asked.family == "moved":
        return claim.value if claim.kind == "moved" and claim.names == asked.names else None
    if asked.family == "nearer":
        if claim.kind != "nearer" or claim.names[0] != asked.names[0] or claim.value not in asked.options:
            return None
        return claim.value if set(claim.names[1:]) <= set(asked.options) else None
    if claim.kind != "relation" or rel.AXIS_OF[claim.value] != asked.axis or claim.behind != asked.behind:
        return None
    if claim.picture is not None and claim.picture != (asked.picture or 0):
        return None
    if claim.names == asked.names:
        return claim.value
    return rel.OPPOSITE[claim.value] if claim.names == asked.names[::-1] else None


def _statements(question: str, think: str) -> list[str]:
    """The answers that the statements of `think` imply, in order.

    What stands before the last "Wait, this seems off" was taken back by the trace itself and is left out.
    """
    asked = _asked(question)
    if asked is None:
        return []
    standing = CUE.split(think)[-1]
    implied = (_implied(asked, claim) for claim in _claims(standing))
    return [answer for answer in implied if answer is not None]


def stated_answer(question: str, think: str) -> str | None:
    """The option word that the last statement of `think` on what is asked implies; None if it states none."""
    statements = _statements(question, think)
    return statements[-1] if statements else None


def option_word(answer: str, choices: Sequence[str]) -> str:
    """`answer` as an option word: "B", "(b)" and "B. right" become the option at that place; anything else stays."""
    plain = normalise(answer).strip(" .!")
    words = [normalise(c).strip(" .!") for c in choices]
    if plain in words:
        return plain
    head, _, rest = plain.lstrip("(").replace(")", ".").partition(".")
    index = ord(head) - ord("a") if len(head) == 1 and head.isalpha() else -1
    if 0 <= index < len(words) and rest.strip() in ("", words[index]):
        return words[index]
    return number_word(plain.removeprefix("the "))


def judge_conclusion(question: str, think: str, answer: str, choices: Sequence[str]) -> tuple[bool, str]:
    """Whether `answer` follows from `think`: at least one statement on what is asked stands, and all agree with it.

    Looks at text alone, never at the picture. Returns the verdict and a reason.
    """
    statements = _statements(question, think)
    if not statements:
        return False, "the reasoning states nothing about what is asked"
    given = option_word(answer, choices)
    against = [s for s in statements if s != given]
    if against:
        return False, f"the reasoning states {against[-1]!r}, the answer is {given!r}"
    return True, f"all {len(statements)} statements say {given!r}"
