"""Rollouts in this process, for machines without vLLM: the same trainer, its generation twice as fast (docs/benchmarks.md).

Three things that TRL's own path does more often than it must:
- generation goes through the project's decoder (`fgrpo.inference.decode`): the prompt of a group is read once, keys and values
  have their room, finished rows leave the batch; sampled from torch's global generator, so it resumes like the rest;
- a frozen vision tower sees each picture once (`FeatureMemo`), not five times in each of three passes (generation, reference,
  update). It keeps features by the pixels' hash, is the identity in value, and is used only where the tower is frozen;
- padding is not computed: rollouts of about the same length go through the model together (`rl.length_bucketing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fgrpo.inference.decode import Prompt, Row, decode
from fgrpo.inference.transformers_engine import vocabulary_of
from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone
from rl import length_bucketing
from rl.trainer import FaithfulGRPOTrainer


class FeatureMemo:
    """Features of a frozen vision tower by picture; shared by models whose towers are equal."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Tensor] = {}

    def clear(self) -> None:
        """Forget everything; call it when a new generation batch begins."""
        self._kept.clear()

    def install(self, tower: torch.nn.Module, family: Backbone) -> None:
        """Let `tower` look here first. Its results must not depend on anything but its input: all parameters frozen.

        Raises:
            ValueError: a parameter of the tower is trained.
        """
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError("the vision tower is trained, so its features change and cannot be kept")
        plain = tower.forward
        merged = family.patches_per_token(tower)

        def forward(hidden_states: Tensor, grid_thw: Tensor, **more: Any) -> BaseModelOutputWithPooling:
            patches = grid_thw.prod(dim=-1).tolist()
            pictures = torch.split(hidden_states, patches)
            keys = [_key(picture, grid) for picture, grid in zip(pictures, grid_thw.tolist(), strict=True)]
            missing = {key: i for i, key in enumerate(keys) if key not in self._kept}
            if missing:
                which = list(missing.values())
                with torch.no_grad():
                    out = plain(torch.cat([pictures[i] for i in which]), grid_thw=grid_thw[which], **more).pooler_output
                sizes = [patches[i] // merged for i in which]
                self._kept.update(zip(missing, (part.clone() for part in torch.split(out, sizes)), strict=True))
            features: Any = torch.cat([self._kept[key] for key in keys])
            return BaseModelOutputWithPooling(pooler_output=features)

        tower.forward = forward


class LocalTrainer(FaithfulGRPOTrainer):
    """FaithfulGRPOTrainer whose rollouts come from this process's own decoder (one model, not sharded)."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        family = backbone.of_model(self.plain_model)
        self._vocabulary = vocabulary_of(self._tokenizer, self.plain_model.config.get_text_config().vocab_size, family)
        self._memo: FeatureMemo | None = None
        self._rolled: list[list[float]] = []  # log-probabilities of the last generation
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
        """The decoder's (B, T), which are those at temperature 1: at another one there is nothing to compare."""
        if self.temperature != 1.0:
            return None
        rows = [torch.tensor(row) for row in self._rolled]
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
        """Completion ids for `prompt_ids`, in which the rollouts of one prompt stand together."""
        if len(prompt_ids) % num_generations:  # a group spread over processes: every row is its own prompt
            num_generations = 1
        policy, longest = self.plain_model, int(self.max_completion_length or 1)
        heads = range(0, len(prompt_ids), num_generations)
        nothing: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(prompt_ids)
        features = self._features(policy, images, multimodal_fields) if images else nothing
        prompts = [Prompt(tuple(prompt_ids[i]), *features[i]) for i in heads]
        uniforms_BT = torch.rand(len(prompt_ids), longest, dtype=torch.float64)
        rows = [
            Row(i // num_generations, longest, self.temperature, self.top_p, (), uniforms_BT[i])
            for i in range(len(prompt_ids))
        ]
        training = policy.training
        policy.eval()
        try:
            decode(policy, prompts, rows, self._vocabulary)
        finally:
            policy.train(training)
        self._rolled = [row.logprobs for row in rows]
        return [row.ids for row in rows], None

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **fields: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's own, piece by piece (`rl.length_bucketing`); 0 at what is padding."""
        by_token = {key: fields.pop(key) for key in length_bucketing.BY_TOKEN if fields.get(key) is not None}
        images_B = fields.get("num_images")
        order: list[int] = []
        parts = []
        most = length_bucketing.ROWS if input_ids.device.type == "cpu" else len(input_ids)
        for piece in length_bucketing.cut(attention_mask, logits_to_keep, min(most, batch_size or most)):
            rows, columns = piece.rows, piece.columns
            tokens = {key: field[rows, columns] for key, field in by_token.items()}
            pictures = length_bucketing.of_pictures(fields, rows, images_B) if images_B is not None else {}
            *found, _ = super()._get_per_token_logps_and_entropies(
                model, input_ids[rows, columns], attention_mask[rows, columns], piece.kept,
                compute_entropy=compute_entropy, **tokens, **pictures,
            )  # fmt: skip
            order += rows
            parts.append(
                [torch.nn.functional.pad(part, (0, logits_to_keep - piece.kept)) for part in found if part is not None]
            )
        back = torch.argsort(torch.tensor(order))
        logps_BT, *entropies_BT = (torch.cat(column)[back] for column in zip(*parts, strict=True))
        return logps_BT, entropies_BT[0] if entropies_BT else None, None

    def _features(self, policy: Any, images: Any, fields: dict[str, Any]) -> list[tuple[Tensor | None, Tensor | None]]:
        """For each row, its pictures' features (image tokens, H) and grids (pictures, 3)."""
        grids = torch.as_tensor(fields["image_grid_thw"]).to(policy.device)
        pixels = torch.as_tensor(fields["pixel_values"]).to(policy.device)
        with torch.no_grad():
            found = backbone.of_model(policy).image_features(policy, pixels, grids)
        rows: list[tuple[Tensor | None, Tensor | None]] = []
        at = 0
        for pictures in images:
            count = len(pictures or ())
            rows.append((torch.cat(found[at : at + count]), grids[at : at + count]) if count else (None, None))
            at += count
        return rows


def _key(picture: Tensor, grid: Sequence[int]) -> bytes:
    pixels = picture.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return xxhash.xxh3_128_digest(pixels) + repr(grid).encode()


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
