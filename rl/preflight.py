"""Checks before the first step, so that a run of days does not fail, or silently learn the wrong thing, hours later.

- boxes carry their frame and fit their image (`check_boxes`);
- prompts as the processor really makes them have the estimated length, and fit (`check_prompts`);
- they have as many image tokens as the vision tower gives features (`check_prompts`; EasyR1 #266, TRL #3847);
- image tokens cannot be sampled, by any engine (`check_sampling`; R1-V #180);
- the rollout engine and the trainer agree on the log-probabilities of a batch (`check_engine`; TRL #6294);
- a pass over the largest prompts with responses of the full length fits into memory, and so do the attention probe and
  auxiliary losses (`check_peak`).

The stage adds `Preflight` to the trainer's callbacks. It runs when everything is loaded and placed, also on resume, changes no
random state, and calls no judge. It takes seconds on the mini model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.data_utils import prepare_multimodal_messages

from fgrpo import boxes
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS, image_size, image_tokens
from fgrpo.policy import backbone
from fgrpo.schema import Config
from fgrpo.training import distributed, peak
from fgrpo.types import FRAMES, Box, Sample
from rl.dry_run import DryRun
from rl.trainer import FaithfulGRPOTrainer

# Mean |difference| per token; a wrong image or prompt costs 0.5 and more. An engine's log-probabilities are over the tokens
# that it may sample, the trainer's over all tokens: the mass of the forbidden ones is part of the difference (a policy after
# a few steps of SFT: 0.0005, in one small batch of eight above 0.001).
TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
SLACK = 0.01  # share of an image's side by which an annotated box may stick out
CHECKED = 8  # prompts that are processed in full


def check_boxes(questions: str | Path, pixels: boxes.PixelBounds, sources: Collection[str]) -> None:
    """Check that every rewarded box of rl.jsonl names its frame, has an extent and fits its image.

    With several images the largest counts: which one a box belongs to is not annotated.

    Args:
        pixels: the processor's bounds.
        sources: whose boxes are rewarded (first part of a sample's id).

    Raises:
        UserError: says how many samples are wrong, and what is wrong with the first.
    """
    faults = []
    for row in read_jsonl(questions):
        rewarded = str(row.get("id", "")).split("/", 1)[0] in sources and row.get("boxes")
        if rewarded and (fault := _box_fault(row, pixels)):
            faults.append(f"{row['id']}: {fault}")
    if faults:
        raise UserError(
            f"{questions}: the boxes of {len(faults)} samples are wrong, and spatial grounding would be measured against them. "
            f"First: {faults[0]}. Fix the source, then rerun `make data`"
        )


def _box_fault(row: Mapping[str, Any], pixels: boxes.PixelBounds) -> str | None:
    for annotated in row["boxes"]:
        if not isinstance(annotated, dict) or annotated.get("frame") not in FRAMES:
            return f"the box {annotated!r} does not name its frame, one of {', '.join(FRAMES)}"
        try:
            box = Box.from_dict(annotated)
            is_valid = box.is_valid
        except (KeyError, TypeError, ValueError):
            return f"the box {annotated!r} does not have four numbers (xyxy)"
        if not is_valid:
            return f"the box {list(box)} has no extent"
        try:
            extents = [_extent(path, box.frame, pixels) for path in row["images"]]
        except IMAGE_ERRORS:
            continue  # `rl.data.fitting` drops and counts such a sample
        width, height = max(e[0] for e in extents), max(e[1] for e in extents)
        if (
            min(box.x1, box.y1) < -SLACK * max(width, height)
            or box.x2 > width * (1 + SLACK)
            or box.y2 > height * (1 + SLACK)
        ):
            return f"the box {list(box)} does not fit an image of {width:g} x {height:g} ({box.frame} frame)"
    return None


def _extent(path: str, frame: str, pixels: boxes.PixelBounds) -> tuple[float, float]:
    """Width and height of an image in a frame's units."""
    if frame in ("unit", "thousand"):
        side = 1.0 if frame == "unit" else 1000.0
        return side, side
    return boxes.model_size(image_size(path), *pixels) if frame == "model" else image_size(path)


def check_prompts(
    trainer: FaithfulGRPOTrainer, rows: Sequence[Mapping[str, Any]], limit: int, pixels: boxes.PixelBounds
) -> None:
    """Check prompts of `rows`, made as the trainer makes them: their length, and their image tokens against the features.

    Args:
        rows: rows of the training data, see `preflight_rows`.
        limit: rl.max_prompt_length.
        pixels: the processor's bounds.

    Raises:
        UserError: a prompt is longer than `limit`, or leaves the model no room for a response; image tokens that are not as
            many as the features, or not as many as `fgrpo.images.image_tokens` estimates.
    """
    model = trainer.plain_model
    ids, images, fields = trainer._tokenize_prompts(
        [prepare_multimodal_messages(row["prompt"], row["images"]) for row in rows]
    )
    samples = [Sample.from_dict(json.loads(row["sample"])) for row in rows]
    context = int(model.config.get_text_config().max_position_embeddings)
    for row, sample in zip(ids, samples, strict=True):
        if len(row) > limit:
            raise UserError(
                f"the prompt of {sample.id} has {len(row)} tokens, and rl.max_prompt_length is {limit}; raise it"
            )
        if len(row) + int(trainer.max_completion_length or 0) > context:
            raise UserError(
                f"the prompt of {sample.id} has {len(row)} tokens; with rl.max_response_length = {trainer.max_completion_length} "
                f"that is more than the model's context of {context}; lower one of them"
            )
    if not images:
        return
    family = backbone.of_model(model)
    token = family.image_token_id(model.config)
    token_counts = [row.count(token) for row in ids]
    grids = torch.as_tensor(fields[family.grid_field])
    per_image = _features(model, torch.as_tensor(fields["pixel_values"]), grids)
    at = 0
    for sample, count in zip(samples, token_counts, strict=True):
        features = per_image[at : at + len(sample.images)]
        at += len(sample.images)
        if count != sum(features):
            raise UserError(
                f"the prompt of {sample.id} has {count} image tokens, and its images give {sum(features)} features; the processor "
                "belongs to another model than the weights: save or download both again"
            )
        estimated = [image_tokens(path, pixels) for path in sample.images]
        if estimated != features:
            raise UserError(
                f"the images of {sample.id} take {features} tokens, but {estimated} were estimated from the processor's bounds {tuple(pixels)}; "
                "the processor does not work with the min_pixels and max_pixels of its file"
            )


def _features(model: Any, pixel_values: Tensor, grids: Tensor) -> list[int]:
    """How many features the vision tower gives for each image."""
    with torch.no_grad():
        features = backbone.of_model(model).image_features(model, pixel_values.to(model.device), grids.to(model.device))
    return [len(part) for part in features]


def check_sampling(trainer: FaithfulGRPOTrainer, forbidden: Sequence[int]) -> None:
    """Check that the rollout engine is configured never to sample `forbidden`, and that image tokens are among them.

    Raises:
        UserError: it may sample one.
    """
    model = trainer.plain_model
    of_images = backbone.of_model(model).vision_token_ids(model.config)
    missing = sorted((set(forbidden) | of_images) - set(trainer.forbidden_ids()))
    if missing:
        name = trainer._tokenizer.convert_ids_to_tokens(missing[0])
        key = "logit_bias" if trainer.use_vllm else "suppress_tokens"
        raise UserError(
            f"the rollout engine may sample {name} and {len(missing) - 1} more tokens that have no text; a sampled image token would "
            f"end the run in its next forward pass. Set generation_kwargs={{'{key}': …}} to fgrpo.policy.loading.forbidden_token_ids"
        )


def check_engine(
    trainer: FaithfulGRPOTrainer, rows: Sequence[Mapping[str, Any]], forbidden: Sequence[int], tolerance: float
) -> float | None:
    """Roll out `rows` and compare the engine's log-probabilities of what it sampled with the trainer's own.

    Returns the mean absolute difference per token. None where the engine does not report its own: transformers' generate, which
    runs the same weights, and the in-process decoder at a temperature other than 1.

    Raises:
        UserError: a forbidden token was sampled, or they differ by more than `tolerance`.
    """
    dry_run = DryRun(trainer)
    batch, engine = dry_run.rollout(rows)
    mask = batch["completion_mask"].bool()
    sampled = set(batch["completion_ids"][mask].tolist()) & set(forbidden)
    if sampled:
        names = trainer._tokenizer.convert_ids_to_tokens(sorted(sampled))
        raise UserError(
            f"the rollout engine sampled {', '.join(names)} although they are forbidden; is its version the pinned one?"
        )
    if engine is None:
        return None
    of_trainer = dry_run.logprobs(batch)
    known = mask & torch.isfinite(engine)
    difference = float((of_trainer - engine)[known].abs().mean())
    if not difference <= tolerance:
        raise UserError(
            f"the rollout engine and the trainer differ by {difference:.3g} per token in the log-probabilities of {int(known.sum())} sampled "
            f"tokens (allowed: {tolerance:g}): they do not run the same weights on the same prompt and images. Check that both have "
            "the same checkpoint, processor and precision"
        )
    return difference


def check_peak(trainer: FaithfulGRPOTrainer, rows: Sequence[Mapping[str, Any]], response: int) -> str:
    """Time and memory of the largest micro-batch, in the first minute instead of at hour five.

    The rollouts of `rows` have `response` tokens each. Forward and backward, those of auxiliary losses among them, after the pass
    of the attention probe where a reward reads attention, which has padded rows. The optimizer's states come on top where they are
    not placed yet.

    Args:
        rows: of the largest prompts, see `largest_rows`.
        response: rl.max_response_length.

    Returns:
        One line: tokens, seconds, and on a GPU the peak of its memory.

    Raises:
        UserError: it does not fit into the memory of the device.
    """

    def run() -> int:
        dry_run = DryRun(trainer)
        batch = dry_run.longest(rows, response)
        dry_run.attention(batch)
        dry_run.update(batch)
        return int(batch["prompt_mask"].sum(dim=1).max()) + response

    return peak.measured(
        trainer.accelerator.device,
        run,
        "largest rows",
        "forward and backward",
        f"a pass over the largest prompts with responses of {response} tokens",
        "lower rl.micro_batch, rl.max_prompt_length or policy.pixels.max, or shard over more GPUs"
        + ("; a pass that reads attention has padded rows" if "attention" in trainer.needs else ""),
    )


class Preflight(TrainerCallback):
    """Runs all checks when training begins.

    Args:
        questions: rl.jsonl.
        pixels: the processor's bounds.
        forbidden: ids that must not be sampled.
        cfg: the run's configuration.

    Attributes:
        trainer: set after it is built.
        difference: the result of `check_engine`, None before it.
    """

    def __init__(self, questions: Path, pixels: boxes.PixelBounds, forbidden: Sequence[int], cfg: Config) -> None:
        self.questions, self.pixels, self.forbidden, self.cfg = questions, pixels, tuple(forbidden), cfg
        self.trainer: FaithfulGRPOTrainer | None = None
        self.difference: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.trainer is None or state.global_step >= state.max_steps:
            return
        rl = self.cfg.rl
        check_boxes(self.questions, self.pixels, self.cfg.data.boxes_from)
        check_sampling(self.trainer, self.forbidden)
        for loss in self.trainer.auxiliary:
            loss.check(self.trainer)
        if self.trainer.token_weights is not None:
            self.trainer.token_weights.check(self.trainer)
        rows = preflight_rows(self.trainer.train_dataset)
        largest = largest_rows(self.trainer.train_dataset, self.pixels, math.ceil(rl.micro_batch / rl.group_size))
        check_prompts(self.trainer, [*rows, *largest[:CHECKED]], rl.max_prompt_length, self.pixels)
        tolerance = rl.vllm.max_logprob_diff or TOLERANCE[rl.precision]
        self.difference = check_engine(self.trainer, rows[:1], self.forbidden, tolerance)
        difference = (
            ""
            if self.difference is None
            else f"; log-probabilities of engine and trainer differ by {self.difference:.1g}"
        )
        distributed.print_once(check_peak(self.trainer, largest, rl.max_response_length))
        distributed.print_once(f"preflight passed: boxes, prompts, image tokens, forbidden tokens{difference}")


def preflight_rows(dataset: Any) -> list[dict[str, Any]]:
    """A few rows of the training data: the first, and those with the most images and the longest question."""
    samples = [Sample.from_dict(json.loads(text)) for text in dataset.with_format(None)[:]["sample"]]
    by_length = sorted(
        range(len(samples)), key=lambda i: (len(samples[i].images), len(samples[i].question)), reverse=True
    )
    chosen = list(dict.fromkeys([0, *by_length]))[:CHECKED]
    return [dataset[i] for i in chosen]


def largest_rows(dataset: Any, pixels: boxes.PixelBounds, count: int) -> list[dict[str, Any]]:
    """The `count` rows of the training data whose prompts are likely the longest, by image tokens and characters."""
    samples = [Sample.from_dict(json.loads(text)) for text in dataset.with_format(None)[:]["sample"]]
    return [dataset[i] for i in peak.largest([_likely_tokens(sample, pixels) for sample in samples], count)]


def _likely_tokens(sample: Sample, pixels: boxes.PixelBounds) -> float:
    """Tokens of a prompt, roughly: English has about four characters a token. An image that cannot be read does not count."""
    total = len(sample.question + "".join(sample.choices)) / 4
    for path in sample.images:
        try:
            total += image_tokens(path, pixels)
        except IMAGE_ERRORS:
            continue
    return total
