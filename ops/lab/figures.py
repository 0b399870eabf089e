"""Figures 4 and 8 over seeds: the mean of each method's smoothed curves, with a band from the smallest to the largest seed.

figure4                        a row per condition: GRPO-T and FGRPO, and where both start
figure4-<condition>-<metric>   a panel per other arm, each against GRPO-T and FGRPO
figure8-<method>               a row per condition: constraints with their thresholds, and the multipliers
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.figure_style import STYLE, capital, colour, constraint_style, smooth, window_of
from ops.lab.analysis import Results
from ops.lab.cells import thresholds

FIGURE4, FIGURE8 = "figure4", "figure8"
MAIN = ("grpo-t", "fgrpo")  # the arms that all others are drawn against
_PANELS = {"accuracy": "accuracy of training rollouts, %", "inconsistency": "inconsistency of training rollouts, %"}
_ACROSS, _TITLE_WIDTH = 5, 30
_FIRST = 10  # one step is too few rollouts to show where a run starts
_OTHER, _LINE = "#CC79A7", "#444444"
Curve = Sequence[tuple[int, float]]


def draw(results: Results, out: Path, prefix: str) -> dict[str, Path]:
    """Write `<prefix><figure>.png`; returns {figure: file} of those with data."""
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        shown: dict[str, Figure | None] = {FIGURE4: figure4(results)}
        for condition in results.lab.conditions:
            for key in _PANELS:
                shown[f"{FIGURE4}-{condition}-{key}"] = others(results, condition, key)
        for method in results.lab.methods:
            shown[f"{FIGURE8}-{method}"] = figure8(results, method)
        for name, figure in shown.items():
            if figure is not None:
                written[name] = out / f"{prefix}{name}.png"
                figure.savefig(written[name], metadata={"Software": None})
                plt.close(figure)
    return written


def figure4(results: Results) -> Figure | None:
    """Training rollouts of GRPO-T and FGRPO, a row per condition; None without a cell of them."""
    rows = [c for c in results.lab.conditions if any(_has(results, c, method, "accuracy") for method in MAIN)]
    if not rows:
        return None
    figure, axes = plt.subplots(len(rows), 2, figsize=(11.0, 3.0 * len(rows)), squeeze=False, layout="constrained")
    for row, condition in enumerate(rows):
        for axis, (key, title) in zip(axes[row], _PANELS.items(), strict=True):
            _start(axis, [curve for method in MAIN for curve in _curves(results, condition, method, key)])
            for method in MAIN:
                _band(
                    axis, _curves(results, condition, method, key), colour(method), _label(results, condition, method)
                )
            axis.set_title(f"{condition}: {title}")
            axis.set_xlabel("RL step")
        axes[row][1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    return figure


def _start(axis: Axes, curves: Sequence[Curve]) -> None:
    """Where the curves start: the mean of the first steps, before which SFT's checkpoint has hardly moved."""
    firsts = [[value for step, value in curve if step <= _FIRST] for curve in curves]
    means = [100.0 * float(np.mean(first)) for first in firsts if first]
    if not means:
        return
    axis.axhline(
        float(np.mean(means)),
        color=colour("sft"),
        linestyle="--",
        linewidth=1.4,
        label=f"SFT start (steps 1 to {_FIRST})",
    )
    axis.axhspan(min(means), max(means), color=colour("sft"), alpha=0.12, linewidth=0)


def others(results: Results, condition: str, key: str) -> Figure | None:
    """One panel per arm that is not in Figure 4, on common axes, over GRPO-T and FGRPO; None without such an arm."""
    arms = [m for m in results.lab.methods if m not in MAIN and _has(results, condition, m, key)]
    if not arms:
        return None
    across = min(_ACROSS, len(arms))
    down = -(-len(arms) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(max(6.0, 2.9 * across), 2.3 * down + 0.9), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, method in zip(axes.flat, arms, strict=False):
        for of in MAIN:
            _band(axis, _curves(results, condition, of, key), colour(of), _label(results, condition, of), faint=True)
        _band(axis, _curves(results, condition, method, key), _OTHER, "the panel's arm")
        axis.set_title(textwrap.fill(_label(results, condition, method), _TITLE_WIDTH), fontsize=9)
    for axis in list(axes.flat)[len(arms) :]:
        axis.set_visible(False)
    for column in range(across):  # the lowest panel of each column
        last = axes[(len(arms) - 1 - column) // across][column]
        last.set_xlabel("RL step")
        last.tick_params(labelbottom=True)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.suptitle(f"{condition}: {_PANELS[key]}", x=0.01, ha="left", fontsize=11)
    return figure


def figure8(results: Results, method: str) -> Figure | None:
    """Each constraint with its threshold, then all multipliers, a row per condition; None without multipliers."""
    every = dict.fromkeys(key.removeprefix("lambda/") for _, key in results.curves if key.startswith("lambda/"))
    lab = results.lab
    names = [n for n in sorted(every) if any(_has(results, c, method, f"lambda/{n}") for c in lab.conditions)]
    rows = [c for c in lab.conditions if any(_has(results, c, method, f"lambda/{n}") for n in names)]
    if not rows:
        return None
    across = len(names) + 1
    figure, axes = plt.subplots(
        len(rows), across, figsize=(3.1 * across + 1.2, 2.5 * len(rows) + 0.6), sharey="col", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for row, condition in enumerate(rows):
        tau = thresholds(lab, condition, method)
        for column, name in enumerate(names):
            title, tint = constraint_style(name, column)
            axis, last = axes[row][column], axes[row][-1]
            _band(axis, _curves(results, condition, method, f"constraint/{name}/mean"), tint, title, 1.0)
            _band(last, _curves(results, condition, method, f"lambda/{name}"), tint, title, 1.0)
            if name in tau:
                _threshold(axis, tau[name])
            axis.set_title(capital(title) if row == 0 else "", fontsize=10)
        axes[row][0].set_ylabel(f"{condition} ({_seeds(len(results.done(condition, method)))})\nmean of the batch")
        axes[row][-1].set_title("Multipliers λ" if row == 0 else "", fontsize=10)
    axes[0][-1].set_ylim(bottom=0.0)  # of all rows, once all curves are there
    for axis in axes[-1]:
        axis.set_xlabel("RL step")
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    seeds = ", ".join(f"{condition}: {_seeds(len(results.done(condition, method)))}" for condition in rows)
    figure.suptitle(f"{lab.title_of(method)}, {seeds} (dashed: τ)", x=0.01, ha="left", fontsize=11)
    return figure


def _threshold(axis: Axes, tau: float) -> None:
    axis.axhline(tau, color=_LINE, linestyle="--", linewidth=1.0)
    axis.annotate(
        f"τ = {tau:g}", (0.02, tau), xycoords=("axes fraction", "data"), ha="left", va="center", fontsize=8, color=_LINE,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
    )  # fmt: skip


def _label(results: Results, condition: str, method: str) -> str:
    return f"{results.lab.title_of(method)} ({_seeds(len(results.done(condition, method)))})"


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"


def _has(results: Results, condition: str, method: str, key: str) -> bool:
    return any((cell["cell"], key) in results.curves for cell in results.done(condition, method))


def _curves(results: Results, condition: str, method: str, key: str) -> list[Curve]:
    found = [results.curves.get((cell["cell"], key)) for cell in results.done(condition, method)]
    return [curve for curve in found if curve]


def _band(
    axis: Axes, curves: Sequence[Curve], tint: str, label: str, scale: float = 100.0, *, faint: bool = False
) -> None:
    """The mean over the seeds that reached a step, and the range over them; a faint one is a reference."""
    if not curves:
        return
    steps = sorted({step for curve in curves for step, _ in curve})
    table = np.full((len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        known = dict(curve)
        table[row] = scale * smooth([known.get(step) for step in steps], window_of(len(steps)))
    axis.plot(steps, np.nanmean(table, axis=0), color=tint, linewidth=1.2 if faint else 2.0, label=label)
    alpha = 0.08 if faint else 0.18
    axis.fill_between(steps, np.nanmin(table, axis=0), np.nanmax(table, axis=0), color=tint, alpha=alpha, linewidth=0)
