"""A reply in sentences, and which of them are no reasoning: signs, lead-ins to an answer, opening and closing phrases."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LONGEST_PHRASE = 120  # characters of a lead-in, an opening or a closing phrase
_END = re.compile(r"\n|(?<=[.!?])[*_`\"'”’)\]}]*[^\S\n]+|[。！？।؟][*_`\"'”’」』）)]*[^\S\n]*")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{[^{}]{0,200}(?:\{[^{}]{0,200}\}[^{}]{0,200}){0,3}\}")
_LETTER = re.compile(r"(?:^|(?<=[\s(*_\"'#>-]))[A-Za-z]\.$")
_NUMBER = re.compile(
    r"(?:^|(?<=[\s(*_\"'#>-]))(?:\d{1,3}|no|vs|e\.g|i\.e|fig|approx|cf|mr|mrs|dr|st)\.$", re.IGNORECASE
)
_ONLY_LABEL = re.compile(r"[\W_]*(?:(?:option|choice|answer)\W+)?(?:[A-Za-z]|\d{1,3})\.", re.IGNORECASE)
_SIGNS = re.compile(r"(?:[\W_]|```\w+$|\\(?:begin|end)\{[\w*]+\}|\\boxed\{?)*")
_NOUN = (
    r"(?:answer|ans|choice|option|solution|conclusion|result|verdict|antwort|lösung|respuesta|réponse|resposta|risposta|antwoord|"
    r"ответ|cevap|odpowiedź|svar|答案|答え|正解|解答|정답|답|उत्तर|الإجابة|الجواب)"
)
_WORDS_OF_LEAD = (
    r"(?:(?:so|therefore|thus|hence|and|now|finally|then|in|the|my|our|your|an?|this|final|correct|right|best|most|likely|here|is|are|"
    r"i|we|let|me|us|will|would|can|give|find|state|provide|write|choose|short|direct|overall|step|\d+|to|with|for|multiple|la|le|el|"
    r"die|der|das|de|o|bonne|richtige|correcta)\b[\W_]*|(?:最终|正确|最佳|所以|因此|的)[\W_]*)*+"
)
_LEAD = re.compile(
    rf"[\W_]*{_WORDS_OF_LEAD}{_NOUN}(?:\W+(?:to|for)\W+(?:the|this|your)\W+question)?"
    r"(?:\W*(?:is|would be|should be|must be|ist|lautet|es|est|è|é|是|为|は))?(?:\W+(?:as follows|below|here|option))?[\W_]*",
    re.IGNORECASE,
)
_LEAD_WORD = re.compile(
    r"[\W_]*(?:so|thus|therefore|hence|finally|also|daher|donc|entonces|in conclusion|to conclude|final|因此|所以)[\W_]*",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"[\W_]*(?:sure|okay|ok|certainly|of course|absolutely|great|hello|hi|thanks|thank you|here(?:'s| is| are)|let me|let's|i will|"
    r"i'll|looking at|based on|to answer|the question|question)(?!\w)[^\n]*",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"[\W_]*(?:(?:i )?hope|let me know|feel free|thanks|thank you|good luck|have a|if you(?:'d| have| need| want)|please (?:let|feel|ask)|"
    r"any (?:other |more )?questions|is there anything|confidence|(?:all )?(?:of )?(?:the )?others?(?: \w+)? (?:is|are)|"
    rf"(?:this|that|the|my)(?: \w+){{0,2}} {_NOUN} (?:is|was) (?:final|based|correct|right|certain|clear|supported|derived|from|due|my))"
    r"(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Part:
    """A sentence of a line: text[start:end], without blanks around it."""

    start: int
    end: int
    text: str
    line: int

    @property
    def is_signs(self) -> bool:
        """Whether it has no words: a rule, a fence, the brackets of a formula."""
        if len(self.text) > _LONGEST_PHRASE:
            return not any(map(str.isalnum, self.text))
        return _SIGNS.fullmatch(self.text) is not None

    @property
    def leads(self) -> bool:
        """Whether it only leads to an answer: "### Answer", "So the final answer is:", "Therefore:"."""
        return self._is(_LEAD) or self._is(_LEAD_WORD)

    @property
    def opens(self) -> bool:
        """Whether it is a phrase before the matter: "Sure! Here is my answer:"."""
        return self._is(_OPENING)

    @property
    def closes(self) -> bool:
        """Whether it is a phrase after the matter: "Hope this helps!", "This answer is final."."""
        return len(self.text) <= _LONGEST_PHRASE and _CLOSING.match(self.text) is not None

    def _is(self, pattern: re.Pattern[str]) -> bool:
        return len(self.text) <= _LONGEST_PHRASE and "?" not in self.text and pattern.fullmatch(self.text) is not None


def parts(text: str, start: int = 0, end: int | None = None) -> list[Part]:
    """The sentences and lines of text[start:end]. "B. blue" and "1. The car" are one each; a box is not cut."""
    end = len(text) if end is None else end
    boxes = [match.span() for match in _BOX.finditer(text, start, end)]
    found: list[Part] = []
    at, line, box = start, 0, 0
    for match in _END.finditer(text, start, end):
        while box < len(boxes) and boxes[box][1] <= match.start():
            box += 1
        if match.start() < at or (box < len(boxes) and boxes[box][0] < match.start()):
            continue
        if match.group() != "\n" and _is_label(text, at, match):
            continue
        cut = match.start() if match.group() == "\n" else match.end()
        _add(found, text, at, cut, line)
        at = match.end()
        line += match.group() == "\n"
    _add(found, text, at, end, line)
    return found


def _is_label(text: str, start: int, end: re.Match[str]) -> bool:
    """Whether the full stop before a blank ends a label ("B. blue", "1. The car", "e.g. a car") and no sentence."""
    stop = end.start()
    near = text[max(start, stop - 12) : stop]
    if _NUMBER.search(near):
        return near.rstrip(".").isalpha() or _ONLY_LABEL.fullmatch(text[start:stop]) is not None or "." in near[:-1]
    if not _LETTER.search(near):
        return False
    following = text[end.end() : end.end() + 1]
    return following.islower() or following.isdigit() or _ONLY_LABEL.fullmatch(text, start, stop) is not None


def _add(found: list[Part], text: str, start: int, end: int, line: int) -> None:
    inside = text[start:end]
    if shown := inside.strip():
        first = start + len(inside) - len(inside.lstrip())
        found.append(Part(first, first + len(shown), shown, line))
