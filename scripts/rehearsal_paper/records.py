"""Data sets in true schemas around photographs: the writers of the miniature world, with a studio that has a camera.

The schemas stay in one place (miniworld/write). Only scenes and images differ: photographs of true sizes, in the kinds of
`photographs.FORMS`, and one to four of them per question as the schema has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from miniworld import questions as qs
from miniworld.relations import OPPOSITE
from miniworld.scene import Scene
from miniworld.write.__main__ import writers
from miniworld.write.studio import Part, Studio
from scripts.rehearsal_paper.photographs import NAMES, Album, PhotoScene, Slot, form_of, scene_of

_JPEG_SETS = ("vgr", "viscot", "treevgr", "mmvp")  # their schemas name .jpg files; the others hold .png files or bytes
_UP_TO_FOUR = ("mindcube", "blink", "mmsi_bench")  # images per question; other sets with several have two
_PLAIN: Mapping[Slot, str] = {"png": "vga png", "jpeg": "vga jpeg"}


class PhotoStudio(Studio):
    """Questions about photographs; `seen` lists (form, slot) of each written file."""

    def __init__(self, album: Album, seed: int, name: str, part: Part) -> None:
        super().__init__(seed, name, part)
        self.album = album
        self.slot: Slot = "jpeg" if name.split("/")[0] in _JPEG_SETS else "png"
        self.seen: list[str] = []

    def named(self, name: str) -> PhotoStudio:
        """See `Studio.named`."""
        out = PhotoStudio(self.album, self.seed, f"{self.name}/{name}", self.part)
        out.seen = self.seen
        return out

    def questions(self, families: Sequence[str], count: int) -> Iterator[tuple[int, qs.Question, random.Random]]:
        """`count` questions, cycling through families, photographs and forms."""
        for n in range(count):
            rng = self.rng(n)
            yield n, self._ask(families[n % len(families)], n, rng), rng

    def pairs(
        self, families: Sequence[str], count: int
    ) -> Iterator[tuple[int, tuple[qs.Question, qs.Question], random.Random]]:
        """`count` pairs: a photograph and its mirror image, whose left is right."""
        for n in range(count):
            rng, photo, form = self.rng(n), NAMES[n % len(NAMES)], form_of(n, self.slot)
            first = qs.ask("hrel", (scene_of(photo, _PLAIN[self.slot]),), rng)
            second = replace(first, answer=OPPOSITE[first.answer])
            shown = (scene_of(photo, form), scene_of(photo, form, mirrored=True))
            yield n, (replace(first, scenes=shown[:1]), replace(second, scenes=shown[1:])), rng

    def png(self, scene: Scene, rng: random.Random) -> bytes:
        """The file of a photograph in its form."""
        assert isinstance(scene, PhotoScene)
        self.seen.append(scene.form)
        return self.album.file(scene.photo, scene.form, scene.mirrored)

    jpeg = png

    def _ask(self, family: str, n: int, rng: random.Random) -> qs.Question:
        """Ask about the photograph at a plain size, then show it in the form that it is stored in."""
        photo, plain, form = NAMES[n % len(NAMES)], _PLAIN[self.slot], form_of(n, self.slot)
        several = 2 + n % 3 if self.name in _UP_TO_FOUR else 2
        count = several if family == "view" else 2 if family == "moved" else 1
        sides = [k % 2 == 1 for k in range(count)]
        forms = [form, *(_PLAIN[self.slot] for _ in sides[1:])]
        while True:
            try:
                asked = qs.ask(family, tuple(scene_of(photo, plain, side) for side in sides), rng)
            except ValueError:  # nothing moved, or equal distances, in this photograph
                photo = rng.choice(NAMES)
                continue
            shown = zip(forms, sides, strict=True)
            return replace(asked, scenes=tuple(scene_of(photo, form, side) for form, side in shown))


def write(root: Path, album: Album, count: int, seed: int) -> dict[str, list[str]]:
    """Write every training set and benchmark with `count` questions below `root`; returns the forms of each set's files."""
    out = {}
    for name, writer in writers().items():
        studio = PhotoStudio(album, seed, name, writer.part)
        writer.write(root / writer.folder, count, studio)
        out[name] = studio.seen
    return out
