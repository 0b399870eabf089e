"""Lengths that the rehearsal measures, under the names that `make plan` gives them. Images are stand-ins; tokenizer and prompt are real.

Command: `python -m scripts.rehearsal_paper.lengths` prints the table of docs/cluster.md from the files of the last rehearsal.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.images import image_tokens
from fgrpo.policy import model_files
from fgrpo.prompts import read_for, user_text
from fgrpo.schema import Config
from fgrpo.types import Sample
from ops.assumptions import Assumptions
from scripts.rehearsal_paper import stand_in

ASSUMED = ("lengths.text", "images.tokens", "lengths.prompt", "lengths.response", "judging.correct")
# of the chat template around a user's turn: Qwen2.5-VL's system message and the marks of both turns
TURN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
)


def assumed(output: str) -> dict[str, float]:
    """The plan's assumptions about lengths, as it printed them."""
    found = {name: re.search(rf"^{re.escape(name)} +([\d.]+)  ", output, re.M) for name in ASSUMED}
    return {name: float(match[1]) for name, match in found.items() if match}


def of_questions(config: Config, model: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Means over questions: tokens of text and template, of the images, and of the prompt.

    Args:
        model: the base model's folder, with its tokenizer and its processor's file.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    template, bounds = (
        read_for(config.policy, config.prompts.think),
        model_files.pixel_bounds(model, config.policy.pixels),
    )
    marks = len(model_files.assumed_family(model).marker_attributes)
    text, images = [], []
    for sample in map(Sample.from_dict, rows):
        text.append(len(tokenizer.encode(user_text(sample, template) + TURN).ids) + marks * len(sample.images))
        images.append(sum(image_tokens(path, bounds) for path in sample.images))
    means = {"lengths.text": _mean(text), "images.tokens": _mean(images)}
    return means | {"lengths.prompt": round(sum(means.values()), 1)}


def of_rollouts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over rollouts: tokens of a response, and the share that is judged (for consistency: the right ones)."""
    return {
        "lengths.response": _mean([row["tokens"] for row in rows]),
        "judging.correct": _mean([row["consistency/state"] != "not_applicable" for row in rows]),
    }


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(len(values), 1), 2 if max(values, default=0) <= 1 else 1)


def model_folder(root: Path, config: Config) -> Path:
    """The folder of the base model's stand-in in the hub's cache of a rehearsal below `root`."""
    return root / "hub" / f"models--{config.models.base.replace('/', '--')}" / "snapshots" / stand_in.REVISION


def table(root: Path) -> list[str]:
    """What `make plan` assumes beside what a rehearsal below `root` measured, as Markdown."""
    import pyarrow.parquet as pq

    config = load("paper-7b")
    run = root / config.preset
    found = of_questions(config, model_folder(root, config), read_jsonl(run / "data/rl.jsonl"))
    files = sorted(run.glob("rl-*/rollouts/*.parquet"))
    found |= of_rollouts([row for file in files for row in pq.read_table(file).to_pylist()]) if files else {}
    assume = Assumptions()
    rows = [f"| {name} | {assume[name]:g} | {found[name]:g} |" for name in ASSUMED if name in found]
    return ["| mean | make plan | rehearsal |", "|---|---:|---:|", *rows]


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description="what make plan assumes beside what the last rehearsal measured")
    arguments.add_argument("--root", type=Path, default=Path("runs/rehearsal-paper"), help="default: %(default)s")
    root = arguments.parse_args().root
    if not (root / "paper-7b" / "data" / "rl.jsonl").is_file():
        sys.exit(f"error: no questions of a rehearsal in {root}; run make rehearsal-paper")
    print("\n".join(table(root)))


if __name__ == "__main__":
    main()
