"""The figure of the probes: which columns of metrics.jsonl are drawn in which panel, and the lines to compare with."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from known import setting
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval import figure_style, figures, probe_figure
from eval.results import CAPTION_FILE
from fgrpo.files import write_jsonl
from rewards.base import load, needs_of

STEPS = range(1, 6)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def monitored(n: int) -> dict[str, Any]:
    """A step of a run that monitors all four; every column that is drawn is another number."""
    return {
        "step": n,
        "monitor/evidence_margin/mean": 0.8 + n / 100, "monitor/evidence_margin/n": 9.0,
        "monitor/evidence_margin/evidence_drop": 1.5 + n / 100, "monitor/evidence_margin/control_drop": 0.2 + n / 100,
        "monitor/control_margin/mean": 0.5 + n / 100, "monitor/control_margin/n": 9.0,
        "monitor/attention_where_it_matters/mean": 0.6 + n / 100, "monitor/attention_where_it_matters/unweighted": 0.3 + n / 100,
        "monitor/attention_where_it_matters/dependence": 9.0, "monitor/vision_dependence/mean": 2.0 + n / 100,
        "monitor/consistency/mean": 0.1,
    }  # fmt: skip


def constrained(n: int) -> dict[str, Any]:
    """A step of a run with a constraint on two of them, one by an indicator."""
    return {
        "step": n, "constraint/evidence_margin/mean": 0.7 + n / 100, "lambda/evidence_margin": 1.0,
        "constraint/attention_where_it_matters/mean": 9.0, "constraint/attention_where_it_matters/score": 0.4 + n / 100,
    }  # fmt: skip


def lines_of(axis: Axes, length: int = len(STEPS)) -> dict[tuple[str, str], list[float]]:
    """{(label, line style): y values} of the thick curves, or of the lines across the panel."""
    return {
        (str(line.get_label()), str(line.get_linestyle())): [float(y) for y in line.get_ydata()]
        for line in axis.lines
        if len(line.get_xdata()) == length and line.get_linewidth() > 0.8
    }


def test_each_score_has_its_panel_with_the_line_to_compare_with() -> None:
    runs = {"sft": [{"step": n, "accuracy": 0.5} for n in STEPS], "fgrpo": [*map(monitored, STEPS)]}
    drawn = probe_figure.probe_figure(runs, {})
    assert drawn is not None
    panels = {axis.get_title(): axis for axis in drawn.axes if axis.get_visible()}
    assert list(panels) == [
        "Evidence margin",
        "Control margin",
        "Mean drop of the log-probability, nats a token",
        "Attention where it matters",
        "Vision dependence, nats a token",
    ]
    smooth = {name: list(figure_style.smooth([monitored(n)[f"monitor/{name}"] for n in STEPS], 1)) for name in (
        "evidence_margin/mean", "evidence_margin/evidence_drop", "evidence_margin/control_drop", "control_margin/mean",
        "attention_where_it_matters/mean",
        "attention_where_it_matters/unweighted", "vision_dependence/mean",
    )}  # fmt: skip
    solid = ("FGRPO", "-")
    assert lines_of(panels["Evidence margin"]) == {solid: pytest.approx(smooth["evidence_margin/mean"])}
    assert lines_of(panels["Control margin"]) == {solid: pytest.approx(smooth["control_margin/mean"])}
    for title in ("Evidence margin", "Control margin"):
        assert list(lines_of(panels[title], 2).values()) == [[0.5, 0.5]]
        low, high = panels[title].get_ylim()
        assert low <= 0.4 and high >= 0.6, "noise around 0.5 is not magnified"
    drops = lines_of(panels["Mean drop of the log-probability, nats a token"])
    assert drops.pop(solid) == pytest.approx(smooth["evidence_margin/evidence_drop"])
    assert [*drops.values()] == [pytest.approx(smooth["evidence_margin/control_drop"])]
    assert {style for _, style in drops} == {"--"}
    attention = lines_of(panels["Attention where it matters"])
    assert attention.pop(solid) == pytest.approx(smooth["attention_where_it_matters/mean"])
    assert [*attention.values()] == [pytest.approx(smooth["attention_where_it_matters/unweighted"])]
    assert {style for _, style in attention} == {"--"}
    assert lines_of(panels["Vision dependence, nats a token"]) == {
        solid: pytest.approx(smooth["vision_dependence/mean"])
    }
    assert not lines_of(panels["Vision dependence, nats a token"], 2)
    assert [text.get_text() for legend in drawn.legends for text in legend.get_texts()] == ["FGRPO"]


def test_a_constraint_is_drawn_with_its_threshold_where_it_has_a_multiplier() -> None:
    """Of an indicator's constraint the score counts, not the share of rollouts that reach the bound."""
    fixed = [{key: value for key, value in constrained(n).items() if not key.startswith("lambda/")} for n in STEPS]
    runs = {"fgrpo": [*map(constrained, STEPS)], "cora": fixed}
    tau = {method: {"evidence_margin": 0.9, "attention_where_it_matters": 0.55} for method in runs}
    drawn = probe_figure.probe_figure(runs, tau)
    assert drawn is not None
    margin, attention = drawn.axes
    assert [text.get_text() for legend in drawn.legends for text in legend.get_texts()] == ["FGRPO", "CORA-style"]
    assert {tuple(y) for y in lines_of(margin, 2).values()} == {(0.5, 0.5), (0.9, 0.9)}
    (dotted,) = [line for line in margin.lines if line.get_linestyle() == ":"]
    assert dotted.get_color() == figure_style.colour("fgrpo")
    found = lines_of(attention)
    assert found["FGRPO", "-"] == pytest.approx([0.4 + n / 100 for n in STEPS])
    assert {tuple(y) for y in lines_of(attention, 2).values()} == {(0.55, 0.55)}


def test_steps_without_a_score_are_gaps() -> None:
    """No right answer with boxes in that step."""
    rows: list[dict[str, Any]] = [
        monitored(1),
        {"step": 2},
        {"step": 3, "monitor/evidence_margin/mean": None},
        monitored(4),
    ]
    drawn = probe_figure.probe_figure({"fgrpo": rows}, {})
    assert drawn is not None
    thin = next(line for line in drawn.axes[0].lines if line.get_linewidth() == 0.7)
    values = [float(y) for y in thin.get_ydata()]
    assert values == pytest.approx([0.81, math.nan, math.nan, 0.84], nan_ok=True)


def test_every_reward_that_is_measured_on_the_policy_has_a_panel() -> None:
    assert set(probe_figure.MARGINS) < set(probe_figure.measured())
    assert "consistency" not in probe_figure.measured()
    assert all(needs_of(load(name)) for name in probe_figure.measured())


def test_the_command_writes_it_with_its_caption_or_says_that_no_run_logged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = setting()
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: Path(path).touch())
    folder = tmp_path / config.preset / "rl-fgrpo"
    folder.mkdir(parents=True)
    write_jsonl(folder / "metrics.jsonl", ({"step": n, "accuracy": 0.5, "inconsistency": 0.1} for n in STEPS))
    written = figures.draw(config, tmp_path)
    assert [p.stem for p in written] == ["figure4", "figure4"]
    assert "probes: no run logged a score that is measured on the policy" in capsys.readouterr().out
    write_jsonl(folder / "metrics.jsonl", map(monitored, STEPS))
    assert [p.name for p in figures.draw(config, tmp_path)] == ["probes.png", "probes.svg"]
    captions = json.loads((tmp_path / config.preset / "figures" / CAPTION_FILE).read_text())
    assert captions == {"probes": probe_figure.CAPTION}
    assert "probes:" not in capsys.readouterr().out
