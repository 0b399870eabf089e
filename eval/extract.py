"""Which option did a response choose? Rules only; the extraction judge reads what the rules cannot (Section B.3).

Other harnesses read "the answer is B" as T, take the "A." of "view A." after the answer, or guess. Here an answer is decided only
where its words are known:

- A letter counts in the form of an answer ("B", "(B)", "B. box", "the answer is B", "…, B"). It beats the words of its reason.
- An option's text counts as the entire answer, or in a sentence that a pattern of `answer_words` covers completely, if it is the
  only option whose words stand there.
- Two candidates, a letter and a text that disagree, a letter that is not offered, a denied or doubted option give None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from eval import answer_words as say
from eval.answer_claims import (
    OTHER_LETTERS,
    QUESTION,
    UNDECIDED,
    Claim,
    claims_in,
    entire,
    lettered,
    reference,
    takes_back,
)
from eval.answer_options import Options
from eval.answer_sentences import sentences, stripped
from eval.answer_text import canonical, unboxed
from fgrpo.response import COMMON, Tags, answer_span

__all__ = ["answer_span", "extract_choice", "read_span"]

LONGEST_SPAN = 50_000  # characters of an answer; a longer one is left to the judge
_DEEPEST_BOX = 4  # boxes within boxes; deeper ones are left to the judge
_SHORT_LINE, _SHORT_UNSPACED = 3, 8  # words, or characters, of a line beside an open answer that may correct it
_SURE_OPENING = re.compile(r"no doubt(?!\S)")  # which is no "no"
_LABELED_LINE = re.compile(r"^(?:[^\W\d][\w'-]* ){1,3}[:=] (.+)$")


def extract_choice(text: str, choices: Sequence[str], tags: Tags = COMMON) -> int | None:
    """Index of the option that `text` (a full response, or an answer alone) chooses; None = leave it to a judge.

    Args:
        choices: option texts in the order of their letters.
        tags: the tags of the model's trace and answer. With `untagged`, the span may hold the reasoning (`read_reply`).
    """
    span = answer_span(text, tags)
    if span is None or not choices:
        return None
    options = Options(tuple(choices))
    return read_span(span, options) if tags.untagged is None else read_reply(span, options)


def read_reply(text: str, options: Options) -> int | None:
    """The option that a reply with its reasoning chooses: a letter, or an option's text alone, beats what only describes ("The tree is green.")."""
    choice = read_span(text, options)
    return read_span(text, options, with_reasoning=True) if choice is None else choice


def decided(sentence: str, options: Options) -> tuple[int, bool] | None:
    """(option, whether it is named as an answer) of one sentence; False for a sentence that only describes ("The car is blue.")."""
    choice = read_span(sentence, options)
    if choice is None:
        return None
    if unboxed(sentence)[1]:
        return choice, True
    whole = options.without_money(canonical(sentence))
    found = [claim for claim in claims_in(sentences(whole), options) if claim is not None]
    return choice, not found or any(claim.how != "free" for claim in found)


def states_answer(sentence: str) -> bool:
    """Whether a sentence begins as an answer does in any known language ("The answer is …", "答案：…"), whatever it names."""
    parts = sentences(canonical(sentence))
    return any(stripped(part)[1] and not QUESTION.search(part) for part in parts)


def read_span(span: str, options: Options, depth: int = 0, with_reasoning: bool = False) -> int | None:
    """The option that an answer without its trace chooses; boxed parts count before all others.

    Args:
        with_reasoning: the trace is in it (`_decide`); beside a box only stated answers count then.
    """
    if len(span) > LONGEST_SPAN or depth > _DEEPEST_BOX:
        return None
    outside, boxed = unboxed(span)
    if not boxed:
        return _decide(span, options, with_reasoning)
    contents = {read_span(content, options, depth + 1) for content in boxed}
    around = options.without_money(canonical(outside))
    before = re.split(r" [.!?;](?= )|\n", around.partition("¤")[0])[-1]
    after = around.rpartition("¤")[2]
    if (
        len(contents) != 1
        or None in contents
        or say.DENIAL.search(before)
        or takes_back(after)
        or after.strip().startswith("?")
    ):
        return None
    (choice,) = contents
    others = {
        c
        for part in around.split("¤")
        for claim in claims_in(sentences(part), options)
        if claim is not None and claim.how in (("stated",) if with_reasoning else ("stated", "letter", "text"))
        for c in claim.options
    }
    return choice if others <= {choice} else None


def _decide(span: str, options: Options, with_reasoning: bool = False) -> int | None:
    """The option that a span without boxed parts chooses.

    Args:
        with_reasoning: sentences that only describe ("The tree is green.") do not contradict a letter, or a line that is an
            option's text.
    """
    whole = options.without_money(canonical(span))
    if (found := entire(" ".join(whole.split()), options, span)) is not None:
        return _single(found)
    if options.polar and not _SURE_OPENING.match(whole) and (opening := say.OPENING.match(whole)):
        return _polar(opening, whole, options)
    parts = sentences(say.OF_OTHERS.sub("", whole))
    claims = _without_listing(claims_in(parts, options))
    if with_reasoning and options.polar and (choice := _last_yes_or_no(parts, claims, options)) is not None:
        return choice
    strong = [i for i, claim in enumerate(claims) if claim is not None and claim.how != "free"]
    free = {o for claim in claims if claim is not None and claim.how == "free" for o in claim.options}
    if strong:
        return _decide_by_statements(parts, claims, strong, free, options, with_reasoning)
    if any(takes_back(sentence) or OTHER_LETTERS.search(sentence) for sentence in parts):
        return None
    mentioned = {o for sentence in parts for o in options.mentioned(say.REASON.sub("", sentence))}
    return _single(free) if mentioned <= free else None


def _decide_by_statements(
    parts: Sequence[str],
    claims: Sequence[Claim | None],
    strong: Sequence[int],
    free: set[int],
    options: Options,
    with_reasoning: bool,
) -> int | None:
    """The option that letters, texts and stated answers (`strong`: their sentences) agree on, unless others contradict."""
    stating = [claim for i in strong if (claim := claims[i]) is not None]
    choice = _single({o for claim in stating for o in claim.options})
    if choice is None:
        return None
    marked = [options.marked(sentence, choice)[0] for sentence in parts]  # "C. Cannot tell" is sure of itself
    if any(say.UNSURE.search(sentence) for sentence in marked[: strong[0]]):
        return None
    if any(_casts_doubt(sentence, choice, options) for sentence in marked[strong[0] :]):
        return None
    beside = [i for i, claim in enumerate(claims) if claim is None and not (with_reasoning and i < strong[-1])]
    if not options.has_letters and any(_is_short(parts[i]) for i in beside):
        return None  # "red; white"
    if stating[-1].how == "stated":
        return choice
    if with_reasoning and any(_is_alone(parts, i, options) for i in strong):
        return choice
    if free - {choice}:
        return None
    others = [s for i, s in enumerate(parts) if i not in strong and not QUESTION.search(s)]
    has_letter = any(claim.how in ("letter", "stated") for claim in stating)
    return None if not has_letter and any(options.mentioned(s) - {choice} for s in others) else choice


def _is_alone(parts: Sequence[str], place: int, options: Options) -> bool:
    """Whether a sentence is a letter, perhaps with its text or a reason, or an option's text that nothing after it denies."""
    text = stripped(parts[place])[0]
    if text.endswith(";"):
        return False  # "left; the right one is a bus"
    if options.has_letters and lettered(text, options) is not None:
        return True
    after = [part for part in parts[place + 1 :] if options.mentioned(part)]
    return bool(entire(text, options)) and not any(map(say.DENIAL.search, after))


def _is_short(part: str) -> bool:
    """Whether a line has few words; in scripts without blanks, few characters."""
    return len(part.split()) <= _SHORT_LINE and (part.isascii() or len(part) <= _SHORT_UNSPACED)


def _without_listing(claims: list[Claim | None]) -> list[Claim | None]:
    """The claims without those of a list of the options ("A) left", "B) right") beside a stated answer."""
    listed = {claim.options for claim in claims if claim is not None and claim.how in ("letter", "text")}
    if len(listed) < 2 or not any(claim is not None and claim.how == "stated" for claim in claims):
        return claims
    return [None if claim is not None and claim.how in ("letter", "text") else claim for claim in claims]


def _casts_doubt(sentence: str, choice: int, options: Options) -> bool:
    """Whether a sentence beside the answer takes it back, or offers another option too."""
    if takes_back(sentence) or say.is_unlikely(sentence):
        return True
    if (label := _LABELED_LINE.match(sentence)) and reference(stripped(label[1])[0], options) - {choice}:
        return True  # "Edit: B"
    letters = {options.letter(m) for groups in OTHER_LETTERS.findall(sentence) for m in groups if m} - {choice}
    others = letters | (options.mentioned(sentence) - {choice})
    return bool(others and say.POSSIBLE.search(sentence) and not say.DENIAL.search(sentence)) and not QUESTION.search(
        sentence
    )


def _single(found: set[int] | frozenset[int]) -> int | None:
    (only,) = found if len(found) == 1 else (UNDECIDED,)
    return None if only == UNDECIDED else only


def _last_yes_or_no(parts: Sequence[str], claims: Sequence[Claim | None], options: Options) -> int | None:
    """The choice of the last sentence that opens with yes or no, with what follows it; None if an answer before it is another."""
    places = [i for i, part in enumerate(parts) if say.OPENING.match(part) and not _SURE_OPENING.match(part)]
    if not places:
        return None
    forms = (parts[places[-1]], " ".join(parts[places[-1] :]))
    read = {_polar(opening, form, options) for form in forms if (opening := say.OPENING.match(form))}
    choice = read.pop() if len(read) == 1 else None
    before = {o for claim in claims[: places[-1]] if claim is not None and claim.how != "free" for o in claim.options}
    return choice if choice is not None and before <= {choice} else None


def _polar(opening: re.Match[str], whole: str, options: Options) -> int | None:
    """The choice of an answer that opens with yes or no, unless what follows says otherwise."""
    word = say.YES_NO[opening.group(1)]
    rest = whole[opening.end() :].strip()
    denied = say.NEGATED.search(rest) is not None
    if say.RETRACTION.search(rest) or say.UNSURE.search(rest) or whole.endswith("?") or say.LIMITED.match(rest):
        return None
    if (options.has_letters and OTHER_LETTERS.search(rest)) or any(
        not options.is_polar(i) for i in options.mentioned(rest)
    ):
        return None
    if word == "yes":
        return None if denied else options.polar.get(word)
    if re.search(r"(?<!\S)yes(?!\S)", rest) or (not denied and say.CONFIRMS.match(rest)):
        return None
    return options.polar.get(word)
