"""What measuring the policy (rl/probes) and anchoring it (rl/auxiliary/anchoring.py) cost, as shares of the step without them.

Three trainers take turns in one process, step by step, with the same weights and random numbers (`perf.constraints`): without
either, with all probes monitored, and with the anchoring loss. All start from the SFT policy with the token `<|focus|>`, untrained.
Command: `python -m perf.probes --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trl import GRPOTrainer

from fgrpo import runs
from fgrpo.policy import focus
from perf.common import borrowed_stages, load, main, median, ratio, show
from perf.constraints import WARM_UP, Arm, build, take_turns
from perf.constraints_cost import quartiles
from rl.probes.attention import Attention
from rl.probes.passes import Passes

STEPS = 14
START = "rl.start=anchor"
MONITORS = "rl.monitor=[evidence_margin,control_margin,vision_dependence,attention_where_it_matters]"
ANCHORING = "rl.auxiliary={anchoring: {weight: 1.0e-3}}"
WORDS = {
    "original": "the image itself (TRL makes no old pass here)",
    "evidence": "annotated boxes blanked",
    "control": "one control region blanked",
    "patches": "random cells blanked",
    "tapped": "attention: a pass over padded rows under the tap",
    "untapped": "the same pass without the tap",
}
ALONE = ("untapped",)  # made for the comparison, no part of measuring


class Timed:
    """Within it, (kind, seconds, rollouts) of each pass, in order; one list per generation batch.

    Args:
        controls: control regions of a question, whose passes follow that of the evidence.
    """

    def __init__(self, controls: int) -> None:
        self.steps: list[list[tuple[str, float, int]]] = []
        self.order = ("evidence", *["control"] * controls, "patches")

    def __enter__(self) -> Timed:
        self._own = Passes.__init__, Passes.original, Passes.changed, Attention._shares
        begin, original, changed, shares = self._own

        def begins(this: Passes, *args: Any) -> None:
            self.steps.append([])
            begin(this, *args)

        def originals(this: Passes, rows: Sequence[int]) -> Any:
            missing = [row for row in rows if row not in this._known]
            return self._noted("original", len(missing), lambda: original(this, rows))

        def changes(this: Passes, cells: Mapping[int, Any]) -> Any:
            before = sum(kind in self.order for kind, _, _ in self.steps[-1])
            return self._noted(self.order[before], len(cells), lambda: changed(this, cells), always=True)

        def tapped(this: Attention, known: Any, batch: Any, passes: Any, context: Any) -> Any:
            self._noted("untapped", len(known), lambda: untapped(known, batch, passes))
            return self._noted("tapped", len(known), lambda: shares(this, known, batch, passes, context))

        Passes.__init__, Passes.original, Passes.changed = begins, originals, changes  # type: ignore[method-assign]
        Attention._shares = tapped  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        Passes.__init__, Passes.original, Passes.changed, Attention._shares = self._own  # type: ignore[method-assign]

    def _noted(self, kind: str, rollouts: int, work: Callable[[], Any], always: bool = False) -> Any:
        began = time.perf_counter()
        found = work()
        if rollouts or always:
            self.steps[-1].append((kind, time.perf_counter() - began, rollouts))
        return found


def untapped(known: Mapping[int, Any], batch: Any, passes: Any) -> None:
    """The passes of `Attention._shares` as they are without the tap."""
    trainer, rows = passes.trainer, sorted(known)
    with passes.measuring():
        for start in range(0, len(rows), batch.most):
            part = rows[start : start + batch.most]
            GRPOTrainer._get_per_token_logps_and_entropies(
                trainer, trainer.model, batch.ids_BL[part], batch.mask_BL[part], batch.completion, len(part),
                **passes.chunk(part),
            )  # fmt: skip


def pass_table(base: Sequence[float], steps: Sequence[Sequence[tuple[str, float, int]]]) -> list[tuple[str, str, str]]:
    """Rows of the page: what, share of the median step without probes, share of the rollouts.

    Passes of one kind are averaged within a step. What rollouts with boxes and the others ask for apart is one pass.

    Args:
        base: seconds of the steps without probes.
        steps: the passes of each step with probes.
    """
    kinds = {kind: [part for step in steps if (part := _of_kind(step, kind))] for kind in WORDS}
    rollouts = max((count for parts in kinds.values() for _, count in parts), default=1)
    rows = [
        (
            WORDS[kind],
            f"{median([seconds for seconds, _ in parts]) / median(base):.1%}",
            f"{median([count for _, count in parts]) / rollouts:.0%}",
        )
        for kind, parts in kinds.items()
        if parts
    ]
    whole = [sum(seconds for kind, seconds, _ in step if kind not in ALONE) for step in steps]
    return [*rows, ("**all that probes take**", f"{median(whole) / median(base):.1%}", "")]


def _of_kind(step: Sequence[tuple[str, float, int]], kind: str) -> tuple[float, float] | None:
    """(seconds, rollouts) of a kind's pass in one step: a mean over control regions, a sum over parts of the original."""
    found = [(seconds, count) for other, seconds, count in step if other == kind]
    if not found:
        return None
    number = 1 if kind == "original" else len(found)
    return sum(seconds for seconds, _ in found) / number, sum(count for _, count in found) / number


def tap_of(steps: Sequence[Sequence[tuple[str, float, int]]]) -> str:
    """How many times longer a pass takes under the tap: the ratio of the medians, and the range of the steps' ratios."""
    pairs = [[part[0] for kind in ("tapped", "untapped") if (part := _of_kind(step, kind))] for step in steps]
    both = [pair for pair in pairs if len(pair) == 2]
    return ratio([one for one, _ in both], [other for _, other in both])


def loss_table(plain: Arm, anchored: Arm) -> list[tuple[str, ...]]:
    """Rows of the page: steps with the anchoring loss over those without, step by step."""
    pairs = ((anchored.wall, plain.wall), (anchored.cpu, plain.cpu))
    ratios = (quartiles(one[WARM_UP:], other[WARM_UP:]) for one, other in pairs)
    return [("without", "1.00", "1.00"), ("with the anchoring loss", *ratios)]


def with_token(args: argparse.Namespace, root: Path) -> None:
    """Write the SFT policy with the token to where the anchor stage would leave its own."""
    cfg = load(args, args.method)
    source, target = (runs.folder(cfg, stage, root) / "final" for stage in ("sft", "anchor"))
    focus.add(source, target, add_row=cfg.anchor.add_row)


def arms(args: argparse.Namespace, root: Path, steps: int) -> tuple[dict[str, Arm], Timed]:
    """Train the three side by side, and the passes of the one that measures."""
    with_token(args, root)
    own = {"plain": (), "probes": (MONITORS,), "anchoring": (ANCHORING,)}
    made = {
        name: Arm(build(args, root, args.method, f"rl-{name}", more=(START, f"rl.max_steps={steps}", *more)))
        for name, more in own.items()
    }
    controls = load(args, args.method).rl.probes.controls
    with Timed(controls) as timed:
        take_turns(made)
    return made, timed


def body(args: argparse.Namespace) -> None:
    """One run, two tables."""
    with borrowed_stages(args) as root:
        made, timed = arms(args, root, STEPS)
    plain, steps = made["plain"].wall[WARM_UP:], timed.steps[-(STEPS - WARM_UP) :]
    show(
        "Measuring the policy",
        f"Share of the median step without probes ({STEPS - WARM_UP} steps, method {args.method}, one core). Each pass takes the rollouts "
        "that need it; those on changed images share the row of their prompt, and a frozen tower sees each changed image once. With several "
        "updates per generation, or with vLLM, the first row costs nothing: TRL's old log-probabilities are used. The tap makes its pass "
        f"{tap_of(steps)} times as long.",
        ("pass", "share of the step", "rollouts in it"),
        pass_table(plain, steps),
    )
    show(
        "The anchoring loss",
        f"Steps with `rl.auxiliary.anchoring` (a forward and backward pass over the prompts) over those without, {STEPS - WARM_UP} rounds in "
        "turn. In brackets the quartiles of the ratio.",
        ("step", "wall clock", "CPU seconds"),
        loss_table(made["plain"], made["anchoring"]),
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
