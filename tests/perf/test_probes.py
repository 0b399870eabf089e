"""The measurement of probes and of the anchoring loss: three short trainers in turn, and the tables from fixed inputs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from perf import constraints, probes
from perf.constraints import Arm
from perf.probes import Timed, arms, loss_table, pass_table, tap_of
from rl.probes.attention import Attention
from rl.probes.passes import Passes
from tests.rl.conftest import OVERRIDES, earlier_stages, policy, world

__all__ = ["policy", "world"]
STEP = [
    *(("untapped", 1.0, 4), ("tapped", 1.5, 4), ("original", 2.0, 4), ("evidence", 2.0, 4)),
    *(("control", 1.0, 4), ("control", 3.0, 2), ("original", 1.0, 4), ("patches", 3.0, 8)),
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_table_of_passes() -> None:
    rows = pass_table([9.0, 10.0, 11.0], [STEP, STEP])
    shares = {row[0]: row[1:] for row in rows}
    assert shares[probes.WORDS["original"]] == ("30.0%", "100%"), "both of its parts"
    assert shares[probes.WORDS["evidence"]] == ("20.0%", "50%")
    assert shares[probes.WORDS["control"]] == ("20.0%", "38%"), "the mean of two regions"
    assert shares[probes.WORDS["untapped"]] == ("10.0%", "50%")
    assert rows[-1] == ("**all that probes take**", "135.0%", ""), "without the pass that is made for the comparison"
    assert tap_of([STEP, STEP[2:]]) == "1.50"


def test_the_table_of_the_loss() -> None:
    plain, other = Arm(None), Arm(None)
    plain.wall, plain.cpu = [9.0, 9.0, 1.0, 1.0], [9.0, 9.0, 2.0, 2.0]
    other.wall, other.cpu = [1.0, 1.0, 1.5, 1.5], [1.0, 1.0, 4.0, 4.0]
    assert loss_table(plain, other)[1][1:] == ("1.500 (1.500–1.500)", "2.000 (2.000–2.000)"), "without the first steps"


def test_each_pass_of_a_real_run_is_timed(
    world: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Passes.original, Passes.changed, Attention._shares
    monkeypatch.setattr(constraints, "STEPS", 3)
    root = earlier_stages(tmp_path, world, policy)
    small = [*(entry for entry in OVERRIDES if "max_steps" not in entry), f"data.root={world}"]
    args = argparse.Namespace(preset="mini", method="fgrpo", set=[*small, "rl.max_response_length=60"], runs=str(root))
    shutil.rmtree(root / "mini" / "anchor", ignore_errors=True)
    made, timed = arms(args, root, 3)
    assert own == (Passes.original, Passes.changed, Attention._shares), "nothing stays replaced"
    assert all(len(arm.wall) == 3 and min(arm.wall) > 0 for arm in made.values())
    assert made["anchoring"].trainer.state.log_history[0]["aux/anchoring/weight"] == 1.0e-3
    assert [kind for kind, _, _ in timed.steps[0]] == ["untapped", "tapped"], "the preflight tries the pass out"
    steps = timed.steps[1:]
    assert len(steps) == 3
    for step in steps:
        changed = [kind for kind, _, _ in step if kind in ("evidence", "control", "patches")]
        assert changed == ["evidence", "control", "control", "patches"]
    every = {kind for step in steps for kind, _, _ in step}
    assert every == set(probes.WORDS)
    assert all(seconds > 0 for step in steps for _, seconds, count in step if count)
    rows = pass_table(made["plain"].wall, steps)
    assert len(rows) == len(probes.WORDS) + 1


def test_the_order_of_changed_images_follows_the_configuration() -> None:
    assert Timed(3).order == ("evidence", "control", "control", "control", "patches")
