"""Which option did a response choose? Rules only; the extraction judge reads what the rules cannot (Section B.3).

Other harnesses read "the answer is B" as T, take the "A." of "view A." after the answer, or guess. Here a letter counts only in the
form of an answer, and an option's text only if it is the one option whose words occur. Two candidates, a negated one, or a letter
that contradicts a text give None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fgrpo.options import letter, letter_index
from fgrpo.response import COMMON, Tags, answer_span
from rewards.task import matches

_LETTER = r"(?:\((?P<paren>[A-Za-z])\)|(?P<bare>[A-Z])(?![\w'’]))"
# What may follow a letter that is not an article: an end, punctuation, or a reason.
_AFTER = r"(?=\s*(?:$|[.,;:!?)\n])|\s+(?:because|since|as|based|given|due|which)\b)"
_ANSWER = r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice|one|letter))\b(?:\s+to\s+(?:the|this)\s+question)?"
_BE = r"\s*(?:\b(?:is|was|would\s+be|should\s+be|must\s+be)\b)?\s*[:=]?\s*(?:\b(?:option|choice|letter)\b\s*)?"
_FORMS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?i:{_ANSWER}{_BE}){_LETTER}{_AFTER}",
        rf"(?i:\b(?:choose|pick|select|choosing|go\s+with)\s+(?:the\s+)?(?:option|choice|answer|letter)?\s*){_LETTER}{_AFTER}",
        rf"(?i:{_ANSWER}\s*(?:is\s*)?[:=]\s*)(?P<bare>[a-z])\s*[.]?\s*$",
        rf"(?:^|(?<=\s)){_LETTER}\s+is\s+(?i:the\s+)?(?i:(?:correct|right|best)\s+(?:answer|option|choice|one)\b|correct\b|answer\b)",
        rf"[,:]\s*{_LETTER}\W*$",  # "…, B" at the end
        r"\((?P<paren>[A-Za-z])\)\W*$",
        rf"(?i:\b(?:option|choice))\s+{_LETTER}\W*$",
        rf"\n\s*{_LETTER}[.)]?\s*$",  # a last line of its own
        rf"^\s*(?i:(?:option|choice)\s+)?{_LETTER}\s*(?=[.):,\n]|$)",  # "B. box", "B) box", "B, since …"
        r"^\s*\((?P<paren>[A-Za-z])\)",
    )
)
# Forms that state the answer's letter: other letters in the text ("…, as seen in view A") are then not candidates.
_STATED = _FORMS[:4]
# Letters named as options, and lists of them: "(A) or (B)", "option A or option B", "A, B".
_NAMED = re.compile(r"\(([A-Za-z])\)|(?i:\b(?:option|choice))\s+([A-Z])(?![\w'’])")
_LIST = re.compile(r"(?<![\w'’])[A-Z](?:\s*(?:[,/&]|,?\s*\b(?:or|and)\b)\s*[A-Z](?![\w'’]))+")
_IT_IS = re.compile(r"^(?:it|this|that|they|these|there)(?:['’]s|\s+(?:is|are))\s+", re.IGNORECASE)
_YES_NO = re.compile(r"(yes|no)\s*[,.;:]", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|no|cannot|without|incorrect|wrong|unlikely|except)\b|n['’]t\b|\brather\s+than\b|\binstead\s+of\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.;!?\n]|,?\s+but\s+")
_WORD = re.compile(r"-?\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*|\d\w*")
NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_MARKUP = re.compile(r"\\(?:boxed|text|mathrm)\{([^{}]*)\}")
_LEAD = re.compile(
    rf"^\s*(?:so\s*,?\s*|therefore\s*,?\s*)?(?:the\s+)?(?:final\s+)?{_ANSWER}\s*(?:is|:|=|would\s+be)*\s*",
    re.IGNORECASE,
)


def extract_choice(text: str, choices: Sequence[str], tags: Tags = COMMON) -> int | None:
    """Index of the option that `text` (a full response, or an answer alone) chooses; None = leave it to a judge.

    A letter counts as "B", "(B)", "B. box", "the answer is B", "…, B" at the end, or as the answer block; never as an article
    or a stray capital. Never guesses.
    """
    span = answer_span(text, tags)
    if span is None or not choices:
        return None
    for _ in range(2):
        span = _MARKUP.sub(r"\1", span)
    span = re.sub(r"[*`\"“”$]", "", span).strip()
    done, choice = _entire(_LEAD.sub("", span), choices)
    if done:
        return choice
    candidates = [*_lettered(span, choices), *_texts(span, choices)]
    if any(_is_negated(span, start, end) for _, start, end in candidates):
        return None
    indices = {index for index, _, _ in candidates}
    if not any(form.search(span) for form in _STATED):
        indices |= _mentioned(span, choices)
    return indices.pop() if len(indices) == 1 else None


def same_open_answer(text: str, gold: str) -> bool:
    """Whether `text` gives the free-form answer `gold` (questions without options: a word, a phrase, or a number).

    True for: the same text, ignoring case, punctuation, "the answer is" and "it is"; "yes" or "no" at the start of a sentence
    ("Yes, it is"); for a number, the only number in the text, in digits or words, not negated ("There are three lanes" is "3";
    "3 or 4", "not 3" and "13" are not).
    """
    span = _LEAD.sub("", re.sub(r"[*`\"“”$]", "", text)).strip()
    plain = _IT_IS.sub("", span)
    if matches(span, gold, ()) or (words(plain) and words(plain) == words(gold)):
        return True
    if words(gold) in (("yes",), ("no",)) and (opening := _YES_NO.match(span)):
        return {word for word in words(span) if word in ("yes", "no")} == {opening.group(1).lower()} == set(words(gold))
    gold_number = _number(gold.strip().rstrip("."))
    if gold_number is None or _NEGATION.search(span):
        return False
    numbers = [number for token in _WORD.findall(span) if (number := _number(token)) is not None]
    return numbers == [gold_number]


def _number(word: str) -> float | None:
    """The number that a word denotes, in digits or spelled out; None if it is no number."""
    if word.lower() in NUMBER_WORDS:
        return float(NUMBER_WORDS.index(word.lower()))
    return float(word) if re.fullmatch(r"-?\d+(?:\.\d+)?", word) else None


def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers of `text`, without a leading article."""
    tokens = tuple(m.group().lower().replace("’", "'") for m in _WORD.finditer(text))
    return tokens[1:] if len(tokens) > 1 and tokens[0] in ("the", "a", "an") else tokens


def _entire(span: str, choices: Sequence[str]) -> tuple[bool, int | None]:
    """(decided, choice) for an answer that is only a letter, a text, or a letter and a text."""
    same = {i for i, choice in enumerate(choices) if words(choice) and words(choice) == words(span)}
    if m := re.fullmatch(r"\W*([A-Za-z])\W*", span):
        index = letter_index(m.group(1), choices)
        same |= set() if index is None else {index}
    elif m := re.fullmatch(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):,]|([A-Z])(?=\s))\s*[:\-–]?\s*(.+)", span, re.DOTALL):
        index = letter_index(m.group(1) or m.group(2) or m.group(3), choices)
        named = {i for i, choice in enumerate(choices) if words(choice) and words(choice) == words(m.group(4))}
        if index is not None and named and not (m.group(3) == "A" and same):  # "A box" may be an article and a text
            return True, index if named == {index} else None
    return bool(same), same.pop() if len(same) == 1 else None


def _lettered(span: str, choices: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(option, start, end) of each letter in the form of an answer."""
    for form in _FORMS:
        for m in form.finditer(span):
            group = "paren" if m.groupdict().get("paren") else "bare"
            index = letter_index(m.group(group), choices)
            if index is not None:
                yield index, m.start(group), m.end(group)
    for i, choice in enumerate(choices):  # "the answer is B box": the letter followed by its own text
        pattern = rf"(?i:{_ANSWER}{_BE})(?P<bare>{letter(i)})\s+(?i:(?:the\s+)?{re.escape(choice)})(?!\w)"
        for m in re.finditer(pattern, span):
            yield i, m.start("bare"), m.end("bare")


def _mentioned(span: str, choices: Sequence[str]) -> set[int]:
    """Options that the span names by their letters, whether as the answer or not."""
    named = [m.group(1) or m.group(2) for m in _NAMED.finditer(span)]
    named += [capital for m in _LIST.finditer(span) for capital in re.findall(r"\b[A-Z]\b", m.group())]
    return {index for capital in named if (index := letter_index(capital, choices)) is not None}


def _texts(span: str, choices: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(option, start, end) of each place where all of an option's words occur in a row."""
    tokens = list(_WORD.finditer(span))
    plain = [t.group().lower().replace("’", "'") for t in tokens]
    for index, choice in enumerate(choices):
        option = list(words(choice))
        if not option or (len(option) == 1 and len(option[0]) == 1 and option[0].isalpha()):
            continue  # a one-letter option counts only as the entire answer
        for start in range(len(plain) - len(option) + 1):
            if plain[start : start + len(option)] == option:
                yield index, tokens[start].start(), tokens[start + len(option) - 1].end()


def _is_negated(span: str, start: int, end: int) -> bool:
    """Whether the clause around span[start:end], without that piece, holds a negation."""
    cuts = [m for m in _CLAUSE.finditer(span) if not (start <= m.start() < end)]
    left = max((m.end() for m in cuts if m.end() <= start), default=0)
    right = min((m.start() for m in cuts if m.start() >= end), default=len(span))
    return bool(_NEGATION.search(span[left:start] + " " + span[end:right]))
