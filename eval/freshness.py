"""Whether figures or the report still show what evaluations and training runs hold, decided by content.

The folder keeps a stamp, `made_from.json`: the configuration shown and the digest of each file read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fgrpo.config import stage_slice
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

STAMP = "made_from.json"
READ = ("eval/*/done", "eval/*/summary.json", "eval/*/scores.jsonl", "rl-*/metrics.jsonl", "rl-*/config.json")


def made_from(config: Config, stage: str, root: str | Path = "runs") -> dict[str, Any]:
    """What `stage` shows: the configuration and {file: sha256}. The report ("report") embeds the figures ("figures").

    `done` files count by their presence: an evaluation that is not finished is not shown.
    """
    top = folder(config, "", root)
    patterns = (*READ, "figures/*.png", "figures/captions.json") if stage == "report" else READ
    files = sorted(path for pattern in patterns for path in top.glob(pattern))
    digests = {str(path.relative_to(top)): "" if path.name == "done" else _digest(path) for path in files}
    return {"config": stage_slice(config, "eval"), "method": config.method, "files": digests}


def is_current(config: Config, stage: str, result: str, root: str | Path = "runs") -> bool:
    """Whether the folder of `stage` holds `result` and was made from what is there now."""
    out = folder(config, stage, root)
    try:
        stamp = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no stamp, or a torn one: make it again
        return False
    return (out / result).is_file() and bool(stamp == made_from(config, stage, root))


def stamp(config: Config, stage: str, root: str | Path = "runs") -> None:
    """Record what `stage` was made from; call it after the last file is written."""
    write_json(folder(config, stage, root) / STAMP, made_from(config, stage, root))
