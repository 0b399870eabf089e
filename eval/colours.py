"""One colour for each method, in figures, in the report's cards and in the boxes on its images.

Okabe and Ito's colours, which colour-blind readers can tell apart. A method that is not listed takes the first of `SPARE` that no
other method beside it has, so it has one colour on all pages that show the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence

METHOD_COLOURS = {
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
PANELS = {"light": "#ffffff", "dark": "#1d2128"}  # backgrounds of the report's text in its two schemes
CONTRAST = 4.5  # of text: WCAG 2.1, level AA


def colours(names: Sequence[str]) -> list[str]:
    """The colour of each method that is shown together with the others; after `SPARE` is used up, its colours repeat."""
    taken = {METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS}
    unlisted = [name for name in dict.fromkeys(names) if name not in METHOD_COLOURS]
    free = [tint for tint in SPARE if tint not in taken] or list(SPARE)
    spare = {name: free[n % len(free)] for n, name in enumerate(sorted(unlisted))}
    return [METHOD_COLOURS.get(name) or spare[name] for name in names]


def as_text(colour: str, panel: str) -> str:
    """The colour as text on `panel`, both "#RRGGBB": mixed with black or white until it can be read (`CONTRAST`)."""
    end = "#000000" if _luminance(panel) > 0.18 else "#ffffff"
    mixed = (_mixed(colour, end, n / 20) for n in range(21))
    return next(tint for tint in mixed if contrast(tint, panel) >= CONTRAST)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, from 1 to 21 (WCAG 2.1)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in (n / 255 for n in _numbers(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _mixed(colour: str, other: str, share: float) -> str:
    parts = zip(_numbers(colour), _numbers(other), strict=True)
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in parts)


def _numbers(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
