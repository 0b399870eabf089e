"""`make maps` from an evaluation and real weights to the page: which answers, which numbers beside them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval import maps, report, run
from eval.results import one
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import focus, loading
from fgrpo.policy.tokens import FOCUS
from fgrpo.schema import Config
from ops import policy_maps
from tests.eval.conftest import known, world_root
from tests.eval.test_chain import engine

__all__ = ["world_root"]
NAME = "backbone-cot"


@pytest.fixture(scope="module")
def mapped(world_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, maps.Maps]:
    """The shipped policy's weights with scripted answers to two benchmarks, and the maps of three."""
    cfg, root = known.small_world(world_root), tmp_path_factory.mktemp("runs")
    cfg = cfg.model_copy(update={"models": cfg.models.model_copy(update={"base": str(known.BACKBONE)})})
    run.evaluate(cfg, NAME, ["mindcube", "mmvp"], root, engine(cfg))
    policy_maps.measure(cfg, NAME, root, limit=3)
    found = maps.read(one(NAME, cfg, root).path)
    assert found is not None
    return cfg, root, found


def test_the_answers_are_the_reports_examples_at_even_distances(mapped: Any) -> None:
    cfg, root, found = mapped
    result = one(NAME, cfg, root)
    shown = set(report.drawn_examples(cfg, root)[2])
    among = [i for i in result.rollouts() if i in shown]
    assert [a.id for a in found.answers] == [among[n * len(among) // 3] for n in range(3)]
    assert {a.id.split("/")[0] for a in found.answers} == {"mindcube", "mmvp"}


def test_the_maps_of_an_answer(mapped: Any) -> None:
    """Shares sum to 1 over all images; a drop for each of the 16 cells of an image; what lies inside the true boxes."""
    cfg, root, found = mapped
    rollouts = one(NAME, cfg, root).rollouts()
    assert found.layers == (2 * found.layer_count // 3,) and found.fill == "zero"
    for answer in found.answers:
        assert answer.text == maps.digest(rollouts[answer.id]) and answer.focus is None
        flat = np.array([share for grid in answer.attention for row in grid for share in row])
        assert len(flat) == 16 * len(answer.attention) and flat.sum() == pytest.approx(1.0, abs=1e-4)
        assert answer.side == 1 and 0 < answer.on_image < 1
        drops = np.array([drop for grid in answer.drops for row in grid for drop in row])
        assert len(drops) == len(flat) and len(set(drops.tolist())) > 8
        assert answer.inside is not None and 0 < answer.inside.area < 1
        assert answer.inside.drop_elsewhere is not None
        area = answer.inside.area  # the boxes' cells and the others make up the whole
        whole = area * answer.inside.drop + (1 - area) * answer.inside.drop_elsewhere
        assert whole == pytest.approx(drops.mean(), abs=1e-5)
    assert {len(answer.attention) for answer in found.answers} == {1, 2}


def test_the_page_shows_them(mapped: Any) -> None:
    cfg, root, found = mapped
    page = report.write(cfg, root).read_text(encoding="utf-8")
    section = page[page.index('<h2 id="looks">') :].partition("<h2")[2]
    articles = section.split('<article class="look">')[1:]
    assert [a.id for a in found.answers] == [next(i for i in [x.id for x in found.answers] if f"· {i}<" in text) for text in articles]  # fmt: skip
    for answer, article in zip(found.answers, articles, strict=True):
        images = len(answer.attention)
        assert article.count("<symbol") == images and article.count('class="heat"') == 2 * images
        assert article.count("<use") == 3 * images and 'class="line' in article
        assert f"{100 * answer.on_image:.0f}% of all" in article


def test_a_model_with_the_token_has_its_map_too(mapped: Any, tmp_path: Path) -> None:
    """A policy whose tokens attend to all keys alike: `<|focus|>` and the response have the area's share in the boxes."""
    cfg, _, _ = mapped
    final = tmp_path / cfg.preset / "anchor" / "final"
    focus.add(known.BACKBONE, final, add_row=True)
    model, _ = loading.load_policy(final)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                parameter.zero_()
    model.save_pretrained(final)
    run.evaluate(cfg, "anchor", ["mmvp"], tmp_path, engine(cfg))
    policy_maps.measure(cfg, "anchor", tmp_path, limit=1, most=4)
    found = maps.read(one("anchor", cfg, tmp_path).path)
    assert found is not None
    (answer,) = found.answers
    assert answer.focus is not None and answer.inside is not None and answer.side == 2
    for grids in (answer.focus, answer.attention):
        assert np.array(grids) == pytest.approx(np.full((1, 4, 4), 1 / 16), abs=1e-5)
    assert answer.inside.focus == pytest.approx(answer.inside.area, abs=1e-5)
    assert np.array(answer.drops).shape == (1, 2, 2)
    page = report.write(cfg, tmp_path).read_text(encoding="utf-8")
    assert f"attention of {FOCUS}".replace("<", "&lt;").replace(">", "&gt;") in page


def test_refusals(mapped: Any, tmp_path: Path) -> None:
    cfg, root, _ = mapped
    with pytest.raises(UserError, match="are not on this machine"):
        policy_maps.measure(cfg, "gpt-4o", root)
    with pytest.raises(UserError, match="unknown evaluated model"):
        policy_maps.measure(cfg, "backbone-direct", root)
    other = Path(shutil.copytree(known.BACKBONE, tmp_path / "other"))
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "trained": "again"}))
    changed = cfg.model_copy(update={"models": cfg.models.model_copy(update={"base": str(other)})})
    with pytest.raises(UserError, match=f"has other weights than those .* run `make eval PRESET=smoke MODEL={NAME}`"):
        policy_maps.measure(changed, NAME, root)


def test_maps_of_other_answers_are_not_shown(mapped: Any, tmp_path: Path) -> None:
    """An answer of another text, and an evaluation of other weights."""
    cfg, root, found = mapped
    shutil.copytree(root / cfg.preset / "eval", tmp_path / cfg.preset / "eval")
    folder = tmp_path / cfg.preset / "eval" / NAME
    (folder / "manifest.json").write_text('{"outputs": {}}')
    assert maps.of_result(one(NAME, cfg, tmp_path)) == (found, 0)
    rows = list(read_jsonl(folder / "generations.jsonl"))
    write_jsonl(folder / "generations.jsonl", [{**r, "text": r["text"] + " "} if r["id"] == found.answers[1].id else r for r in rows])  # fmt: skip
    current, left_out = maps.of_result(one(NAME, cfg, tmp_path))
    assert current is not None and left_out == 1
    assert [a.id for a in current.answers] == [found.answers[0].id, found.answers[2].id]
    (folder / "config.json").unlink()
    current, left_out = maps.of_result(one(NAME, cfg, tmp_path))
    assert current is not None and current.answers == () and left_out == 3
    page = report.write(cfg, tmp_path).read_text(encoding="utf-8")
    assert "holds 3 maps of other answers or weights" in page and 'class="heat"' not in page
