"""Where the token `<|focus|>` looks, before and after `make anchor`, on questions that no stage before RL trains on.

For each question of runs/<preset>/data/rl.jsonl with boxes that is not among the seed questions: the share of the token's attention
on the image that lies in cells that the boxes touch (layers of `anchor.layers`, mean over heads). Printed as means with a percentile
bootstrap interval over questions, beside the area of these cells, which uniform attention would give. The result is also
runs/<preset>/anchor/focus_mass.json. Command: `python -m ops.focus_mass --preset mini`; `--model runs/mini/rl-mr1/final` adds more
models that have the token. RL trains on these questions, so for a model of an RL run they are not held out, and its line says so.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from eval.metrics import bootstrap_ci
from fgrpo import cli, config, progress, prompts, runs
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import IMAGE_ERRORS, open_for_model
from fgrpo.policy import loading, model_files
from fgrpo.resume import FRESH
from fgrpo.schema import Config
from fgrpo.training.anchoring import Anchoring, Shares, shares_of
from fgrpo.training.row_images import RowImages
from fgrpo.types import Sample
from rl import data
from sft.anchor import prepare


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        report(cfg, args.runs, args.questions, args.model)

    parser = cli.parser("where the token <|focus|> looks, before and after anchoring")
    parser.add_argument("--questions", type=cli.positive, default=400, help="at most so many (default: 400)")
    parser.add_argument("--model", action="append", default=[], help="a further model with the token")
    cli.run(body, parser, argv)


def report(cfg: Config, root: str | Path, limit: int, models: Sequence[str] = ()) -> dict[str, Any]:
    """Measure, print and store; returns what is stored.

    Raises:
        UserError: the anchor stage has not run, no held-out question has boxes, or a model has no token.
    """
    folder = runs.folder(cfg, "anchor", root)
    final = runs.require(folder / "final", "anchor")
    start = start_of(cfg, root)
    pixels = model_files.pixel_bounds(final)
    held_out = questions(cfg, root, limit, pixels)
    found: dict[str, Any] = {"questions": len(held_out)}
    area = [area_of(shares) for _, shares in held_out]
    columns = {"uniform attention": area}
    for name, path in (("before", start), ("after", final), *((model, Path(model)) for model in models)):
        columns[name] = inside(cfg, path, held_out)
    columns["after - before"] = [b - a for a, b in zip(columns["before"], columns["after"], strict=True)]
    print(
        f"attention of <|focus|> inside the boxes, {len(held_out)} questions of {cfg.preset} that no stage before RL trains on"
    )
    for name, values in columns.items():
        low, high = bootstrap_ci(values, samples=cfg.eval.bootstrap_samples, confidence=cfg.eval.confidence) or (0, 0)
        mean = sum(values) / len(values)
        trained = name in models and is_of_rl(Path(name))
        found[name] = {"mean": mean, "low": low, "high": high, "held_out": not trained}
        print(f"  {name:24} {mean:.3f}  [{low:.3f}, {high:.3f}]" + "  (trained on these questions)" * trained)
    runs.write_json(folder / "focus_mass.json", found)
    return found


def is_of_rl(model: Path) -> bool:
    """Whether a model is a result or checkpoint of an RL run (`rl-<method>/final`, `rl-<method>/checkpoints/…`)."""
    path = model.resolve()
    return any(part.name.startswith("rl-") for part in (path, *path.parents)[:3])


def start_of(cfg: Config, root: str | Path) -> Path:
    """The model from which the anchor stage started; made again where `make clean-checkpoints` deleted it.

    Raises:
        UserError: it is deleted, and the SFT model or the configuration is no longer the anchor stage's.
    """
    start = runs.folder(cfg, "anchor", root) / FRESH
    if not start.exists():
        if not runs.is_done(cfg, "anchor", root):
            raise UserError(
                f"{start} is deleted, and {start.parent} is not of this configuration and SFT model, so it cannot be made again; rerun "
                "`make anchor`"
            )
        prepare(runs.folder(cfg, "sft", root) / "final", start, cfg.anchor)
    return start


def questions(cfg: Config, root: str | Path, limit: int, pixels: PixelBounds) -> list[tuple[Sample, Shares]]:
    """Held-out questions with boxes, and the shares of their cells.

    Raises:
        UserError: there is none.
    """
    of_data = runs.folder(cfg, "data", root)
    seed = {sample.id for sample in data.read_samples(runs.require(of_data / "seed.jsonl", "data"), Counter())}
    found: list[tuple[Sample, Shares]] = []
    for sample in data.read_samples(runs.require(of_data / "rl.jsonl", "data"), Counter()):
        if sample.id in seed or len(found) == limit:
            continue
        try:
            shares = shares_of(sample, pixels)
        except IMAGE_ERRORS:
            continue
        if shares:
            found.append((sample, shares))
    if not found:
        raise UserError(
            f"{of_data / 'rl.jsonl'} has no question with boxes beside the seed questions; nothing to measure on"
        )
    return found


def area_of(shares: Shares) -> float:
    """The share of touched cells among those of the images with boxes."""
    cells = [share for part in shares if any(part) for share in part]
    return sum(share > 0 for share in cells) / len(cells)


def inside(cfg: Config, model: Path, held_out: Sequence[tuple[Sample, Shares]]) -> list[float]:
    """For each question, the share of the token's attention that lies in the boxes. UserError: the model has no token."""
    policy, processor = loading.load_policy(model, attention="sdpa")
    policy.to(loading.device())
    anchoring = Anchoring(policy, processor.tokenizer, cfg.anchor)
    template = prompts.read_for(cfg.policy, cfg.prompts.think)
    out = []
    bar = progress.bar(f"attention of {model}", len(held_out), "question")
    with anchoring.tap, torch.no_grad():
        for sample, shares in held_out:
            text = loading.render_prompt(processor, sample.images, prompts.user_text(sample, template))
            images = [open_for_model(path) for path in sample.images]
            given = processor(text=[text], images=images, return_tensors="pt").to(policy.device)
            fields = {**given, "num_images": [len(images)]}
            of_row = RowImages(fields, anchoring.family.grid_field)
            found = anchoring(policy, given["input_ids"], given["attention_mask"], of_row, [shares], [0])
            assert found.inside is not None
            out.append(found.inside)
            bar.update()
    bar.close()
    return out


if __name__ == "__main__":
    main()
