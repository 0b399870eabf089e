"""Anchoring in two processes (gloo) under DDP and ZeRO-3 against one process: losses, attention, weights, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fgrpo.policy import focus
from tests.distributed import worker
from tests.distributed.conftest import Small, in_two_processes
from tests.distributed.test_training import STOP, lines, moved

pytestmark = pytest.mark.slow
LAYOUTS = {"ddp": "null", "zero3": "configs/deepspeed/zero3.json"}
KEYS = {"loss": 1e-4, "grad_norm": 1e-3, "eval_loss": 1e-4}
FIGURES = {"anchor/loss": 1e-3, "anchor/inside": 1e-3, "eval_anchor/loss": 1e-3, "eval_anchor/inside": 1e-3}
RL = ("rl.start=anchor", "rl.auxiliary={anchoring: {weight: 0.2, options: {at_most: 0.5, lr: 0.3}}}")
RL_KEYS = {"loss": 1e-3, "grad_norm": 1e-3, "aux/anchoring": 1e-3, "aux/anchoring/weight": 1e-4}
RL_FIGURES = {"aux/anchoring/mean": 1e-3, "aux/anchoring/inside": 1e-3}  # not of steps without a question with boxes


def rl_root(small: Small, name: str) -> Path:
    """A runs root in which the anchor stage is done: the policy with the token."""
    final = small.root(name) / "mini" / "anchor" / "final"
    if not (small.folder / "anchored").exists():
        focus.add(small.folder / "backbone", small.folder / "anchored", add_row=True)
    if not final.exists():
        final.parent.mkdir()
        final.symlink_to(small.folder / "anchored")
    return small.root(name)


def stage(small: Small, *more: str) -> list[str]:
    return small.sft("anchor.max_steps=4", "anchor.learning_rate=1e-3", *more)


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The anchor stage and anchored RL in two processes, once undisturbed and once with a stop; DDP first."""
    made: list[dict[str, Any]] = []
    for name, file in LAYOUTS.items():
        job = {"name": f"anchor-{name}", "stage": "anchor", "set": stage(small, f"sft.deepspeed={file}")}
        own = small.rl("rl.micro_batch=4", f"rl.deepspeed={file}", *RL)
        for one in (job, {"name": f"rl-anchored-{name}", "stage": "rl", "set": own}):
            made += [one, *({**one, "name": f"{one['name']}-stopped", "stop_at": stop} for stop in (STOP, None))]
    for one in made:
        one["root"] = str((rl_root if one["stage"] == "rl" else Small.root)(small, one["name"]))
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(folder, made, small.texts)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_anchor_as_one_does(small: Small, ran: Path, layout: str) -> None:
    name = f"anchor-alone-{layout}"
    worker.run({"stage": "anchor", "set": stage(small, "sft.gradient_accumulation=2"), "root": small.root(name)}, {})
    for key, tolerance in (KEYS | FIGURES).items():
        one, two = (lines(small, n, "anchor", key) for n in (name, f"anchor-{layout}"))
        assert len(one) > 1 and two == pytest.approx(one, rel=tolerance), key
    start, *ends = (
        load_file(small.root(n) / "mini" / "anchor" / part / "model.safetensors")
        for n, part in ((name, "start"), (name, "final"), (f"anchor-{layout}", "final"))
    )
    assert moved(*ends) < 0.02 * moved(start, ends[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_goes_on_as_if_nothing_had_been(small: Small, ran: Path, layout: str) -> None:
    for key in KEYS | FIGURES:
        whole, parts = (lines(small, f"anchor-{layout}{end}", "anchor", key) for end in ("", "-stopped"))
        assert parts == pytest.approx(whole, rel=1e-6), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_keep_the_anchor_in_rl_as_one_does(small: Small, ran: Path, layout: str) -> None:
    """The loss, and its multiplier, which both processes move alike."""
    name = f"rl-anchored-alone-{layout}"
    job = {"stage": "rl", "set": small.rl("rl.micro_batch=8", *RL), "root": rl_root(small, name)}
    worker.run(job, small.texts)
    for key, tolerance in (RL_KEYS | RL_FIGURES).items():
        one, two = (lines(small, n, "rl-fgrpo", key) for n in (name, f"rl-anchored-{layout}"))
        assert len(one) == 4 or (key in RL_FIGURES and one), key
        assert two == pytest.approx(one, rel=tolerance, abs=1e-6), key
        parts = lines(small, f"rl-anchored-{layout}-stopped", "rl-fgrpo", key)
        assert parts == pytest.approx(two, rel=1e-6), key
    assert len(set(lines(small, name, "rl-fgrpo", "aux/anchoring/weight").values())) > 2
