"""What a run leaves to be looked at: metrics.jsonl (one line a step), rollouts as parquet, one progress line, alarms in words.

metrics.jsonl holds for each step: accuracy, format, inconsistency (share of judged rollouts whose trace contradicts its
answer; only right answers are judged in training), `lambda/<name>` (the λ_t that weighed the step), `constraint/<name>/…`,
reward (TRL's: task + sum of λ_t times the constraints, so its scale moves with λ; the one reward where they are coupled), kl,
tokens, and the time split. Figures are over all processes; where one generation serves several updates, each of their lines
repeats the generation's. On resume the file is cut back to the checkpoint's step, so nothing stands twice.

rollouts/<step>.parquet (named by the first step a generation serves) stands alone: `COLUMNS` says what its columns are, and
is written into the file's own metadata.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fgrpo import boxes, progress
from fgrpo.images import image_size, portable
from fgrpo.training import metrics_file
from rl.dual import Constraint
from rl.scoring import RolloutScorer, ScoredBatch
from rl.trainer import FaithfulGRPOTrainer

ROLLOUTS = "rollouts"
_OF_UPDATE = ("loss", "grad_norm", "learning_rate", "kl", "entropy")
_OF_GENERATION = (
    *("accuracy", "format", "inconsistency", "failed", "boxes_dropped", "reward", "num_tokens"),
    *("completions/mean_length", "completions/clipped_ratio"),
)
_PREFIXES = ("constraint/", "lambda/", "monitor/", "task/", "sampling/")
_SHORT = {"consistency": "C", "spatial_grounding": "S", "semantic_grounding": "G"}


COLUMNS = {
    "id": "<step of the policy>/<process>/<row>/<sample id>",
    "step": "the first optimiser step that trains on it",
    "sample_id": "the question's id in rl.jsonl",
    "images": "paths of the pictures when it was written",
    "pictures": "the pictures themselves: the files' bytes, or a JPEG of at most 512 pixels a side where a file is larger than 64 KiB",
    "picture_sizes": "[width, height] of each picture as the model saw it, JSON: the frame of `boxes`",
    "question": "with its options",
    "gold": "the right answer",
    "gold_boxes": "annotated boxes with their frames, JSON; null where the source annotates none",
    "text": "what the policy wrote, without special tokens",
    "answer": "what was read as its answer",
    "boxes": "[x1, y1, x2, y2] of its trace in pixels of `picture_sizes`, JSON",
    "tokens": "length of the completion",
    "advantage": "what weighed it in the loss",
    "<reward>": "its score; null: not applicable or failed. Then <reward>/state, /reason, and /detail as JSON",
}


def cut_back(folder: Path, step: int) -> list[int]:
    """Forget rollouts after optimiser step `step` (they are going to be done again); returns the steps whose files are there."""
    kept = []
    for file in (folder / ROLLOUTS).glob("*.parquet"):
        if file.stem.isdigit() and int(file.stem) <= step:
            kept.append(int(file.stem))
        else:
            file.unlink()
    for part in (folder / ROLLOUTS).glob("*.part"):
        part.unlink()
    return sorted(kept)


def rollout_table(batches: Sequence[ScoredBatch], pixels: boxes.PixelBounds) -> pa.Table:
    """One row a rollout of one generation (one batch a process); the columns are `COLUMNS`.

    Args:
        pixels: the processor's bounds on the pictures.
    """
    rows = [_row(batch, i, pixels) for batch in batches for i in range(len(batch.items))]
    table = pa.Table.from_pylist(rows)
    return table.replace_schema_metadata({"columns": json.dumps(COLUMNS)})


def _row(batch: ScoredBatch, i: int, pixels: boxes.PixelBounds) -> dict[str, Any]:
    item = batch.items[i]
    sample = item.sample
    row: dict[str, Any] = {
        "id": item.rollout_id,
        "step": batch.step + 1,
        "sample_id": sample.id,
        "images": list(sample.images),
        "pictures": [portable(path) for path in sample.images],
        "picture_sizes": json.dumps([boxes.model_size(image_size(path), *pixels) for path in sample.images]),
        "question": sample.question,
        "gold": sample.answer,
        "gold_boxes": None if sample.boxes is None else json.dumps([box.to_dict() for box in sample.boxes]),
        "text": batch.texts[i],
        "answer": item.response.answer,
        "boxes": json.dumps([list(box) for box in item.response.boxes]),
        "tokens": batch.tokens[i],
        "advantage": batch.advantages[i] if batch.advantages else None,
    }
    for name, scores in batch.scores.items():
        row[name] = scores[i].value
        row[f"{name}/state"] = scores[i].state
        row[f"{name}/reason"] = scores[i].reason
        row[f"{name}/detail"] = json.dumps(dict(scores[i].detail), ensure_ascii=False)
    return row


class Alarms:
    """Says in words what goes wrong for `EVERY` dual steps (generations) in a row: a multiplier at its bound, a signal that
    teaches nothing."""

    EVERY = 50

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        self.constraints = constraints
        self._silent: Counter[str] = Counter()

    def of(self, line: Mapping[str, Any]) -> list[str]:
        """The alarms that a generation's first line of metrics.jsonl raises."""
        said = []
        for constraint in self.constraints:
            name = constraint.reward
            stuck = int(line.get(f"constraint/{name}/at_bound") or 0)
            if stuck and stuck % self.EVERY == 0:
                said.append(
                    f"{name} has been at its bound λ = {constraint.lam_max:g} for {stuck} steps and is still violated: "
                    f"τ = {constraint.tau:g} looks infeasible"
                )
            self._silent[name] = 0 if line.get(f"constraint/{name}/mixed_share") else self._silent[name] + 1
            if self._silent[name] % self.EVERY == 0 and self._silent[name]:
                said.append(
                    f"{name} has varied in no group for {self._silent[name]} steps: it moves λ, but no policy gradient comes of it "
                    "(rl.baseline=batch lets it speak)"
                )
        return said


class Logbook(TrainerCallback):
    """Writes the files of one run; only the main process does. `trainer` is set after the trainer is built."""

    def __init__(self, folder: Path, scorer: RolloutScorer, total: int, pixels: boxes.PixelBounds) -> None:
        self.folder, self.scorer, self.total, self.pixels = folder, scorer, total, pixels
        self.trainer: FaithfulGRPOTrainer | None = None
        self._bar: tqdm[Any] | None = None
        self._out: metrics_file.MetricsFile | None = None
        self._last = time.perf_counter()
        self._written = -1
        self._of_generation: dict[str, Any] = {}
        self._alarms = Alarms(())

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero or self.trainer is None:
            return
        (self.folder / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        self._say_lost(cut_back(self.folder, state.global_step), args, state.global_step)
        self._out = metrics_file.MetricsFile(self.folder, state.global_step, state.log_history)
        self._bar = progress.bar(self.folder.name, self.total, "step", initial=state.global_step)
        self._alarms = Alarms(self.trainer.dual.constraints)
        self._last = time.perf_counter()

    def _say_lost(self, kept: Sequence[int], args: Any, step: int) -> None:
        """Rollouts beside good checkpoints that are gone cannot be made again, but it is said."""
        updates = max(1, args.steps_per_generation // args.gradient_accumulation_steps)
        lost = sorted(set(range(1, step + 1, updates)) - set(kept))
        if lost:
            where = self.folder / ROLLOUTS
            print(
                f"{where} lacks the rollouts of {len(lost)} generations up to step {step} (first: {lost[0]:06d})",
                file=sys.stderr,
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self.trainer is None or logs is None or "train_runtime" in logs:
            return
        began = time.perf_counter()
        batches = self._new_batches()
        if self._out is None:  # not the main process
            return
        line = self._line(state.global_step, logs, began, is_new=bool(batches))
        self._last = began
        if batches and (said := self._alarms.of(line)):
            line["alarms"] = said
        self._out.add(line)
        state.log_history[-1].update(line)  # so that a checkpoint carries the file (fgrpo.training.metrics_file)
        self._write_rollouts(batches)
        self._show(line)

    def _new_batches(self) -> list[ScoredBatch]:
        """The batches of all processes, when a generation has come since the last call; else none."""
        batch = self.scorer.batch
        if batch is None or batch.step == self._written or self.trainer is None:
            return []
        self._written = batch.step
        mine = replace(batch, advantages=tuple(self.trainer.advantages))
        return list(gather_object([mine])) if self.trainer.accelerator.num_processes > 1 else [mine]

    def _line(self, step: int, logs: Mapping[str, Any], now: float, *, is_new: bool) -> dict[str, Any]:
        """What is known of one step. `is_new`: its updates are the first on their generation."""
        assert self.trainer is not None
        spent, wall = self.trainer.take_seconds(), now - self._last
        own = {key: logs[key] for key in logs if key in _OF_UPDATE or key.startswith("clip_ratio/")}
        shared = {key: logs[key] for key in logs if key in _OF_GENERATION or key.startswith(_PREFIXES)}
        if is_new:
            self._of_generation = shared
            if "consistency" in (*self.scorer.names, *self.scorer.monitored):
                shared.setdefault("inconsistency", None)
        return {
            "step": step,
            **self._of_generation,
            **own,
            **{f"seconds/{key}": value for key, value in spent.items()},
            "seconds/update": max(wall - sum(spent.values()), 0.0),
            "seconds/step": wall,
        }

    def _write_rollouts(self, batches: Sequence[ScoredBatch]) -> None:
        if not batches:
            return
        path = self.folder / ROLLOUTS / f"{batches[0].step + 1:06d}.parquet"
        aside = path.with_suffix(".part")
        pq.write_table(rollout_table(batches, self.pixels), aside, compression="zstd")
        os.replace(aside, path)

    def _show(self, line: Mapping[str, Any]) -> None:
        if self._bar is None or self.trainer is None:
            return
        for alarm in line.get("alarms", ()):
            self._bar.write(alarm)
        parts = [f"acc {line['accuracy']:.2f}"]
        if not self.trainer.dual.constraints and line.get("inconsistency") is not None:
            parts.append(f"inconsistent {line['inconsistency']:.2f}")
        for constraint in self.trainer.dual.constraints:
            name = constraint.reward
            mean = line.get(f"constraint/{name}/mean")
            shown = "–" if mean is None else f"{mean:.2f}"
            parts.append(f"{_SHORT.get(name, name)} {shown} λ {line[f'lambda/{name}']:.2f}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(line["step"] - self._bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and the progress line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._out is not None:
            self._out.close()
            self._out = None
