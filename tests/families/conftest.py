"""Every model family goes through these tests: `fgrpo/policy/backbones/<name>.py` is tested with the tiny model of `<name>.py` here."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fgrpo.boxes import convert, model_size
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import backbone, model_files
from fgrpo.policy.backbone import Backbone
from fgrpo.types import Box
from tests.rl.conftest import build_trainer, world

__all__ = ["world"]
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
