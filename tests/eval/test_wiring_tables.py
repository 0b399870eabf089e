"""Hand-overs of evaluation: scores -> summary -> cells of the tables, and the paired comparison of two models."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from known import (
    HIGHER_IS_BETTER,
    KINDS,
    LOST,
    METRICS,
    QUESTIONS,
    SCORES,
    SEVEN,
    TITLE_OF,
    TITLES,
    expected,
    heading,
    number,
    record,
    rows_of,
    setting,
    store,
    table_named,
)

from eval import base, comparisons, summary, tables
from eval.results import Result, find
from fgrpo.files import write_jsonl
from fgrpo.schema import Config
from fgrpo.types import EvalRecord


@pytest.fixture(scope="module")
def built(stored: tuple[Config, Path]) -> list[Any]:
    """Every table."""
    _, everything, _ = tables.build(*stored)
    return everything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", TITLES)
def test_each_metric_of_the_summary_is_that_of_its_score_benchmark_and_decoding(
    stored: tuple[Config, Path], model: str, kind: str
) -> None:
    of_kind = find(*stored)[model].summary[kind]
    for metric in (*METRICS, "format"):
        for place in (*SEVEN, "average"):
            cell = of_kind["average"][metric] if place == "average" else of_kind["benchmarks"][place][metric]
            assert 100 * cell["value"] == pytest.approx(expected(model, kind, metric, place)), (metric, place)
            assert cell["n"] == QUESTIONS * (7 if place == "average" else 1)
            assert cell["low"] <= cell["value"] + 1e-9 and cell["value"] <= cell["high"] + 1e-9
    truncated, unresolved = LOST[model] if kind == "greedy" else (0, 0)
    counts = of_kind["counts"]
    assert (counts["rollouts"], counts["truncated"], counts["unresolved"]) == (140, 7 * truncated, 7 * unresolved)
    cells = of_kind["benchmarks"]["mindcube"]
    shares = {"truncated": truncated / 20, "unresolved": unresolved / 20, "refused": 0.0}
    assert {name: (cells[name]["value"], cells[name]["n"]) for name in shares} == {
        n: (v, 20) for n, v in shares.items()
    }
    assert [name for name, cells in of_kind["benchmarks"].items() if "pair_accuracy" in cells] == ["mmvp"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_benchmark_of_pairs_has_a_column_of_pairs(built: list[Any], kind: str) -> None:
    (table,) = [t for t in built if t.name == f"accuracy-{kind}"]
    titles = [base.benchmark(name).title for name in SEVEN]
    assert sorted(table.headings[1:-2]) == sorted(titles) and table.headings[-2:] == ("average", "MMVP pairs")


def test_some_averages_are_over_benchmarks_and_some_over_questions() -> None:
    """Three questions of one benchmark, one of another: 1/3 and 1 make 2/3 as a mean of benchmarks and 1/2 over questions."""
    settings = setting().eval
    values = [("cvb_2d", 1.0), ("cvb_2d", 0.0), ("cvb_2d", 0.0), ("mmvp", 1.0)]
    records = [record("fgrpo", name, n, "greedy", dict.fromkeys(SCORES, v)) for n, (name, v) in enumerate(values)]
    average = summary.summarise(records, (), settings)["greedy"]["average"]
    by_question = {"flip", "statement", "format"}
    for metric in SCORES:
        assert average[metric]["value"] == pytest.approx(1 / 2 if metric in by_question else 2 / 3), metric
    assert average["accuracy"]["benchmarks"] == 2 and average["accuracy"]["n"] == 4


def test_what_has_no_score_is_in_no_average_and_a_benchmark_without_any_neither() -> None:
    records = [
        record("fgrpo", "cvb_2d", 0, "greedy", {"accuracy": 1.0, "inconsistency": None, "flip": None}),
        record("fgrpo", "cvb_2d", 1, "greedy", {"accuracy": 0.0, "inconsistency": 1.0, "flip": None}),
        record(
            "fgrpo", "mmvp", 2, "greedy", {"accuracy": 1.0, "inconsistency": None, "flip": None}, answer_from="judge"
        ),
        record("fgrpo", "mmvp", 3, "greedy", {}, finish="error", answer_from="refused"),
    ]
    part = summary.summarise(records, (), setting().eval)["greedy"]
    assert part["average"]["inconsistency"] | {"low": 0, "high": 0} == {
        "value": 1.0, "low": 0, "high": 0, "n": 1, "benchmarks": 1,
    }  # fmt: skip
    assert "flip" not in part["average"] and "inconsistency" not in part["benchmarks"]["mmvp"]
    assert part["benchmarks"]["mmvp"]["refused"]["value"] == 0.5 and part["counts"]["refused"] == 1
    assert part["benchmarks"]["mmvp"]["accuracy_by_rules"] | {"low": 0, "high": 0} == {
        "value": 0.0, "low": 0, "high": 0, "n": 1,
    }  # fmt: skip
    assert part["counts"]["states"] == {
        "accuracy/scored": 3, "consistency/not_applicable": 2, "consistency/scored": 1, "flip/not_applicable": 3,
    }  # fmt: skip


def test_trials_of_one_question_are_resampled_together() -> None:
    """Both orders of a question agree always, so that the interval is that of half as many questions; confidence widens it."""
    alone = [record("fgrpo", "sat_real", n, "greedy", {"accuracy": float(n // 2 % 2)}) for n in range(40)]
    together = [dataclasses.replace(r, meta={**r.meta, "group": str(n // 2)}) for n, r in enumerate(alone)]
    config = setting("eval.bootstrap_samples=2000")

    def width(records: Sequence[EvalRecord], place: str, settings: Any = config.eval) -> float:
        of_kind = summary.summarise(records, (), settings)["greedy"]
        cell = of_kind["average"]["accuracy"] if place == "average" else of_kind["benchmarks"][place]["accuracy"]
        return float(cell["high"] - cell["low"])

    for place in ("sat_real", "average"):
        assert width(together, place) > 1.25 * width(alone, place), place
        assert width(alone, place, setting("eval.confidence=0.5").eval) < 0.5 * width(alone, place), place


@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_of_the_main_tables(built: list[Any], kind: str) -> None:
    accuracy, faithful = (table_named(built, f"{name}-{kind}") for name in ("accuracy", "faithfulness"))
    titles = {base.benchmark(name).title: name for name in SEVEN} | {"average": "average"}
    assert list(accuracy.headings)[1:9] == list(titles)
    assert list(faithful.headings) == [
        "model",
        *map(heading, METRICS),
        "format ↑",
        "truncated",
        "unparsed",
        "no trace",
    ]
    for model, title in TITLES.items():
        row = rows_of(accuracy)[title]
        for column, place in titles.items():
            assert number(row[column]) == expected(model, kind, "accuracy", place), column
        row = rows_of(faithful)[title]
        for metric in METRICS:
            assert number(row[heading(metric)]) == expected(model, kind, metric, "average"), metric
        truncated, unresolved = LOST[model] if kind == "greedy" else (0, 0)
        assert number(row["format ↑"]) == expected(model, kind, "format", "average")
        assert (number(row["truncated"]), number(row["unparsed"])) == (5.0 * truncated, 5.0 * unresolved)
    words = {"greedy": "greedy", "sampled": "sampled"}[kind]
    assert words in accuracy.title and words in faithful.title


def test_cells_carry_their_own_interval(stored: tuple[Config, Path], built: list[Any]) -> None:
    config, root = stored
    cells = find(config, root)["fgrpo"].summary["greedy"]
    row = rows_of(table_named(built, "accuracy-greedy"))["FGRPO"]
    for name in SEVEN:
        cell = cells["benchmarks"][name]["accuracy"]
        bounds = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
        assert row[base.benchmark(name).title] == f"{100 * cell['value']:.1f} {bounds}"
    cell = cells["benchmarks"]["mmvp"]["pair_accuracy"]
    bounds = f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    assert row[f"{base.benchmark('mmvp').title} pairs"] == f"{100 * cell['value']:.1f} {bounds}"
    (shown, *_) = tables.main_tables(find(config, root), config)
    cell = cells["average"]["accuracy"]
    assert rows_of(shown)["FGRPO"]["average"] == f"55.0 ±{50 * (cell['high'] - cell['low']):.1f}"


def test_pairs_are_shown_for_the_benchmark_that_has_them() -> None:
    """Both members right in one pair of two: pairs 50, questions 75."""
    config = setting()
    records = [record("fgrpo", "mmvp", n, "greedy", {"accuracy": float(n != 3)}, group=str(n // 2)) for n in range(4)]
    records += [record("fgrpo", "mmvp", n, "sampled", {"accuracy": float(n > 1)}, group=str(n // 2)) for n in range(4)]
    figures_of = summary.summarise(records, ["mmvp"], config.eval)
    result = Result("fgrpo", "FGRPO", Path("nowhere"), figures_of)
    for kind, pairs, questions in (("greedy", 50.0, 75.0), ("sampled", 50.0, 50.0)):
        (row,) = rows_of(table_named(tables.main_tables({"fgrpo": result}, config), f"accuracy-{kind}")).values()
        title = base.benchmark("mmvp").title
        assert (number(row[f"{title} pairs"]), number(row[title])) == (pairs, questions)


def test_ours_is_in_the_papers_cell_of_the_same_model_and_benchmark(built: list[Any]) -> None:
    """The paper's figures are typed off its tables here once more."""
    titles = [base.benchmark(name).title for name in SEVEN]
    paper = {
        "table1": {
            "GRPO-T 7B": dict(zip((*titles, "average"), (80.0, 85.9, 41.7, 74.0, 40.9, 66.7, 67.0, 65.2), strict=True)),
            "FGRPO 7B": dict(zip((*titles, "average"), (82.4, 87.0, 49.3, 73.3, 44.8, 67.6, 65.7, 67.2), strict=True)),
        },
        "table2": {
            "Task only (GRPO-T)": {"accuracy ↑": 65.2, "inconsistency ↓": 26.1},
            "FGRPO": {"accuracy ↑": 67.2, "inconsistency ↓": 1.7},
        },
        "table3": {
            "GRPO-T": {"accuracy ↑": 65.2, "inconsistency ↓": 26.1},
            "Adaptive multipliers": {"accuracy ↑": 67.2, "inconsistency ↓": 1.7},
        },
    }
    places = dict(zip(titles, SEVEN, strict=True)) | dict.fromkeys(
        ("average", "accuracy ↑", "inconsistency ↓"), "average"
    )
    for name, rows in paper.items():
        shown = rows_of(table_named(built, name))
        for title, cells in rows.items():
            model = "grpo-t" if "GRPO-T" in title else "fgrpo"
            for column, theirs in cells.items():
                metric = "inconsistency" if column.startswith("inconsistency") else "accuracy"
                ours = expected(model, "greedy", metric, places[column])
                match = re.fullmatch(r"([\d.]+)(?: ±[\d.]+)? / ([\d.]+) \(([+-][\d.]+)\)", shown[title][column])
                assert match, shown[title][column]
                assert (float(match[1]), float(match[2])) == (ours, theirs), (name, title, column)
                assert float(match[3]) == pytest.approx(ours - theirs, abs=0.11)
        others = [row for title, row in shown.items() if title not in rows]
        assert others and all(cell.startswith("– / ") for row in others for cell in list(row.values())[1:])


def test_files_of_the_tables_hold_the_tables(stored: tuple[Config, Path], built: list[Any]) -> None:
    config, root = stored
    shown, everything, out = tables.build(config, root)
    data = json.loads((out / "tables.json").read_text())
    assert [t.rows for t in everything] == [t.rows for t in built]
    assert set(data["tables"]) == {t.name for t in built}
    for table in built:
        assert data["tables"][table.name]["rows"] == [list(row) for row in table.rows]
        assert data["tables"][table.name]["headings"] == list(table.headings)
        text = (out / f"{table.name}.md").read_text()
        assert table.title in text and all(f"| {row[0]} |" in text for row in table.rows)
        assert (out / f"{table.name}.tex").is_file()
    assert {name: figures["greedy"]["average"]["flip"]["value"] for name, figures in data["summaries"].items()} == {
        "grpo-t": pytest.approx(0.25), "fgrpo": pytest.approx(0.15),
    }  # fmt: skip
    assert shown[0].name == "grpo-t-vs-fgrpo-sampled"  # the headline comparison comes first


def test_the_command_prints_the_overview_of_these_figures_and_names_the_report(
    stored: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, root = stored
    monkeypatch.setattr("sys.argv", ["eval.tables", "--runs", str(root), "--set", "eval.bootstrap_samples=40"])
    tables.main()
    text = capsys.readouterr().out
    assert f"tables: {root / config.preset / 'tables'}" in text and "report:" not in text
    brief = json.loads((root / config.preset / "tables" / "overview.json").read_text())
    headings, rows = brief["table"]["headings"], brief["table"]["rows"]
    assert headings == ["model", *map(heading, METRICS[:4])]
    for (model, title), row in zip(TITLES.items(), rows, strict=True):
        assert row[0] == title
        assert [number(cell) for cell in row[1:]] == [expected(model, "sampled", m, "average") for m in METRICS[:4]]
        assert all(cell in text for cell in row)
    gaps = [
        expected("fgrpo", "sampled", m, "average") - expected("grpo-t", "sampled", m, "average") for m in METRICS[:4]
    ]
    (line,) = brief["comparisons"]
    assert line == "GRPO-T → FGRPO: " + ", ".join(
        f"{TITLE_OF[m]} {gap:+.1f} (better)" for m, gap in zip(METRICS[:4], gaps, strict=True)
    )
    page = root / config.preset / "report" / "index.html"
    page.parent.mkdir()
    page.touch()
    tables.main()
    assert f"report: {page}" in capsys.readouterr().out
    page.unlink()
    page.parent.rmdir()


def test_the_paired_comparison_goes_from_the_first_model_to_the_second(
    stored: tuple[Config, Path], built: list[Any]
) -> None:
    config, root = stored
    data = json.loads((root / config.preset / "tables" / "tables.json").read_text())["comparisons"]
    for kind in KINDS:
        entries, rows = data[f"grpo-t-vs-fgrpo-{kind}"], rows_of(table_named(built, f"grpo-t-vs-fgrpo-{kind}"))
        assert list(rows) == list(map(heading, METRICS))
        for metric, row in zip(METRICS, rows.values(), strict=True):
            before, after = (expected(model, kind, metric, "average") for model in ("grpo-t", "fgrpo"))
            entry = entries[metric]
            assert (100 * entry["a"], 100 * entry["b"], entry["n"]) == (
                pytest.approx(before),
                pytest.approx(after),
                140,
            )
            gap = entry["difference"]
            assert 100 * gap["value"] == pytest.approx(after - before)
            assert gap["low"] - 1e-9 <= gap["value"] <= gap["high"] + 1e-9
            assert row["GRPO-T → FGRPO"] == f"{before:.1f} → {after:.1f}"
            assert number(row["difference"].removeprefix("+")) == pytest.approx(after - before)
            assert row["n"] == "140"
            better = (after > before) == (metric in HIGHER_IS_BETTER)
            assert row[""] == ("better" if better else "worse"), metric
            assert ("mcnemar" in entry) == (metric in ("accuracy", "inconsistency"))


def compared(
    tmp_path: Path, metric: str, pairs: Sequence[tuple[float | None, float | None]]
) -> tuple[Any, dict[str, str]]:
    """(entry, row) of one metric for two models with these values, one pair a question."""
    config = setting("eval.bootstrap_samples=400")
    sides = []
    for k, name in enumerate(("grpo-t", "fgrpo")):
        records = [record(name, "cvb_2d", n, "greedy", {metric: pair[k]}) for n, pair in enumerate(pairs)]
        folder = tmp_path / f"{metric}-{name}"
        folder.mkdir()
        write_jsonl(folder / "scores.jsonl", (r.to_dict() for r in records))
        sides.append(Result(name, TITLES[name], folder, {}))
    entries = comparisons.compare(sides[0], sides[1], "greedy", config)
    (row,) = rows_of(comparisons.comparison_table(sides[0], sides[1], "greedy", entries)).values()
    return entries[metric], row


def test_which_models_are_compared(tmp_path: Path) -> None:
    """Before and after RL, the two methods, and each ablation with the full method; for both decodings, where both have it."""
    config = setting()
    ablations = ("grpo-additive", "grpo-multiplicative", "fgrpo-consistency", "fgrpo-fixed")
    for model in ("backbone-cot", "sft", "grpo-t", "fgrpo", *ablations):
        kinds = ("greedy",) if model == "fgrpo-fixed" else KINDS
        store(config, tmp_path, model, [record(model, "mmvp", 0, kind, {"accuracy": 1.0}) for kind in kinds])
    _, everything, _ = tables.build(config, tmp_path)
    both = ["backbone-cot-vs-sft", "sft-vs-grpo-t", "sft-vs-fgrpo", "grpo-t-vs-fgrpo"]
    both += [f"{name}-vs-fgrpo" for name in ablations[:3]]
    expected_names = {f"{pair}-{kind}" for pair in both for kind in KINDS} | {"fgrpo-fixed-vs-fgrpo-greedy"}
    assert {t.name for t in everything if "-vs-" in t.name} == expected_names
    titles = {"accuracy-greedy": 8, "accuracy-sampled": 7, "faithfulness-greedy": 8, "faithfulness-sampled": 7}
    assert {name: len(table_named(everything, name).rows) for name in titles} == titles


@pytest.mark.parametrize("metric", METRICS)
def test_more_is_better_or_worse_as_the_metric_is(tmp_path: Path, metric: str) -> None:
    good, bad = ("better", "worse") if metric in HIGHER_IS_BETTER else ("worse", "better")
    for folder, pairs, word in (
        ("up", [(0.0, 1.0)] * 9 + [(0.0, 0.0)], good),
        ("down", [(1.0, 0.0)] * 9 + [(0.0, 0.0)], bad),
        ("same", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)] * 3, "no clear change"),
    ):
        (tmp_path / folder).mkdir()
        assert compared(tmp_path / folder, metric, pairs)[1][""] == word, folder


@pytest.mark.parametrize("metric", ["accuracy", "inconsistency"])
def test_the_discordant_questions_are_counted_on_the_side_that_has_them(tmp_path: Path, metric: str) -> None:
    """1 question of the first alone, 5 of the second alone, 4 of both, 2 of none; two without a value in one of them."""
    pairs = [(1.0, 0.0), *[(0.0, 1.0)] * 5, *[(1.0, 1.0)] * 4, *[(0.0, 0.0)] * 2, (None, 1.0), (1.0, None)]
    entry, row = compared(tmp_path, metric, pairs)
    assert (entry["mcnemar"]["only_a"], entry["mcnemar"]["only_b"]) == (1, 5)
    assert entry["mcnemar"]["p"] == pytest.approx(14 / 64)
    assert entry["flipped"] == [f"cvb_2d/test/{n}" for n in range(6)]
    assert (entry["n"], entry["a"], entry["b"]) == (12, pytest.approx(5 / 12), pytest.approx(9 / 12))
    assert (row["only A / only B"], row["McNemar p"], row["n"]) == ("1 / 5", "0.22", "12")
    assert row["GRPO-T → FGRPO"] == "41.7 → 75.0" and row["difference"].startswith("+33.3 [")


def test_comparisons_are_paired_by_question_not_by_place(tmp_path: Path) -> None:
    """The second model's answers are stored in another order, and it lacks one of them."""
    config = setting()
    sides = []
    for name, order in (("grpo-t", (0, 1, 2, 3)), ("fgrpo", (2, 1, 0))):
        folder = tmp_path / name
        folder.mkdir()
        records = [record(name, "cvb_2d", n, "greedy", {"accuracy": float(n == 0)}) for n in order]
        records.append(record(name, "cvb_2d", 0, "sampled", {"accuracy": float(name == "fgrpo")}))
        write_jsonl(folder / "scores.jsonl", (r.to_dict() for r in records))
        sides.append(Result(name, TITLES[name], folder, {}))
    entry = comparisons.compare(sides[0], sides[1], "greedy", config)["accuracy"]
    assert (entry["n"], entry["mcnemar"]["only_a"], entry["mcnemar"]["only_b"], entry["flipped"]) == (3, 0, 0, [])
    entry = comparisons.compare(sides[0], sides[1], "sampled", config)["accuracy"]
    assert (entry["n"], entry["mcnemar"]["only_a"], entry["mcnemar"]["only_b"]) == (1, 0, 1)
