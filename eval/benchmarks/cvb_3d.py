"""CV-Bench 3D (nyu-visionx/CV-Bench): depth and distance, 1200 questions; column CVB-3D of Table 1.

File `test_3d.parquet`, with the columns of `eval.benchmarks.cvb_2d`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop
from eval.benchmarks.cvb_2d import read_half
from fgrpo.types import Sample


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    return read_half(folder, cache, "3D")


BENCHMARK = Benchmark(
    "cvb_3d", "CVB-3D", "CV-Bench", "nyu-visionx/CV-Bench", _read, known_as=("cv_bench_3d", "CV-Bench-3D")
)
