"""The report in a real browser: filters work, boxes lie where they belong, and nothing a model writes runs.

Skipped, with a warning, where there is no Chromium.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from eval import examples, models, report
from eval.results import SCORING, Result
from fgrpo import boxes
from fgrpo.types import Box, EvalRecord, Rollout, Sample, Score

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=2000"
)
if CHROMIUM is None:
    warnings.warn("no Chromium here: the report was not looked at in a browser (apt install chromium)", stacklevel=1)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def browse(page: Path, profile: Path, *options: str, fragment: str = "") -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), *options, f"--user-data-dir={profile}", f"file://{page}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


COLUMNS = [{"key": "a", "title": "A", "visible": True, "colour": "#e08600", "light": "#b86e00", "dark": "#f0a030"}]


def page_of(found: list[Any], path: Path, **more: Any) -> str:
    context: dict[str, Any] = {
        "title": "ours", "subtitle": "", "cards": [], "tables": [], "more_tables": [], "comparisons": [],
        "more_comparisons": [], "paper": [], "figures": [], "judges": [], "world": True, "other_kind": "",
        "examples": found, "examples_note": "", "benchmarks": ["MMVP"], "columns": COLUMNS, "filters": [("a-flip", "flip")], **more,
    }  # fmt: skip
    text = report.render(**context)
    path.write_text(text, encoding="utf-8")
    return text


def example(tag: str, text: str) -> dict[str, object]:
    line = {"pieces": [{"text": text, "box": ""}], "colour": "ungrounded", "reason": text}
    column = {
        "key": "a", "title": text, "lines": [line], "answer": text, "correct": False, "holds": False,
        "checks": [{"title": text, "holds": False, "reason": text}], "notes": [text], "shapes": [],
    }  # fmt: skip
    return {
        "id": text, "benchmark": "MMVP", "question": text, "choices": [text], "gold": text, "tags": tag,
        "images": [], "truth": [], "columns": [column],
    }  # fmt: skip


def test_filters_and_attacks(tmp_path: Path) -> None:
    attack = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    page = tmp_path / "index.html"
    both = [example("a-wrong a-flip", attack), example("a-wrong", attack)]
    text = page_of(both, page, subtitle=attack, other_kind=attack, examples_note=attack, more_tables=[table(attack)])
    # Even an attack that got past the escaping would be stopped by the page's content security policy.
    page.write_text(text.replace("</main>", attack + "</main>"), encoding="utf-8")
    seen = browse(page, tmp_path / "profile", "--dump-dom", fragment="#verdict=a-flip")
    assert "<title>ours</title>" in seen
    assert "1 of 2</span>" in seen and seen.count('style="display: none;"') == 1


def table(text: str) -> dict[str, Any]:
    return {"title": text, "headings": [text], "rows": [[text]], "note": text}


def extent(pixels: np.ndarray[Any, Any], colour: tuple[int, int, int], tolerance: int) -> tuple[int, int, int, int]:
    """The smallest rectangle (x1, y1, x2, y2) around all pixels of a colour."""
    ys, xs = np.nonzero((np.abs(pixels.astype(int) - np.array(colour)) <= tolerance).all(axis=2))
    assert len(xs), f"nothing of colour {colour} was drawn"
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("width", [1280, 520])
def test_boxes_are_drawn_where_they_belong(tmp_path: Path, width: int) -> None:
    """A picture that the model sees resized; what its box and the true box surround is painted, and both are found."""
    size, predicted, true = (450, 230), (90, 60, 190, 130), (250, 100, 350, 200)  # pixels of the file
    picture = Image.new("RGB", size, "white")
    paint = ImageDraw.Draw(picture)
    paint.rectangle((predicted[0], predicted[1], predicted[2] - 1, predicted[3] - 1), fill=(255, 0, 255))
    paint.rectangle((true[0], true[1], true[2] - 1, true[3] - 1), fill=(0, 255, 255))
    picture.save(tmp_path / "p.png")
    seen = (196, 112)  # as a processor resizes it that allows 224 x 112 pixels
    assert boxes.model_size(size, 784, 224 * 112, 28) == seen
    written = [round(v * seen[i % 2] / size[i % 2]) for i, v in enumerate(predicted)]
    sample = Sample("mmvp/test/1", (str(tmp_path / "p.png"),), "Q?", ("x", "y"), "x", (Box(*true, frame="original"),))
    text = f"<think>It is at <bbox>{written}</bbox>.</think><answer>x</answer>"
    record = EvalRecord("r", "mmvp", "fgrpo", sample.id, {"accuracy": Score.of(1.0)}, {"kind": "greedy"})
    (tmp_path / SCORING).write_text(json.dumps({"judges": {"pixels": [784, 224 * 112, 28]}}))
    column = (Result("fgrpo", "FGRPO", tmp_path, {}), models.load("fgrpo"), record, Rollout("r", sample.id, text))
    built = examples.build("r", sample, [column], "MMVP")
    page_of([built], tmp_path / "index.html")
    shot = tmp_path / "shot.png"
    browse(tmp_path / "index.html", tmp_path / "profile", f"--window-size={width},900", f"--screenshot={shot}")
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    for stroke, filling in (((224, 134, 0), (255, 0, 255)), ((24, 163, 74), (0, 255, 255))):
        meant = extent(pixels, filling, 60)
        left, top = max(0, meant[0] - 40), max(0, meant[1] - 40)  # around it: the legend has the same colours
        near = extent(pixels[top : meant[3] + 40, left : meant[2] + 40], stroke, 3)
        drawn = (near[0] + left, near[1] + top, near[2] + left, near[3] + top)
        assert max(abs(a - b) for a, b in zip(drawn, meant, strict=True)) <= 3, (stroke, drawn, meant)
