"""What a run leaves to be looked at: metrics.jsonl (one line a step), rollouts as parquet, one progress line, alarms in words.

metrics.jsonl holds for each step: accuracy, format, inconsistency (share of judged rollouts whose trace contradicts its
answer; only right answers are judged in training), `lambda/<name>` (the λ_t that weighed the step), `constraint/<name>/…`,
reward, kl, tokens, and the time split. On resume the file is cut back to the checkpoint's step, so nothing stands twice.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fgrpo import jsonl, progress
from rl.scoring import TASK, RolloutScorer, ScoredBatch
from rl.trainer import FaithfulGRPOTrainer

METRICS, ROLLOUTS = "metrics.jsonl", "rollouts"
ALARM_EVERY = 50  # steps in a row at the bound
_KEPT = (
    "reward",
    "kl",
    "entropy",
    "loss",
    "grad_norm",
    "learning_rate",
    "num_tokens",
    "completions/mean_length",
    "completions/clipped_ratio",
)
_SHORT = {"consistency": "C", "spatial_grounding": "S", "semantic_grounding": "G"}


def cut_back(folder: Path, step: int) -> None:
    """Forget what was logged after optimiser step `step`: those steps are going to be done again."""
    path = folder / METRICS
    if path.exists():
        jsonl.write(path, [line for line in jsonl.read(path) if line["step"] <= step])
    for file in (folder / ROLLOUTS).glob("*.parquet"):
        if not file.stem.isdigit() or int(file.stem) > step:
            file.unlink()
    for part in (folder / ROLLOUTS).glob("*.part"):
        part.unlink()


def rollout_table(batch: ScoredBatch, advantages: list[float] | None = None) -> pd.DataFrame:
    """One row a rollout: text, answer, picture paths, and each score with its reason and detail (JSON)."""
    rows = []
    for i, item in enumerate(batch.items):
        row: dict[str, Any] = {
            "id": item.rollout_id,
            "step": batch.step + 1,
            "sample_id": item.sample.id,
            "images": list(item.sample.images),
            "question": item.sample.question,
            "gold": item.sample.answer,
            "text": batch.texts[i],
            "answer": item.response.answer,
            "boxes": json.dumps([list(box) for box in item.response.boxes]),
            "tokens": batch.tokens[i],
        }
        for name, scores in batch.scores.items():
            row[name] = scores[i].value
            row[f"{name}/state"] = scores[i].state
            row[f"{name}/reason"] = scores[i].reason
            row[f"{name}/detail"] = json.dumps(dict(scores[i].detail), ensure_ascii=False)
        if advantages is not None:
            row["advantage"] = advantages[i]
        rows.append(row)
    return pd.DataFrame(rows)


def batch_figures(batch: ScoredBatch, monitored: Sequence[str] = ()) -> dict[str, float | None]:
    """accuracy, format, inconsistency (None where nothing was judged), failed, judged and dropped boxes of one batch."""
    task = [dict(score.detail) for score in batch.scores[TASK]]
    figures: dict[str, float | None] = {
        "accuracy": sum(d["accuracy"] for d in task) / len(task),
        "format": sum(d["format"] for d in task) / len(task),
        "failed": float(sum(score.failed for column in batch.scores.values() for score in column)),
        "boxes_dropped": float(sum(item.response.dropped_boxes for item in batch.items)),
    }
    if "consistency" in batch.scores:
        judged = [score.value for score in batch.scores["consistency"] if score.value is not None]
        figures["inconsistency"] = 1 - sum(judged) / len(judged) if judged else None
    for name in monitored:
        values = [score.value for score in batch.scores[name] if score.value is not None]
        figures[f"monitor/{name}/mean"] = sum(values) / len(values) if values else None
        figures[f"monitor/{name}/n"] = float(len(values))
    return figures


class Logbook(TrainerCallback):
    """Writes the files of one run; only the main process does. `trainer` is set after the trainer is built."""

    def __init__(self, folder: Path, scorer: RolloutScorer, total: int) -> None:
        self.folder, self.scorer, self.total = folder, scorer, total
        self.trainer: FaithfulGRPOTrainer | None = None
        self._bar: tqdm[Any] | None = None
        self._out: Any = None
        self._began = self._last = time.perf_counter()
        self._written = -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        (self.folder / ROLLOUTS).mkdir(parents=True, exist_ok=True)
        cut_back(self.folder, state.global_step)
        self._out = (self.folder / METRICS).open("a", encoding="utf-8")
        self._bar = progress.bar(self.folder.name, self.total, "step", initial=state.global_step)
        self._last = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if (
            not state.is_world_process_zero
            or self._out is None
            or self.trainer is None
            or logs is None
            or "train_runtime" in logs
        ):
            return
        now = time.perf_counter()
        spent, wall = self.trainer.take_seconds(), now - self._last
        self._last = now
        line: dict[str, Any] = {"step": state.global_step}
        batch = self.scorer.batch
        if batch is not None:
            line |= batch_figures(batch, self.scorer.monitored)
        line |= {f"lambda/{name}": lam for name, lam in self.trainer.dual.lam.items()}
        line |= {
            key: logs[key] for key in logs if key in _KEPT or key.startswith(("constraint/", "lambda/", "clip_ratio/"))
        }
        line |= {f"seconds/{key}": value for key, value in spent.items()}
        line |= {"seconds/update": max(wall - sum(spent.values()), 0.0), "seconds/step": wall}
        self._out.write(jsonl.dumps({key: _plain(value) for key, value in line.items()}) + "\n")
        self._out.flush()
        self._write_rollouts(batch)
        self._show(line)

    def _write_rollouts(self, batch: ScoredBatch | None) -> None:
        if batch is None or batch.step == self._written:
            return
        self._written = batch.step
        path = self.folder / ROLLOUTS / f"{batch.step + 1:06d}.parquet"
        aside = path.with_suffix(".part")
        rollout_table(batch).to_parquet(aside)
        os.replace(aside, path)

    def _show(self, line: Mapping[str, Any]) -> None:
        if self._bar is None or self.trainer is None:
            return
        parts = [f"acc {line.get('accuracy', 0):.2f}"]
        if not self.trainer.dual.constraints and line.get("inconsistency") is not None:
            parts.append(f"inconsistent {line['inconsistency']:.2f}")
        for constraint in self.trainer.dual.constraints:
            name = constraint.reward
            mean = line.get(f"constraint/{name}/mean")
            parts.append(
                f"{_SHORT.get(name, name)} {'–' if mean is None else f'{mean:.2f}'} λ {line[f'lambda/{name}']:.2f}"
            )
            streak = int(line.get(f"constraint/{name}/at_bound") or 0)
            if streak and streak % ALARM_EVERY == 0:
                self._bar.write(
                    f"{name} has been at its bound λ = {constraint.lam_max:g} for {streak} steps and is still violated: "
                    f"τ = {constraint.tau:g} looks infeasible"
                )
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


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not a finite number is no value."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
