"""Figures and report are made again when what they show has changed or is gone, and only then."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval import freshness, models
from fgrpo.config import load

CONFIG = load("mini")
INPUTS = (
    *("eval/sft/done", "eval/sft/summary.json", "eval/sft/scores.jsonl", "eval/sft/generations.jsonl"),
    *("eval/sft/scoring.json", "eval/sft/judge_validation.json", "judge_validation/judge_validation.json"),
    *("rl-fgrpo/metrics.jsonl", "rl-fgrpo/config.json", "rl-fgrpo/judge_validation.json"),
)
OF_BOTH = ("eval/sft/summary.json", "eval/sft/scores.jsonl", "rl-fgrpo/metrics.jsonl", "rl-fgrpo/config.json")
OF_THE_REPORT = [name for name in INPUTS if name not in (*OF_BOTH, "eval/sft/done")]


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset's folder with one evaluation, one training run and one figure; figures and report are current."""
    for name, source in (("FOLDER", models.FOLDER), ("METHODS", models.METHODS)):
        monkeypatch.setattr(models, name, Path(shutil.copytree(source, tmp_path / "configs" / source.name)))
    monkeypatch.setattr(models.names, "__defaults__", (models.FOLDER, models.METHODS))
    paper = Path(shutil.copy(freshness.PAPER_TABLES, tmp_path / "configs"))
    monkeypatch.setattr(freshness, "PAPER_TABLES", paper)
    monkeypatch.setattr(freshness, "TEMPLATES", Path(shutil.copytree(freshness.TEMPLATES, tmp_path / "templates")))
    top = tmp_path / "mini"
    for name in INPUTS:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("{}\n")
    for stage, results in (("figures", ("figure4.png", "captions.json")), ("report", ("index.html",))):
        (top / stage).mkdir()
        for result in results:
            (top / stage / result).write_text("{}\n")
        made = freshness.made_from(CONFIG, stage, tmp_path)
        freshness.stamp(top / stage, made, [top / stage / result for result in results])
    return top


def current(top: Path, config: object = CONFIG) -> tuple[bool, bool]:
    """Whether figures and report are current."""
    made = {stage: freshness.made_from(config, stage, top.parent) for stage in ("figures", "report")}  # type: ignore[arg-type]
    of_figures, of_report = (freshness.is_current(top / stage, made[stage]) for stage in ("figures", "report"))
    return of_figures, of_report


def test_nothing_changed(shown: Path) -> None:
    (shown / "eval/sft/done").write_text("later\n")  # when a stage finished is not what it found
    (shown / "eval/sft/verdicts.jsonl").write_text("{}\n")  # neither reads it
    assert current(shown) == (True, True)


@pytest.mark.parametrize("name", OF_BOTH)
def test_results_changed_or_are_gone(shown: Path, name: str) -> None:
    (shown / name).write_text('{"step": 1}\n')
    assert current(shown) == (False, False)
    (shown / name).unlink()
    assert current(shown) == (False, False)


@pytest.mark.parametrize("name", OF_THE_REPORT)
def test_what_only_the_report_shows_changed_or_is_gone(shown: Path, name: str) -> None:
    (shown / name).write_text('{"step": 1}\n')
    assert current(shown) == (True, False)
    (shown / name).unlink()
    assert current(shown) == (True, False)


@pytest.mark.parametrize("name", ["models/sft.yaml", "paper_tables.yaml"])
def test_titles_and_the_papers_figures_changed(shown: Path, name: str) -> None:
    file = shown.parent / "configs" / name
    file.write_text(file.read_text().replace("title: ", "title: New "))
    assert current(shown) == (False, False)


def test_a_model_more_and_a_method_more(shown: Path) -> None:
    """A method has a title of its own, without a file of configs/models."""
    for folder in ("models", "method"):
        file = shown.parent / "configs" / folder / "another.yaml"
        file.write_text("rl: {}\n")
        assert current(shown) == (False, False)
        file.unlink()
        assert current(shown) == (True, True)


def test_another_template_and_another_configuration(shown: Path) -> None:
    assert current(shown, load("mini", overrides=["eval.confidence=0.9"])) == (False, False)
    assert current(shown, load("mini", "grpo-t")) == (False, False)
    (shown.parent / "templates" / "report.html.j2").write_text("new")
    assert current(shown)[1] is False


def test_a_reward_reported_in_another_way(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *others) = freshness.measures()
    changes: tuple[dict[str, Any], ...] = ({"title": "new"}, {"pooled": True}, {"colour": "#123456"})
    for change in changes:
        changed = replace(first, report=replace(first.report, **change))
        monkeypatch.setattr(freshness, "measures", lambda changed=changed: (changed, *others))
        assert current(shown) == (False, False)


def test_a_new_evaluation_and_an_unfinished_one(shown: Path) -> None:
    (shown / "eval/sft/done").unlink()
    assert current(shown) == (False, False)


def test_a_new_figure(shown: Path) -> None:
    (shown / "figures/figure8.png").write_bytes(b"png")
    assert current(shown) == (True, False)


@pytest.mark.parametrize("name", ["figures/figure4.png", "figures/captions.json"])
def test_a_figure_or_its_caption_is_gone_or_another(shown: Path, name: str) -> None:
    content = (shown / name).read_bytes()
    for change in ((shown / name).unlink, lambda: (shown / name).write_bytes(content[:1])):
        change()
        assert current(shown) == (False, False), "the figure is drawn again, and the report without it is written again"
        (shown / name).write_bytes(content)
        assert current(shown) == (True, True), "a figure drawn again to the same bytes is in the report already"


@pytest.mark.parametrize("name", ["index.html", freshness.STAMP])
def test_the_page_or_its_stamp_is_gone_or_torn(shown: Path, name: str) -> None:
    file = shown / "report" / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert current(shown) == (True, False)
    file.unlink()
    assert current(shown) == (True, False)
