"""Numbers measured on the policy: what a policy that looks and one that does not get, and that measuring changes no training."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.policy import adapters, backbone
from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.response import parse
from fgrpo.schema_base import Lora
from fgrpo.schema_rl import Probing
from fgrpo.types import Box, Sample
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem, load
from rewards.probes import Absent, Probes
from rl import train
from rl.dual import Constraint
from rl.probes import base
from rl.probes.attention import PROBE as ATTENTION
from rl.probes.base import Batch, Rollouts
from rl.probes.checks import check_questions
from rl.probes.counterfactual import PROBE
from rl.probes.passes import Passes
from rl.probes.trainer import _padded
from rl.scoring import RolloutScorer
from tests.rl.conftest import mini
from tests.rl.test_resumed import lines, linked, rollouts, same, weights
from tests.rl.test_shared_prefix import FIELDS, batch_of

MONITORS = "rl.monitor=[consistency,evidence_margin,control_margin,vision_dependence,attention_where_it_matters]"
LONG = "rl.max_response_length=60"


def context(**options: Any) -> RewardContext:
    return RewardContext(JudgeSet(None), mask="correct", min_pixels=784, max_pixels=12544, probing=Probing(**options))  # type: ignore[arg-type]


def replaced(make: Any, lengths: list[list[int]], policy_of: Callable[[int, set[int]], float]) -> tuple[Any, Any]:
    """A trainer with a stand-in for the policy (see `measured`), and a batch of questions with one picture."""
    trainer = make(steps=1, overrides=("rl.max_response_length=12",))
    made = batch_of(trainer, lengths, images=(1,))
    made["completion_ids"][:, 0] = torch.arange(len(made["completion_ids"]))

    def logps(model: Any, ids: Any, mask: Any, completion: int, batch_size: int, **fields: Any) -> Any:
        sizes = (fields["image_grid_thw"].prod(dim=-1)).tolist()
        found = []
        for row, pixels in zip(ids[:, -completion].tolist(), fields["pixel_values"].split(sizes), strict=True):
            blank = set((pixels.abs().sum(dim=1).view(-1, 4).sum(dim=1) == 0).nonzero()[:, 0].tolist())
            found.append([policy_of(row, blank)] * completion)
        return torch.tensor(found), None, None

    trainer._get_per_token_logps_and_entropies = logps
    return trainer, made


def measured(
    make: Any, world: Path, policy_of: Callable[[int, set[int]], float], looks: int | None = None, **options: Any
) -> list[Probes]:
    """Two rollouts of a question with one picture through the real passes, with a stand-in for the policy.

    `policy_of(row, cells)` is the log-probability of each token of a rollout from the cells of its picture that are blank. The
    first token of a rollout is its row, so that the stand-in knows which one it sees. Attention is the real policy's, or lies on
    the cell `looks` alone.
    """
    trainer, made = replaced(make, [[4, 4]], policy_of)
    (path,) = {s.images[0] for s in [Sample.from_dict(r) for r in read_jsonl(world / "rl.jsonl")][:1]}
    sample = Sample("vgr/train/0", (path,), "?", ("left", "right"), "left", (Box(28, 28, 56, 56),))  # cell 5 of 4 x 4
    text = "<think>t</think><answer>left</answer>"
    items = tuple(RewardItem(str(n), sample, parse(text)) for n in range(2))
    ids_BL = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    mask_BL = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
    batch = Batch(
        Rollouts(items, (text,) * 2, ((0,) * 4,) * 2, context(**options)),
        ids_BL,
        mask_BL,
        4,
        2,
        {k: made[k] for k in FIELDS},
    )
    passes = Passes(trainer, batch)
    if looks is not None:
        attend_only(trainer, passes.family, ids_BL[0], looks)
    shares = ATTENTION.measure(frozenset({"attention"}), batch, passes)
    needs = frozenset(("evidence", "controls", "patches"))
    drops = PROBE.measure(needs, batch, passes)
    return [Probes(answer=(1, 3), **one, **other) for one, other in zip(drops, shares, strict=True)]


def attend_only(trainer: Any, family: Any, ids_L: torch.Tensor, cell: int) -> None:
    """Make the layer that the probe reads attend to one cell of the picture, whatever it sees.

    All queries and that cell's key lie in the plane that rotary positions turn least; the other keys are 0.
    """
    config = trainer.plain_model.config.get_text_config()
    (layer,) = chosen_layers(config, "two_thirds")
    attention = getattr(trainer.plain_model.model, family.language).layers[layer].self_attn
    column = int((ids_L == family.image_token_id(trainer.plain_model.config)).nonzero()[cell])
    size = attention.head_dim

    def fixed(where: slice) -> Any:
        def hook(_: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            given = torch.zeros_like(out).view(*out.shape[:2], -1, size)
            given[:, where, :, [size // 2 - 1, size - 1]] = 20.0
            return given.view(out.shape)

        return hook

    attention.q_proj.register_forward_hook(fixed(slice(None)))
    attention.k_proj.register_forward_hook(fixed(slice(column, column + 1)))


def scores(name: str, probes: list[Probes], given: RewardContext) -> list[Any]:
    sample = Sample("vgr/train/0", (), "?", ("left", "right"), "left")
    items = [RewardItem("r", sample, parse("<think>t</think><answer>left</answer>"), probes=one) for one in probes]
    return asyncio.run(load(name)(items, given))  # type: ignore[arg-type]


def test_each_rollouts_image_is_changed_where_its_own_region_is(make: Any) -> None:
    trainer, made = replaced(make, [[4], [4], [4]], lambda row, blank: -float(sum(blank)))
    ids_BL = torch.cat([made["prompt_ids"], made["completion_ids"]], dim=1)
    mask_BL = torch.cat([made["prompt_mask"], made["completion_mask"]], dim=1)
    batch = Batch(Rollouts((), (), (), context()), ids_BL, mask_BL, 4, 2, {key: made[key] for key in FIELDS})
    regions = {row: (np.arange(16).reshape(4, 4) == cell,) for row, cell in ((2, 9), (0, 5))}
    found = Passes(trainer, batch).changed(regions)
    assert found[0].tolist() == [-5.0] * 4 and found[2].tolist() == [-9.0] * 4 and found[1].isnan().all()


def test_a_policy_that_reads_only_the_box_scores_one(make: Any, world: Path) -> None:
    probes = measured(make, world, lambda row, blank: -5.0 if 5 in blank else -0.1, controls=3)
    assert probes[0].evidence == pytest.approx((4.9,) * 4) and len(probes[0].controls or ()) == 3
    assert [s.value for s in scores("evidence_margin", probes, context())] == pytest.approx([1.0, 1.0])
    assert [s.value for s in scores("control_margin", probes, context())] == [0.5, 0.5]


def test_a_policy_that_reads_everything_but_the_box_scores_zero(make: Any, world: Path) -> None:
    probes = measured(make, world, lambda row, blank: -5.0 if blank - {5} else -0.1)
    assert [s.value for s in scores("evidence_margin", probes, context())] == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("looks", "score"), [(5, 1.0), (6, 0.0)])
def test_attention_of_a_policy_that_looks_only_at_one_cell(make: Any, world: Path, looks: int, score: float) -> None:
    """It reads the box, cell 5: attention there scores 1, attention beside it 0."""
    probes = measured(make, world, lambda row, blank: -5.0 if 5 in blank else -0.1, looks=looks)
    found = scores("attention_where_it_matters", probes, context())
    assert [s.value for s in found] == pytest.approx([score, score], abs=1e-4)


def test_a_blind_policy_is_at_one_half_and_has_no_attention_score(make: Any, world: Path) -> None:
    """Although its attention is measured: it depends on nothing."""
    probes = measured(make, world, lambda row, blank: -1.0)
    assert all(len(one.attention or ()) == 4 and min(one.attention) > 0 for one in probes)  # type: ignore[arg-type,type-var]
    blind = scores("attention_where_it_matters", probes, context())
    assert [(s.state, s.detail) for s in blind] == [("not_applicable", {"cause": "blind"})] * 2
    assert [s.value for s in scores("evidence_margin", probes, context())] == [0.5, 0.5]
    assert [s.value for s in scores("vision_dependence", probes, context())] == [0.0, 0.0]


def test_each_rollout_has_its_own_numbers(make: Any, world: Path) -> None:
    probes = measured(make, world, lambda row, blank: -1.0 - row * len(blank))
    assert [one.evidence for one in probes] == [(0.0,) * 4, (1.0,) * 4]
    share = np.array([one.patches for one in probes])[:, 0]
    assert share[0] == 0 and 0 < share[1] <= 16


def test_a_log_probability_that_is_not_finite_is_a_failure(make: Any, world: Path) -> None:
    probes = measured(make, world, lambda row, blank: float("nan") if blank and row else -1.0)
    assert isinstance(probes[1].evidence, Absent) and probes[1].evidence.failed
    assert isinstance(probes[1].controls, Absent) and probes[1].controls.failed
    states = [s.state for s in scores("evidence_margin", probes, context())]
    assert states == ["scored", "failed"]


def test_measuring_changes_no_training(world: Path, chain: Path) -> None:
    """Weights, rollouts and figures of a run with monitors are those of one without; its own figures are there."""
    plain = train.train(mini(world, LONG), linked(chain, "plain"))
    folder = train.train(mini(world, LONG, MONITORS), chain)
    assert same(weights(folder), weights(plain))
    more = [set(two) - set(one) for one, two in zip(lines(plain), lines(folder), strict=True)]
    assert all(key.split("/")[1] in MONITORS for keys in more for key in keys)
    for one, two in zip(lines(plain), lines(folder), strict=True):
        assert {key: two[key] for key in one} == one
    found = {key: [line[key] for line in lines(folder) if key in line] for key in set().union(*more)}
    print({key: np.round(values, 3).tolist() for key, values in sorted(found.items())})
    assert len(found["monitor/vision_dependence/mean"]) == 4 and min(found["monitor/vision_dependence/mean"]) > 0
    assert sum(found["monitor/evidence_margin/n"]) > 0 and all(
        0 <= m <= 1 for m in found["monitor/evidence_margin/mean"]
    )
    assert sum(found["monitor/attention_where_it_matters/n"]) > 0
    assert sum(found["cause/evidence_margin/wrong_answer"]) > 0 and sum(found["cause/evidence_margin/no_boxes"]) > 0
    timed = [line["seconds/probes"] for line in read_jsonl(folder / "metrics.jsonl")]
    assert len(timed) == 4 and min(timed) > 0
    assert not any("seconds/probes" in line for line in read_jsonl(plain / "metrics.jsonl"))


CONSTRAINED = ("rl.constraints.evidence_margin.tau=0.7", "rl.scheduler=constant", "rl.warmup_ratio=0", LONG, MONITORS)


def test_a_resumed_run_with_a_measured_constraint_equals_an_undisturbed_one(world: Path, chain: Path) -> None:
    whole = train.train(mini(world, *CONSTRAINED, "rl.max_steps=4"), linked(chain, "whole"))
    folder = train.train(mini(world, *CONSTRAINED, "rl.max_steps=2"), chain)
    train.train(mini(world, *CONSTRAINED, "rl.max_steps=4"), chain)
    assert same(weights(folder), weights(whole)) and lines(folder) == lines(whole)
    assert rollouts(folder) == rollouts(whole)
    last = lines(folder)[-1]
    assert last["lambda/evidence_margin"] != 1.0, "its multiplier moves"
    detail = [json.loads(d) for t in rollouts(folder).values() for d in t["evidence_margin/detail"].to_pylist()]
    assert any("evidence" in one for one in detail)


class Caught:
    """Notes the batch and the passes of each measurement, and counts the forward passes of the policy."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[Batch] = []
        self.passes: list[Passes] = []
        self.made: list[int] = []
        inner, own = base.measure, Passes._pass

        def measure(needs: Any, batch: Any, passes: Any, tokenizer: Any) -> Any:
            self.batches.append(batch)
            self.passes.append(passes)
            return inner(needs, batch, passes, tokenizer)

        def passed(this: Any, rows: Any, cells: Any) -> Any:
            self.made.append(len(rows))
            return own(this, rows, cells)

        monkeypatch.setattr(base, "measure", measure)
        monkeypatch.setattr(Passes, "_pass", passed)


def build(make: Any, world: Path, *overrides: str, steps: int = 2, **more: Any) -> Any:
    cfg = mini(world, LONG, "rl.constraints.evidence_margin.tau=0.7", *overrides)
    given = train.make_scorer(cfg, backbone.default().pixels._replace(min_pixels=784, max_pixels=12544)).context
    scorer = RolloutScorer(["evidence_margin"], given, ["vision_dependence"])
    return make(
        scorer.reward_funcs(), [Constraint("evidence_margin", 0.7, min_applicable=1)], scorer=scorer, steps=steps,
        overrides=(LONG, *overrides), tweak={"save_strategy": "no", **more.pop("tweak", {})}, **more,
    )  # fmt: skip


def test_old_log_probabilities_are_used_where_they_exist(make: Any, world: Path, monkeypatch: Any) -> None:
    """With two updates per generation TRL makes an old pass; then a batch takes one pass for each changed image."""
    caught = Caught(monkeypatch)
    build(make, world, "rl.global_batch=1", "rl.micro_batch=4").train()
    (batch,), (passes,) = caught.batches, caught.passes
    assert batch.original_BT is not None and batch.reference_BT is not None
    assert sum(n > 0 for n in caught.made) == 1 + 2 + 1  # evidence, two controls, patches
    fresh = Passes(
        passes.trainer, Batch(batch.rollouts, batch.ids_BL, batch.mask_BL, batch.completion, 8, batch.fields)
    )
    assert fresh.original([]).isnan().all()


@pytest.mark.parametrize("kl", ["0.01", "0.0"])
def test_a_batch_without_old_log_probabilities(make: Any, world: Path, monkeypatch: Any, kl: str) -> None:
    """One update per generation: TRL makes no old pass, and without a KL penalty none at all."""
    caught = Caught(monkeypatch)
    trainer = build(make, world, f"rl.kl_coef={kl}", steps=1)
    seen: list[Any] = []
    as_trl = type(trainer).batch_of
    monkeypatch.setattr(type(trainer), "batch_of", lambda self, *args: seen.append(as_trl(self, *args)) or seen[-1])
    trainer.train()
    (batch,) = caught.batches
    assert batch.original_BT is None and (batch.reference_BT is None) == (kl == "0.0") == bool(seen)
    assert (
        sum(n > 0 for n in caught.made) == 1 + 1 + 2 + 1 + 1
    )  # the image itself for rollouts with boxes, then for the others


def test_a_batch_made_here_is_trls(make: Any, world: Path, monkeypatch: Any) -> None:
    trainer = build(make, world, steps=1)
    pairs: list[Any] = []
    inner = type(trainer).measure_probes

    def both(self: Any, prompts: Any, completion_ids: Any) -> None:
        pairs.append((self._seen.first, self.batch_of(prompts, completion_ids)))
        inner(self, prompts, completion_ids)

    monkeypatch.setattr(type(trainer), "measure_probes", both)
    trainer.train()
    ((theirs, ours),) = pairs
    assert theirs["completion"] == ours["completion"] and theirs["most"] == ours["most"]
    assert torch.equal(theirs["mask_BL"], ours["mask_BL"])
    assert torch.equal(theirs["ids_BL"] * theirs["mask_BL"], ours["ids_BL"] * ours["mask_BL"])
    for key in FIELDS:
        one, two = theirs["fields"][key], ours["fields"][key]
        assert one == two if isinstance(one, list) else torch.equal(one, two.to(one)), key


def test_with_adapters_the_reference_pass_is_not_taken_for_the_policys(
    make: Any, world: Path, monkeypatch: Any
) -> None:
    """The reference is the policy with its adapters off."""
    caught = Caught(monkeypatch)
    lora = adapters.lora_config(Lora(rank=4, alpha=8, dropout=0.0), backbone.default())
    trainer = build(make, world, steps=1, peft_config=lora)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    before: list[Any] = []
    inner = base.measure

    def measure(needs: Any, batch: Any, passes: Any, tokenizer: Any) -> Any:
        rows = list(range(len(batch.ids_BL)))
        before.append((passes.original(rows).clone(), batch.reference_BT, passes.changed({})))
        return inner(needs, batch, passes, tokenizer)

    monkeypatch.setattr(base, "measure", measure)
    trainer.train()
    ((policy, reference, _),) = before
    known = caught.batches[0].mask_BL[:, -policy.shape[1] :].bool()
    assert caught.batches[0].original_BT is None and (policy - reference)[known].abs().max() > 1e-2


def test_questions_without_boxes_are_counted_or_refused(world: Path) -> None:
    samples = [Sample.from_dict(row) for row in read_jsonl(world / "rl.jsonl")]
    rewards = [load(name) for name in ("task", "evidence_margin", "vision_dependence")]
    counts: Counter[str] = Counter()
    check_questions(rewards, samples, context(), counts)
    assert counts == {"questions without an annotated region (no_boxes)": 6}
    without = [s for s in samples if not s.boxes]
    with pytest.raises(
        UserError, match=r"evidence_margin need annotated boxes, and none of the 6 questions.*no_boxes: 6"
    ):
        check_questions(rewards, without, context(), Counter())
    check_questions(rewards[::2], without, context(), Counter())
    other = RewardContext(JudgeSet(None), boxes_from=("sat",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"boxes_not_used: 6"):
        check_questions(rewards, samples, other, Counter())


def test_boxes_that_leave_no_room_and_too_few_controls_are_refused(world: Path) -> None:
    (row,) = list(read_jsonl(world / "rl.jsonl"))[:1]
    whole = Sample(row["id"], tuple(row["images"][:1]), "?", (), "", (Box(0, 0, 1, 1, "unit"),))
    with pytest.raises(UserError, match="no control region fits"):
        check_questions([load("evidence_margin")], [whole], context(), Counter())
    for name in ("control_margin", "ced"):
        with pytest.raises(UserError, match=rf"{name} compares .*rl\.probes\.controls must be at least 2; it is 1"):
            check_questions([load(name)], [whole], context(controls=1), Counter())


def test_a_completion_without_a_token_is_a_row_of_padding() -> None:
    ids, mask = _padded([[], [1, 2]])
    assert (
        ids.dtype == mask.dtype == torch.long and ids.tolist() == [[0, 0], [1, 2]] and mask.tolist() == [[0, 0], [1, 1]]
    )
    assert _padded([[], [1, 2]], left=True)[0].dtype == _padded([[]])[0].dtype == torch.long


def test_a_processor_that_does_not_normalise_has_no_mean_colour_at_zero() -> None:
    processor = SimpleNamespace(image_processor=SimpleNamespace(do_normalize=False))
    trainer: Any = SimpleNamespace(known_family=backbone.default, processing_class=processor)
    for fill in ("zero", "ring"):
        with pytest.raises(UserError, match=rf"fill: {fill} .*does not normalise .*use black"):
            PROBE.check(trainer, context(fill=fill))
    PROBE.check(trainer, context(fill="black"))
    processor.image_processor.do_normalize = True
    PROBE.check(trainer, context())


def test_a_need_that_nothing_measures_is_named() -> None:
    with pytest.raises(UserError, match=r"'evidnce'.*did you mean 'evidence'"):
        base.chosen(["evidnce"])
    assert [part for _, part in base.chosen(["patches"])] == [{"patches"}]


def test_without_the_trainers_numbers_scoring_stops(world: Path) -> None:
    scorer = RolloutScorer(["evidence_margin"], context())
    scorer._pending = object()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="nothing was measured"):
        asyncio.run(scorer.reward_funcs()[1](prompts=["p"]))
