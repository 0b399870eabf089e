"""The options of a question, as an answer's text is compared with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from eval import answer_languages as languages
from eval.answer_numbers import MONEY
from eval.answer_text import canonical, plain
from eval.answer_words import ADJECTIVES, NEVER_AFTER_ARTICLE, YES_NO
from fgrpo.options import letter_index

_SOFT = frozenset({".", ",", ";", ":", "!", "'", '"', "(", ")", "\n", ".."})
_NUMERIC = re.compile(r"[no][+-]?\.?\d|-$")
_PLACE = re.compile(r"^(?:to|on|at|in) the (\S.*)$")
_YES_NO = {**languages.YES_NO, **YES_NO}
_HAS_NUMBER = re.compile(r"(?<!\S)n-?\d")
_VERBS = frozenset(["cannot", "can", "can't", "could", "is", "isn't", "does", "doesn't", "has", "will"])


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
    def _signs(self) -> frozenset[str]:
        """The signs of money in the options."""
        return frozenset(sign for choice in self.choices for sign in MONEY.findall(canonical(choice)))

    @cached_property
    def _canonical(self) -> tuple[str, ...]:
        return tuple(self.without_money(canonical(choice)) for choice in self.choices)

    def without_money(self, whole: str) -> str:
        """A canonical text without the signs of money that say nothing here.

        These are the one sign that all numbers of the options have, and where none has one, "$" (perhaps a rest of LaTeX) and
        any sign beside an only option ("$5" where 5 is asked for).
        """
        numeric = [choice for choice in map(canonical, self.choices) if _HAS_NUMBER.search(choice)]
        if not self._signs:
            said = MONEY.findall(whole)
            return MONEY.sub("", whole) if len(self.choices) == 1 or set(said) == {"$ "} else whole
        is_same = (
            len(self._signs) == 1 and all(map(MONEY.search, numeric)) and self._signs.issuperset(MONEY.findall(whole))
        )
        return MONEY.sub("", whole) if is_same else whole

    @cached_property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        return tuple(map(key, self._canonical))

    @cached_property
    def polar(self) -> dict[str, int]:
        """The options that are "yes" and "no" in some language, by the English word."""
        return {_YES_NO[word]: i for i, words in enumerate(self.keys) if (word := _one_word(words)) in _YES_NO}

    @cached_property
    def texts(self) -> dict[int, str]:
        """The options' words as they stand in a canonical sentence; without options of one letter, which stand nowhere."""
        out = {}
        for index, choice in enumerate(self._canonical):
            tokens = choice.strip(' .,;:!"').split(" ")
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
        if found:
            return found
        if self.polar and (word := _YES_NO.get(_one_word(words))):
            return {self.polar[word]} if word in self.polar else set()
        forms = (_same_place, _same_without_articles, _same_sentence, *((_same_list,) if len(self.choices) > 1 else ()))
        for alike in forms:
            found = {i for i, own in enumerate(self.keys) if alike(words, own)}
            if found:
                return found if len(found) == 1 and not self._names_a_part(words, found) else set()
        return self._by_what_differs(words)

    def _names_a_part(self, words: tuple[str, ...], found: set[int]) -> bool:
        """Whether another option than the one found ends in `words` too: "the cup" beside "on the cup" and "under the cup"."""
        return any(i not in found and own[-len(words) :] == words for i, own in enumerate(self.keys))

    def _by_what_differs(self, words: tuple[str, ...]) -> set[int]:
        """The option whose words without those that all options end in are `words`: "left" for "to the left of the cup"."""
        tail = _common_end(self.keys)
        if not tail:
            return set()
        said = _without_end(words, tail)
        found = {i for i, own in enumerate(self.keys) if _is_short_form(said, _without_end(own, tail))}
        return found if len(found) == 1 else set()

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
        return bool(_NUMERIC.match(self._canonical[index]))

    def is_polar(self, index: int) -> bool:
        return index in self.polar.values()


def _one_word(words: tuple[str, ...]) -> str:
    """The only word of a text, "" if there are more. Combining marks, which are tokens of their own, belong to it."""
    return "".join(words) if len(words) == 1 or not any(word.isascii() for word in words) else ""


def _same_place(said: tuple[str, ...], own: tuple[str, ...]) -> bool:
    """Whether two texts are equal but for "to the" or "side" in one of them ("left", "on the left side", "a la izquierda")."""
    one, other = " ".join(said), " ".join(own)
    if bool(_PLACE.match(one)) == bool(_PLACE.match(other)):
        foreign = languages.PLACE.match(one)
        return foreign is not None and other in foreign.groups()
    return _PLACE.sub(r"\1", one).removesuffix(" side") == _PLACE.sub(r"\1", other).removesuffix(" side")


def _same_without_articles(said: tuple[str, ...], own: tuple[str, ...]) -> bool:
    """Whether two texts are equal but for articles inside them ("a cat on the mat")."""
    return len(said[0]) > 1 and _without_articles(said) == _without_articles(
        own
    )  # "B. A positive" begins with a letter


def _same_list(said: tuple[str, ...], own: tuple[str, ...]) -> bool:
    """Whether two texts list the same things in another order: "the chair and the table", "both table and chair"."""
    if said.count("and") != 1 or own.count("and") != 1:
        return False
    return _listed(said) == _listed(own)


def _listed(words: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    bare = tuple(word for word in words if word not in ("the", "a", "an", "both"))
    at = bare.index("and")
    return frozenset({bare[:at], bare[at + 1 :]})


def _same_sentence(said: tuple[str, ...], own: tuple[str, ...]) -> bool:
    """Whether `said` is "it" or "this" and an option that begins with a verb ("It cannot be determined")."""
    return len(own) > 1 and own[0] in _VERBS and said[0] in ("it", "this") and said[1:] == own


def _without_articles(words: tuple[str, ...]) -> tuple[str, ...]:
    last = len(words) - 1
    return tuple(word for i, word in enumerate(words) if not (word in ("the", "a", "an") and 0 < i < last))


def _common_end(keys: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The words in which all of several options end, if each has more words than these."""
    if len(keys) < 2:
        return ()
    length = 0
    least = min(map(len, keys))
    while length < least - 1 and len({own[-length - 1] for own in keys}) == 1:
        length += 1
    return keys[0][len(keys[0]) - length :]


def _without_end(words: tuple[str, ...], tail: tuple[str, ...]) -> tuple[str, ...]:
    """`words` without `tail`, and without "of" or "than" before it."""
    if words[-len(tail) :] == tail:
        words = words[: -len(tail)]
    while words and words[-1] in ("of", "than"):
        words = words[:-1]
    return words


def _is_short_form(said: tuple[str, ...], own: tuple[str, ...]) -> bool:
    return bool(said and own) and (said == own or _same_place(said, own) or _same_place(own, said))


def _without_longer(sentence: str, text: str, found: Sequence[tuple[str, re.Pattern[str], int]]) -> str:
    """The sentence with "¤" in place of the options that hold `text` and more."""
    for longer, pattern, _ in found:
        if longer != text and text in longer:
            sentence = pattern.sub("¤", sentence)
    return sentence


def _exact(text: str) -> str:
    return " ".join(plain(text).casefold().split()).strip()
