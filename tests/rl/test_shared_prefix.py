"""Rollouts that share their prompt's row: log-probabilities, entropies, loss and gradients are those of TRL's padded rows."""

from __future__ import annotations

import contextvars
import itertools
from typing import Any

import pytest
import torch
from transformers import modeling_flash_attention_utils as transformers_flash
from trl import GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.trainer import grpo_trainer
from trl.trainer.utils import add_fused_lm_head

from fgrpo.policy import adapters, backbone, loading
from fgrpo.schema_base import Lora
from fgrpo.training import branch_attention, shared_prefix
from fgrpo.training.branch_attention import Sequences, dense_mask
from fgrpo.training.shared_prefix import Pack, lay_out, packs
from rl import group_shuffle, length_bucketing
from rl.passes import LogprobPasses

FIELDS = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")


def batch_of(trainer: Any, lengths: list[list[int]], images: tuple[int, ...] = (1, 2)) -> dict[str, Any]:
    """One group per list of response lengths; prompts have one and two images in turn, responses are random text tokens."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for n, group in enumerate(lengths):
        count = images[n % len(images)]
        fitting = [row for row in trainer.train_dataset if len(row["images"]) == count]
        rows += [fitting[n % len(fitting)]] * len(group)
    flat = [length for group in lengths for length in group]
    prompts = [row["prompt"] for row in rows]
    with_images = [prepare_multimodal_messages(p, images=r["images"]) for p, r in zip(prompts, rows, strict=True)]
    ids, _, fields = trainer._tokenize_prompts(with_images)
    width = max(map(len, ids))
    prompt_ids = torch.tensor([[0] * (width - len(i)) + list(i) for i in ids])
    prompt_mask = torch.tensor([[0] * (width - len(i)) + [1] * len(i) for i in ids])
    longest = max(flat)
    completion_mask = torch.tensor([[1] * n + [0] * (longest - n) for n in flat])
    completion_ids = torch.randint(20, 200, (len(flat), longest), generator=generator) * completion_mask
    is_image = prompt_ids == trainer.processing_class.image_token_id
    types = torch.cat([is_image.int(), torch.zeros_like(completion_ids)], dim=1)
    return {
        "prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids,
        "completion_mask": completion_mask, "pixel_values": torch.as_tensor(fields["pixel_values"]),
        "image_grid_thw": torch.as_tensor(fields["image_grid_thw"]),
        "num_images": [len(row["images"]) for row in rows], "mm_token_type_ids": types,
    }  # fmt: skip


def passed(kind: type[Any], trainer: Any, batch: dict[str, Any], batch_size: int | None = None) -> list[torch.Tensor]:
    """Log-probabilities, entropies, a loss of both, and its gradients."""
    kept = batch["completion_ids"].shape[1]
    mask_BL = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    ids_BL = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    policy = trainer.model
    logps, entropies, _ = kind._get_per_token_logps_and_entropies(
        trainer, policy, ids_BL, mask_BL, kept, batch_size, True, **{key: batch[key] for key in FIELDS}
    )
    policy.zero_grad()
    known = batch["completion_mask"].bool()
    weights = torch.linspace(-1, 1, known.numel()).view(known.shape)
    loss = ((logps * weights + 0.1 * entropies) * known).sum() / known.sum()
    loss.backward()
    return [
        logps[known].detach(), entropies[known].detach(), loss.detach(),
        *(p.grad.clone() for p in policy.parameters() if p.grad is not None),
    ]  # fmt: skip


def check_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs) > 30
    assert (ours[0] - theirs[0]).abs().max() < 1e-5
    assert (ours[1] - theirs[1]).abs().max() < 1e-5
    assert (ours[2] - theirs[2]).abs() < 1e-6
    norm = max(1.0, float(torch.stack([part.norm() for part in theirs[3:]]).norm()))  # training clips it to 1
    for one, other in zip(ours[3:], theirs[3:], strict=True):
        assert (one - other).abs().max() / norm < 1e-6


def varlen_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int,
    max_seqlen_k: int, softmax_scale: float | None = None, causal: bool = False, **_: Any,
) -> torch.Tensor:  # fmt: skip
    """What flash_attn_varlen_func computes, by its documentation: the last query sees all keys of its sequence."""
    group, out = q.shape[1] // k.shape[1], []
    starts = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (a, c), (b, d) in itertools.pairwise(starts):
        assert 0 < b - a <= max_seqlen_q and 0 < d - c <= max_seqlen_k
        one, keys, values = q[a:b].transpose(0, 1), k[c:d].transpose(0, 1), v[c:d].transpose(0, 1)
        scores = one @ keys.repeat_interleave(group, 0).mT * (softmax_scale or q.shape[-1] ** -0.5)
        if causal:
            scores = scores.masked_fill(~torch.ones(b - a, d - c).tril(d - c - (b - a)).bool(), float("-inf"))
        out.append((scores.softmax(-1) @ values.repeat_interleave(group, 0)).transpose(0, 1))
    assert (b, d) == (len(q), len(k)) == (starts[-1][0], starts[-1][1])
    return torch.cat(out)


@pytest.fixture
def use_attention(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets a model's attention; a reference stands for flash attention's kernel, which needs a GPU."""

    def use(model: Any, attention: str) -> None:
        if attention == "flash_attention_2":
            process = transformers_flash._lazy_define_process_function(varlen_attention)
            functions = (None, varlen_attention, None, transformers_flash._pad_input, transformers_flash._unpad_input)
            monkeypatch.setattr(transformers_flash, "lazy_import_flash_attention", lambda *_: (functions, process))
            model.config.get_text_config()._attn_implementation = attention
        else:
            model.set_attn_implementation(attention)
        assert model.model.language_model.config._attn_implementation == attention

    return use


@pytest.mark.parametrize(
    "lengths",
    [
        [[7, 3]],
        [[5, 9, 1, 4, 4], [8, 2, 6, 12, 3]],
        [[4] * 8, [1, 2, 3], [6, 5, 9, 0]],  # one rollout without a counted token
    ],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_a_shared_prompt_changes_nothing(make, use_attention, lengths: list[list[int]], attention: str) -> None:
    trainer = make(overrides=("rl.max_response_length=12",))
    use_attention(trainer.plain_model, attention)
    batch = batch_of(trainer, lengths)
    widths: list[Any] = []
    trainer.plain_model.register_forward_pre_hook(
        lambda _, __, given: widths.append(given["input_ids"].shape), with_kwargs=True
    )
    theirs = passed(GRPOTrainer, trainer, batch)
    whole = widths.pop()
    ours = passed(LogprobPasses, trainer, batch)
    check_equal(ours, theirs)
    assert sum(rows * tokens for rows, tokens in widths) < whole.numel() / 1.5
    trainer.rows = "by_length"
    check_equal(passed(LogprobPasses, trainer, batch), theirs)


def test_a_shared_prompt_changes_nothing_for_adapters(make) -> None:
    family = backbone.default()
    trainer = make(peft_config=adapters.lora_config(Lora(rank=4, alpha=8, dropout=0.0), family))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    batch = batch_of(trainer, [[5, 9, 1, 4, 4], [8, 2, 6, 12, 3]])
    check_equal(passed(LogprobPasses, trainer, batch), passed(GRPOTrainer, trainer, batch))


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_a_shared_prompt_changes_nothing_under_gradient_checkpointing(make, use_attention, attention: str) -> None:
    trainer = make(tweak={"gradient_checkpointing": True})
    batch = batch_of(trainer, [[5, 9, 1, 4, 4], [8, 2, 6, 12, 3]])
    theirs = passed(GRPOTrainer, trainer, batch)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    use_attention(trainer.plain_model, attention)
    assert trainer.model.is_gradient_checkpointing
    check_equal(passed(LogprobPasses, trainer, batch), theirs)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 10, None])
def test_passes_hold_at_most_so_many_rollouts(make, batch_size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process and in several, in which all ranks make one pass per `batch_size` rollouts."""
    trainer = make()
    batch = batch_of(trainer, [[5, 9, 1, 4, 4], [8, 2, 6, 12, 3]])
    theirs = passed(GRPOTrainer, trainer, batch)
    laid_out: list[int] = []
    lay_out = shared_prefix.lay_out
    monkeypatch.setattr(
        shared_prefix, "lay_out",
        lambda chosen, *rest, **more: laid_out.append(sum(len(p.rows) for p in chosen)) or lay_out(chosen, *rest, **more),
    )  # fmt: skip
    check_equal(passed(LogprobPasses, trainer, batch, batch_size), theirs)
    size = batch_size or 10
    assert sum(laid_out) == 10 and max(laid_out) <= size
    laid_out.clear()
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    check_equal(passed(LogprobPasses, trainer, batch, batch_size), theirs)
    assert laid_out == [min(size, 10 - start) for start in range(0, 10, size)]


def test_rows_longer_than_a_packed_one_pass_by_length(
    make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make()
    batch = batch_of(trainer, [[5, 9, 1, 4, 4]])
    theirs = passed(GRPOTrainer, trainer, batch)
    monkeypatch.setattr(branch_attention, "LONGEST", 20)
    monkeypatch.setattr(shared_prefix, "lay_out", None)
    capsys.readouterr()
    for _ in range(2):
        check_equal(passed(LogprobPasses, trainer, batch), theirs)
    assert capsys.readouterr().out.count("rollouts of more than 20 tokens do not share a row") == 1


@pytest.mark.parametrize(("processes", "batch_size"), [(1, None), (1, 2), (2, 2)])
def test_one_long_prompt_leaves_the_others_their_shared_rows(
    make, monkeypatch: pytest.MonkeyPatch, processes: int, batch_size: int | None
) -> None:
    trainer = make()
    batch = batch_of(trainer, [[5, 9], [3, 4], [60, 70]])
    theirs = passed(GRPOTrainer, trainer, batch)
    longest = int((batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).max())
    monkeypatch.setattr(branch_attention, "LONGEST", longest - 15)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
    shared: list[int] = []

    def noted(chosen: Any, *args: Any, **more: Any) -> Any:
        shared.extend(row for pack in chosen for row in pack.rows)
        return lay_out(chosen, *args, **more)

    monkeypatch.setattr(shared_prefix, "lay_out", noted)
    monkeypatch.setattr(length_bucketing, "ROWS", 2)
    check_equal(passed(LogprobPasses, trainer, batch, batch_size), theirs)
    assert set(shared) == ({0, 1, 2, 3} if batch_size else set())  # a pass of all six rollouts has the long one in it


def test_a_long_group_takes_several_rows() -> None:
    ids = torch.arange(12).repeat(4, 1)
    mask = torch.ones_like(ids)
    found = packs(ids, mask, 4, lambda one, other: True, longest=18)  # 8 prompt tokens, 4 of each response
    assert found == [Pack((0, 1), 8 + 4 + 5), Pack((2, 3), 8 + 4 + 5)]
    assert packs(ids, mask, 4, lambda one, other: True, longest=3) == [Pack((n,), 12) for n in range(4)]
    assert packs(ids, mask, 4, lambda one, other: other != 2) == [Pack((0, 1), 17), Pack((2, 3), 17)]


def test_a_branch_attends_to_the_prompt_and_to_itself() -> None:
    """Prompt of two tokens, branches of two and one, padding."""
    branches = torch.tensor([[0, 0, 1, 1, 2, -1]])
    (attends,) = dense_mask(branches)[:, 0].int().tolist()
    assert attends == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_positions_of_every_branch_continue_from_the_prompt() -> None:
    """Two rollouts of one prompt, whose image makes positions lag behind the columns; its first column is padding."""
    ids = torch.tensor([[0, 7, 8, 9, 1, 2, 0], [0, 7, 8, 9, 3, 4, 5]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1]])
    layout = lay_out([Pack((0, 1), 9)], ids, mask, 3, torch.tensor([[[9, 0, 0, 1]]]))
    assert layout.ids_UL.tolist() == [[7, 8, 9, 1, 2, 9, 3, 4, 5]]
    assert layout.position_AUL.tolist() == [[[0, 0, 1, 2, 3, 1, 2, 3, 4]]]
    ignored = shared_prefix.IGNORED
    assert layout.labels_UL.tolist() == [[ignored, ignored, ignored, 1, 2, ignored, 3, 4, 5]]
    values = torch.tensor([[0.0, 0, 10, 20, 0, 30, 40, 50]])  # of all but the last token
    assert layout.spread(values, (2, 3)).tolist() == [[10, 20, 0], [30, 40, 50]]


def test_flash_attention_gets_one_sequence_per_prompt_and_branch() -> None:
    """Two prompts, of three tokens with two rollouts and of one token with one, in one row."""
    ids = torch.tensor([[7, 8, 9, 1, 2], [7, 8, 9, 3, 0], [0, 0, 6, 4, 5]])
    mask = (ids > 0).long()
    chosen = [Pack((0, 1), 2 + 3 + 2), Pack((2,), 3)]
    position = torch.tensor([[[0, 1, 2], [0, 0, 0]]])
    layout = lay_out(chosen, ids, mask, 2, position, in_one_row=True)
    assert layout.ids_UL.tolist() == [[7, 8, 9, 1, 2, 9, 3, 6, 4, 5]]
    assert layout.position_AUL.tolist() == [[[0, 1, 2, 3, 4, 2, 3, 0, 1, 2]]]
    assert layout.labels_UL.tolist() == [[-100, -100, -100, 1, 2, -100, 3, -100, 4, 5]]
    values = torch.arange(9.0)[None]  # of all but the last token
    assert layout.spread(values, (3, 2)).tolist() == [[2, 3], [5, 0], [7, 8]]
    given = Sequences.of(layout)
    starts_q, starts_k = given.starts_q.tolist(), given.starts_k.tolist()
    assert starts_q == [0, 2, 5, 7, 10] and starts_k == [0, 2, 7, 11, 14]
    assert given.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 5, 6, 7, 8, 9]
    assert (given.longest_q, given.longest_k) == (3, 5)


def test_old_flash_attention_takes_no_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """It aligns queries with the first keys of their sequence, not with the last."""
    assert branch_attention.takes_branches("flash_attention_2")
    monkeypatch.setattr(branch_attention, "flash_attn_supports_top_left_mask", lambda: True)
    assert not branch_attention.takes_branches("flash_attention_2") and branch_attention.takes_branches("sdpa")


def test_dropout_is_said(make, capsys: pytest.CaptureFixture[str]) -> None:
    """Rollouts of a prompt share one draw for it."""
    lora = adapters.lora_config(Lora(rank=4, alpha=8, dropout=0.1), backbone.default())
    for given, times in ((lora, 1), (None, 0)):
        trainer = make(peft_config=given, out=str(times))
        capsys.readouterr()
        assert trainer._can_share(trainer.model) and trainer._can_share(trainer.model)
        assert capsys.readouterr().out.count("the policy has dropout, and rollouts of a prompt share one draw") == times


def test_the_shuffle_keeps_groups_whole(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real training: micro-batches hold whole groups in random order, with each rollout's own fields."""
    trainer = make(overrides=("rl.rollout_batch=4", "rl.global_batch=4", "rl.micro_batch=4"), steps=1)
    seen: list[dict[str, Any]] = []
    compute = type(trainer)._compute_loss
    monkeypatch.setattr(
        type(trainer), "_compute_loss", lambda self, model, inputs: seen.append(inputs) or compute(self, model, inputs)
    )
    made: list[dict[str, Any]] = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: made.append(generate(inputs)) or made[-1]
    trainer.train()
    assert len(made) == 1 and len(seen) == 4
    key = ("prompt_ids", "completion_ids", "advantages")
    rows = {str([made[0][k][n].tolist() for k in key]) for n in range(16)}
    for inputs in seen:
        assert len(inputs["prompt_ids"]) == 4 and len(set(map(str, inputs["prompt_ids"].tolist()))) == 1
        assert len(inputs["pixel_values"]) == int(inputs["image_grid_thw"].prod(dim=-1).sum())
        assert {str([inputs[k][n].tolist() for k in key]) for n in range(4)} <= rows
    assert len({str(inputs["prompt_ids"][0].tolist()) for inputs in seen}) == 4


def test_a_shuffle_is_one_of_groups() -> None:
    ids = torch.tensor([[1, 2]] * 3 + [[3, 4]] * 2 + [[1, 2]] * 2)
    pixels = [torch.ones(2)] * 3 + [None] * 2 + [torch.zeros(2), torch.ones(2)]  # the last two differ in their images
    given = {"prompt_ids": ids, "pixel_values": pixels, "n": torch.arange(7), "names": list("abcdefg"), "none": None}
    groups = [[0, 1, 2], [3, 4], [5], [6]]
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        out = group_shuffle.shuffled({**given, "scalar": torch.tensor(3.0)})
        order = out["n"].tolist()
        starts = [order.index(group[0]) for group in groups]
        assert sorted(order) == list(range(7)) and out["names"] == ["abcdefg"[n] for n in order]
        assert [order[s : s + len(g)] for s, g in zip(starts, groups, strict=True)] == groups
        assert torch.equal(out["prompt_ids"], ids[order]) and out["none"] is None and out["scalar"] == 3
        assert all(one is pixels[n] for one, n in zip(out["pixel_values"], order, strict=True))
        seen.add(tuple(order))
    assert len(seen) > 10


def test_an_update_s_groups_follow_one_another_by_length_and_updates_stay_random() -> None:
    """Eight groups of two, four to an update: which four is random, their order is that of their longest rollout."""
    ids = torch.arange(8).repeat_interleave(2)[:, None] + 1
    prompts = torch.ones(16, 1)
    lengths = torch.tensor([3, 9, 1, 2, 8, 4, 7, 7, 5, 6, 1, 1, 2, 11, 10, 4])
    completions = (torch.arange(12)[None] < lengths[:, None]).long()
    given = {"prompt_ids": ids, "prompt_mask": prompts, "completion_mask": completions, "n": torch.arange(16)}
    longest = [int(lengths[2 * g : 2 * g + 2].max()) for g in range(8)]
    seen = set()
    for seed in range(30):
        torch.manual_seed(seed)
        order = group_shuffle.shuffled(given, 8)["n"].tolist()
        torch.manual_seed(seed)
        plain = group_shuffle.shuffled(given)["n"].tolist()
        assert sorted(order) == list(range(16)) and all(order[at] + 1 == order[at + 1] for at in range(0, 16, 2))
        for window in (slice(0, 8), slice(8, 16)):
            assert set(order[window]) == set(plain[window])
            sizes = [longest[row // 2] for row in order[window][::2]]
            assert sizes == sorted(sizes)
        seen.add(frozenset(order[:8]))
    assert len(seen) > 10
    torch.manual_seed(0)
    misaligned = group_shuffle.shuffled(given, 7)["n"].tolist()  # a group would be in two updates
    torch.manual_seed(0)
    assert misaligned == group_shuffle.shuffled(given)["n"].tolist()


@pytest.mark.parametrize("rows", ["shared", "by_length", "trl"])
def test_micro_batches_of_an_update_ascend_in_length(make, rows: str) -> None:
    """In real training, whatever form rows have; TRL's own rows keep TRL's shuffle."""
    trainer = make(
        overrides=("rl.rollout_batch=8", "rl.global_batch=4", "rl.micro_batch=4", "rl.max_response_length=12"),
        steps=2,
        rows=rows,
    )
    word = trainer._tokenizer("left")["input_ids"][0]
    trainer._generate_single_turn = lambda ids, *_, **__: (
        [[word] * (1 + (7 * (n // 4)) % 12) for n in range(len(ids))],
        None,
    )
    widths: list[list[int]] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (
        widths.append((inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)).tolist())
        or compute(model, inputs)
    )
    trainer.train()
    assert len(widths) == 8
    ascends = [[max(w) for w in part] == sorted(max(w) for w in part) for part in (widths[:4], widths[4:])]
    assert all(ascends) == (rows != "trl")


def test_attention_without_a_mask_of_branches_takes_rows_by_length(
    make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make()
    batch = batch_of(trainer, [[5, 9, 1, 4, 4]])
    theirs = passed(GRPOTrainer, trainer, batch)
    monkeypatch.setattr(branch_attention, "MASKED", ("eager",))
    monkeypatch.setattr(shared_prefix, "lay_out", None)
    capsys.readouterr()
    for _ in range(2):
        check_equal(passed(LogprobPasses, trainer, batch), theirs)
    assert capsys.readouterr().out.count("sdpa takes no branches") == 1


def test_only_rows_with_the_same_prompt_and_images_share_it(make) -> None:
    trainer = make()
    batch = batch_of(trainer, [[3, 4, 5]], images=(1,))
    patches = len(batch["pixel_values"]) // 3
    batch["pixel_values"][2 * patches :] += 0.5  # the same tokens, another image
    check_equal(passed(LogprobPasses, trainer, batch), passed(GRPOTrainer, trainer, batch))


def test_patches_of_another_grid_are_another_image(make) -> None:
    """An image of one colour has the same patches at twice the height and half the width, but other positions."""
    trainer = make()
    batch = batch_of(trainer, [[3, 4, 5, 6]], images=(1,))
    batch["pixel_values"].fill_(0.3)
    _, height, width = batch["image_grid_thw"][0].tolist()
    batch["image_grid_thw"][2:] = torch.tensor([1, 2 * height, width // 2])
    check_equal(passed(LogprobPasses, trainer, batch), passed(GRPOTrainer, trainer, batch))


def log_probs(kind: type[Any], trainer: Any, model: Any, batch: dict[str, Any], batch_size: int | None = None) -> Any:
    """Log-probabilities of `model`, which may be a reference."""
    kept = batch["completion_ids"].shape[1]
    mask_BL = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    ids_BL = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    fields = {key: batch[key] for key in FIELDS if key in batch}
    with torch.no_grad():
        return kind._get_per_token_logps_and_entropies(
            trainer, model, ids_BL, mask_BL, kept, batch_size, True, **fields
        )[0]


@pytest.mark.parametrize(("policys", "references"), [("sdpa", "eager"), ("eager", "sdpa")])
def test_a_reference_may_have_another_attention(make, policys: str, references: str) -> None:
    trainer = make()
    reference, _ = loading.load_policy(trainer.model.config._name_or_path)
    add_fused_lm_head(reference, outputs=("log_probs", "entropy"))
    reference.set_attn_implementation(references)
    trainer.plain_model.set_attn_implementation(policys)
    batch = batch_of(trainer, [[5, 9, 1, 4], [8, 2, 6, 12]])
    ours, theirs = (log_probs(kind, trainer, reference, batch) for kind in (LogprobPasses, GRPOTrainer))
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["sliding_attention", "linear_attention", "chunked_attention"])
def test_layers_that_would_not_see_the_mask_share_no_row(make, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make()
    text = trainer.plain_model.config.get_text_config()
    text.layer_types = [kind, *["full_attention"] * (text.num_hidden_layers - 1)]
    capsys.readouterr()
    assert not trainer._can_share(trainer.model) and not trainer._can_share(trainer.model)
    assert capsys.readouterr().out.count(f"do not share a row: the model has layers of the kind {kind}") == 1


def test_a_sliding_window_is_kept(make) -> None:
    trainer = make()
    config = trainer.plain_model.config
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window = True, 8
    text.layer_types = ["sliding_attention"] * text.num_hidden_layers
    model = type(trainer.plain_model)(config).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    batch = batch_of(trainer, [[5, 9, 6]], images=(1,))
    ours, theirs = (log_probs(kind, trainer, model, batch) for kind in (LogprobPasses, GRPOTrainer))
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("same", [True, False])
def test_images_of_tools_stand_in_responses(make, same: bool) -> None:
    """The image, with what follows it in the prompt, is moved to the beginning of each response."""
    trainer = make()
    batch = batch_of(trainer, [[5, 9, 6]], images=(1,))
    ids, patches = batch["prompt_ids"], len(batch["pixel_values"]) // 3
    cut = int((ids[0] == trainer.processing_class.image_token_id).nonzero()[0]) - 1
    batch["completion_ids"] = torch.cat([ids[:, cut:], batch["completion_ids"]], dim=1)
    batch["completion_mask"] = torch.cat([torch.ones_like(ids[:, cut:]), batch["completion_mask"]], dim=1)
    batch["prompt_ids"], batch["prompt_mask"] = ids[:, :cut], torch.ones_like(ids[:, :cut])
    if not same:
        batch["pixel_values"][patches:] += 0.1
    ours, theirs = (log_probs(kind, trainer, trainer.model, batch) for kind in (LogprobPasses, GRPOTrainer))
    assert (ours - theirs).abs().max() < 1e-4


def test_an_image_token_written_out_in_a_text_stands_for_no_image(make) -> None:
    trainer = make()
    ids = torch.randint(20, 200, (1, 8)).repeat(3, 1)
    ids[:, 3] = trainer.processing_class.image_token_id
    responses = torch.randint(20, 200, (3, 4))
    batch = {
        "prompt_ids": ids, "prompt_mask": torch.ones_like(ids),
        "completion_ids": responses, "completion_mask": torch.ones_like(responses),
    }  # fmt: skip
    ours, theirs = (log_probs(kind, trainer, trainer.model, batch) for kind in (LogprobPasses, GRPOTrainer))
    assert (ours - theirs).abs().max() < 1e-4


def mixed(trainer: Any) -> dict[str, Any]:
    """Three rollouts of a text, then three of a text with an image; one of each kind is masked as truncated."""
    batch = batch_of(trainer, [[5, 9, 6]], images=(1,))
    width = batch["prompt_ids"].shape[1]
    text = torch.nn.functional.pad(torch.randint(20, 200, (1, 6)).repeat(3, 1), (width - 6, 0))
    twice = {key: batch[key].repeat(2, 1) for key in ("completion_ids", "completion_mask")}
    twice["completion_mask"][[1, 4]] = 0
    return {
        **batch, **twice, "num_images": [0, 0, 0, 1, 1, 1],
        "prompt_ids": torch.cat([text, batch["prompt_ids"]]),
        "prompt_mask": torch.cat([(text > 0).long(), batch["prompt_mask"]]),
        "mm_token_type_ids": torch.cat([torch.zeros_like(batch["mm_token_type_ids"]), batch["mm_token_type_ids"]]),
    }  # fmt: skip


@pytest.mark.parametrize("rows", ["shared", "by_length", "trl"])
def test_rows_with_and_without_images_pass_in_pieces_of_any_size(make, rows: str) -> None:
    trainer = make()
    batch = mixed(trainer)
    theirs = passed(GRPOTrainer, trainer, batch)
    trainer.rows = rows
    for batch_size in (None, 1, 2, 4):
        check_equal(passed(LogprobPasses, trainer, batch, batch_size), theirs)
    alone = {key: field[:3] for key, field in batch.items()}  # a micro-batch without an image
    alone |= {key: batch[key][:0] for key in ("pixel_values", "image_grid_thw")}
    text = {key: alone[key] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    ours, theirs_alone = (
        log_probs(LogprobPasses, trainer, trainer.model, alone),
        log_probs(GRPOTrainer, trainer, trainer.model, text),
    )
    assert (ours - theirs_alone).abs().max() < 1e-4


@pytest.mark.parametrize("tweak", [{"loss_type": "bnpo"}, {"top_entropy_quantile": 0.2}, {"entropy_coef": 0.1}, {}])
def test_micro_batches_stay_mixed_where_the_loss_depends_on_them(
    make, tweak: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []
    grouped, plain = group_shuffle.shuffled, group_shuffle._shuffle_of_trl
    monkeypatch.setattr(group_shuffle, "shuffled", lambda *given: used.append("groups") or grouped(*given))
    monkeypatch.setattr(group_shuffle, "_shuffle_of_trl", lambda given: used.append("rollouts") or plain(given))
    make(tweak=tweak, steps=1).train()
    assert used == ["rollouts" if tweak else "groups"]


def test_other_threads_keep_trls_shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainers overlap: one leaves its block while the other is inside."""
    monkeypatch.setattr(group_shuffle, "_shuffle_of_trl", lambda given: "trl's")
    monkeypatch.setattr(group_shuffle, "shuffled", lambda given: "ours")
    outside = contextvars.copy_context()
    with group_shuffle.by_group():
        assert outside.run(grpo_trainer.shuffle_sequence_dict, {}) == "trl's"
        assert grpo_trainer.shuffle_sequence_dict({}) == "ours"
    first, second = contextvars.copy_context(), contextvars.copy_context()
    one, two = group_shuffle.by_group(), group_shuffle.by_group()
    first.run(one.__enter__), second.run(two.__enter__)
    first.run(one.__exit__, None, None, None)
    assert second.run(grpo_trainer.shuffle_sequence_dict, {}) == "ours"
    second.run(two.__exit__, None, None, None)
    assert [c.run(grpo_trainer.shuffle_sequence_dict, {}) for c in (first, second)] == ["trl's"] * 2
