"""Auxiliary losses and probes on adapters: gradients in adapters alone, and every pass is that of the policy, adapters on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo.policy import adapters, backbone
from fgrpo.schema_base import Lora
from fgrpo.training.anchoring import Anchoring
from rl.auxiliary.anchoring import AnchoringLoss
from rl.auxiliary.papo import Papo, rollout_mean
from rl.probes import base
from rl.probes.attention import PROBE as ATTENTION
from rl.token_weights import dependence, trained_tokens
from tests.rl.conftest import build_trainer
from tests.rl.test_anchoring import Seen
from tests.rl.test_probes import build

Build = Callable[..., Any]
NEEDS = frozenset(("evidence", "patches"))


def lora() -> Any:
    return adapters.lora_config(Lora(rank=4, alpha=8, dropout=0.0), backbone.default())


def filled(trainer: Any) -> Any:
    """The trainer with adapters that do something: their second factor begins at 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return trainer


@contextmanager
def without_adapters(trainer: Any) -> Iterator[None]:
    with trainer.accelerator.unwrap_model(trainer.model).disable_adapter():
        yield


@pytest.fixture
def make_adapted(world: Path, policy: Path, anchored: Path, tmp_path: Path) -> Build:
    """A trainer of adapters on the mini policy; on the anchored one where a loss is the anchoring loss."""

    def make(*losses: Any, out: str = "out", **more: Any) -> Any:
        start = anchored if any(isinstance(loss, AnchoringLoss) for loss in losses) else policy
        return build_trainer(world, start, tmp_path / out, peft_config=lora(), auxiliary=losses, **more)

    return make


@pytest.mark.parametrize("loss", [Papo(-0.5), AnchoringLoss(1.0)], ids=["papo", "anchoring"])
def test_the_loss_trains_adapters_and_nothing_else(make_adapted: Build, loss: Any) -> None:
    found = []
    for losses in ([], [loss]):
        seen = Seen()
        start = anchored_if(loss, losses)
        trainer = filled(
            make_adapted(*start, out=str(len(losses)), steps=1, tweak={"max_grad_norm": 0.0}, callbacks=[seen])
        )
        trainer.auxiliary = tuple(losses)
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.train()
        now = dict(trainer.model.named_parameters())
        moved = {name for name in before if not torch.equal(before[name], now[name])}
        assert moved and all("lora_" in name for name in moved)
        assert all("lora_" in name for name in seen.gradients[0])
        found.append(seen.gradients[0])
    plain, more = found
    assert plain.keys() == more.keys()
    changed = {name for name in plain if not torch.allclose(plain[name], more[name], atol=1e-7)}
    assert changed, "the loss's gradient reaches adapters"
    if isinstance(
        loss, AnchoringLoss
    ):  # the attention of layer 2 of 4: nothing above it, and of it only queries and keys
        layers = {int(name.split(".layers.")[1].split(".")[0]) for name in changed}
        assert max(layers) == 2 and not any(".layers.2." in n and "v_proj" in n for n in changed)


def anchored_if(loss: Any, losses: Any) -> Any:
    """Losses to build a trainer with, so that both trainers have the same policy."""
    return losses or ([loss] if isinstance(loss, AnchoringLoss) else [])


def test_papo_compares_the_policy_with_itself(make_adapted: Build) -> None:
    """Both views have the adapters on; those of the reference would give another value."""
    found: list[tuple[float, float, float]] = []

    class Kept(Papo):
        def __call__(self, trainer: Any, model: Any, inputs: Any) -> Any:
            from rl import masked_images

            value, figures = super().__call__(trainer, model, inputs)
            own, mask = trainer.policy_logps_BT.detach(), trained_tokens(inputs)
            masked = masked_images.blanked(trainer, inputs, self.blank)
            values = []
            with torch.no_grad():
                values.append(rollout_mean(dependence(own, trainer.logps_of(model, masked), mask), mask))
                with without_adapters(trainer):
                    values.append(rollout_mean(dependence(own, trainer.logps_of(model, masked), mask), mask))
            found.append((float(value.detach()), *map(float, values)))
            return value, figures

    filled(make_adapted(Kept(-0.2), steps=1)).train()
    for value, on, off in found:
        assert value == pytest.approx(on, abs=1e-6) and abs(off - on) > 1e-3
    assert found


def test_the_anchored_attention_is_that_of_the_adapted_policy(
    make_adapted: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[float]] = []
    inner = Anchoring.__call__

    def both(self: Any, model: Any, *args: Any) -> Any:
        anchored = inner(self, model, *args)
        with torch.no_grad():
            on = inner(self, model, *args)
            with without_adapters(trainer):
                off = inner(self, model, *args)
        found.append([float(one.loss.detach()) for one in (anchored, on, off)])
        return anchored

    monkeypatch.setattr(Anchoring, "__call__", both)
    trainer = filled(make_adapted(AnchoringLoss(1.0), steps=1))
    trainer.train()
    with_boxes = [one for one in found if one[0] > 0]
    assert with_boxes
    for value, on, off in with_boxes:
        assert value == pytest.approx(on, abs=1e-6) and abs(off - on) > 1e-3


def test_probes_measure_the_adapted_policy(make: Build, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities on the image and on changed ones, and attention, differ from those of the reference, adapters off."""
    trainer = filled(build(make, world, steps=1, peft_config=lora()))
    found: list[Any] = []
    inner = base.measure

    def measure(needs: Any, batch: Any, passes: Any, tokenizer: Any) -> Any:
        def now() -> list[Any]:
            fresh = type(passes)(trainer, batch)
            probe = next(probe for probe, part in base.chosen(NEEDS) if "evidence" in part)
            return [probe.measure(NEEDS, batch, fresh), ATTENTION.measure(frozenset(["attention"]), batch, fresh)]

        given = inner(needs, batch, passes, tokenizer)
        with without_adapters(trainer):
            off = now()
        found.append((given, now(), off))
        return given

    monkeypatch.setattr(base, "measure", measure)
    trainer.train()
    ((given, on, off),) = found
    compared = 0
    for row, probes in enumerate(given):
        for key, place in (("evidence", 0), ("patches", 0), ("attention", 1)):
            with_, without = on[place][row][key], off[place][row][key]
            if not isinstance(with_, tuple):
                continue
            own = getattr(probes, key)
            assert own is None or own == pytest.approx(with_, abs=1e-5), key
            assert max(abs(a - b) for a, b in zip(with_, without, strict=True)) > 1e-4, key
            compared += own is not None
    assert compared > 2
