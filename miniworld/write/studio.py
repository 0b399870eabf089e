"""Shared code of all writers: questions of their part of the world, images as file bytes, and entries of the truth book.

A hash of each scene assigns it to the training or the benchmark part, so no benchmark shows a training scene. An image's key is
computed from its decoded bytes, because JPEG changes pixels. The paper has no such world; the formats are those of the data
sets' cards (Appendix A.3, B.1).
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from miniworld import questions as qs
from miniworld.render import render
from miniworld.scene import Scene
from miniworld.truth import entry

Part = Literal["train", "bench"]
BENCH_SHARE = 4  # one in this many scenes belongs to the benchmarks
JPEG_QUALITY = 98
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # the hub's column type for images


def part_of(scene: Scene) -> Part:
    """The part of the world that `scene` belongs to; independent of the order of its things."""
    things = sorted(json.dumps(thing, sort_keys=True) for thing in scene.to_dict()["things"])
    digest = hashlib.sha256("\n".join(things).encode()).digest()
    return "bench" if int.from_bytes(digest[:4], "big") % BENCH_SHARE == 0 else "train"


class Studio:
    """Draws questions of one part and encodes their scenes as image files; `entries` records the scene of each file.

    The same (seed, name) give the same questions and bytes; question `n` does not depend on earlier questions.
    """

    def __init__(self, seed: int, name: str, part: Part) -> None:
        self.seed, self.name, self.part = seed, name, part
        self.entries: list[dict[str, object]] = []

    def named(self, name: str) -> Studio:
        """A studio for a part `name` of this one's data set, with entries of its own."""
        return Studio(self.seed, f"{self.name}/{name}", self.part)

    def rng(self, n: int) -> random.Random:
        """The random generator of question `n`."""
        return random.Random(f"{self.seed}/{self.name}/{n}")

    def questions(self, families: Sequence[str], count: int) -> Iterator[tuple[int, qs.Question, random.Random]]:
        """`count` questions, cycling through the families: (n, question, the random generator for its images)."""
        for n in range(count):
            rng = self.rng(n)
            while True:
                question = qs.make(families[n % len(families)], rng)
                if all(part_of(scene) == self.part for scene in question.scenes):
                    break
            yield n, question, rng

    def pairs(
        self, families: Sequence[str], count: int
    ) -> Iterator[tuple[int, tuple[qs.Question, qs.Question], random.Random]]:
        """`count` pairs of questions with the same text, near-identical images and opposite answers."""
        for n in range(count):
            rng = self.rng(n)
            while True:
                pair = qs.pair(families[n % len(families)], rng)
                if all(part_of(scene) == self.part for question in pair for scene in question.scenes):
                    break
            yield n, pair, rng

    def png(self, scene: Scene, rng: random.Random) -> bytes:
        """A PNG file of the scene with jitter from `rng`; its entry is recorded."""
        return self._record(scene, _encode(render(scene, rng), "PNG"))

    def jpeg(self, scene: Scene, rng: random.Random) -> bytes:
        """A JPEG file of the scene (quality 98, no chroma subsampling) with jitter from `rng`; its decoded entry is recorded."""
        return self._record(scene, _encode(render(scene, rng), "JPEG", quality=JPEG_QUALITY, subsampling=0))

    def _record(self, scene: Scene, data: bytes) -> bytes:
        with Image.open(io.BytesIO(data)) as decoded:
            self.entries.append(entry(decoded.convert("RGB"), scene))
        return data


@dataclass(frozen=True)
class Writer:
    """How one data set is written: its folder below the data root, its part, and `write(folder, count, studio)`."""

    folder: str
    part: Part
    write: Callable[[Path, int, Studio], None]


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def save(path: Path, data: bytes) -> None:
    """Write `data` to `path`; creates the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def parquet(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write a parquet file with small row groups, like a large streamed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, row_group_size=256)


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one JSON object per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lettered(choices: Sequence[str], style: str = "{letter}. {choice}", between: str = " ") -> str:
    """Options as text: "A. left B. right", or "(a) left (b) right" with another style."""
    return between.join(
        style.format(letter=chr(65 + i), lower=chr(97 + i), choice=choice) for i, choice in enumerate(choices)
    )


def letter(question: qs.Question) -> str:
    """The letter of the correct option."""
    return chr(65 + question.choices.index(question.answer))
