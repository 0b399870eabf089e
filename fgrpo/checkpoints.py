"""Checkpoints that are complete or not there: written in a folder aside, renamed at the end, older ones removed after that.

`AsideCheckpoints` is a mixin for transformers trainers (put it before the trainer class); `last_checkpoint` finds where to go
on. Imports transformers inside functions only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fgrpo.errors import UserError

PREFIX = "checkpoint"
ASIDE = ".part"
STATE = "trainer_state.json"

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class WrongCheckpoint(UserError, ValueError):
    """A checkpoint that is broken or does not belong to this run."""


class AsideCheckpoints(_Base):
    """Saves whole checkpoints only. A subclass adds files of its own in `_write_extra`."""

    _aside = False

    def _write_extra(self, folder: Path) -> None:
        """Called on the main process with the unfinished checkpoint's folder."""

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, ASIDE) if self._aside else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        from transformers.trainer_utils import rotate_checkpoints

        folder = Path(super()._get_output_dir(trial))
        aside, name = folder / ASIDE, f"{PREFIX}-{self.state.global_step}"
        self._on_main(lambda: shutil.rmtree(aside, ignore_errors=True))
        self._aside = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._aside = False

        def finish() -> None:
            self._write_extra(aside / name)
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            os.replace(aside / name, folder / name)
            shutil.rmtree(aside, ignore_errors=True)
            rotate_checkpoints(output_dir=str(folder), save_total_limit=self.args.save_total_limit, use_mtime=True)

        self._on_main(finish)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights as `from_pretrained` does, and insist that each has its place.

        transformers saves a Qwen2.5-VL under other names ("visual.…") than its modules have ("model.visual.…"); its
        Trainer then loads none of them on resume, with a warning, and training would go on from the base model.
        """
        target: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        if hasattr(target, "peft_config") or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with _fits(resume_from_checkpoint):
            saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
            target.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _fits(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _fits(checkpoint):
            super()._load_rng_state(checkpoint)

    def _on_main(self, work: Callable[[], object]) -> None:
        """Do `work` on the main process while the others wait."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            work()
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None: the run's manifest says what a checkpoint is."""


def save_whole(trainer: Any, folder: Path, extra: Callable[[Path], object] | None = None) -> None:
    """A trainer's model and processor as `folder`, written aside and renamed; of adapters, the whole model they amount to.

    Every process calls it.

    Args:
        extra: writes more into the unfinished folder; called on the main process.
    """
    from fgrpo import adapters

    aside = folder.with_name(folder.name + ".part")
    if trainer.accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if adapters.is_adapted(trainer.accelerator.unwrap_model(trainer.model)):
        adapters.save_merged(trainer, aside)
    else:
        trainer.save_model(str(aside))
    if trainer.accelerator.is_main_process:
        if extra is not None:
            extra(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    trainer.accelerator.wait_for_everyone()


@contextmanager
def _fits(checkpoint: str | None) -> Iterator[None]:
    """What goes wrong inside, while a checkpoint is read, is a `WrongCheckpoint`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        if checkpoint is None or isinstance(error, UserError):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WrongCheckpoint(
            f"{checkpoint} cannot be gone on from ({first:.200}): it is broken or belongs to another configuration; "
            "delete that folder to go on from the one before, or from the start"
        ) from error


def last_checkpoint(folder: str | Path, needed: Sequence[str] = (STATE,)) -> Path | None:
    """The newest complete checkpoint of `folder`; half-written ones are passed over.

    Args:
        needed: JSON files that a complete checkpoint has.
    """
    found = []
    for path in Path(folder).glob(f"{PREFIX}-*"):
        number = path.name.rsplit("-", 1)[1]
        if number.isdigit() and all(_is_json(path / name) for name in needed) and _has_weights(path):
            found.append((int(number), path))
    return max(found)[1] if found else None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _has_weights(path: Path) -> bool:
    return any(path.glob("*.safetensors")) or any(path.glob("global_step*"))
