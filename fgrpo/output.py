"""Output where the terminal or the locale has ASCII only (`LC_ALL=C`, a Windows code page): symbols become their ASCII forms."""

from __future__ import annotations

import codecs
import io
import sys

HANDLER = "fgrpo-ascii"
FORMS = {
    "±": "+-",
    "×": "x",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "·": "-",
    "─": "-",
    "│": "|",
    "≤": "<=",
    "≥": ">=",
    "↑": "^",
    "↓": "v",
    "→": "->",
    "≠": "!=",
    "λ": "lambda",
    "τ": "tau",
    "κ": "kappa",
    "“": '"',
    "”": '"',
    "’": "'",
}


def _replace(error: UnicodeError) -> tuple[str, int]:
    """The ASCII forms of what cannot be encoded; a question mark for what has none."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(FORMS.get(char, "?") for char in error.object[error.start : error.end]), error.end


def printable(text: str) -> str:
    """`text` as standard output can show it, for layouts that count characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        codecs.register_error(HANDLER, _replace)
        return text.encode(encoding, HANDLER).decode(encoding)
    return text


def make_printable() -> None:
    """Let `print` write any text to standard output and error, whatever their encoding."""
    codecs.register_error(HANDLER, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=HANDLER)
