"""Figures and report are made again when what they show has changed, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval import freshness
from fgrpo.config import load

CONFIG = load("mini")


@pytest.fixture
def shown(tmp_path: Path) -> Path:
    """A preset's folder with one evaluation, one training run and one figure; figures and report are current."""
    top = tmp_path / "mini"
    for name in ("eval/sft/done", "eval/sft/summary.json", "eval/sft/scores.jsonl", "rl-fgrpo/metrics.jsonl"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("{}\n")
    for stage, result in (("figures", "captions.json"), ("report", "index.html")):
        (top / stage).mkdir()
        (top / stage / result).write_text("{}\n")
        freshness.stamp(top / stage, freshness.made_from(CONFIG, stage, tmp_path))
    return top


def current(top: Path, config: object = CONFIG) -> tuple[bool, bool]:
    """Whether figures and report are current."""
    made = {stage: freshness.made_from(config, stage, top.parent) for stage in ("figures", "report")}  # type: ignore[arg-type]
    pairs = (("figures", "captions.json"), ("report", "index.html"))
    figures, report = (freshness.is_current(top / stage, result, made[stage]) for stage, result in pairs)
    return figures, report


def test_nothing_changed(shown: Path) -> None:
    (shown / "eval/sft/done").write_text("later\n")  # when a stage finished is not what it found
    assert current(shown) == (True, True)


@pytest.mark.parametrize("name", ["eval/sft/summary.json", "eval/sft/scores.jsonl", "rl-fgrpo/metrics.jsonl"])
def test_content_changed(shown: Path, name: str) -> None:
    (shown / name).write_text('{"step": 1}\n')
    assert current(shown) == (False, False)


def test_a_new_evaluation_an_unfinished_one_and_another_configuration(shown: Path) -> None:
    assert current(shown, load("mini", overrides=["eval.confidence=0.9"])) == (False, False)
    (shown / "eval/sft/done").unlink()
    assert current(shown) == (False, False)


def test_a_lost_result_and_a_new_figure(shown: Path) -> None:
    (shown / "figures/figure4.png").write_bytes(b"png")
    assert current(shown) == (True, False)
    (shown / "figures/captions.json").unlink()
    assert current(shown)[0] is False
