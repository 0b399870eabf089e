"""The report's section "Where the policy looks": maps over the images of some answers (`eval.maps`) beside boxes and verdicts,
and the means of what `make probe` measured (`eval.probe_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval import heat, models
from eval.examples import KEYS, Column, Example
from eval.maps import AGAIN, FILE, AnswerMaps, Maps, of_result
from eval.probe_table import probe_table
from eval.results import Result

HOW = (
    "No maps are stored. Maps of attention, and of what the answers depend on: `make maps MODEL={name}`; how much they depend on the "
    "image: `make probe MODEL={name}`; then `make report`."
)
NOTE = (
    "Attention: where the tokens of the response attend on the image, as a multiple of uniform attention, which would give every "
    "cell the same share. It is no proof of use. Counterfactual: how far the response's log-probability drops, in nats a token, "
    "where one block alone shows nothing; darkest where it does not drop. Dashed green: true boxes."
)
MASKED = {"zero": "the mean colour", "black": "black", "ring": "the mean colour around it"}


@dataclass(frozen=True)
class Heat:
    """One map over one image of the question; `uri` of its colours."""

    title: str
    image: int
    uri: str


@dataclass(frozen=True)
class Looking:
    """The maps of one model's answer, and the answer with its verdicts; `facts` are (what, numbers)."""

    column: Column
    heats: tuple[Heat, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Look:
    """One question with the maps of the models that have some."""

    example: Example
    of_models: tuple[Looking, ...]


def section(shown: Sequence[Result], collected: Callable[[Sequence[str]], list[Example]]) -> dict[str, Any] | None:
    """What the template shows of the models `shown`; None if none of them can have maps and nothing was measured.

    Args:
        collected: the examples of rollout ids, with a column for each model, in the order of `shown`.
    """
    stored = {result.name: of_result(result) for result in shown}
    known: dict[str, Maps] = {name: found for name, (found, _) in stored.items() if found is not None and found.answers}
    table, left_out = probe_table(shown)
    notes = [
        f"{result.title}: {FILE} holds {count} maps of other answers or weights, which are not shown; {AGAIN}."
        for result in shown
        if (count := stored[result.name][1])
    ] + left_out
    local = [result.name for result in shown if models.is_trained(result.name)]
    if not known and table is None:
        how = HOW.format(name=local[:2][-1]) if local else ""
        return {"looks": [], "table": None, "notes": notes, "how": how} if local or notes else None
    looks = _looks(shown, known, collected) if known else []
    return {
        "looks": looks,
        "note": NOTE,
        "table": table,
        "notes": notes,
        "read": [_read(result.title, known[result.name]) for result in shown if result.name in known],
        "gradient": heat.gradient(),
        "scales": [("attention, " + heat.ATTENTION.unit, heat.ATTENTION.marks()), ("drop, " + heat.DROP.unit, heat.DROP.marks())],
        "how": "",
    }  # fmt: skip


def _looks(
    shown: Sequence[Result], known: Mapping[str, Maps], collected: Callable[[Sequence[str]], list[Example]]
) -> list[Look]:
    by_model = {name: {answer.id: answer for answer in found.answers} for name, found in known.items()}
    ids = list(dict.fromkeys(answer for answers in by_model.values() for answer in answers))
    name_of = {key: result.name for key, result in zip(KEYS, shown, strict=False)}
    found = []
    for example in collected(ids):
        of_models = [
            Looking(column, _heats(answer), _facts(answer))
            for column in example.columns
            if (answer := by_model.get(name_of[column.key], {}).get(example.id)) is not None
            and len(answer.attention) == len(example.images)
        ]
        if of_models:
            found.append(Look(example, tuple(of_models)))
    return found


def _heats(answer: AnswerMaps) -> tuple[Heat, ...]:
    """For each image: attention of the response, that of `<|focus|>` where there is one, and the counterfactual map."""
    found, count = [], heat.cells(answer.attention)
    for image, grid in enumerate(answer.attention):
        shape = len(grid), len(grid[0])
        found.append(Heat("attention of the response", image, heat.uri(grid, heat.ATTENTION, count)))
        if answer.focus is not None:
            found.append(Heat("attention of <|focus|>", image, heat.uri(answer.focus[image], heat.ATTENTION, count)))
        drop = heat.uri(answer.drops[image], heat.DROP, side=answer.side, shape=shape)
        found.append(Heat("counterfactual", image, drop))
    return tuple(found)


def _facts(answer: AnswerMaps) -> tuple[tuple[str, str], ...]:
    """Numbers beside the maps."""
    drops = [number for grid in answer.drops for row in grid for number in row]
    blocks = "cells" if answer.side == 1 else f"blocks of {answer.side} × {answer.side} cells"
    raised = sum(round(number, 3) < 0 for number in drops)
    found = [("attention on the image", f"{100 * answer.on_image:.0f}% of all")]
    inside = answer.inside
    if inside is not None:
        uniform = f"uniform {100 * inside.area:.0f}%"
        found.append(("of it inside the boxes", f"{100 * inside.attention:.0f}% ({uniform})"))
        if inside.focus is not None:
            found.append(("of <|focus|>'s inside them", f"{100 * inside.focus:.0f}% ({uniform})"))
        elsewhere = "" if inside.drop_elsewhere is None else f", elsewhere {_nats(inside.drop_elsewhere)}"
        found.append(("mean drop inside the boxes", f"{_nats(inside.drop)}{elsewhere} nats"))
    found.append(("largest drop", f"{_nats(max(drops))} nats; {raised} of {len(drops)} {blocks} raise the probability"))
    return tuple(found)


def _nats(number: float) -> str:
    """Three decimals, without a negative zero."""
    return f"{round(number, 3) + 0.0:.3f}"


def _read(title: str, found: Maps) -> str:
    layers = ", ".join(map(str, found.layers))
    return f"{title}: layer{'s' * (len(found.layers) > 1)} {layers} of 0 to {found.layer_count - 1}; a blanked block shows {MASKED.get(found.fill, found.fill)}."
