"""Text as a reader sees it: one form for characters that look or mean the same. Training and evaluation compare answers in it."""

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
    "⁄": "/",
    "∕": "/",
}
_TRANSLATED = str.maketrans(_SIGNS)
# Unicode categories that no reader sees: format characters, surrogates, private and unassigned code points.
INVISIBLE = ("Cf", "Cs", "Co", "Cn")


def visible(text: str) -> str:
    """`text` in the form NFKC, without invisible characters, with one sign each for minus, apostrophe, quote and slash.

    Compatible characters become plain ones ("Ｂ" and "Ⓑ" are "B", "㎝" is "cm"). Unlike NFKC alone, "5²" stays apart from
    "52", and "5½" from "51/2".
    """
    if text.isascii():
        return text
    text = _SUPERSCRIPT.sub(lambda m: "^" + "".join(str(_SUPERSCRIPTS.index(c)) for c in m.group()), text)
    text = _FRACTION.sub(lambda m: f"{m.group(1)} {unicodedata.normalize('NFKC', m.group(2))}".lstrip(), text)
    text = unicodedata.normalize("NFKC", text.translate(_TRANSLATED)).translate(_TRANSLATED)
    return "".join(c for c in text if unicodedata.category(c) not in INVISIBLE)
