"""Atomic checkpoints: written to a temporary folder with checksums, renamed when complete; then older ones are removed.

`AtomicCheckpoints` is a mixin for transformers trainers (put it before the trainer class). `fgrpo.training.stored` finds where
to resume. Imports transformers inside functions only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from fgrpo.errors import UserError
from fgrpo.runs import write_json
from fgrpo.training import stored
from fgrpo.training.distributed import on_main
from fgrpo.training.finite import FiniteSteps
from fgrpo.training.stored import PREFIX, PROCESSES, STATE, WrongCheckpoint, last_checkpoint

__all__ = [
    "PREFIX",
    "PROCESSES",
    "SFT_KEPT",
    "STATE",
    "AtomicCheckpoints",
    "WrongCheckpoint",
    "last_checkpoint",
    "save_final",
]

UNFINISHED = "_checkpoint.part"  # folder of a checkpoint that is being written; "_*" is not pushed to the hub
SFT_KEPT = 2  # checkpoints that SFT keeps: the last, and the one before it


class AtomicCheckpoints(FiniteSteps):
    """Saves complete checkpoints of finite weights only. A subclass adds its own files in `_write_extra`.

    Each process writes its part into a temporary folder; the main process renames it when all have finished. A checkpoint
    records how its states are sharded (`processes.json`), and a run with other processes refuses it. What is pushed to the hub
    is pushed when it is complete.
    """

    processes_make_the_batch = True  # whether another number of processes would change the batches
    reads_plain = False  # whether checkpoints of transformers and TRL, which have no checksums, are resumed
    writes_card = False  # whether the trainer writes its model card; a stage's manifest describes its checkpoints
    _is_saving = False

    def _write_extra(self, folder: Path) -> None:
        """Write more files into the unfinished checkpoint; called on the main process."""

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving else folder

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.check_finite()
        folder = Path(super()._get_output_dir(trial))
        unfinished, name = folder / UNFINISHED, f"{PREFIX}-{self.state.global_step}"
        self._on_main(lambda: shutil.rmtree(unfinished, ignore_errors=True))
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_saving = False

        def finish() -> None:
            self._write_extra(unfinished / name)
            write_json(unfinished / name / PROCESSES, self.sharding())
            self._rename_best(unfinished, folder)
            stored.write_checksums(unfinished / name)
            stored.put_in_place(unfinished / name, folder / name)
            shutil.rmtree(unfinished, ignore_errors=True)
            stored.rotate(folder, self.state.global_step, self.args.save_total_limit, self.state.best_model_checkpoint)

        self._on_main(finish)
        self._rename_best(unfinished, folder)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As transformers, once the checkpoint is complete."""
        if not self._is_saving:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As transformers, without the copies of tied weights in DeepSpeed's gathered state, and with a plain tokenizer."""
        plain_tokenizer(self.processing_class)
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        if state_dict is not None:
            state_dict = {n: t for n, t in state_dict.items() if n not in tied or tied[n] not in state_dict}
        super()._save(output_dir, state_dict)

    def _rename_best(self, unfinished: Path, folder: Path) -> None:
        """Correct the path of the best checkpoint: transformers recorded the temporary folder, and it moves to `folder`."""
        best = self.state.best_model_checkpoint
        if best is None or Path(best).parent != unfinished:
            return
        self.state.best_model_checkpoint = str(folder / Path(best).name)
        file = unfinished / f"{PREFIX}-{self.state.global_step}" / STATE
        if self.args.should_save and file.exists():
            self.state.save_to_json(str(file))

    def sharding(self) -> dict[str, int]:
        """How the states of a checkpoint are sharded: number of processes, and the ZeRO stage (0 without DeepSpeed)."""
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        return {"processes": int(self.args.world_size), "zero": int(plugin.zero_stage) if plugin is not None else 0}

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **more: Any) -> Any:
        """As transformers, after checking that the checkpoint is whole and that this run's processes can read it.

        Args:
            resume_from_checkpoint: True takes the newest whole checkpoint of the output folder.

        Raises:
            WrongCheckpoint: it is damaged, or its states are sharded for other processes.
        """
        checkpoint: str | bool | None = resume_from_checkpoint
        if checkpoint is True:
            newest = on_main(lambda: stored.resume_point(str(self.args.output_dir), plain=self.reads_plain))
            checkpoint = None if newest is None else str(newest)
        if checkpoint:
            path = Path(str(checkpoint))
            problem = on_main(lambda: stored.problem_of(path, plain=self.reads_plain))
            if problem is not None:
                raise WrongCheckpoint(
                    f"cannot resume from {checkpoint} ({problem}); delete that folder to resume from the checkpoint before it "
                    "(or from the start)"
                )
            self._check_processes(path)
            self.rotate_to(path)
        return super().train(checkpoint, *others, **more)

    def rotate_to(self, checkpoint: Path) -> None:
        """Delete older checkpoints beyond the limit, which a process left that was killed before it could."""
        folder = Path(str(self.args.output_dir))
        if checkpoint.parent.resolve() != folder.resolve():
            return
        best = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
        step = int(checkpoint.name.rsplit("-", 1)[1])
        self._on_main(lambda: stored.rotate(folder, step, self.args.save_total_limit, best))

    def _check_processes(self, checkpoint: Path) -> None:
        if not (checkpoint / PROCESSES).exists():
            return
        saved, here = json.loads((checkpoint / PROCESSES).read_text(encoding="utf-8")), self.sharding()
        if saved == here or (saved["zero"] == here["zero"] == 0 and not self.processes_make_the_batch):
            return
        reason = "a step would see another number of rows"
        if saved["zero"] or here["zero"]:
            reason = "DeepSpeed shards the optimizer's states by process and cannot read them otherwise"
        raise WrongCheckpoint(
            f"{checkpoint} was saved by {_described(saved)}, and this run has {_described(here)}: {reason}; start the run with "
            "the saved layout, or delete that folder to resume from the checkpoint before it (or from the start)"
        )

    def _init_training_state(self, max_steps: int, *others: Any, **more: Any) -> Any:
        """As transformers, which would keep the checkpoint's own intervals of saving, logging and evaluating."""
        result = super()._init_training_state(max_steps, *others, **more)
        self.state.compute_steps(self.args, max_steps)
        self.state.train_batch_size = self._train_batch_size
        return result

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As transformers; DeepSpeed reads the checkpoint here."""
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        with _reading(resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights under their right names (see `_load_from_checkpoint`)."""
        best = self.state.best_model_checkpoint
        if best is None or self._has_own_format():
            super()._load_best_model()
        else:
            self._load_from_checkpoint(best)

    def _has_own_format(self, model: Any = None) -> bool:
        """Whether peft, DeepSpeed or FSDP reads checkpoints; these name weights as the modules do."""
        target: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        return hasattr(target, "peft_config") or bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights as `from_pretrained` does; each weight must fit.

        transformers saves vision-language models under other names than their modules have (without "model." in front). Its
        Trainer then loads no weights on resume, warns, and would continue from the base model.
        """
        if self._has_own_format(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        target: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        with _reading(resume_from_checkpoint):
            saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
            target.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (wrong := self.wrong_tensor()) is not None:
            raise WrongCheckpoint(
                f"cannot resume from {checkpoint} ({wrong} is not finite); delete that folder to resume from the checkpoint "
                "before it (or from the start)"
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _on_main(self, work: Callable[[], object]) -> None:
        """Run `work` on the main process while the others wait."""
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            work()
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args: Any, **more: Any) -> None:
        """As the trainer's, where `writes_card`."""
        if self.writes_card:
            super().create_model_card(*args, **more)


def save_final(trainer: Any, folder: Path, extra: Callable[[Path], object] | None = None) -> None:
    """Save a trainer's model and processor to `folder` atomically; adapters are merged into the model.

    Every process must call it.

    Args:
        extra: writes more files into the unfinished folder; called on the main process.
    """
    from fgrpo.policy import adapters

    trainer.check_finite()
    plain_tokenizer(trainer.processing_class)
    unfinished = folder.with_name(folder.name + ".part")
    if trainer.accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if adapters.is_adapted(trainer.accelerator.unwrap_model(trainer.model)):
        adapters.save_merged(trainer, unfinished)
    else:
        trainer.save_model(str(unfinished))
    if trainer.accelerator.is_main_process:
        if extra is not None:
            extra(unfinished)
        stored.put_in_place(unfinished, folder)
    trainer.accelerator.wait_for_everyone()


def plain_tokenizer(processor: Any) -> None:
    """Remove the padding and truncation of the last call, which a fast tokenizer would save as its own."""
    fast = getattr(getattr(processor, "tokenizer", processor), "backend_tokenizer", None)
    if fast is not None:
        fast.no_padding()
        fast.no_truncation()


@contextmanager
def _reading(checkpoint: str | None) -> Iterator[None]:
    """Turn errors while a checkpoint is read into `WrongCheckpoint`, whose message advises to delete it.

    Errors of the machine (out of memory, no permission, a file system that is gone) pass through unchanged.
    """
    from safetensors import SafetensorError
    from torch import OutOfMemoryError

    try:
        yield
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        is_machine_error = isinstance(error, OSError) and error.errno in stored.MACHINE_ERRORS
        if checkpoint is None or is_machine_error or isinstance(error, (UserError, OutOfMemoryError)):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WrongCheckpoint(
            f"cannot resume from {checkpoint} ({first:.200}): it is broken or belongs to another configuration; delete that "
            "folder to resume from the checkpoint before it (or from the start)"
        ) from error


def _described(processes: dict[str, int]) -> str:
    n, zero = processes["processes"], processes["zero"]
    return f"{n} process{'es' if n != 1 else ''} {f'under ZeRO-{zero}' if zero else 'without DeepSpeed'}"
