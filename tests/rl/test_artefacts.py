"""What a run leaves and how it fails: rollouts, metrics after losses, alarms, adapters, wandb, a full disk, broken rewards."""

from __future__ import annotations

import asyncio
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import adapters, loading
from fgrpo.training import tracking
from fgrpo.types import Score
from rl import train
from rl.alarms import Alarms
from rl.dual import Constraint
from rl.logging_callback import LoggingCallback, progress_text
from rl.scored_batch import ScoredBatch
from rl.scoring import RolloutScorer
from rl.trainer import FaithfulGRPOTrainer, resume_point
from tests.rl.conftest import OVERRIDES, mini, trainer_stub


def test_rollouts_stand_alone(world: Path, chain: Path) -> None:
    """With every path gone, one file still shows picture, boxes in its frame, and each score with its reason."""
    folder = train.train(mini(world, "rl.max_response_length=60", "rl.max_steps=2"), chain)
    path = folder / "rollouts" / "000002.parquet"
    table = pd.read_parquet(path)
    documented = json.loads(pq.read_schema(path).metadata[b"columns"])
    rewards = {"task", *config.load("mini", "fgrpo").rl.constraints}
    assert len(table) == 8
    assert rewards <= set(table.columns) and {c for c in table.columns if "/" not in c} - rewards <= set(documented)
    for row in table.to_dict("records"):
        sizes = json.loads(row["image_sizes"])
        for content, size in zip(row["image_bytes"], sizes, strict=True):
            assert Image.open(io.BytesIO(content)).size == tuple(size) == (112, 112)
        for box in json.loads(row["boxes"]):
            assert all(0 <= value <= 112 for value in box)
        for name in rewards:
            assert row[f"{name}/state"] in ("scored", "not_applicable", "failed")
            assert math.isnan(row[name]) == (row[f"{name}/state"] != "scored")
            assert row[f"{name}/reason"] or row[f"{name}/state"] == "scored"
        assert math.isfinite(row["advantage"])
    assert table["gold_boxes"].notna().any()


def test_two_updates_on_one_generation_share_its_figures(world: Path, chain: Path) -> None:
    """Table 5 has two updates a generation: both lines have the λ_t that weighed them, and one file of rollouts."""
    folder = train.train(mini(world, "rl.global_batch=1", "rl.micro_batch=4", "rl.max_response_length=60"), chain)
    one, two, three, four = read_jsonl(folder / "metrics.jsonl")
    for first, second in ((one, two), (three, four)):
        for key in ("accuracy", "lambda/consistency", "constraint/spatial_grounding/n", "failed"):
            assert first[key] == second[key]
    assert one["lambda/spatial_grounding"] == 1.0 != three["lambda/spatial_grounding"]
    assert sorted(p.name for p in (folder / "rollouts").iterdir()) == ["000001.parquet", "000003.parquet"]


@pytest.mark.parametrize("harm", ["deleted", "cut"])
def test_lost_metrics_come_back_from_the_checkpoint(world: Path, chain: Path, harm: str, capsys) -> None:
    """metrics.jsonl lost or short beside good checkpoints: whole again, and said."""
    cfg = mini(world)
    folder = train.train(cfg, chain)
    path = folder / "metrics.jsonl"
    before = list(read_jsonl(path))
    if harm == "deleted":
        path.unlink()
    else:
        write_jsonl(path, before[2:])
        with pytest.raises(UserError, match=r"metrics\.jsonl is not what its finished stage wrote: it has 2 complete"):
            train.train(cfg, chain)
        (folder / "done").unlink()
    (folder / "rollouts" / "000002.parquet").unlink()
    train.train(cfg, chain)
    said = capsys.readouterr().err
    assert "lacked the lines of" in said and "lacks the rollouts of 1 generations up to step 4 (first: 000002)" in said
    after = list(read_jsonl(path))
    assert [line["step"] for line in after] == [1, 2, 3, 4]
    for was, now in zip(before, after, strict=True):
        assert {key: now[key] for key in was} == was


def test_what_is_wrong_is_said_before_the_policy_is_loaded(world: Path, chain: Path, monkeypatch) -> None:
    def too_late(*_: Any, **__: Any) -> Any:
        raise AssertionError("the policy was loaded first")

    monkeypatch.setattr(train.loading, "load_policy", too_late)
    for wrong, words in (
        ("rl.constraints.spatial={tau: 0.5}", "did you mean 'rl.constraints.spatial_grounding'"),
        ("rl.constraints.task.tau=0.5", "unknown configuration key 'rl.constraints.task'"),
        ("rl.dual.lam_init=9", "lam_init 9.0 is outside"),
        ("judges.training.backend=oracel", "did you mean 'oracle'"),
        ("rl.micro_batch=3", "rl.micro_batch"),
        ("rl.monitor=[consistancy]", "did you mean 'consistency'"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            train.train(mini(world, wrong), chain)


def test_a_full_disk_harms_no_checkpoint(world: Path, chain: Path, monkeypatch, capsys) -> None:
    """ENOSPC from the kernel while the second checkpoint is written: one line, the first checkpoint whole, and going on."""
    cfg = mini(world)
    real = FaithfulGRPOTrainer._write_extra

    def full(self: FaithfulGRPOTrainer, folder: Path) -> None:
        if self.state.global_step == 4:
            with open("/dev/full", "w") as disk:
                disk.write("x" * 65536)
        real(self, folder)

    monkeypatch.setattr(FaithfulGRPOTrainer, "_write_extra", full)
    with pytest.raises(SystemExit) as ended:
        train.main(["--preset", "mini", "--runs", str(chain), "--set", f"data.root={world}", *OVERRIDES])
    assert ended.value.code == 2 and "no space left on the disk" in capsys.readouterr().err
    folder = chain / "mini" / "rl-fgrpo"
    kept = resume_point(folder / "checkpoints")
    assert kept is not None and kept.name == "checkpoint-2"
    monkeypatch.setattr(FaithfulGRPOTrainer, "_write_extra", real)
    train.train(cfg, chain)
    assert [line["step"] for line in read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_reward_that_makes_a_score_of_nan_is_named_with_the_rollout(world: Path) -> None:
    scorer = train.make_scorer(mini(world), PixelBounds(784, 12544, 28))
    rows = [{"sample": json.dumps(row)} for row in read_jsonl(world / "rl.jsonl")][:2]

    async def broken(items: Any, context: Any) -> list[Score]:
        return [Score.of(math.nan if item.sample.id == "vgr/train/1" else 1.0) for item in items]

    scorer._rewards["consistency"] = broken  # type: ignore[assignment]

    async def run() -> Any:
        scorer.start(rows, ["a", "b"], [[1], [1]], trainer_stub(asyncio.get_running_loop()))
        return await scorer.reward_funcs()[1](prompts=[0, 1])

    with pytest.raises(
        ValueError, match=r"the reward 'consistency' failed on rollout 000000/0/0001/vgr/train/1: .*finite"
    ):
        asyncio.run(run())


def test_alarms_in_words() -> None:
    alarms = Alarms([Constraint("semantic_grounding", 0.95)])
    said = [
        alarms.of({"constraint/semantic_grounding/at_bound": n, "constraint/semantic_grounding/mixed_share": 0.5})
        for n in range(101)
    ]
    assert [n for n, words in enumerate(said) if words] == [50, 100]
    assert said[50] == [
        "semantic_grounding has been at its bound λ = 5 for 50 steps and is still violated: τ = 0.95 looks infeasible"
    ]
    silent = [alarms.of({"constraint/semantic_grounding/mixed_share": 0.0}) for _ in range(50)]
    assert silent[49] and "varied in no group for 50 steps" in silent[49][0] and not any(silent[:49])


@pytest.mark.parametrize(
    ("line", "moving", "words"),
    [
        ({"n": 0, "moved": 0}, True, ["c applied to no rollout for 50 steps"]),
        (
            {"n": 3, "moved": 0, "mixed_share": 0.5},
            True,
            ["λ of c has not moved for 50 steps: fewer rollouts than min_applicable"],
        ),
        ({"n": 3, "moved": 0, "mixed_share": 0.5}, False, []),  # fixed
        ({"n": 3, "moved": 1, "mixed_share": 0.5}, True, []),
    ],
)
def test_alarms_of_a_multiplier_that_stands_still(line: dict[str, float], moving: bool, words: list[str]) -> None:
    alarms = Alarms([Constraint("c", 0.95)], moving)
    metrics = {f"constraint/c/{key}": value for key, value in line.items()}
    said = [alarms.of(metrics) for _ in range(50)]
    assert not any(said[:49]) and len(said[49]) == len(words)
    assert all(text.startswith(start) for text, start in zip(said[49], words, strict=True)) and alarms.at_end() == []
    assert alarms.of({"constraint/c/n": 9, "constraint/c/moved": 1, "constraint/c/mixed_share": 1.0}) == []
    assert not any(alarms.of(metrics) for _ in range(49)), "the count begins again"


def test_steps_without_a_score_count_as_steps_without_a_move() -> None:
    """Also the step at which the other alarm is raised: the 100th still step is the 100th step."""
    alarms = Alarms([Constraint("c", 0.95)])
    nowhere, few = ({"constraint/c/n": n, "constraint/c/moved": 0, "constraint/c/mixed_share": 0.5} for n in (0, 3))
    said = [alarms.of(nowhere if step <= 50 else few) for step in range(1, 101)]
    assert [(step, words[0].split(":")[0]) for step, words in enumerate(said, 1) if words] == [
        (50, "c applied to no rollout for 50 steps (every score was None, or failed)"),
        (100, "λ of c has not moved for 100 steps"),
    ]


def test_one_generation_is_one_alarm(tmp_path: Path) -> None:
    """Two updates on a generation are two lines with its figures; the alarm comes with the first."""
    lines: list[dict[str, Any]] = []
    callback = LoggingCallback(tmp_path, PixelBounds(784, 12544, 28))
    dual = SimpleNamespace(constraints=())
    callback.trainer = SimpleNamespace(take_seconds=dict, take_skipped=dict, last_step=None, last_alarms=(), dual=dual)  # type: ignore[assignment]
    callback._out = SimpleNamespace(add=lines.append)  # type: ignore[assignment]
    alarms = Alarms([Constraint("c", 0.95)])
    for number in range(1, 7):
        if number % 2:
            metrics = {"constraint/c/at_bound": 49.0 + number // 2, "constraint/c/mixed_share": 1.0}
            callback.trainer.last_step = SimpleNamespace(metrics=metrics, rollouts=())  # type: ignore[union-attr,assignment]
            callback.trainer.last_alarms = alarms.of(metrics)  # type: ignore[union-attr]
        state: Any = SimpleNamespace(global_step=number, log_history=[{}])
        callback.on_log(None, state, None, {})  # type: ignore[arg-type]
    assert [line["step"] for line in lines if "alarms" in line] == [3]
    assert lines[2]["constraint/c/at_bound"] == lines[3]["constraint/c/at_bound"] == 50


def test_the_progress_line_names_constraints_by_their_reports_symbol() -> None:
    line = {"accuracy": 0.5, "inconsistency": 0.25, "lambda/consistency": 1.2, "constraint/consistency/mean": 0.75}
    assert progress_text(line, ["consistency"], None) == "acc 0.50, C 0.75 λ 1.20"
    scores = {"task": (), "consistency": (Score.of(1.0),)}
    step = SimpleNamespace(rollouts=(ScoredBatch(0, (), (), (), scores),))
    assert progress_text(line, [], step) == "acc 0.50, inconsistency 0.25"  # type: ignore[arg-type]


def test_a_key_is_found_where_wandb_login_leaves_it(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "netrc"
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(file))
    assert not tracking._has_key()
    file.write_text("machine api.wandb.ai login user password made-up\n")
    file.chmod(0o600)
    assert tracking._has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not tracking._has_key()
    monkeypatch.setenv("WANDB_API_KEY", "made-up")
    assert tracking._has_key()


def test_adapters_are_trained_gone_on_with_and_merged(world: Path, chain: Path, monkeypatch) -> None:
    """LoRA: two steps, a kill, two more equal four in one go; the final model is whole, and is base plus adapters."""
    cfg = mini(world, "rl.lora={rank: 4, alpha: 8, dropout: 0.0}", "rl.max_response_length=60")
    whole = train.train(cfg, chain)
    torn = _killed_in_step(4, cfg, chain.parent / "torn", chain, monkeypatch)
    assert _final_bytes(torn) == _final_bytes(whole)
    base, _ = loading.load_policy(chain / "mini" / "sft" / "final")
    final, _ = loading.load_policy(whole / "final")
    moved = {
        name for (name, a), b in zip(base.named_parameters(), final.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert moved and all("language_model" in name and "_proj" in name for name in moved)
    peft = pytest.importorskip("peft")
    again = peft.PeftModel.from_pretrained(base, whole / "final" / adapters.FOLDER).merge_and_unload()
    for one, two in zip(again.parameters(), final.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def _killed_in_step(step: int, cfg: Any, root: Path, chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run in a root of its own, interrupted in `step` and gone on with."""
    root.mkdir()
    (root / "mini").mkdir()
    for stage in ("data", "sft"):
        (root / "mini" / stage).symlink_to(chain / "mini" / stage)
    real = RolloutScorer.start

    def dies(self: RolloutScorer, inputs: Any, completions: Any, ids: Any, trainer: Any) -> None:
        if trainer.state.global_step == step - 1:
            raise KeyboardInterrupt
        real(self, inputs, completions, ids, trainer)

    monkeypatch.setattr(RolloutScorer, "start", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, root)
    monkeypatch.setattr(RolloutScorer, "start", real)
    return train.train(cfg, root)


def _final_bytes(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def test_one_wandb_run_over_a_kill(world: Path, chain: Path, monkeypatch) -> None:
    """The id lies in the run folder; the resumed run logs under it."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")  # also where somebody is logged in
    monkeypatch.setenv("WANDB_SILENT", "true")
    cfg = mini(world, "rl.report_to=wandb")
    given: list[dict[str, Any]] = []
    logged: list[tuple[str, dict[str, Any]]] = []
    real = wandb.init

    def noted(**more: Any) -> Any:
        run = real(**more)
        given.append(more)
        inner = wandb.log
        monkeypatch.setattr(wandb, "log", lambda data, *a, **k: logged.append((run.id, data)) or inner(data, *a, **k))
        return run

    monkeypatch.setattr(wandb, "init", noted)
    try:
        folder = _killed_in_step(3, cfg, chain.parent / "torn", chain, monkeypatch)
    finally:
        wandb.teardown()
    kept = (folder / "wandb_id").read_text().strip()
    assert [call["id"] for call in given] == [kept, kept] and {call["resume"] for call in given} == {"allow"}
    assert (folder / "wandb").is_dir() and wandb.run is None
    lines = [data for run, data in logged if run == kept and "train/lambda/consistency" in data]
    assert [line["train/global_step"] for line in lines] == [1, 2, 3, 4]
    assert all("train/accuracy" in line for line in lines)
