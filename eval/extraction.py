"""Answer extraction by a judge, where rules cannot tell (Section B.3): which option does the answer span mean?

The judge sees the options and the closed answer span only, never the trace and never the gold answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.requests import BARE_LABEL, Labelled, fence_options
from judges.task import BoxFrame, JudgeTask, Truth
from miniworld.oracle import option_word
from rewards.base import judge_tasks

UNRESOLVED = "0"


@dataclass(frozen=True)
class ExtractionItem:
    """One answer span; the label is the letter of an option, or `UNRESOLVED` if the span does not tell."""

    id: str
    choices: tuple[str, ...]
    answer_span: str


def _labels(item: ExtractionItem) -> tuple[str, ...]:
    return (*(chr(65 + i) for i in range(len(item.choices))), UNRESOLVED)


def _render(item: ExtractionItem, frame: BoxFrame) -> Mapping[str, str]:
    return {"options": fence_options(item.choices), "answer_span": item.answer_span}


def _oracle(item: ExtractionItem, truth: Truth) -> list[Labelled]:
    meant = option_word(item.answer_span, item.choices)
    options = [option_word(choice, item.choices) for choice in item.choices]
    if options.count(meant) != 1:
        return [(UNRESOLVED, "the span is no single option")]
    return [(chr(ord("A") + options.index(meant)), "")]


EXTRACTION_TASK: JudgeTask[ExtractionItem] = JudgeTask(
    "extraction",
    Path(__file__).resolve().parent / "judge_prompts" / "extraction.txt",
    _labels,
    _render,
    reply=BARE_LABEL,
    oracle=_oracle,
    record_kind="ExtractionItem",
)
"""Which option does the answer span mean?"""


def evaluation_tasks() -> list[JudgeTask[Any]]:
    """All tasks that an evaluation puts to judges: those of the rewards, and answer extraction."""
    return [*judge_tasks(), EXTRACTION_TASK]
