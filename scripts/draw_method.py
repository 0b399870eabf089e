"""Draws the README's figure of the method: one RL step from rollouts to advantage, and the dual step below it.

Command: `python -m scripts.draw_method` writes docs/method.png.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

OUT = Path(__file__).resolve().parent.parent / "docs" / "method.png"
GREY, BLUE, GREEN, PINK, INK = "#8c8c8c", "#0072B2", "#009E73", "#CC79A7", "#333333"
ROWS = ((3.0, "task reward", GREY, "1"), (2.0, "consistency", GREEN, "λ₁"), (1.0, "grounding", PINK, "λ₂"))


def box(axis: Axes, x: float, y: float, width: float, text: str, colour: str, height: float = 0.66) -> None:
    """A rounded box with its left edge at `x` and its centre at height `y`."""
    shape = FancyBboxPatch(
        (x, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", fc="white", ec=colour, lw=1.8
    )
    axis.add_patch(shape)
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0.0
) -> None:
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "connectionstyle": f"arc3,rad={bend}"}
    axis.annotate("", end, start, arrowprops=style)


def draw() -> Path:
    """Write the figure; returns its path."""
    figure, axis = plt.subplots(figsize=(10.5, 3.9), layout="constrained")
    axis.set_xlim(0, 13.4)
    axis.set_ylim(-0.95, 3.75)
    axis.axis("off")
    box(axis, 0.1, 2.0, 1.9, "image, question\n→ policy", BLUE, 0.9)
    box(axis, 2.6, 2.0, 1.7, "group of\nrollouts", BLUE, 0.9)
    arrow(axis, (2.05, 2.0), (2.55, 2.0))
    for y, name, colour, weight in ROWS:
        arrow(axis, (4.35, 2.0 + 0.12 * (y - 2.0)), (4.85, y))
        box(axis, 4.9, y, 1.8, name, colour)
        arrow(axis, (6.75, y), (7.25, y))
        box(axis, 7.3, y, 1.9, "normalize\nin its group", colour)
        arrow(axis, (9.25, y), (10.35, 2.0 + 0.2 * (y - 2.0)))
        axis.text(9.75, y + (0.22 if y > 1.5 else -0.12), f"× {weight}", ha="center", fontsize=11, color=colour)
    box(axis, 10.4, 2.0, 1.1, "sum,\nwhiten", BLUE, 0.9)
    arrow(axis, (11.55, 2.0), (12.0, 2.0))
    box(axis, 12.05, 2.0, 1.25, "advantage\n→ update", BLUE, 0.9)
    box(axis, 4.9, -0.45, 4.3, "per constraint: batch mean below τ: λ rises\nabove τ: λ falls", INK, 0.8)
    arrow(axis, (5.8, 0.62), (5.8, 0.0))
    arrow(axis, (9.25, -0.45), (9.8, 0.7), bend=0.3)
    axis.text(10.05, -0.05, "λ for the next batch", fontsize=10, color=INK)
    figure.savefig(OUT, dpi=150, metadata={"Software": None})
    plt.close(figure)
    return OUT


if __name__ == "__main__":
    print(draw())
