"""Rollouts in this process, for machines without vLLM: the same trainer with generation twice as fast (docs/benchmarks.md).

It avoids two repetitions of TRL's own path:
- generation uses the project's decoder (`fgrpo.inference.decode`): the prompt of a group is read once, keys and values are
  preallocated, finished rows leave the batch. It samples from torch's global generator, so it resumes like everything else;
- a frozen vision tower encodes each image once (`FeatureMemo`), not five times in each of three passes (generation, reference,
  update). Features are stored by the pixels' hash and have the same values; used only where the tower is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor

from fgrpo.inference.decode import Prompt, Row, decode
from fgrpo.inference.transformers_engine import vocabulary_of
from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone
from rl.trainer import FaithfulGRPOTrainer


class FeatureMemo:
    """Features of a frozen vision tower by image; shared by models whose towers are equal."""

    def __init__(self) -> None:
        self._features: dict[bytes, Tensor] = {}

    def clear(self) -> None:
        """Drop all features; called when a new generation batch begins."""
        self._features.clear()

    def install(self, tower: torch.nn.Module, family: Backbone) -> None:
        """Make `tower` look up its features here first. All its parameters must be frozen, so that results depend on the input alone.

        Raises:
            ValueError: a parameter of the tower is trained.
        """
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError("the vision tower is trained, so its features change and cannot be stored")
        encode = tower.forward
        merged = family.patches_per_token(tower)

        def forward(hidden_states: Tensor, grid_thw: Tensor, **more: Any) -> Any:
            patches = grid_thw.prod(dim=-1).tolist()
            images = torch.split(hidden_states, patches)
            keys = [_key(image, grid) for image, grid in zip(images, grid_thw.tolist(), strict=True)]
            missing = {key: i for i, key in enumerate(keys) if key not in self._features}
            if missing:
                chosen = list(missing.values())
                with torch.no_grad():
                    out = encode(torch.cat([images[i] for i in chosen]), grid_thw=grid_thw[chosen], **more)
                sizes = [patches[i] // merged for i in chosen]
                parts = torch.split(family.tower_features(out), sizes)
                self._features.update(zip(missing, (part.clone() for part in parts), strict=True))
            return family.tower_output(tower, torch.cat([self._features[key] for key in keys]))

        tower.forward = forward


class InProcessTrainer(FaithfulGRPOTrainer):
    """FaithfulGRPOTrainer whose rollouts come from this process' own decoder (one model, not sharded)."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._family = family = backbone.of_model(self.plain_model)
        self._vocabulary = vocabulary_of(self._tokenizer, self.plain_model.config.get_text_config().vocab_size, family)
        self._memo: FeatureMemo | None = None
        self._sampled_logprobs: list[list[float]] = []  # log-probabilities of the last generation
        models: list[Any] = [m for m in (self.plain_model, self.ref_model) if m is not None]
        towers = [family.vision_tower(self.accelerator.unwrap_model(m)) for m in models]
        for tower in towers[1:]:
            tower.requires_grad_(False)
        frozen = not any(p.requires_grad for tower in towers for p in tower.parameters())
        if frozen and all(_equal(towers[0], tower) for tower in towers):
            self._memo = FeatureMemo()
            for tower in towers:
                self._memo.install(tower, family)

    def forbidden_ids(self) -> Sequence[int]:
        """Token ids that the decoder never samples."""
        return self._vocabulary.forbidden

    def engine_logprobs(self, batch: Mapping[str, Any]) -> Tensor | None:
        """The decoder's (B, T), which are at temperature 1; None at another temperature, where they cannot be compared."""
        if self.temperature != 1.0:
            return None
        rows = [torch.tensor(row) for row in self._sampled_logprobs]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=torch.nan).to(
            self.accelerator.device
        )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        if self._memo is not None:
            self._memo.clear()
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self,
        prompt_ids: Sequence[Sequence[int]],
        images: Any,
        multimodal_fields: dict[str, Any],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], None]:
        """Completion ids for `prompt_ids`, in which the rollouts of one prompt are adjacent."""
        if len(prompt_ids) % num_generations:  # a group spread over processes: every row is its own prompt
            num_generations = 1
        policy, limit = self.plain_model, int(self.max_completion_length or 1)
        heads = range(0, len(prompt_ids), num_generations)
        no_images: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(prompt_ids)
        features = self._features(policy, images, multimodal_fields) if images else no_images
        prompts = [Prompt(tuple(prompt_ids[i]), *features[i]) for i in heads]
        uniforms_BT = torch.rand(len(prompt_ids), limit, dtype=torch.float64)
        rows = [
            Row(i // num_generations, limit, self.temperature, self.top_p, (), uniforms_BT[i])
            for i in range(len(prompt_ids))
        ]
        training = policy.training
        policy.eval()
        try:
            decode(policy, prompts, rows, self._vocabulary)
        finally:
            policy.train(training)
        self._sampled_logprobs = [row.logprobs for row in rows]
        return [row.ids for row in rows], None

    def _features(self, policy: Any, images: Any, fields: dict[str, Any]) -> list[tuple[Tensor | None, Tensor | None]]:
        """For each row, its images' features (image tokens, F) and grids (images, 3)."""
        grids = torch.as_tensor(fields[self._family.grid_field]).to(policy.device)
        pixels = torch.as_tensor(fields["pixel_values"]).to(policy.device)
        with torch.no_grad():
            features = self._family.image_features(policy, pixels, grids)
        rows: list[tuple[Tensor | None, Tensor | None]] = []
        at = 0
        for of_row in images:
            count = len(of_row or ())
            rows.append((torch.cat(features[at : at + count]), grids[at : at + count]) if count else (None, None))
            at += count
        return rows


def _key(image: Tensor, grid: Sequence[int]) -> bytes:
    pixels = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return xxhash.xxh3_128_digest(pixels) + repr(grid).encode()


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
