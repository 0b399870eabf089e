"""Anchoring in RL: the loss of each rollout's own prompt, its multiplier in the log and in checkpoints, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from fgrpo import prompts
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import open_rgb
from fgrpo.policy import focus, loading, model_files
from fgrpo.training.anchoring import Anchoring, loss_of, shares_of
from fgrpo.types import Sample
from rl import preflight, train
from rl.auxiliary.anchoring import AnchoringLoss
from rl.auxiliary_loss import ROW, load
from rl.configured import check_configured
from rl.trainer import DUALS
from tests.rl.conftest import build_trainer, earlier_stages, mini, scorer

Build = Callable[..., Any]
PIXELS = PixelBounds(784, 12544, 28)


@pytest.fixture
def make_anchored(world: Path, anchored: Path, tmp_path: Path) -> Build:
    def build(*losses: Any, out: str = "out", **more: Any) -> Any:
        return build_trainer(world, anchored, tmp_path / out, auxiliary=losses, **more)

    return build


@pytest.fixture(scope="session")
def by_eager(anchored: Path, world: Path) -> dict[str, float | None]:
    """The loss of each question's prompt, from eager attention; None without boxes."""
    model, processor = loading.load_policy(anchored, attention="eager")
    template, options = prompts.read("mini"), AnchoringLoss(1.0).options
    pixels, found = model_files.pixel_bounds(anchored), {}
    for row in read_jsonl(world / "rl.jsonl"):
        sample = Sample.from_dict(row)
        shares = shares_of(sample, pixels)
        found[sample.id] = None
        if not shares:
            continue
        text = loading.render_prompt(processor, sample.images, prompts.user_text(sample, template))
        images = [open_rgb(path) for path in sample.images]
        given = processor(text=[text], images=images, return_tensors="pt")
        ids = given["input_ids"][0]
        with torch.no_grad():
            attention = model(**given, output_attentions=True).attentions[2]
        columns = (ids == processor.image_token_id).nonzero().flatten().split([len(part) for part in shares])
        of_boxes = torch.cat([part for part, w in zip(columns, shares, strict=True) if any(w)])
        p_HC = attention[0, :, int((ids == focus.focus_id(processor.tokenizer)).nonzero())][:, of_boxes]
        p = (p_HC / p_HC.sum(dim=1, keepdim=True)).mean(dim=0)
        w = torch.tensor([share for part in shares if any(part) for share in part])
        found[sample.id] = float(loss_of(p.log(), w, options))
    return found


class Seen(TrainerCallback):
    """Keeps the gradients of each update."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("micro_batch", [8, 2])
@pytest.mark.parametrize("rows", ["shared", "by_length"])
def test_each_rollout_has_the_loss_of_its_own_prompt(
    make_anchored: Build, by_eager: dict[str, float | None], micro_batch: int, rows: str
) -> None:
    """However an update is cut, and whatever rows the policy's own pass has."""
    loss, found = AnchoringLoss(0.5), []
    kept = loss.__class__.__call__

    def noted(self: Any, trainer: Any, model: Any, inputs: Any) -> Any:
        value, figures = kept(self, trainer, model, inputs)
        ids = [json.loads(trainer.samples[row])["id"] for row in inputs[ROW].tolist()]
        found.append((float(value.detach()), figures, ids))
        return value, figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnchoringLoss, "__call__", noted)
        trainer = make_anchored(
            loss, steps=2, overrides=[f"rl.micro_batch={micro_batch}"], tweak={"learning_rate": 0.0}, rows=rows
        )
        trainer.train()
    assert len(found) == 2 * 8 // micro_batch
    assert len({name for *_, ids in found for name in ids}) > 2
    for value, figures, ids in found:
        own = [by_eager[name] for name in ids]
        known = [one for one in own if one is not None]
        assert value == pytest.approx(sum(known) / len(ids), abs=1e-5)
        assert figures["with_boxes"] == len(known) / len(ids)
        if known:
            assert figures["mean"].total == pytest.approx(sum(known), abs=1e-4) and figures["mean"].count == len(known)
    assert any(figures["with_boxes"] not in (0, 1) for _, figures, _ in found) or micro_batch == 2
    line = trainer.state.log_history[0]
    assert line["aux/anchoring/weight"] == 0.5 and 0 < line["aux/anchoring/inside"] < 1


def test_its_gradient_is_weighted_and_reaches_the_tokens_row(make_anchored: Build, anchored: Path) -> None:
    found = []
    for weight in (None, 0.5, 1.0):
        seen = Seen()
        losses = [] if weight is None else [AnchoringLoss(weight)]
        make_anchored(*losses, out=str(weight), steps=1, tweak={"max_grad_norm": 0.0}, callbacks=[seen]).train()
        found.append(seen.gradients[0])
    plain, half, whole = found
    name = next(n for n in plain if n.endswith("embed_tokens.weight"))
    index = focus.focus_id(loading.load_processor(anchored).tokenizer)
    assert (half[name][index] - plain[name][index]).abs().max() > 1e-6
    for n in plain:
        assert torch.allclose(whole[n] - plain[n], 2 * (half[n] - plain[n]), atol=1e-5), n


def test_the_multiplier_takes_the_dual_step_of_each_update(make_anchored: Build) -> None:
    loss = AnchoringLoss(0.2, at_most=0.5, lr=0.3, most=0.9)
    trainer = make_anchored(loss, steps=4, overrides=["rl.micro_batch=4"])
    trainer.train()
    lines = [line for line in trainer.state.log_history if "aux/anchoring/weight" in line]
    assert len(lines) == 4
    weights, bounded = [line["aux/anchoring/weight"] for line in lines], False
    wanted = 0.2
    for line, weight in zip(lines, weights, strict=True):
        assert weight == pytest.approx(wanted, abs=1e-6)
        if "aux/anchoring/mean" in line:  # both micro-batches have one question, or one of them has none
            mean = line["aux/anchoring/mean"]
            wanted = min(max(wanted + 0.3 * (mean - 0.5), 0.0), 0.9)
        bounded = bounded or wanted in (0.0, 0.9)
    assert len(set(weights)) > 2 and bounded


@pytest.mark.parametrize("at_most", [None, 0.5])
def test_it_goes_on_from_a_checkpoint(make_anchored: Build, at_most: float | None) -> None:
    def loss() -> AnchoringLoss:
        return AnchoringLoss(0.2, at_most=at_most, lr=0.1)

    whole = make_anchored(loss(), steps=4, out="whole")
    whole.train()
    half = make_anchored(loss(), steps=4, out="half", tweak={"max_steps": 2})
    half.train()
    folder = Path(half.args.output_dir) / "checkpoint-2"
    saved = json.loads((folder / DUALS).read_text())["losses"]["anchoring"]
    assert saved["update"] == 1 and saved["count"] > 0 if at_most else saved["weight"] == 0.2
    again = make_anchored(loss(), steps=4, out="half")
    again.train(resume_from_checkpoint=str(folder))
    one, other = whole.state.log_history[3], again.state.log_history[3]
    assert one["aux/anchoring/weight"] == other["aux/anchoring/weight"]
    states = [dict(trainer.plain_model.named_parameters()) for trainer in (whole, again)]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    with pytest.raises(ValueError, match="outside"):
        AnchoringLoss(0.2, at_most=1.0).load_state_dict({**saved, "weight": 7.0})
    with pytest.raises(ValueError, match="not a saved state"):
        loss().load_state_dict({"weight": 1.0})


def test_the_stage_starts_from_the_anchored_model(world: Path, anchored: Path, policy: Path, tmp_path: Path) -> None:
    """Prompts of rollouts carry the token, and its sampling is forbidden; with the other model there is none."""
    root = earlier_stages(tmp_path, world, policy)
    (root / "mini" / "anchor").mkdir()
    (root / "mini" / "anchor" / "final").symlink_to(anchored)
    options = ("rl.max_steps=2", "rl.auxiliary={anchoring: {weight: 0.1, options: {loss: mass}}}")
    folder = train.train(mini(world, "rl.start=anchor", *options), root)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert all("aux/anchoring/inside" in line for line in lines)
    final = loading.load_processor(folder / "final")
    index = focus.focus_id(final.tokenizer)
    assert index is not None and "<|focus|>" in (folder / "final" / "chat_template.jinja").read_text()
    one, other = (load_file(f / "model.safetensors") for f in (folder / "final", anchored))
    (name,) = (n for n in one if n.endswith("embed_tokens.weight"))
    assert not torch.equal(one[name][index], other[name][index])
    with pytest.raises(UserError, match=r"the policy has no <\|focus\|> token"):
        train.train(mini(world, *options), earlier_stages(tmp_path / "plain", world, policy))
    with pytest.raises(UserError, match="run `make anchor`"):
        train.train(mini(world, "rl.start=anchor"), earlier_stages(tmp_path / "gone", world, policy))


def test_adapters_train_on_it(make_anchored: Build) -> None:
    from fgrpo.policy import adapters, backbone
    from fgrpo.schema_base import Lora

    config = adapters.lora_config(Lora(rank=4, alpha=8, dropout=0.0), backbone.default())
    nothing = [scorer("task", lambda step, row: 0.0)]  # no advantage: the loss alone trains them
    trainer = make_anchored(
        AnchoringLoss(1.0, layers="all"), funcs=nothing, constraints=(), steps=5, peft_config=config,
        overrides=("rl.kl_coef=0.0",), tweak={"learning_rate": 0.02},
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    values = [line["aux/anchoring/mean"] for line in trainer.state.log_history if "aux/anchoring/mean" in line]
    print([round(value, 3) for value in values])
    assert sum(values[-2:]) < 0.8 * sum(values[:2])


def test_the_preflight_passes_a_prompt_of_each_group(make_anchored: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many prompts as training has in a micro-batch, every image token in the boxes, and the gradient through log p."""
    loss, seen, own = AnchoringLoss(0.5, at_most=1.0), [], Anchoring.__call__

    def noted(self: Anchoring, *args: Any) -> Any:
        seen.append(own(self, *args))
        seen[-1].loss.register_hook(lambda gradient: seen.append(float(gradient)))
        return seen[-1]

    monkeypatch.setattr(Anchoring, "__call__", noted)
    trainer = make_anchored(loss, steps=1)
    prompts_of_pass: list[int] = []

    def count(_: Any, args: Any, given: dict[str, Any]) -> None:
        if given.get("logits_to_keep") == 1:
            prompts_of_pass.append(len(given["input_ids"]))

    trainer.plain_model.register_forward_pre_hook(count, with_kwargs=True)
    largest = preflight.largest_rows(trainer.train_dataset, PIXELS, 2)
    before = loss.state_dict()
    with loss.during(trainer):
        preflight.check_peak(trainer, largest, 9)
        trainer.loss_type = "bnpo"  # its micro-batches mix the groups
        preflight.check_peak(trainer, largest, 9)
    assert prompts_of_pass == [2, 8] and loss.state_dict() == before
    for anchored, gradient in (seen[:2], seen[2:]):
        assert anchored.count == 8 and anchored.inside == pytest.approx(1.0) and gradient == 0.5
        assert float(anchored.loss.detach()) > 0


def test_what_is_refused(make_anchored: Build, world: Path, tmp_path: Path, anchored: Path) -> None:
    for key in ("rl.constraints={anchoring: {tau: 0.5}}", "rl.monitor=[anchoring]"):
        with pytest.raises(UserError, match="depends on the prompt alone, so all rollouts of a group have one value"):
            check_configured(mini(world, key))
    for weight, options, reason in [
        (0.0, {}, "weight must be above 0"),
        (-1.0, {}, "weight must be above 0"),
        (1.0, {"loss": "l2"}, "loss: Input should be"),
        (1.0, {"layers": "first"}, "layers"),
        (1.0, {"floor": 1.0}, "floor"),
        (9.0, {"at_most": 1.0}, "weight at most `most`"),
        (1.0, {"at_most": 1.0, "lr": 0.0}, "lr above 0"),
        (1.0, {"at_moost": 1.0}, "at_most"),
    ]:
        with pytest.raises(UserError, match=reason):
            load("anchoring", weight, options)
    trainer = make_anchored(AnchoringLoss(1.0, layers=[9]), steps=1)
    with pytest.raises(UserError, match="layers 0 to 3"):
        trainer.train()
    trainer = make_anchored(AnchoringLoss(1.0), steps=1, out="compiled", tweak={"torch_compile": True})
    with pytest.raises(UserError, match="attention of a compiled model cannot be read"):
        trainer.train()
    assert trainer.state.global_step == 0
    trainer = make_anchored(AnchoringLoss(1.0), steps=1, out="none")
    rows = [{**json.loads(text), "boxes": None} for text in trainer.train_dataset.with_format(None)["sample"]]
    trainer.train_dataset = trainer.train_dataset.remove_columns("sample").add_column(
        "sample", list(map(json.dumps, rows))
    )
    with pytest.raises(UserError, match="no question has annotated boxes"):
        AnchoringLoss(1.0).check(trainer)
