"""Where inconsistency comes from, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ops.lab import statements

ROWS = [  # kind, statement, accuracy, inconsistency
    *[("sampled", None, 1.0, 1.0)] * 3,
    ("sampled", None, 0.0, 1.0),
    *[("sampled", 1.0, 1.0, 0.0)] * 4,
    ("sampled", 1.0, 0.0, 1.0),
    ("sampled", 0.0, 1.0, 1.0),
    ("sampled", 1.0, 1.0, None),  # consistency failed: in no share
    *[("greedy", None, 0.0, 1.0)] * 5,
]


def answers(rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return dict(
        zip(("kind", "statement", "accuracy", "inconsistency"), map(list, zip(*rows, strict=True)), strict=True)
    )


def test_the_parts_of_inconsistency_add_up() -> None:
    assert statements.parts(answers(ROWS), "sampled") == pytest.approx((0.4, 0.75, 0.4, 0.1, 0.1))
    assert statements.parts(answers(ROWS), "greedy") == (1.0, 0.0, 1.0, 0.0, 0.0)
    assert statements.parts(answers([("sampled", 1.0, 1.0, 0.0)]), "sampled") == (0.0, None, 0.0, 0.0, 0.0)
    assert statements.parts(answers([("sampled", 1.0, 1.0, None)]), "sampled") is None


def test_the_table_has_the_mean_and_the_range_of_the_seeds() -> None:
    cells = {"mini/sft/seed-0": answers(ROWS), "mini/sft/seed-1": answers([("sampled", 1.0, 1.0, 0.0)])}
    lab = SimpleNamespace(conditions=["mini", "strong"], methods=["sft", "fgrpo"], title_of=str.upper)
    done = lambda condition, method: [{"cell": c} for c in cells if c.startswith(f"{condition}/{method}/")]  # noqa: E731
    text = "\n".join(statements.section(SimpleNamespace(lab=lab, done=done, answers=cells)))  # type: ignore[arg-type]
    assert (
        "| SFT | 2 | 20.0 (0.0 to 40.0) | 75.0 | 20.0 (0.0 to 40.0) | 5.0 (0.0 to 10.0) | 5.0 (0.0 to 10.0) |" in text
    )
    assert "### mini, sampled answers" in text and "strong" not in text and "FGRPO" not in text
