"""How all figures look: colours of methods and constraints, titles, smoothed curves, file formats, matplotlib's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval import models
from eval.colours import METHOD_COLOURS, SPARE
from eval.measures import reward_measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# By file type: what is left out of its metadata, so that the same figure gives the same bytes. PNG for the report, SVG for print.
FORMATS: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
STYLE = {
    "svg.hashsalt": "figures",
    "svg.fonttype": "none",
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
    """The colour of a method, the same in every figure; of an unknown one the next spare colour."""
    return METHOD_COLOURS.get(name, SPARE[position % len(SPARE)])


def constraint_style(name: str, position: int = 0) -> tuple[str, str]:
    """(title, colour) of a constraint's curves, as its reward declares them; else a colour that no reward declares."""
    declaring = reward_measures()
    measure = next((m for m in declaring if m.score == name), None)
    title = name.replace("_", " ") if measure is None else measure.score_title
    declared = None if measure is None else measure.report.colour
    free = [tint for tint in SPARE if tint not in {m.report.colour for m in declaring}] or list(SPARE)
    return title, declared or free[position % len(free)]


def capital(title: str) -> str:
    """A title as it begins a line."""
    return title[:1].upper() + title[1:]


def title_of(method: str) -> str:
    """The title of a method's model; its name where it has none."""
    return models.load(method).title if method in models.names() else method


def smooth(values: Sequence[float | None], window: int) -> NDArray[np.float64]:
    """Centred moving mean over at most `window` steps. Steps without a value are left out; an empty window is NaN."""
    raw = np.array([np.nan if v is None else float(v) for v in values])
    out = np.full(len(raw), np.nan)
    for i in range(len(raw)):
        part = raw[max(0, i - window // 2) : i + window // 2 + 1]
        part = part[np.isfinite(part)]
        out[i] = part.mean() if len(part) else np.nan
    return out


def window_of(steps: int) -> int:
    """A smoothing window of about an eighth of the run."""
    return max(1, steps // 8)


def curve(axis: Axes, rows: Sequence[Mapping[str, Any]], key: str, tint: str, scale: float, label: str) -> None:
    """One smoothed line over its single steps: `scale` times the column `key` of metrics.jsonl."""
    steps = [row["step"] for row in rows]
    values = [None if row.get(key) is None else scale * float(row[key]) for row in rows]
    raw = np.array([np.nan if v is None else v for v in values])
    axis.plot(steps, raw, color=tint, linewidth=0.7, alpha=0.3)
    axis.plot(steps, smooth(values, window_of(len(steps))), color=tint, linewidth=2.2, label=label)
