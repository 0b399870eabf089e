"""Whether a trace has content: distinct words that are neither openers nor function words, in any script.

Model judges accept "Thought process:", "Solution" or ":" as reasoning ("One Token to Fool LLM-as-a-Judge", 2025), so rules
decide about such traces. Text is read as a reader sees it: NFKC, without invisible characters, Latin look-alikes of other
scripts as Latin. A clause counts if one of its words is neither in `filler_words` nor in `function_words` of
filler_words.yaml; a single such word among several of filler counts only if it is a visual word or one of the question's. A
trace has content if its counting clauses have enough distinct words (letters, for scripts without blanks between words).
Numbers that are compared, or belong to a box, count as words beside a word of the question or a visual one ("120 < 340 → left").
"""

from __future__ import annotations

import unicodedata
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex
import yaml

from fgrpo.errors import UserError
from fgrpo.visible_text import as_seen, latin_lookalikes, with_line_feeds
from rewards.sentence_rules import rules

FILE = Path(__file__).resolve().parent / "filler_words.yaml"
LEAST_WORDS = 3  # "It moved left" has content; "left left left" does not
LEAST_LETTERS_UNSPACED = 4  # of scripts that put no or few blanks between words
LEAST_OWN_WORDS = 2  # in scripts whose languages need no copula: words that are no filler ("Машина красная")
LEAST_OWN_HAN = 2  # runs of Chinese characters between filler, of three characters at least ("杯在左", not "在左边")
_MUCH_FILLER = 3  # words of filler that outweigh one unknown word ("I have analyzed everything and am confident")

_TAG = regex.compile(r"<[^<>]{0,40}>")
_CLAUSE_END = regex.compile(r"[^\p{L}\p{M}\p{N}\p{Zs}\t'’_-]+")
_WORD = regex.compile(r"\p{L}[\p{L}\p{M}]*|\p{N}+")  # combining marks do not split a word
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")
_NO_COPULA = regex.compile(r"[\p{Cyrillic}\p{Arabic}\p{Hebrew}]")
_HAN = regex.compile(r"\p{Han}")
_COMPARED = regex.compile(r"(?<=[<>=≤≥\[(,]\s?)\p{N}+|\p{N}+(?=\s?[<>=≤≥,\])])")  # compared numbers, or a box's
_ENDING = regex.compile(r"(?<=\p{Latin}{3})(?:ing|ed|ly|es|s|e|d)$")  # "solving", "solved", "solve" are one word
_ACCENT = regex.compile(r"[\u0300-\u036f]")
_BLANK_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"  # letters and signs that are drawn as blanks


@dataclass(frozen=True)
class Filler:
    """The word lists of filler_words.yaml, folded by `_folded`; `unspaced` is a pattern of phrases."""

    function_words: frozenset[str]
    filler_words: frozenset[str]
    filler_stems: frozenset[str]
    counters: frozenset[str]
    unspaced: Any


@lru_cache(maxsize=8)
def filler(path: Path = FILE) -> Filler:
    """The word lists of `path`. UserError if the file is missing or lacks a list."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        words = {
            key: frozenset(_folded(word) for line in data[key] for word in str(line).split())
            for key in ("function_words", "filler_words", "counters")
        }
        phrases = sorted({_nfkc(p) for line in data["unspaced"] for p in str(line).split()}, key=len, reverse=True)
        stems = frozenset(_stem(word) for word in words["filler_words"])
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the filler words cannot be read ({error!r}); restore the file from the repository"
        ) from error
    return Filler(**words, filler_stems=stems, unspaced=regex.compile("|".join(map(regex.escape, phrases))))


def visible(text: str) -> str:
    """`text` as a reader sees it (`fgrpo.visible_text.as_seen`); all line ends stay, as line feeds."""
    return as_seen(with_line_feeds(text))


def is_blank(text: str | None) -> bool:
    """Whether `text` is missing or shows nothing: blanks, invisible characters, combining marks alone."""
    if text is None:
        return True
    shown = (c for c in visible(text) if c not in _BLANK_LETTERS)
    return not any(unicodedata.category(c)[0] in "LNPS" for c in shown)


def is_contentless(think: str, about: str = "") -> bool:
    """Whether a trace has too few distinct words to say anything, once openers and filler are removed.

    Args:
        about: question and options, whose words count wherever they stand.
    """
    table = filler()
    known = _known(about)
    words: set[str] = set()
    letters: set[str] = set()
    own: set[str] = set()
    is_about = False
    plain = rules().openers.sub(" . ", _TAG.sub(" . ", visible(think)))
    for clause in _CLAUSE_END.split(plain.casefold()):
        of_clause = _WORD.findall(latin_lookalikes(clause))
        if not _has_content(of_clause, table, known):
            continue
        is_about = is_about or not known.isdisjoint(map(_folded, of_clause))
        own.update(_own(of_clause, table))
        for word in of_clause:
            unspaced = _UNSPACED.findall(word)
            letters.update(unspaced)
            if not unspaced:
                words.add(word)
        if len(words) >= LEAST_WORDS or len(letters) >= LEAST_LETTERS_UNSPACED:
            return False
    numbers = set(_COMPARED.findall(visible(think))) if is_about else set()
    own_words = sum(_NO_COPULA.match(word) is not None for word in own)
    own_han = sum(_HAN.match(letter) is not None for letter in own)
    return (
        len(words | numbers) < LEAST_WORDS
        and own_words < LEAST_OWN_WORDS
        and not (own_han >= LEAST_OWN_HAN and len(letters) > LEAST_OWN_HAN)
    )


@lru_cache(maxsize=1024)
def _known(about: str) -> Set[str]:
    """The visual words, and those of question and options: the rollouts of a question share them."""
    return rules().visual_words | {_folded(word) for word in _WORD.findall(visible(about).casefold())}


def _own(words: list[str], table: Filler) -> set[str]:
    """The words of a clause that are neither filler nor grammar; of scripts without blanks, the runs between filler."""
    found: set[str] = set()
    for word in map(_folded, words):
        if _UNSPACED.search(word):
            found.update(table.unspaced.sub(" ", word).split())
        elif not (word in table.filler_words or word in table.function_words or _stem(word) in table.filler_stems):
            found.add(word)
    return found


def _has_content(words: list[str], table: Filler, known: Set[str]) -> bool:
    """Whether a clause has a word of its own. Numbers and single letters need another word beside them ("The answer is B")."""
    folded = [_folded(word) for word in words]
    if all(word.isnumeric() or (len(word) == 1 and not _UNSPACED.match(word)) for word in folded):
        return False
    is_numbered = not table.counters.isdisjoint(folded)  # "Step 1"
    own: set[str] = set()
    of_filler: set[str] = set()
    for word in folded:
        if word.isnumeric():
            if not is_numbered:
                return True
        elif _UNSPACED.search(word):
            if _UNSPACED.search(table.unspaced.sub("", word)):
                return True
        elif word in table.filler_words:
            of_filler.add(word)
        elif word in table.function_words:
            continue
        elif not known.isdisjoint((word, word.removesuffix("s"), _stem(word))):
            return True
        elif _stem(word) in table.filler_stems:
            of_filler.add(word)
        else:
            own.add(word)
    return len(own) > 1 or (len(own) == 1 and len(of_filler) < _MUCH_FILLER)


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _folded(word: str) -> str:
    """`word` without case and without the accents of Latin, Greek and Cyrillic letters."""
    if word.isascii():
        return word.casefold()
    return _nfkc(_ACCENT.sub("", unicodedata.normalize("NFD", word.casefold())))


def _stem(word: str) -> str:
    return _ENDING.sub("", word)
