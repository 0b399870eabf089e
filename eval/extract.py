"""Which option did a response choose? Rules only; what the rules cannot tell is left to the extraction judge (Section B.3).

Other harnesses read "the answer is B" as T, take the "A." of "view A." behind the answer, or guess. Here a letter counts in
an answer's form only, an option's text only where it is the one option whose words stand there, and two candidates, a
negated one, or a letter against a text give None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fgrpo.response import parse
from rewards.task import matches

_LETTER = r"(?:\((?P<paren>[A-Za-z])\)|(?P<bare>[A-Z])(?![\w'’]))"
# What may follow a letter that is no article: an end, punctuation, or a reason.
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
# The answer is said to be the letter, so that other letters named on the way ("…, as seen in view A") are not candidates.
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


def answer_span(text: str) -> str | None:
    """Where the answer stands: the closed answer block, else what follows the trace, else a text without any trace.

    None: the trace or the answer block is not closed, there are two blocks, or nothing follows the trace.
    """
    answer = parse(text).answer
    if answer is not None:
        return answer or None
    tail = text.rpartition("</think>")[2]
    if "<answer>" in tail or ("<think>" in text and "</think>" not in text):
        return None
    return tail.replace("</answer>", "").strip() or None


def extract_choice(text: str, choices: Sequence[str]) -> int | None:
    """Index of the option that `text` (a whole response, or an answer alone) chooses; None = leave it to a judge.

    A letter counts as "B", "(B)", "B. box", "the answer is B", "…, B" at the end, or as the answer block; never as an article
    or a stray capital. Never guesses.
    """
    span = answer_span(text)
    if span is None or not choices:
        return None
    for _ in range(2):
        span = _MARKUP.sub(r"\1", span)
    span = re.sub(r"[*`\"“”$]", "", span).strip()
    done, choice = _whole(_LEAD.sub("", span), choices)
    if done:
        return choice
    found = [*_letters(span, choices), *_texts(span, choices)]
    if any(_is_negated(span, start, end) for _, start, end in found):
        return None
    indices = {index for index, _, _ in found}
    if not any(form.search(span) for form in _STATED):
        indices |= _mentioned(span, choices)
    return indices.pop() if len(indices) == 1 else None


def same_open_answer(text: str, gold: str) -> bool:
    """Whether `text` gives the free-form answer `gold` (questions without options: a word, a phrase, or a number).

    The same text, case, punctuation, "the answer is" and "it is" aside; "yes" or "no" where a sentence begins with it ("Yes, it
    is"); or, for a number, the only number there, in figures or in words, and not negated ("There are three lanes" is "3"; "3 or
    4", "not 3" and "13" are not).
    """
    span = _LEAD.sub("", re.sub(r"[*`\"“”$]", "", text)).strip()
    plain = _IT_IS.sub("", span)
    if matches(span, gold, ()) or (words(plain) and words(plain) == words(gold)):
        return True
    if words(gold) in (("yes",), ("no",)) and (opening := _YES_NO.match(span)):
        return {word for word in words(span) if word in ("yes", "no")} == {opening.group(1).lower()} == set(words(gold))
    wanted = _number(gold.strip().rstrip("."))
    if wanted is None or _NEGATION.search(span):
        return False
    found = [number for token in _WORD.findall(span) if (number := _number(token)) is not None]
    return found == [wanted]


def _number(word: str) -> float | None:
    """The number that one word is, in figures or in words."""
    if word.lower() in NUMBER_WORDS:
        return float(NUMBER_WORDS.index(word.lower()))
    return float(word) if re.fullmatch(r"-?\d+(?:\.\d+)?", word) else None


def words(text: str) -> tuple[str, ...]:
    """Lower-case words and numbers of `text`, without an article in front."""
    found = tuple(m.group().lower().replace("’", "'") for m in _WORD.finditer(text))
    return found[1:] if len(found) > 1 and found[0] in ("the", "a", "an") else found


def _index(letter: str, choices: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if 0 <= index < len(choices) else None


def _whole(span: str, choices: Sequence[str]) -> tuple[bool, int | None]:
    """(decided, choice) for an answer that is nothing but a letter, a text, or a letter and a text."""
    same = {i for i, choice in enumerate(choices) if words(choice) and words(choice) == words(span)}
    if m := re.fullmatch(r"\W*([A-Za-z])\W*", span):
        letter = _index(m.group(1), choices)
        same |= set() if letter is None else {letter}
    elif m := re.fullmatch(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[.):,]|([A-Z])(?=\s))\s*[:\-–]?\s*(.+)", span, re.DOTALL):
        letter = _index(m.group(1) or m.group(2) or m.group(3), choices)
        rest = {i for i, choice in enumerate(choices) if words(choice) and words(choice) == words(m.group(4))}
        if letter is not None and rest and not (m.group(3) == "A" and same):  # "A box" may be an article and a text
            return True, letter if rest == {letter} else None
    return bool(same), same.pop() if len(same) == 1 else None


def _letters(span: str, choices: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(option, start, end) of each letter in an answer's form."""
    for form in _FORMS:
        for m in form.finditer(span):
            group = "paren" if m.groupdict().get("paren") else "bare"
            index = _index(m.group(group), choices)
            if index is not None:
                yield index, m.start(group), m.end(group)
    for i, choice in enumerate(choices):  # "the answer is B box": the letter followed by its own text
        letter = chr(ord("A") + i)
        pattern = rf"(?i:{_ANSWER}{_BE})(?P<bare>{letter})\s+(?i:(?:the\s+)?{re.escape(choice)})(?!\w)"
        for m in re.finditer(pattern, span):
            yield i, m.start("bare"), m.end("bare")


def _mentioned(span: str, choices: Sequence[str]) -> set[int]:
    """Options that the span names by their letters, said to be the answer or not."""
    letters = [m.group(1) or m.group(2) for m in _NAMED.finditer(span)]
    letters += [letter for m in _LIST.finditer(span) for letter in re.findall(r"\b[A-Z]\b", m.group())]
    return {index for letter in letters if (index := _index(letter, choices)) is not None}


def _texts(span: str, choices: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """(option, start, end) of each place where all of an option's words stand side by side."""
    tokens = list(_WORD.finditer(span))
    plain = [t.group().lower().replace("’", "'") for t in tokens]
    for index, choice in enumerate(choices):
        wanted = list(words(choice))
        if not wanted or (len(wanted) == 1 and len(wanted[0]) == 1 and wanted[0].isalpha()):
            continue  # a one-letter option is only ever a whole answer
        for start in range(len(plain) - len(wanted) + 1):
            if plain[start : start + len(wanted)] == wanted:
                yield index, tokens[start].start(), tokens[start + len(wanted) - 1].end()


def _is_negated(span: str, start: int, end: int) -> bool:
    """Whether the clause around span[start:end], that piece left out, holds a negation."""
    cuts = [m for m in _CLAUSE.finditer(span) if not (start <= m.start() < end)]
    left = max((m.end() for m in cuts if m.end() <= start), default=0)
    right = min((m.start() for m in cuts if m.start() >= end), default=len(span))
    return bool(_NEGATION.search(span[left:start] + " " + span[end:right]))
