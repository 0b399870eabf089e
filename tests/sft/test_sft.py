"""The SFT stage: rows, split, trained and frozen parameters, best state, resume after a kill."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTTrainer

from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import backbone, loading
from sft import best, dataset, train
from tests.sft.conftest import mini, train_to_step_3


def record(world: Path) -> dict[str, Any]:
    return next(read_jsonl(world / "runs" / "mini" / "mcts" / "sft.jsonl"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": []}, "not one user"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, "empty"),
        (
            {"messages": [{"role": "user", "content": "<|image_pad|>"}, {"role": "assistant", "content": "b"}]},
            "special token",
        ),
        ({"images": []}, "no image"),
        ({"images": ["gone.png"]}, "missing"),
        ({"sample_id": None}, "no id"),
    ],
)
def test_bad_records_are_counted_under_a_reason(
    world: Path, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "sft.jsonl"
    write_jsonl(path, [{**record(world), **change}, record(world)])
    dropped: Counter[str] = Counter()
    assert len(dataset.read_rows(path, dropped)) == 1
    assert list(dropped.values()) == [1] and reason in next(iter(dropped))
    write_jsonl(path, [{**record(world), **change}])
    with pytest.raises(UserError, match="no usable record"):
        dataset.read_rows(path, Counter())


def test_only_the_configured_kinds_of_traces_are_trained_on(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "sft.jsonl"
    kinds: list[dict[str, Any]] = [{"kind": "direct"}, {"kind": "corrected"}, {}, {"kind": ["corrected"]}]
    write_jsonl(path, [{**record(world), "id": str(i), **kind} for i, kind in enumerate(kinds)])
    dropped: Counter[str] = Counter()
    assert [row.id for row in dataset.read_rows(path, dropped, ("direct",))] == ["0", "2"]
    assert dropped == {"kind not in sft.traces": 2}
    assert len(dataset.read_rows(path, Counter(), ("direct", "corrected"))) == 3
    assert len(dataset.read_rows(path, Counter())) == 4


def test_overlong_rows_are_dropped(world: Path) -> None:
    rows = dataset.read_rows(world / "runs" / "mini" / "mcts" / "sft.jsonl", Counter())
    dropped: Counter[str] = Counter()
    size = 18 + 20 + dataset.TEMPLATE_TOKENS  # one 112 px image takes 16 + 2 tokens; ten tokens a text
    kept = dataset.fitting(rows, lambda text: 10, size, PixelBounds(784, 12544, 28), backbone.default(), dropped)
    assert {len(row.images) for row in kept} == {1} and dropped == {"longer than sft.max_length": 8}
    more = replace(backbone.default(), marker_attributes=("a", "b", "c"))
    with pytest.raises(UserError, match="no trace fits in"):  # one more token around each image
        dataset.fitting(rows, lambda text: 10, size, PixelBounds(784, 12544, 28), more, Counter())
    with pytest.raises(UserError, match="no trace fits in"):
        dataset.fitting(rows, lambda text: 10, 10, PixelBounds(784, 12544, 28), backbone.default(), Counter())


def test_the_split_is_by_question_and_by_the_seed() -> None:
    rows = [dataset.Row(f"{n}/{k}", f"s{n}", "q", "a", ("x",)) for n in range(200) for k in range(3)]
    training, validation = dataset.split(rows, 0.1, 0)
    assert not {r.sample_id for r in training} & {r.sample_id for r in validation} and len(training) + len(
        validation
    ) == len(rows)
    assert 5 <= len({r.sample_id for r in validation}) <= 40
    assert dataset.split(rows[::-1], 0.1, 0)[1] == validation[::-1]
    assert dataset.split(rows, 0.1, 1)[1] != validation
    assert dataset.split(rows, 0.0, 0)[1] == []
    few = [dataset.Row("a", "s1", "q", "a", ("x",)), dataset.Row("b", "s2", "q", "a", ("x",))]
    assert [len(part) for part in dataset.split(few, 0.001, 0)] == [1, 1]
    assert [len(part) for part in dataset.split(few, 1.0, 0)] == [1, 1]


def test_paper_values_become_trl_arguments(tmp_path: Path) -> None:
    cfg = config.load("paper-7b", "fgrpo", ["sft.precision=fp32", "sft.deepspeed=null"])
    args = train.sft_config(cfg, tmp_path, 45_000, True, world=8)
    assert (args.learning_rate, args.weight_decay, args.warmup_steps, args.lr_scheduler_type) == (
        1e-6,
        0.01,
        0.03,
        "cosine",
    )
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.max_length) == (4, 2, None)
    assert args.max_steps == -(-45_000 * 3 // 64) and args.completion_only_loss and not args.packing
    assert args.eval_steps == -(-args.max_steps // 10)


def test_the_loss_is_on_the_completion_only(world: Path, tmp_path: Path) -> None:
    from fgrpo import runs

    cfg = mini(world)
    traces = world / "runs" / "mini" / "mcts" / "sft.jsonl"
    with runs.Run.open(cfg, "sft", [traces], tmp_path) as run:
        trainer, _ = train.build_trainer(cfg, run, traces)
    rows = [trainer.train_dataset[i] for i in range(4)]
    assert {len(row["images"]) for row in rows} == {1, 2}
    completions = [row["completion"][0]["content"] for row in rows]
    batch = trainer.data_collator(rows)
    tokenizer = trainer.processing_class.tokenizer
    for labels, completion in zip(batch["labels"], completions, strict=True):
        assert tokenizer.decode(labels[labels != -100]).startswith(completion + tokenizer.eos_token)
    assert not (batch["labels"] == trainer.model.config.image_token_id).any()


def test_from_traces_to_final_and_a_second_run_does_nothing(world: Path) -> None:
    cfg = mini(world)
    folder = train.train(cfg, world / "runs")
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    evals = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert sorted(evals) == [1, 2, 3, 4] and sum("loss" in line for line in lines) == 4
    best = json.loads((folder / "final" / "best.json").read_text())
    assert best["eval_loss"] == min(evals.values()) == evals[best["step"]]
    base, tuned = load_file(world / "backbone" / "model.safetensors"), load_file(folder / "final" / "model.safetensors")
    vision = [name for name in tuned if "visual." in name]
    assert vision and all(torch.equal(base[name], tuned[name]) for name in vision)
    assert any(not torch.equal(base[name], tuned[name]) for name in tuned)
    loading.load_policy(folder / "final")
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    train.train(cfg, world / "runs")
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    (folder / "final" / "model.safetensors").unlink()  # partly deleted: no other copy of the best state exists
    with pytest.raises(
        UserError, match=r"lowest validation loss, is missing or damaged, and no checkpoint can give it again\. Restore"
    ):
        train.train(cfg, world / "runs")
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()
    folder.rename(folder.with_name("sft-before"))
    train.train(cfg, world / "runs")
    again = load_file(folder / "final" / "model.safetensors")
    assert all(torch.equal(tuned[name], again[name]) for name in tuned)
    assert [line["step"] for line in read_jsonl(folder / "metrics.jsonl")] == [line["step"] for line in lines]


def test_the_papers_sft_trains_the_projector_and_not_the_encoder(world: Path, tmp_path: Path) -> None:
    cfg = mini(world, "sft.freeze_projector=false", "sft.max_steps=2", "sft.evals=1")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    folder = train.train(cfg, tmp_path)
    base, tuned = load_file(world / "backbone" / "model.safetensors"), load_file(folder / "final" / "model.safetensors")
    moved = {name for name in tuned if "visual." in name and not torch.equal(base[name], tuned[name])}
    assert moved and all("visual.merger." in name for name in moved)


def test_a_killed_run_resumes_to_the_same_state(world: Path, tmp_path: Path, monkeypatch) -> None:
    cfg = mini(world, "data.validation_share=0.31")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "one" / "mini" / "mcts")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "two" / "mini" / "mcts")
    reference = train.train(cfg, tmp_path / "one")
    train_to_step_3(cfg, tmp_path / "two", monkeypatch)
    resumed = train.train(cfg, tmp_path / "two")
    one, two = (load_file(f / "checkpoints" / "checkpoint-4" / "model.safetensors") for f in (reference, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    steps = [[line["step"] for line in read_jsonl(f / "metrics.jsonl")] for f in (reference, resumed)]
    assert steps[0] == steps[1]
    tokens = [[line.get("eval_num_tokens") for line in read_jsonl(f / "metrics.jsonl")] for f in (reference, resumed)]
    assert tokens[0] == tokens[1] and any(tokens[0])
    files = [
        {p.name: p.read_bytes() for p in (f / "final").iterdir() if p.name != "training_args.bin"}
        for f in (reference, resumed)
    ]
    assert files[0] == files[1] and not list(resumed.rglob("*.part"))
    final = load_file(resumed / "final" / "model.safetensors")
    (resumed / "done").unlink()  # killed after the last step: no training, same final state
    train.train(cfg, tmp_path / "two")
    again = load_file(resumed / "final" / "model.safetensors")
    assert all(torch.equal(final[name], again[name]) for name in final)
    assert steps[0] == [line["step"] for line in read_jsonl(resumed / "metrics.jsonl")]


def test_image_workers_change_no_step(world: Path, tmp_path: Path) -> None:
    logged = []
    for workers in (0, 1):
        cfg = mini(world, f"launch.sft_image_workers={workers}")
        shutil.copytree(world / "runs", tmp_path / str(workers), symlinks=True)
        folder = train.train(cfg, tmp_path / str(workers))
        lines = list(read_jsonl(folder / "metrics.jsonl"))
        logged.append(
            [(line["step"], line.get("loss"), line.get("grad_norm"), line.get("eval_loss")) for line in lines]
        )
    assert logged[0] == logged[1] and len(logged[0]) > 4


def test_training_that_diverges_stops_and_is_in_the_log(world: Path, tmp_path: Path) -> None:
    cfg = mini(world, "sft.learning_rate=1e30", "sft.save_steps=1", "sft.max_steps=6")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    with pytest.raises(UserError, match=r"step \d: the (loss|gradient norm) is (nan|inf).*training has diverged"):
        train.train(cfg, tmp_path)
    folder = tmp_path / "mini" / "sft"
    last = list(read_jsonl(folder / "metrics.jsonl"))[-1]
    assert "not_finite" in last and not (folder / "done").exists() and not (folder / "final").exists()
    for file in folder.rglob("*.safetensors"):
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values()), file


def test_a_skipped_step_is_counted_and_changes_nothing(world: Path, tmp_path: Path, monkeypatch) -> None:
    cfg = mini(world, "sft.nonfinite=skip", "sft.save_steps=1")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    inner = SFTTrainer.training_step

    def step(self: Any, *args: Any, **more: Any) -> Any:
        loss = inner(self, *args, **more)
        return loss * math.nan if self.state.global_step == 1 else loss

    monkeypatch.setattr(SFTTrainer, "training_step", step)
    folder = train.train(cfg, tmp_path)
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "not_finite" in line]
    assert [line["not_finite"] for line in lines] == [{"2": "the loss is nan"}]
    assert json.loads((folder / "manifest.json").read_text())["counts"]["skipped steps"] == 1
    assert all("loss" not in line or line["loss"] is not None for line in read_jsonl(folder / "metrics.jsonl"))


def test_traces_cut_in_their_last_line_are_named(world: Path, tmp_path: Path) -> None:
    """Before the base model is loaded."""
    from fgrpo.runs import Run

    cfg = mini(world)
    with Run.open(cfg, "mcts", root=tmp_path) as run:
        shutil.copy(world / "runs" / "mini" / "mcts" / "sft.jsonl", run.path)
        run.finish(["sft.jsonl"])
    file = run.path / "sft.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"sft\.jsonl is not what its finished stage wrote: it has .* complete lines"):
        train.train(cfg, tmp_path)


def test_a_damaged_best_state_is_named_and_nothing_is_deleted(world: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    train_to_step_3(mini(world), tmp_path, monkeypatch)
    folder = tmp_path / "mini" / "sft"
    weights = folder / "best" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    for call in (lambda: train.train(mini(world), tmp_path), lambda: best.export_best(None, folder)):
        with pytest.raises(UserError, match=r"best, the state .* is damaged: model\.safetensors has the right size"):
            call()
    assert (folder / "checkpoints" / "checkpoint-2").is_dir() and weights.exists()


def test_an_extended_run_validates_at_the_same_steps(world: Path, tmp_path: Path) -> None:
    """Which state is the best depends on when it is measured."""
    constant = ("sft.scheduler=constant", "sft.warmup_ratio=0", "sft.evals=2")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    folder = train.train(mini(world, *constant), tmp_path)
    train.train(mini(world, *constant, "sft.max_steps=6"), tmp_path)
    train.train(mini(world, *constant, "sft.max_steps=8"), tmp_path)
    evals = [line["step"] for line in read_jsonl(folder / "metrics.jsonl") if "eval_loss" in line]
    assert evals == [2, 4, 6, 8]


def test_a_skipped_step_outlives_a_kill_before_the_next_log_line(world: Path, tmp_path: Path, monkeypatch) -> None:
    cfg = mini(world, "sft.nonfinite=skip", "sft.save_steps=1", "sft.logging_steps=100")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    inner, real = SFTTrainer.training_step, train.LoggingCallback.on_step_end

    def step(self: Any, *args: Any, **more: Any) -> Any:
        loss = inner(self, *args, **more)
        return loss * math.nan if self.state.global_step == 1 else loss

    def dies(self: train.LoggingCallback, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 4:
            raise KeyboardInterrupt
        real(self, args, state, control, **more)

    monkeypatch.setattr(SFTTrainer, "training_step", step)
    monkeypatch.setattr(train.LoggingCallback, "on_step_end", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, tmp_path)
    monkeypatch.setattr(train.LoggingCallback, "on_step_end", real)
    folder = train.train(cfg, tmp_path)
    assert [line["not_finite"] for line in read_jsonl(folder / "metrics.jsonl") if "not_finite" in line] == [
        {"2": "the loss is nan"}
    ]
    assert json.loads((folder / "manifest.json").read_text())["counts"]["skipped steps"] == 1


def test_a_best_state_is_checked_until_its_manifest_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed just before best/ becomes final/: a changed file of it is named, also where the tensors are whole."""
    cfg = mini(world, "data.validation_share=0.31")
    shutil.copytree(world / "runs" / "mini" / "mcts", tmp_path / "mini" / "mcts")
    with monkeypatch.context() as patch:
        patch.setattr(best, "put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.train(cfg, tmp_path)
    tokenizer = tmp_path / "mini" / "sft" / "best" / "tokenizer.json"
    whole = tokenizer.read_text()
    tokenizer.write_text(whole.replace('"red"', '"reb"', 1))
    with pytest.raises(UserError, match=r"best, the state .* is damaged: tokenizer\.json has the right size"):
        train.train(cfg, tmp_path)
    tokenizer.write_text(whole)
    final = train.train(cfg, tmp_path) / "final"
    assert (final / "tokenizer.json").read_text() == whole and not (final / "checksums.json").exists()
