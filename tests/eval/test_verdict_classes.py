"""Examples are drawn at random from every class of verdicts, and the rates beside them are those of all answers."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import known
import pytest

from eval import facts, report, verdict_classes
from eval.results import Result, find
from fgrpo.errors import UserError
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Score

RIGHT, WRONG = {"accuracy": 1.0}, {"accuracy": 0.0}


def record(n: int, values: dict[str, float | None], **meta: str) -> EvalRecord:
    scores = {name: Score.not_applicable("x") if v is None else Score.of(v) for name, v in values.items()}
    return EvalRecord(f"b/{n}", "b", "m", f"b/{n}", scores, {"kind": "greedy", "finish": "stop", **meta})


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        ({**RIGHT, "consistency": 1.0}, ("right-holds",)),
        ({**RIGHT, "consistency": 0.0}, ("right-fails",)),
        ({**WRONG, "consistency": 1.0, "flip": 1.0}, ("wrong-holds", "flip")),
        ({**WRONG, "consistency": 0.0, "flip": 0.0}, ("wrong-fails",)),
        ({**WRONG, "consistency": None, "semantic_grounding": 0.5}, ("wrong-unjudged",)),
        (RIGHT, ("right-unjudged",)),
        ({"accuracy": None, "consistency": 1.0}, ("unscored",)),
    ],
)
def test_the_class_of_a_record(values: dict[str, float | None], tags: tuple[str, ...]) -> None:
    assert verdict_classes.tags(record(0, values)) == tags
    assert set(tags) <= set(verdict_classes.titles())
    assert verdict_classes.tags(record(0, values, finish="error")) == ()


@pytest.mark.parametrize(
    ("consistency", "second", "trace"),
    [(1.0, 1.0, "holds"), (1.0, 0.0, "fails"), (0.0, None, "fails"), (1.0, None, "unjudged"), (None, None, "unjudged")],
)
def test_with_two_checks_both_must_hold(
    consistency: float | None, second: float | None, trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check without a verdict is no pass."""
    (only,) = verdict_classes._checks()
    other = replace(only, score="second", report=replace(only.report, title="the second check", inverted=False))
    monkeypatch.setattr(verdict_classes, "_checks", lambda: [only, other])
    given = {"consistency": consistency, "second": second}
    assert verdict_classes.tags(record(0, {**RIGHT, **given})) == (f"right-{trace}",)
    titles = verdict_classes.titles()
    assert titles["right-holds"] == f"right answer with {only.score_title} and the second check"
    assert titles["wrong-fails"] == f"wrong answer without {only.score_title} or without the second check"
    assert titles["wrong-unjudged"] == "wrong answer, a verdict on the trace is missing"


def test_rates_are_of_all_answers_and_the_draw_is_of_each_class() -> None:
    kinds = [
        ({**RIGHT, "consistency": 1.0}, 90),
        ({**RIGHT, "consistency": 0.0}, 8),
        ({**WRONG, "consistency": 1.0}, 2),
    ]
    every = [values for values, count in kinds for _ in range(count)]
    records = {f"b/{n}": record(n, values) for n, values in enumerate(every)}
    drawn = verdict_classes.draw([records], seed=0, each=3)
    shown = {rate.tag: (rate.percent, rate.count, rate.drawn) for rate in verdict_classes.rates(records, drawn)}
    assert shown == {
        "right-holds": ("90.0%", 90, 3),
        "right-fails": ("8.0%", 8, 3),
        "wrong-holds": ("2.0%", 2, 2),
    }
    assert drawn == sorted(drawn, key=list(records).index)
    assert drawn == verdict_classes.draw([dict(reversed(records.items()))], seed=0, each=3)[::-1], "ids alone decide"
    assert drawn != verdict_classes.draw([records], seed=1, each=3)


def test_a_draw_is_no_choice_of_the_first() -> None:
    """Over many seeds every answer of a class comes up."""
    records = {f"b/{n}": record(n, RIGHT) for n in range(30)}
    seen = {i for seed in range(100) for i in verdict_classes.draw([records], seed, each=3)}
    assert seen == set(records)


def test_further_models_are_drawn_from_only_where_the_first_two_have_no_answer() -> None:
    of_a = {f"b/{n}": record(n, RIGHT) for n in range(5)}
    of_c = {f"b/{n}": record(n, WRONG) for n in range(4, 8)}
    drawn = verdict_classes.draw([of_a, {}, of_c], seed=0, each=9)
    assert drawn == [f"b/{n}" for n in range(8)]
    assert not set(verdict_classes.draw([of_a, of_a, of_c], 0, 9)) - set(of_a) - {"b/5", "b/6", "b/7"}


def test_how_often_two_models_differ() -> None:
    one = {f"b/{n}": record(n, RIGHT) for n in range(4)}
    other = {f"b/{n}": record(n, RIGHT if n else WRONG) for n in range(1, 6)} | {"b/0": record(0, WRONG)}
    rate = verdict_classes.differing([one, other], drawn=["b/0", "b/1"])
    assert rate is not None and (rate.count, rate.total, rate.drawn, rate.percent) == (1, 4, 1, "25.0%")
    assert verdict_classes.differing([one]) is None


def test_the_page_states_rates_facts_and_definitions(
    stored: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = stored[0], tmp_path / "runs"
    shutil.copytree(stored[1], root)  # others use it without a report
    results = list(find(config, root).values())
    monkeypatch.setattr(report, "collect", lambda *words, **named: [])  # its questions are no files
    monkeypatch.setattr(
        facts,
        "manifest",
        lambda path: {"seed": 7, "commit": "a" * 40, "dirty": True, "finished": "2026-01-02T03:04:05"},
    )
    context: dict[str, object] = {}
    real = report.render
    monkeypatch.setattr(report, "render", lambda **given: context.update(given) or real(**given))
    page = report.write(config, root).read_text(encoding="utf-8")
    assert "commit aaaaaaaaaa with local changes" in page and "2026-01-02" in page and "<dd>7</dd>" in page
    assert "Share of answers whose trace does not entail them" in page
    rows = context["rates"]["rows"]  # type: ignore[index]
    shown = report.sides({r.name: r for r in results}, config)[0]
    kind = report.main_kind(report.sides({r.name: r for r in results}, config))
    right = sum(row["rates"][0].count for row in rows if row["title"].startswith("right answer") and row["rates"][0])
    records = [r for r in shown.records() if r.meta["kind"] == kind]
    assert right == sum(r.scores["accuracy"].value == 1.0 for r in records) > 0
    assert "prefers-color-scheme: dark" in page and not re.search(r"#fff(?![^;]*;[^;]*})", page.split("</style>")[1])


@pytest.mark.parametrize(
    ("name", "where"), [("fgrpo", "Trained from Qwen/Qwen2.5-VL-7B-Instruct"), ("gpt-4o", "Benchmarks in data/paper")]
)
def test_a_page_of_another_model_names_no_base(name: str, where: str, tmp_path: Path) -> None:
    from fgrpo.config import load

    config = load("paper-7b")
    assert report._where([Result(name, name, tmp_path, {})], config) == where


def test_a_manifest_of_an_older_version_is_dated_by_its_files(tmp_path: Path) -> None:
    result = Result("m", "M", tmp_path, {})
    assert dict(facts.facts([result], known.setting())) == {"preset": "mini, method fgrpo"}
    (tmp_path / "done").touch()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", dict(facts.facts([result], known.setting()))["evaluated"])
    days = [replace(result, path=tmp_path / day) for day in ("a", "b")]
    for day, shown in zip(("2026-03-02", "2026-03-01"), days, strict=True):
        shown.path.mkdir()
        (shown.path / "manifest.json").write_text(f'{{"finished": "{day}T00:00:00+00:00"}}')
    assert dict(facts.facts(days, known.setting()))["evaluated"] == "2026-03-01 to 2026-03-02"


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 1, "checksum": "0"}'])
def test_facts_of_a_damaged_manifest_are_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest.json cannot be read .* run its stage again"):
        facts.manifest(tmp_path)
