"""The state of the lowest validation loss: `best` while SFT trains, `final` at its end. Shared by SFT and the anchor stage."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fgrpo import runs
from fgrpo.errors import UserError
from fgrpo.files import read_items
from fgrpo.training import distributed, metrics_file
from fgrpo.training.checkpoints import save_final
from fgrpo.training.stored import CHECKSUMS, problem_of, put_in_place, write_checksums

METRICS = metrics_file.NAME


def check_best(folder: Path, name: str = "best") -> None:
    """UserError if the best state differs from its checksums. A folder of an older version has none."""
    best = folder / name
    problem = problem_of(best, ("best.json",)) if (best / CHECKSUMS).exists() else None
    if problem is not None:
        raise UserError(
            f"{best}, the state with the lowest validation loss, is damaged: {problem}. Restore it from a copy, or move "
            f"{folder} away and rerun to train anew"
        )


def best_so_far(folder: Path) -> tuple[float, dict[str, Any]]:
    """(lowest validation loss, content of best.json); infinity if there is none."""
    for name in ("best", "final"):  # `final` if the process was killed after exporting it
        if not any((folder / name).glob("*.safetensors")):
            continue
        try:
            best = json.loads((folder / name / "best.json").read_text(encoding="utf-8"))
            return float(best["eval_loss"]), dict(best)
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
            continue
    return math.inf, {}


def best_is_lost(folder: Path, checkpoint: Path) -> bool:
    """Whether validation ran up to `checkpoint`, but the best state is missing (a partly deleted folder)."""
    path, step = folder / METRICS, int(checkpoint.name.rsplit("-", 1)[1])
    lines = list(read_items(path, metrics_file.checked, "line of metrics")) if path.exists() else []
    validated = not lines or any("eval_loss" in line and line["step"] <= step for line in lines)
    return validated and math.isinf(best_so_far(folder)[0]) and not any((folder / "final").glob("*.safetensors"))


def save_state(trainer: Any, folder: Path, metadata: dict[str, Any]) -> None:
    """Write model, processor and best.json atomically; `best` with checksums, as the manifest has none of it."""

    def extra(unfinished: Path) -> None:
        runs.write_json(unfinished / "best.json", metadata)
        if folder.name == "best":
            write_checksums(unfinished)

    save_final(trainer, folder, extra)


def export_best(trainer: Any, folder: Path) -> dict[str, Any]:
    """Move the state with the lowest validation loss to `final`; without validation, save the last state there.

    Returns:
        The content of best.json.

    Raises:
        UserError: the best state is damaged.
    """
    distributed.on_main(lambda: check_best(folder))
    loss, metadata = distributed.on_main(lambda: best_so_far(folder))
    if math.isinf(loss):
        metadata = {"step": trainer.state.global_step}
        save_state(trainer, folder / "final", metadata)
    elif trainer.accelerator.is_main_process and (folder / "best").exists():
        put_in_place(folder / "best", folder / "final")
    if trainer.accelerator.is_main_process:
        check_best(folder, "final")
        (folder / "final" / CHECKSUMS).unlink(missing_ok=True)  # the manifest records its hashes from here on
    return metadata
