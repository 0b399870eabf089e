"""The anchor stage (`make anchor`): the SFT model gets the token `<|focus|>`, whose attention is pulled into the annotated boxes.

Reads runs/<preset>/{sft/final, mcts/sft.jsonl, data/seed.jsonl}; writes runs/<preset>/anchor/{start/, metrics.jsonl, checkpoints/,
final/}. `start` is the SFT model with the token (`fgrpo.policy.focus`). Training is that of the SFT stage, on the same traces and
with the keys of `sft`, but for the length and learning rate of `anchor`; the loss is

    SFT's loss on the traces + anchor.weight x mean over the traces of the anchoring loss (`fgrpo.training.anchoring`).

A trace whose question has no usable boxes counts 0 in the second term, and is counted. metrics.jsonl has, over those with boxes,
`anchor/loss` and `anchor/inside`, the share of the token's attention that lies in the boxes; with `eval_` in front, on the
validation questions.
Command: `python -m sft.anchor --preset mini`. Nothing of this is in the paper of Faithful GRPO (docs/mr1.md).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fgrpo import runs
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS
from fgrpo.policy import focus, model_files
from fgrpo.resume import FRESH
from fgrpo.schema import Config
from fgrpo.schema_anchor import Anchor
from fgrpo.training import distributed, launch
from fgrpo.training.anchoring import Anchored, Anchoring, Shares, shares_of
from fgrpo.training.row_images import RowImages
from fgrpo.training.shared_prefix import IGNORED
from fgrpo.training.stored import put_in_place
from fgrpo.types import Sample
from sft import dataset
from sft import train as sft_train
from sft.configured import check_anchor

SHARES, QUESTION = "anchor_shares", "anchor_question"  # columns of the data set
IMAGES = "anchor_images"  # of a batch: images of each row
LOSS, INSIDE = "anchor/loss", "anchor/inside"  # in the log
ROWS = "anchor/rows"  # how many rows with boxes the sums of both are over, until they are logged


class AnchorTrainer(sft_train.Trainer):
    """The SFT trainer with the anchoring loss.

    Args:
        anchor: the configuration's section.
    """

    def __init__(self, *args: Any, anchor: Anchor, **more: Any) -> None:
        super().__init__(*args, **more)
        tokenizer = getattr(self.processing_class, "tokenizer", self.processing_class)
        self.anchoring = Anchoring(self.plain_model, tokenizer, anchor)
        self.weight = anchor.weight
        self.data_collator = _with_columns(self.data_collator)

    def train(self, *args: Any, **more: Any) -> Any:
        """As the SFT trainer's; the tap is open meanwhile."""
        with self.anchoring.tap:
            return super().train(*args, **more)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **more: Any) -> Any:
        """The SFT trainer's, plus the weighted anchoring loss of the micro-batch's prompts."""
        shares_B = [json.loads(text) for text in inputs.pop(SHARES)]
        questions_B = inputs.pop(QUESTION)
        kept = {**inputs, "num_images": inputs.pop(IMAGES)}
        result = super().compute_loss(model, inputs, *args, **more)
        is_prompt = (kept["labels"] == IGNORED) & (kept["attention_mask"] == 1)
        images = RowImages(kept, self.anchoring.family.grid_field)
        anchored = self.anchoring(model, kept["input_ids"], is_prompt, images, shares_B, questions_B)
        self._log_anchored("train" if self.plain_model.training else "eval", anchored)
        added = (
            self.weight * anchored.loss * (anchored.count / len(shares_B))
        )  # so rows weigh the same in every micro-batch
        if (
            more.get("num_items_in_batch") is not None
        ):  # transformers then leaves the accumulated micro-batches to the loss
            added = added / self.current_gradient_accumulation_steps
        return (result[0] + added, *result[1:]) if isinstance(result, tuple) else result + added

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, which has the mean of each list; those of `_log_anchored` become means over the rows with boxes."""
        figures = self._metrics["train" if self.plain_model.training else "eval"]
        counts = figures.pop(ROWS, [])
        for key in (LOSS, INSIDE) if counts else ():
            figures[key] = [sum(figures[key]) / sum(counts)]
        super().log(logs, start_time)

    def _log_anchored(self, mode: str, anchored: Anchored) -> None:
        """Sums over the rows with boxes of all processes, and their number; nothing where none has boxes."""
        own = torch.tensor(
            [anchored.count, anchored.count * float(anchored.loss.detach()), anchored.count * (anchored.inside or 0.0)],
            dtype=torch.float64,
        )
        count, loss, inside = self.accelerator.gather(own.to(self.accelerator.device)[None]).sum(dim=0).tolist()
        if count:
            for key, value in ((ROWS, count), (LOSS, loss), (INSIDE, inside)):
                self._metrics[mode][key].append(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    launch.run_stage("sft.anchor", __doc__, train, argv)


def train(cfg: Config, root: str | Path = "runs") -> Path:
    """Run or resume the stage and return its folder. Every process of the run calls it (see `fgrpo.training.launch`).

    Raises:
        UserError: an earlier stage's output is missing, adapters are configured, no trace has boxes, or the model has no room for
            the token or attention that cannot be read.
    """
    is_main = distributed.rank() == 0
    traces = runs.require(runs.folder(cfg, "mcts", root) / "sft.jsonl", "mcts", check=is_main)
    questions = runs.require(runs.folder(cfg, "data", root) / "seed.jsonl", "data", check=is_main)
    policy = runs.require(runs.folder(cfg, "sft", root) / "final", "sft", check=is_main)
    check_anchor(cfg)
    with (
        distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, "anchor", [traces, questions, policy], root) as run,
    ):
        if distributed.on_main(lambda: run.is_done):
            distributed.print_once(f"{run.path} is already done")
            return run.path
        distributed.on_main(lambda: sft_train.check_images(cfg, traces, root))
        start = run.path / FRESH
        distributed.on_main(lambda: prepare(policy, start, cfg.anchor))
        own = stage_config(cfg, start)
        samples = {sample.id: sample for sample in read_questions(questions)}
        columns = partial(
            columns_of, samples=samples, pixels=model_files.carried_bounds(start, cfg.policy.pixels), counts=run.counts
        )
        kind = partial(AnchorTrainer, anchor=cfg.anchor)
        return sft_train.fit(own, run, lambda: sft_train.build_trainer(own, run, traces, kind, columns))


def stage_config(cfg: Config, start: Path) -> Config:
    """`cfg` as the SFT stage reads it, with the length, rate and model of this stage."""
    anchor = cfg.anchor
    own = {"epochs": anchor.epochs, "max_steps": anchor.max_steps, "learning_rate": anchor.learning_rate}
    return cfg.model_copy(
        update={
            "sft": cfg.sft.model_copy(update=own),
            "models": cfg.models.model_copy(update={"base": str(start)}),
        }
    )


def prepare(policy: Path, start: Path, anchor: Anchor) -> None:
    """Write `policy` with the token to `start`, unless an earlier run did. Raises UserError as `fgrpo.policy.focus.add`."""
    if not start.exists():
        unfinished = start.with_name(start.name + ".part")
        focus.add(policy, unfinished, add_row=anchor.add_row)
        put_in_place(unfinished, start)


def read_questions(path: Path) -> list[Sample]:
    """The samples of a file of questions. UserError: a row is none."""
    samples = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            samples.append(Sample.from_dict(row))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number} is no question ({error!r}); rerun `make data`") from error
    return samples


def columns_of(
    rows: Sequence[dataset.Row], samples: Mapping[str, Sample], pixels: PixelBounds, counts: Counter[str]
) -> dict[str, list[str]]:
    """The columns that `AnchorTrainer` reads: cell shares, and which rows have the same prompt.

    Args:
        samples: questions by id.
        pixels: the processor's bounds.
        counts: gets the number of traces with and without boxes.

    Raises:
        UserError: no row has boxes.
    """
    found: dict[str, Shares] = {}
    for row in rows:
        if row.sample_id not in found:
            found[row.sample_id] = _shares(row, samples.get(row.sample_id), pixels, counts)
    shares = [found[row.sample_id] for row in rows]
    anchored = sum(map(bool, shares))
    counts["traces with boxes"] += anchored
    counts["traces without boxes"] += len(rows) - anchored
    if not counts["traces with boxes"]:
        raise UserError(
            "no trace's question has annotated boxes, so there is nothing to anchor to; add a source with boxes to data.sources "
            "(seed questions), then rerun `make data`"
        )
    return {SHARES: list(map(json.dumps, shares)), QUESTION: [row.sample_id for row in rows]}


def _shares(row: dataset.Row, sample: Sample | None, pixels: PixelBounds, counts: Counter[str]) -> Shares:
    """Of the row's images; [] for a question that is not known, or whose boxes cannot be placed in them."""
    if sample is None or len(sample.images) != len(row.images):
        counts["questions that are not in seed.jsonl"] += 1
        return []
    try:
        return shares_of(replace(sample, images=row.images), pixels)
    except IMAGE_ERRORS:  # a box in an image that does not exist; unreadable images were dropped before
        counts["questions whose boxes are in no image"] += 1
        return []


def _with_columns(collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """The collator, which passes the two columns on."""

    def collated(rows: list[dict[str, Any]]) -> Any:
        own: dict[str, list[Any]] = {name: [row.pop(name) for row in rows] for name in (SHARES, QUESTION)}
        own[IMAGES] = [len(row["images"]) for row in rows]
        batch = collate(rows)
        batch.update(own)
        return batch

    return collated


if __name__ == "__main__":
    main()
