"""The report in a real browser: filters work, and nothing a model writes runs. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from eval import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --virtual-time-budget=2000"
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


def dom(page: Path, fragment: str, profile: Path) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom", f"file://{page}{fragment}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def example(tag: str, text: str) -> dict[str, object]:
    line = {"pieces": [{"text": text, "box": ""}], "colour": "ungrounded", "reason": text}
    column = {
        "key": "a", "title": text, "lines": [line], "answer": text, "correct": False, "consistent": False,
        "reason": text, "notes": [text], "shapes": [],
    }  # fmt: skip
    return {
        "id": text, "benchmark": "MMVP", "question": text, "choices": [text], "gold": text, "tags": tag,
        "pictures": [], "truth": [], "columns": [column],
    }  # fmt: skip


def test_filters_and_attacks(tmp_path: Path) -> None:
    attack = "<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
    page = tmp_path / "index.html"
    text = report.render(
        title="ours", subtitle=attack, cards=[], tables=[], comparisons=[], more_comparisons=[], paper=[], figures=[],
        examples=[example("a-wrong a-flip", attack), example("a-wrong", attack)], examples_note=attack,
        benchmarks=["MMVP"], filters=[("a-flip", "flip")],
    )  # fmt: skip
    # Even an attack that got past the escaping would be stopped by the page's content security policy.
    page.write_text(text.replace("</main>", attack + "</main>"), encoding="utf-8")
    seen = dom(page, "#verdict=a-flip", tmp_path / "profile")
    assert "<title>ours</title>" in seen
    assert "1 of 2</span>" in seen and seen.count('style="display: none;"') == 1
