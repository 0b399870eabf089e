"""Shared fixtures: genuine tiny data sets, and one small miniature world."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import genuine
import known

from fgrpo.config import load
from fgrpo.schema import Config


@pytest.fixture
def real_like(tmp_path: Path) -> Config:
    """Configuration at paper scale, without count check, over tiny files in the genuine formats."""
    genuine.write_all(tmp_path)
    return load("paper-7b", "fgrpo", [f"data.root={tmp_path}", "eval.counts=null"])


@pytest.fixture(scope="session")
def world_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of the miniature world with a few questions a benchmark."""
    from miniworld.write.__main__ import write_world

    root = tmp_path_factory.mktemp("world")
    write_world(
        load(
            "smoke", "fgrpo", [f"data.root={root / 'data'}", "world.train_per_source=1", "world.bench_per_benchmark=4"]
        ),
        root / "runs",
    )
    return root / "data"


@pytest.fixture
def world(world_root: Path) -> Config:
    """The smoke configuration over `world_root`."""
    return known.small_world(world_root)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """(configuration, runs folder) with two finished evaluations whose every figure is known (`known`)."""
    config, root = known.setting(), tmp_path_factory.mktemp("stored")
    for model in known.TITLES:
        known.store(config, root, model, known.records_of(model))
    return config, root
