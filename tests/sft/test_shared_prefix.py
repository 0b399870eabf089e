"""SFT on several traces of a question in one row: the loss and the gradients of padded rows, in an order that is defined."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgrpo import config, runs
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.training import branch_attention
from sft import dataset, preflight, shared_prefix, train
from tests.sft.conftest import mini, train_to_step_3

SHARED = "sft.shared_prefix=auto"


@pytest.fixture(scope="module")
def many(world: Path) -> Path:
    """Five traces of each question, cut at different words so that their lengths differ."""
    folder = world / "many" / "mini" / "mcts"
    folder.mkdir(parents=True)
    rows = []
    for record in read_jsonl(world / "runs" / "mini" / "mcts" / "sft.jsonl"):
        user, assistant = record["messages"]
        if record["id"].endswith("/1"):
            continue
        for n in range(5):
            words = assistant["content"].split(" ")
            text = " ".join(words[: len(words) - 2 * n])
            messages = [user, {**assistant, "content": text}]
            rows.append({**record, "id": f"{record['id']}-{n}", "messages": messages})
    write_jsonl(folder / "sft.jsonl", rows)
    return world / "many"


def built(world: Path, many: Path, root: Path, *overrides: str) -> Any:
    cfg = mini(world, SHARED, *overrides)
    with runs.Run.open(cfg, "sft", [many / "mini" / "mcts" / "sft.jsonl"], root) as run:
        trainer, log = train.build_trainer(cfg, run, many / "mini" / "mcts" / "sft.jsonl")
        log.close()
    return trainer


def passed(trainer: Any, rows: list[int], counted: int | None = None) -> tuple[float, list[torch.Tensor], list[int]]:
    """Loss, gradients and the numbers of tokens of the passes over these rows."""
    widths: list[int] = []
    hook = trainer.plain_model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].numel()), with_kwargs=True
    )
    trainer.model.zero_grad()
    inputs = trainer._prepare_inputs(dict(trainer.data_collator([trainer.train_dataset[i] for i in rows])))
    loss = trainer.compute_loss(
        trainer.model, inputs, num_items_in_batch=None if counted is None else torch.tensor(counted)
    )
    loss.backward()
    hook.remove()
    return float(loss.detach()), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None], widths


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("sft.attention=eager",),
        ("@lora", "sft.deepspeed=null"),
        ("sft.freeze_projector=false",),
        ("checkpointing",),
    ],
    ids=str,
)
def test_shared_rows_have_the_loss_and_gradients_of_padded_ones(
    world: Path,
    many: Path,
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    checkpointing = "checkpointing" in overrides
    trainer = built(world, many, tmp_path, "sft.batch_size=8", *(o for o in overrides if o != "checkpointing"))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    if checkpointing:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    rows, counted = list(range(8)), 500
    images = {len(trainer.train_dataset[i]["images"]) for i in range(len(trainer.train_dataset))}
    assert images == {1, 2}
    loss, gradients, tokens = passed(trainer, rows, counted)
    shared = dict(trainer._metrics["train"])
    trainer._metrics["train"].clear()
    inner, trainer.data_collator = (
        trainer.data_collator,
        lambda given: {key: value for key, value in collate(given).items() if key != shared_prefix.COUNTS},
    )
    collate = inner
    expected, padded, width = passed(trainer, rows, counted)
    assert abs(loss - expected) < 1e-6 and len(gradients) == len(padded) > 10
    norm = max(1.0, float(torch.stack([part.norm() for part in padded]).norm()))
    assert max(float((one - other).abs().max()) for one, other in zip(gradients, padded, strict=True)) / norm < 1e-6
    assert len(tokens) == len(width) == 1 and tokens[0] < width[0] / 1.3
    for key in ("entropy", "mean_token_accuracy"):
        assert shared[key] == pytest.approx(trainer._metrics["train"][key], rel=1e-4)


def test_k_and_k_rows_have_the_loss_of_2k(world: Path, many: Path, tmp_path: Path) -> None:
    """With a common divisor; transformers gives Qwen2.5-VL none, and each micro-batch takes its own mean."""
    trainer = built(world, many, tmp_path, "sft.batch_size=8")
    whole, gradients, _ = passed(trainer, list(range(8)), 500)
    halves = [passed(trainer, list(range(at, at + 4)), 500) for at in (0, 4)]
    assert sum(half[0] for half in halves) == pytest.approx(whole, abs=1e-6)
    for n, gradient in enumerate(gradients):
        assert (halves[0][1][n] + halves[1][1][n] - gradient).abs().max() < 1e-6


def test_rows_that_sharing_makes_longer_stay_padded(
    world: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer = built(world, many, tmp_path)
    by_question: dict[str, int] = {}
    for n, row in enumerate(trainer.train_dataset):
        by_question.setdefault(row["prompt"][0]["content"], n)
    apart = list(by_question.values())[:4]
    _, _, (tokens,) = passed(trainer, apart)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in apart])
    assert len(apart) > 2 and tokens == batch["input_ids"].numel()
    monkeypatch.setattr(branch_attention, "LONGEST", 20)
    _, _, (tokens,) = passed(trainer, [0, 1, 2, 3])
    assert tokens == trainer.data_collator([trainer.train_dataset[i] for i in range(4)])["input_ids"].numel()


def test_attention_without_branches_is_said(
    world: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setattr(branch_attention, "MASKED", ())
    trainer = built(world, many, tmp_path)
    assert "traces of a question do not share a row: sdpa takes no branches" in capsys.readouterr().out
    _, _, (tokens,) = passed(trainer, [0, 1, 2, 3])
    assert tokens == trainer.data_collator([trainer.train_dataset[i] for i in range(4)])["input_ids"].numel()


def test_the_order_brings_traces_of_a_question_together() -> None:
    rows: Any = [SimpleNamespace(sample_id=str(n // 10)) for n in range(103)]
    order = dataset.order(rows, 412, 0)
    assert order == dataset.order(rows, 900, 0)[:412] != dataset.order(rows, 412, 1)
    pieces = [order[at : at + dataset.TOGETHER] for at in range(0, 412, dataset.TOGETHER)]
    of_one = sum(len({rows[i].sample_id for i in piece}) == 1 for piece in pieces)
    assert of_one >= 4 * 20 and len({rows[i].sample_id for i in order[:24]}) > 3
    assert max(Counter(order).values()) == 4 and sum(Counter(order).values()) == 412
    assert Counter(order[:100]).most_common(1)[0][1] == 1  # three of a pass move into the next
    assert dataset.order(rows[:1], 3, 0) == [0, 0, 0]


def test_the_order_by_length_puts_traces_of_about_one_length_side_by_side() -> None:
    """In random pieces, each trace once per pass; the padding of a piece is small."""
    rows: Any = [SimpleNamespace(tokens=400 + (n * 2654435761) % 3600) for n in range(403)]
    order = dataset.order_by_length(rows, 1612, 0)
    assert order == dataset.order_by_length(rows, 9000, 0)[:1612] != dataset.order_by_length(rows, 1612, 1)
    assert Counter(order[:400]).most_common(1)[0][1] == 1  # three of a pass move into the next
    assert set(Counter(order).values()) == {4}

    def computed(indices: list[int]) -> float:
        pieces = [[rows[i].tokens for i in indices[at : at + 4]] for at in range(0, len(indices), 4)]
        return sum(4 * max(piece) for piece in pieces) / sum(map(sum, pieces))

    assert computed(order) < 1.08 < 1.3 < computed(list(range(400)))
    means = [sum(rows[i].tokens for i in order[at : at + 40]) / 40 for at in range(0, 400, 40)]
    assert max(means) < 2 * min(means)  # the pieces are shuffled: no stretch of a pass is short
    assert len({frozenset(order[at : at + 4]) for at in range(0, 1612, 4)}) > 300  # companions change


def test_rows_are_trained_on_in_the_order_by_length(world: Path, many: Path, tmp_path: Path) -> None:
    """Two epochs in the trainer's own loader, by the tokens that `fitting` counted; a device's batch has one length."""
    options = ("sft.batch_size=4", "sft.gradient_accumulation=1", "sft.max_steps=6", "data.validation_share=0.0")
    cfg = mini(world, "sft.group_by_length=true", *options)
    traces = many / "mini" / "mcts" / "sft.jsonl"
    with runs.Run.open(cfg, "sft", [traces], tmp_path) as run:
        trainer, log = train.build_trainer(cfg, run, traces)
        log.close()
    seen: list[tuple[float, int]] = []
    compute = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *a, **k: (  # type: ignore[method-assign]
        seen.append((float(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()))
        or compute(model, inputs, *a, **k)
    )
    trainer.remove_callback(preflight.Preflight)
    trainer.train()
    grouped = sum(size for _, size in seen) / sum(real for real, _ in seen)
    shuffled = trainer.train_dataset.with_format(None)["completion"]
    assert len(seen) == 6 and len(shuffled) == 24 and grouped < 1.1


def test_a_killed_run_with_shared_rows_resumes_to_the_same_state(
    world: Path,
    many: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And goes on into a second pass over the data: the order is that of the whole run."""
    cfg = mini(world, SHARED, "sft.max_steps=12", "data.validation_share=0.31")
    folders = []
    for name in ("one", "two"):
        (tmp_path / name / "mini").mkdir(parents=True)
        (tmp_path / name / "mini" / "mcts").symlink_to(many / "mini" / "mcts")
        if name == "two":
            train_to_step_3(cfg, tmp_path / name, monkeypatch)
        folders.append(train.train(cfg, tmp_path / name))
    one, two = (load_file(f / "checkpoints" / "checkpoint-12" / "model.safetensors") for f in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_is_one_order(world: Path) -> None:
    """Another order is another experiment; a folder that is older than the option has the order of "off"."""
    from fgrpo.identity import _counts

    assert _counts("sft.shared_prefix", "auto") and not _counts("sft.shared_prefix", "off")
    assert _counts("sft.group_by_length", True) and not _counts("sft.group_by_length", False)
    assert config.load("paper-7b", "fgrpo", []).sft.group_by_length
    assert not config.load("mini", "fgrpo", []).sft.group_by_length
    assert config.load("mini", "fgrpo", []).sft.shared_prefix == "off"
    assert config.load("mini", "fgrpo", [SHARED]).sft.shared_prefix == "auto"
    assert config.load("mini", "fgrpo", ["rl.shared_prefix=off"]).rl.shared_prefix == "off"
