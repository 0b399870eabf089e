"""An answer's text without its markup, as tokens: words, numbers by value, letters of options, and signs.

`canonical` writes tokens with one blank between them, so that patterns need no care for case, blanks or spelling of numbers:
"**Answer:** (b) Twenty-five!" is "answer : (B) n25 !". A single capital stays a capital; everything else is lower case.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from eval.answer_languages import in_english
from eval.answer_numbers import in_one_form, is_spelled, joined_groups, merged, number, opaque
from fgrpo.visible_text import visible

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|<\|begin_of_box\|>", re.IGNORECASE)
_COMMANDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt)|underline|emph|bm|mbox|boldsymbol|operatorname)\s*\{([^{}]*)\}"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_STRUCK = re.compile(r"\\(?:cancel|sout|xcancel|bcancel|st)\s*\{")
_LATEX = (
    (re.compile(r"\\(?:left|right)(?=\s*[()\[\]{}.|\\])|\\[,;:! ()\[\]]|\\q?quad\b|\\checkmark\b"), " "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?"), "°"),
    (re.compile(r"\\(?:right|long|Right|Longright)arrow\b|\\(?:to|implies)\b"), "->"),
    (re.compile(r"\\(?:neg|lnot|not)\b"), " not "),
    (re.compile(r"\\%"), "%"),
)
_TAGS = re.compile(r"</?(?:b|i|u|em|strong|p|br|span|div|code|font|mark|center|h\d)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_DECORATION = re.compile(r'[*`"\ufe0f\u20e3\\]|#(?!\d)|(?<!\d)\$(?!\d)')  # "#4" is a rank, "$4" is money
_MATH = re.compile(r"\$\$?(?=[^\s$])([^$\n]*[^\s$])\$\$?(?!\d)")
_DENIED = re.compile(r"(?<!\S)(?:-(?=[A-Z](?!\w))|!(?=[\w(]))")  # "-A", "!A"
_INCHES = re.compile(r"(?<![\w.\"'])(\d[\d.]*)(?:''|[\"'])(?!\w)")
_STOPS = str.maketrans({"。": ".", "।": ".", "、": ",", **dict.fromkeys("→⇒➜➔➡⟶", "->")})
_CROSSES = frozenset("✗✘❌✖❎🚫⛔👎☐°")  # signs that deny, and the degree
_BRACKETED = re.compile(r"(?<![\w(\[{])[(\[{【〔]\s*([A-Za-z])\s*[)\]}】〕](?!\w)|^\s*<([A-Za-z])>\s*$")
_BULLET = re.compile(r"(?m)^[^\S\n]*(?:[-•·>+]|\d{1,2}[.)])[^\S\n]+(?=[^\W\d])")

_QUOTED = re.compile(r"(?<![\w'])'([^'\n]{1,80})'(?![\w'])")
_HAND = re.compile(r"(?<=left|ight)-(?=hand\b)", re.IGNORECASE)
_ABBREVIATION = re.compile(r"(?<!\w)i\.\s?e\.|\bviz\.", re.IGNORECASE)
_TOKEN = re.compile(
    r"(?P<break>\n)"
    r"|(?P<bracketed>\([A-Z]\))(?!\w)"
    r"|(?P<opaque>\d[\d.,:/]*(?:-\d[\d.,:/]*\d|-\d)+|\d+(?:-[^\W\d_]+)+|\d+(?:st|nd|rd|th)\b)"
    r"|(?P<number>(?:(?<![\w)\].])[+-])?(?:\d+(?:[.,:/]\d+)*|(?<![\w.])\.\d+))"
    r"|(?P<word>[^\W\d_](?:[^\W_]|['-](?=[^\W_]))*)"
    r"|(?P<sign>->|=>|\.\.+|[^\w\s]|_)"
)
_PRONOUN = re.compile(r"(?<!\S)I(?= (?:[a-z]|,))")
_OPTION_LETTER = re.compile(r"(?<=option |choice |letter )[a-z](?= [.,:;!)]|$)")
_ONE_FORM = (
    (re.compile(r"(?<!\S)(n-?[\d.]+) \( \1 \)(?!\S)"), r"\1"),  # "3 (three)"
    (re.compile(r"(?<!\S)(?:(?:counter|anti) clockwise|(?:counter-|anti-?)clockwise)(?!\S)"), "counterclockwise"),
    (re.compile(r"(?<=\d )(?:m|meters?|metres?)(?!\S)"), "meters"),
    (re.compile(r"(?<=\d )(?:cm|centimeters?|centimetres?)(?!\S)"), "centimeters"),
    (re.compile(r"(?<=\d )(?:ft|feet|foot)(?!\S)"), "feet"),
)


def plain(text: str) -> str:
    """`text` without Markdown, LaTeX, HTML and decoration. Text that is struck out or in unknown commands stays marked."""
    text = joined_groups(in_english(visible(text)).translate(_STOPS))
    text = _DENIED.sub("¬ ", text.replace("!=", "≠"))
    text = _INCHES.sub(r"\1″", text) if text.count('"') % 2 or "'" in text else text
    text = "".join(c for c in text if c.isascii() or unicodedata.category(c) != "So" or c in _CROSSES)
    text = _STRUCK.sub("not {", _letters_out(text))
    for _ in range(4):
        text = _FRACTION.sub(r"\1/\2", _COMMANDS.sub(r"\1", text))
    for pattern, plain_form in _LATEX:
        text = pattern.sub(plain_form, text)
    unknown = re.sub(r"\\(?=[a-zA-Z])", "¤", text)  # a command that is not known is a sign that no pattern accepts
    text = _DECORATION.sub("", _TAGS.sub(" ", _MATH.sub(r"\1", unknown))).replace("_", " ")
    text = _HAND.sub(" ", _QUOTED.sub(r"\1", _ABBREVIATION.sub("namely", _BULLET.sub("", text))))
    return _letters_out(text)


def _letters_out(text: str) -> str:
    """Letters in brackets of any kind as "(B)"."""
    return _BRACKETED.sub(lambda m: f" ({(m.group(1) or m.group(2)).upper()}) ", text)


@lru_cache(maxsize=1024)
def canonical(text: str) -> str:
    """The tokens of `plain(text)`, with one blank between them. Numbers are "n" and their value ("n1000", "n-5", "n2.5")."""
    out: list[str] = []
    for m in _TOKEN.finditer(plain(text)):
        kind, token = m.lastgroup, m.group()
        if kind == "number":
            out.append(number(token))
        elif kind == "word":
            out.extend(_word(token))
        elif kind == "opaque":
            out.append(opaque(token))
        else:
            out.append(token)
    joined = _PRONOUN.sub("i", " ".join(merged(out)))
    for pattern, one_form in _ONE_FORM:
        joined = pattern.sub(one_form, joined)
    joined = in_one_form(joined)
    return _OPTION_LETTER.sub(lambda m: f"({m.group().upper()})", joined)


def _word(token: str) -> list[str]:
    """A single capital as it is; "twenty-five" as its parts, all other words in lower case."""
    if len(token) == 1 and "A" <= token <= "Z":
        return [token]
    parts = token.lower().split("-")
    return parts if is_spelled(parts) else [token.lower()]


def unboxed(text: str) -> tuple[str, list[str]]:
    """(text with "¤" in place of each box, contents of the boxes): `\\boxed{…}` with nested braces, `<|begin_of_box|>`."""
    contents: list[str] = []
    outside: list[str] = []
    at = 0
    for m in _BOX.finditer(text):
        if m.start() < at:
            continue
        end, content = _box_end(text, m)
        outside += [text[at : m.start()], " ¤ "]
        contents.append(content)
        at = end
    return "".join([*outside, text[at:]]), contents


def _box_end(text: str, opening: re.Match[str]) -> tuple[int, str]:
    """(end of a box, its content). A box that is never closed extends to the end of the text, and its content is no answer."""
    if opening.group().startswith("<"):
        closing = re.compile(r"<\|end_of_box\|>", re.IGNORECASE).search(text, opening.end())
        return (closing.end(), text[opening.end() : closing.start()]) if closing else (len(text), "")
    depth = 1
    for at in range(opening.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at + 1, text[opening.end() : at]
    return len(text), ""
