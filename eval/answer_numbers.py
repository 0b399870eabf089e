"""Numbers as answers write them: spelled, grouped, ordinal, as a range, or as money.

Numbers are tokens "n" and their value ("n1000", "n-5", "n2.5"). What has digits and is no single number is opaque ("o10-20").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * (n + 2) for n, word in enumerate(_TENS)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}
_ORDINALS = [
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
]
_ORDINAL = re.compile(r"0*(\d{1,2})(?:st|nd|rd|th)")

_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)")
_AMBIGUOUS = re.compile(r"[+-]?\d{1,3}\.0{3}")  # "1.000" is a thousand in some countries
_SPACED = re.compile(r"(?<![\w.,:/'])(\d{1,3})((?:[ ']\d{3})+)(?![\w'\"]|[.,:/]\d)")  # "1 000", "1'000"

_N = r"n-?[\d.]+"
_SIGNED = (
    (re.compile(r"(?<!\S)(?:from )?n([\d.]+) (?:to|~) n([\d.]+)(?!\S)"), r"o\1-\2"),
    (re.compile(r"(?<!\S)between n([\d.]+) and n([\d.]+)(?!\S)"), r"o\1-\2"),
    (re.compile(rf"(?<!\S)(?:over|above|greater than|higher than|>) (?={_N}(?!\S))"), "more than "),
    (re.compile(rf"(?<!\S)(?:under|below|fewer than|lower than|smaller than|<) (?={_N}(?!\S))"), "less than "),
    (re.compile(r"(?<!\S)(n[\d.]+) (?:dollars?|usd)(?!\S)"), r"$ \1"),
    (re.compile(r"(?<!\S)(n[\d.]+) (?:euros?|eur)(?!\S)"), r"€ \1"),
    (re.compile(r"(?<!\S)(n[\d.]+) ([$€£¥₹])(?!\S)"), r"\2 \1"),
    (re.compile(r"(?<=\d )(?:percent|per cent)(?!\S)"), "%"),
)


MONEY = re.compile(r"(?<!\S)[$€£¥₹] (?=n\d)")


def joined_groups(text: str) -> str:
    """`text` with "1 000" and "1'000" as "1000"."""
    return _SPACED.sub(lambda m: m.group(1) + re.sub(r"\D", "", m.group(2)), text)


def number(token: str) -> str:
    """The token of a number in digits."""
    token = token.rstrip(".,:/")
    if _GROUPED.fullmatch(token):
        token = token.replace(",", "")
    elif not _PLAIN_NUMBER.fullmatch(token) or _AMBIGUOUS.fullmatch(token):
        return "o" + token
    return _value(Decimal(token))


def opaque(token: str) -> str:
    """The token of a text with digits that is no number; small ordinals become words."""
    ordinal = _ORDINAL.fullmatch(token.lower())
    if ordinal and 1 <= int(ordinal.group(1)) <= len(_ORDINALS):
        return _ORDINALS[int(ordinal.group(1)) - 1]
    return "o" + token.lower()


def is_spelled(parts: Sequence[str]) -> bool:
    """Whether the parts of a hyphenated word are a number: "twenty-five"."""
    return all(part in _VALUES or part in _SCALES or part == "and" for part in parts)


def merged(tokens: Sequence[str]) -> list[str]:
    """Number words, and runs of them, as one number; "minus five" as a negative one."""
    out: list[str] = []
    at = 0
    while at < len(tokens):
        length, value = _spelled(tokens, at)
        if length:
            token = _value(Decimal(value))
            at += length
        else:
            token = tokens[at]
            at += 1
        if out and out[-1] in ("minus", "negative") and re.fullmatch(r"n\d.*", token):
            out[-1] = "n-" + token[1:]
        else:
            out.append(token)
    return out


def in_one_form(canonical: str) -> str:
    """Ranges, comparisons and money of canonical tokens in one form each."""
    for pattern, one_form in _SIGNED:
        canonical = pattern.sub(one_form, canonical)
    return canonical


def _value(value: Decimal) -> str:
    plain_value = f"{value.normalize():f}" if value else "0"
    return f"n{plain_value}"


def _spelled(tokens: Sequence[str], start: int) -> tuple[int, int]:
    """(tokens read, value) of the spelled number that begins at `start`; (0, 0) if there is none."""
    total = group = 0
    at = start
    last = ""  # "unit", "ten" or "scale"
    if tokens[at] == "a" and at + 1 < len(tokens) and tokens[at + 1] in _SCALES:
        at, group, last = at + 1, 1, "unit"  # "a thousand"
    while at < len(tokens):
        token = tokens[at]
        if token in _SCALES and at > start:
            scale = _SCALES[token]
            group, total = (group * scale, total) if scale == 100 else (0, total + group * scale)
            last = "scale"
        elif token in _VALUES:
            value = _VALUES[token]
            fits = not last or last == "scale" or (last == "ten" and 0 < value < 10)
            if not fits:
                break
            group, last = group + value, "ten" if value >= 20 else "unit"
        elif token == "and" and last == "scale" and at + 1 < len(tokens) and tokens[at + 1] in _VALUES:
            pass
        else:
            break
        at += 1
    return at - start, total + group
