"""Accuracy by rules alone stands beside the judged one, in every benchmark's figures."""

from __future__ import annotations

import dataclasses

import pytest

from eval import summary
from fgrpo.config import load
from fgrpo.types import EvalRecord, Score


def record(n: int, source: str, value: float | None, finish: str = "stop") -> EvalRecord:
    score = Score(value, "", value is None)
    meta = {"kind": "greedy", "group": f"g{n}", "finish": finish, "answer": "", "answer_from": source, "judge": "j"}
    return EvalRecord(f"r{n}", "cvb_2d", "m", f"cvb_2d/test/{n}", {"accuracy": score}, meta)


def test_a_judge_that_reads_too_kindly_shows() -> None:
    given = (
        [("rules", 1.0)] * 4
        + [("rules", 0.0)] * 2
        + [("judge", 1.0)] * 3
        + [("unresolved", 0.0)]
        + [("failed", None)] * 2
    )
    rows = [record(n, *one) for n, one in enumerate(given)]
    refused = record(99, "none", None, "error")
    cells = summary.summarise([*rows, refused], [], load("mini").eval)["greedy"]["benchmarks"]["cvb_2d"]
    assert cells["accuracy"]["value"] == pytest.approx(7 / 10) and cells["accuracy"]["n"] == 10
    assert cells["accuracy_by_rules"]["value"] == pytest.approx(4 / 12) and cells["accuracy_by_rules"]["n"] == 12


def test_sampled_answers_of_one_number_form_a_pair() -> None:
    """Two questions of a pair, two samples each: a pair counts where both answers of one number are right."""
    rows = [
        dataclasses.replace(
            record(n, "rules", value),
            id=f"r{question}#s{number}",
            meta={**record(n, "rules", 1.0).meta, "group": "pair"},
        )
        for n, (question, number, value) in enumerate([(0, 0, 1.0), (0, 1, 0.0), (1, 0, 1.0), (1, 1, 1.0)])
    ]
    cells = summary.summarise(rows, ["cvb_2d"], load("mini").eval)["greedy"]["benchmarks"]["cvb_2d"]
    assert (cells["pair_accuracy"]["value"], cells["pair_accuracy"]["n"]) == (0.5, 2)
