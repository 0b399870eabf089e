"""Hand-overs of the RL stage: YAML -> constraints, trainer, scorer and rewards; scores -> metrics.jsonl and rollouts; preflight.

The stage itself runs wherever possible. Rewards are replaced in their own modules by ones whose scores are written down here,
so that every figure of metrics.jsonl can be computed by hand.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import PrinterCallback, Trainer

from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import loading
from fgrpo.response import parse
from fgrpo.types import Score
from rewards import base as reward_base
from rl import data, train
from rl.advantage import combine
from rl.dry_run import DryRun
from rl.preflight import Preflight
from rl.trainer import FaithfulGRPOTrainer
from tests.rl.conftest import OVERRIDES, build_trainer, by_other_weights, earlier_stages, mini, scattered, scorer

NAMES = ("consistency", "spatial_grounding", "semantic_grounding")
PIXELS = PixelBounds(784, 12544, 28)


# --- internal names of the stage, in one place --------------------------------------------------------------------------


def thresholds(values: Mapping[str, float]) -> str:
    """The override that gives constraints these thresholds."""
    return "rl.constraints={" + ", ".join(f"{name}: {{tau: {tau}}}" for name, tau in values.items()) + "}"


def without(*names: str) -> str:
    """The override that removes these constraints."""
    return "rl.constraints={" + ", ".join(f"{name}: null" for name in names) + "}"


def dual_of(cfg: config.Config) -> dict[str, Any]:
    """What the stage makes of the dual's configuration: its state, which names every field."""
    return train.make_dual(cfg).state_dict()


def options_of(trainer: Any) -> dict[str, Any]:
    """The options with which a trainer was built."""
    names = ("coupling", "masked", "baseline", "whiten", "max_failed_share")
    return {name: getattr(trainer, name) for name in names}


def preflight(trainer: Any, questions: Path, cfg: config.Config, pixels: PixelBounds = PIXELS, **more: Any) -> Any:
    """The checks before the first step, for this trainer."""
    check = Preflight(questions, pixels, more.get("forbidden", loading.forbidden_token_ids(trainer._tokenizer)), cfg)
    check.trainer = trainer
    return check


def begin(check: Any, step: int = 0, last: int = 1) -> None:
    """What happens when training begins at `step`."""
    check.on_train_begin(None, SimpleNamespace(global_step=step, max_steps=last), None)


def generation(trainer_class: Any) -> str:
    """Who generates for a trainer, or for one that is yet to be built."""
    kind = getattr(trainer_class, "func", trainer_class)
    return {"InProcessTrainer": "in process", "FaithfulGRPOTrainer": "TRL", "VLLMTrainer": "vLLM"}[kind.__name__]


class Built(Exception):
    """Carries a trainer that is ready to train."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, chain: Path) -> Callable[..., Any]:
    """The trainer that the stage builds from a configuration, stopped before its first step."""

    def stop(self: Any, *args: Any, **more: Any) -> None:
        raise Built(self)

    def build(cfg: config.Config) -> Any:
        monkeypatch.setattr(Trainer, "train", stop)
        with pytest.raises(Built) as stopped:
            train.train(cfg, chain)
        return stopped.value.args[0]

    return build


# --- YAML -> constraints ------------------------------------------------------------------------------------------------


def test_the_kind_of_dual_and_its_gains_reach_the_multipliers() -> None:
    state = dual_of(config.load("mini", "fgrpo", ["rl.dual={kind: pid, lam_init: 1.5, kp: 0.6, kd: 0.2}"]))
    assert (state["kind"], state["kp"], state["kd"]) == ("pid", 0.6, 0.2)
    assert {name: one["lam"] for name, one in state["states"].items()} == dict.fromkeys(NAMES, 1.5)


def test_the_papers_thresholds_reach_the_constraints() -> None:
    """Table 6; and the constraints come in the order of the method's file."""
    state = dual_of(config.load("paper-7b", "fgrpo"))
    assert [(c["reward"], c["tau"]) for c in state["constraints"]] == [
        ("consistency", 0.95), ("spatial_grounding", 0.65), ("semantic_grounding", 0.95),
    ]  # fmt: skip
    assert {(c["lam_init"], c["lr"], c["lam_max"]) for c in state["constraints"]} == {(1.0, 0.05, 5.0)}


@pytest.mark.parametrize(
    ("method", "kind"), [("fgrpo", "adaptive"), ("fgrpo-consistency", "adaptive"), ("fgrpo-fixed", "fixed")]
)
def test_a_methods_file_decides_whether_multipliers_move(method: str, kind: str) -> None:
    assert dual_of(config.load("mini", method, ["rl.constraints.consistency.tau=0.9"]))["kind"] == kind


# --- YAML -> trainer and scorer -------------------------------------------------------------------------------------------


def test_options_of_the_yaml_are_options_of_the_trainer(world: Path, built: Callable[..., Any]) -> None:
    options = (
        "rl.masked=zero",
        "rl.baseline=batch",
        "rl.whiten=token",
        "rl.max_failed_share=0.3",
        without("consistency"),
    )
    trainer = built(mini(world, *options, "rl.max_steps=3", "rl.rollout_batch=4", "seed=5"))
    assert options_of(trainer) == {
        "coupling": None, "masked": "zero", "baseline": "batch", "whiten": "token", "max_failed_share": 0.3,
    }  # fmt: skip
    assert [c.reward for c in trainer.dual.constraints] == ["spatial_grounding", "semantic_grounding"]
    assert trainer.reward_func_names == ["task", "spatial_grounding", "semantic_grounding"]
    assert list(trainer.scorer.names) == trainer.reward_func_names
    assert list(trainer.scorer.monitored) == ["consistency"]
    assert trainer.args.max_steps == 4  # two updates a generation: 3 becomes 4
    assert len(trainer.train_dataset) == 4 / 2 * 4  # generations, of four prompts
    order = [json.loads(text)["id"] for text in trainer.train_dataset.with_format(None)[:]["sample"]]
    assert order == [f"vgr/train/{n}" for n in data.order(12, 8, 5)]
    rows = trainer.train_dataset.with_format(None)[:]
    for prompt, images, text in zip(rows["prompt"], rows["images"], rows["sample"], strict=True):
        question = json.loads(text)
        assert question["question"] in prompt[0]["content"] and images == question["images"]
    kinds = [type(c).__name__ for c in trainer.callback_handler.callbacks]
    assert PrinterCallback.__name__ not in kinds and "Preflight" in kinds
    visual = trainer.model.model.visual
    assert not any(p.requires_grad for p in visual.parameters())  # and the projector with it
    assert any(p.requires_grad for p in trainer.model.parameters())
    assert trainer.args.output_dir.endswith("rl-fgrpo/checkpoints")
    assert set(loading.forbidden_token_ids(trainer._tokenizer)) <= set(trainer.forbidden_ids())


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_a_coupled_reward_reaches_the_trainer(world: Path, built: Callable[..., Any], kind: str) -> None:
    cfg = config.load("mini", f"grpo-{kind}", [f"data.root={world}", "rl.rollout_batch=2", "rl.global_batch=2",
                                               "rl.group_size=4", "rl.micro_batch=8", "rl.max_steps=1"])  # fmt: skip
    trainer = built(cfg)
    assert options_of(trainer)["coupling"] == kind and not trainer.dual.constraints
    signals = NAMES if kind == "additive" else ("consistency", "semantic_grounding")
    assert trainer.reward_func_names == ["task", *signals]


def test_which_part_of_the_visual_module_is_frozen(world: Path, built: Callable[..., Any]) -> None:
    trainer = built(mini(world, "rl.freeze_projector=false", "rl.max_prompt_length=60", "rl.max_steps=6"))
    visual = trainer.model.model.visual
    assert {n.split(".")[0] for n, p in visual.named_parameters() if p.requires_grad} == {"merger"}
    questions = {json.loads(text)["id"] for text in trainer.train_dataset.with_format(None)[:]["sample"]}
    assert 0 < len(questions) < 12  # a pass over all questions, and some of their prompts are longer than that


def test_a_box_tag_that_may_not_be_sampled_ends_the_stage_before_the_model_loads(
    world: Path, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **more: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_policy", load)
    with pytest.raises(UserError, match=r"requests <\|box_start\|>"):
        train.train(mini(world, "policy.box_tag=box_start"), chain)


def test_the_configured_engine_generates(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rl import vllm_rollouts

    monkeypatch.setattr(vllm_rollouts, "require_vllm", lambda: None)
    for overrides, engine in (
        ([], "in process"), (["rl.deepspeed=configs/deepspeed/zero3.json"], "TRL"),
        (["rl.rollout_engine=vllm-server"], "vLLM"), (["rl.rollout_engine=vllm-colocate"], "vLLM"),
    ):  # fmt: skip
        assert generation(train.trainer_of(mini(world, *overrides))) == engine


def test_one_reward_function_needs_no_list(make, world: Path) -> None:
    full = make(steps=1)
    plain = FaithfulGRPOTrainer(
        full.model, scorer("task", scattered(1)), full.args, full.train_dataset, processing_class=full.processing_class
    )
    assert (plain.reward_func_names, plain.dual.weights()) == (["task"], [1.0])


def test_a_drop_in_has_the_papers_options(ready: Any) -> None:
    assert options_of(ready) == {
        "coupling": None, "masked": "exclude", "baseline": "group", "whiten": "sequence", "max_failed_share": 1.0,
    }  # fmt: skip


def test_the_command_line_reaches_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(train, "train", lambda *args: seen.append(args))
    arguments = [
        "--preset",
        "mini",
        "--method",
        "fgrpo-fixed",
        "--runs",
        "elsewhere",
        "--set",
        "seed=7",
        "rl.max_steps=3",
    ]
    train.main(arguments)
    ((cfg, root),) = seen
    assert (cfg.preset, cfg.method, cfg.seed, cfg.rl.max_steps, root) == ("mini", "fgrpo-fixed", 7, 3, "elsewhere")


# --- options -> what the rewards are given --------------------------------------------------------------------------------


class Written:
    """A reward whose scores are written down: `table[step][row]` is a number, None (not applicable) or "failed"."""

    def __init__(self, name: str, table: Sequence[Sequence[Any]]) -> None:
        self.name, self.table = name, table
        self.report = reward_base.load(name).report  # type: ignore[attr-defined]
        self.contexts: list[Any] = []
        self.items: list[Any] = []

    async def __call__(self, items: Sequence[Any], context: Any) -> list[Score]:
        step = len(self.contexts)
        self.contexts.append(context)
        self.items.append(tuple(items))
        return [self._score(value, row) for row, value in enumerate(self.table[step % len(self.table)])]

    def _score(self, value: Any, row: int) -> Score:
        if value == "failed":
            return Score.failure("endpoint gone" if row else "time-out")
        if isinstance(value, tuple):  # the task reward's two parts
            return Score.of(sum(value), format=value[0], accuracy=value[1])
        return Score.not_applicable("not judged") if value is None else Score.of(value)


def exchange(patch: pytest.MonkeyPatch, tables: Mapping[str, Sequence[Sequence[Any]]]) -> dict[str, Written]:
    """Exchange rewards for written ones."""
    rewards = {name: Written(name, table) for name, table in tables.items()}
    for name, reward in rewards.items():
        patch.setattr(importlib.import_module(f"rewards.{name}"), "REWARD", reward)
    return rewards


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Written]]:
    """`exchange` for one test."""
    return lambda **tables: exchange(monkeypatch, tables)


def test_rewards_are_given_the_options_of_training(world: Path, chain: Path, tmp_path: Path, written: Any) -> None:
    """Correct answers alone are judged, by the training judge; boxes, pixels and frame are those of the configuration."""
    rewards = written(task=[[(1, 1)] * 8], **{name: [[0.5] * 8] for name in NAMES})
    (tmp_path / "verdicts.jsonl").touch()
    judge = f"judges.training={{backend: replay, model: {tmp_path / 'verdicts.jsonl'}}}"
    train.train(mini(world, judge, "data.boxes_from=[vgr, sat]", "rl.box_normaliser=gt", "rl.max_steps=1"), chain)
    for reward in rewards.values():
        (context,) = reward.contexts
        assert context.mask == "correct" and context.judges.name == "replay"
        assert (context.boxes_from, context.box_normaliser) == (("vgr", "sat"), "gt")
        assert (context.min_pixels, context.max_pixels, context.patch_factor) == PIXELS  # the policy's processor's
        assert (context.box_tag, context.box_frame) == ("bbox", "model")
        (items,) = reward.items
        assert [item.rollout_id.split("/", 3)[:3] for item in items] == [["000000", "0", f"{n:04d}"] for n in range(8)]
        assert all(item.rollout_id.endswith(item.sample.id) for item in items)
        assert len({item.sample.id for item in items[:4]}) == len({item.sample.id for item in items[4:]}) == 1


# --- scores -> metrics.jsonl and rollouts: a batch worked out by hand -----------------------------------------------------

BATCHES = {
    "task": [
        [(1, 1), (1, 0), (1, 1), (0, 1), (1, 0), (1, 1), (0, 1), (1, 0)],
        [(1, 1), (1, 0)] * 4,
    ],
    "consistency": [[1, 0, 1, 1, None, 1, 1, None], [1, 1, 1, 1, 1, 1, 1, 0]],
    "spatial_grounding": [[0.25, 0.5, 0.5, 0.75, "failed", 1, 0.75, 0.25], [0.5] * 8],
    "semantic_grounding": [[None, None, 0.5, 1, None, "failed", "failed", None], [None, 1, 0, 1, 0, 1, 0, 1]],
}  # two generations of four prompts with two rollouts each
BY_HAND = (
    "rl.group_size=2", "rl.rollout_batch=4", "rl.global_batch=4", "rl.max_steps=2", "rl.max_failed_share=0.5",
    "rl.dual={lr: 0.5, lam_init: 1.0, lam_max: 1.05, min_applicable: 3}",
)  # fmt: skip
TAU = thresholds({"consistency": 0.95, "spatial_grounding": 0.6, "semantic_grounding": 0.5})


@pytest.fixture(scope="module")
def lines(world: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    """metrics.jsonl of the two steps, and the run's folder."""
    root = earlier_stages(tmp_path_factory.mktemp("by-hand"), world, policy)
    with pytest.MonkeyPatch.context() as patch:
        exchange(patch, BATCHES)
        folder = train.train(mini(world, *BY_HAND, TAU), root)
    return list(read_jsonl(folder / "metrics.jsonl")), folder


def test_every_logged_figure_of_a_batch_worked_by_hand(lines: tuple[list[dict[str, Any]], Path]) -> None:
    first, second = lines[0]
    expected: dict[str, float | None] = {
        "step": 1, "accuracy": 5 / 8, "format": 6 / 8, "inconsistency": 1 / 6, "failed": 3,
        "reward": (11 + 5 + 4 + 1.5) / 8,  # the sums of the four columns, each weighed by 1
        "task/mean": 11 / 8,
        "lambda/consistency": 1.0, "lambda/spatial_grounding": 1.0, "lambda/semantic_grounding": 1.0,
        # consistency: five of six; one pair differs; 0.5 x (0.95 - 5/6) leads past the bound of 1.05
        "constraint/consistency/mean": 5 / 6, "constraint/consistency/n": 6, "constraint/consistency/mixed_share": 1 / 4,
        "constraint/consistency/failed": 0, "constraint/consistency/violation": 0.95 - 5 / 6,
        "constraint/consistency/moved": 1, "constraint/consistency/saturated": 1, "constraint/consistency/at_bound": 1,
        # spatial grounding: 4/7; three pairs differ; a step of 0.5 x (0.6 - 4/7) = 1/70, and 0.05 - 1/70 is 2.5 more
        "constraint/spatial_grounding/mean": 4 / 7, "constraint/spatial_grounding/n": 7,
        "constraint/spatial_grounding/mixed_share": 3 / 4, "constraint/spatial_grounding/failed": 1,
        "constraint/spatial_grounding/violation": 0.6 - 4 / 7, "constraint/spatial_grounding/moved": 1, "constraint/spatial_grounding/saturated": 0,
        "constraint/spatial_grounding/at_bound": 0, "constraint/spatial_grounding/steps_to_bound": 3,
        # semantic grounding: two scores are too few for a step
        "constraint/semantic_grounding/mean": 3 / 4, "constraint/semantic_grounding/n": 2,
        "constraint/semantic_grounding/mixed_share": 1 / 4, "constraint/semantic_grounding/failed": 2,
        "constraint/semantic_grounding/violation": 0.5 - 3 / 4, "constraint/semantic_grounding/moved": 0, "constraint/semantic_grounding/saturated": 0,
        "constraint/semantic_grounding/at_bound": 0,
    }  # fmt: skip
    assert {key: first.get(key) for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}
    # a pair that differs has the normalised scores ±1/√2, whatever the gap: the shares are those of the pairs, 3 : 1 : 3 : 1
    shares = ["task/share", *(f"constraint/{name}/share" for name in NAMES)]
    assert [first[key] for key in shares] == pytest.approx([3 / 8, 1 / 8, 3 / 8, 1 / 8], abs=2e-3)
    texts = pd.read_parquet(lines[1] / "rollouts" / "000001.parquet")["text"]
    assert first["boxes_dropped"] == sum(parse(text).dropped_boxes for text in texts)
    others = {key for key in first if key.startswith(("lambda/", "constraint/", "task/", "monitor/"))}
    assert others <= {*expected, *shares}  # nothing is logged that is not checked here
    assert (second["step"], second["lambda/consistency"]) == (2, 1.05)
    assert second["lambda/spatial_grounding"] == pytest.approx(1 + 1 / 70)
    assert second["lambda/semantic_grounding"] == 1.0
    assert (second["constraint/consistency/at_bound"], second["constraint/consistency/saturated"]) == (2, 1)
    assert second["constraint/spatial_grounding/mixed_share"] == 0
    assert (second["accuracy"], second["format"], second["failed"]) == (1 / 2, 1, 0)


def test_the_manifest_counts_the_questions_and_keeps_the_last_multipliers(
    lines: tuple[list[dict[str, Any]], Path],
) -> None:
    manifest = json.loads((lines[1] / "manifest.json").read_text())
    assert manifest["counts"]["questions"] == 12
    assert set(manifest["final_lambda"]) == set(NAMES) and manifest["final_lambda"]["consistency"] == 1.05
    assert (lines[1] / "final" / "config.json").is_file()


def test_a_masked_score_may_count_as_zero_and_a_failed_one_never(world: Path, chain: Path, written: Any) -> None:
    """Consistency differs in three pairs then; spatial grounding not in the third, where one of the two scores has failed."""
    written(**BATCHES)
    folder = train.train(mini(world, *BY_HAND, TAU, "rl.masked=zero", "rl.max_steps=1"), chain)
    (line,) = read_jsonl(folder / "metrics.jsonl")
    shares = [line["task/share"], *(line[f"constraint/{name}/share"] for name in NAMES)]
    assert shares == pytest.approx([3 / 10, 3 / 10, 3 / 10, 1 / 10], abs=2e-3)
    means = {"consistency": 5 / 6, "spatial_grounding": 4 / 7, "semantic_grounding": 3 / 4}  # Eq. 5 has no zeros
    assert {n: line[f"constraint/{n}/mean"] for n in NAMES} == {n: pytest.approx(v) for n, v in means.items()}


def test_the_seconds_of_a_step_are_those_of_its_parts(lines: tuple[list[dict[str, Any]], Path]) -> None:
    for line in lines[0]:
        parts = {key.removeprefix("seconds/"): line[key] for key in line if key.startswith("seconds/")}
        total = parts.pop("step")
        assert set(parts) == {"generation", "judging", "logprobs", "update"} and min(parts.values()) >= 0
        assert sum(parts.values()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "rewards"),
    [("additive", [3.25, 1.5, 4, 3.75, None, None, None, 1.25]), ("multiplicative", [2, 0, 1, 1, 1, None, None, 1])],
)
def test_a_coupled_reward_worked_by_hand(
    world: Path, chain: Path, written: Any, kind: str, rewards: list[float | None]
) -> None:
    """Sum of four columns, or product of three; what does not apply adds or gates nothing, a failure leaves no reward."""
    written(**BATCHES)
    more = [f"data.root={world}", *OVERRIDES, *BY_HAND, "rl.max_steps=1"]
    folder = train.train(config.load("mini", f"grpo-{kind}", more), chain)
    (line,) = read_jsonl(folder / "metrics.jsonl")
    known = [reward for reward in rewards if reward is not None]
    assert line["reward"] == pytest.approx(sum(known) / len(known))
    assert not [key for key in line if key.startswith("lambda/") or key.endswith("/share")]
    means = {"consistency": 5 / 6, "semantic_grounding": 3 / 4}
    assert {n: line[f"constraint/{n}/mean"] for n in means} == {n: pytest.approx(v) for n, v in means.items()}
    rows = pd.read_parquet(folder / "rollouts" / "000001.parquet").to_dict("list")
    reward_N1 = torch.tensor([[math.nan if reward is None else float(reward)] for reward in rewards])
    assert rows["advantage"] == pytest.approx(combine(reward_N1, torch.ones(1), 2).tolist(), abs=1e-5)


def test_rollouts_are_filed_with_their_own_scores_and_advantages(lines: tuple[list[dict[str, Any]], Path]) -> None:
    weights = [[1.0] * 4, [1.0, 1.05, 1 + 1 / 70, 1.0]]
    for step in range(2):
        rows = pd.read_parquet(lines[1] / "rollouts" / f"{step + 1:06d}.parquet").to_dict("list")
        assert rows["step"] == [step + 1] * 8
        columns = []
        for name, table in BATCHES.items():
            values = [sum(v) if isinstance(v, tuple) else v for v in table[step]]
            states = {None: "not_applicable", "failed": "failed"}
            assert rows[f"{name}/state"] == [states.get(v, "scored") for v in values], name
            numbers = [math.nan if v in states else float(v) for v in values]
            assert rows[name] == pytest.approx(numbers, nan_ok=True), name
            columns.append(numbers)
        reasons = [
            {"failed": "endpoint gone", None: "not judged"}.get(v, "") for v in BATCHES["semantic_grounding"][step]
        ]
        assert rows["semantic_grounding/reason"] == reasons
        details = [json.loads(text) for text in rows["task/detail"]]
        assert [(d["format"], d["accuracy"]) for d in details] == BATCHES["task"][step]
        scores_NK = torch.tensor(columns).T
        adv_N = combine(scores_NK, torch.tensor(weights[step]), 2)
        assert rows["advantage"] == pytest.approx(adv_N.tolist(), abs=1e-5)


def test_a_reward_that_is_only_watched_is_logged_apart_and_weighs_nothing(
    world: Path, chain: Path, written: Any
) -> None:
    written(**BATCHES)
    options = (*BY_HAND, TAU, without("spatial_grounding", "semantic_grounding"), "rl.max_steps=1")
    (line,) = read_jsonl(train.train(mini(world, *options), chain) / "metrics.jsonl")
    expected = {
        "monitor/spatial_grounding/mean": 4 / 7, "monitor/spatial_grounding/n": 7, "monitor/semantic_grounding/mean": 3 / 4,
        "monitor/semantic_grounding/n": 2, "failed": 3, "inconsistency": 1 / 6, "reward": (11 + 5) / 8,
    }  # fmt: skip
    assert {key: line.get(key) for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}
    weighed = {key.split("/")[1] for key in line if key.startswith(("lambda/", "constraint/"))}
    assert weighed == {"consistency"}
    assert [line["task/share"], line["constraint/consistency/share"]] == pytest.approx([3 / 4, 1 / 4], abs=2e-3)


# --- failed judgements ----------------------------------------------------------------------------------------------------


def failing(name: str, failures: int) -> dict[str, list[list[Any]]]:
    """Eight rollouts: of this reward three are not applicable, and so many of the other five fail; the others never fail."""
    tables: dict[str, list[list[Any]]] = {n: [[0.5] * 8] for n in NAMES}
    tables[name] = [[None] * 3 + ["failed"] * failures + [1.0] * (5 - failures)]
    return {"task": [[(1, 1), (1, 0)] * 4], **tables}


@pytest.mark.parametrize("name", NAMES)
def test_each_rewards_failures_are_held_to_its_own_share(world: Path, chain: Path, written: Any, name: str) -> None:
    """Two of five are 40%, though of 24 judgements they are 8%."""
    written(**failing(name, 3))
    cfg = mini(world, "rl.max_failed_share=0.4", "rl.max_steps=1")
    with pytest.raises(
        UserError, match=rf"step 1: 3 of 5 judgements of '{name}' failed \(allowed: 40.0%\): endpoint gone"
    ):
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    assert not list(folder.glob("checkpoints/checkpoint-*")) and not (folder / "done").exists()


def test_failures_within_the_share_are_counted_and_trained_without(world: Path, chain: Path, written: Any) -> None:
    written(**failing("spatial_grounding", 2))
    cfg = mini(world, "rl.max_failed_share=0.4", "rl.max_steps=1")
    (line,) = read_jsonl(train.train(cfg, chain) / "metrics.jsonl")
    failed = {n: line[f"constraint/{n}/failed"] for n in NAMES}
    assert failed == {n: 2 if n == "spatial_grounding" else 0 for n in NAMES} and line["failed"] == 2


@pytest.mark.parametrize(("share", "failures", "stops"), [(0.01, 1, False), (0.01, 2, True), (0, 1, True)])
def test_one_failure_is_allowed_unless_the_share_is_zero(
    world: Path, chain: Path, written: Any, share: float, failures: int, stops: bool
) -> None:
    written(**failing("consistency", failures))
    cfg = mini(world, f"rl.max_failed_share={share}", "rl.max_steps=1")
    if stops:
        with pytest.raises(UserError, match=rf"{failures} of 5 judgements of 'consistency' failed"):
            train.train(cfg, chain)
    else:
        assert (train.train(cfg, chain) / "done").exists()


def test_the_last_good_checkpoint_stays_as_it_is(world: Path, chain: Path, written: Any, monkeypatch) -> None:
    """The checkpoint of step 1 is there when step 2 fails, and no other is written."""
    saved: list[int] = []
    real = FaithfulGRPOTrainer._save_checkpoint

    def save(self: Any, *args: Any, **more: Any) -> None:
        saved.append(self.state.global_step)
        real(self, *args, **more)

    monkeypatch.setattr(FaithfulGRPOTrainer, "_save_checkpoint", save)
    written(**{**failing("consistency", 0), "consistency": [[1.0] * 8, ["failed"] * 8]})
    with pytest.raises(UserError, match="step 2: 8 of 8 judgements of 'consistency' failed"):
        train.train(mini(world, "rl.save_steps=1", "rl.max_steps=3"), chain)
    assert saved == [1]
    state = json.loads((chain / "mini/rl-fgrpo/checkpoints/checkpoint-1/duals.json").read_text())["states"]
    assert state["consistency"]["lam"] == pytest.approx(1 - 0.05 * (1 - 0.95))


def test_the_commonest_reason_of_that_reward_is_named(world: Path, chain: Path, written: Any) -> None:
    tables = failing("consistency", 4)
    tables["consistency"][0] = ["failed", "failed", "failed", *[1.0] * 5]  # row 0 timed out, two endpoints were gone
    written(**tables)
    with pytest.raises(UserError, match=r"3 of 8 judgements of 'consistency' failed.*: endpoint gone;"):
        train.train(mini(world, "rl.max_steps=1"), chain)


# --- preflight: each check, reached from the callback ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ready(world: Path, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that generates in this process; checks leave nothing behind in it."""
    return build_trainer(world, policy, tmp_path_factory.mktemp("ready"), steps=1)


def with_box(world: Path, folder: Path, box: dict[str, Any]) -> Path:
    """rl.jsonl, its first question with this annotated box."""
    first, *rest = read_jsonl(world / "rl.jsonl")
    write_jsonl(folder / "rl.jsonl", [{**first, "boxes": [box]}, *rest])
    return folder / "rl.jsonl"


BAD_BOX = {"xyxy": [4, 4, 40, 400], "frame": "model"}


def test_a_sound_run_passes_and_its_difference_is_known(ready: Any, world: Path) -> None:
    check = preflight(ready, world / "rl.jsonl", mini(world))
    begin(check)
    assert check.difference is not None and check.difference < 1e-4


def test_the_stage_refuses_boxes_that_do_not_fit_before_anything_is_sampled(
    world: Path, chain: Path, tmp_path: Path
) -> None:
    questions = chain / "mini" / "data" / "rl.jsonl"
    questions.unlink()
    questions.symlink_to(with_box(world, tmp_path, BAD_BOX))
    with pytest.raises(UserError, match=r"boxes of 1 samples are wrong.*vgr/train/0: .*does not fit"):
        train.train(mini(world), chain)
    assert not list((chain / "mini" / "rl-fgrpo" / "rollouts").glob("*.parquet"))


def test_boxes_are_checked_for_the_rewarded_sources_and_in_the_processors_pixels(
    ready: Any, world: Path, tmp_path: Path
) -> None:
    bad = with_box(world, tmp_path, BAD_BOX)
    with pytest.raises(UserError, match="boxes of 1 samples are wrong"):
        begin(preflight(ready, bad, mini(world)))
    begin(preflight(ready, bad, mini(world, "data.boxes_from=[treevgr]")))
    good = with_box(world, tmp_path, {"xyxy": [4, 4, 100, 100], "frame": "model"})
    begin(preflight(ready, good, mini(world)))
    with pytest.raises(UserError, match="does not fit an image of 56 x 56"):
        begin(preflight(ready, good, mini(world), PixelBounds(784, 3136, 28)))


def test_a_box_may_lie_in_the_largest_of_several_images(ready: Any, world: Path, tmp_path: Path) -> None:
    paths = []
    for n, size in enumerate([(56, 168), (168, 56)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
        paths.append(str(tmp_path / f"{n}.png"))
    first, *rest = read_jsonl(world / "rl.jsonl")
    for box, fits in (
        ([100, 4, 160, 40], True),
        ([4, 100, 40, 160], True),
        ([4, 4, 180, 40], False),
        ([4, 4, 40, 180], False),
    ):
        boxes = [{"xyxy": box, "frame": "original"}]
        write_jsonl(tmp_path / "rl.jsonl", [{**first, "images": paths, "boxes": boxes}, *rest])
        check = preflight(ready, tmp_path / "rl.jsonl", mini(world))
        if fits:
            begin(check)
        else:
            with pytest.raises(UserError, match="does not fit an image of 168 x 168"):
                begin(check)


def test_prompts_are_held_to_the_configured_length(ready: Any, world: Path) -> None:
    with pytest.raises(UserError, match=r"rl\.max_prompt_length is 30"):
        begin(preflight(ready, world / "rl.jsonl", mini(world, "rl.max_prompt_length=30")))


def longest_prompt(ready: Any, world: Path) -> int:
    """Tokens of the longest prompt that is checked: the limit is raised to each prompt that is too long."""
    limit = 1
    while True:
        try:
            begin(preflight(ready, world / "rl.jsonl", mini(world, f"rl.max_prompt_length={limit}")))
            return limit
        except UserError as error:
            tokens = re.search(r"has (\d+) tokens", str(error))
            assert tokens and int(tokens.group(1)) > limit
            limit = int(tokens.group(1))


def test_a_prompt_may_take_the_limit_and_fill_the_context(ready: Any, world: Path, monkeypatch) -> None:
    longest = longest_prompt(ready, world)
    assert 30 < longest < 256
    context = ready.plain_model.config.get_text_config().max_position_embeddings
    monkeypatch.setattr(ready, "max_completion_length", context - longest + 1)
    with pytest.raises(UserError, match=rf"has {longest} tokens; .*context of {context}"):
        begin(preflight(ready, world / "rl.jsonl", mini(world)))
    monkeypatch.setattr(ready, "max_completion_length", context - longest)
    monkeypatch.setattr(DryRun, "rollout", lambda *_: pytest.fail("the prompts fit"))
    with pytest.raises(pytest.fail.Exception, match="the prompts fit"):  # the dry run, which comes next, is reached
        begin(preflight(ready, world / "rl.jsonl", mini(world)))


def test_prompts_and_responses_are_held_to_the_models_context(ready: Any, world: Path, monkeypatch) -> None:
    monkeypatch.setattr(ready, "max_completion_length", 10**6)
    with pytest.raises(UserError, match="more than the model's context"):
        begin(preflight(ready, world / "rl.jsonl", mini(world)))


def test_image_tokens_are_held_to_the_features(ready: Any, world: Path, monkeypatch) -> None:
    monkeypatch.setattr(ready.processing_class.image_processor, "merge_size", 1)
    with pytest.raises(UserError, match=r"has \d+ image tokens, and its images give \d+ features"):
        begin(preflight(ready, world / "rl.jsonl", mini(world)))


def test_image_tokens_are_held_to_the_processors_bounds(ready: Any, world: Path, tmp_path: Path) -> None:
    cfg = mini(world, "data.boxes_from=[]")
    with pytest.raises(
        UserError, match=r"take \[16\] tokens, but \[4\] were estimated.*min_pixels and max_pixels of its file"
    ):
        begin(preflight(ready, world / "rl.jsonl", cfg, PixelBounds(784, 3136, 28)))


def test_what_may_not_be_sampled_is_held_to_what_the_engine_was_told(ready: Any, world: Path) -> None:
    words = ready._tokenizer.convert_tokens_to_ids(["<think>", "<answer>"])
    for forbidden in ([min(words)], words):
        name, more = ready._tokenizer.convert_ids_to_tokens(min(words)), len(forbidden) - 1
        with pytest.raises(UserError, match=rf"may sample {name} and {more} more"):
            begin(preflight(ready, world / "rl.jsonl", mini(world), forbidden=forbidden))


def test_image_tokens_may_never_be_sampled(make, world: Path) -> None:
    trainer = make(steps=1, kind=FaithfulGRPOTrainer)
    begin(preflight(trainer, world / "rl.jsonl", mini(world)))
    trainer.generation_config.suppress_tokens = None
    with pytest.raises(UserError, match=r"may sample <\|"):
        begin(preflight(trainer, world / "rl.jsonl", mini(world), forbidden=[]))


@pytest.fixture
def stale(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine generates by weights that are not the trainer's."""
    monkeypatch.setattr(ready, "_generate_single_turn", by_other_weights(ready))


def test_the_engines_log_probabilities_are_held_to_the_tolerance(ready: Any, world: Path, stale: None) -> None:
    """0.01 in float32 and 0.05 in bf16, unless the configuration says otherwise."""
    for override, allowed in (
        ("rl.precision=fp32", "0.01"), ("rl.precision=bf16", "0.05"), ("rl.vllm.max_logprob_diff=0.02", "0.02"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"engine and the trainer differ by .* \(allowed: {allowed}\)"):
            begin(preflight(ready, world / "rl.jsonl", mini(world, override)))
    check = preflight(ready, world / "rl.jsonl", mini(world, "rl.vllm.max_logprob_diff=100"))
    begin(check)
    assert check.difference > 0.05


def test_a_forbidden_token_in_the_dry_run_ends_the_run(ready: Any, world: Path, monkeypatch) -> None:
    end = ready.plain_model.config.vision_end_token_id
    monkeypatch.setattr(ready, "_generate_single_turn", lambda ids, *_: ([[5, end]] * len(ids), None))
    with pytest.raises(UserError, match=r"sampled <\|vision_end\|>"):
        begin(preflight(ready, world / "rl.jsonl", mini(world)))


def test_the_checks_run_on_resume_and_not_on_a_finished_run(ready: Any, world: Path, tmp_path: Path) -> None:
    check = preflight(ready, with_box(world, tmp_path, BAD_BOX), mini(world))
    with pytest.raises(UserError, match="boxes of 1 samples are wrong"):
        begin(check, step=3, last=4)
    begin(check, step=4, last=4)
    assert check.difference is None
