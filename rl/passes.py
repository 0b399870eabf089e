"""The log-prob passes (old, reference, current) of every trainer, without what TRL computes twice or for nothing.

- Rollouts of one prompt share a row, in which the prompt and its images are computed once
  (`fgrpo.training.shared_prefix`), under sdpa, eager and flash attention (`fgrpo.training.branch_attention`).
  The shuffle keeps groups whole, unless the loss depends on which rollouts a micro-batch has.
- With another attention implementation, and with `rows="by_length"`: rows of about equal length pass together, without the
  padding around them (`rl.length_bucketing`).
- A prompt that is too long for a row with a mask (sdpa, eager): a row for each of its rollouts.
- A micro-batch holds whole groups, of about one length if there are several (`rl.group_shuffle`).
- Sliding windows and layers other than full attention, and images in responses (a tool's): rows of about equal length too.
- Model families that `fgrpo.policy.backbones` does not know, mixtures of experts with their auxiliary loss, and a drop-in
  without constraints: TRL's own pass.

All ranks make equally many passes, which DDP and ZeRO-3 need: with several processes, one per `batch_size` rollouts. Results
are those of TRL's padded rows up to the order of summation (tests/rl/test_shared_prefix.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from trl import GRPOTrainer

from fgrpo.policy import backbone
from fgrpo.policy.backbone import Backbone
from fgrpo.training import branch_attention, distributed, packed_inputs, shared_prefix
from fgrpo.training.row_images import RowImages, image_fields
from fgrpo.training.shared_prefix import Pack
from rl import group_shuffle, length_bucketing

Rows = Literal["shared", "by_length", "trl"]
IMAGE_FIELDS = ("pixel_values", "num_images", "token_type_ids", "mm_token_type_ids")  # and `Backbone.grid_field`
TOKENS = 1024  # of one pass on a CPU, where small passes take as long per token as large ones


@dataclass(frozen=True)
class _Rollouts:
    """A batch of rollouts: their tokens and mask (B, P + T), T, how many pass together at most, and further fields."""

    ids_BL: Tensor
    mask_BL: Tensor
    completion: int
    most: int
    fields: Mapping[str, Any]

    def of(self, rows: list[int], grid_field: str) -> _Rollouts:
        """Some of the rollouts, with their images."""
        fields = {key: field[rows] for key, field in self.fields.items() if key in length_bucketing.BY_TOKEN}
        counts = self.fields.get("num_images")
        if counts is not None:
            has_images = any(counts[row] for row in rows)
            fields |= (
                image_fields(self.fields, rows, counts, grid_field) if has_images else {"num_images": [0] * len(rows)}
            )
        return _Rollouts(self.ids_BL[rows], self.mask_BL[rows], self.completion, self.most, fields)


class LogprobPasses(GRPOTrainer):
    """GRPOTrainer with the passes of this module.

    Attributes:
        rows: "shared": rollouts of one prompt share a row where the model can; "by_length": rows of about equal length pass
            together; "trl": padded rows, like TRL's.
    """

    rows: Rows = "shared"

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, whose shuffle keeps the rollouts of a prompt together, in an update beside prompts of about their length."""
        if not self.keeps_groups:
            return super()._prepare_inputs(generation_batch)
        passes = self.args.gradient_accumulation_steps
        update = self.args.per_device_train_batch_size * passes if passes > 1 else None
        with group_shuffle.by_group(update):
            return super()._prepare_inputs(generation_batch)

    @property
    def keeps_groups(self) -> bool:
        """Whether the shuffle keeps the rollouts of a prompt together, so that a micro-batch has few prompts."""
        return self.rows != "trl" and self.known_family() is not None and not self._micro_batches_matter()

    def _micro_batches_matter(self) -> bool:
        """Whether the loss takes a mean or a quantile over the tokens of one micro-batch, so that its rollouts must be mixed."""
        return self.loss_type == "bnpo" or self.top_entropy_quantile < 1.0 or bool(self._entropy_bonus_enabled)

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
        """Log-probabilities (B, T) and entropies (B, T), 0 for padding."""
        given = {key: field for key, field in fields.items() if field is not None}
        family = self.known_family()
        images_B = given.get("num_images")
        if family is not None and images_B is not None and not any(images_B):
            given = {k: v for k, v in given.items() if k not in ("pixel_values", "num_images", family.grid_field)}
        known = {*length_bucketing.BY_TOKEN, "pixel_values", "num_images", *([family.grid_field] if family else [])}
        is_mixed = "num_images" in given and not all(given["num_images"])  # TRL's pieces may then have no image at all
        if (self.rows == "trl" and not is_mixed) or family is None or compute_aux_loss or not known.issuperset(given):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **given
            )
        image_token = family.image_token_id(self.plain_model.config)
        responses_have_images = bool((input_ids[:, -logits_to_keep:] == image_token).any()) and "num_images" in given
        shares = self._can_share(model) and not responses_have_images
        passes = self._packed if shares else self._by_length
        rollouts = _Rollouts(input_ids, attention_mask, logits_to_keep, batch_size or len(input_ids), given)
        logps_BT, entropies_BT = passes(model, family, rollouts, compute_entropy)
        return logps_BT, entropies_BT, None

    def logps_of(self, model: Any, batch: Mapping[str, Any], batch_size: int | None = None) -> Tensor:
        """Log-probabilities (B, T) of the completions of TRL's `batch`, whose images may have been changed, under `model`.

        Args:
            batch_size: rollouts per pass; None: all together.
        """
        fields = (*IMAGE_FIELDS, (self.known_family() or backbone.default()).grid_field)
        logps_BT, *_ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            batch_size=batch_size,
            **{key: batch[key] for key in fields if batch.get(key) is not None},
        )
        return logps_BT

    def known_family(self) -> Backbone | None:
        """The policy's family, None if no file of fgrpo/policy/backbones describes it."""
        kind = getattr(self.plain_model.config, "model_type", None)
        return backbone.lookup(kind) if kind in backbone.names() else None

    @property
    def plain_model(self) -> Any:
        """The policy without the wrappers of accelerate and peft."""
        return self._plain(self.model)

    def _plain(self, model: Any) -> Any:
        """The model without wrappers; kept, because accelerate looks at every module and at installed packages each time."""
        known = self.__dict__.setdefault("_plain_models", {})
        if id(model) not in known:
            plain: Any = self.accelerator.unwrap_model(model)
            plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
            known[id(model)] = (model, plain)  # the model too, or its id could become another's
        return known[id(model)][1]

    def _can_share(self, model: Any) -> bool:
        """Whether rollouts of a prompt can share a row of this model, the policy or the reference."""
        if self.rows != "shared" or self.known_family() is None:
            return False
        plain = self._plain(model)
        obstacle = packed_inputs.obstacle(plain)
        if obstacle is not None:
            self._say_once(
                f"rollouts of a prompt do not share a row: {obstacle}; rows of about equal length pass together "
                '(rl.shared_prefix="off" hides this line)'
            )
        elif model is self.model and packed_inputs.has_dropout(plain):
            self._say_once(
                "the policy has dropout, and rollouts of a prompt share one draw of it for the prompt "
                '(rl.shared_prefix="off" draws for each rollout)'
            )
        return obstacle is None

    def _say_once(self, text: str) -> None:
        said: set[str] = self.__dict__.setdefault("_said", set())
        if text not in said:
            said.add(text)
            distributed.print_once(text)

    def _longest(self, model: Any) -> int:
        return branch_attention.longest(packed_inputs.attention_of(self._plain(model)))

    # -- rows that share their prompt ----------------------------------------------------------------------------------------

    def _packed(
        self, model: Any, family: Backbone, rollouts: _Rollouts, compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ids_BL, mask_BL, completion = rollouts.ids_BL, rollouts.mask_BL, rollouts.completion
        images, plain, longest = RowImages(rollouts.fields, family.grid_field), self._plain(model), self._longest(model)
        shape = (len(ids_BL), completion)
        logps_BT, entropies_BT = ids_BL.new_zeros(shape, dtype=torch.float32), None
        for chosen in self._passes(rollouts, images, longest):
            if max(pack.tokens for pack in chosen) > longest:
                self._say_once(
                    f"rollouts of more than {longest:,} tokens do not share a row: its mask would cost more than the prompt that is "
                    "saved (flash attention needs no mask)"
                )
                rows = [row for pack in chosen for row in pack.rows]
                logps, entropies = self._by_length(model, family, rollouts.of(rows, family.grid_field), compute_entropy)
                logps_BT = logps_BT + _placed(logps, rows, shape)
                if entropies is not None:
                    part = _placed(entropies, rows, shape)
                    entropies_BT = part if entropies_BT is None else entropies_BT + part
                continue
            layout, given = packed_inputs.packed_inputs(plain, family, images, chosen, ids_BL, mask_BL, completion)
            with self.accelerator.autocast():
                out = model(**given, fused_lm_head=True)
            logps_BT = logps_BT + layout.spread(out.log_probs, shape)
            if compute_entropy:
                part = layout.spread(out.entropy, shape)
                entropies_BT = part if entropies_BT is None else entropies_BT + part
        return logps_BT, entropies_BT

    def _passes(self, rollouts: _Rollouts, images: RowImages, longest: int) -> Iterator[list[Pack]]:
        """The packs of each pass, shorter ones first: of `batch_size` rollouts, or with one process as far as they fit."""
        ids_BL, mask_BL, completion, most = rollouts.ids_BL, rollouts.mask_BL, rollouts.completion, rollouts.most
        in_one_process = self.accelerator.num_processes == 1
        packs = shared_prefix.packs(
            ids_BL, mask_BL, completion, images.same, longest, most=most if in_one_process else None
        )
        if not in_one_process:
            by_length = [row for pack in sorted(packs, key=lambda pack: pack.tokens) for row in pack.rows]
            for start in range(0, len(by_length), most):
                yield _cut(packs, set(by_length[start : start + most]), ids_BL.shape[1] - completion, mask_BL)
            return
        tokens = TOKENS if ids_BL.device.type == "cpu" else None
        held: list[Pack] = []
        for pack in sorted(packs, key=lambda pack: pack.tokens):
            together = sum(len(p.rows) for p in held) + len(pack.rows)
            if held and (together > most or (tokens and (len(held) + 1) * pack.tokens > tokens)):
                yield held
                held = []
            held.append(pack)
        yield held

    # -- rows of about equal length ------------------------------------------------------------------------------------------

    def _by_length(
        self, model: Any, family: Backbone, rollouts: _Rollouts, compute_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        ids_BL, mask_BL, completion, most = rollouts.ids_BL, rollouts.mask_BL, rollouts.completion, rollouts.most
        rest = dict(rollouts.fields)
        by_token = {key: rest.pop(key) for key in length_bucketing.BY_TOKEN if key in rest}
        images_B = rest.get("num_images")
        if ids_BL.device.type == "cpu" and self.accelerator.num_processes == 1:
            most = min(most, length_bucketing.ROWS)
        order: list[int] = []
        parts = []
        for piece in length_bucketing.split(mask_BL, completion, most):
            rows, columns = piece.rows, piece.columns
            tokens = {key: field[rows, columns] for key, field in by_token.items()}
            of_images: dict[str, Any] = {}
            if images_B is not None and any(images_B[row] for row in rows):
                of_images = image_fields(rest, rows, images_B, family.grid_field)
            *result, _ = super()._get_per_token_logps_and_entropies(
                model, ids_BL[rows, columns], mask_BL[rows, columns], piece.completion,
                compute_entropy=compute_entropy, **tokens, **of_images,
            )  # fmt: skip
            order += rows
            widths = (0, completion - piece.completion)
            parts.append([torch.nn.functional.pad(part, widths) for part in result if part is not None])
        original = torch.argsort(torch.tensor(order))
        logps_BT, *entropies_BT = (torch.cat(column)[original] for column in zip(*parts, strict=True))
        return logps_BT, entropies_BT[0] if entropies_BT else None


def _placed(values: Tensor, rows: list[int], shape: tuple[int, int]) -> Tensor:
    """Values (R, T) of some rows as (B, T), 0 for the others; differentiable."""
    values = values.float()
    return values.new_zeros(shape).index_copy(0, torch.tensor(rows, device=values.device), values)


def _cut(packs: Sequence[Pack], chosen: Set[int], prompt: int, mask_BL: Tensor) -> list[Pack]:
    """The part of the packs with the rows `chosen`."""
    found = []
    for pack in packs:
        rows = tuple(row for row in pack.rows if row in chosen)
        if rows:
            lengths = mask_BL[list(rows), prompt:].sum(dim=1) + 1
            shared = int(mask_BL[rows[0], :prompt].sum()) - 1
            found.append(Pack(rows, shared + int(lengths.sum())))
    return found
