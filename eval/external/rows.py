"""One stored generation of another harness, whatever file it comes from, and what a reader of files is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin, plugin_names

RIGHT_KEYS = (
    "is_correct",
    "correct",
    "score",
    "hit",
    "acc",
    "accuracy",
    "exact_match",
)  # of a metric that is an object
_LARGEST_WHOLE = 2**53


@dataclass(frozen=True)
class Row:
    """One reply to one question.

    Attributes:
        key: the row's id in the harness (doc_id, index).
        text: the reply with its reasoning; "" with `finish` "error" where the harness got none.
        prompt: the user's turn, "" if the file does not hold it.
        target: the gold answer as the file states it; "" if it does not.
        question, choices: of the row itself, where the file has them; choices in the order of their letters.
        theirs: the harness' own score of the answer in [0, 1], None without one.
        finish: how the reply ended, as in `Rollout`; None where the file does not tell.
        tokens: length of the reply; 0 if it is not known.
        images: data URLs of images that the file holds.
        group: rows of one question (rotated options) share it.
    """

    key: str
    text: str
    prompt: str = ""
    target: str = ""
    question: str = ""
    choices: tuple[str, ...] = ()
    theirs: float | None = None
    finish: Literal["stop", "length", "error"] | None = None
    tokens: int = 0
    images: tuple[str, ...] = ()
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int | None:
        """The key as a row number; None if it is none."""
        return int(self.key) if self.key.isascii() and self.key.isdigit() else None


@dataclass(frozen=True)
class Format:
    """The files of one harness.

    Attributes:
        title: its name, for messages.
        reads: whether a file's name is that of such a file.
        read: the rows, in order; `metric` names the metric to compare with (None: the first one). Raises UserError for a file of
            another shape (names it).
        task: the harness' name of the task or data set, from the file's name; "" if it does not tell.
    """

    title: str
    reads: Callable[[Path], bool]
    read: Callable[[Path, str | None], Iterable[Row]]
    task: Callable[[Path], str]


def formats() -> dict[str, Format]:
    """Every known format by name."""
    names = plugin_names("eval.external.formats", "FORMAT")
    return {name: load_plugin("eval.external.formats", name, "FORMAT", "format") for name in names}


def format_of(path: Path, name: str | None = None) -> Format:
    """The format called `name`, else the one of this file's name.

    Raises:
        UserError: the file is missing, or its name is none of a known file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; name a file that lmms-eval or VLMEvalKit wrote (docs/other_harnesses.md)")
    if name is not None:
        known: Format = load_plugin("eval.external.formats", name, "FORMAT", "format")
        return known
    for known in formats().values():
        if known.reads(path):
            return known
    raise UserError(
        f"{path.name} is no file of a known harness ({', '.join(f.title for f in formats().values())}); say which one made it "
        f"with --format {'|'.join(formats())}"
    )


def share(value: Any) -> float | None:
    """A harness' score of one answer as a number in [0, 1]; None if it is no such number.

    A truth value or a number counts, and an object by the first of `RIGHT_KEYS` that it has.
    """
    if isinstance(value, Mapping):
        return next((share(value[key]) for key in RIGHT_KEYS if key in value), None)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1):
        return float(value)
    return None


def plain(value: Any) -> str:
    """A cell as text; "" for an empty one, and whole numbers without a fraction ("3", not "3.0")."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return str(int(value))
    return str(value).strip()
