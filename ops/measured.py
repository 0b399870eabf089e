"""What finished stages of a preset took, beside what `make plan` planned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fgrpo import runs
from fgrpo.schema import Config
from ops.workload import Line, demand

MEASURED = {  # counts of a stage's manifest that stand for its calls
    "data": ("rollouts/scored", "data.difficulty_rollouts"),
    "mcts": ("completions", ""),
}


def measured(config: Config, root: str | Path) -> list[str]:
    """What stages of this preset have taken so far, beside what was planned."""
    planned: Mapping[str, Line] = {line.stage: line for line in demand(config)}
    out = []
    for stage in ("data", "mcts", "sft", f"rl-{config.method}"):
        path = runs.folder(config, stage, root) / "manifest.json"
        if not path.is_file():
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        text = f"{stage:10} {(manifest['seconds'] + manifest.get('parts_seconds', 0.0)) / 3600:.2f} hours"
        if stage in MEASURED:
            name, times = MEASURED[stage]
            calls = manifest["counts"].get(name, 0) * (config.data.difficulty_rollouts if times else 1)
            text += (
                f", {calls:,} continuations ({calls / planned[stage].calls:.0%} of the plan's {planned[stage].calls:,})"
            )
        out.append(text)
    return out
