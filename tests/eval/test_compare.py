"""Any evaluated models side by side; parts of benchmarks and own benchmarks are named wherever they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from known import record, setting, small_world, store, table_named

from eval import base, compare, figures, report, run, tables
from eval.examples import KEYS
from eval.results import find, places
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.schema import Config
from tests.eval.test_chain import checkpoint, engine


@pytest.fixture(scope="module")
def three(world_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Three evaluated models on one benchmark, and a base model on another one."""
    config, root = small_world(world_root), tmp_path_factory.mktemp("three")
    for name, stage, wrong in (("sft", "sft", 0.0), ("grpo-t", "rl-grpo-t", 1.0), ("fgrpo", "rl-fgrpo", 0.5)):
        checkpoint(config, root, stage)
        run.evaluate(config, name, ["mmvp"], root, engine(config, inconsistent=wrong, wrong=wrong))
    run.evaluate(config, "backbone-cot", ["cvb_2d"], root, engine(config))
    return config, root


def test_every_pair_has_a_table_and_the_flipped_questions_are_shown(three: tuple[Config, Path]) -> None:
    config, root = three
    paired, out = compare.write(["sft", "grpo-t", "fgrpo"], config, root)
    names = [
        f"{a}-vs-{b}-{kind}"
        for a, b in (("sft", "grpo-t"), ("sft", "fgrpo"), ("grpo-t", "fgrpo"))
        for kind in ("greedy", "sampled")
    ]
    assert [t.name for t in paired] == names
    assert out == root / config.preset / "compare" / "sft-vs-grpo-t-vs-fgrpo"
    stored = json.loads((out / "comparison.json").read_text())
    assert sorted(stored) == sorted(names)
    flipped = stored["sft-vs-grpo-t-sampled"]["inconsistency"]["flipped"]
    assert len(flipped) == stored["sft-vs-grpo-t-sampled"]["inconsistency"]["mcnemar"]["only_b"] > 0
    page = (out / "index.html").read_text(encoding="utf-8")
    for rollout in flipped:
        article = page[page.index(f"· {rollout}<") :].partition("</article>")[0]
        assert [f'class="column {key}"' in article for key in "abcd"] == [True, True, True, False]
        assert article.count("<img") == 1  # the question's image, once, with the boxes of all three over it
        assert {key for key in "abc" if f'class="of-{key}"' in article} == set("abc")
    assert [page.count(f'data-model="{key}" checked') for key in "abc"] == [1, 1, 1]
    assert "means of the benchmarks (MMVP)" in page


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sft"], "name two to 6 different"),
        (["sft", "sft"], "name two to 6 different"),
        (["sft", "sftt"], "unknown evaluated model 'sftt'"),
        (["sft", "backbone-cot"], "share no question"),
    ],
)
def test_what_cannot_be_compared_is_named(names: list[str], words: str, three: tuple[Config, Path]) -> None:
    with pytest.raises(UserError, match=words):
        compare.write(names, *three)


def test_the_report_shows_whatever_was_evaluated(three: tuple[Config, Path]) -> None:
    """The main pair first and visible, the others behind a switch; a model on other questions has no paired table."""
    config, root = three
    shown = report.sides(find(config, root), config)
    assert [r.name for r in shown] == ["grpo-t", "fgrpo", "backbone-cot", "sft"]
    page = report.write(config, root).read_text(encoding="utf-8")
    assert [page.count(f'data-model="{key}" checked') for key in KEYS[:4]] == [1, 1, 0, 0]
    assert page.count('class="column c"') > 0 and page.count('class="column d"') > 0
    _, everything, _ = tables.build(config, root)
    assert not any("backbone-cot" in t.name for t in everything)


def test_parts_are_marked_and_an_average_names_what_it_averages(three: tuple[Config, Path]) -> None:
    config, root = three
    accuracy = table_named(tables.main_tables(find(config, root), config), "accuracy-greedy")
    assert [row[0] for row in accuracy.rows] == [
        f"{t} (1 of 7 benchmarks)" for t in ("Backbone, CoT", "SFT", "GRPO-T", "FGRPO")
    ]
    assert "the average of SFT is of MMVP" in accuracy.note and "of Backbone, CoT is of CVB-2D" in accuracy.note


def test_a_limit_is_named_in_tables_figures_and_report(world: Config, tmp_path: Path) -> None:
    limited = world.model_copy(update={"eval": world.eval.model_copy(update={"limit": 2})})
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(limited, "fgrpo", root=tmp_path, sampler=engine(world))
    results = find(limited, tmp_path)
    for table in tables.main_tables(results, limited):
        assert table.rows[0][0] == "FGRPO (limit 2)" and "at most 2 questions of each benchmark" in table.note
    assert tables._comparable(results["fgrpo"], "average", "accuracy") is None  # never beside the paper's figure
    drawn = figures.figure3(results, limited)
    assert drawn is not None and [t.get_text() for t in drawn.legends[0].get_texts()] == ["FGRPO (limit 2)"]
    plt.close(drawn)
    assert "FGRPO (limit 2)" in report.write(limited, tmp_path).read_text(encoding="utf-8")


def test_an_own_benchmark_appears_under_its_name(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As eval/README.md says: a folder with questions.jsonl, and a module of two lines for a name of its own."""
    from eval.benchmarks import own

    kitchen = own.questions_file("kitchen", "Kitchen scenes")
    loaded = {"kitchen": kitchen}
    known, plugin = base.names, base.benchmark
    monkeypatch.setattr(base, "names", lambda: [*known(), "kitchen"])
    monkeypatch.setattr(base, "benchmark", lambda name: loaded.get(name) or plugin(name))
    questions = base.load("mmvp", world).samples
    folder = Path(world.data.root) / "bench" / "kitchen"
    folder.mkdir(exist_ok=True)
    rows = []
    for n, sample in enumerate(questions):
        (folder / f"{n}.jpg").write_bytes(Path(sample.images[0]).read_bytes())
        rows.append(
            {"question": sample.question, "image": f"{n}.jpg", "choices": list(sample.choices), "answer": sample.answer}
        )
    write_jsonl(folder / "questions.jsonl", rows)
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", ["mmvp", "kitchen"], tmp_path, engine(world))
    results = find(world, tmp_path)
    assert places(results.values(), world)[-1] == "kitchen" and results["fgrpo"].averaged("greedy") == ["mmvp"]
    accuracy, faithfulness, *_ = tables.main_tables(results, world)
    assert accuracy.headings.index("Kitchen scenes") == accuracy.headings.index("average") + 1
    assert [row[0] for row in faithfulness.rows] == ["FGRPO (1 of 7 benchmarks)", "FGRPO: Kitchen scenes"]
    drawn = figures.figure3(results, world)
    assert drawn is not None and "Kitchen scenes" in [t.get_text() for t in drawn.axes[-1].get_xticklabels()]
    plt.close(drawn)
    assert 'data-benchmark="Kitchen scenes"' in report.write(world, tmp_path).read_text(encoding="utf-8")


def test_own_benchmarks_alone_are_the_average_and_say_so(tmp_path: Path) -> None:
    config = setting()
    values = {"accuracy": 1.0, "inconsistency": 0.0, "semantic_grounding": 1.0, "spatial_grounding": 1.0}
    store(config, tmp_path, "fgrpo", [record("fgrpo", "theirs", n, "greedy", values) for n in range(4)])
    accuracy = table_named(tables.main_tables(find(config, tmp_path), config), "accuracy-greedy")
    assert accuracy.headings == ("accuracy ↑", "average", "theirs") and "is of theirs" in accuracy.note
    assert accuracy.rows[0][0] == "FGRPO (other benchmarks)"
