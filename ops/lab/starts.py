"""Which checkpoint each arm starts from, as its method's configuration says (`rl.start`), not as the lab's question says."""

from __future__ import annotations

from functools import cache

from eval import models
from fgrpo import config as configuration
from ops.lab.declaration import Lab, Part

SFT = "sft"


def start_of(lab: Lab, condition: str, method: str) -> str:
    """Where the arm's RL starts: "sft" or "anchor"; for an arm that RL does not train, the model itself."""
    of = lab.of(method)
    if models.rl_run(of) is None:
        return of
    words = (*lab.set, *lab.conditions[condition].set, *lab.methods[method].set)
    return _start(lab.preset, of, words)


@cache
def _start(preset: str, method: str, words: tuple[str, ...]) -> str:
    return configuration.load(preset, method, words).rl.start


def elsewhere(lab: Lab) -> dict[str, list[str]]:
    """{start: trained arms}, of the arms that do not start from SFT in their first condition of the grid."""
    out: dict[str, list[str]] = {}
    for method in lab.methods:
        condition = next((b.conditions[0] for b in lab.grid if method in b.methods), None)
        if condition is None or models.rl_run(lab.of(method)) is None:
            continue
        start = start_of(lab, condition, method)
        if start != SFT:
            out.setdefault(start, []).append(method)
    return out


def differ(lab: Lab, condition: str, part: Part) -> bool:
    """Whether the two arms of a comparison start from different checkpoints."""
    return part.b is not None and start_of(lab, condition, part.a) != start_of(lab, condition, part.b)
