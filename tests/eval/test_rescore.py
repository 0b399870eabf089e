"""Agreement under a second judge counts what both judges said, and nothing that a rule decided for both."""

from __future__ import annotations

import pytest

from eval import rescore
from fgrpo.config import load
from fgrpo.types import EvalRecord, Score


def record(n: int, value: float | None, cause: str) -> EvalRecord:
    score = Score(value, "", value is None, {"cause": cause})
    return EvalRecord(f"r{n}", "mmvp", "m", f"mmvp/test/{n}", {"consistency": score})


def test_rules_do_not_make_judges_agree() -> None:
    """50 verdicts with a kappa of 0.4 by hand; 200 answers that no judge saw, and one failure, change nothing."""
    first = [1.0] * 25 + [0.0] * 25
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    beside = [record(50 + n, 0.0, "no_answer") for n in range(200)]
    old = [*(record(n, v, "judge") for n, v in enumerate(first)), *beside, record(300, 1.0, "judge")]
    new = [*(record(n, v, "judge") for n, v in enumerate(second)), *beside, record(300, None, "judge")]
    found = rescore.agreements(old, new, load("mini").eval)["consistency"]
    assert found.n == 50 and found.kappa == pytest.approx(0.4)
    assert found.low is not None and found.high is not None and found.low < 0.4 < found.high
