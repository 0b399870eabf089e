"""What one sentence of an answer claims: the options that it chooses, and how it names them. `eval.extract` decides between sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from eval import answer_words as say
from eval.answer_options import Options, is_article
from eval.answer_sentences import stripped

UNDECIDED = -1  # a letter that is not offered, or a contradiction: the answer stays undecided
_LONGEST_SENTENCE = 1000  # characters; no pattern covers a longer sentence
_LONGEST_NAME = 2  # words before a colon that name something else than an answer
_SEPARATOR = re.compile(r"^(?: (?:[.:(),=;-]|->|=>|\.\.+|namely)(?!\S))+")
QUESTION = re.compile(r"\?(?: [.!)\"?])*$")
_SUB_CLAUSE = re.compile(
    r"(?<!\S)(?:so|therefore|thus|hence|and|but|then|[,:;-]|->|=>)(?: (?:so|therefore|thus|hence|and|but|then|[,:]))*"
    r" (?=(?:the|my|our) (?:[a-z]+ ){0,3}(?:answer|option|choice) )"
)
_CONDITION = re.compile(
    r"(?<!\S)(?:if|whether|unless|suppose|assuming|say|says|said|claims?|doubt|think|wrong|false)(?!\S)"
)
_NAMED = re.compile(r"(?<!\S)(?:view|figure|image|panel|point|car|line|see|object|person|box)$")
OTHER_LETTERS = re.compile(
    r"\(([A-Z])\)|(?<!\S)(?:option|choice|letter|answer) ([A-Z])(?!\S)|(?<!\S)(?:or|and|nor|both|either|&|/|,) ([A-Z])(?!\S)|^ ?([A-Z])(?= [.,!?;]|$)"
)
_LABELED_LETTER = re.compile(r"[:=] \(?([A-Z])\)?(?!\S)")
_TAIL_LABEL = re.compile(r" [:=]")
_ANSWER_NOUN = re.compile(r"(?<!\S)(?:answer|ans|option|choice|letter|response|pick)$")
_CAPITAL = re.compile(r"(?<!\S)\(?([A-Z])\)?(?!\S)")


@dataclass(frozen=True)
class Claim:
    """What one sentence says: options that it chooses, and how: "stated" (the answer is …), "letter", "text", or "free"."""

    options: frozenset[int]
    how: str


def claims_in(parts: Sequence[str], options: Options) -> list[Claim | None]:
    """What each sentence claims (`_claim`)."""
    return [_claim(sentence, options) for sentence in parts]


def _claim(sentence: str, options: Options) -> Claim | None:
    """What a sentence claims; None for a question, and for a sentence that no pattern covers."""
    if len(sentence) > _LONGEST_SENTENCE:
        return None
    if QUESTION.search(sentence):
        return None
    if clauses := list(_SUB_CLAUSE.finditer(sentence)):
        last = clauses[-1]
        if not _CONDITION.search(sentence[: last.start()]):
            found = _claim_of(sentence[last.end() :], options)
            if found is not None and found.how == "stated":
                return found
    return None if say.REASON_ALONE.match(sentence) else _claim_of(sentence, options)


def _claim_of(sentence: str, options: Options) -> Claim | None:
    if (contrast := say.INSTEAD.match(say.REASON.sub("", sentence))) and len(
        other := reference(contrast[1], options)
    ) == 1:
        found = _claim_of(contrast[2], options)  # "not A but B"
        if found is not None and len(found.options) == 1 and not found.options & {*other, UNDECIDED}:
            return found if found.how != "free" else Claim(found.options, "text")
    if (contrast := say.CONTRAST.match(say.REASON.sub("", sentence))) and len(
        other := reference(contrast[2], options)
    ) == 1:
        found = _claim_of(contrast[1], options)  # "A, not B"
        if found is not None and len(found.options) == 1 and not found.options & {*other, UNDECIDED}:
            return found if found.how != "free" else Claim(found.options, "text")
    text, stated = stripped(sentence)
    how = "stated" if stated else ""
    concluded = "stated" if say.CONCLUSION.match(sentence) else how
    claimed = entire(text, options, stated=stated)
    if claimed is not None:
        return Claim(frozenset(claimed), concluded or ("text" if options.same(text) else "letter"))
    if options.has_letters:
        bare = say.IT_IS.sub("", text)
        for form in (text, bare) if bare != text else (text,):
            if (letters := lettered(form, options)) is not None:
                return Claim(frozenset(letters), concluded or "letter")
    if (texts := _worded(text, options)) is not None:
        return Claim(frozenset(texts), how or "text")
    if options.has_letters and (tail := _tail(text, options)) is not None:
        return Claim(frozenset(tail), how or "letter")
    if (option := _free(text, options)) is not None:
        return Claim(frozenset({option}), how or "free")
    return None


def entire(text: str, options: Options, span: str | None = None, stated: bool = False) -> set[int] | None:
    """The options that a text names if it is nothing else: a letter, an option's text, or both meanings of one letter."""
    if QUESTION.search(text):
        return None
    found = options.same(text, span)
    if options.has_letters and (m := re.fullmatch(rf"({say.LETTER}|[a-z](?!\S)){say.END}", text)):
        if stated and m.group(1) == "a" and text == "a":
            return None  # "The answer is a": perhaps truncated after an article
        index = options.letter(m.group(1).strip("()"))
        found |= set() if index == UNDECIDED and found else {index}
    return found or None


def lettered(text: str, options: Options) -> set[int] | None:
    """The options of a text that begins with a letter: {letter}, {letter, text}, or with `UNDECIDED`."""
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
    others = {options.letter(found) for groups in OTHER_LETTERS.findall(after) for found in groups if found}
    others |= {options.letter(found) for found in _LABELED_LETTER.findall(after)}
    others |= options.mentioned(after)
    if say.is_unlikely(after):
        others.add(UNDECIDED)
    if (claim := _claim_of(after, options)) is not None:
        others |= claim.options
    if say.DENIAL.search(after) or say.POSSIBLE.search(after) or takes_back(after) or QUESTION.search(after):
        others.add(UNDECIDED)
    return others


def reference(text: str, options: Options) -> set[int]:
    """The option that a piece of a sentence names, by letter or text; empty if it is more than that."""
    found = entire(text, options) or entire(re.sub(r"^(?:(?:on|to|at|in|the|option|choice) )+", "", text), options)
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


def takes_back(text: str) -> bool:
    """Whether words retract an answer, refuse one, or are unsure of it."""
    return bool(say.RETRACTION.search(text) or say.DISAVOWAL.search(text) or say.UNSURE.search(text))
