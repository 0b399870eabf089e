"""How the page of a lab writes p values, effects, comparisons and tables. Knows no results."""

from __future__ import annotations

from collections.abc import Sequence

from eval.layout import DASH, Table
from ops.lab.declaration import CELL, PROBES, Part
from ops.lab.statistics import NO_SPREAD, Effect, Estimate
from ops.lab.verdicts import bound_of

LEAST = 0.001


def p_value(p: float) -> str:
    """Three digits, or "<0.001"."""
    return f"<{LEAST:g}" if p < LEAST else f"{p:.3g}"


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def comparison(part: Part) -> str:
    """What a part compares, such as "accuracy, sampled, fgrpo − sft"."""
    metric = part.metric.removeprefix(CELL).replace("_", " ")
    kind = "" if part.metric.startswith(CELL) else f", {part.kind}"
    return f"{metric}{kind}, {part.a}{'' if part.b is None else f' − {part.b}'}"


def claim(part: Part) -> str:
    """The declared side of the bound, such as "> -1 points"."""
    bound = bound_of(part) + 0.0  # no negative zero
    side = ">" if part.direction == "above" else "<"
    return f"{side} {bound:g}" if not in_points(part.metric) else f"{side} {100 * bound:g} points"


def in_points(metric: str) -> bool:
    """Whether a metric is a share, written in percent; λ and probes keep their own unit."""
    return not metric.startswith((f"{CELL}lambda/", PROBES))


def number(value: float, metric: str, sign: str = "") -> str:
    """A value of a metric in its unit; `sign` "+" marks a difference."""
    return f"{100 * value:{sign}.1f}" if in_points(metric) else f"{value:{sign}.3f}"


def effect(part: Part, found: Estimate | None) -> str:
    """A value with its interval, if it has one."""
    if found is None:
        return DASH
    sign = "" if part.b is None else "+"
    text = number(found.value, part.metric, sign)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{number(found.low, part.metric, sign)}, {number(found.high, part.metric, sign)}]"


def by_seed(part: Part, found: Effect | None) -> str:
    """Each seed's effect, as "0: +1.2, 1: +0.8"."""
    sign = "" if part.b is None else "+"
    values = {} if found is None else found.by_seed
    return ", ".join(f"{seed}: {number(value, part.metric, sign)}" for seed, value in values.items()) or DASH


def untestable(part: Part, found: Effect | None) -> str:
    """Why a comparison with enough seeds has no test; "" if it has one."""
    if found is None or not found.untestable:
        return ""
    values = {value for level in found.levels for value in level.values()}
    if found.untestable == NO_SPREAD and max(values) - min(values) < 1e-9:
        unit = "%" if in_points(part.metric) else ""
        return f"every value is {100 * min(values):g}%" if unit else f"every value is {min(values):g}"
    return found.untestable


def plus_minus(found: Estimate | None, metric: str) -> str:
    """A mean with half of its interval."""
    if found is None:
        return DASH
    value = number(found.value, metric)
    if found.low is None or found.high is None:
        return value
    return f"{value} ±{number((found.high - found.low) / 2, metric)}"


def table(name: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> str:
    """A Markdown table without the heading that `Table` writes above it."""
    return (
        Table(name, "", headings, tuple(tuple(row) for row in rows), left=left).markdown().partition("\n\n")[2].strip()
    )
