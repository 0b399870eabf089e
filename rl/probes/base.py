"""What a probe is, and `measure`: the probes that a batch's rewards need, and no others.

A probe is one module of this folder with a constant `PROBE`. It says which fields of `rewards.probes.Probes` it gives, and
measures them for the rollouts of one generation batch. A reward lists the fields that it reads in `needs`.
Shapes: B rollouts of this process, P prompt columns, T completion columns, L = P + T.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.policy.token_places import token_range
from fgrpo.response import answer_place
from rewards.base import RewardContext, RewardItem
from rewards.probes import Absent, Probes

if TYPE_CHECKING:
    from rl.passes import LogprobPasses
    from rl.probes.passes import Passes

ANSWER = "answer"  # the one field that needs no pass
OF_ANSWER = frozenset(
    {"evidence", "controls", "answer_likelihood"}
)  # fields that are averaged over the answer's tokens


@dataclass(frozen=True)
class Rollouts:
    """The rollouts to measure: what was scored of them, their texts and their token ids, in the order of the batch."""

    items: tuple[RewardItem, ...]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    context: RewardContext


@dataclass(frozen=True)
class Batch:
    """A generation batch as the log-prob passes see it.

    Attributes:
        rollouts: as many as rows.
        ids_BL, mask_BL: prompts, padded on the left, and completions, padded on the right.
        completion: T.
        most: rollouts of one pass, at most.
        fields: further arguments of a pass: `pixel_values`, grids, `num_images`, and fields by token.
        original_BT: the policy's log-probabilities, if a pass of this batch has given them.
        reference_BT: the reference model's, if there is one.
    """

    rollouts: Rollouts
    ids_BL: Tensor
    mask_BL: Tensor
    completion: int
    most: int
    fields: Mapping[str, Any]
    original_BT: Tensor | None = None
    reference_BT: Tensor | None = None

    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [int(n) for n in self.mask_BL[:, -self.completion :].sum(dim=1)]


class Probe(Protocol):
    """A probe; `gives` are fields of `Probes`."""

    @property
    def gives(self) -> tuple[str, ...]: ...

    def check(self, trainer: LogprobPasses, context: RewardContext) -> None:
        """Raise UserError where the trainer's model or options do not allow this probe; before the first step."""

    def measure(self, needs: frozenset[str], batch: Batch, passes: Passes) -> list[dict[str, Any]]:
        """For each rollout the values of the fields `needs`. Every process makes equally many passes."""


def chosen(needs: Iterable[str]) -> list[tuple[Probe, frozenset[str]]]:
    """The probes that give `needs`, each with its part of them.

    Raises:
        UserError: no probe gives one of them (names the nearest).
    """
    wanted = frozenset(needs)
    every: list[Probe] = [
        load_plugin("rl.probes", name, "PROBE", "probe") for name in plugin_names("rl.probes", "PROBE")
    ]
    known = [name for probe in every for name in probe.gives]
    for name in sorted(wanted - set(known)):
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"a reward needs {name!r}, which nothing measures; rl/probes gives {', '.join(known)}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
        )
    return [(probe, part) for probe in every if (part := wanted & set(probe.gives))]


def measure(needs: Iterable[str], batch: Batch, passes: Passes, tokenizer: Any) -> tuple[Probes, ...]:
    """What was measured for each rollout of the batch; `tokenizer` is that of the completions."""
    found: list[dict[str, Any]] = [{} for _ in batch.rollouts.items]
    for probe, part in chosen(needs):
        for values, more in zip(found, probe.measure(part, batch, passes), strict=True):
            values.update(more)
    if OF_ANSWER & set(needs):
        for values, answer in zip(found, answers(batch.rollouts, tokenizer), strict=True):
            values.setdefault(ANSWER, answer)
    names = {field.name for field in fields(Probes)}
    assert all(names.issuperset(values) for values in found)
    return tuple(Probes(**values) for values in found)


NO_ANSWER = Absent("no_answer", "the response has no answer")
NOT_DECODED = Absent(
    "not_decoded", "the text is not what its tokens decode to, so the answer's tokens are unknown", True
)


def answers(rollouts: Rollouts, tokenizer: Any) -> list[tuple[int, int] | Absent]:
    """The tokens [first, last) that wrote each rollout's answer."""
    found: list[tuple[int, int] | Absent] = []
    for text, ids in zip(rollouts.texts, rollouts.ids, strict=True):
        place = answer_place(text)
        tokens = None if place is None else token_range(tokenizer, ids, text, place)
        if place is None or (tokens is not None and tokens[0] == tokens[1]):
            found.append(NO_ANSWER)
        else:
            found.append(NOT_DECODED if tokens is None else tokens)
    return found


def values_of(rows_BT: Tensor, lengths: Sequence[int], row: int) -> tuple[float, ...]:
    """The numbers of one rollout's tokens, without padding."""
    return tuple(rows_BT[row, : lengths[row]].tolist())
