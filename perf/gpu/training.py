"""The stages' own trainers with the preset's options, on random weights: what they reach, and what they need.

RL is built by `rl.train.build_trainer`: preflight, log and passes are the stage's. Only the rewards are fixed functions of the
sampled tokens in place of judges, so that every group has advantages and every update moves the policy.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

import rl.train
import sft.train
from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.policy import loading, model_files
from fgrpo.schema import Config
from fgrpo.training import distributed
from ops import memory_estimate
from ops.training_memory import memory
from perf.gpu import stand_in
from perf.gpu.result import Result
from perf.gpu.setting import Setting
from perf.token_count import Count, of_rollouts
from rl.preflight import TOLERANCE, Preflight
from rl.scoring import RolloutScorer
from sft import dataset

PRESET = "paper-3b"
PLAN_SLACK = 1.15  # measured peak over the plan's: above it a run that the plan lets start may not fit
GB = 1e9


class FixedRewards(RolloutScorer):
    """The stage's scorer, whose rewards are shares of token ids with a certain remainder."""

    def check_judges(self) -> None:
        """Nothing: no judge is asked."""

    def start(self, *_: Any) -> None:
        """Nothing: the rewards take no time."""

    def reward_funcs(self) -> list[Callable[..., Any]]:
        """One function per column."""
        return [self._fixed(place, name) for place, name in enumerate(self.names)]

    @staticmethod
    def _fixed(place: int, name: str) -> Callable[..., list[float]]:
        def column(*, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
            return [sum((i // 2**place) % 2 for i in ids) / max(len(ids), 1) for ids in completion_ids]

        column.__name__ = name
        return column


@dataclass
class Run:
    """What a training run left: its log's lines, the preflight's difference, tokens, seconds of each step, peak bytes."""

    lines: list[dict[str, Any]]
    difference: float | None
    count: Count
    peak: float
    trained: int


def rl_config(setting: Setting, size: str, *overrides: str) -> Config:
    """The preset's FGRPO with the checks' sizes, in one process."""
    s = setting.sizes
    prompts = "think" if stand_in.has_real_tokenizer(setting.model(size)) else "mini"
    return load(
        PRESET,
        "fgrpo",
        [
            *overrides,
            *(f"models.base={setting.model(size)}", f"prompts.think={prompts}", "launch.rl_image_workers=0"),
            *("launch.rl_processes=1", "rl.deepspeed=null", "rl.report_to=none", f"rl.precision={setting.precision}"),
            *(
                f"rl.rollout_batch={s.rollout_batch}",
                f"rl.global_batch={s.global_batch}",
                f"rl.group_size={s.group_size}",
            ),
            *(f"rl.micro_batch={s.micro_batch}", f"rl.max_response_length={s.response}", f"rl.max_steps={s.steps}"),
            *(f"rl.learning_rate={s.learning_rate}", "rl.dual.min_applicable=1"),
            'judges.training.endpoints=["http://127.0.0.1:9/v1"]',  # never asked: the rewards are fixed
            f"rl.max_prompt_length={1792 if setting.shape == 'true' else 1024}",
        ],
    )


def sft_config(setting: Setting) -> Config:
    """The preset's SFT, without validation and checkpoints; on a CPU without DeepSpeed."""
    plain = () if setting.device == "cuda" else ("sft.deepspeed=null",)
    return load(
        PRESET,
        "fgrpo",
        [
            *plain,
            *(f"models.base={setting.model('3b')}", "launch.sft_image_workers=0", "launch.sft_processes=1"),
            *(f"sft.max_steps={setting.sizes.sft_steps}", "sft.logging_steps=1", "data.validation_share=0.0"),
            *(
                "sft.report_to=none",
                f"sft.precision={setting.precision}",
                "sft.warmup_ratio=0.0",
                "sft.scheduler=constant",
            ),
            f"sft.learning_rate={setting.sizes.learning_rate / 10}",
        ],
    )


def fresh(setting: Setting, name: str) -> Any:
    """An empty run folder, and what a stage wants of its run."""
    folder = setting.work / "runs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return SimpleNamespace(path=folder, counts=Counter())


def train_rl(setting: Setting, name: str, cfg: Config) -> Run:
    """Build the stage's trainer and train `rl.max_steps`; no checkpoint is written."""
    run = fresh(setting, name)
    with mock.patch.object(rl.train, "RolloutScorer", FixedRewards):
        trainer, log = rl.train.build_trainer(cfg, run, setting.questions, Path(cfg.models.base))
    trainer.args.save_strategy = SaveStrategy.NO
    _reset_peak(setting)
    try:
        with of_rollouts(trainer) as count:
            trainer.train()
    finally:
        log.close()
    (preflight,) = (c for c in trainer.callback_handler.callbacks if isinstance(c, Preflight))
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return Run(list(read_jsonl(run.path / "metrics.jsonl")), preflight.difference, count, _peak(setting), trained)


class Clock(TrainerCallback):
    """Seconds of each optimizer step, the GPU's work included."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = _now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(_now() - self._began)


def train_sft(setting: Setting, cfg: Config) -> tuple[list[float], float, float]:
    """Train `sft.max_steps`; returns (losses, tokens per second without the first step, peak bytes)."""
    run = fresh(setting, "sft")
    with distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s):
        trainer, log = sft.train.build_trainer(cfg, run, setting.traces)
        trainer.args.save_strategy = SaveStrategy.NO
        clock = Clock()
        trainer.add_callback(clock)
        _reset_peak(setting)
        try:
            trainer.train()
        finally:
            log.close()
        lines = [line for line in read_jsonl(run.path / "metrics.jsonl") if "loss" in line]
        tokens = float(lines[-1]["num_tokens"]) - float(lines[0]["num_tokens"])
        return [float(line["loss"]) for line in lines], tokens / sum(clock.steps[1:]), _peak(setting)


def judge_rl(result: Result, setting: Setting, cfg: Config, run: Run, *, engine: bool) -> None:
    """What must hold after an RL run: all steps, finite losses, agreement with the engine, and weights that reached it.

    Args:
        engine: a vLLM engine sampled, whose weights the trainer replaces.
    """
    steps = [line for line in run.lines if "loss" in line]
    result.must(len(steps) == setting.sizes.steps, f"{len(steps)} of {setting.sizes.steps} steps")
    losses = [line.get("loss") for line in steps]
    finite = all(isinstance(loss, float) and math.isfinite(loss) for loss in losses)
    result.must(finite, f"losses finite, the last {losses[-1] if losses else None}")
    moved = math.sqrt(2 * max(line.get("kl") or 0.0 for line in steps)) if steps else 0.0  # k3 is about d^2 / 2
    result.must(moved > 0, f"the policy moved {moved:.2g} per token")
    allowed = TOLERANCE[cfg.rl.precision]
    if run.difference is not None:
        result.must(
            run.difference <= allowed,
            f"log-probabilities before training differ by {run.difference:.2g} (allowed {allowed:g})",
        )
    if engine:
        key = "sampling/sampling_logp_difference/mean"
        seen = [float(line[key]) for line in steps if line.get(key) is not None]
        result.must(bool(seen) and max(seen) <= allowed, f"and in training by {max(seen, default=math.nan):.2g}")
        result.must(
            bool(seen) and moved > 2 * max(seen),
            f"so new weights reached the engine: old ones would differ by {moved:.2g}",
        )
    speeds_of(result, setting, cfg, run, steps)
    if setting.device == "cuda" and cfg.rl.rollout_engine != "vllm-colocate":  # whose engine is in the same process
        longest = cfg.rl.max_prompt_length + cfg.rl.max_response_length
        compare_memory(result, "rl", cfg, run.peak, longest, cfg.rl.max_response_length)


def speeds_of(result: Result, setting: Setting, cfg: Config, run: Run, steps: Sequence[dict[str, Any]]) -> None:
    """Real tokens per second of the last generation: sampled tokens, old and reference passes, updates."""
    updates = cfg.rl.rollout_batch // cfg.rl.global_batch
    last = steps[-updates:]
    rollouts = cfg.rl.rollout_batch * cfg.rl.group_size
    generations = len(steps) // updates
    sampled = rollouts * float(last[0].get("completions/mean_length") or 0.0)
    parts = {
        "generation": (sampled, "seconds/generation"),
        "old and reference passes": (run.count.logprobs.real / generations, "seconds/logprobs"),
        "updates": (run.count.update.real / generations, "seconds/update"),
    }
    for part, (tokens, key) in parts.items():
        spent = sum(float(line[key]) for line in last)
        if spent > 0 and tokens:
            result.speeds[part] = tokens / spent
    if any("seconds/sync" in line for line in last):
        result.finding += f"; weight sync {max(float(line['seconds/sync']) for line in last):.1f} s"


def compare_memory(
    result: Result, stage: Literal["sft", "rl"], cfg: Config, peak: float, length: int, reply: int
) -> None:
    """The measured peak of the trainer's process against the plan's figure for sequences of `length`, `reply` with logits."""
    planned = memory_estimate.peak(memory(cfg, stage, memory_estimate.shape_of(cfg.models.base), length, reply))
    result.memory[stage] = (peak / GB, planned / GB)
    result.must(peak <= PLAN_SLACK * planned, f"peak {peak / GB:.1f} GB, planned {planned / GB:.1f} GB")


def longest_trace(cfg: Config, traces: Path) -> int:
    """Tokens of the longest SFT sequence, its images among them."""
    processor, pixels = loading.load_processor(cfg.models.base), model_files.pixel_bounds(cfg.models.base)
    family = model_files.backbone_of(cfg.models.base)
    return max(
        len(processor.tokenizer(row.prompt + row.completion)["input_ids"])
        + sum(family.prompt_tokens(image, pixels) for image in row.images)
        + dataset.TEMPLATE_TOKENS
        for row in dataset.read_rows(traces, Counter())
    )


def _reset_peak(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(setting: Setting) -> float:
    return float(torch.cuda.max_memory_allocated()) if setting.device == "cuda" else 0.0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
