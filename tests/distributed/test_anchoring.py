"""Anchoring in two processes (gloo) under DDP and ZeRO-3 against one process: losses, attention, weights, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.distributed import worker
from tests.distributed.conftest import Small, in_two_processes
from tests.distributed.test_training import STOP, lines, moved

pytestmark = pytest.mark.slow
LAYOUTS = {"ddp": "null", "zero3": "configs/deepspeed/zero3.json"}
KEYS = {"loss": 1e-4, "grad_norm": 1e-3, "eval_loss": 1e-4}
FIGURES = {
    "anchor/loss": 2e-2,
    "anchor/inside": 2e-2,
    "eval_anchor/loss": 2e-2,
}  # means by micro-batch, whose counts differ


def stage(small: Small, *more: str) -> list[str]:
    return small.sft("anchor.max_steps=4", "anchor.learning_rate=1e-3", *more)


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The anchor stage in two processes, once undisturbed and once with a stop; DDP first."""
    made: list[dict[str, Any]] = []
    for name, file in LAYOUTS.items():
        job = {"name": f"anchor-{name}", "stage": "anchor", "set": stage(small, f"sft.deepspeed={file}")}
        made += [job, *({**job, "name": f"anchor-{name}-stopped", "stop_at": stop} for stop in (STOP, None))]
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(folder, [{**job, "root": str(small.root(job["name"]))} for job in made], small.texts)
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
