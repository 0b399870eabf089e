"""What may stand beside the paper's figures, and what is in which average."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval import examples, report, summary, tables
from eval.results import Result, paper
from fgrpo.config import load
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Score

SEVEN = tuple(paper()["columns"])


def records(**right: float) -> list[EvalRecord]:
    """Two answers a benchmark, one group each, of which that share is right."""
    return [
        EvalRecord(f"{name}/{n}", name, "fgrpo", f"{name}/{n}",
                   {"accuracy": Score.of(float(n < 2 * share)), "consistency": Score.of(1.0)},
                   {"kind": "greedy", "group": f"{name}/{n}", "finish": "stop", "answer_from": "rules"})
        for name, share in right.items() for n in range(2)
    ]  # fmt: skip


def results(config: Config, found: list[EvalRecord], *names: str) -> dict[str, Result]:
    figures = summary.summarise(found, ("mmvp",), config.eval)
    return {name: Result(name, name, Path("nowhere"), figures) for name in names}


def cells(config: Config, found: list[EvalRecord], table: str, title: str) -> dict[str, Any]:
    rows = tables.paper_cells(results(config, found, "fgrpo", "grpo-t"), config)[table]
    return next(row["cells"] for row in rows if row["title"] == title)


def test_questions_of_ones_own_are_in_no_average_of_the_seven() -> None:
    config = load("paper-7b")
    everything = records(**dict.fromkeys(SEVEN, 0.5), own=1.0)
    found = summary.summarise(everything, (), config.eval)["greedy"]
    assert found["average"]["accuracy"]["value"] == 0.5 and found["average"]["accuracy"]["benchmarks"] == 7
    assert found["benchmarks"]["own"]["accuracy"]["value"] == 1.0
    assert cells(config, everything, "table1", "FGRPO 7B")["average"]["ours"] == 50.0
    alone = summary.summarise(records(own=1.0), (), config.eval)["greedy"]
    assert alone["average"]["accuracy"]["value"] == 1.0


def test_an_average_of_two_benchmarks_is_not_set_beside_one_of_seven() -> None:
    config = load("paper-7b")
    few = records(mmvp=1.0, cvb_2d=0.5)
    row = cells(config, few, "table1", "FGRPO 7B")
    assert row["mmvp"]["ours"] == 100.0 and row["cvb_2d"]["ours"] == 50.0
    assert row["average"]["ours"] is None and row["average"]["difference"] is None
    assert cells(config, few, "table2", "FGRPO")["inconsistency"]["ours"] is None
    (accuracy, _) = tables.main_tables(results(config, few, "fgrpo"), config)
    assert accuracy.rows[0][0].endswith("(2 of 7 benchmarks)")
    assert "the average of fgrpo is of MMVP, CVB-2D" in accuracy.note


def test_ablations_of_the_7b_model_are_no_rows_of_a_3b_run() -> None:
    found = records(**dict.fromkeys(SEVEN, 0.5))
    for preset, is_7b in (("paper-7b", True), ("paper-3b", False)):
        config = load(preset)
        assert (cells(config, found, "table1", "FGRPO 7B")["average"]["ours"] is not None) is is_7b
        assert (cells(config, found, "table1", "FGRPO 3B")["average"]["ours"] is None) is is_7b
        for table, title in (("table2", "FGRPO"), ("table3", "GRPO-T")):
            assert (cells(config, found, table, title)["accuracy"]["ours"] is not None) is is_7b


def test_pairs_have_an_interval_and_leave_out_what_was_refused() -> None:
    config = load("paper-7b")
    found = [
        EvalRecord(f"mmvp/{n}", "mmvp", "m", f"mmvp/{n}",
                   {"accuracy": Score.failure("refused") if n == 0 else Score.of(float(n > 3))},
                   {"kind": "greedy", "group": str(n // 2), "finish": "stop", "answer_from": "rules"})
        for n in range(8)
    ]  # fmt: skip
    cell = summary.summarise(found, ("mmvp",), config.eval)["greedy"]["benchmarks"]["mmvp"]["pair_accuracy"]
    assert cell["value"] == 2 / 3 and cell["n"] == 3 and 0 <= cell["low"] < cell["high"] <= 1


def test_a_refused_answer_is_neither_right_nor_wrong_in_the_report() -> None:
    record = EvalRecord("r", "mmvp", "m", "s", {"accuracy": Score.failure("x")}, {"kind": "greedy", "finish": "error"})
    assert examples._tags(record) == ()
    column = {
        "key": "a", "title": "M", "lines": [], "answer": "x", "correct": None, "holds": None, "checks": [],
        "notes": [], "shapes": [],
    }  # fmt: skip
    shown = {
        "id": "r", "benchmark": "MMVP", "question": "q", "choices": [], "gold": "g", "tags": "", "images": [], "truth": [],
        "columns": [column],
    }  # fmt: skip
    page = report.render(
        title="t", subtitle="", cards=[], tables=[], more_tables=[], comparisons=[], more_comparisons=[], paper=[],
        figures=[], judges=[], world=True, other_kind="", examples=[shown], examples_note="", benchmarks=[], filters=[], columns=[],
    )  # fmt: skip
    assert "not scored" in page and "not correct" not in page


def test_everything_that_is_not_ours_is_escaped_wherever_it_stands() -> None:
    attack = '</title><script>alert(1)</script><img src=x onerror="alert(2)">'
    table = {"title": attack, "headings": [attack, "x"], "rows": [[attack, f"{attack} [1]"]], "note": attack}
    column = {
        "key": "a", "title": attack, "answer": attack, "correct": True, "holds": True,
        "checks": [{"title": attack, "holds": True, "reason": attack}],
        "lines": [{"pieces": [{"text": attack, "box": attack}], "colour": "plain", "reason": attack}], "notes": [attack],
        "shapes": [],
    }  # fmt: skip
    shown = {
        "id": attack, "benchmark": attack, "question": attack, "choices": [attack], "gold": attack, "tags": attack,
        "images": [], "truth": [], "columns": [column],
    }  # fmt: skip
    card = {"name": attack, "sides": [{"key": "a", "title": attack, "value": attack, "interval": attack}]}
    page = report.render(
        title=attack, subtitle=attack, cards=[card], tables=[table], more_tables=[table], comparisons=[table],
        more_comparisons=[table], paper=[table], figures=[], judges=[table], world=True, other_kind=attack,
        examples=[shown], examples_note=attack, benchmarks=[attack], filters=[(attack, attack)],
        columns=[{"key": key, "title": attack, "visible": True, **dict.fromkeys(("colour", "light", "dark"), "#000000")} for key in "ab"],
    )  # fmt: skip
    assert page.count("<script>") == 1 and "<img" not in page and page.count("</title>") == 1
    assert page.count("&lt;script&gt;") > 30


def test_a_missing_figure_is_no_zero_beside_the_papers() -> None:
    for cell in (None, {"value": None, "low": None, "high": None}):
        beside = tables._beside(cell, 70.0)
        assert (beside["ours"], beside["difference"]) == (None, None) and tables._shown(beside) == "– / 70.0"
    assert tables._beside({"value": 0.0, "low": None, "high": None}, 70.0)["difference"] == -70.0


def test_shares_are_of_the_requests_that_were_answered() -> None:
    config = load("paper-7b")
    finishes = ("stop", "length", "error", "error")
    found = [
        EvalRecord(f"mmvp/{n}", "mmvp", "m", f"mmvp/{n}", {"accuracy": Score.failure("x") if finish == "error" else Score.of(1.0)},
                   {"kind": "greedy", "group": str(n), "finish": finish, "answer_from": "refused" if finish == "error" else "rules"})
        for n, finish in enumerate(finishes)
    ]  # fmt: skip
    (result,) = results(config, found, "m").values()
    cells = result.summary["greedy"]["benchmarks"]["mmvp"]
    assert (cells["truncated"]["value"], cells["truncated"]["n"], cells["refused"]["value"]) == (0.5, 2, 0.5)
    (row,) = tables._faithfulness_table([result], "greedy", "", config, "none").rows
    assert row[-3] == "50.0"
    only_refused = summary.summarise(found[2:], ("mmvp",), config.eval)["greedy"]["benchmarks"]["mmvp"]
    assert "truncated" not in only_refused and only_refused["refused"]["value"] == 1.0
