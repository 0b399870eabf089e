"""Text as a reader sees it: one form for characters that look or mean the same, without invisible ones.

Training and evaluation compare answers in it, judges get it, and rules about traces read it.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_SUPERSCRIPT = re.compile(f"[{_SUPERSCRIPTS}]+")
_FRACTION = re.compile(r"(\d?)([¼-¾⅐-⅞↉])")
_SIGNS = {
    **dict.fromkeys("−‐‑‒–—―﹘﹣⁻", "-"),
    **dict.fromkeys("’‘ʼ′＇", "'"),
    **dict.fromkeys("“”„«»「」『』", '"'),
    **{
        chr(code + i): chr(ord("A") + i) for code in (0x1F150, 0x1F170) for i in range(26)
    },  # "🅑", "🅱": NFKC keeps these
    "⁄": "/",
    "∕": "/",
}
_TRANSLATED = str.maketrans(_SIGNS)
_UNSEEN = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # control, invisible, private and unassigned code points; line separators
_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_MIXED_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile("[a-zA-Z]")
_LOOKALIKES = str.maketrans(
    "авеєкмнорстхуіјѕԁԛԝαεικνορτυχАВЕКМНОРСТХУІЈЅΑΒΕΗΙΚΜΝΟΡΤΥΧΖ",
    "abeekmhopctxyijsdqwaeikvoptuxABEKMHOPCTXYIJSABEHIKMNOPTYXZ",
)


class _SeenCharacters(dict[int, int | None]):
    """For `str.translate`: code points to themselves, invisible ones to None."""

    def __missing__(self, code: int) -> int | None:
        is_seen = chr(code) in "\n\t" or unicodedata.category(chr(code)) not in _UNSEEN
        self[code] = code if is_seen else None
        return self[code]


_SEEN = _SeenCharacters()


def as_seen(text: str) -> str:
    """`text` in the form NFKC without invisible and control characters; of these, line feeds and tabs stay."""
    if text.isascii():  # is in that form
        return _CONTROL.sub("", text)
    return unicodedata.normalize("NFKC", text).translate(_SEEN)


def with_line_feeds(text: str) -> str:
    """`text` with "\\n" for every other line end."""
    return _LINE_END.sub("\n", text)


def latin_lookalikes(text: str) -> str:
    """`text` with Latin letters for the Cyrillic and Greek ones that look like them, in words that have Latin letters too."""
    if text.isascii():
        return text
    return _MIXED_WORD.sub(lambda m: m.group().translate(_LOOKALIKES) if _LATIN.search(m.group()) else m.group(), text)


def visible(text: str) -> str:
    """`text` in the form NFKC, without invisible characters, with one sign each for minus, apostrophe, quote and slash.

    Compatible characters become plain ones ("Ｂ" and "Ⓑ" are "B", "㎝" is "cm"). Unlike NFKC alone, "5²" stays apart from
    "52", and "5½" from "51/2".
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda m: "^" + "".join(str(_SUPERSCRIPTS.index(c)) for c in m.group()), text)
    text = _FRACTION.sub(lambda m: f"{m.group(1)} {unicodedata.normalize('NFKC', m.group(2))}".lstrip(), text)
    return as_seen(with_line_feeds(text.translate(_TRANSLATED))).translate(_TRANSLATED)
