"""RL that stops and resumes: after a judge outage, with other means, with more steps, from damage, and when it diverges."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.training.finite import NotFinite
from fgrpo.training.stored import steps_in, write_checksums
from rl import train
from rl.dual import Constraint
from rl.failures import FailedJudgements
from rl.scored_batch import ScoreColumn
from rl.trainer import DUALS, FaithfulGRPOTrainer, resume_point
from tests.rl.conftest import mini, scattered, scorer

LONG = "rl.max_response_length=60"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if not key.startswith("seconds/")}
        for line in read_jsonl(folder / "metrics.jsonl")
    ]


def rollouts(folder: Path) -> dict[str, Any]:
    return {path.name: pq.read_table(path) for path in sorted((folder / "rollouts").iterdir())}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def linked(chain: Path, name: str) -> Path:
    """Another runs folder with the same earlier stages."""
    return Path(shutil.copytree(chain, chain.parent / name, symlinks=True))


def test_a_run_that_stopped_at_a_judge_outage_equals_an_undisturbed_one(
    world: Path, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third generation's judgements fail; no checkpoint was due there."""
    cfg = mini(world, LONG, "rl.save_steps=100", "rl.max_failed_share=0.1")
    whole = train.train(cfg, linked(chain, "whole"))
    real = FaithfulGRPOTrainer._calculate_rewards

    def outage(self: Any, *args: Any, **more: Any) -> Any:
        scores_NK = real(self, *args, **more)
        if self.state.global_step == 2:
            torch.rand(7)  # whatever the failed generation still drew
            scores_NK[:, 1] = torch.nan
            reasons = tuple((None, "endpoint down", *row[2:]) for row in self._gathered.reasons_NK)
            self._gathered = replace(self._gathered, scores_NK=scores_NK, reasons_NK=reasons)
        return scores_NK

    monkeypatch.setattr(FaithfulGRPOTrainer, "_calculate_rewards", outage)
    with pytest.raises(UserError, match=r"step 3: .*rerun to resume"):
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    kept = resume_point(folder / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-2"
    monkeypatch.setattr(FaithfulGRPOTrainer, "_calculate_rewards", real)
    train.train(cfg, chain)
    assert same(weights(folder), weights(whole))
    assert lines(folder) == lines(whole) and rollouts(folder) == rollouts(whole)
    duals = [json.loads((resume_point(f / "checkpoints") / DUALS).read_text()) for f in (folder, whole)]  # type: ignore[operator]
    assert duals[0] == duals[1]


def test_an_outage_in_a_drop_in_run(make: Callable[..., Any], tmp_path: Path) -> None:
    """Also for a user's own reward functions, at an epoch's first step."""
    failing = {"on": True}

    def one(prompts: Any, trainer_state: Any, **_: Any) -> ScoreColumn:
        step, count = int(trainer_state.global_step), len(prompts)
        if step == 3 and failing["on"]:
            return ScoreColumn([None] * count, ["down"] * count)
        return ScoreColumn([scattered(2)(step, n) for n in range(count)])

    funcs = [scorer("task", scattered(1)), one]
    kept = {"save_steps": 100, "max_steps": 6}
    more: dict[str, Any] = {"max_failed_share": 0.1, "steps": 3, "constraints": []}
    more["constraints"] = [Constraint("one", 0.9, min_applicable=1)]
    with pytest.raises(FailedJudgements):
        make(funcs, out="parts", tweak=kept, **more).train()
    failing["on"] = False
    whole = make(funcs, out="whole", tweak=kept, **more)
    whole.train()
    resumed = make(funcs, out="parts", tweak=kept, **more)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.dual.state_dict() == whole.dual.state_dict()
    for (name, one_), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one_, two), name


def test_more_steps_of_a_constant_schedule_equal_a_longer_run(world: Path, chain: Path) -> None:
    constant = ("rl.scheduler=constant", "rl.warmup_ratio=0", LONG)
    whole = train.train(mini(world, *constant, "rl.max_steps=4"), linked(chain, "whole"))
    folder = train.train(mini(world, *constant, "rl.max_steps=2"), chain)
    assert len(lines(folder)) == 2
    train.train(mini(world, *constant, "rl.max_steps=4"), chain)
    assert same(weights(folder), weights(whole)) and lines(folder) == lines(whole)
    assert json.loads((folder / "manifest.json").read_text())["changes"][0]["key"] == "rl.max_steps"


def test_smaller_micro_batches_and_other_save_steps_resume_on_the_same_questions(
    world: Path, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = mini(world, LONG)
    whole = train.train(cfg, linked(chain, "whole"))
    real = FaithfulGRPOTrainer._write_extra

    def dies(self: FaithfulGRPOTrainer, folder: Path) -> None:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        real(self, folder)

    monkeypatch.setattr(FaithfulGRPOTrainer, "_write_extra", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, chain)
    monkeypatch.setattr(FaithfulGRPOTrainer, "_write_extra", real)
    folder = train.train(mini(world, LONG, "rl.micro_batch=4", "rl.save_steps=1", "rl.keep_checkpoints=9"), chain)
    assert list(steps_in(folder / "checkpoints")) == [2, 3, 4]
    was, now = rollouts(whole), rollouts(folder)
    for name in was:
        assert was[name]["sample_id"] == now[name]["sample_id"], name
    # the generation after the resume sees the same weights and random numbers
    assert was["000003.parquet"]["text"] == now["000003.parquet"]["text"]
    changes = json.loads((folder / "manifest.json").read_text())["changes"]
    assert [change["key"] for change in changes] == ["rl.micro_batch"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", DUALS])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    world: Path, chain: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = mini(world)
    folder = train.train(cfg, chain)
    before = weights(folder)
    (folder / "done").unlink()
    shutil.rmtree(folder / "final")
    file = folder / "checkpoints" / "checkpoint-4" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    train.train(cfg, chain)
    printed = capsys.readouterr()
    assert f"checkpoint-4 is not used: {name} " in printed.err and "resuming from" in printed.out
    assert "checkpoint-2" in printed.out and same(weights(folder), before)


def poison(trainer: Any) -> None:
    """A gradient that is NaN at the third step."""
    inner = trainer.training_step

    def step(model: Any, *args: Any, **more: Any) -> Any:
        loss = inner(model, *args, **more)
        if trainer.state.global_step == 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss

    trainer.training_step = step


def test_a_gradient_that_is_not_finite_stops_the_run(world: Path, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = mini(world, "rl.save_steps=1", "rl.keep_checkpoints=9")
    build = train.build_trainer

    def poisoned(*args: Any) -> Any:
        trainer, log = build(*args)
        poison(trainer)
        return trainer, log

    monkeypatch.setattr(train, "build_trainer", poisoned)
    with pytest.raises(UserError, match=r"step 3: the gradient norm is nan; training has diverged"):
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    assert lines(folder)[-1] == {"step": 3, "not_finite": {"3": "the gradient norm is nan"}}
    assert list(steps_in(folder / "checkpoints")) == [1, 2] and not (folder / "done").exists()
    skipping = mini(world, "rl.save_steps=1", "rl.keep_checkpoints=9", "rl.nonfinite=skip")
    train.train(skipping, chain)
    third = lines(folder)[2]
    assert third["grad_norm"] is None and third["not_finite"] == {"3": "the gradient norm is nan"}
    assert json.loads((folder / "manifest.json").read_text())["counts"]["skipped steps"] == 1
    two, three, four = (load_file(p / "model.safetensors") for p in list(steps_in(folder / "checkpoints").values())[1:])
    assert same(two, three) and not same(three, four)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in four.values())


def test_no_checkpoint_of_weights_that_are_not_finite_is_written_or_resumed(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    make(steps=2, tweak={"max_steps": 2}).train()
    folder = tmp_path / "out" / "checkpoint-2"
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = math.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_checksums(folder)
    with pytest.raises(UserError, match=r"cannot resume from .*checkpoint-2 \(weight .* is not finite\)"):
        make(steps=4).train(resume_from_checkpoint=str(folder))
    trainer = make(steps=2, out="new")
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).view(-1)[0] = math.nan
    with pytest.raises(NotFinite, match=r"weight .* is not finite; training has diverged, and nothing was saved"):
        trainer._save_checkpoint(trainer.model, None)
    assert not steps_in(tmp_path / "new")


def test_a_multiplier_that_is_not_finite_is_not_saved(make: Callable[..., Any], tmp_path: Path) -> None:
    trainer = make(steps=2)
    state = trainer.dual.state_dict()
    trainer.dual.state_dict = lambda: {**state, "bad": math.nan}
    with pytest.raises(NotFinite, match="a multiplier is not finite"):
        trainer._write_extra(tmp_path)
    assert not (tmp_path / DUALS).exists()


def test_one_flipped_byte_in_the_sft_model_is_named_before_training(
    world: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fgrpo.runs import Run

    root = tmp_path / "runs"
    (root / "mini" / "data").mkdir(parents=True)
    (root / "mini" / "data" / "rl.jsonl").symlink_to(world / "rl.jsonl")
    cfg = mini(world)
    with Run.open(cfg, "sft", root=root) as run:
        shutil.copytree(policy, run.path / "final")
        run.finish(["final"])
    file = root / "mini" / "sft" / "final" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(bytes(data))
    monkeypatch.setattr(train, "build_trainer", lambda *_: pytest.fail("training started"))
    with pytest.raises(UserError, match=r"model\.safetensors is not what its finished stage wrote: .*make sft"):
        train.train(cfg, root)


def test_a_refused_key_loses_no_step(make: Callable[..., Any], tmp_path: Path) -> None:
    """What ends the judging of every later step (401, 402, 403, a quota) is raised after a checkpoint is saved."""
    failing = {"on": True}

    async def one(prompts: Any, trainer_state: Any, **_: Any) -> list[float | None]:
        step = int(trainer_state.global_step)
        if step == 3 and failing["on"]:
            torch.rand(7)
            raise UserError("the judge refuses the key (HTTP 401); set a valid one")
        return [scattered(2)(step, n) for n in range(len(prompts))]

    funcs = [scorer("task", scattered(1)), one]
    more: dict[str, Any] = {"steps": 6, "tweak": {"save_steps": 100}, "constraints": [Constraint("one", 0.9)]}
    with pytest.raises(UserError, match=r"refuses the key \(HTTP 401\)"):
        make(funcs, out="parts", **more).train()
    assert list(steps_in(tmp_path / "parts")) == [3]
    failing["on"] = False
    whole = make(funcs, out="whole", **more)
    whole.train()
    resumed = make(funcs, out="parts", **more)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.dual.state_dict() == whole.dual.state_dict()
    for (name, one_), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one_, two), name
