"""Where a checkpoint looks: attention and counterfactual maps over the images of some stored answers (docs/probes.md).

Reads runs/<preset>/eval/<model> and the model's weights; writes beside it maps.json (`eval.maps`), which `make report` draws. The
answers are the report's examples that this model answered, at even distances (at most `--limit`), else its first ones. Each takes
one pass for the attention, one on the image itself, and at most 64 for each image's changed versions (`rl.probes.maps`).
`rl.probes` sets layers and fill, as in training. Log-probabilities are those of the answer's text, tokenized, at RL's temperature.
Command: `python -m ops.policy_maps --preset mini --model fgrpo [--limit 8]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval import maps, models, report
from eval.maps import AnswerMaps, Inside, Maps
from eval.results import Result, one
from fgrpo import cli, config, progress
from fgrpo.errors import UserError
from fgrpo.schema import Config
from fgrpo.types import Rollout
from ops import policy_probes
from rewards.base import RewardContext
from rewards.probes import Absent
from rl.probes.evidence import evidence
from rl.probes.maps import MOST, AttentionMaps, DropMaps, Grids, attention_maps, drop_maps
from rl.probes.passes import Passes
from rl.probes.stored_answers import Answer, StoredAnswers

ANSWERS = 8
TOGETHER = 8  # changed images of one pass
NEEDS = "vision_dependence"  # any reward with `needs`: the trainer then has the probes' passes


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        print(f"maps: {measure(cfg, args.model, args.runs, args.limit)} (drawn by `make report`)")

    parser = cli.parser("attention and counterfactual maps over the images of a checkpoint's answers")
    parser.add_argument("--model", required=True, help="an evaluated model whose weights are here")
    parser.add_argument(
        "--limit", type=cli.positive, default=ANSWERS, help=f"at most so many answers (default: {ANSWERS})"
    )
    cli.run(body, parser, argv)


def measure(cfg: Config, name: str, root: str | Path = "runs", limit: int = ANSWERS, most: int = MOST) -> Path:
    """Measure the maps of one evaluated model and write them; returns the file.

    Args:
        limit: answers, at most.
        most: changed versions of one image, at most.

    Raises:
        UserError: the model is not evaluated, is no local checkpoint, was evaluated with other weights, or cannot be measured; it
            answered no question with an image.
    """
    spec = models.configured(name, cfg)
    path = policy_probes.local_checkpoint(spec, cfg, root)
    result = one(name, cfg, root)
    policy_probes.check_weights(name, result.path, path, cfg)
    rollouts = chosen(result, cfg, root, limit)
    answers = policy_probes.answers_of(cfg, spec, path, result.path, rollouts)
    context = policy_probes.context_of(cfg, spec, path)
    policy = StoredAnswers(cfg, path, (NEEDS,), context)
    bar = progress.bar(f"maps of {name}", len(answers), "answer")
    found: list[AnswerMaps] = []
    layers: tuple[int, ...] = ()
    for answer, rollout in zip(answers, rollouts, strict=True):
        batch = policy.batch([answer] * TOGETHER)
        passes = Passes(policy.trainer, batch)
        try:
            attention = attention_maps(batch, passes, cfg.rl.probes.layers)
            drops = drop_maps(batch, passes, most)
        except ValueError as error:
            raise UserError(f"{name}, answer {rollout.id}: {error}; evaluate another checkpoint") from error
        layers = attention.layers
        found.append(_answer(answer, rollout, batch.lengths()[0], attention, drops, context))
        bar.update()
    bar.close()
    text_config = policy.trainer.plain_model.config.get_text_config()
    made_from, fill = maps.made_from(result.path), cfg.rl.probes.fill
    return Maps(made_from, layers, int(text_config.num_hidden_layers), fill, tuple(found)).write(result.path)


def chosen(result: Result, cfg: Config, root: str | Path, limit: int) -> list[Rollout]:
    """The answers to map: of the report's examples, else the first, with an image and a text.

    Raises:
        UserError: there is none.
    """
    rollouts = result.rollouts()
    samples = report.questions_of([result], cfg)
    usable = [r.id for r in rollouts.values() if r.finish != "error" and r.text and samples[r.sample_id].images]
    if not usable:
        raise UserError(f"{result.path} has no answer to a question with an image, so there is nothing to map")
    shown = set(usable) & set(report.drawn_examples(cfg, root)[2])
    ids = [i for i in usable if i in shown] or usable[:limit]
    return [*policy_probes.spread([rollouts[i] for i in ids], limit)]


def _answer(
    answer: Answer, rollout: Rollout, tokens: int, attention: AttentionMaps, drops: DropMaps, context: RewardContext
) -> AnswerMaps:
    """The maps of one answer as they are stored."""
    return AnswerMaps(
        rollout.id,
        maps.digest(rollout),
        tokens,
        _plain(attention.response),
        attention.on_image,
        None if attention.focus is None else _plain(attention.focus),
        drops.side,
        _plain(drops.drops),
        inside(answer, attention, drops, context),
    )


def inside(answer: Answer, attention: AttentionMaps, drops: DropMaps, context: RewardContext) -> Inside | None:
    """What of the maps lies in the cells that the annotated boxes touch; None without such cells."""
    cells = evidence(answer.item.sample, context)
    if isinstance(cells, Absent):
        return None
    chosen = np.concatenate([part.flatten() for part in cells])
    tops = [range(0, len(part), drops.side) for part in cells]
    touched = np.array(
        [
            part[top : top + drops.side, left : left + drops.side].any()
            for part, of_image in zip(cells, tops, strict=True)
            for top in of_image
            for left in range(0, part.shape[1], drops.side)
        ]
    )
    flat = {name: np.concatenate([part.flatten() for part in grids]) for name, grids in _maps(attention, drops).items()}
    elsewhere = flat["drop"][~touched]
    return Inside(
        float(chosen.mean()),
        float(flat["attention"][chosen].sum()),
        float(flat["focus"][chosen].sum()) if "focus" in flat else None,
        float(flat["drop"][touched].mean()),
        float(elsewhere.mean()) if len(elsewhere) else None,
    )


def _maps(attention: AttentionMaps, drops: DropMaps) -> dict[str, Grids]:
    found = {"attention": attention.response, "drop": drops.drops}
    return found if attention.focus is None else {**found, "focus": attention.focus}


def _plain(grids: Grids) -> tuple[maps.Grid, ...]:
    return tuple(tuple(tuple(map(float, row)) for row in grid) for grid in grids)


if __name__ == "__main__":
    main()
