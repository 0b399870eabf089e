"""Whether figures or the report still show what evaluations and training runs hold, decided by content.

The folder keeps a stamp, `made_from.json`: the configuration shown and the digest of each file read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from eval.measures import measures
from fgrpo.config import stage_slice
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

STAMP = "made_from.json"
READ = ("eval/*/done", "eval/*/summary.json", "eval/*/scores.jsonl", "rl-*/metrics.jsonl", "rl-*/config.json")


def made_from(config: Config, stage: str, root: str | Path = "runs") -> dict[str, Any]:
    """What `stage` shows now: the configuration, the measures and {file: sha256}. Stages: "figures", and "report", which embeds them.

    `done` files count by their presence: an evaluation that is not finished is not shown.
    """
    top = folder(config, "", root)
    patterns = (*READ, "figures/*.png", "figures/captions.json") if stage == "report" else READ
    files = sorted(path for pattern in patterns for path in top.glob(pattern))
    digests = {
        path.relative_to(top).as_posix(): "" if path.name == "done" else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    headings = [measure.heading for measure in measures()]
    return {"config": stage_slice(config, "eval"), "method": config.method, "measures": headings, "files": digests}


def is_current(out: Path, result: str, made: dict[str, Any]) -> bool:
    """Whether the folder `out` holds the file `result` and was made from `made`."""
    try:
        stamped = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no stamp, or a torn one: make it again
        return False
    return (out / result).is_file() and bool(stamped == made)


def stamp(out: Path, made: dict[str, Any]) -> None:
    """Record what `out` was made from; call it after the last file is written."""
    write_json(out / STAMP, made)
