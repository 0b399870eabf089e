"""The report's section on where the policy looks: colours of maps, the stored file, the table of measured scores."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from known import TITLES
from PIL import Image

from eval import heat, looks, maps, probe_table
from eval.maps import AnswerMaps, Inside, Maps
from eval.measured import BELONGS, SUMMARY
from eval.results import Result, find
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.hashing import Hashes
from fgrpo.schema import Config
from fgrpo.sealed import write_sealed
from fgrpo.types import Rollout

ANSWER = AnswerMaps(
    "mmvp/test/0", maps.digest(Rollout("mmvp/test/0", "mmvp/test/0", "<think>t</think>")), 7,
    attention=(((0.5, 0.125, 0.125), (0.25, 0.0, 0.0)),), on_image=0.125, focus=None, side=2,
    drops=(((0.1, -0.01),),), inside=Inside(1 / 6, 0.5, None, 0.1, -0.01),
)  # fmt: skip


def pixels(uri: str) -> np.ndarray[Any, Any]:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_a_scale_is_logarithmic_between_its_fixed_ends() -> None:
    scale = heat.ATTENTION
    assert [scale.place(value) for value in (0.0, 0.25, 1.0, 4.0, 16.0, 99.0)] == pytest.approx(
        [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]
    )
    (uniform,) = [tick for tick in scale.marks() if tick.is_reference]
    assert (uniform.label, uniform.at) == ("uniform", pytest.approx(33.33))
    assert heat.DROP.place(-1.0) == heat.DROP.place(0.003) == 0.0 and heat.DROP.place(3.0) == 1.0
    assert not any(tick.is_reference for tick in heat.DROP.marks())


def test_the_colours_grow_lighter_from_end_to_end() -> None:
    assert heat.colour(0.0) == heat.MAGMA[0] and heat.colour(1.0) == heat.MAGMA[-1]
    assert heat.colour(0.5) == heat.MAGMA[4]
    light = [sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), heat.colour(n / 40), strict=True)) for n in range(41)]
    assert light == sorted(light) and light[-1] > 240
    assert heat.gradient().startswith("linear-gradient(90deg, rgb(0, 0, 4), ") and heat.gradient().count("rgb") == 9


def test_each_cell_has_the_colour_of_its_multiple_of_uniform_attention() -> None:
    attention, counterfactual = looks._heats(ANSWER)
    found = pixels(attention.uri)
    expected = [[heat.colour(heat.ATTENTION.place(6 * share)) for share in row] for row in ANSWER.attention[0]]
    assert found.tolist() == [[list(colour) for colour in row] for row in expected]
    blocks = pixels(counterfactual.uri)  # two blocks of two cells a side, the second of which is cut by the edge
    assert blocks.shape == (2, 3, 3)
    assert {tuple(c) for c in blocks[:, :2].reshape(-1, 3)} == {heat.colour(heat.DROP.place(0.1))}
    assert {tuple(c) for c in blocks[:, 2]} == {heat.MAGMA[0]}


def test_the_numbers_beside_the_maps() -> None:
    facts = dict(looks._facts(ANSWER))
    assert facts == {
        "attention on the image": "12% of all",
        "of it inside the boxes": "50% (uniform 17%)",
        "mean drop inside the boxes": "0.100, elsewhere -0.010 nats",
        "largest drop": "0.100 nats; 1 of 2 blocks of 2 × 2 cells raise the probability",
    }


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    stored = Maps(("a", "b"), (4,), 6, "zero", (ANSWER,))
    assert maps.read(tmp_path) is None
    stored.write(tmp_path)
    again = maps.read(tmp_path)
    assert again is not None and again.answers[0].to_dict() == ANSWER.to_dict()
    assert again.answers[0].attention == ANSWER.attention and again.layers == (4,) and again.made_from == ("a", "b")


@pytest.mark.parametrize(
    "change",
    [
        {"drops": [[[0.1]]]},  # one block for an image of three columns
        {"focus": [[[1.0]]]},
        {"attention": [[[0.5, float("nan"), 0.1], [0.2, 0.1, 0.1]]]},
        {"attention": [[[0.5, 0.1], [0.2, 0.1, 0.1]]]},
        {"attention": []},
        {"side": None},
        {"side": 0},
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    path = Maps((), (4,), 6, "zero", (ANSWER,)).write(tmp_path)
    data = json.loads(path.read_text())
    data["answers"][0] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"maps\.json is damaged .*run `make maps`"):
        maps.read(tmp_path)


def result(folder: Path, name: str = "sft") -> Result:
    """An evaluated model with one answer."""
    path = folder / name
    path.mkdir(exist_ok=True)
    rollout = Rollout("mmvp/test/0", "mmvp/test/0", "<think>t</think>")
    write_jsonl(path / "generations.jsonl", [rollout.to_dict()])
    return Result(name, TITLES.get(name, "SFT"), path, {})


METRICS = {
    "control_margin": {"mean": None, "low": None, "high": None, "n": 0, "not_applicable": {"no_boxes": 8}, "failed": 2},
    "evidence_margin": {"mean": 0.8214, "low": 0.8, "high": 0.84, "n": 5, "not_applicable": {"no_boxes": 3, "no_control": 1}, "failed": 0},
    "evidence_margin/control_drop": {"mean": 0.02, "low": 0.01, "high": 0.03, "n": 5, "not_applicable": {}, "failed": 0},
    "evidence_margin/evidence_drop": {"mean": 0.31, "low": 0.2, "high": 0.4, "n": 5, "not_applicable": {}, "failed": 0},
}  # fmt: skip


def measured(of: Result, generations: str | None = None) -> None:
    """What `make probe` writes."""
    summary = {"model": of.name, "title": of.title, "kind": "greedy", "answers": 9, "metrics": METRICS}
    (of.path / SUMMARY).write_text(json.dumps(summary))
    digest = Hashes().of_file(of.path / "generations.jsonl") if generations is None else generations
    write_sealed(of.path / BELONGS, {"generations": digest})


def test_the_table_of_measured_scores(tmp_path: Path) -> None:
    sft, fgrpo = result(tmp_path), result(tmp_path, "fgrpo")
    measured(sft)
    measured(fgrpo, "of other answers")
    table, notes = probe_table.probe_table([fgrpo, sft])
    assert table is not None
    assert table.rows == (
        ("SFT (9 greedy answers)", "evidence margin", "0.821 [0.800, 0.840]", "5", "no boxes 3, no control 1", "0"),
        ("", "evidence margin: control drop", "0.020 [0.010, 0.030]", "5", "–", "0"),
        ("", "evidence margin: evidence drop", "0.310 [0.200, 0.400]", "5", "–", "0"),
        ("", "control margin", "–", "0", "no boxes 8", "2"),
    )
    assert notes == ["FGRPO: probes.json is of other answers and is not shown; run `make probe` for this model again."]
    assert probe_table.probe_table([]) == (None, [])
    (sft.path / SUMMARY).write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        probe_table.probe_table([sft])


def test_without_files_a_sentence_says_how_to_get_them(tmp_path: Path) -> None:
    local, api = result(tmp_path), result(tmp_path, "gpt-4o")

    def none(ids: Any) -> Any:
        raise AssertionError("no example is needed")

    found = looks.section([local, api], none)
    assert found is not None and "make maps MODEL=sft" in found["how"] and not found["looks"] and not found["notes"]
    assert looks.section([api], none) is None


def test_an_attack_in_a_file_is_text_on_the_page(stored: tuple[Config, Path], tmp_path: Path) -> None:
    """The causes of a damaged or foreign probes.json are shown as they are written."""
    from eval import report

    found = find(*stored)["fgrpo"]
    attack = "<script>alert(1)</script>"
    table = probe_table._row(attack, attack, {**METRICS["control_margin"], "not_applicable": {attack: 1}})
    section = {"looks": [], "notes": [attack], "how": attack, "table": {"title": attack, "headings": [attack], "rows": [table], "note": attack}}  # fmt: skip
    page = report.render(
        title=found.title, subtitle="", cards=[], tables=[], more_tables=[], comparisons=[], more_comparisons=[],
        paper=[], figures=[], judges=[], world=True, other_kind="", examples=[], examples_note="", benchmarks=[],
        columns=[], filters=[], looking=section,
    )  # fmt: skip
    part = page[page.index('<h2 id="looks">') : page.index("</main>")]
    assert attack not in part and html.unescape(part).count(attack) == 7
    assert re.findall("<script", page) == ["<script"]
