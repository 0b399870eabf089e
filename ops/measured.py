"""What finished stages of a preset took, and the images of its questions, beside what `make plan` assumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fgrpo import runs
from fgrpo.files import read_jsonl
from fgrpo.images import IMAGE_ERRORS, image_tokens
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.schema import Config
from ops.assumptions import IMAGE, Assumptions
from ops.workload import Line, demand

MEASURED = {  # counts of a stage's manifest that stand for its calls
    "data": ("rollouts/scored", "data.difficulty_rollouts"),
    "mcts": ("completions", ""),
}
READ_QUESTIONS = 500  # of the curated ones, evenly spaced: opening their images' headers takes seconds


def measured(config: Config, root: str | Path) -> list[str]:
    """What stages of this preset have taken so far, beside what was planned."""
    planned: Mapping[str, Line] = {line.stage: line for line in demand(config)}
    out = []
    for stage in ("data", "mcts", "sft", "anchor", f"rl-{config.method}"):
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


def measured_images(config: Config, root: str | Path, assume: Assumptions) -> list[str]:
    """The image tokens of a question of this preset's rl.jsonl, and the assumption to plan with; [] before `make data`."""
    path = runs.folder(config, "data", root) / "rl.jsonl"
    if not path.is_file():
        return []
    rows = list(read_jsonl(path))
    chosen = rows[:: -(-len(rows) // READ_QUESTIONS)] if rows else []
    bounds = pixel_bounds(config.models.base, config.policy.pixels)
    tokens = []
    for row in chosen:
        try:
            tokens.append(sum(image_tokens(str(image), bounds) for image in row["images"]))
        except (*IMAGE_ERRORS, KeyError, TypeError):  # counted below; `make data` and training name each
            continue
    if not tokens:
        return [f"images     none of {len(chosen):,} questions of {path} has images that can be read here"]
    mean, unread = sum(tokens) / len(tokens), len(chosen) - len(tokens)
    return [
        f"images     {mean:,.0f} tokens per question, at most {max(tokens):,} ({len(tokens):,} of {len(rows):,} RL questions"
        + (f"; {unread:,} more cannot be read here" if unread else "")
        + f"); the plan assumes {assume[IMAGE]:,.0f}"
        + (f': ASSUME="{IMAGE}={mean:.0f}" plans with them' if round(mean) != assume[IMAGE] else "")
    ]
