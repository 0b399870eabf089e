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
from dataclasses import dataclass

from eval import answer_words as say
from eval.answer_options import Options, is_article
from eval.answer_sentences import sentences, stripped
from eval.answer_text import canonical, unboxed
from fgrpo.response import COMMON, Tags, answer_span

__all__ = ["answer_span", "extract_choice", "read_span"]

_BAD = -1  # a letter that is not offered, or a contradiction: the answer stays undecided
_LONGEST_SENTENCE = 1000  # characters; no pattern covers a longer sentence
_LONGEST_NAME = 2  # words before a colon that name something else than an answer
LONGEST_SPAN = 50_000  # characters of an answer; a longer one is left to the judge
_DEEPEST_BOX = 4  # boxes within boxes; deeper ones are left to the judge
_SHORT_LINE, _SHORT_UNSPACED = 3, 8  # words, or characters, of a line beside an open answer that may correct it
_SEPARATOR = re.compile(r"^(?: (?:[.:(),=;-]|->|=>|\.\.+|namely)(?!\S))+")
_QUESTION = re.compile(r"\?(?: [.!)\"?])*$")
_SUB_CLAUSE = re.compile(
    r"(?<!\S)(?:so|therefore|thus|hence|and|but|then|[,:;-]|->|=>)(?: (?:so|therefore|thus|hence|and|but|then|[,:]))*"
    r" (?=(?:the|my|our) (?:[a-z]+ ){0,3}(?:answer|option|choice) )"
)
_CONDITION = re.compile(
    r"(?<!\S)(?:if|whether|unless|suppose|assuming|say|says|said|claims?|doubt|think|wrong|false)(?!\S)"
)
_SURE_OPENING = re.compile(r"no doubt(?!\S)")  # which is no "no"
_NAMED = re.compile(r"(?<!\S)(?:view|figure|image|panel|point|car|line|see|object|person|box)$")
_OTHER_LETTERS = re.compile(
    r"\(([A-Z])\)|(?<!\S)(?:option|choice|letter|answer) ([A-Z])(?!\S)|(?<!\S)(?:or|and|nor|both|either|&|/|,) ([A-Z])(?!\S)|^ ?([A-Z])(?= [.,!?;]|$)"
)
_LABELED_LETTER = re.compile(r"[:=] \(?([A-Z])\)?(?!\S)")
_LABELED_LINE = re.compile(r"^(?:[^\W\d][\w'-]* ){1,3}[:=] (.+)$")
_TAIL_LABEL = re.compile(r" [:=]")
_ANSWER_NOUN = re.compile(r"(?<!\S)(?:answer|ans|option|choice|letter|response|pick)$")
_CAPITAL = re.compile(r"(?<!\S)\(?([A-Z])\)?(?!\S)")


@dataclass(frozen=True)
class _Claim:
    """What one sentence says: options that it chooses, and how: "stated" (the answer is …), "letter", "text", or "free"."""

    options: frozenset[int]
    how: str


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
    found = [claim for claim in _claims(sentences(whole), options) if claim is not None]
    return choice, not found or any(claim.how != "free" for claim in found)


def states_answer(sentence: str) -> bool:
    """Whether a sentence begins as an answer does in any known language ("The answer is …", "答案：…"), whatever it names."""
    parts = sentences(canonical(sentence))
    return any(stripped(part)[1] and not _QUESTION.search(part) for part in parts)


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
        or _takes_back(after)
        or after.strip().startswith("?")
    ):
        return None
    (choice,) = contents
    others = {
        c
        for part in around.split("¤")
        for claim in _claims(sentences(part), options)
        if claim is not None and claim.how in (("stated",) if with_reasoning else ("stated", "letter", "text"))
        for c in claim.options
    }
    return choice if others <= {choice} else None


def _takes_back(text: str) -> bool:
    return bool(say.RETRACTION.search(text) or say.DISAVOWAL.search(text) or say.UNSURE.search(text))


def _decide(span: str, options: Options, with_reasoning: bool = False) -> int | None:
    """The option that a span without boxed parts chooses.

    Args:
        with_reasoning: sentences that only describe ("The tree is green.") do not contradict a letter, or a line that is an
            option's text.
    """
    whole = options.without_money(canonical(span))
    if (found := _entire(" ".join(whole.split()), options, span)) is not None:
        return _single(found)
    if options.polar and not _SURE_OPENING.match(whole) and (opening := say.OPENING.match(whole)):
        return _polar(opening, whole, options)
    parts = sentences(say.OF_OTHERS.sub("", whole))
    claims = _without_listing(_claims(parts, options))
    if with_reasoning and options.polar and (choice := _last_yes_or_no(parts, claims, options)) is not None:
        return choice
    strong = [i for i, claim in enumerate(claims) if claim is not None and claim.how != "free"]
    free = {o for claim in claims if claim is not None and claim.how == "free" for o in claim.options}
    if strong:
        return _decide_by_statements(parts, claims, strong, free, options, with_reasoning)
    if any(_takes_back(sentence) or _OTHER_LETTERS.search(sentence) for sentence in parts):
        return None
    mentioned = {o for sentence in parts for o in options.mentioned(say.REASON.sub("", sentence))}
    return _single(free) if mentioned <= free else None


def _decide_by_statements(
    parts: Sequence[str],
    claims: Sequence[_Claim | None],
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
    others = [s for i, s in enumerate(parts) if i not in strong and not _QUESTION.search(s)]
    has_letter = any(claim.how in ("letter", "stated") for claim in stating)
    return None if not has_letter and any(options.mentioned(s) - {choice} for s in others) else choice


def _is_alone(parts: Sequence[str], place: int, options: Options) -> bool:
    """Whether a sentence is a letter, perhaps with its text or a reason, or an option's text that nothing after it denies."""
    text = stripped(parts[place])[0]
    if text.endswith(";"):
        return False  # "left; the right one is a bus"
    if options.has_letters and _lettered(text, options) is not None:
        return True
    after = [part for part in parts[place + 1 :] if options.mentioned(part)]
    return bool(_entire(text, options)) and not any(map(say.DENIAL.search, after))


def _is_short(part: str) -> bool:
    """Whether a line has few words; in scripts without blanks, few characters."""
    return len(part.split()) <= _SHORT_LINE and (part.isascii() or len(part) <= _SHORT_UNSPACED)


def _without_listing(claims: list[_Claim | None]) -> list[_Claim | None]:
    """The claims without those of a list of the options ("A) left", "B) right") beside a stated answer."""
    listed = {claim.options for claim in claims if claim is not None and claim.how in ("letter", "text")}
    if len(listed) < 2 or not any(claim is not None and claim.how == "stated" for claim in claims):
        return claims
    return [None if claim is not None and claim.how in ("letter", "text") else claim for claim in claims]


def _casts_doubt(sentence: str, choice: int, options: Options) -> bool:
    """Whether a sentence beside the answer takes it back, or offers another option too."""
    if _takes_back(sentence) or say.is_unlikely(sentence):
        return True
    if (label := _LABELED_LINE.match(sentence)) and _reference(stripped(label[1])[0], options) - {choice}:
        return True  # "Edit: B"
    letters = {options.letter(m) for groups in _OTHER_LETTERS.findall(sentence) for m in groups if m} - {choice}
    others = letters | (options.mentioned(sentence) - {choice})
    return bool(others and say.POSSIBLE.search(sentence) and not say.DENIAL.search(sentence)) and not _QUESTION.search(
        sentence
    )


def _single(found: set[int] | frozenset[int]) -> int | None:
    (only,) = found if len(found) == 1 else (_BAD,)
    return None if only == _BAD else only


def _claims(parts: Sequence[str], options: Options) -> list[_Claim | None]:
    return [_claim(sentence, options) for sentence in parts]


def _claim(sentence: str, options: Options) -> _Claim | None:
    """What a sentence claims; None for a question, and for a sentence that no pattern covers."""
    if len(sentence) > _LONGEST_SENTENCE:
        return None
    if _QUESTION.search(sentence):
        return None
    if clauses := list(_SUB_CLAUSE.finditer(sentence)):
        last = clauses[-1]
        if not _CONDITION.search(sentence[: last.start()]):
            found = _claim_of(sentence[last.end() :], options)
            if found is not None and found.how == "stated":
                return found
    return None if say.REASON_ALONE.match(sentence) else _claim_of(sentence, options)


def _claim_of(sentence: str, options: Options) -> _Claim | None:
    if (contrast := say.INSTEAD.match(say.REASON.sub("", sentence))) and len(
        other := _reference(contrast[1], options)
    ) == 1:
        found = _claim_of(contrast[2], options)  # "not A but B"
        if found is not None and len(found.options) == 1 and not found.options & {*other, _BAD}:
            return found if found.how != "free" else _Claim(found.options, "text")
    if (contrast := say.CONTRAST.match(say.REASON.sub("", sentence))) and len(
        other := _reference(contrast[2], options)
    ) == 1:
        found = _claim_of(contrast[1], options)  # "A, not B"
        if found is not None and len(found.options) == 1 and not found.options & {*other, _BAD}:
            return found if found.how != "free" else _Claim(found.options, "text")
    text, stated = stripped(sentence)
    how = "stated" if stated else ""
    concluded = "stated" if say.CONCLUSION.match(sentence) else how
    claimed = _entire(text, options, stated=stated)
    if claimed is not None:
        return _Claim(frozenset(claimed), concluded or ("text" if options.same(text) else "letter"))
    if options.has_letters:
        bare = say.IT_IS.sub("", text)
        for form in (text, bare) if bare != text else (text,):
            if (letters := _lettered(form, options)) is not None:
                return _Claim(frozenset(letters), concluded or "letter")
    if (texts := _worded(text, options)) is not None:
        return _Claim(frozenset(texts), how or "text")
    if options.has_letters and (tail := _tail(text, options)) is not None:
        return _Claim(frozenset(tail), how or "letter")
    if (option := _free(text, options)) is not None:
        return _Claim(frozenset({option}), how or "free")
    return None


def _entire(text: str, options: Options, span: str | None = None, stated: bool = False) -> set[int] | None:
    """The options that a text names if it is nothing else: a letter, an option's text, or both meanings of one letter."""
    if _QUESTION.search(text):
        return None
    found = options.same(text, span)
    if options.has_letters and (m := re.fullmatch(rf"({say.LETTER}|[a-z](?!\S)){say.END}", text)):
        if stated and m.group(1) == "a" and text == "a":
            return None  # "The answer is a": perhaps truncated after an article
        index = options.letter(m.group(1).strip("()"))
        found |= set() if index == _BAD and found else {index}
    return found or None


def _lettered(text: str, options: Options) -> set[int] | None:
    """The options of a text that begins with a letter: {letter}, {letter, text}, or with `_BAD`."""
    m = re.match(rf"{say.LETTER}|[a-z](?= [.):])|[a-z](?= is (?:the )?(?:correct|right|best)(?!\S))", text)
    if m is None:
        return None
    letter, rest = options.letter(m.group().strip("()")), text[m.end() :]
    main = say.REASON.sub("", rest)
    if re.fullmatch(say.END, main) or say.AFTERTHOUGHT.match(main):
        return {letter}
    if say.VERDICT.match(main):
        return {letter} | options.mentioned(main)
    separator = _SEPARATOR.match(main)
    main_tokens = f"{m.group()}{main}".split()
    after = main[separator.end() if separator else 0 :].strip()
    if after and (texts := options.same(after)):
        return texts if separator is None and is_article(main_tokens) else {letter} | texts
    if separator is None or not after:
        return None
    if say.REASON_ALONE.match(after):
        return {letter}
    return {letter, *_of_label(after, letter, options)}


def _of_label(after: str, letter: int, options: Options) -> set[int]:
    """What the words after "B." or "B," say besides: other options, a denial or a doubt; nothing if they explain."""
    others = {options.letter(found) for groups in _OTHER_LETTERS.findall(after) for found in groups if found}
    others |= {options.letter(found) for found in _LABELED_LETTER.findall(after)}
    others |= options.mentioned(after)
    if say.is_unlikely(after):
        others.add(_BAD)
    if (claim := _claim_of(after, options)) is not None:
        others |= claim.options
    if say.DENIAL.search(after) or say.POSSIBLE.search(after) or _takes_back(after) or _QUESTION.search(after):
        others.add(_BAD)
    return others


def _reference(text: str, options: Options) -> set[int]:
    """The option that a piece of a sentence names, by letter or text; empty if it is more than that."""
    found = _entire(text, options) or _entire(re.sub(r"^(?:(?:on|to|at|in|the|option|choice) )+", "", text), options)
    return found or set()


def _tail(text: str, options: Options) -> set[int] | None:
    """The letter at the end of a sentence: "…, B", "… (B)"."""
    m = re.match(
        rf"^(.+?)(?:(?: [,:;-]| so| therefore| thus| hence| ->| =>)+ ({say.LETTER})|(?: option| choice)? (\([A-Z]\)))(?: option| choice)?{say.END}",
        text,
    )
    if m is None:
        m = re.match(rf"^(.+?) (?:option|choice) ({say.LETTER})()" + say.END, text)
    if m is None:
        return None
    before = m.group(1)
    letter = options.letter((m.group(2) or m.group(3)).strip("()"))
    is_short = len(before.split()) <= _LONGEST_NAME
    names_answer = _ANSWER_NOUN.search(before) is not None
    if _TAIL_LABEL.match(text, m.end(1)) and (is_short or names_answer) and not say.OWN_ANSWER.search(before):
        return None  # "Grade: B", "Their answer: B"
    if named := options.same(before):
        return {letter} | named
    if _CAPITAL.search(before) or say.DENIAL.search(before) or say.POSSIBLE.search(before) or say.UNSURE.search(before):
        return None
    if re.search(r"(?<!\S)(?:between|from|if)(?!\S)", before) or (m.group(3) and _NAMED.search(before)):
        return None
    return {letter} | options.mentioned(before)


def _worded(text: str, options: Options) -> set[int] | None:
    """The options of a text that is an option's text with a verdict, a reason, an afterthought, or a contrast."""
    main = say.REASON.sub("", text)
    if main != text and (found := options.same(main)):
        return found
    for index, pattern in options.patterns:
        m = re.match(
            rf"^(?:(?:to|on|at|in|the|a|an|(?P<degree>{say.DEGREE})) )*{pattern.pattern}(?: side| hand side)?", main
        )
        if m is None:
            continue
        rest = main[m.end() :]
        if m["degree"] and re.fullmatch(say.END, rest):
            return {index} | (options.mentioned(main) - {index})
        if say.VERDICT.match(rest) or say.AFTERTHOUGHT.match(rest):
            return {index} | (options.mentioned(main) - {index})
    return None


def _free(text: str, options: Options) -> int | None:
    """The one option in a sentence that a pattern covers completely ("The cup is on the left side of the table.")."""
    main = say.REASON.sub("", text)
    main = f"a{main[1:]}" if main.startswith("A ") and is_article(main.split()) else main
    found = options.mentioned(main)
    if len(found) != 1:
        return None
    (index,) = found
    marked, count = options.marked(main, index)
    if count != 1 or options.is_polar(index):
        return None
    if options.is_number(index):
        return index if _is_count(marked, options, index) else None
    if _is_doubted(marked):
        return None
    m = say.PLACED.match(marked)
    if m is None:
        return index if say.STANDS.match(marked) else None
    is_adverb = options.keys[index][-1:] in (("right",), ("left",))
    if is_adverb and (
        m.group("object") or re.match(r"^(?:that|this|they|these|you|i|we)(?:'s|'re|'m| is| are| am)", marked)
    ):
        return None  # "right the", "that is right"
    return index


def _is_count(marked: str, options: Options, index: int) -> bool:
    """Whether a sentence counts or measures: "There are @0 chairs in the image.". After 1 any noun may stand, else a plural."""
    if len(options.choices) > 1:
        marked = re.sub(rf"(?<!\S)(?:{say.ABOUT})(?!\S)", "ABOUT", marked)
    m = say.COUNT.match(marked)
    if m is None or say.NUMBER_ENDS.search(marked.partition("@")[2]) or _is_doubted(marked.partition("@")[0]):
        return False
    is_one = options.keys[index] == ("n1",) and not marked.startswith("@")
    return is_one or say.PLURAL.match(m.group("nouns")) is not None


def _is_doubted(marked: str) -> bool:
    return bool(say.DENIAL.search(marked) or say.DOUBT.search(marked) or say.UNSURE.search(marked))


def _last_yes_or_no(parts: Sequence[str], claims: Sequence[_Claim | None], options: Options) -> int | None:
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
    if (options.has_letters and _OTHER_LETTERS.search(rest)) or any(
        not options.is_polar(i) for i in options.mentioned(rest)
    ):
        return None
    if word == "yes":
        return None if denied else options.polar.get(word)
    if re.search(r"(?<!\S)yes(?!\S)", rest) or (not denied and say.CONFIRMS.match(rest)):
        return None
    return options.polar.get(word)
