"""Whether a verdict rests on all seeds that the grid declares. Before that it is provisional: the next seeds may change it."""

from __future__ import annotations

from collections.abc import Sequence

from ops.lab.declaration import Lab, Part
from ops.lab.verdicts import Verdict


def seeds(lab: Lab, condition: str) -> dict[str, frozenset[int]]:
    """{method: seeds that the grid declares for it in a condition}."""
    found: dict[str, frozenset[int]] = {}
    for block in lab.grid:
        if condition in block.conditions:
            for method in block.methods:
                found[method] = found.get(method, frozenset()) | frozenset(block.seeds)
    return found


def provisional(lab: Lab, verdict: Verdict) -> str:
    """How many of the declared seeds a tested verdict rests on, in words; "" if all."""
    short = [
        (effect.seeds, planned)
        for part, effect in zip(lab.hypotheses[verdict.hypothesis].parts, verdict.effects, strict=True)
        if effect is not None and effect.seeds < (planned := _planned(lab, verdict.condition, part))
    ]
    if verdict.missing or not short:
        return ""
    have, planned = min(short)
    return f"provisional: {have} of {planned} seeds"


def names(lab: Lab, verdicts: Sequence[Verdict]) -> list[str]:
    """The provisional verdicts, as "H1 in base"."""
    return [f"{v.hypothesis} in {v.condition}" for v in verdicts if provisional(lab, v)]


def _planned(lab: Lab, condition: str, part: Part) -> int:
    declared = seeds(lab, condition)
    arms = [declared.get(arm, frozenset()) for arm in (part.a, part.b) if arm is not None]
    return len(frozenset.intersection(*arms))
