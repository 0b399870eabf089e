"""Figures 3, 4 and 8 of the paper, from run files alone, as PNG files.

Figure 3: semantic grounding and inconsistency per data set, from finished evaluations. Figure 4: accuracy and inconsistency
over training steps, of evaluated checkpoints as in the paper where there are any (`python -m eval.run --checkpoints`), else
of the training rollouts in rl-<method>/metrics.jsonl, whose prompts are fresh at each step; the title says which. Figure 8:
each constraint's batch mean above its multiplier, from the same file, smoothed by a centred window (thin: single steps).

Command: `python -m eval.figures --preset mini` writes runs/<preset>/figures/figure{3,4,8}.png and captions.json; what has no
data is skipped with one line.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from eval import base, freshness, models
from eval.results import CAPTION_FILE, Result, checkpoints, find
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

START = "sft"  # where every RL run starts
CAPTIONS = {
    "figure3": "Figure 3: semantic grounding and inconsistency per data set.",
    "figure4": "Figure 4: accuracy and inconsistency of training rollouts over RL steps (thick: moving mean, thin: single steps). "
    "The paper evaluates checkpoints; this is what the run saw itself.",
    "figure8": "Figure 8: batch mean of each constraint (dashed: its threshold) above its multiplier.",
}
OF_CHECKPOINTS = "Figure 4: accuracy and inconsistency of evaluated checkpoints over RL steps (step 0: SFT; greedy answers, mean of the benchmarks, shaded: intervals)."
# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = {
    "sft": "#8c8c8c",
    "grpo-t": "#E69F00",
    "fgrpo": "#0072B2",
    "backbone-cot": "#c9c9c9",
    "fgrpo-consistency": "#56B4E9",
    "fgrpo-fixed": "#D55E00",
    "grpo-additive": "#F0E442",
    "grpo-multiplicative": "#009E73",
}
SPARE = ("#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
CONSTRAINTS = {
    "consistency": ("consistency", "#009E73"),
    "spatial_grounding": ("spatial grounding", "#CC79A7"),
    "semantic_grounding": ("semantic grounding", "#0072B2"),
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 150,
}


def colour(name: str, position: int = 0) -> str:
    """The colour of a method, the same in every figure."""
    return COLOURS.get(name, SPARE[position % len(SPARE)])


def smooth(values: Sequence[float | None], window: int) -> NDArray[np.float64]:
    """Centred moving mean over at most `window` steps; steps without a value are left out, all-empty windows are NaN."""
    raw = np.array([np.nan if v is None else float(v) for v in values])
    out = np.full(len(raw), np.nan)
    for i in range(len(raw)):
        part = raw[max(0, i - window // 2) : i + window // 2 + 1]
        part = part[np.isfinite(part)]
        out[i] = part.mean() if len(part) else np.nan
    return out


def training(config: Config, root: str | Path = "runs") -> dict[str, list[dict[str, Any]]]:
    """The steps of metrics.jsonl by method, GRPO-T and FGRPO first. A step written twice (after a resume) counts once."""
    found: dict[str, list[dict[str, Any]]] = {}
    paths = {p.parent.name.removeprefix("rl-"): p for p in folder(config, "", root).glob("rl-*/metrics.jsonl")}
    for method in sorted(paths, key=lambda m: (m not in COLOURS, list(COLOURS).index(m) if m in COLOURS else 0, m)):
        by_step = {row["step"]: row for row in read_jsonl(paths[method]) if "step" in row}
        if by_step:
            found[method] = [by_step[step] for step in sorted(by_step)]
    return found


def window_of(steps: int) -> int:
    """A smoothing window of about an eighth of the run."""
    return max(1, steps // 8)


def figure3(results: Mapping[str, Result], config: Config) -> Figure | None:
    """Bars per data set and on average, with intervals: semantic grounding above inconsistency."""
    kind = "sampled" if any("sampled" in r.kinds() for r in results.values()) else "greedy"
    shown = [r for r in results.values() if kind in r.kinds() and r.cell(kind, "average", "inconsistency") is not None]
    if not shown:
        return None
    places = [*config.eval.benchmarks, "average"]
    titles = [*(base.benchmark(n).title for n in config.eval.benchmarks), "average"]
    figure, axes = plt.subplots(2, 1, figsize=(max(9.5, 1.4 * len(shown)), 5.8), sharex=True, layout="constrained")
    width = 0.8 / len(shown)
    for axis, (metric, title) in zip(
        axes,
        (
            ("semantic", "Semantic grounding, % (higher is better)"),
            ("inconsistency", "Inconsistent answers, % (lower is better)"),
        ),
        strict=True,
    ):
        for k, result in enumerate(shown):
            cells = [result.cell(kind, place, metric) for place in places]
            xs = (
                np.arange(len(places))
                + (k - (len(shown) - 1) / 2) * width
                + np.array([0.0] * (len(places) - 1) + [0.25])
            )
            heights = [np.nan if c is None else 100 * c["value"] for c in cells]
            errors = np.array(
                [
                    [0.0, 0.0] if c is None else [100 * (c["value"] - c["low"]), 100 * (c["high"] - c["value"])]
                    for c in cells
                ]
            ).T
            axis.bar(xs, heights, width * 0.92, label=result.title, color=colour(result.name, k))
            axis.errorbar(
                xs, heights, np.clip(errors, 0, None), fmt="none", ecolor="#444444", elinewidth=0.9, capsize=1.5
            )
        axis.set_title(title)
        axis.set_ylim(0, None)
        axis.grid(axis="x", visible=False)
        axis.axvline(len(places) - 1.37, color="#888888", linewidth=0.8)
    axes[1].set_xticks([*range(len(places) - 1), len(places) - 0.75], titles)
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=min(4, len(shown)), loc="outside upper left")
    figure.supxlabel(
        f"{'sampled answers, temperature 1' if kind == 'sampled' else 'greedy answers'}; {100 * config.eval.confidence:.0f}% intervals",
        fontsize=9,
        color="#555555",
    )
    return figure


def figure4(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Accuracy beside inconsistency over training steps, one line a method."""
    shown = {m: rows for m, rows in runs.items() if any("accuracy" in row for row in rows)}
    if not shown:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    panels = (("accuracy", "Accuracy of training rollouts, %"), ("inconsistency", "Inconsistent rollouts, %"))
    for axis, (key, title) in zip(axes, panels, strict=True):
        for k, (method, rows) in enumerate(shown.items()):
            _line(axis, rows, key, colour(method, k), 100.0, _title(method))
        axis.set_title(title)
        axis.set_xlabel("RL step")
    axes[1].set_ylim(0, None)
    axes[0].legend(loc="lower right")
    return figure


def paths(
    config: Config,
    results: Mapping[str, Result],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    root: str | Path = "runs",
) -> dict[str, dict[int, Result]]:
    """What of each method was evaluated over its training: step 0 (SFT, where it starts), checkpoints, and the end of the run.

    Methods without an evaluated checkpoint are left out.
    """
    found = {}
    for method, steps in checkpoints(config, root).items():
        ends = {0: results.get(START)}
        if method in runs:
            ends[int(runs[method][-1]["step"])] = results.get(method)
        found[method] = dict(sorted({**steps, **{n: r for n, r in ends.items() if r is not None}}.items()))
    return found


def figure4_checkpoints(found: Mapping[str, Mapping[int, Result]]) -> Figure | None:
    """Accuracy beside inconsistency of evaluated checkpoints (greedy, mean of the benchmarks), with intervals."""
    if not found:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    panels = (("accuracy", "Accuracy of checkpoints, %"), ("inconsistency", "Inconsistent answers, %"))
    for axis, (metric, title) in zip(axes, panels, strict=True):
        for k, (method, steps) in enumerate(found.items()):
            cells = {n: cell for n, r in steps.items() if (cell := r.cell("greedy", "average", metric)) is not None}
            values, low, high = (
                np.array([100 * float(cell[part]) for cell in cells.values()]) for part in ("value", "low", "high")
            )
            tint = colour(method, k)
            axis.fill_between(list(cells), low, high, color=tint, alpha=0.15, linewidth=0)
            axis.plot(list(cells), values, color=tint, linewidth=2.2, marker="o", markersize=4, label=_title(method))
        axis.set_title(title)
        axis.set_xlabel("RL step")
    axes[1].set_ylim(0, None)
    axes[0].legend(loc="lower right")
    return figure


def figure8(method: str, rows: Sequence[Mapping[str, Any]], tau: Mapping[str, float]) -> Figure | None:
    """Each constraint's mean with its threshold (dashed), above the multipliers."""
    measured = {found[1] for row in rows for key in row if (found := re.fullmatch(r"constraint/(.+)/mean", key))}
    names = [*(n for n in CONSTRAINTS if n in measured), *sorted(measured - set(CONSTRAINTS))]
    if not names:
        return None
    figure, axes = plt.subplots(
        2, len(names), figsize=(max(5.2, 3.3 * len(names)), 5.0), sharex=True, squeeze=False, layout="constrained"
    )
    for column, name in enumerate(names):
        title, tint = CONSTRAINTS.get(name, (name.replace("_", " "), SPARE[column % len(SPARE)]))
        above, below = axes[0][column], axes[1][column]
        _line(above, rows, f"constraint/{name}/mean", tint, 1.0, "")
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
        above.set_ylim(max(0.0, low - 0.02), min(1.03, high + 0.04))
        steps = [row["step"] for row in rows]
        below.plot(steps, [row.get(f"lambda/{name}") for row in rows], color=tint, linewidth=2)
        below.set_ylim(0, max(1.1, *(1.1 * float(row.get(f"lambda/{name}") or 0.0) for row in rows)))
        below.set_xlabel("RL step")
    axes[0][0].set_ylabel("batch mean")
    axes[1][0].set_ylabel("multiplier λ")
    figure.suptitle(f"{_title(method)}: constraints above their multipliers", x=0.01, ha="left", fontsize=11)
    return figure


def _line(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, tint: str, scale: float, label: str) -> None:
    """One smoothed line over its single steps."""
    steps = [row["step"] for row in rows]
    values = [None if row.get(key) is None else scale * float(row[key]) for row in rows]
    raw = np.array([np.nan if v is None else v for v in values])
    axis.plot(steps, raw, color=tint, linewidth=0.7, alpha=0.3)
    axis.plot(steps, smooth(values, window_of(len(steps))), color=tint, linewidth=2.2, label=label)


def _title(method: str) -> str:
    return models.load(method).title if method in models.names() else method


def draw(config: Config, root: str | Path = "runs") -> list[Path]:
    """Write every figure there is data for; returns the files."""
    out = folder(config, "figures", root)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        runs, results = training(config, root), _evaluated(config, root)
        walked = figure4_checkpoints(paths(config, results, runs, root))
        figures: dict[str, Figure | None] = {"figure3": figure3(results, config), "figure4": walked or figure4(runs)}
        constrained = [m for m in dict.fromkeys((config.method, *runs)) if m in runs and _has_multipliers(runs[m])]
        figures["figure8"] = None
        for method in constrained:  # one figure a method; the configured one's is called figure8
            name = "figure8" if method == constrained[0] else f"figure8-{method}"
            figures[name] = figure8(method, runs[method], thresholds(config, method, root))
        for name, figure in figures.items():
            if figure is None:
                print(f"{name}: no data yet")
                continue
            path = out / f"{name}.png"
            aside = out / f".{name}.part.png"
            figure.savefig(aside, metadata={"Software": None})
            plt.close(figure)
            aside.replace(path)
            written.append(path)
    captions = {**CAPTIONS, **({"figure4": OF_CHECKPOINTS} if walked is not None else {})}
    write_json(out / CAPTION_FILE, {path.stem: captions[path.stem.split("-")[0]] for path in written})
    return written


def thresholds(config: Config, method: str, root: str | Path) -> Mapping[str, float]:
    """The thresholds with which a method was trained, as its run folder says; without one those of the configuration."""
    kept = folder(config, f"rl-{method}", root) / "config.json"
    if not kept.is_file():
        return {name: constraint.tau for name, constraint in config.rl.constraints.items()}
    trained = json.loads(kept.read_text(encoding="utf-8"))["config"]["rl"]["constraints"]
    return {name: float(constraint["tau"]) for name, constraint in trained.items()}


def _evaluated(config: Config, root: str | Path) -> dict[str, Result]:
    """Finished evaluations, none where only training has been done so far."""
    return find(config, root) if any(folder(config, "eval", root).glob("*/done")) else {}


def _has_multipliers(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(key.startswith("lambda/") for row in rows for key in row)


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        out, made = folder(config, "figures", args.runs), freshness.made_from(config, "figures", args.runs)
        if args.if_changed and freshness.is_current(out, CAPTION_FILE, made):
            print(f"figures: {out} is current")
            return
        for path in draw(config, args.runs):
            print(f"figure: {path}")
        freshness.stamp(out, made)

    arguments = parser("figures 3, 4 and 8 from the run files")
    arguments.add_argument(
        "--if-changed", action="store_true", help="skip unless an evaluation or a training run changed"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
