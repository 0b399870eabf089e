"""Checkpoints that are complete or not there: written in a folder aside, renamed at the end, older ones removed after that.

`AtomicCheckpoints` is a mixin for transformers trainers (put it before the trainer class); `last_checkpoint` finds where to go
on. Imports transformers inside functions only.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fgrpo.errors import UserError
from fgrpo.runs import write_json

PREFIX = "checkpoint"
ASIDE = ".part"
STATE = "trainer_state.json"
PROCESSES = "processes.json"
SFT_KEPT = 2  # checkpoints of SFT: the last, and the one before it
_OF_MACHINE = (
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
)

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object


class WrongCheckpoint(UserError, ValueError):
    """A checkpoint that is broken or does not belong to this run."""


class AtomicCheckpoints(_Base):
    """Saves whole checkpoints only. A subclass adds files of its own in `_write_extra`.

    With several processes each writes its part into the folder aside; the main one renames it when all have. A checkpoint
    knows for how many processes it was cut (`processes.json`), and is refused by others in words.
    """

    processes_make_the_batch = True  # whether another number of processes would see other batches
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
            write_json(aside / name / PROCESSES, self._processes())
            self._name_best(aside, folder)
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            os.replace(aside / name, folder / name)
            shutil.rmtree(aside, ignore_errors=True)
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

        self._on_main(finish)
        self._name_best(aside, folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """transformers' own, without the copies of tied weights that DeepSpeed's collected state holds."""
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        if state_dict is not None:
            state_dict = {n: t for n, t in state_dict.items() if n not in tied or tied[n] not in state_dict}
        super()._save(output_dir, state_dict)

    def _name_best(self, aside: Path, folder: Path) -> None:
        """transformers has looked for the best checkpoint where this one is written; it is going to lie in `folder`."""
        best = self.state.best_model_checkpoint
        if best is None or Path(best).parent != aside:
            return
        self.state.best_model_checkpoint = str(folder / Path(best).name)
        file = aside / f"{PREFIX}-{self.state.global_step}" / STATE
        if self.args.should_save and file.exists():
            self.state.save_to_json(str(file))

    def _processes(self) -> dict[str, int]:
        """How the states of a checkpoint are cut: processes, and the stage of ZeRO (0 without DeepSpeed)."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return {"processes": int(self.args.world_size), "zero": int(plugin.zero_stage) if plugin is not None else 0}

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **more: Any) -> Any:
        """transformers' own, for a checkpoint that this run's processes can read.

        Raises:
            WrongCheckpoint: its states are cut for other processes.
        """
        from transformers.trainer_utils import get_last_checkpoint

        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        if found:
            self._check_processes(Path(found))
        return super().train(resume_from_checkpoint, *others, **more)

    def _check_processes(self, checkpoint: Path) -> None:
        if not (checkpoint / PROCESSES).exists():
            return
        saved, here = json.loads((checkpoint / PROCESSES).read_text(encoding="utf-8")), self._processes()
        if saved == here or (saved["zero"] == here["zero"] == 0 and not self.processes_make_the_batch):
            return
        why = "a step would see another number of rows"
        if saved["zero"] or here["zero"]:
            why = "DeepSpeed cuts the optimizer's states by process and cannot read them otherwise"
        raise WrongCheckpoint(
            f"{checkpoint} was saved by {_in_words(saved)}, and this run has {_in_words(here)}: {why}; start it as it was, or "
            "delete that folder to go on from the one before, or from the start"
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """transformers' own, in which DeepSpeed reads a checkpoint."""
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        with _fits(resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """The best checkpoint's weights, by their right names (see `_load_from_checkpoint`)."""
        best = self.state.best_model_checkpoint
        if best is None or self._has_own_format():
            super()._load_best_model()
        else:
            self._load_from_checkpoint(best)

    def _has_own_format(self, model: Any = None) -> bool:
        """Whether checkpoints are read by peft, DeepSpeed or FSDP, which name weights as the modules do."""
        target: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        return hasattr(target, "peft_config") or bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights as `from_pretrained` does, and insist that each has its place.

        transformers saves vision-language models under other names than their modules have (without "model." in front). Its
        Trainer then loads no weights on resume, warns, and would continue from the base model.
        """
        if self._has_own_format(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target: Any = self.accelerator.unwrap_model(self.model if model is None else model)
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
    from fgrpo.policy import adapters

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
    """What goes wrong inside, while a checkpoint is read, is a `WrongCheckpoint`; not what says nothing of the checkpoint (no
    memory left, no permission, a file system that is gone), since the way out is to delete it.
    """
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        of_machine = isinstance(error, OSError) and error.errno in _OF_MACHINE
        if checkpoint is None or of_machine or isinstance(error, (UserError, OutOfMemoryError)):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WrongCheckpoint(
            f"{checkpoint} cannot be gone on from ({first:.200}): it is broken or belongs to another configuration; "
            "delete that folder to go on from the one before, or from the start"
        ) from error


def _in_words(processes: dict[str, int]) -> str:
    n, zero = processes["processes"], processes["zero"]
    return f"{n} process{'es' if n != 1 else ''} {f'under ZeRO-{zero}' if zero else 'without DeepSpeed'}"


def last_checkpoint(folder: str | Path, needed: Sequence[str] = (STATE,), before: int | None = None) -> Path | None:
    """The newest complete checkpoint of `folder`; half-written ones are passed over.

    Args:
        needed: JSON files that a complete checkpoint has.
        before: only checkpoints of earlier steps than this.
    """
    found = []
    for path in Path(folder).glob(f"{PREFIX}-*"):
        number = path.name.rsplit("-", 1)[1]
        if not number.isdigit() or (before is not None and int(number) >= before):
            continue
        if all(_is_json(path / name) for name in needed) and _has_weights(path):
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
