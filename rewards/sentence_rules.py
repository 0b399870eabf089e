"""The word lists of sentence decomposition (Appendix A.1), read once from sentence_rules.yaml into patterns and sets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from fgrpo.errors import UserError

FILE = Path(__file__).resolve().parent / "sentence_rules.yaml"


@dataclass(frozen=True)
class Rules:
    """The word lists.

    Attributes:
        prefixes: beginnings of trivial sentences; matches lower-case text.
        trivial: complete trivial sentences; matches lower-case text.
        visual_words: words that make a sentence visual whatever its beginning.
        abbreviations: words whose full stop does not end a sentence.
        numbered: the same if a number follows.
        units: the same if a lower-case letter follows.
        openers: phrases without content of their own.
    """

    prefixes: re.Pattern[str]
    trivial: re.Pattern[str]
    visual_words: frozenset[str]
    abbreviations: frozenset[str]
    numbered: frozenset[str]
    units: frozenset[str]
    openers: re.Pattern[str]


@lru_cache(maxsize=8)
def rules(path: Path = FILE) -> Rules:
    """The rules of `path`.

    Raises:
        UserError: the file is missing, lacks a list, or one of its patterns is not a regular expression.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Rules(
            prefixes=_any_of(data["prefixes"], r"\A(?:", r")(?!\w)", re.NOFLAG),
            trivial=_any_of(data["trivial"], r"\A(?:", r")\Z", re.NOFLAG),
            visual_words=_words(data["visual_words"]),
            abbreviations=_words(data["abbreviations"]),
            numbered=_words(data["numbered"]),
            units=_words(data["units"]),
            openers=_any_of(data["openers"], r"(?<!\w)(?:", r")(?!\w)", re.IGNORECASE),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, re.error) as error:
        raise UserError(
            f"{path}: the sentence rules cannot be read ({error!r}); restore the file from the repository"
        ) from error


def _words(lines: list[str]) -> frozenset[str]:
    return frozenset(word.casefold() for line in lines for word in str(line).split())


def _any_of(patterns: list[str], before: str, after: str, flags: re.RegexFlag) -> re.Pattern[str]:
    return re.compile(before + "|".join(f"(?:{p})" for p in patterns) + after, flags)
