"""What the logging callbacks of SFT and RL share: metrics.jsonl and the progress line, on the main process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fgrpo import progress
from fgrpo.training import metrics_file
from fgrpo.training.finite import NotFinite


class MetricsCallback(TrainerCallback):
    """Opens both when training begins and closes them when it ends; a subclass writes a line per log entry (`log`).

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bar: tqdm[Any] | None = None
        self._out: metrics_file.MetricsFile | None = None

    def log(self, state: TrainerState, logs: Mapping[str, Any]) -> None:
        """Write what one log entry of the trainer holds; called while the file is open."""
        raise NotImplementedError

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._out = metrics_file.MetricsFile(self.folder, state.global_step, state.log_history)
            self._bar = progress.bar(self.folder.name, state.max_steps, "step", initial=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._out is not None and logs is not None and metrics_file.SUMMARY_KEY not in logs:
            self.log(state, logs)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether metrics.jsonl is open: in training, on the main process."""
        return self._out is not None

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        assert self._out is not None
        self._out.add(line)

    def stopped(self, error: NotFinite) -> None:
        """Write the line of the step that stopped the run; a resumed run repeats that step and drops the line."""
        if self._out is not None:
            self.add({"step": error.step, metrics_file.NOT_FINITE: {str(error.step): error.cause}})

    def show(self, step: int, text: str | None = None, messages: Sequence[str] = ()) -> None:
        """Move the progress line to `step`, with `text` after it (None: as before) and `messages` above it."""
        if self._bar is None:
            return
        for message in messages:
            self._bar.write(message)
        if text is not None:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Close the file and the progress line; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._out is not None:
            self._out.close()
            self._out = None
