"""The anchoring loss: the attention of `<|focus|>` (`fgrpo.policy.focus`) on the image is pulled into the annotated boxes.

For a prompt with boxes, p is the attention of the token over the image tokens of the images that hold boxes, renormalised over
these and averaged over heads and layers. With w_c, the share of cell c that the boxes cover:

    kl      KL(t ‖ p) = Σ_c t_c log(t_c / p_c),   t = (1 - floor) w / Σ w + floor / cells
    mass    - log Σ_c min(w_c, 1) p_c

The row depends on the prompt alone, by causality. So the loss is computed in a pass over prompts without responses, one for each
prompt of a micro-batch; it is the same whatever rows the trainer's own pass has, and it works where those are shared or fused.
Every process makes one such pass per micro-batch, which ZeRO-3 needs, also where no prompt has boxes.

Everything here is ours: of Faithful-MR1 only the abstract is known (docs/mr1.md, docs/deviations.md).
Shapes: B prompts, P prompt tokens, C cells of a prompt's images, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.policy import backbone, cells, focus
from fgrpo.policy.attention_layers import Layers, chosen_layers
from fgrpo.policy.attention_sums import Rows, Sums
from fgrpo.policy.attention_tap import AttentionTap
from fgrpo.policy.tokens import FOCUS
from fgrpo.training.row_images import RowImages
from fgrpo.types import Sample

Shares = list[
    list[float]
]  # of each image of a prompt, the share of each cell (row by row) in its boxes; [] without boxes


class Options(Protocol):
    """What the loss is (`fgrpo.schema_anchor.AnchorLoss`)."""

    @property
    def loss(self) -> str: ...
    @property
    def layers(self) -> Layers: ...
    @property
    def cells(self) -> str: ...
    @property
    def floor(self) -> float: ...


@dataclass(frozen=True)
class Anchored:
    """The loss of some prompts.

    Attributes:
        loss: mean over the prompts with boxes, each as often as it occurs; 0, with a graph, where none has boxes.
        count: occurrences of prompts with boxes.
        inside: mean share of the token's attention on those images that lies in cells that the boxes touch; None without one.
    """

    loss: Tensor
    count: int
    inside: float | None


def shares_of(sample: Sample, bounds: PixelBounds) -> Shares:
    """Cell shares of each image of a sample; [] if it has no usable boxes.

    Args:
        bounds: of the policy's processor.

    Raises:
        one of `fgrpo.images.IMAGE_ERRORS`: an image cannot be read, or a box is in an image that does not exist.
    """
    found = cells.sample_shares(sample, bounds)
    return [] if found is None else [part.flatten().tolist() for part in found]


class Anchoring:
    """Computes the loss for one policy.

    The tap must be open (`with anchoring.tap`) from before the pass until after `backward`.

    Args:
        model: the policy without wrappers.
        tokenizer: its tokenizer.
        options: what the loss is.

    Raises:
        UserError: the policy has no `<|focus|>` token, or its attention cannot be read (`AttentionTap`).
    """

    def __init__(self, model: Any, tokenizer: Any, options: Options) -> None:
        index = focus.focus_id(tokenizer)
        if index is None:
            raise UserError(
                f"the policy has no {FOCUS} token, whose attention is anchored; begin with an anchored checkpoint (`make anchor`, "
                "rl.start=anchor)"
            )
        self.focus, self.options, self.model = index, options, model
        self.family = backbone.of_model(model)
        layers = chosen_layers(model.config.get_text_config(), options.layers)
        self.tap = AttentionTap(model, layers, gradient=True)

    def __call__(
        self,
        model: Any,
        ids_BP: Tensor,
        mask_BP: Tensor,
        images: RowImages,
        shares_B: Sequence[Shares],
        keys_B: Sequence[Hashable],
    ) -> Anchored:
        """The loss of a micro-batch's prompts.

        Args:
            model: the policy in its wrappers.
            ids_BP, mask_BP: prompts, padded on either side.
            images: of these rows.
            shares_B: of each row (`shares_of`).
            keys_B: rows with the same key have the same prompt, which passes once.

        Raises:
            ValueError: a prompt does not have one `<|focus|>`, or other image tokens than its images have cells.
        """
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys_B):
            first.setdefault(key, row)
        occurrences = [sum(key == other for other in keys_B) for key in first]
        chosen = [(row, n) for row, n in zip(first.values(), occurrences, strict=True) if shares_B[row]]
        rows = [row for row, _ in chosen] or [0]
        known = mask_BP[rows].bool()
        columns = known.any(dim=0)
        ids, known = ids_BP[rows][:, columns], known[:, columns]
        is_image = (ids == self.family.image_token_id(self.model.config)) & known
        found = [self._rows(ids[n], is_image[n], known[n], shares_B[row]) for n, row in enumerate(rows)]
        of_images = images.of(rows)
        positions = self.family.positions(
            self.model, ids, is_image, of_images.get(self.family.grid_field), known.long()
        )
        with self.tap.read([row for row, _ in found], keep_image=True) as reading:
            out = model(
                input_ids=ids,
                attention_mask=known.long(),
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
                **of_images,
            )
        read = reading.passes[0]
        # ZeRO-3 follows the backward pass by the outputs of modules, and the loss leaves a layer through its attention alone.
        is_sharded = hasattr(next(self.model.parameters()), "ds_id")
        whole = 0.0 * out.logits.float().sum() if is_sharded else 0.0
        if not chosen:
            nothing = torch.stack([sums.every_HQ.sum() for of_row in read.values() for sums in of_row]).sum()
            return Anchored(0.0 * nothing + whole, 0, None)
        weights_B = torch.tensor([n for _, n in chosen], dtype=torch.float32, device=ids.device)
        log_p_BC = [mean_log_p([of_row[n] for of_row in read.values()]) for n in range(len(rows))]
        losses_B = torch.stack([loss_of(log_p, w, self.options) for log_p, (_, w) in zip(log_p_BC, found, strict=True)])
        with torch.no_grad():
            inside_B = torch.stack([log_p[w > 0].exp().sum() for log_p, (_, w) in zip(log_p_BC, found, strict=True)])
        count = weights_B.sum()
        loss = (losses_B * weights_B).sum() / count + whole
        return Anchored(loss, int(count), float((inside_B * weights_B).sum() / count))

    def _rows(self, ids_P: Tensor, is_image_P: Tensor, known_P: Tensor, shares: Shares) -> tuple[Rows, Tensor]:
        """What the tap reads of one prompt, and the shares w (C,) of the cells that it reads."""
        queries = ((ids_P == self.focus) & known_P).nonzero().flatten()
        if len(queries) != 1:
            raise ValueError(f"a prompt has {len(queries)} {FOCUS} tokens, and needs one at the end of its user turn")
        columns, sizes = is_image_P.nonzero().flatten(), [len(part) for part in shares]
        if not shares:
            return Rows(queries, columns, columns[:0]), torch.zeros(len(columns), device=ids_P.device)
        if len(columns) != sum(sizes):
            raise ValueError(f"a prompt has {len(columns)} image tokens for images of {sum(sizes)} cells")
        parts = [(part, w) for part, w in zip(columns.split(sizes), shares, strict=True) if any(w)]
        columns = torch.cat([part for part, _ in parts])
        w_C = torch.tensor([share for _, w in parts for share in w], dtype=torch.float32, device=ids_P.device)
        return Rows(queries, columns, columns[w_C > 0]), w_C


def mean_log_p(of_layers: Sequence[Sums]) -> Tensor:
    """log p (C,) of the only query: the mean of p over heads and layers."""
    rows = [sums.image_HQI[:, 0] for sums in of_layers if sums.image_HQI is not None]
    stacked = torch.cat(rows)
    return stacked.logsumexp(dim=0) - math.log(len(stacked))


def target(w_C: Tensor, options: Options) -> Tensor:
    """The distribution t (C,) of the module's docstring; w: shares, positive somewhere."""
    chosen = (w_C > 0).to(w_C.dtype) if options.cells == "touched" else w_C
    return (1 - options.floor) * chosen / chosen.sum() + options.floor / len(w_C)


def loss_of(log_p_C: Tensor, w_C: Tensor, options: Options) -> Tensor:
    """The loss of one prompt, a scalar: `options.loss` of the module's docstring."""
    if options.loss == "kl":
        t_C = target(w_C, options)
        return torch.special.xlogy(t_C, t_C).sum() - (t_C * log_p_C).sum()
    chosen = (w_C > 0).to(w_C.dtype) if options.cells == "touched" else w_C.clamp(max=1.0)
    inside = w_C > 0
    return -(log_p_C[inside] + chosen[inside].log()).logsumexp(dim=0)
