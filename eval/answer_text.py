"""An answer's text without its markup, as tokens: words, numbers by value, letters of options, and signs.

`canonical` writes tokens with one blank between them, so that patterns need no care for case, blanks or spelling of numbers:
"**Answer:** (b) Twenty-five!" is "answer : (B) n25 !". A single capital stays a capital; everything else is lower case.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache

from fgrpo.visible_text import visible

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|<\|begin_of_box\|>", re.IGNORECASE)
_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {word: n for n, word in enumerate(_UNITS)} | {word: 10 * (n + 2) for n, word in enumerate(_TENS)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6}

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
_DECORATION = re.compile(r'[*`"$\ufe0f\\]|#(?!\d)')  # "#4" is a rank
_DENIED = re.compile(r"(?<!\S)(?:-(?=[A-Z](?!\w))|!(?=[\w(]))")  # "-A", "!A"
_INCHES = re.compile(r"(?<![\w.\"'])(\d[\d.]*)(?:''|[\"'])(?!\w)")
_FOREIGN = (
    (
        re.compile(
            r"(?<![^\W\d_])(?:所以|因此|故)?(?:正确|最终|最佳)?(?:的)?答案(?:应该|应当|就)?(?:是|为|選|选|：|:)\s*(?:选项|選項)?\s*(?=[A-Za-z(（\d])"
        ),
        "the answer is ",
    ),
    (re.compile(r"(?<![^\W\d_])(?:我)?(?:选择|選擇|选|選)\s*(?=[A-Z](?![A-Za-z]))"), "the answer is "),
    (
        re.compile(
            r"(?i)(?<!\S)(?:(?:la|die|a|het|meine|ma|mi) )?(?:(?:richtige|juiste|bonne) )?(?:réponse|respuesta|antwort|resposta|risposta|"
            r"antwoord|ответ|cevap|odpowiedź|svar)(?: (?:correcta|correcte|correta|corretta|finale?))?(?:\s*:| (?:est|es|é|è|ist|is)(?= ))\s*"
        ),
        "the answer is ",
    ),
)
_STOPS = str.maketrans({"。": ".", "、": ","})
_CROSSES = frozenset("✗✘❌✖❎🚫⛔👎°")  # signs that deny, and the degree
_BRACKETED = re.compile(r"(?<![\w(\[{])[(\[{【〔]\s*([A-Za-z])\s*[)\]}】〕](?!\w)|^\s*<([A-Za-z])>\s*$")
_BULLET = re.compile(r"(?m)^[^\S\n]*(?:[-•·>+]|\d{1,2}[.)])\s+(?=[^\W\d])")

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
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_PLAIN_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)")
_AMBIGUOUS = re.compile(r"[+-]?\d{1,3}\.0{3}")  # "1.000" is a thousand in some countries


def plain(text: str) -> str:
    """`text` without Markdown, LaTeX, HTML and decoration. Text that is struck out or in unknown commands stays marked."""
    text = visible(text).translate(_STOPS)
    for pattern, english in _FOREIGN:
        text = pattern.sub(english, text)
    text = _DENIED.sub("¬ ", text.replace("!=", "≠"))
    text = _INCHES.sub(r"\1″", text) if text.count('"') % 2 or "'" in text else text
    text = "".join(c for c in text if c.isascii() or unicodedata.category(c) != "So" or c in _CROSSES)
    text = _STRUCK.sub("not {", _letters_out(text))
    for _ in range(4):
        text = _FRACTION.sub(r"\1/\2", _COMMANDS.sub(r"\1", text))
    for pattern, plain_form in _LATEX:
        text = pattern.sub(plain_form, text)
    unknown = re.sub(r"\\(?=[a-zA-Z])", "¤", text)  # a command that is not known is a sign that no pattern accepts
    text = _DECORATION.sub("", _TAGS.sub(" ", unknown)).replace("_", " ")
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
            out.append(_number(token))
        elif kind == "word":
            out.extend(_word(token))
        elif kind == "opaque":
            out.append("o" + token.lower())
        else:
            out.append(token)
    joined = _PRONOUN.sub("i", " ".join(_merged(out)))
    for pattern, one_form in _ONE_FORM:
        joined = pattern.sub(one_form, joined)
    return _OPTION_LETTER.sub(lambda m: f"({m.group().upper()})", joined)


def _word(token: str) -> list[str]:
    """A single capital as it is; "twenty-five" as its parts, all other words in lower case."""
    if len(token) == 1 and "A" <= token <= "Z":
        return [token]
    parts = token.lower().split("-")
    return parts if all(part in _VALUES or part in _SCALES or part == "and" for part in parts) else [token.lower()]


def _number(token: str) -> str:
    token = token.rstrip(".,:/")
    if _GROUPED.fullmatch(token):
        token = token.replace(",", "")
    elif not _PLAIN_NUMBER.fullmatch(token) or _AMBIGUOUS.fullmatch(token):
        return "o" + token
    return _value(Decimal(token))


def _value(value: Decimal) -> str:
    plain_value = f"{value.normalize():f}" if value else "0"
    return f"n{plain_value}"


def _merged(tokens: list[str]) -> list[str]:
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


def _spelled(tokens: list[str], start: int) -> tuple[int, int]:
    """(tokens read, value) of the spelled number that begins at `start`; (0, 0) if there is none."""
    total = group = 0
    at = start
    last = ""  # "unit", "ten" or "scale"
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
