"""VPPO's factors against hand-worked numbers, and in the real trainer; PAPO's loss; the masked images that both compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgrpo.config import load as load_config
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from rl import masked_images, train
from rl.auxiliary.papo import Papo, rollout_mean
from rl.token_weights import Dependence, dependence, rollout_weights, top_tokens, trained_tokens, weighted
from tests.rl.conftest import OVERRIDES, Watch


def test_dependence_by_hand() -> None:
    """d = log p̃ - log p: 0 gives 0, -ln 2 gives 1/2 + ln 2 - 1, ln 2 gives 2 - ln 2 - 1; both bounds; padding 0."""
    logps = torch.tensor([[-1.0, -1.0, -1.0, -30.0, -50.0, -1.0]])
    changed = logps + torch.tensor([[0.0, -math.log(2), math.log(2), 25.0, -49.0, 3.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    wanted = [0.0, 0.5 + math.log(2) - 1, 2 - math.log(2) - 1, 10.0, 10.0, 0.0]
    assert dependence(logps, changed, mask).tolist()[0] == pytest.approx(wanted, abs=1e-6)


def test_the_top_tokens_of_each_response() -> None:
    """40% of 5 are 2, of 3 are 1.2, so 2; of equal ones the earlier; never padding."""
    s = torch.tensor([[0.1, 0.5, 0.2, 0.5, 0.3], [0.0, 0.0, 0.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert top_tokens(s, mask, 0.4).tolist() == [[0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]
    assert top_tokens(s, mask, 1.0).tolist() == mask.tolist()


def test_rollout_weights_have_mean_1_and_begin_at_the_lowest() -> None:
    """Means 1, 2, 5: shares 0, 1/4, 1 with mean 5/12; highest = 0.9 + 0.1 / (5/12) = 1.14."""
    found = rollout_weights(torch.tensor([1.0, 2.0, 5.0]), 0.9)
    assert found.tolist() == pytest.approx([0.9, 0.96, 1.14]) and float(found.mean()) == pytest.approx(1.0)
    assert rollout_weights(torch.tensor([2.0, 2.0]), 0.9).tolist() == [1.0, 1.0]


def test_tokens_of_a_tool_carry_no_weight() -> None:
    batch = {"completion_mask": torch.tensor([[1, 1, 1, 0]]), "tool_mask": torch.tensor([[1, 0, 1, 1]])}
    assert trained_tokens(batch).tolist() == [[1, 0, 1, 0]]
    assert trained_tokens({"completion_mask": batch["completion_mask"]}).tolist() == [[1, 1, 1, 0]]


def test_papos_mean_is_over_each_rollout_first() -> None:
    values = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    assert float(rollout_mean(values, torch.tensor([[1, 1, 0], [1, 0, 0]]))) == pytest.approx((2 + 5) / 2)


def test_papos_gradient_is_that_of_the_reverse_kl() -> None:
    """Exact over two outcomes: E_π[∇ k3] = ∇ KL(π_masked ‖ π) = π - π_masked in the logits, while the value is KL(π ‖ π_masked)."""
    logits = torch.tensor([0.3, -0.5], requires_grad=True)
    masked = torch.tensor([-0.2, 0.4]).log_softmax(0)
    policy = logits.log_softmax(0)
    k3 = dependence(policy.unsqueeze(0), masked.unsqueeze(0), torch.ones(1, 2))[0]
    expected = (policy.exp().detach() * k3).sum()
    expected.backward()
    assert float(expected.detach()) == pytest.approx(float((policy.exp() * (policy - masked)).sum().detach()), abs=1e-6)
    assert torch.allclose(logits.grad, policy.exp().detach() - masked.exp(), atol=1e-6)


# --- masked images ----------------------------------------------------------------------------------------------------


def stub(step: int = 0, seed: int = 0, **more: Any) -> Any:
    processor = SimpleNamespace(image_mean=[0.5, 0.25, 0.0], image_std=[0.5, 0.5, 1.0], **more)
    return SimpleNamespace(
        known_family=lambda: SimpleNamespace(grid_field="image_grid_thw"), args=SimpleNamespace(seed=seed),
        state=SimpleNamespace(global_step=step), processing_class=SimpleNamespace(image_processor=processor),
    )  # fmt: skip


def images() -> dict[str, Any]:
    """Three images of 64 patches of 12 numbers; the first and the last are alike."""
    torch.manual_seed(0)
    one, other = torch.rand(64, 12) + 1, torch.rand(64, 12) + 1
    return {"pixel_values": torch.cat([one, other, one]), "image_grid_thw": torch.tensor([[1, 8, 8]] * 3), "x": 1}


def test_patches_are_black_by_image_seed_and_step() -> None:
    batch = images()
    found = masked_images.blanked(stub(), batch, 0.5)
    black = torch.tensor([-1.0] * 4 + [-0.5] * 4 + [0.0] * 4)
    is_black = (found["pixel_values"] == black).all(dim=1)
    kept = ~is_black
    assert torch.equal(found["pixel_values"][kept], batch["pixel_values"][kept]) and found["x"] == 1
    assert not (batch["pixel_values"] == black).all(dim=1).any(), "the batch itself stays"
    first, second, third = is_black.split(64)
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert all(15 < int(part.sum()) < 50 for part in (first, second))
    again = masked_images.blanked(stub(), batch, 0.5)["pixel_values"]
    assert torch.equal(again, found["pixel_values"])
    for other in (stub(step=1), stub(seed=1)):
        assert not torch.equal(masked_images.blanked(other, batch, 0.5)["pixel_values"], again)
    everything = masked_images.blanked(stub(), batch, 1.0)["pixel_values"]
    assert int((everything == black).all(dim=1).sum()) == 3 * 63, "one patch of each image stays"


def test_a_batch_without_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"rl\.auxiliary\.papo is wanted at step 1, and its rollouts have no image"):
        masked_images.blanked(stub(), {"pixel_values": None}, 0.5, "rl.auxiliary.papo")
    with pytest.raises(
        UserError, match=r"rl\.auxiliary\.papo paints patches black, and the processor does not normalise"
    ):
        masked_images.check(stub(do_normalize=False), "rl.auxiliary.papo")


@pytest.mark.parametrize("part", [Papo(-0.02), Dependence()])
def test_data_without_images_are_refused_before_the_first_step(make: Callable[..., Any], part: Any) -> None:
    trainer = make(steps=1)
    part.check(trainer)
    trainer.train_dataset = trainer.train_dataset.with_format(None).remove_columns("images")
    with pytest.raises(UserError, match="training data have rows without an image"):
        part.check(trainer)
    trainer.processing_class.image_processor.image_mean = None
    with pytest.raises(UserError, match="names no image_mean"):
        part.check(trainer)


# --- in the trainer ---------------------------------------------------------------------------------------------------


def test_each_token_of_the_update_has_its_own_advantage(make: Callable[..., Any]) -> None:
    """Factor and advantage meet in the row of the loss that they belong to, through TRL's shuffle and cut."""

    class ByIds:
        """A factor that tells of which token it is."""

        def check(self, trainer: Any) -> None: ...

        def __call__(self, trainer: Any, batch: Any) -> Any:
            return 1.0 + batch["completion_ids"].double(), {"seen": 1.0}

    trainer = make(steps=1, overrides=["rl.micro_batch=4"], token_weights=ByIds())
    watch = Watch(trainer)
    inputs_of: list[dict[str, Any]] = []
    inner = trainer._compute_loss

    def kept(model: Any, inputs: Any) -> Any:
        inputs_of.append(inputs)
        return inner(model, inputs)

    trainer._compute_loss = kept
    trainer.train()
    assert len(inputs_of) == 2
    own = trainer.last_step.advantages_N
    for inputs in inputs_of:
        assert inputs["advantages"].shape == inputs["completion_ids"].shape
        plain = inputs["advantages"] / (1.0 + inputs["completion_ids"].double())
        assert torch.allclose(plain, plain[:, :1].expand_as(plain))
        assert {round(x, 5) for x in plain[:, 0].tolist()} <= {round(x, 5) for x in own.tolist()}
    every = torch.cat([inputs["advantages"][:, 0] / (1.0 + inputs["completion_ids"][:, 0]) for inputs in inputs_of])
    assert sorted(round(x, 5) for x in every.tolist()) == sorted(round(x, 5) for x in own.tolist())
    assert trainer.state.log_history[0]["tokens/seen"] == 1.0
    assert torch.equal(watch.seen[0][2][:, 0] != 0, own != 0)


@pytest.mark.parametrize(
    ("factors", "message"), [(torch.ones(2, 9), "shape .2, 9."), (torch.full((2, 3), math.nan), "not finite")]
)
def test_factors_that_do_not_fit_are_refused(factors: torch.Tensor, message: str) -> None:
    trainer = SimpleNamespace(model=SimpleNamespace(training=True), _metrics={"train": {}})
    batch = {"completion_ids": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        weighted(trainer, lambda *_: (factors, {}), torch.ones(2), batch)
    trainer.model.training = False
    assert weighted(trainer, lambda *_: pytest.fail("evaluation"), torch.ones(2), batch).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [{"keep": 0.0}, {"blank": 0.0}, {"lowest": 1.5}])
def test_shares_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares above 0"):
        Dependence(**wrong)


def test_vppo_by_its_definition_in_a_run(make: Callable[..., Any]) -> None:
    """The factors that train are those of log-probabilities on the image and on the masked one, made here apart."""
    trainer = make(steps=1, token_weights=Dependence(keep=0.3, lowest=0.8, blank=0.5))
    seen: list[Any] = []
    inner = trainer.token_weights

    class Kept:
        def __call__(self, trainer: Any, batch: Any) -> Any:
            with torch.no_grad():
                plain = trainer.logps_of(trainer.model, batch)
                masked = trainer.logps_of(trainer.model, masked_images.blanked(trainer, batch, 0.5))
            mask = batch["completion_mask"]
            d = (masked - plain).clamp(-20, 20)
            s = (d.exp() - d - 1).clamp(max=10) * mask
            seen.append((s, mask, inner(trainer, batch)))
            return seen[-1][2]

    trainer.token_weights = Kept()
    trainer.train()
    ((s, mask, (factors, figures)),) = seen
    means = s.sum(dim=1) / mask.sum(dim=1)
    assert float(means.max()) > 0, "blanking half of the image changes something"
    weights = rollout_weights(means, 0.8)
    for row in range(len(s)):
        count = math.ceil(0.3 * int(mask[row].sum()))
        assert int((factors[row] > 0).sum()) == count
        on, off = s[row][factors[row] > 0], s[row][(factors[row] == 0) & mask[row].bool()]
        assert not len(off) or float(on.min()) >= float(off.max()) - 1e-6
        assert torch.allclose(factors[row][factors[row] > 0], weights[row].expand(count), atol=1e-4)
    assert figures["dependence"] == pytest.approx(float(means.mean()), abs=1e-5)


def test_the_yaml_reaches_the_factors_and_the_log(world: Path, chain: Path) -> None:
    cfg = load_config("mini", "vppo", [f"data.root={world}", *OVERRIDES, "rl.max_steps=1", "rl.token_weights.keep=0.5"])
    kept: list[Any] = []
    original = train.Dependence
    try:
        train.Dependence = lambda **given: kept.append(original(**given)) or kept[-1]  # type: ignore[assignment,misc]
        (line,) = read_jsonl(train.train(cfg, chain) / "metrics.jsonl")
    finally:
        train.Dependence = original  # type: ignore[misc]
    assert kept == [Dependence(0.5, 0.9, 0.5)]
    assert line["tokens/dependence"] > 0 and line["tokens/highest_weight"] >= 1
