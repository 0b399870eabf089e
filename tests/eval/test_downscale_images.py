"""Pictures keep their resolution while they fit the context, and shrink together, no more than is needed, where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eval import base, models, run
from eval.downscale_images import fit
from fgrpo.config import load
from fgrpo.images import image_size
from fgrpo.policy import backbone
from fgrpo.types import Sample

FAMILY = backbone.default()
BOUNDS = FAMILY.pixels


def sample(folder: Path, *sizes: tuple[int, int]) -> Sample:
    paths = []
    for n, size in enumerate(sizes):
        path = folder / f"{n}.png"
        Image.new("RGB", size, (n, 0, 0)).save(path)
        paths.append(str(path))
    return Sample("own/test/0", tuple(paths), "Which one?", ("a", "b"), "a")


def tokens(found: Sample) -> int:
    return sum(FAMILY.prompt_tokens(path, BOUNDS) for path in found.images)


def test_what_fits_is_left_alone(tmp_path: Path) -> None:
    config = load("paper-7b", "fgrpo", [f"data.root={tmp_path}"])
    asked = sample(tmp_path, (1920, 1080), (1920, 1080), (1920, 1080), (1920, 1080))  # 4 x 2,693 tokens
    assert fit([asked], models.load("fgrpo"), config, BOUNDS, FAMILY) == [asked]


def test_several_huge_pictures_shrink_by_one_factor(tmp_path: Path) -> None:
    config = load("paper-7b", "fgrpo", [f"data.root={tmp_path}", "eval.context_length=8192"])
    asked = sample(tmp_path, (2800, 1400), (1400, 1400))
    (found,) = fit([asked], models.load("fgrpo"), config, BOUNDS, FAMILY)
    room = config.eval.context_length - config.eval.max_new_tokens
    assert tokens(asked) > room and 0.8 * room < tokens(found) <= room
    assert found.meta["shrunk"] < 1 and found.id == asked.id
    shares = [b / a for old, new in zip(asked.images, found.images, strict=True)
              for a, b in zip(image_size(old), image_size(new), strict=True)]  # fmt: skip
    assert max(shares) - min(shares) < 0.01
    assert fit([asked], models.load("fgrpo"), config, BOUNDS, FAMILY) == [found]  # the same files again


def test_a_missing_or_broken_picture_is_left_to_the_engine(tmp_path: Path) -> None:
    config = load("paper-7b", "fgrpo", [f"data.root={tmp_path}"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for path in (broken, tmp_path / "gone.png"):
        asked = Sample("own/test/0", (str(path),), "Q?", ("a", "b"), "a")
        assert fit([asked], models.load("fgrpo"), config, BOUNDS, FAMILY) == [asked]


def test_tokens_around_an_image_are_the_familys(tmp_path: Path) -> None:
    config = load("paper-7b", "fgrpo", [f"data.root={tmp_path}", "eval.context_length=8192"])
    asked = sample(tmp_path, (2800, 1400), (1400, 1400))
    more = replace(FAMILY, marker_attributes=("a",) * 500)
    (few,), (many,) = (fit([asked], models.load("fgrpo"), config, BOUNDS, family) for family in (FAMILY, more))
    assert many.meta["shrunk"] < few.meta["shrunk"]


def test_an_evaluation_fits_images_to_the_family_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    class Enough(Exception):
        pass

    def stop(samples: object, spec: object, config: object, bounds: object, family: object) -> None:
        given.append(family)
        raise Enough

    monkeypatch.setattr(run, "fit", stop)
    monkeypatch.setattr(run, "assumed_family", lambda path: f"family of {path}")
    monkeypatch.setattr(run.base, "load", lambda name, config: base.Loaded(base.benchmark(name), []))
    config = load("mini", "fgrpo", [f"data.root={tmp_path}"])
    with pytest.raises(Enough):
        run.evaluate(config, "backbone-cot", ["mmvp"], tmp_path, object())  # type: ignore[arg-type]
    assert given == ["family of miniworld/backbone"]


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG")])
def test_a_shrunk_photograph_is_stored_as_jpeg(ending: str, kind: str, tmp_path: Path) -> None:
    config = load("paper-7b", "fgrpo", [f"data.root={tmp_path}", "eval.context_length=8192"])
    path = tmp_path / f"large.{ending}"
    Image.effect_noise((2800, 2800), 60).convert("RGB").save(path)
    asked = Sample("own/test/0", (str(path),), "Which one?", ("a", "b"), "a")
    (found,) = fit([asked], models.load("fgrpo"), config, BOUNDS, FAMILY)
    with Image.open(found.images[0]) as smaller:
        assert smaller.format == kind and smaller.width < 2800 and found.meta["shrunk"] < 1
    if kind == "JPEG":
        assert Path(found.images[0]).stat().st_size < path.stat().st_size
