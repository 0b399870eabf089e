"""An answer's canonical text in sentences, and a sentence without its opening words."""

from __future__ import annotations

import re

from eval import answer_words as say

_LABEL = re.compile(rf"{say.LETTER}|[a-z]|ans")
_LONGEST_LABEL = 200  # characters
_SENTENCE_END = re.compile(r"(?<=\S)((?: [.!?;])+)(?= |$)")
_DANGLING = re.compile(r"(?: |^)(?:or|and|nor|not|than|of|either|neither|but|[,/&:])$")


def sentences(whole: str) -> list[str]:
    """Sentences and lines of a canonical text. A heading ("Answer"), a line that ends in "or", a comma is one with the next; "B." is a label."""
    lines: list[str] = []
    for line in (part.strip() for part in whole.split("\n")):
        if lines and line and say.HEADING.match(lines[-1]):
            lines[-1] = f"{lines[-1]} : {line}"
        elif lines and line and _DANGLING.search(lines[-1]):
            lines[-1] = f"{lines[-1]} {line}"
        elif line:
            lines.append(line)
    out: list[str] = []
    for line in lines:
        start = 0
        for m in _SENTENCE_END.finditer(line):
            sentence = line[start : m.end()].strip()
            is_number = sentence.lower() == "no ." and re.match(r" [no]\d", line[m.end() : m.end() + 3])  # "No. 2"
            if m.group(1) == " ." and m.end() < len(line) and (is_number or _is_label(sentence)):
                continue
            out.append(sentence)
            start = m.end()
        if line[start:].strip():
            out.append(line[start:].strip())
    return out


def _is_label(sentence: str) -> bool:
    """Whether a sentence is only a letter or "Ans", perhaps after opening words: "B.", "The answer is (B)."."""
    return len(sentence) < _LONGEST_LABEL and bool(_LABEL.fullmatch(stripped(sentence.removesuffix(" ."))[0]))


def stripped(sentence: str) -> tuple[str, bool]:
    """A sentence without its opening words, and whether these state an answer."""
    stated = False
    while True:
        for pattern, states in ((say.ANSWER, True), (say.CHOOSE, True), (say.OPTION, False), (say.OPENERS, False)):
            if m := pattern.match(sentence):
                sentence, stated = sentence[m.end() :], stated or states
                break
        else:
            return sentence, stated
