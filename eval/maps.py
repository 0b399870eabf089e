"""Stored maps of where a model looks: `maps.json` beside an evaluation, written by `make maps` and drawn by the report.

`rl.probes.maps` says what the numbers are. A map is not shown beside another answer than its own, nor after the evaluation of
another checkpoint: the file holds the digest of each answer's text and what the evaluation was made from.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eval.results import Result
from fgrpo.errors import UserError
from fgrpo.identity import Identity
from fgrpo.runs import write_json
from fgrpo.types import Rollout

FILE = "maps.json"
AGAIN = "run `make maps` for this model again"
Grid = tuple[tuple[float, ...], ...]  # numbers of one image's cells or blocks, row by row
DIGITS = 6


@dataclass(frozen=True)
class Inside:
    """An answer's maps inside the annotated boxes.

    Attributes:
        area: share of all cells that the boxes touch: what uniform attention would give.
        attention, focus: share of the attention on the images that lies in these cells; `focus` None without the token.
        drop, drop_elsewhere: mean drop of blocks that the boxes touch, and of the others (None if there is none), in nats.
    """

    area: float
    attention: float
    focus: float | None
    drop: float
    drop_elsewhere: float | None


@dataclass(frozen=True)
class AnswerMaps:
    """The maps of one answer; a `Grid` for each image of its question.

    Attributes:
        id: of the answer.
        text: digest of its text (`digest`).
        tokens: of the response.
        attention: shares of the cells, which sum to 1 over all images.
        on_image: share of the response's attention that lies on the images at all.
        focus: as `attention`, of `<|focus|>`; None without it.
        side: cells per side of a blanked block.
        drops: mean drop of the response's log-probabilities, in nats per token, by block.
        inside: None without annotated boxes.
    """

    id: str
    text: str
    tokens: int
    attention: tuple[Grid, ...]
    on_image: float
    focus: tuple[Grid, ...] | None
    side: int
    drops: tuple[Grid, ...]
    inside: Inside | None

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"the maps of {self.id} have blocks of no cell")
        shapes = [(len(grid), len(grid[0])) for grid in self.attention]
        blocks = [(math.ceil(rows / self.side), math.ceil(columns / self.side)) for rows, columns in shapes]
        for grids, wanted in ((self.attention, shapes), (self.focus or self.attention, shapes), (self.drops, blocks)):
            found = [(len(grid), {len(row) for row in grid}) for grid in grids]
            if found != [(rows, {columns}) for rows, columns in wanted]:
                raise ValueError(f"the maps of {self.id} do not fit one another")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError: it is no such object."""
        inside = data["inside"]
        return cls(
            str(data["id"]),
            str(data["text"]),
            int(data["tokens"]),
            _grids(data["attention"]),
            float(data["on_image"]),
            None if data["focus"] is None else _grids(data["focus"]),
            int(data["side"]),
            _grids(data["drops"]),
            None if inside is None else Inside(**inside),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, numbers with six decimals."""
        return {
            **vars(self),
            "attention": _rounded(self.attention),
            "on_image": round(self.on_image, DIGITS),
            "focus": None if self.focus is None else _rounded(self.focus),
            "drops": _rounded(self.drops),
            "inside": None
            if self.inside is None
            else {k: None if v is None else round(v, DIGITS) for k, v in vars(self.inside).items()},
        }


@dataclass(frozen=True)
class Maps:
    """The maps of one evaluated model.

    Attributes:
        made_from: hashes of what its evaluation read, its checkpoint among them.
        layers: whose attention was read, of `layer_count`; the mean over their heads.
        fill: what a blanked block shows (`rl.probes.fill`).
    """

    made_from: tuple[str, ...]
    layers: tuple[int, ...]
    layer_count: int
    fill: str
    answers: tuple[AnswerMaps, ...]

    def write(self, folder: Path) -> Path:
        """Write `FILE` into an evaluation's folder."""
        content = {**vars(self), "answers": [answer.to_dict() for answer in self.answers]}
        write_json(folder / FILE, content)
        return folder / FILE


def read(folder: Path) -> Maps | None:
    """The maps beside an evaluation; None without them. UserError: the file is damaged."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        answers = tuple(AnswerMaps.from_dict(item) for item in data["answers"])
        layers = tuple(int(layer) for layer in data["layers"])
        return Maps(tuple(map(str, data["made_from"])), layers, int(data["layer_count"]), str(data["fill"]), answers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{file} is damaged ({error!r}); {AGAIN}") from error


def of_result(result: Result) -> tuple[Maps | None, int]:
    """The maps that belong to a finished evaluation as it is now, and how many of the file are of other answers."""
    stored = read(result.path)
    if stored is None:
        return None, 0
    rollouts = result.rollouts() if stored.made_from == made_from(result.path) else {}
    current = tuple(a for a in stored.answers if a.id in rollouts and digest(rollouts[a.id]) == a.text)
    left_out = len(stored.answers) - len(current)
    return Maps(stored.made_from, stored.layers, stored.layer_count, stored.fill, current), left_out


def digest(rollout: Rollout) -> str:
    """Of an answer's text."""
    return hashlib.sha256(rollout.text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def made_from(folder: Path) -> tuple[str, ...]:
    """Hashes of the files that an evaluation's answers were made from: of a checkpoint, or () for a hub's model."""
    identity = Identity.read(folder)
    return () if identity is None else tuple(sorted(identity.inputs.values()))


def _grids(data: Sequence[Sequence[Sequence[Any]]]) -> tuple[Grid, ...]:
    found = tuple(tuple(tuple(map(float, row)) for row in grid) for grid in data)
    if not found or not all(math.isfinite(number) for grid in found for row in grid for number in row):
        raise ValueError("a map without an image, or with a number that is not finite")
    return found


def _rounded(grids: Sequence[Grid]) -> list[list[list[float]]]:
    return [[[round(number, DIGITS) for number in row] for row in grid] for grid in grids]
