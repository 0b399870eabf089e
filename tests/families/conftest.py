"""Every model family goes through these tests: `fgrpo/policy/backbones/<name>.py` is tested with the tiny model of `<name>.py` here."""

from __future__ import annotations

import importlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fgrpo.boxes import convert, model_size
from fgrpo.config import Config, load
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import backbone, model_files
from fgrpo.policy.backbone import Backbone
from fgrpo.types import Box, Sample
from miniworld import questions, truth
from miniworld.render import render
from sft import train as sft_train
from tests.rl.conftest import build_trainer, world

__all__ = ["world"]
QUESTIONS = 6
_BOX = re.compile(r"<bbox>\[(\d+),(\d+),(\d+),(\d+)\]</bbox>")


@pytest.fixture(scope="session", params=backbone.names())
def family(request: pytest.FixtureRequest) -> Backbone:
    """Each family in turn."""
    return backbone.lookup(request.param)


@pytest.fixture(scope="session")
def policy(family: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the family's tiny model."""
    builder = importlib.import_module(f"tests.families.{family.model_type}")
    return Path(builder.build(tmp_path_factory.mktemp("tiny") / family.model_type))


@pytest.fixture
def make(world: Path, policy: Path, tmp_path: Path) -> Callable[..., Any]:
    """A trainer over the tiny model, as in tests/rl."""

    def build(*args: Any, out: str = "out", **more: Any) -> Any:
        return build_trainer(world, policy, tmp_path / out, *args, **more)

    return build


def written(box: Box, frame: Any, original: tuple[int, int], policy: Path) -> str:
    """A box as a policy writes it, in whole numbers of its frame."""
    seen = model_size(original, *model_files.pixel_bounds(policy))
    return f"<bbox>[{','.join(str(round(v)) for v in convert(box, frame, original, seen))}]</bbox>"


def in_frame(text: str, frame: Any, size: tuple[int, int], policy: Path) -> str:
    """A trace of the miniature world, whose boxes are pixels of its files, with boxes in another frame."""

    def put(match: re.Match[str]) -> str:
        return written(Box(*map(float, match.groups()), "original"), frame, size, policy)

    return _BOX.sub(put, text)


def rewrite_traces(file: Path, frame: Any, policy: Path) -> None:
    """Boxes of an sft.jsonl in another frame."""
    rows = list(read_jsonl(file))
    for row in rows:
        size = Image.open(row["images"][0]).size
        row["messages"][1]["content"] = in_frame(row["messages"][1]["content"], frame, size, policy)
    write_jsonl(file, rows)


def config_of(policy: Path) -> dict[str, Any]:
    """The tiny model's config.json."""
    return dict(json.loads((policy / "config.json").read_text(encoding="utf-8")))


@dataclass
class Chain:
    """A runs root, the tiny model in it that knows the questions, and overrides of the mini preset."""

    root: Path
    teacher: Path
    overrides: tuple[str, ...]
    family: Backbone

    def config(self, *more: str) -> Config:
        return load("mini", "fgrpo", [*self.overrides, *more])


def taught(family: Backbone, policy: Path, folder: Path) -> Chain:
    """Questions and their traces in the family's frame in `folder`, and the tiny model after SFT on these traces."""
    torch.set_num_threads(1)
    rng, samples, traces, scenes = random.Random(4), [], [], []
    for n in range(QUESTIONS):
        question, paths = questions.make(("hrel", "vrel", "view")[n % 3], rng), []
        for k, scene in enumerate(question.scenes):
            paths.append(str(folder / f"{n}-{k}.png"))
            render(scene, rng).save(paths[-1])
            scenes.append({"key": truth.image_key(Path(paths[-1])), "scene": scene.to_dict()})
        things = [question.scenes[-1].by_name(name) for name in question.targets]
        boxes = tuple(Box(*map(float, thing.box)) for thing in things if thing)
        boxes = tuple(Box(*box, "original") for box in boxes)
        samples.append(Sample(f"vgr/train/{n}", tuple(paths), question.text, question.choices, question.answer, boxes))
        turns = [
            {"role": "user", "content": question.text},
            {"role": "assistant", "content": questions.trace(question)},
        ]
        traces.append({"id": f"{n}/0", "sample_id": samples[-1].id, "messages": turns, "images": paths})
    write_jsonl(folder / "scenes.jsonl", scenes)
    for name in ("first", "second"):
        (folder / name / "mini" / "mcts").mkdir(parents=True)
        (folder / name / "mini" / "data").mkdir(parents=True)
        write_jsonl(folder / name / "mini" / "data" / "seed.jsonl", (sample.to_dict() for sample in samples))
        write_jsonl(folder / name / "mini" / "data" / "rl.jsonl", (sample.to_dict() for sample in samples))
    file = folder / "first" / "mini" / "mcts" / "sft.jsonl"
    write_jsonl(file, traces)
    rewrite_traces(file, family.box_frame, policy)
    overrides = (
        f"data.root={folder}", f"policy.box_frame={family.box_frame}", "sft.batch_size=6", "sft.save_steps=100",
        "sft.evals=1", "sft.logging_steps=5", "data.validation_share=0.0", "sft.freeze_projector=false",
    )  # fmt: skip
    made = Chain(folder / "second", folder / "first" / "mini" / "sft" / "final", overrides, family)
    builder = importlib.import_module(f"tests.families.{family.model_type}")
    fit = (f"sft.max_steps={builder.FIT_STEPS}", f"sft.learning_rate={builder.FIT_RATE}")
    sft_train.train(made.config(f"models.base={policy}", *fit), folder / "first")
    return made
