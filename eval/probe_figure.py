"""The figure of the probes: each reward that is measured on the policy, over RL steps (docs/probes.md).

From metrics.jsonl of the runs that logged one, as a constraint (`constraint/<reward>/…`) or as a monitor
(`monitor/<reward>/mean`). A panel per reward, a line per method. Which rewards these are, their `needs` say (rewards/). One more
panel has the drops that the evidence margin compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.colours import colours
from eval.curves import has_multipliers
from eval.figure_style import capital, curve, title_of
from rewards.base import load, names, needs_of
from rewards.probes import margin

NAME = "probes"  # of its file
CAPTION = (
    "Scores measured on the policy over RL steps (docs/probes.md; thick: moving mean, thin: single steps). Margins: at 0.5 "
    "(dashed grey) the annotated boxes, or the control region in their place, matter no more than other regions. Drop: with "
    "the boxes blanked; dashed: with the control regions blanked, which rises if any change disturbs the policy. Attention "
    "where it matters: weighted by each token's dependence on the boxes; dashed: all tokens weighted alike. Dotted: the "
    "threshold of a constraint."
)
NO_RUN = "no run logged a score that is measured on the policy (rl.monitor, docs/probes.md)"
INDIFFERENT = margin(0.0, (0.0,), 1.0)  # of a policy for which no region matters more than another
MARGINS = ("evidence_margin", "control_margin")
DROPS = "mean_drop_of_the_log-probability"  # the panel of no reward
IN_NATS = ("vision_dependence", DROPS)
OF_DROPS = "monitor/evidence_margin/evidence_drop"
DASHED = {  # what is drawn beside a panel's own column
    DROPS: "monitor/evidence_margin/control_drop",
    "attention_where_it_matters": "monitor/attention_where_it_matters/unweighted",
}
Rows = Sequence[Mapping[str, Any]]


def probe_figure(runs: Mapping[str, Rows], tau: Mapping[str, Mapping[str, float]]) -> Figure | None:
    """The panels, two in a row; None if no run logged such a reward.

    Args:
        runs: the steps of metrics.jsonl by method.
        tau: thresholds by method and reward; those of methods without multipliers are not drawn.
    """
    names = measured()
    names.insert(sum(name in MARGINS for name in names), DROPS)  # after the margins that are made of them
    shown = {name: found for name in names if (found := _columns(runs, name))}
    if not shown:
        return None
    lines = -(-len(shown) // 2)
    size = (9.5, 3.1 * lines + 0.4)
    figure, axes = plt.subplots(lines, min(2, len(shown)), figsize=size, squeeze=False, layout="constrained")
    tints = dict(zip(runs, colours(list(runs)), strict=True))
    for axis, (name, found) in zip(axes.flat, shown.items(), strict=False):
        if name in MARGINS:
            axis.axhline(INDIFFERENT, color="#666666", linestyle="--", linewidth=1)
        for method, column in found.items():
            tint = tints[method]
            curve(axis, runs[method], column, tint, 1.0, title_of(method))
            _dashed(axis, runs[method], name, tint)
            if has_multipliers(runs[method]) and name in tau.get(method, {}):
                axis.axhline(tau[method][name], color=tint, linestyle=":", linewidth=1.4)
        if name in MARGINS:  # not magnified beyond what matters
            low, high = axis.get_ylim()
            axis.set_ylim(min(low, INDIFFERENT - 0.1), max(high, INDIFFERENT + 0.1))
        axis.set_title(capital(name.replace("_", " ")) + (", nats a token" if name in IN_NATS else ""))
        axis.set_xlabel("RL step")
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    _legend(figure, list(axes.flat))
    return figure


def measured() -> list[str]:
    """Names of the rewards that are measured on the policy; the margins first, side by side."""
    found = [name for name in names() if needs_of(load(name))]
    return [*(name for name in MARGINS if name in found), *(name for name in found if name not in MARGINS)]


def _columns(runs: Mapping[str, Rows], name: str) -> dict[str, str]:
    """By method the column of metrics.jsonl with a reward's mean score; methods that have none are left out."""
    # A constraint on an indicator logs the share of rollouts under "mean", and the score beside it.
    of_reward = [f"constraint/{name}/score", f"constraint/{name}/mean", f"monitor/{name}/mean"]
    known = [OF_DROPS] if name == DROPS else of_reward
    found = {}
    for method, rows in runs.items():
        column = next((key for key in known if any(row.get(key) is not None for row in rows)), None)
        if column is not None:
            found[method] = column
    return found


def _dashed(axis: Axes, rows: Rows, name: str, tint: str) -> None:
    """The number to compare with that the run logs beside the panel's own (`DASHED`)."""
    key = DASHED.get(name, "")
    if any(row.get(key) is not None for row in rows):
        curve(axis, rows, key, tint, 1.0, "")
        thin, thick = axis.lines[-2:]
        thin.remove()
        thick.set(linestyle="--", linewidth=1.4)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels: every method once."""
    by_label: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            by_label.setdefault(label, handle)
    figure.legend(list(by_label.values()), list(by_label), ncols=min(5, len(by_label)), loc="outside upper left")
