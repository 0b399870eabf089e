"""Auxiliary losses in the real trainer: scale under accumulation, the pass they see, the log, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from fgrpo.config import load as load_config
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from rl import auxiliary_loss, train
from rl.auxiliary_loss import AuxiliaryLoss, Mean, load
from rl.configured import check_configured
from tests.rl.conftest import OVERRIDES

NORM = "model.language_model.norm.weight"


class OfParameter(AuxiliaryLoss):
    """The sum of one parameter: its gradient is 1 in each element, whatever the batch."""

    name = "sum"

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.passes: list[str] = []

    @contextmanager
    def watching(self, trainer: Any, model: Any, inputs: Mapping[str, Any]) -> Iterator[None]:
        assert trainer.policy_logps_BT is None
        self.passes.append("begins")
        yield
        self.passes.append("ends")

    def __call__(
        self, trainer: Any, model: Any, inputs: Mapping[str, Any]
    ) -> tuple[torch.Tensor | None, dict[str, float]]:
        self.passes.append("loss")
        logps = trainer.policy_logps_BT
        assert logps.shape == inputs["completion_ids"].shape
        assert logps.requires_grad == torch.is_grad_enabled()
        return dict(trainer.plain_model.named_parameters())[NORM].sum(), {"three": 3.0}


class Gradients(TrainerCallback):
    """Keeps the gradients of each update, before the optimizer uses them."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("micro_batch", [8, 4, 2])
def test_the_weight_is_the_same_however_an_update_is_cut(make: Callable[..., Any], micro_batch: int) -> None:
    """8 rollouts an update in 1, 2 or 4 micro-batches: the loss's gradient is weight × 1 in its parameter, 0 elsewhere."""
    found = []
    for losses in ([], [OfParameter(-0.25)]):
        gradients = Gradients()
        trainer = make(
            steps=1, out=f"out{len(losses)}", overrides=[f"rl.micro_batch={micro_batch}"], auxiliary=losses,
            tweak={"max_grad_norm": 0.0}, callbacks=[gradients],
        )  # fmt: skip
        trainer.train()
        (seen,) = gradients.seen
        found.append(seen)
    plain, more = found
    assert plain.keys() == more.keys() and any(bool(g.any()) for g in plain.values())
    for name in plain:
        wanted = torch.full_like(plain[name], -0.25 if name == NORM else 0.0)
        assert torch.allclose(more[name] - plain[name], wanted, atol=1e-6), name
    line = trainer.state.log_history[0]
    assert (line["aux/sum/three"], line["aux/sum/weight"]) == (3.0, -0.25) and line["aux/sum"] > 0
    assert losses[0].passes == ["begins", "ends", "loss"] * (8 // micro_batch)
    assert trainer.policy_logps_BT is None


def test_a_loss_on_the_policys_own_pass_costs_no_other(make: Callable[..., Any]) -> None:
    """With weight -1 and value mean(log p), the policy is pushed to what it wrote, and one pass per micro-batch is made."""

    class Likelihood(OfParameter):
        def __call__(self, trainer: Any, model: Any, inputs: Mapping[str, Any]) -> Any:
            mask = inputs["completion_mask"]
            return (trainer.policy_logps_BT * mask).sum() / mask.sum(), {}

    gradients = Gradients()
    trainer = make(steps=1, auxiliary=[Likelihood(-1.0)], callbacks=[gradients], tweak={"max_grad_norm": 0.0})
    calls: list[bool] = []
    inner = trainer._get_per_token_logps_and_entropies

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return inner(*args, **more)

    trainer._get_per_token_logps_and_entropies = counted
    trainer.train()
    assert sum(calls) == 1 and trainer.state.log_history[0]["aux/sum"] < 0
    head = next(g for name, g in gradients.seen[0].items() if name.endswith("norm.weight"))
    assert bool(head.any())


def test_what_does_not_apply_is_neither_trained_on_nor_logged(make: Callable[..., Any]) -> None:
    class Absent(OfParameter):
        def __call__(self, *_: Any) -> Any:
            return None, {}

    trainer = make(steps=1, auxiliary=[Absent(1.0)])
    trainer.train()
    line = trainer.state.log_history[0]
    assert "aux/sum" not in line and line["aux/sum/weight"] == 1.0


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.ones(2, requires_grad=True), "no scalar: its shape is .2,."), (torch.tensor(1.0), "has no gradient")],
)
def test_a_value_that_trains_nothing_is_refused(make: Callable[..., Any], value: torch.Tensor, message: str) -> None:
    class Wrong(OfParameter):
        def __call__(self, *_: Any) -> Any:
            return value, {}

    with pytest.raises(ValueError, match=f"the auxiliary loss 'sum' .*{message}"):
        make(steps=1, auxiliary=[Wrong(1.0)]).train()


def test_two_losses_of_one_name_are_refused(make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="two auxiliary losses are called 'sum'"):
        make(steps=1, auxiliary=[OfParameter(1.0), OfParameter(2.0)])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.auxiliary={papoo: {weight: -1}}", "unknown auxiliary loss 'papoo'; did you mean 'papo'"),
        (
            "rl.auxiliary={papo: {weight: -1, options: {blanc: 0.1}}}",
            "unknown option of rl.auxiliary.papo 'blanc'; did you mean 'blank'",
        ),
        ("rl.auxiliary={papo: {weight: 0.02}}", "rl.auxiliary.papo: weight is .* must be below 0"),
        ("rl.auxiliary={papo: {weight: -1, options: {blank: 2}}}", "rl.auxiliary.papo: blank is a share"),
        ("rl.auxiliary={papo: {weight: -1, options: {blank: many}}}", "rl.auxiliary.papo: "),
    ],
)
def test_a_configuration_that_makes_no_loss_is_refused_before_any_stage(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_configured(load_config("mini", "fgrpo", [override]))


def test_null_removes_a_loss_of_a_lower_layer() -> None:
    assert list(load_config("mini", "papo").rl.auxiliary) == ["papo"]
    assert not load_config("mini", "papo", ["rl.auxiliary.papo=null"]).rl.auxiliary
    loss: Any = load("papo", -0.5, {"blank": 0.25})
    assert (loss.name, loss.weight, loss.blank) == ("papo", -0.5, 0.25)


def test_the_yaml_reaches_the_loss_and_the_loss_the_log(world: Path, chain: Path) -> None:
    cfg = load_config(
        "mini", "papo", [f"data.root={world}", *OVERRIDES, "rl.max_steps=1", "rl.auxiliary.papo.weight=-0.5"]
    )
    (line,) = read_jsonl(train.train(cfg, chain) / "metrics.jsonl")
    assert line["aux/papo/weight"] == -0.5 and line["aux/papo"] > 0


def test_a_mean_over_rollouts_is_logged_as_one(make: Callable[..., Any]) -> None:
    """4 of 1 rollout, 1 each of 3 others, and none: 7 / 4, not the mean of 4 and 1; a plain number is averaged as ever."""
    loss = OfParameter(1.0)
    trainer = make(steps=1, auxiliary=[loss])
    trainer.model.train()
    for total, count, plain in ((4.0, 1, 1.0), (3.0, 3, 2.0), (0.0, 0, 6.0)):
        trainer._log_auxiliary("train", loss, None, {"rate": Mean(total, count), "plain": plain})
    trainer.log({"loss": 1.0})
    line = trainer.state.log_history[-1]
    assert (line["aux/sum/rate"], line["aux/sum/plain"]) == (7 / 4, 3.0)
    assert not any("count" in key for key in line)


def test_the_preflight_makes_the_losses_passes_too(make: Callable[..., Any]) -> None:
    from rl.dry_run import DryRun

    loss = OfParameter(1.0)
    trainer = make(steps=1, auxiliary=[loss])
    dry_run = DryRun(trainer)
    dry_run.update(dry_run.longest([trainer.train_dataset[0]], 5))
    assert loss.passes == ["begins", "ends", "loss"]
    assert auxiliary_loss.PREFIX == "aux" and not any(p.grad is not None for p in trainer.model.parameters())
