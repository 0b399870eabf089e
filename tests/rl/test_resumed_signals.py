"""A killed run with signals of the policy itself equals an undisturbed one: auxiliary losses, token weights, probes, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl import train
from rl.trainer import DUALS, FaithfulGRPOTrainer, resume_point
from tests.rl.conftest import mini
from tests.rl.test_resumed import LONG, lines, linked, rollouts, same, weights

ANCHORING = "rl.auxiliary={anchoring: {weight: 0.2, options: {at_most: 0.5, lr: 0.3}}}"
PAPO = "rl.auxiliary={papo: {weight: -0.2}}"
VPPO = "rl.token_weights={keep: 0.5, lowest: 0.5}"
PROBES = ("rl.constraints.evidence_margin.tau=0.7", "rl.constraints.attention_where_it_matters.tau=0.5")
LORA = ("rl.lora={rank: 4, alpha: 8, dropout: 0.0}", "rl.learning_rate=0.01")
START = "rl.start=anchor"
TWO_UPDATES = ("rl.global_batch=1", "rl.micro_batch=4")  # of a generation

CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # overrides, and keys of metrics.jsonl that must move
    "papo and vppo": ((PAPO, VPPO), ("aux/papo", "tokens/dependence")),
    "probes as constraints": (PROBES, ("lambda/evidence_margin", "lambda/attention_where_it_matters")),
    "anchoring as a constraint, two updates per generation": (
        (START, ANCHORING, *TWO_UPDATES),
        ("aux/anchoring/weight",),
    ),
    "papo and probes on adapters": ((*LORA, PAPO, *PROBES), ("aux/papo", "lambda/evidence_margin")),
    "a reference that moves": (("rl.reference={decay: 0.5, every: 1}", "rl.learning_rate=0.01"), ("kl",)),
    "anchoring on adapters": ((*LORA, START, ANCHORING), ("aux/anchoring/weight",)),
}


@pytest.mark.parametrize("case", CASES)
def test_k_steps_and_k_more_are_2k_steps(
    case: str, world: Path, chain: Path, anchored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it saves step 4, after the checkpoint of step 2: weights, multipliers, rollouts and log are the same."""
    overrides, moving = CASES[case]
    (chain / "mini" / "anchor").mkdir()
    (chain / "mini" / "anchor" / "final").symlink_to(anchored)
    cfg = mini(world, LONG, *overrides)
    whole = train.train(cfg, linked(chain, "whole"))
    real = FaithfulGRPOTrainer._write_extra

    def dies(self: Any, folder: Path) -> None:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        real(self, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FaithfulGRPOTrainer, "_write_extra", dies)
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    half = resume_point(folder / "checkpoints")
    assert half is not None and half.name == "checkpoint-2"
    train.train(cfg, chain)
    assert same(weights(folder), weights(whole))
    assert lines(folder) == lines(whole) and rollouts(folder) == rollouts(whole)
    ends = [json.loads((f / "checkpoints" / "checkpoint-4" / DUALS).read_text()) for f in (folder, whole)]
    assert ends[0] == ends[1] != json.loads((half / DUALS).read_text())
    for key in moving:
        assert len({line[key] for line in lines(whole) if key in line}) > 1, key
