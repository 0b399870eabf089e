"""The final answer of a reply that annotates a question: its answer block, a boxed answer, a stated one, or its last line.

Data sets that were written by a model (VGR) phrase their answers freely. What says that the answer is open is no gold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rewards.task import matches

_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_TRACE_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
_TRACE = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_BOXED = re.compile(
    r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}|<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.DOTALL
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
_OPEN = re.compile(
    r"\b(?:either|maybe|perhaps|possibly|unclear|unknown|unsure|uncertain|cannot|can't|n/a|not\s+(?:sure|clear|visible|possible|known|"
    r"given|shown|enough|determinable|a|an|the)|undetermined|insufficient)\b|^not\b|\b\w+\s+or\s+\w+\b",
    re.IGNORECASE,
)


def read_gold(reply: str) -> str:
    """The final answer of a reply without other tags, as it stands there; "" if there is none (an open trace, no text).

    The last answer block counts, else what follows the trace: the last boxed answer, the last line that states the answer ("the
    answer to the question is red"), or the last line.
    """
    blocks = _BLOCK.findall(reply)
    text = blocks[-1] if blocks else _TRACE_END.split(reply)[-1]
    if _TRACE.search(text):
        return ""
    boxed = [a or b for a, b in _BOXED.findall(text)]
    if boxed:
        return _plain(boxed[-1])
    lines = [line for line in (_plain(line) for line in text.splitlines()) if line]
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
            return _plain(_SENTENCE_END.split(stated["answer"], maxsplit=1)[0])
    return lines[-1]


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
