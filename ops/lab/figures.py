"""Figures 4 and 8 over seeds: the mean of each method's smoothed curves, with a band from the smallest to the largest seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.figures import STYLE, colour, constraint_style, smooth, window_of
from ops.lab.analysis import Results

FIGURE4, FIGURE8 = "figure4", "figure8"
_PANELS = (("accuracy", "Accuracy of training rollouts, %"), ("inconsistency", "Inconsistency of training rollouts, %"))


def draw(results: Results, out: Path, prefix: str) -> dict[str, Path]:
    """Write `<prefix>figure4.png` (a row per condition) and `<prefix>figure8-<method>.png`; returns {figure: file} of those with data."""
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        shown: dict[str, Figure | None] = {FIGURE4: figure4(results)}
        for method in results.lab.methods:
            shown[f"{FIGURE8}-{method}"] = figure8(results, method)
        for name, figure in shown.items():
            if figure is not None:
                written[name] = out / f"{prefix}{name}.png"
                figure.savefig(written[name], metadata={"Software": None})
                plt.close(figure)
    return written


def figure4(results: Results) -> Figure | None:
    """Accuracy and inconsistency of training rollouts over RL steps; None without a trained cell."""
    rows = [c for c in results.lab.conditions if any(_has(results, c, m, "accuracy") for m in results.lab.methods)]
    if not rows:
        return None
    figure, axes = plt.subplots(len(rows), 2, figsize=(9.5, 3.2 * len(rows)), squeeze=False, layout="constrained")
    for row, condition in enumerate(rows):
        for axis, (key, title) in zip(axes[row], _PANELS, strict=True):
            for k, method in enumerate(results.lab.methods):
                _band(
                    axis,
                    _curves(results, condition, method, key),
                    colour(method, k),
                    results.lab.title_of(method),
                    100.0,
                )
            axis.set_title(f"{condition}: {title}")
            axis.set_xlabel("RL step")
        axes[row][0].legend(loc="best", fontsize=8)
    return figure


def figure8(results: Results, method: str) -> Figure | None:
    """A method's constraints above their multipliers in the first condition with multipliers; None without any."""
    keys = sorted({key for _, key in results.curves if key.startswith("lambda/")})
    for condition in results.lab.conditions:
        names = [key.removeprefix("lambda/") for key in keys if _has(results, condition, method, key)]
        if names:
            break
    else:
        return None
    figure, axes = plt.subplots(
        2, len(names), figsize=(3.3 * len(names), 5.0), sharex=True, squeeze=False, layout="constrained"
    )
    for column, name in enumerate(names):
        title, tint = constraint_style(name, column)
        _band(axes[0][column], _curves(results, condition, method, f"constraint/{name}/mean"), tint, "", 1.0)
        _band(axes[1][column], _curves(results, condition, method, f"lambda/{name}"), tint, "", 1.0)
        axes[0][column].set_title(title)
        axes[1][column].set_xlabel("RL step")
    axes[0][0].set_ylabel("batch mean")
    axes[1][0].set_ylabel("multiplier λ")
    figure.suptitle(f"{results.lab.title_of(method)} in {condition}", x=0.01, ha="left", fontsize=11)
    return figure


def _has(results: Results, condition: str, method: str, key: str) -> bool:
    return any((cell["cell"], key) in results.curves for cell in results.done(condition, method))


def _curves(results: Results, condition: str, method: str, key: str) -> list[Sequence[tuple[int, float]]]:
    found = [results.curves.get((cell["cell"], key)) for cell in results.done(condition, method)]
    return [curve for curve in found if curve]


def _band(axis: Axes, curves: Sequence[Sequence[tuple[int, float]]], tint: str, label: str, scale: float) -> None:
    """The mean over the seeds that reached a step, and the range over them."""
    if not curves:
        return
    steps = sorted({step for curve in curves for step, _ in curve})
    table = np.full((len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        known = dict(curve)
        table[row] = scale * smooth([known.get(step) for step in steps], window_of(len(steps)))
    axis.plot(steps, np.nanmean(table, axis=0), color=tint, linewidth=2.0, label=f"{label} ({len(curves)} seeds)")
    axis.fill_between(steps, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=tint, alpha=0.18, linewidth=0)
