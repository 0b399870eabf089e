"""Whether figures or the report still show what the files that they read hold, decided by content.

Their folder keeps a stamp, `made_from.json`: the configuration shown, the digest of each file read, and that of each file written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval import judging, models
from eval.measures import measures
from eval.results import PAPER_TABLES
from fgrpo.config import stage_slice
from fgrpo.errors import UserError
from fgrpo.runs import folder
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed

STAMP = "made_from.json"
TEMPLATES = Path(__file__).resolve().parent / "templates"
# Below the preset's folder. "done" counts by its presence: an evaluation that is not finished is not shown.
RESULTS = ("eval/*/done", "eval/*/summary.json", "eval/*/scores.jsonl", "rl-*/metrics.jsonl", "rl-*/config.json")
OF_THE_REPORT = (
    *("eval/*/generations.jsonl", "eval/*/scoring.json"),  # the examples' texts, and in which pixels their boxes are
    *("eval/*/questions.jsonl", "eval/*/model.json", "eval/*/external.json"),  # of other harnesses' answers
    *("eval/*/maps.json", "eval/*/probes.json", "eval/*/probes-of.json"),  # where the policy looks
    *judging.FILES,
    *("figures/*.png", "figures/captions.json"),
)


def made_from(config: Config, stage: str, root: str | Path = "runs") -> dict[str, Any]:
    """What `stage` shows now: the configuration, the measures and {file: sha256}.

    Args:
        stage: "figures", or "report", which embeds them.
    """
    top = folder(config, "", root)
    patterns = (*RESULTS, *OF_THE_REPORT) if stage == "report" else RESULTS
    read = {path.relative_to(top).as_posix(): path for pattern in patterns for path in top.glob(pattern)}
    ours = [PAPER_TABLES, *models.FOLDER.glob("*.yaml"), *TEMPLATES.glob("*.j2")]
    read |= {f"{path.parent.name}/{path.name}": path for path in ours}
    return {
        "config": stage_slice(config, "eval"),
        "method": config.method,
        "models": models.names(),
        "measures": [asdict(measure.report) for measure in measures()],
        "files": {name: "" if read[name].name == "done" else _digest(read[name]) for name in sorted(read)},
    }


def is_current(out: Path, made: dict[str, Any]) -> bool:
    """Whether the files that the folder `out` was stamped with are there, unchanged, and were made from `made`."""
    try:
        stamped = read_sealed(out / STAMP)
        written = {name: _digest(out / name) for name in stamped["written"]}
    except (OSError, ValueError, KeyError, TypeError):  # no stamp, a torn one, or a file is gone: make it again
        return False
    return bool(stamped == {**made, "written": written})


def stamp(out: Path, made: dict[str, Any], written: Iterable[Path]) -> None:
    """Record what `out` was made from and the files `written` in it; call it after the last file is written."""
    write_sealed(
        out / STAMP, {**made, "written": {path.relative_to(out).as_posix(): _digest(path) for path in written}}
    )


def check_written(out: Path, made_by: str) -> None:
    """UserError if a file of the stamped folder `out` was changed since; without a stamp nothing is compared."""
    if not (out / STAMP).is_file():
        return
    try:
        written = dict(read_sealed(out / STAMP)["written"])
        changed = [name for name, digest in written.items() if _digest(out / name) != digest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{out / STAMP} is damaged, or a file beside it is missing ({error}); rerun `make {made_by}`"
        ) from error
    if changed:
        raise UserError(f"{out / changed[0]} is not what `make {made_by}` wrote; rerun it")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
