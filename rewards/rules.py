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
    """`prefixes`: how trivial sentences begin. `trivial`: whole sentences that are trivial. `visual_words`: what makes a
    sentence visual however it begins. `abbreviations`: words whose full stop ends no sentence. `openers`: phrases that say
    nothing of themselves."""

    prefixes: re.Pattern[str]
    trivial: re.Pattern[str]
    visual_words: frozenset[str]
    abbreviations: frozenset[str]
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
            prefixes=_any_of(data["prefixes"], r"\A(?:", r")(?!\w)"),
            trivial=_any_of(data["trivial"], r"\A(?:", r")\Z"),
            visual_words=frozenset(word.casefold() for line in data["visual_words"] for word in str(line).split()),
            abbreviations=frozenset(word.casefold() for line in data["abbreviations"] for word in str(line).split()),
            openers=_any_of(data["openers"], r"(?<!\w)(?:", r")(?!\w)"),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, re.error) as error:
        raise UserError(
            f"{path}: the sentence rules cannot be read ({error!r}); restore the file from the repository"
        ) from error


def _any_of(patterns: list[str], before: str, after: str) -> re.Pattern[str]:
    return re.compile(before + "|".join(f"(?:{p})" for p in patterns) + after, re.IGNORECASE)
