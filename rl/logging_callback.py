"""The files of a run: metrics.jsonl (one line per step), rollouts as parquet, the progress line.

metrics.jsonl holds for each step: accuracy, format, inconsistency (share of judged rollouts whose trace contradicts its
answer; only correct answers are judged in training), `lambda/<name>` (the λ_t that weighed the step), `constraint/<name>/…`,
reward (task + sum of λ_t times the constraints, so its scale moves with λ; the coupled reward where they are coupled), kl,
`aux/<name>` (an auxiliary loss, before its weight), tokens, and seconds by part. Figures are over all processes and come from the trainer's `Step`. Where one generation serves
several updates, each of their lines repeats the generation's figures. On resume the file is truncated to the checkpoint's
step, so no step appears twice.

rollouts/<step>.parquet (named by the first step a generation serves) is self-contained: `COLUMNS` describes its columns, and
is written into the file's own metadata.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerControl, TrainerState, TrainingArguments

from fgrpo import boxes
from fgrpo.images import image_size, portable
from fgrpo.training import metrics_file
from fgrpo.training.metrics_callback import MetricsCallback
from rl.auxiliary_loss import PREFIX
from rl.scored_batch import ScoredBatch, report_named
from rl.step import Step
from rl.trainer import FaithfulGRPOTrainer

ROLLOUTS = "rollouts"
_OF_UPDATE = ("loss", "grad_norm", "learning_rate", "kl", "entropy")  # TRL's, per update
_OF_GENERATION = (
    "num_tokens",
    "completions/mean_length",
    "completions/clipped_ratio",
)  # TRL's; the others are the step's

COLUMNS = {
    "id": "<step of the policy>/<rank>/<row>/<sample id>",
    "step": "the first optimizer step that trains on it",
    "sample_id": "the question's id in rl.jsonl",
    "images": "paths of the images when the file was written",
    "image_bytes": "the images themselves: the files' bytes, or a JPEG of at most 512 pixels per side for files above 64 KiB",
    "image_sizes": "[width, height] of each image as the model saw it, JSON",
    "question": "with its options",
    "gold": "the correct answer",
    "gold_boxes": "annotated boxes with their frames, JSON; null where the source annotates none",
    "text": "what the policy wrote, without special tokens",
    "answer": "the answer that was parsed from it",
    "boxes": "[x1, y1, x2, y2] of its trace in the policy's box frame ('model': pixels of `image_sizes`), JSON",
    "tokens": "length of the completion",
    "advantage": "its weight in the loss",
    "<reward>": "its score; null: not applicable or failed. Then <reward>/state, /reason, and /detail as JSON",
}


def truncate_rollouts(folder: Path, step: int) -> list[int]:
    """Delete rollouts after optimizer step `step`, which are generated again, and files that are not parquet; returns the steps
    whose files remain."""
    remaining = []
    for file in (folder / ROLLOUTS).glob("*.parquet"):
        if file.stem.isdigit() and int(file.stem) <= step and is_parquet(file):
            remaining.append(int(file.stem))
        else:
            file.unlink()
    for part in (folder / ROLLOUTS).glob("*.part"):
        part.unlink()
    return sorted(remaining)


def is_parquet(file: Path) -> bool:
    """Whether a file has parquet's first and last bytes; an empty or truncated one has not."""
    with file.open("rb") as data:
        begins = data.read(4) == b"PAR1"
        if not begins or data.seek(0, os.SEEK_END) < 12:
            return False
        data.seek(-4, os.SEEK_END)
        return data.read(4) == b"PAR1"


def rollout_table(step: Step, pixels: boxes.PixelBounds) -> pa.Table:
    """One row per rollout of one generation, over all processes; the columns are `COLUMNS`.

    Args:
        pixels: the processor's bounds on the images.
    """
    places = [(batch, i) for batch in step.rollouts for i in range(len(batch.items))]
    weighed = zip(places, step.advantages_N.tolist(), strict=True)
    table = pa.Table.from_pylist([_row(batch, i, advantage, pixels) for (batch, i), advantage in weighed])
    return table.replace_schema_metadata({"columns": json.dumps(COLUMNS)})


def _row(batch: ScoredBatch, i: int, advantage: float, pixels: boxes.PixelBounds) -> dict[str, Any]:
    item = batch.items[i]
    sample = item.sample
    row: dict[str, Any] = {
        "id": item.rollout_id,
        "step": batch.step + 1,
        "sample_id": sample.id,
        "images": list(sample.images),
        "image_bytes": [portable(path) for path in sample.images],
        "image_sizes": json.dumps([boxes.model_size(image_size(path), *pixels) for path in sample.images]),
        "question": sample.question,
        "gold": sample.answer,
        "gold_boxes": None if sample.boxes is None else json.dumps([box.to_dict() for box in sample.boxes]),
        "text": batch.texts[i],
        "answer": item.response.answer,
        "boxes": json.dumps([list(box) for box in item.response.boxes]),
        "tokens": batch.tokens[i],
        "advantage": advantage,
    }
    for name, scores in batch.scores.items():
        row[name] = scores[i].value
        row[f"{name}/state"] = scores[i].state
        row[f"{name}/reason"] = scores[i].reason
        row[f"{name}/detail"] = json.dumps(dict(scores[i].detail), ensure_ascii=False)
    return row


class LoggingCallback(MetricsCallback):
    """Writes the files of one run, on the main process only. Set `trainer` after the trainer is built; its alarms
    (`rl.alarms`) are then shown here alone.

    Args:
        folder: the run's.
        pixels: the processor's bounds on the images.
    """

    def __init__(self, folder: Path, pixels: boxes.PixelBounds) -> None:
        super().__init__(folder)
        self.pixels = pixels
        self.trainer: FaithfulGRPOTrainer | None = None
        self._last_line_at = time.perf_counter()
        self._written: Step | None = None
        self._of_generation: dict[str, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero or self.trainer is None:
            return
        (self.folder / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        self._report_lost(truncate_rollouts(self.folder, state.global_step), args, state.global_step)
        super().on_train_begin(args, state, control)
        self._last_line_at = time.perf_counter()

    def _report_lost(self, remaining: Sequence[int], args: Any, step: int) -> None:
        """Rollouts that are missing beside good checkpoints cannot be generated again, so they are reported."""
        updates = max(1, args.steps_per_generation // args.gradient_accumulation_steps)
        lost = sorted(set(range(1, step + 1, updates)) - set(remaining))
        if lost:
            print(
                f"{self.folder / ROLLOUTS} lacks the rollouts of {len(lost)} generations up to step {step} (first: {lost[0]:06d})",
                file=sys.stderr,
            )

    def log(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        """One line per optimizer step, and the rollouts of a generation with its first update."""
        assert self.trainer is not None
        now = time.perf_counter()
        step = self.trainer.last_step
        new_step = step if step is not self._written else None  # None: a further update on the same generation
        self._written = step
        line = self._line(state.global_step, logs, now, new_step)
        self._last_line_at = now
        if new_step is not None and self.trainer.last_alarms:
            line["alarms"] = list(self.trainer.last_alarms)
        if skipped := self.trainer.take_skipped():
            line[metrics_file.NOT_FINITE] = {str(n): cause for n, cause in skipped.items()}
        self.add(line)
        state.log_history[-1].update(line)  # so that a checkpoint carries the file (fgrpo.training.metrics_file)
        if new_step is not None and new_step.rollouts:
            self._write_rollouts(new_step)
        names = [constraint.reward for constraint in self.trainer.dual.constraints]
        self.show(line["step"], progress_text(line, names, self._written), line.get("alarms", ()))

    def _line(self, number: int, logs: Mapping[str, Any], now: float, step: Step | None) -> dict[str, Any]:
        """The line of optimizer step `number`; `step` is its generation's, where this is the first update on it."""
        assert self.trainer is not None
        spent, wall = self.trainer.take_seconds(), now - self._last_line_at
        if step is not None:
            of_trl = {
                key: logs[key] for key in logs if key in _OF_GENERATION or key.startswith(("sampling/", "tokens/"))
            }
            self._of_generation = {**dict.fromkeys(_inverted_metrics(step)), **of_trl, **step.metrics}
        return {
            "step": number,
            **self._of_generation,
            **{key: logs[key] for key in logs if key in _OF_UPDATE or key.startswith(("clip_ratio/", f"{PREFIX}/"))},
            **{f"seconds/{key}": value for key, value in spent.items()},
            "seconds/update": max(wall - sum(spent.values()), 0.0),
            "seconds/step": wall,
        }

    def _write_rollouts(self, step: Step) -> None:
        path = self.folder / ROLLOUTS / f"{step.rollouts[0].step + 1:06d}.parquet"
        part = path.with_suffix(".part")
        pq.write_table(rollout_table(step, self.pixels), part, compression="zstd", write_page_checksum=True)
        os.replace(part, path)


def progress_text(line: Mapping[str, Any], constraints: Sequence[str], step: Step | None) -> str:
    """Accuracy, then mean and λ of each constraint under its report's symbol (else its name).

    Without a constraint: the metrics of inverted rewards, such as inconsistency.

    Args:
        line: of metrics.jsonl.
        constraints: reward names.
        step: the generation's.
    """
    parts = [f"acc {line['accuracy']:.2f}"] if line.get("accuracy") is not None else []
    if not constraints and step is not None:
        parts += [f"{key} {line[key]:.2f}" for key in _inverted_metrics(step) if line.get(key) is not None]
    for name in constraints:
        report, mean = report_named(name), line.get(f"constraint/{name}/mean")
        symbol = report.symbol if report is not None and report.symbol else name
        parts.append(f"{symbol} {'–' if mean is None else f'{mean:.2f}'} λ {line[f'lambda/{name}']:.2f}")
    return ", ".join(parts)


def _inverted_metrics(step: Step) -> list[str]:
    """Metrics of the scored rewards that are reported as their complement ("inconsistency")."""
    reports = [report_named(name) for name in (step.rollouts[0].scores if step.rollouts else ())]
    return [report.metric for report in reports if report is not None and report.inverted]
