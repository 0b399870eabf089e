"""Small data sets in the genuine formats, and real photographs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_curation.source import Context, Tally, source
from fgrpo.types import Sample


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photograph that scikit-learn ships, 640 x 427."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(np.asarray(load_sample_image("china.jpg")))


def shipped() -> dict[str, Path]:
    """Photographs that packages ship: two of scikit-learn's, one of matplotlib's (upright)."""
    import matplotlib
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return {
        "china": folder / "china.jpg",
        "flower": folder / "flower.jpg",
        "hopper": Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    }


def encoded(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def write_parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def save_image(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


Reader = Callable[..., tuple[list[Sample], Tally]]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """read(name, folder, seed=0) -> samples and tally, as the data stage reads a source."""

    def body(name: str, folder: Path, seed: int = 0) -> tuple[list[Sample], Tally]:
        tally = Tally()
        return list(source(name).read(Context(folder, tmp_path / "images", seed, 4, tally))), tally

    return body
