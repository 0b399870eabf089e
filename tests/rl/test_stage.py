"""The stage around the trainer: arguments, data, scoring, files, stopping on failed judges, going on after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fgrpo import config, prompts
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import backbone, loading
from fgrpo.types import Score
from rl import arguments, data, train
from rl.dual import Constraint
from rl.logging_callback import truncate_rollouts
from rl.scored_batch import ScoreColumn
from rl.scoring import RolloutScorer
from tests.rl.conftest import OVERRIDES, POLICY, mini, trainer_stub


def test_paper_values_become_trl_arguments() -> None:
    """Table 5 on eight processes: 640 rollouts a generation, 320 an update, two updates, one group a pass."""
    cfg = config.load(
        "paper-7b",
        "fgrpo",
        ["rl.precision=fp32", "rl.deepspeed=null", "rl.rollout_engine=transformers", "rl.report_to=none"],
    )
    args = arguments.grpo_config(cfg, "out", 100, [7, 8], world=8)
    assert (args.num_generations, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (5, 5, 8)
    assert args.steps_per_generation == 16  # micro steps: two updates of eight
    assert (args.beta, args.epsilon, args.epsilon_high, args.max_grad_norm) == (0.01, 0.2, 0.28, 1.0)
    assert (args.learning_rate, args.weight_decay, args.warmup_steps, args.lr_scheduler_type) == (
        1e-6,
        0.01,
        0.0,
        "constant",
    )
    assert (args.loss_type, args.multi_objective_aggregation, args.scale_rewards) == (
        "grpo",
        "normalize_then_sum",
        "group",
    )
    assert (args.num_iterations, args.temperature, args.max_completion_length) == (1, 1.0, 1024)
    assert (args.bf16, args.gradient_checkpointing, args.shuffle_dataset, args.remove_unused_columns) == (
        False,
        True,
        False,
        False,
    )
    assert (args.save_steps, args.logging_steps, args.seed, args.max_steps) == (20, 1, 0, 100)
    assert args.generation_kwargs == {"suppress_tokens": [7, 8]}


def test_steps_are_whole_generations() -> None:
    rl = config.load("paper-7b", "fgrpo").rl
    assert arguments.total_steps(rl, 49_000) == 3 * 49_000 // 128 * 2
    assert arguments.total_steps(rl.model_copy(update={"max_steps": 7}), 10) == 8
    odd = rl.model_copy(update={"rollout_batch": 100})
    with pytest.raises(UserError, match=r"rollout_batch.*multiple"):
        arguments.updates_per_generation(odd)
    uneven = config.load("mini", "fgrpo", ["rl.micro_batch=7"])
    with pytest.raises(UserError, match="micro_batch"):
        arguments.grpo_config(uneven, "out", 4)


def test_vllm_may_not_sample_special_tokens_either() -> None:
    kind = arguments._engine(config.load("paper-7b"), [5])
    assert (kind["use_vllm"], kind["vllm_mode"]) == (True, "server")
    assert {int(token): bias for token, bias in kind["generation_kwargs"]["logit_bias"].items()} == {5: -100.0}


def test_order_depends_on_the_seed_alone_and_covers_each_pass() -> None:
    long, short = data.order(10, 25, 1), data.order(10, 13, 1)
    assert long[:13] == short and long != data.order(10, 25, 2)
    assert sorted(long[:10]) == sorted(long[10:20]) == list(range(10)) and long[:10] != long[10:20]


def test_bad_rows_are_counted(world: Path, tmp_path: Path) -> None:
    good = next(read_jsonl(world / "rl.jsonl"))
    bad = [
        {"id": "x"},
        {**good, "images": []},
        {**good, "answer": " "},
        {**good, "images": ["gone.png"]},
        {**good, "question": "<|image_pad|>?"},
    ]
    path = tmp_path / "rl.jsonl"
    write_jsonl(path, [*bad, good])
    dropped: Counter[str] = Counter()
    assert [s.id for s in data.read_samples(path, dropped)] == [good["id"]]
    assert sum(dropped.values()) == 5 and len(dropped) == 5
    write_jsonl(path, bad)
    with pytest.raises(UserError, match="no usable question"):
        data.read_samples(path, Counter())


def test_prompts_are_counted_with_the_tokens_around_images(world: Path) -> None:
    processor, template = loading.load_processor(POLICY), prompts.read("mini")
    pixels, family = PixelBounds(784, 12544, 28), backbone.default()
    samples = data.read_samples(world / "rl.jsonl", Counter())
    sample = max(samples, key=lambda s: len(s.images))

    def needed(family: backbone.Backbone) -> int:
        """The least limit that the sample fits."""
        for limit in range(400):
            with contextlib.suppress(UserError):
                data.fitting([sample], template, processor, limit, pixels, family, Counter())
                return limit
        raise AssertionError

    more = replace(family, marker_attributes=(*family.marker_attributes, "another"))
    assert len(sample.images) == 2 and needed(more) == needed(family) + 2


def test_each_rollout_is_scored_once_and_three_states_survive(world: Path) -> None:
    cfg = mini(world)
    scorer = train.make_scorer(cfg, PixelBounds(784, 12544, 28))
    rows = [{"sample": json.dumps(row)} for row in read_jsonl(world / "rl.jsonl")][:2]
    gold = json.loads(rows[0]["sample"])["answer"]
    texts = [f"<think>Nothing is said here.</think><answer>{gold}</answer>", "no form at all"]
    calls = Counter()
    for name, reward in list(scorer._rewards.items()):

        async def counted(items: Any, context: Any, name: str = name, reward: Any = reward) -> list[Score]:
            calls[name] += 1
            return await reward(items, context)

        scorer._rewards[name] = counted  # type: ignore[assignment]

    async def run() -> list[ScoreColumn]:
        scorer.start(
            rows,
            [[{"role": "assistant", "content": t}] for t in texts],
            [[1], [1]],
            trainer_stub(asyncio.get_running_loop()),
        )
        return [await func(prompts=[0, 1]) for func in scorer.reward_funcs()]

    task, consistency, spatial, semantic = asyncio.run(run())
    assert task == [2.0, 0.0]
    assert consistency == [0.0, None]  # the wrong answer is not applicable
    assert spatial[0] is None  # no boxes annotated
    assert set(calls.values()) == {1}
    assert scorer.names == ("task", "consistency", "spatial_grounding", "semantic_grounding")
    assert not any(reason for column in (task, consistency, spatial, semantic) for reason in column.failures)
    assert semantic[1] is None


def test_cutting_back_leaves_nothing_twice(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for n in (2, 3):
        pq.write_table(pa.table({"n": [n]}), tmp_path / "rollouts" / f"{n:06d}.parquet")
    (tmp_path / "rollouts" / "000001.parquet").touch()  # empty: its rollouts are lost
    (tmp_path / "rollouts" / "000004.part").touch()
    assert truncate_rollouts(tmp_path, 2) == [2]
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["000002.parquet"]


def test_the_stage_from_files_to_files(world: Path, chain: Path) -> None:
    cfg = mini(world, "rl.max_response_length=60")
    folder = train.train(cfg, chain)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {
            "accuracy",
            "format",
            "inconsistency",
            "reward",
            "kl",
            "num_tokens",
            "seconds/generation",
            "seconds/logprobs",
        } <= set(line)
        assert {"seconds/judging", "seconds/update", "lambda/consistency", "constraint/spatial_grounding/n"} <= set(
            line
        )
        assert line["failed"] == 0
    assert lines[0]["lambda/consistency"] == 1.0
    assert (folder / "final" / "model.safetensors").exists() and (folder / "done").exists()
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    train.train(cfg, chain)
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "method", ["grpo-t", "grpo-additive", "grpo-multiplicative", "fgrpo-consistency", "fgrpo-fixed"]
)
def test_the_other_rows_of_tables_2_and_3_train_too(world: Path, chain: Path, method: str) -> None:
    """A method is a file of configs/method and nothing else."""
    cfg = config.load("mini", method, [f"data.root={world}", *OVERRIDES, "rl.max_steps=2"])
    folder = train.train(cfg, chain)
    one, two = read_jsonl(folder / "metrics.jsonl")
    assert math.isfinite(one["loss"]) and math.isfinite(two["loss"])
    weighed = {key.removeprefix("lambda/") for key in one if key.startswith("lambda/")}
    assert weighed == (set(cfg.rl.constraints) if cfg.rl.combine == "decoupled" else set())
    if method == "fgrpo-fixed":  # an adaptive multiplier would have moved: its constraint is violated
        assert one["constraint/spatial_grounding/n"] > 0 and one["constraint/spatial_grounding/violation"] > 0
        assert {two[f"lambda/{name}"] for name in weighed} == {1.0}
    assert (folder / "final" / "model.safetensors").exists() and folder.name == f"rl-{method}"


def test_it_goes_on_from_the_last_whole_checkpoint(world: Path, chain: Path, monkeypatch) -> None:
    """Killed in step 4, and the checkpoint of step 2 is all there is: steps 3 and 4 are done again, once in the file."""
    cfg = mini(world)
    real = RolloutScorer.start

    def dies(self: RolloutScorer, inputs: Any, completions: Any, ids: Any, trainer: Any) -> None:
        if trainer.state.global_step == 3:
            raise KeyboardInterrupt
        real(self, inputs, completions, ids, trainer)

    monkeypatch.setattr(RolloutScorer, "start", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    cut = [line for line in read_jsonl(folder / "metrics.jsonl") if line["step"] == 3]
    monkeypatch.setattr(RolloutScorer, "start", real)
    train.train(cfg, chain)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    (folder / "done").unlink()
    shutil.rmtree(folder / "final")
    train.train(cfg, chain)  # killed after the last step: the final state comes from its checkpoint
    assert (folder / "final" / "model.safetensors").read_bytes() == (
        folder / "checkpoints" / "checkpoint-4" / "model.safetensors"
    ).read_bytes()
    assert len(list(read_jsonl(folder / "metrics.jsonl"))) == 4
    same = {k: v for k, v in lines[2].items() if not k.startswith("seconds")}
    assert same == {k: v for k, v in cut[0].items() if not k.startswith("seconds")}


def test_a_format_that_the_tokenizer_cannot_write_is_refused_at_the_start(world: Path, chain: Path) -> None:
    with pytest.raises(UserError, match=r"the prompt requests <\|box_start\|>, a special token"):
        train.train(mini(world, "policy.box_tag=box_start"), chain)


def test_a_dead_judge_stops_the_run_after_a_checkpoint(world: Path, chain: Path, monkeypatch) -> None:
    cfg = mini(world, "rl.save_steps=4", "rl.max_response_length=60")
    real = RolloutScorer._score

    async def dead(self: RolloutScorer, step: int, items: Any, texts: Any, tokens: Any) -> Any:
        batch = await real(self, step, items, texts, tokens)
        if step == 1:
            dead_column = tuple(Score.failure("connection refused") for _ in items)
            return replace(batch, scores={**batch.scores, "consistency": dead_column})
        return batch

    monkeypatch.setattr(RolloutScorer, "_score", dead)
    with pytest.raises(
        UserError, match=r"step 2: 8 of 8 judgements of 'consistency' failed .*: connection refused; .*rerun"
    ):
        train.train(cfg, chain)
    folder = chain / "mini" / "rl-fgrpo"
    lam = json.loads((folder / "checkpoints" / "checkpoint-1" / "duals.json").read_text())["states"]["consistency"][
        "lam"
    ]
    monkeypatch.setattr(RolloutScorer, "_score", real)
    train.train(cfg, chain)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[1]["lambda/consistency"] == lam and math.isfinite(lam)


def test_each_constraint_has_its_own_values_and_the_duals_for_the_rest() -> None:
    """YAML to `Constraint`, each field of each name; thresholds are in the reward's own unit."""
    own = "{tau: -3.5, lr: 0.2, lam_init: 0.0, lam_max: 9.0, min_applicable: 0}"
    cfg = config.load(
        "mini",
        "fgrpo",
        [f"rl.constraints.consistency={own}", "rl.constraints.spatial_grounding.tau=0.4", "rl.dual.lr=0.01"],
    )
    assert train.make_dual(cfg).constraints == (
        Constraint("consistency", -3.5, 0.0, 0.2, 9.0, 0),
        Constraint("spatial_grounding", 0.4, 1.0, 0.01, 5.0, 8),
        Constraint("semantic_grounding", 0.85, 1.0, 0.01, 5.0, 8),
    )


def test_which_constraints_a_method_has() -> None:
    """null removes one of a lower layer, an override adds one; without multipliers where rewards are coupled or absent."""
    names = ("consistency", "spatial_grounding", "semantic_grounding")
    override = ["rl.constraints.consistency.tau=0.9"]
    expected = {
        "fgrpo": (names, names),
        "fgrpo-fixed": (names, names),
        "fgrpo-consistency": (names[:1], names[:1]),
        "grpo-additive": (names, ()),
        "grpo-multiplicative": (names[::2], ()),
        "grpo-t": ((), ()),
    }
    for method, (scored, constrained) in expected.items():
        cfg = config.load("mini", method, override)
        assert train.make_scorer(cfg, PixelBounds(784, 12544, 28)).names == ("task", *scored), method
        assert tuple(c.reward for c in train.make_dual(cfg).constraints) == constrained, method
    without = config.load("mini", "fgrpo", ["rl.constraints.semantic_grounding=null"])
    assert list(without.rl.constraints) == ["consistency", "spatial_grounding"]


def test_boxes_are_read_with_the_policys_tag_and_frame(world: Path) -> None:
    """policy.box_tag and policy.box_frame reach the parser and the rewards' context."""
    cfg = mini(world, "policy.box_tag=box", "policy.box_frame=thousand")
    scorer = train.make_scorer(cfg, PixelBounds(784, 12544, 28))
    assert (scorer._context.box_tag, scorer._context.box_frame) == ("box", "thousand")
    row = next(read_jsonl(world / "rl.jsonl"))
    text = "<think><box>[1,2,3,4]</box> <bbox>[5,6,7,8]</bbox></think><answer>a</answer>"

    async def run() -> ScoreColumn:
        scorer.start([{"sample": json.dumps(row)}], [text], [[1]], trainer_stub(asyncio.get_running_loop()))
        return await scorer.reward_funcs()[0](prompts=[0])

    batch = asyncio.run(run()).batch
    assert batch is not None
    ((box,),) = (item.response.boxes for item in batch.items)
    assert (list(box), box.frame) == ([1, 2, 3, 4], "thousand")
