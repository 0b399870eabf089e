"""A handful of questions of the miniature world, and real trainers over the shipped mini policy."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgrpo import config, prompts
from fgrpo.policy import focus, loading
from fgrpo.types import Box, Sample
from miniworld import questions, truth
from miniworld.render import render
from rl import data
from rl.arguments import grpo_config
from rl.dual import Constraint
from rl.in_process_trainer import InProcessTrainer

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "miniworld" / "backbone"
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped policy: weights are read from the mapped file for as long as a model lives."""
    return Path(shutil.copytree(POLICY, tmp_path_factory.mktemp("policy") / "backbone"))


@pytest.fixture(scope="session")
def anchored(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini policy with the token `<|focus|>`."""
    folder = tmp_path_factory.mktemp("anchored") / "model"
    focus.add(policy, folder, add_row=True)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with twelve questions (rl.jsonl), one and two pictures, and the truth about their scenes."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(3)
    with (folder / "rl.jsonl").open("w") as rows, (folder / "scenes.jsonl").open("w") as scenes:
        for n in range(12):
            question = questions.make(("hrel", "vrel", "view", "depth")[n % 4], rng)
            paths = []
            for k, scene in enumerate(question.scenes):
                path = folder / f"{n}-{k}.png"
                render(scene, rng).save(path)
                scenes.write(json.dumps({"key": truth.image_key(path), "scene": scene.to_dict()}) + "\n")
                paths.append(str(path))
            things = [question.scenes[-1].by_name(name) for name in question.targets]
            boxes = tuple(Box(*map(float, thing.box)) for thing in things if thing) if n % 2 else None
            sample = Sample(f"vgr/train/{n}", tuple(paths), question.text, question.choices, question.answer, boxes)
            rows.write(json.dumps(sample.to_dict()) + "\n")
    return folder


OVERRIDES = (
    "data.boxes_from=[vgr]", "rl.rollout_batch=2", "rl.global_batch=2", "rl.group_size=4", "rl.micro_batch=8",
    "rl.max_response_length=10", "rl.save_steps=2", "rl.max_steps=4", "rl.dual.min_applicable=1",
)  # fmt: skip


def mini(folder: Path, *overrides: str) -> config.Config:
    """The mini preset over this data root, a few tokens and rollouts a step."""
    return config.load("mini", "fgrpo", [f"data.root={folder}", *OVERRIDES, *overrides])


Score = Callable[[int, int], float | None]


def scorer(name: str, score: Score) -> Callable[..., list[float | None]]:
    """A TRL reward function: `score(step, row)`."""

    def column(prompts: Sequence[Any], trainer_state: Any, **_: Any) -> list[float | None]:
        return [score(int(trainer_state.global_step), n) for n in range(len(prompts))]

    column.__name__ = name
    return column


def scattered(salt: int, missing: float = 0.0, levels: int = 3) -> Score:
    """Scores that look random but depend on step and row alone."""

    def score(step: int, row: int) -> float | None:
        rng = random.Random(f"{salt}:{step}:{row}")
        return None if rng.random() < missing else rng.randrange(levels) / (levels - 1)

    return score


class Watch:
    """Notes, for each generation batch, the gathered scores, the weights used, and the advantages that train the policy."""

    def __init__(self, trainer: Any) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        inner = trainer._generate_and_score_completions

        def watched(inputs: Any) -> Any:
            out = inner(inputs)
            lengths = out["completion_mask"].sum(dim=1)
            step = trainer.last_step
            self.seen.append((step.scores_NK, step.weights_K, out["advantages"].clone(), lengths))
            return out

        trainer._generate_and_score_completions = watched


def build_trainer(
    world: Path,
    policy: Path,
    out: Path,
    funcs: Sequence[Any] | None = None,
    constraints: Sequence[Constraint] | None = None,
    *,
    tweak: dict[str, Any] | None = None,
    steps: int = 4,
    overrides: Sequence[str] = (),
    kind: type[Any] = InProcessTrainer,
    **more: Any,
) -> Any:
    """A trainer over the mini policy; `tweak` changes TRL's arguments."""
    cfg = mini(world, *overrides)
    model, processor = loading.load_policy(policy)
    loading.freeze_vision(model, projector=cfg.rl.freeze_projector)
    samples = data.read_samples(world / "rl.jsonl", Counter())
    rows = data.order(len(samples), steps * cfg.rl.rollout_batch, 0)
    args = grpo_config(cfg, out, steps, loading.forbidden_token_ids(processor.tokenizer))
    for key, value in (tweak or {}).items():
        setattr(args, key, value)
    if funcs is None:
        funcs = [
            scorer("task", scattered(1)),
            scorer("one", scattered(2, 0.3, 2)),
            scorer("two", scattered(3, 0.5, 4)),
        ]
    if constraints is None and "dual" not in more and "coupling" not in more:
        constraints = [Constraint("one", 0.9, min_applicable=1), Constraint("two", 0.6, 2.0, min_applicable=1)]
    return kind(
        model,
        list(funcs),
        args,
        data.to_dataset(samples, prompts.read("mini")).select(rows),
        processing_class=processor,
        constraints=constraints or (),
        **more,
    )


@pytest.fixture
def make(world: Path, policy: Path, tmp_path: Path) -> Callable[..., InProcessTrainer]:
    """`build_trainer` in the test's own folder, of which `out` names a part."""

    def build(*args: Any, out: str = "out", **more: Any) -> Any:
        return build_trainer(world, policy, tmp_path / out, *args, **more)

    return build


def earlier_stages(folder: Path, world: Path, policy: Path) -> Path:
    """A runs folder in `folder` whose earlier stages are there."""
    for name, source in (("data/rl.jsonl", world / "rl.jsonl"), ("sft/final", policy)):
        target = folder / "runs" / "mini" / name
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    return folder / "runs"


@pytest.fixture
def chain(world: Path, policy: Path, tmp_path: Path) -> Path:
    """`earlier_stages` in the test's own folder."""
    return earlier_stages(tmp_path, world, policy)


def by_other_weights(trainer: Any) -> Callable[..., Any]:
    """The trainer's generation, by weights that are not the trainer's."""
    inner = trainer._generate_single_turn

    def generate(*args: Any, **more: Any) -> Any:
        head = trainer.plain_model.lm_head.weight
        before = head.detach().clone()
        with torch.no_grad():
            head.mul_(0.7)
        try:
            return inner(*args, **more)
        finally:
            with torch.no_grad():
                head.copy_(before)

    return generate


def trainer_stub(loop: asyncio.AbstractEventLoop) -> Any:
    """What a scorer needs of a trainer."""
    return SimpleNamespace(
        state=SimpleNamespace(global_step=0), accelerator=SimpleNamespace(process_index=0), async_loop=loop,
        group_size=2, is_cut_off=lambda ids: ids[-1] != 2,
    )  # fmt: skip
