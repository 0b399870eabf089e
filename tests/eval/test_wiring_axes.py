"""Hand-overs to the reader: what is on the axes, in the notes, and on the page, beyond the plotted values."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from known import SEVEN, TITLES, expected, heading, record, rows_of, setting, store, table_named
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from eval import base, comparisons, curves, figure_style, figures, models, report, tables
from eval.results import CAPTION_FILE, Result, find
from fgrpo.files import write_jsonl
from fgrpo.schema import Config


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def copied(stored: tuple[Config, Path], tmp_path: Path) -> tuple[Config, Path]:
    """The stored evaluations in a folder that a test may change."""
    config, root = stored
    shutil.copytree(root / config.preset / "eval", tmp_path / config.preset / "eval")
    return config, tmp_path


def test_the_level_of_confidence_is_named_wherever_intervals_are_shown(
    copied: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, root = copied
    config = setting("eval.confidence=0.8")
    results = find(config, root)
    drawn = figures.figure3(results, config)
    assert drawn is not None and "; 80% intervals" in drawn.get_supxlabel()
    assert "80% bootstrap" in table_named(tables.main_tables(results, config), "accuracy-greedy").note
    assert "± half the 80% bootstrap interval" in tables.overview(results, config, {}).table.note
    monkeypatch.setattr(report, "collect", lambda *_, **__: [])
    page = report.write(config, root).read_text(encoding="utf-8")
    assert "SAT-Real) with 80% intervals" in page
    assert "95%" not in page.partition("</nav>")[0]


def test_a_page_without_figures_or_examples_has_neither(
    copied: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = copied
    asked: list[Any] = []
    monkeypatch.setattr(report, "collect", lambda *args, **_: asked.append(args) or [])
    page = report.write(config, root).read_text(encoding="utf-8")
    assert "<figure>" not in page and 'href="#figures"' not in page and '<article class="example"' not in page
    ((shown, used, kind),) = asked
    assert ([r.name for r in shown], used, kind) == (["grpo-t", "fgrpo"], config, "sampled")
    folder = root / config.preset / "figures"
    folder.mkdir()
    (folder / "figure3.png").write_bytes(b"three")
    (folder / CAPTION_FILE).write_text(json.dumps({"figure3": "the third", "figure4": "lost"}))
    page = report.write(config, root).read_text(encoding="utf-8")
    assert page.count("<figure>") == 1 and "the third" in page and "lost" not in page  # a caption without its file


def test_the_page_without_two_trained_models_shows_the_reasoning_ones(stored: tuple[Config, Path]) -> None:
    config, root = stored
    results = find(config, root)
    assert [r.name for r in report.sides(results, config)] == ["grpo-t", "fgrpo"]
    alone = {"fgrpo": results["fgrpo"]}
    assert [r.name for r in report.sides(alone, config)] == ["fgrpo"]

    def other(name: str, mode: str) -> Result:
        return Result(name, name, root, {**results["fgrpo"].summary, "mode": mode})

    api = {"one": other("one", "think"), "two": other("two", "direct"), "three": other("three", "think")}
    assert [r.name for r in report.sides(api, config)] == ["one", "three", "two"]
    four = report.sides({**api, "four": other("four", "think")}, config)
    assert [r.name for r in four] == ["three", "four", "one", "two"]


def test_bars_and_rates_start_at_zero(tmp_path: Path) -> None:
    """Also where each value is zero, or far from it."""
    config = setting()
    values = {"accuracy": 1.0, "inconsistency": 1.0, "semantic_grounding": 0.9, "spatial_grounding": 0.0}
    for model in TITLES:
        store(config, tmp_path, model, [record(model, "mmvp", n, "greedy", values) for n in range(4)])
    drawn = figures.figure3(find(config, tmp_path), config)
    assert drawn is not None
    assert [axis.get_ylim()[0] for axis in drawn.axes] == [0.0, 0.0, 0.0]
    rows = [{"step": n, "accuracy": 0.8 + n / 100, "inconsistency": 0.5 + n / 100} for n in range(1, 4)]
    of_training = figures.figure4({"fgrpo": rows})
    assert of_training is not None
    accuracy, inconsistency = of_training.axes
    assert inconsistency.get_ylim()[0] == 0.0 and accuracy.get_ylim()[0] > 0.5
    assert inconsistency.get_ylim()[1] > 53.0
    path = {2: find(config, tmp_path)["grpo-t"], 4: find(config, tmp_path)["fgrpo"]}
    of_checkpoints = figures.figure4_checkpoints({"fgrpo": path})
    assert of_checkpoints is not None and of_checkpoints.axes[1].get_ylim()[0] == 0.0


def test_figure_3_leaves_out_what_no_model_has(tmp_path: Path) -> None:
    config = setting()
    store(config, tmp_path, "fgrpo", [record("fgrpo", "mmvp", 0, "greedy", {"accuracy": 1.0, "inconsistency": 0.0})])
    store(config, tmp_path, "grpo-t", [record("grpo-t", "mmvp", 0, "greedy", {"accuracy": 1.0})])
    drawn = figures.figure3(find(config, tmp_path), config)
    assert drawn is not None
    assert [a.get_title() for a in drawn.axes] == ["Inconsistency, % (lower is better)"]
    (axis,) = drawn.axes
    assert [str(c.get_label()) for c in axis.containers if hasattr(c[0], "get_height")] == ["FGRPO"]
    titles = [base.benchmark(name).title for name in SEVEN]
    assert [t.get_text() for t in axis.get_xticklabels()] == [*titles, "average"]
    places = axis.get_xticks()
    assert list(places[:-1]) == list(range(7)) and places[-1] == 7.25  # the average stands apart
    assert figures.figure3({}, config) is None
    assert [m.metric for m in figures.figure3_measures(find(config, tmp_path))] == ["inconsistency"]
    assert figures.figure3_measures(find(config, tmp_path), "sampled") == []


def metrics_line(step: int, *names: str, weight: float = 1.0) -> dict[str, Any]:
    line: dict[str, Any] = {"step": step, "accuracy": 0.5, "inconsistency": 0.2}
    for name in names:
        line |= {f"constraint/{name}/mean": 0.9, f"lambda/{name}": weight}
    return line


@pytest.mark.parametrize("names", [("consistency",), ("spatial_grounding", "own_thing")])
def test_figure_8_has_one_column_per_constraint(names: tuple[str, ...]) -> None:
    """One constraint too, as in the ablation with consistency alone; a constraint that is no reward keeps its name."""
    rows = [metrics_line(n, *names, weight=0.3) for n in range(1, 4)]
    drawn = figures.figure8("fgrpo-consistency", rows, {names[0]: 0.5})
    assert drawn is not None
    count = len(names)
    above, below = drawn.axes[:count], drawn.axes[count:]
    assert [axis.get_title() for axis in above] == [n.replace("_", " ") for n in names]
    assert [len(axis.lines) for axis in below] == [1] * count
    assert [axis.get_xlabel() for axis in drawn.axes] == [""] * count + ["RL step"] * count
    assert [axis.get_ylabel() for axis in drawn.axes if axis.get_ylabel()] == ["batch mean", "multiplier λ"]
    assert all(axis.get_ylim() == (0.0, 1.1) for axis in below)  # a small multiplier is not magnified
    assert all(axis.get_ylim()[1] <= 1.03 for axis in above)
    assert figures.figure8("fgrpo", [{"step": 1, "accuracy": 0.5}], {}) is None


def test_figure_8_magnifies_scores_near_each_other() -> None:
    rows = [{**metrics_line(n, "consistency"), "constraint/consistency/mean": 0.8 + n / 100} for n in range(1, 9)]
    drawn = figures.figure8("fgrpo", rows, {})
    assert drawn is not None
    low, high = drawn.axes[0].get_ylim()
    assert 0.7 < low < 0.81 and 0.88 < high < 1.0


def test_figure_8_has_gaps_where_a_step_has_no_mean() -> None:
    rows = [metrics_line(1, "consistency"), {"step": 2, "constraint/consistency/mean": None}, metrics_line(3, "consistency")]  # fmt: skip
    drawn = figures.figure8("fgrpo", rows, {})
    assert drawn is not None
    thin = drawn.axes[0].lines[0]
    assert [str(y) for y in thin.get_ydata()] == ["0.9", "nan", "0.9"] and list(thin.get_xdata()) == [1, 2, 3]
    assert list(drawn.axes[1].lines[0].get_ydata()) == [1.0, None, 1.0]


def test_a_method_has_one_colour_in_every_figure_and_a_constraint_its_rewards(
    copied: tuple[Config, Path],
) -> None:
    config, root = copied
    drawn = figures.figure3(find(config, root), config)
    assert drawn is not None
    bars = [c for c in drawn.axes[0].containers if hasattr(c[0], "get_height")]
    lines = figures.figure4({m: [metrics_line(n) for n in (1, 2, 3)] for m in TITLES})
    assert lines is not None
    for k, (model, container) in enumerate(zip(TITLES, bars, strict=True)):
        tints = {to_hex(container[0].get_facecolor()), *(to_hex(x.get_color()) for x in lines.axes[0].lines[2 * k : 2 * k + 2])}  # fmt: skip
        assert tints == {figure_style.METHOD_COLOURS[model].lower()}
    assert figure_style.constraint_style("consistency") == ("consistency", "#009E73")
    assert figure_style.constraint_style("semantic_grounding", 3) == ("semantic grounding", "#0072B2")
    assert figure_style.constraint_style("own_thing", 1) == ("own thing", "#D55E00")
    assert figure_style.colour("unknown", 6) == figure_style.SPARE[1] and figure_style.colour("sft", 3) == "#8c8c8c"


def test_each_method_with_multipliers_has_a_figure_8_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = setting()
    seen: dict[str, Figure] = {}
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path, **_: (seen.update({Path(path).name: self}), Path(path).touch())
    )
    for method in ("fgrpo", "fgrpo-fixed", "grpo-t", "aaa"):
        names = () if method == "grpo-t" else ("consistency",)
        (tmp_path / "mini" / f"rl-{method}").mkdir(parents=True)
        rows = [metrics_line(n, *names) for n in (2, 1, 2, 3)]  # out of order, and step 2 twice after a resume
        rows[2]["accuracy"] = 0.75
        write_jsonl(tmp_path / "mini" / f"rl-{method}" / "metrics.jsonl", [{"note": "no step"}, *rows])
    runs = curves.training(config, tmp_path)
    assert list(runs) == ["grpo-t", "fgrpo", "fgrpo-fixed", "aaa"]  # known methods in order, then others by name
    assert all([row["step"] for row in rows] == [1, 2, 3] for rows in runs.values())
    assert [row["accuracy"] for row in runs["fgrpo"]] == [0.5, 0.75, 0.5]
    written = figures.draw(config, tmp_path)
    names = ["figure4", "figure8", "figure8-fgrpo-fixed", "figure8-aaa"]
    assert [p.name for p in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    captions = json.loads((tmp_path / "mini" / "figures" / CAPTION_FILE).read_text())
    assert set(captions) == {p.stem for p in written}
    assert captions["figure8"] == captions["figure8-aaa"] and "training rollouts" in captions["figure4"]
    titles = {name.strip(".").partition(".")[0]: f.get_suptitle() for name, f in seen.items() if "figure8" in name}
    assert {name: title.partition(":")[0] for name, title in titles.items()} == {
        "figure8": "FGRPO",
        "figure8-fgrpo-fixed": models.load("fgrpo-fixed").title,
        "figure8-aaa": "aaa",
    }
    own = setting().model_copy(update={"method": "fgrpo-fixed"})
    assert [p.name for p in figures.draw(own, tmp_path) if p.suffix == ".png"][1:] == [
        "figure8.png", "figure8-fgrpo.png", "figure8-aaa.png",
    ]  # fmt: skip


def test_the_caption_of_figure_3_names_its_panels(copied: tuple[Config, Path]) -> None:
    config, root = copied
    figures.draw(config, root)
    captions = json.loads((root / config.preset / "figures" / CAPTION_FILE).read_text())
    assert captions == {"figure3": "Figure 3: inconsistency, semantic grounding, spatial grounding per data set."}


@pytest.mark.parametrize(("module", "result"), [(figures, CAPTION_FILE), (report, "index.html")])
def test_if_changed_skips_what_is_current(
    module: Any, result: str, copied: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    config, root = copied
    name = module.__name__.removeprefix("eval.")
    out = root / config.preset / name
    made: list[int] = []

    def make(*_: Any) -> Any:
        out.mkdir(exist_ok=True)
        (out / result).write_text("{}")
        made.append(1)
        return [out / result] if module is figures else out / result

    monkeypatch.setattr(module, "draw" if module is figures else "write", make)
    command = ["x", "--preset", "mini", "--runs", str(root), "--set", "eval.bootstrap_samples=40"]
    for extra, count in ((["--if-changed"], 1), (["--if-changed"], 1), ([], 2), (["--if-changed"], 2)):
        monkeypatch.setattr("sys.argv", [*command, *extra] if not extra else [*command[:5], *extra, *command[5:]])
        module.main()
        assert len(made) == count
    assert f"{name}: {out} is current" in capsys.readouterr().out
    with (root / config.preset / "eval" / "fgrpo" / "scores.jsonl").open("a") as scores:
        scores.write("\n")
    monkeypatch.setattr("sys.argv", [*command[:5], "--if-changed", *command[5:]])
    module.main()
    assert len(made) == 3


def test_intervals_of_a_comparison_to_the_last_figure(stored: tuple[Config, Path]) -> None:
    config, root = stored
    results = find(config, root)
    for kind in ("greedy", "sampled"):
        entries = comparisons.compare(results["grpo-t"], results["fgrpo"], kind, config)
        entries["accuracy"]["difference"] = {"value": 0.123456, "low": -0.234567, "high": 0.345678}
        entries["accuracy"]["mcnemar"] = {"only_a": 3, "only_b": 7, "p": 0.012345}
        table = comparisons.comparison_table(results["grpo-t"], results["fgrpo"], kind, entries)
        row = rows_of(table)[heading("accuracy")]
        assert row["difference"] == "+12.3 [-23.5, +34.6]" and row[""] == "no clear change"
        assert (row["only A / only B"], row["McNemar p"]) == ("3 / 7", "0.012")
        for metric in ("inconsistency", "semantic_grounding"):
            gap = entries[metric]["difference"]
            shown = rows_of(table)[heading(metric)]["difference"]
            assert shown == f"{100 * gap['value']:+.1f} [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
        assert rows_of(table)[heading("semantic_grounding")]["McNemar p"] == "–"
        assert table.title == f"GRPO-T against FGRPO ({comparisons.KINDS[kind]})"
        assert table.name == f"grpo-t-vs-fgrpo-{kind}" and table.note.startswith("A is GRPO-T, B is FGRPO;")
        del entries["flip"]
        shorter = comparisons.comparison_table(results["grpo-t"], results["fgrpo"], kind, entries)
        assert len(shorter.rows) == len(table.rows) - 1


def test_the_confidence_of_a_comparison_is_the_configurations(stored: tuple[Config, Path]) -> None:
    config, root = stored
    results = find(config, root)

    def width(confidence: float) -> float:
        changed = setting(f"eval.confidence={confidence}", "eval.bootstrap_samples=400")
        gap = comparisons.compare(results["grpo-t"], results["fgrpo"], "greedy", changed)["accuracy"]["difference"]
        return float(gap["high"] - gap["low"])

    assert width(0.5) < 0.6 * width(0.95)


def test_a_verdict_needs_an_interval_that_excludes_zero() -> None:
    from eval.measures import ACCURACY, FLIP

    def word(low: float, value: float, high: float, measure: Any = ACCURACY) -> str:
        return comparisons.verdict({"difference": {"value": value, "low": low, "high": high}}, measure)

    assert (word(0.1, 0.2, 0.3), word(-0.3, -0.2, -0.1)) == ("better", "worse")
    assert (word(0.1, 0.2, 0.3, FLIP), word(-0.3, -0.2, -0.1, FLIP)) == ("worse", "better")
    assert {word(0.0, 0.2, 0.3), word(-0.3, -0.2, 0.0), word(-0.1, 0.2, 0.3)} == {"no clear change"}


def test_the_overview_in_a_terminal_and_as_markdown(stored: tuple[Config, Path]) -> None:
    config, root = stored
    results = find(config, root)
    entries = {f"grpo-t-vs-fgrpo-{k}": comparisons.compare(results["grpo-t"], results["fgrpo"], k, config) for k in ("greedy", "sampled")}  # fmt: skip
    brief = tables.overview(results, config, entries)
    (line,) = brief.lines
    assert brief.kind == "sampled" and line.startswith("GRPO-T → FGRPO: accuracy +25.0 (better), inconsistency -45.0")
    assert brief.text() == "\n".join([brief.table.text(), "", tables.COMPARISON_NOTE, line])
    assert brief.markdown() == f"{brief.table.markdown()}\n{tables.COMPARISON_NOTE}\n\n- {line}\n"
    alone = dataclasses.replace(brief, lines=())
    assert alone.text() == brief.table.text() and alone.markdown() == brief.table.markdown() + "\n"
    assert brief.to_dict() == {"kind": "sampled", "table": brief.table.to_dict(), "comparisons": [line]}
    assert tables.overview(results, config, {}).lines == ()
    assert expected("fgrpo", "sampled", "accuracy", "average") == 65.0
