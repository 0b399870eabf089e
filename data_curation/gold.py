"""The final answer of a reply that annotates a question: its answer block, a boxed answer, a stated one, or its last line.

Data sets that were written by a model (VGR) phrase their answers freely. What says that the answer is open is no gold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.task import matches

_BLOCK_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_TRACE_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_TRACE = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_BOXED = re.compile(
    r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}|<\|begin_of_box\|>((?:(?!<\|begin_of_box\|>).)*?)<\|end_of_box\|>",
    re.DOTALL,
)
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|operatorname)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"\*\*|__|`|\$|\\[()\[\]]")
_STATED = re.compile(
    r"\b(?:answer|(?:correct|right|best)\s+(?:option|choice|one|letter))\b"
    r"(?:\s+(?:to|for)\s+(?:the|this|that|your)\s+(?:\S+\s+){0,2}?question|\s+here|\s+therefore)?"
    r"\s*,?(?:\s+(?:is|was|would\s+be|should\s+be|must\s+be)\b\s*[:=]?|\s*[:：=])"
    r"\s*(?:(?:that|simply|clearly|therefore)\s+)?(?:(?:option|choice|letter)\s+)?(?P<answer>\S.*)$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<!\b[A-Za-z])(?<!\b(?:St|Mr|Dr|Ms|No))[.!?。](?=\s)")
_QUESTION = re.compile(r"^[^.!?]*\?\s+(?=\S)")
_REASON = re.compile(
    r"(?<=\S)(?:,?\s+because\b|,\s+(?:since|as|which|given|due\s+to)\b|\s+(?:since|as)\s+(?:it|there|they|he|she|we|seen|shown|indicated)\b).*$",
    re.IGNORECASE,
)
_CLOSING_LINE = re.compile(
    r"^(?:i\s+)?hope\s+(?:this|that|it)\b|^(?:please\s+)?(?:let\s+me\s+know|feel\s+free)\b|^(?:if\s+you\s+(?:have|need)|is\s+there\s+"
    r"anything)\b|^(?:thanks?|thank\s+you|you(?:'re|\s+are)\s+welcome|happy\s+to\s+help|good\s+luck|cheers|have\s+a\s+\w+\s+day)\b",
    re.IGNORECASE,
)
_OPEN = re.compile(
    r"\b(?:either|maybe|perhaps|possibly|unclear|unknown|unsure|uncertain|cannot|can't|n/a|not\s+(?:sure|clear|visible|possible|known|"
    r"given|shown|enough|determinable|a|an|the)|undetermined|insufficient)\b|^not\b|\b\w+\s+or\s+\w+\b",
    re.IGNORECASE,
)


def read_gold(reply: str) -> str:
    """The final answer of a reply without other tags, as it stands there; "" if there is none (an open trace, no text).

    The answer block after the trace counts, else what follows the trace: the last boxed answer, the last line that states the
    answer ("the answer to the question is red"), or the last line. Of a stated answer the reason is cut off. A line that only
    says goodbye is no answer, and neither are two blocks that differ.
    """
    after = _TRACE_END.split(reply)[-1]
    blocks = _blocks(after) or _blocks(reply)
    text = blocks[-1] if blocks else after
    if _TRACE.search(text) or len({_plain(block).casefold() for block in blocks}) > 1:
        return ""
    boxed = [a or b for a, b in _BOXED.findall(text)]
    if boxed:
        return _plain(boxed[-1])
    lines = [line for line in (_plain(line) for line in text.splitlines()) if line]
    while len(lines) > 1 and _CLOSING_LINE.match(lines[-1]):
        lines.pop()
    if not lines:
        return ""
    if (
        blocks
        and len(lines) == 1
        and not _STATED.match(re.sub(r"^(?:so|thus|therefore|the|final|\W)+\s*", "", lines[0], flags=re.I))
    ):
        return lines[0]
    for line in reversed(lines):
        if stated := _STATED.search(line):
            return _plain(_REASON.sub("", _SENTENCE_END.split(stated["answer"], maxsplit=1)[0]))
    return _plain(_QUESTION.sub("", lines[-1]))


def _blocks(text: str) -> list[str]:
    """The contents of the answer blocks of a text, in order."""
    blocks, start = [], None
    for tag in _BLOCK_TAG.finditer(text):
        if not tag.group(1):
            start = tag.end() if start is None else start
        elif start is not None:
            blocks.append(text[start : tag.start()])
            start = None
    return blocks


def _plain(text: str) -> str:
    """`text` without LaTeX, Markdown and quotes around it, with single spaces, without its final full stop."""
    for _ in range(2):
        text = _LATEX.sub(r"\1", text)
    text = " ".join(_MARKS.sub("", text).split())
    text = re.sub(r"^(?:[-•>#*]\s+)", "", text).rstrip(".。").strip()
    return text.strip("\"“”'‘’") if text[:1] in "\"“'‘" and text[-1:] in "\"”'’" else text


def is_open(answer: str) -> bool:
    """Whether a free-form answer leaves the question open ("either red or blue", "not visible")."""
    return bool(_OPEN.search(answer))


def gold_index(answer: str, choices: Sequence[str]) -> int | None:
    """The option that `answer` is: its letter, its text, or both; None if that is no single option."""
    found = [i for i, choice in enumerate(choices) if matches(answer, choice, choices)]
    return found[0] if len(found) == 1 else None
