"""The drop-in trainer with images: mixed data, images of tools, image tokens where they harm and where they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from fgrpo.errors import UserError
from fgrpo.policy import loading
from rl.dual import Constraint
from rl.in_process_trainer import InProcessTrainer
from rl.mixed_batches import has_images, is_mixed, with_image_lists
from rl.trainer import FaithfulGRPOTrainer

SCREEN = Image.new("RGB", (56, 56), "red")


def long(completions: list[Any], **_: Any) -> list[float]:
    return [float(len(completion[0]["content"])) for completion in completions]


def even(completions: list[Any], **_: Any) -> list[float]:
    return [float(row % 2) for row in range(len(completions))]


def build(policy: Path, folder: Path, rows: dict[str, Any], kind: type[Any] = FaithfulGRPOTrainer, **more: Any) -> Any:
    """Two prompts of two rollouts per batch, over the mini policy with its processor."""
    model, processor = loading.load_policy(policy)
    count = len(next(iter(rows.values())))
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"what is {n}"}] for n in range(count)], **rows})
    args = GRPOConfig(
        str(folder), per_device_train_batch_size=4, num_generations=2, max_completion_length=6, max_steps=2, logging_steps=1,
        bf16=False, use_cpu=True, report_to="none", gradient_checkpointing=False, shuffle_dataset=False, learning_rate=1e-3,
        generation_kwargs={"suppress_tokens": loading.forbidden_token_ids(processor.tokenizer)},
    )  # fmt: skip
    return kind(model, [long, even], args, data, processing_class=processor, **more)


@pytest.mark.parametrize("kind", [FaithfulGRPOTrainer, InProcessTrainer])
@pytest.mark.parametrize(
    "rows",
    [
        {"images": [[SCREEN], [], [], []]},
        {"images": [[SCREEN], None, None, None]},
        {"image": [SCREEN, None, None, None]},
    ],
    ids=["empty lists", "no lists", "one image"],
)
def test_rows_with_and_without_images(policy: Path, tmp_path: Path, rows: dict[str, Any], kind: type[Any]) -> None:
    """The first batch has both kinds of row, the second has no image at all."""
    trainer = build(policy, tmp_path, rows, kind, constraints=[Constraint("even", 0.9)])
    before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.dual.lam["even"] > 1
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))


def test_mixed_rows_train_without_constraints_too(policy: Path, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, {"images": [[SCREEN], [], [], []]})
    assert trainer.is_plain
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(("zero", "processes", "refused"), [(3, 2, True), (3, 1, False), (2, 2, False), (0, 2, False)])
def test_mixed_data_is_refused_where_processes_would_wait_for_one_another(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int, processes: int, refused: bool
) -> None:
    """Before the first step; the vision tower is sharded under ZeRO-3 alone."""
    monkeypatch.setattr(FaithfulGRPOTrainer, "sharding", lambda _: {"zero": zero})
    monkeypatch.setattr(Accelerator, "num_processes", processes)
    if refused:
        with pytest.raises(UserError, match="the training data set has rows with and without images"):
            build(policy, tmp_path, {"images": [[SCREEN], [], [], []]})
    else:
        build(policy, tmp_path, {"images": [[SCREEN], [], [], []]})
    build(policy, tmp_path, {"images": [[SCREEN]] * 4})


def test_a_data_set_says_whether_it_is_mixed() -> None:
    """Without decoding an image."""
    lists, ones = [[SCREEN], []], [SCREEN, None]
    assert is_mixed(Dataset.from_dict({"images": lists})) and is_mixed(Dataset.from_dict({"image": ones}))
    assert is_mixed(Dataset.from_dict({"images": [[SCREEN], None]}))
    for whole in ({"images": [[SCREEN]] * 2}, {"image": [SCREEN] * 2}, {"images": [[], []]}, {"prompt": ["a"]}):
        assert not is_mixed(Dataset.from_dict(whole))
    assert not is_mixed(iter([{"image": None}]))


def test_only_mixed_batches_change() -> None:
    whole = [{"prompt": "a", "image": SCREEN}, {"prompt": "b", "image": SCREEN}]
    text = [{"prompt": "a"}]
    assert with_image_lists(whole) is whole and with_image_lists(text) is text and with_image_lists([]) == []
    mixed = [{"image": SCREEN}, {"image": None}]
    assert [row["images"] for row in with_image_lists(mixed)] == [[SCREEN], []]
    assert (
        has_images(mixed, None) and has_images(text, [None, [SCREEN]]) and not has_images([{"image": None}], [None, []])
    )


@pytest.mark.parametrize(
    ("images", "tool_mask", "refused"),
    [
        (None, None, False),  # text alone: no image is looked for
        ([[SCREEN], None], None, True),
        ([[SCREEN], None], [[1, 1, 1], [1, 1]], True),
        ([None, [SCREEN]], [[1, 0, 1], [1, 1]], False),  # the token is of the image that a tool returned
    ],
    ids=["text", "sampled", "sampled beside a tool", "of a tool"],
)
def test_only_image_tokens_that_the_model_sampled_are_refused(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Any, tool_mask: Any, refused: bool
) -> None:
    trainer = build(policy, tmp_path, {"other": [0]}, constraints=[Constraint("even", 0.9)])
    token = trainer.model.config.image_token_id
    result = ([[1], [1]], [[5, token, 6], [5, 6]], tool_mask, ["a", "b"], None, {}, images, [])
    monkeypatch.setattr(GRPOTrainer, "_generate", lambda *_: result)
    if refused:
        with pytest.raises(ValueError, match="rollout 000000/0/0000 contains an image token"):
            trainer._generate([])
    else:
        got = trainer._generate([])
        assert got[1] == result[1] and got[6] == (None if images is None else [row or [] for row in images])


def test_a_sampled_image_token_does_not_end_a_run_on_text(policy: Path, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, {"other": [0, 1]}, constraints=[Constraint("even", 0.9)])
    token = trainer.model.config.image_token_id
    trainer._generate_single_turn = lambda prompts, *_, **__: ([[5, token, 7]] * len(prompts), None)
    trainer.train()
    assert trainer.state.global_step == 2
