"""SFT's first minute: a pass over the longest rows and the largest images, which leaves no trace in the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgrpo.errors import UserError
from fgrpo.runs import Run
from fgrpo.training import peak
from sft import preflight, train
from sft.dataset import Row
from tests.sft.conftest import mini
from tests.stand_in_engine import Engine


@pytest.fixture
def trainer(world: Path, tmp_path: Path) -> Iterator[Any]:
    cfg, file = mini(world), world / "runs" / "mini" / "mcts" / "sft.jsonl"
    with Run.open(cfg, "sft", [file], tmp_path) as run:
        built, log = train.build_trainer(cfg, run, file)
        yield built
        log.close()


def test_a_pass_over_the_longest_rows_changes_nothing(trainer: Any) -> None:
    weights = [p.clone() for p in trainer.model.parameters()]
    before, training = torch.random.get_rng_state(), trainer.model.training
    backwards: list[int] = []
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    handle = parameter.register_hook(lambda grad: backwards.append(1))
    line = preflight.check_peak(trainer, [3, 0], "longest rows")
    handle.remove()
    longest = max(len(trainer.data_collator([trainer.train_dataset[i]])["input_ids"][0]) for i in (3, 0))
    assert line.startswith(f"longest rows: up to {longest} tokens, forward and backward in ") and backwards
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(map(torch.equal, weights, trainer.model.parameters()))
    assert torch.equal(before, torch.random.get_rng_state()) and trainer.model.training == training
    assert not any(trainer._metrics.values()) and trainer._total_train_tokens == 0


def test_deepspeed_s_engine_takes_both_passes_and_keeps_no_gradient(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/distributed has the real engine."""
    engine = Engine(trainer.model)
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trainer, "model_wrapped", engine)
    monkeypatch.setattr(trainer, "_prepare_inputs", lambda batch: batch)  # DeepSpeed's dtype is not set here
    assert ", forward and backward in " in preflight.check_peak(trainer, [0], "largest images")
    assert engine.said == ["forward", "boundary False", "backward 0.0", "zero_grad"]
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_pass_that_does_not_fit_names_the_keys(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")

    monkeypatch.setattr(trainer, "compute_loss", full)
    with pytest.raises(
        UserError, match=r"micro-batch of the longest rows does not fit .*90 GiB.*sft\.batch_size.*pixels"
    ):
        preflight.check_peak(trainer, [0], "longest rows")
    assert all(p.grad is None for p in trainer.model.parameters())


def test_the_stage_probes_its_longest_rows_and_its_largest_images(
    world: Path, trainer: Any, monkeypatch, capsys
) -> None:
    rows = [Row(str(n), "s", "q", "a", ("x",), tokens=n, image_tokens=10 - n) for n in range(5)]
    asked: list[Any] = []
    monkeypatch.setattr(preflight, "check_peak", lambda *given: asked.append(given) or given[2])
    check = preflight.Preflight(rows)
    arguments, state = SimpleNamespace(per_device_train_batch_size=2), SimpleNamespace(global_step=0, max_steps=4)
    check.on_train_begin(arguments, state, None)  # type: ignore[arg-type]
    assert not asked  # no trainer yet
    check.trainer = trainer
    check.on_train_begin(arguments, state, None)  # type: ignore[arg-type]
    assert asked == [(trainer, [4, 3], "longest rows"), (trainer, [0, 1], "largest images")]
    assert capsys.readouterr().out == "longest rows\nlargest images\n"
    check.on_train_begin(arguments, SimpleNamespace(global_step=4, max_steps=4), None)  # type: ignore[arg-type]
    assert len(asked) == 2  # nothing is left to train
    monkeypatch.undo()
    (real,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, preflight.Preflight)]
    assert real.trainer is trainer and len(real.rows) == len(trainer.train_dataset)
    assert min(row.image_tokens for row in real.rows) == 18 and all(row.tokens > row.image_tokens for row in real.rows)
    assert peak.largest([3.0, 5.0, 5.0, 1.0], 3) == [1, 2, 0]
    assert peak.largest([(4, 1), (4, 9), (3, 99)], 2) == [1, 0], "of equal images the longest row"
