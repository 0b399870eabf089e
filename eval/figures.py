"""Figures 3, 4 and 8 of the paper, and one of the probes (`eval.probe_figure`), from run files alone, as PNG and SVG files.

Figure 3: every reward's metric per data set, from finished evaluations. Figure 4: accuracy and inconsistency over training steps,
of evaluated checkpoints as in the paper where there are any (`python -m eval.run --checkpoints`), else of the training rollouts in
rl-<method>/metrics.jsonl, whose prompts are fresh at each step; the caption says which. Figure 8: each constraint's batch mean
above its multiplier, from the same file, smoothed by a centred window (thin: single steps).

Command: `python -m eval.figures --preset mini` writes runs/<preset>/figures/{figure3,figure4,figure8,probes}.{png,svg} and
captions.json. A figure without data is skipped with one line.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from eval import base, freshness, probe_figure
from eval.colours import colours
from eval.comparisons import KINDS
from eval.curves import evaluated, has_multipliers, paths, thresholds, training
from eval.figure_style import FORMATS, STYLE, capital, constraint_style, curve, title_of
from eval.measures import Measure, measures_of, reward_measures
from eval.results import CAPTION_FILE, Result, paper, places
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CAPTIONS = {
    "figure3": "Figure 3: {metrics} per data set.",
    "figure4": "Figure 4: accuracy and inconsistency of training rollouts over RL steps (thick: moving mean, thin: single steps). "
    "The paper evaluates checkpoints; these are the rollouts of the run itself.",
    "figure8": "Figure 8: batch mean of each constraint (dashed: its threshold) above its multiplier.",
    probe_figure.NAME: probe_figure.CAPTION,
}
OF_CHECKPOINTS = (
    "Figure 4: accuracy and inconsistency of evaluated checkpoints over RL steps (step 0: SFT; greedy answers, mean of the "
    "benchmarks, shaded: intervals)."
)


def figure3(results: Mapping[str, Result], config: Config) -> Figure | None:
    """Bars per data set and on average, with intervals: one panel per reward that has a value, one colour per model."""
    reasoning = [r for r in results.values() if r.summary.get("mode") == "think"]
    kind = "sampled" if reasoning and all("sampled" in r.kinds() for r in reasoning) else "greedy"
    panels = figure3_measures(results, kind)
    shown = [r for r in results.values() if any(r.cell(kind, "average", m.metric) is not None for m in panels)]
    if not shown:
        return None
    names = places(shown, config)
    sets = {frozenset(r.averaged(kind)) for r in shown if kind in r.kinds()}
    averaged = next(iter(sets)) if len(sets) == 1 else set(config.eval.benchmarks)  # what an average stands for
    inside = [n for n in names if n in config.eval.benchmarks] or names
    of = [n for n in names if n in averaged] or inside
    outside = [n for n in names if n not in inside]
    shown_places = [*outside, *inside, "average"]
    titles = [*map(base.title_of, outside), *map(base.title_of, inside), "average"]
    size = (max(9.5, 1.4 * len(shown)), 2.7 * len(panels) + 0.4)
    figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for axis, measure in zip(axes[:, 0], panels, strict=True):
        _bars(axis, shown, kind, shown_places, measure.metric, of)
        direction = "higher" if measure.report.higher_is_better else "lower"
        axis.set_title(f"{capital(measure.report.title)}, % ({direction} is better)")
    axes[-1, 0].set_xticks([*range(len(titles) - 1), len(titles) - 0.75], titles)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=min(4, len(shown)), loc="outside upper left")
    intervals = f"{100 * config.eval.confidence:.0f}% intervals"
    words = f"average of {', '.join(map(base.title_of, of))}"
    figure.supxlabel(f"{KINDS[kind]}; {intervals}; {words}", fontsize=9, color="#555555")
    return figure


def figure3_measures(results: Mapping[str, Result], kind: str | None = None) -> list[Measure]:
    """The rewards of which some model has a value, in one decoding or in any."""
    kinds = ("greedy", "sampled") if kind is None else (kind,)
    return [
        m
        for m in reward_measures()
        if any(r.cell(k, "average", m.metric) is not None for r in results.values() for k in kinds)
    ]


def _is_other_average(result: Result, kind: str, place: str, averaged: Sequence[str]) -> bool:
    """Whether this is the average of a result over other benchmarks than those that the axis names: no bar beside the others."""
    return place == "average" and kind in result.kinds() and set(result.averaged(kind)) != set(averaged)


def _bars(
    axis: Axes, shown: Sequence[Result], kind: str, places: Sequence[str], metric: str, averaged: Sequence[str]
) -> None:
    """One metric in percent: a group of bars per place, one bar per model; the average of `averaged` stands apart at the right."""
    width = 0.8 / len(shown)
    gap = np.array([0.0] * (len(places) - 1) + [0.25])
    tints = colours([result.name for result in shown])
    for k, result in enumerate(shown):
        cells = [
            None if _is_other_average(result, kind, place, averaged) else result.cell(kind, place, metric)
            for place in places
        ]
        xs = np.arange(len(places)) + (k - (len(shown) - 1) / 2) * width + gap
        heights = [np.nan if c is None else 100 * c["value"] for c in cells]
        errors = np.array(
            [
                [0.0, 0.0] if c is None else [100 * (c["value"] - c["low"]), 100 * (c["high"] - c["value"])]
                for c in cells
            ]
        ).T
        axis.bar(xs, heights, width * 0.92, label=result.label, color=tints[k])
        axis.errorbar(xs, heights, np.clip(errors, 0, None), fmt="none", ecolor="#444444", elinewidth=0.9, capsize=1.5)
    if all(bar.get_height() >= 0 or np.isnan(bar.get_height()) for bar in axis.patches):  # type: ignore[attr-defined]
        axis.set_ylim(0, None)
    axis.grid(axis="x", visible=False)
    axis.axvline(len(places) - 1.37, color="#888888", linewidth=0.8)


def figure4(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Accuracy and inconsistency of training rollouts over RL steps, one line per method; keys are those of metrics.jsonl."""
    first, second = measures_of(paper()["metrics"])
    shown = {method: rows for method, rows in runs.items() if any(first.metric in row for row in rows)}
    if not shown:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    tints = colours(list(shown))
    for axis, measure in zip(axes, (first, second), strict=True):
        for (method, rows), tint in zip(shown.items(), tints, strict=True):
            curve(axis, rows, measure.metric, tint, 100.0, title_of(method))
        axis.set_title(f"{capital(measure.report.title)} of training rollouts, %")
        axis.set_xlabel("RL step")
    axes[1].set_ylim(0, None)
    axes[0].legend(loc="lower right")
    return figure


def figure4_checkpoints(by_method: Mapping[str, Mapping[int, Result]]) -> Figure | None:
    """Accuracy and inconsistency of evaluated checkpoints (greedy, mean of the benchmarks), with intervals."""
    if not by_method:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    tints = colours(list(by_method))
    for axis, measure in zip(axes, measures_of(paper()["metrics"]), strict=True):
        for (method, steps), tint in zip(by_method.items(), tints, strict=True):
            cells = {n: c for n, r in steps.items() if (c := r.cell("greedy", "average", measure.metric)) is not None}
            values, low, high = (
                np.array([100 * float(cell[part]) for cell in cells.values()]) for part in ("value", "low", "high")
            )
            axis.fill_between(list(cells), low, high, color=tint, alpha=0.15, linewidth=0)
            axis.plot(list(cells), values, color=tint, linewidth=2.2, marker="o", markersize=4, label=title_of(method))
        axis.set_title(f"{capital(measure.report.title)} of checkpoints, %")
        axis.set_xlabel("RL step")
    axes[1].set_ylim(0, None)
    axes[0].legend(loc="lower right")
    return figure


def figure8(method: str, rows: Sequence[Mapping[str, Any]], tau: Mapping[str, float]) -> Figure | None:
    """Each constraint's batch mean with its threshold (dashed), above its multiplier; columns in the order of the log.

    Args:
        rows: the steps of metrics.jsonl, with "constraint/<reward>/mean" and "lambda/<reward>".
        tau: thresholds by reward.
    """
    keys = dict.fromkeys(key for row in rows for key in row)
    names = [match[1] for key in keys if (match := re.fullmatch(r"constraint/(.+)/mean", key))]
    if not names:
        return None
    figure, axes = plt.subplots(
        2, len(names), figsize=(max(5.2, 3.3 * len(names)), 5.0), sharex=True, squeeze=False, layout="constrained"
    )
    for column, name in enumerate(names):
        title, tint = constraint_style(name, column)
        above, below = axes[0][column], axes[1][column]
        curve(above, rows, f"constraint/{name}/mean", tint, 1.0, "")
        if name in tau:
            above.axhline(tau[name], color="#444444", linestyle="--", linewidth=1)
            above.annotate(
                f"τ = {tau[name]:g}",
                (0.02, tau[name]),
                xycoords=("axes fraction", "data"),
                ha="left",
                va="center",
                fontsize=9,
                color="#444444",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
            )
        above.set_title(title)
        low, high = above.get_ylim()
        if all(0.0 <= value <= 1.0 for value in _plotted(above)):  # a score in another unit keeps matplotlib's limits
            above.set_ylim(max(0.0, low - 0.02), min(1.03, high + 0.04))
        steps = [row["step"] for row in rows]
        below.plot(steps, [row.get(f"lambda/{name}") for row in rows], color=tint, linewidth=2)
        below.set_ylim(0, max(1.1, *(1.1 * float(row.get(f"lambda/{name}") or 0.0) for row in rows)))
        below.set_xlabel("RL step")
    axes[0][0].set_ylabel("batch mean")
    axes[1][0].set_ylabel("multiplier λ")
    figure.suptitle(f"{title_of(method)}: constraints above their multipliers", x=0.01, ha="left", fontsize=11)
    return figure


def _plotted(axis: Axes) -> list[float]:
    """The y values of an axis' lines, without gaps."""
    return [float(y) for line in axis.lines for y in np.asarray(line.get_ydata(), dtype=float) if np.isfinite(y)]


def draw(config: Config, root: str | Path = "runs") -> list[Path]:
    """Write every figure that has data; returns the files."""
    out = folder(config, "figures", root)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        runs, results = training(config, root), evaluated(config, root)
        of_checkpoints = figure4_checkpoints(paths(config, results, runs, root))
        figures: dict[str, Figure | None] = {
            "figure3": figure3(results, config),
            "figure4": of_checkpoints or figure4(runs),
        }
        constrained = [m for m in dict.fromkeys((config.method, *runs)) if m in runs and has_multipliers(runs[m])]
        tau = {method: thresholds(config, method, root) for method in constrained}
        figures["figure8"] = None
        for method in constrained:  # one figure per method; the configuration's method is figure8
            name = "figure8" if method == constrained[0] else f"figure8-{method}"
            figures[name] = figure8(method, runs[method], tau[method])
        figures[probe_figure.NAME] = probe_figure.probe_figure(runs, tau)
        for name, figure in figures.items():
            if figure is None:
                print(f"{name}: {probe_figure.NO_RUN if name == probe_figure.NAME else 'no data yet'}")
                continue
            for suffix, metadata in FORMATS.items():
                path = out / f"{name}.{suffix}"
                part = out / f".{name}.part.{suffix}"
                figure.savefig(part, metadata=metadata)
                part.replace(path)
                written.append(path)
            plt.close(figure)
    captions = {**CAPTIONS, **({"figure4": OF_CHECKPOINTS} if of_checkpoints is not None else {})}
    captions["figure3"] = captions["figure3"].format(
        metrics=", ".join(m.report.title for m in figure3_measures(results))
    )
    write_json(out / CAPTION_FILE, {path.stem: captions[path.stem.split("-")[0]] for path in written})
    return written


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        out, made = folder(config, "figures", args.runs), freshness.made_from(config, "figures", args.runs)
        if args.if_changed and freshness.is_current(out, made):
            print(f"figures: {out} is current")
            return
        written = draw(config, args.runs)
        for path in written:
            print(f"figure: {path}")
        freshness.stamp(out, made, [*written, out / CAPTION_FILE])

    arguments = parser("figures 3, 4 and 8, and that of the probes, from the run files")
    arguments.add_argument(
        "--if-changed", action="store_true", help="skip if nothing that the figures show has changed"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
