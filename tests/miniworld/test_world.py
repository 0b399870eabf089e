"""Scenes, images, questions and the truth book: deterministic, consistent with their own rules, recovered from files."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from miniworld import questions as qs
from miniworld import relations as rel
from miniworld.render import render
from miniworld.scene import BOARD, PIXELS, UNIT, Scene, sample_scene
from miniworld.truth import TruthBook, entry, image_key


def test_scenes_keep_their_rules() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = sample_scene(rng)
        boxes = [t.box for t in scene.things]
        assert 2 <= len(boxes) <= BOARD
        assert all(v % UNIT == 0 and 0 <= v <= PIXELS for box in boxes for v in box)
        assert all(t.box[2] - t.box[0] == t.box[3] - t.box[1] == t.size for t in scene.things)
        for values in ([t.color for t in scene.things], [t.size for t in scene.things]):
            assert len(set(values)) == len(values)
        rows, columns = zip(*(t.cell for t in scene.things), strict=True)
        assert len(set(rows)) == len(rows) and len(set(columns)) == len(columns)
        for t in scene.things:  # inside one image token
            assert t.cell == ((t.box[3] - 1) // 28, (t.box[2] - 1) // 28)
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_the_same_seed_draws_the_same_image() -> None:
    def draw(seed: int) -> str:
        rng = random.Random(seed)
        return image_key(render(sample_scene(rng), rng))

    assert draw(1) == draw(1) != draw(2)
    scene = sample_scene(random.Random(0))
    assert image_key(render(scene)) == image_key(render(scene)) != image_key(render(scene, random.Random(0)))


def test_a_thing_is_drawn_where_its_box_is() -> None:
    scene = sample_scene(random.Random(5))
    image = render(scene)
    for thing in scene.things:
        x, y = (int(v) for v in thing.center)
        seen = [image.getpixel((x + dx, y + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
        assert any(p == rgb for p in seen for rgb in [render_color(thing.color)])


def render_color(name: str) -> tuple[int, int, int]:
    from miniworld.scene import COLORS

    return COLORS[name]


@pytest.mark.parametrize("family", qs.FAMILIES)
def test_questions_are_balanced_and_name_their_options(family: str) -> None:
    rng = random.Random(f"balance/{family}")
    questions = [qs.make(family, rng) for _ in range(400)]
    first = sum(q.answer == q.choices[0] for q in questions) / len(questions)
    assert (0.2 if family == "count" else 0.4) < first < 0.6
    for q in questions:
        assert q.answer in q.choices and all(c in q.text for c in q.choices)
        assert len(q.scenes) == (2 if family in ("view", "moved") else 1)
        assert all(q.scenes[q.image_index or 0].by_name(name) for name in q.targets)


@pytest.mark.parametrize("family", ["hrel", "vrel"])
def test_pairs_differ_only_in_the_answer(family: str) -> None:
    rng = random.Random(3)
    for _ in range(100):
        one, two = qs.pair(family, rng)
        assert one.text == two.text and one.answer == rel.OPPOSITE[two.answer]
        for q in (one, two):
            a, b = (q.scenes[0].by_name(name) for name in q.targets)
            assert a and b and rel.relation(family, a.box, b.box) == q.answer
        changed = [s for s, t in zip(one.scenes[0].things, two.scenes[0].things, strict=True) if s != t]
        assert {t.name for t in changed} == set(one.targets)


def test_unknown_family() -> None:
    with pytest.raises(ValueError, match="hrel, vrel"):
        qs.make("sideways", random.Random(0))


def test_the_truth_book_looks_up_scenes_by_pixels(tmp_path: Path) -> None:
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(3)]
    images = [render(scene, rng) for scene in scenes]
    rows = [json.dumps(entry(image, scene)) for image, scene in zip(images, scenes, strict=True)]
    (tmp_path / "scenes.jsonl").write_text("\n".join(rows[:2]) + "\n")
    for i, image in enumerate(images):
        image.save(tmp_path / f"renamed-{i}.png")
    book = TruthBook.load(tmp_path)
    assert book.scenes([tmp_path / "renamed-1.png", str(tmp_path / "renamed-0.png")]) == (scenes[1], scenes[0])
    assert book.scenes([images[0]]) == (scenes[0],)
    assert book.scenes([tmp_path / "renamed-2.png"]) is None
    with pytest.raises(OSError):
        book.scenes([tmp_path / "nowhere.png"])


def test_the_truth_book_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no scenes\.jsonl"):
        TruthBook.load(tmp_path)
    (tmp_path / "scenes.jsonl").write_text('{"key": "x"}\n')
    with pytest.raises(UserError, match="line 1"):
        TruthBook.load(tmp_path)
