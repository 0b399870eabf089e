"""The options of a question, as an answer's text is compared with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from eval.answer_text import canonical, plain
from eval.answer_words import ADJECTIVES, NEVER_AFTER_ARTICLE, YES_NO
from fgrpo.options import letter_index

_SOFT = frozenset({".", ",", ";", ":", "!", "'", '"', "(", ")", "\n", ".."})
_NUMERIC = re.compile(r"[no][+-]?\.?\d|-$")
_PLACE = re.compile(r"^(?:to|on|at|in) the (\S.*)$")


def key(tokens_text: str) -> tuple[str, ...]:
    """What two canonical texts share that say the same: words and numbers without punctuation and a leading article."""
    tokens = tokens_text.split()
    tokens = tokens[1:] if is_article(tokens) else tokens
    out: list[str] = []
    for token in tokens:
        token = token.strip("()") if len(token) == 3 else token
        if token in _SOFT or not token.strip("."):
            continue
        parts = [token] if _NUMERIC.match(token) else token.split("-")
        out.extend(part.lower() for part in parts if part)
    return tuple(out)


def is_article(tokens: Sequence[str]) -> bool:
    """Whether the first token of a text is an article; a capital "A" before "yes", a lone "left" or a full stop is a letter."""
    if len(tokens) < 2 or not tokens[1][0].isalnum():
        return False
    if tokens[0] != "A":
        return tokens[0] in ("the", "a", "an")
    ends = all(token in _SOFT for token in tokens[2:])
    is_noun = tokens[1] not in NEVER_AFTER_ARTICLE and not (ends and tokens[1] in ADJECTIVES)
    return is_noun and not _NUMERIC.match(tokens[1])


@dataclass(frozen=True)
class Options:
    """Options in the order of their letters.

    Attributes:
        has_letters: whether an answer may name an option by its letter.
    """

    choices: tuple[str, ...]
    has_letters: bool = True

    @cached_property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return tuple(key(canonical(choice)) for choice in self.choices)

    @cached_property
    def polar(self) -> dict[str, int]:
        """The options that are "yes" and "no", by word."""
        return {words[0]: i for i, words in enumerate(self.keys) if words in (("yes",), ("no",))}

    @cached_property
    def texts(self) -> dict[int, str]:
        """The options' words as they stand in a canonical sentence; without options of one letter, which stand nowhere."""
        out = {}
        for index, choice in enumerate(self.choices):
            tokens = canonical(choice).strip(' .,;:!"').split(" ")
            text = " ".join(tokens[1:] if is_article(tokens) else tokens)
            if text and not re.fullmatch(r"\(?[A-Za-z]\)?", text):
                out[index] = text
        return out

    @cached_property
    def patterns(self) -> tuple[tuple[int, re.Pattern[str]], ...]:
        """(option, where its text stands in a canonical sentence)."""
        out = []
        for index, text in self.texts.items():
            follows = r"(?= [.,!;:]|$)" if text in ("no", "none") else r"(?!\S)"
            out.append((index, re.compile(rf"(?<!\S){re.escape(text)}{follows}")))
        return tuple(out)

    def letter(self, capital: str) -> int:
        """The option of a letter, -1 if it is not offered. A letter that is an option's whole text is that option."""
        index = letter_index(capital, self.choices)
        return -1 if index is None else index

    def same(self, text: str, span: str | None = None) -> set[int]:
        """The options whose text is the canonical `text`, or that without "to the".

        Between options of one key ("its" and "it's") the spelling of `span`, the answer as it was written, decides.
        """
        words = key(text)
        if not words:
            exact = _exact(span if span is not None else text)
            return {i for i, choice in enumerate(self.choices) if exact and _exact(choice) == exact}
        found = {i for i, own in enumerate(self.keys) if own == words}
        if len(found) > 1:
            exact = _exact(span if span is not None else text)
            spelled = {i for i in found if _exact(self.choices[i]) == exact}
            return spelled if len(spelled) == 1 else found
        if not found and (self.polar and len(words) == 1 and words[0] in YES_NO):
            return {self.polar[YES_NO[words[0]]]} if YES_NO[words[0]] in self.polar else set()
        if not found:
            said = " ".join(words)
            found = {i for i, own in enumerate(self.keys) if _same_place(said, " ".join(own))}
            return found if len(found) == 1 else set()
        return found

    def mentioned(self, sentence: str) -> set[int]:
        """The options whose words stand in a sentence in a row. Of "red" in "dark red" only the longer one counts."""
        sentence = re.sub(r"(?<!\S)right (?=(?:answer|option|choice|letter)(?!\S))", "correct ", sentence)
        found = [(self.texts[index], pattern, index) for index, pattern in self.patterns if pattern.search(sentence)]
        return {index for text, pattern, index in found if pattern.search(_without_longer(sentence, text, found))}

    def marked(self, sentence: str, index: int) -> tuple[str, int]:
        """The sentence with "@index" in place of the option's text, and how often it stands there."""
        pattern = dict(self.patterns).get(index)
        return pattern.subn(f"@{index}", sentence) if pattern else (sentence, 0)

    def is_number(self, index: int) -> bool:
        return bool(_NUMERIC.match(canonical(self.choices[index])))

    def is_polar(self, index: int) -> bool:
        return index in self.polar.values()


def _same_place(one: str, other: str) -> bool:
    """Whether two texts are equal but for "to the" or "side" in one of them ("left", "on the left side")."""
    if bool(_PLACE.match(one)) == bool(_PLACE.match(other)):
        return False
    return _PLACE.sub(r"\1", one).removesuffix(" side") == _PLACE.sub(r"\1", other).removesuffix(" side")


def _without_longer(sentence: str, text: str, found: Sequence[tuple[str, re.Pattern[str], int]]) -> str:
    """The sentence with "¤" in place of the options that hold `text` and more."""
    for longer, pattern, _ in found:
        if longer != text and text in longer:
            sentence = pattern.sub("¤", sentence)
    return sentence


def _exact(text: str) -> str:
    return " ".join(plain(text).casefold().split()).strip()
