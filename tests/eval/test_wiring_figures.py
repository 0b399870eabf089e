"""Hand-overs of evaluation: summary and metrics.jsonl -> the data on the axes of the figures -> the report.

Figures are read by the data on their axes, the page by its HTML.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from known import (
    HIGHER_IS_BETTER,
    METRICS,
    SEVEN,
    TITLE_OF,
    TITLES,
    evaluate,
    expected,
    heading,
    records_of,
    setting,
    small_world,
    store,
)
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from eval import base, figure_style, figures, report, tables
from eval.results import find
from fgrpo.files import write_jsonl
from fgrpo.response import parse
from fgrpo.schema import Config

REWARD_METRICS = METRICS[1:4]  # one panel of Figure 3 each


def trained_with(thresholds: Mapping[str, float]) -> list[str]:
    """Overrides that give constraints these thresholds."""
    return ["rl.constraints={" + ", ".join(f"{name}: {{tau: {tau}}}" for name, tau in thresholds.items()) + "}"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Figure]]:
    """Figures that are written, by the stem of their file; nothing is rendered."""
    import matplotlib.pyplot as plt

    seen: dict[str, Figure] = {}

    def keep(self: Figure, path: Any, **_: Any) -> None:
        seen[Path(path).name.strip(".").partition(".")[0]] = self
        Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    yield seen
    plt.close("all")


def curves(axis: Axes) -> dict[str, list[float]]:
    """The thin line of single steps before each labelled one, by its label."""
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    pairs = zip(lines[::2], lines[1::2], strict=True)
    found = {}
    for raw, smooth in pairs:
        values = list(map(float, raw.get_ydata()))
        thick = figure_style.smooth(values, figure_style.window_of(len(values)))
        assert list(smooth.get_ydata()) == pytest.approx(list(thick), nan_ok=True)
        found[str(smooth.get_label())] = values
    return found


def test_figure_3_shows_each_metric_under_its_title_by_data_set_and_model(
    stored: tuple[Config, Path], drawn: dict[str, Figure]
) -> None:
    config, root = stored
    figures.draw(config, root)
    axes = drawn["figure3"].axes
    titles = [base.benchmark(name).title for name in SEVEN]
    assert [t.get_text() for t in axes[-1].get_xticklabels()] == [*titles, "average"]
    cells = {m: find(config, root)[m].summary["sampled"] for m in TITLES}
    for axis, metric in zip(axes, REWARD_METRICS, strict=True):
        direction = "higher" if metric in HIGHER_IS_BETTER else "lower"
        assert axis.get_title(loc="left") == f"{TITLE_OF[metric].capitalize()}, % ({direction} is better)"
        bars = [c for c in axis.containers if hasattr(c[0], "get_height")]
        assert [str(c.get_label()) for c in bars] == ["GRPO-T", "FGRPO"]
        ranges = [c for c in axis.collections if isinstance(c, LineCollection)]
        for (model, _), container, segments in zip(TITLES.items(), bars, ranges, strict=True):
            heights = [bar.get_height() for bar in container]
            assert heights == pytest.approx([expected(model, "sampled", metric, p) for p in (*SEVEN, "average")])
            places = [bar.get_x() + bar.get_width() / 2 for bar in container]
            assert [round(x) for x in places[:7]] == list(range(7))
            bounds = [
                cells[model]["average"][metric] if p == "average" else cells[model]["benchmarks"][p][metric]
                for p in (*SEVEN, "average")
            ]
            for (low, high), cell in zip(segments.get_segments(), bounds, strict=True):
                assert (low[1], high[1]) == (pytest.approx(100 * cell["low"]), pytest.approx(100 * cell["high"]))
    labels = [text.get_text() for legend in drawn["figure3"].legends for text in legend.get_texts()]
    assert labels == ["GRPO-T", "FGRPO"]
    assert "sampled" in drawn["figure3"].get_supxlabel()


def test_figure_3_shows_greedy_answers_where_no_model_has_others(tmp_path: Path, drawn: dict[str, Figure]) -> None:
    config = setting()
    for model in TITLES:
        store(config, tmp_path, model, [r for r in records_of(model) if r.meta["kind"] == "greedy"])
    figures.draw(config, tmp_path)
    assert "greedy" in drawn["figure3"].get_supxlabel()
    for axis, metric in zip(drawn["figure3"].axes, REWARD_METRICS, strict=True):
        bars = [c for c in axis.containers if hasattr(c[0], "get_height")]
        for model, container in zip(TITLES, bars, strict=True):
            assert container[-1].get_height() == pytest.approx(expected(model, "greedy", metric, "average"))


def test_a_thick_line_is_the_centred_mean_of_the_thin_one() -> None:
    assert figure_style.smooth([0.0, 1.0, 5.0, None, 3.0, 7.0], 3) == pytest.approx([0.5, 2.0, 3.0, 4.0, 5.0, 5.0])
    assert figure_style.smooth([None, None, None, 4.0], 2) == pytest.approx([math.nan, math.nan, 4.0, 4.0], nan_ok=True)
    assert figure_style.smooth([1.0, 2.0, 3.0], 1) == pytest.approx([1.0, 2.0, 3.0])
    assert [figure_style.window_of(steps) for steps in (1, 16, 200)] == [1, 2, 25]


def step_line(n: int, method: int) -> dict[str, Any]:
    """One step of a run; every figure is another one."""
    line: dict[str, Any] = {"step": n, "accuracy": 0.3 + 0.01 * n + 0.2 * method, "inconsistency": 0.2 - 0.01 * n}
    for k, name in enumerate(("consistency", "spatial_grounding", "semantic_grounding", "brevity"), start=1):
        line |= {
            f"constraint/{name}/{part}": 100.0 + k for part in ("n", "mixed_share", "share", "violation", "failed")
        }
        line[f"constraint/{name}/mean"] = 0.1 * k + 0.01 * n
        if method:
            line[f"lambda/{name}"] = 1.0 + k + 0.1 * n
    return line


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Config, Path]:
    """Runs of both methods; that of fgrpo had other thresholds than the configuration has now."""
    config = setting(*trained_with({"consistency": 0.11, "spatial_grounding": 0.12, "semantic_grounding": 0.13}))
    old = setting(*trained_with({"consistency": 0.91, "spatial_grounding": 0.82, "semantic_grounding": 0.73}))
    for k, method in enumerate(TITLES):
        folder = tmp_path / config.preset / f"rl-{method}"
        folder.mkdir(parents=True)
        write_jsonl(folder / "metrics.jsonl", (step_line(n, k) for n in range(1, 5)))
        (folder / "config.json").write_text(json.dumps({"config": old.model_dump(mode="json"), "inputs": {}}))
    return config, tmp_path


def test_figure_4_shows_accuracy_and_inconsistency_of_each_method(
    trained: tuple[Config, Path], drawn: dict[str, Figure]
) -> None:
    figures.draw(*trained)
    left, right = drawn["figure4"].axes
    titles = [axis.get_title(loc="left") for axis in (left, right)]
    assert titles == ["Accuracy of training rollouts, %", "Inconsistency of training rollouts, %"]
    for axis, key in ((left, "accuracy"), (right, "inconsistency")):
        shown = curves(axis)
        assert list(shown) == ["GRPO-T", "FGRPO"]
        for k, values in enumerate(shown.values()):
            assert values == pytest.approx([100 * step_line(n, k)[key] for n in range(1, 5)])
        assert {tuple(map(int, line.get_xdata())) for line in axis.lines} == {(1, 2, 3, 4)}


def test_figure_4_shows_runs_that_have_an_accuracy_in_some_step() -> None:
    some = [{"step": 1}, {"step": 2, "accuracy": 0.5, "inconsistency": 0.25}, {"step": 3}]
    drawn = figures.figure4({"grpo-t": [{"step": 1, "loss": 0.1}], "fgrpo": some})
    assert drawn is not None
    for axis, value in zip(drawn.axes, (50.0, 25.0), strict=True):
        assert curves(axis) == {"FGRPO": pytest.approx([math.nan, value, math.nan], nan_ok=True)}
    assert figures.figure4({"grpo-t": [{"step": 1, "loss": 0.1}]}) is None


def test_scores_in_a_unit_of_their_own_are_inside_their_panels() -> None:
    """Words of a trace, negative and far from [0, 1]; shares keep the limits 0 and 1."""
    rows = [
        {"step": n, "constraint/brevity/mean": -20.0 + n, "lambda/brevity": 1.0, "constraint/c/mean": 0.2 * n}
        for n in range(1, 6)
    ]
    drawn = figures.figure8("fgrpo", rows, {"brevity": -12.0})
    assert drawn is not None
    words, shares = drawn.axes[:2]
    low, high = words.get_ylim()
    assert low < -19.0 and high > -12.0 and shares.get_ylim()[1] == 1.03
    axis = Figure().add_subplot()
    cell = {"value": -0.03, "low": -0.04, "high": -0.02}
    axis = Figure().add_subplot()
    result = SimpleNamespace(
        title="FGRPO",
        label="FGRPO",
        name="fgrpo",
        cell=lambda *_: cell,
        kinds=lambda: ["greedy"],
        averaged=lambda _: ["mmvp"],
    )
    figures._bars(axis, [result], "greedy", ["mmvp", "average"], "brevity", ["mmvp"])  # type: ignore[list-item]
    assert axis.get_ylim()[0] < -3.0


def test_figure_8_shows_each_mean_with_its_threshold_above_its_multiplier(
    trained: tuple[Config, Path], drawn: dict[str, Figure]
) -> None:
    figures.draw(*trained)
    assert [name for name in drawn if name.startswith("figure8")] == ["figure8"]  # grpo-t has no multipliers
    axes = drawn["figure8"].axes
    names = ["consistency", "spatial_grounding", "semantic_grounding", "brevity"]
    assert [axis.get_title(loc="left") for axis in axes[:4]] == [
        "consistency",
        "spatial grounding",
        "semantic grounding",
        "brevity",
    ]
    assert axes[0].get_ylabel() == "batch mean" and axes[4].get_ylabel().startswith("multiplier")
    tau = {"consistency": 0.91, "spatial_grounding": 0.82, "semantic_grounding": 0.73}  # as it was trained
    for name, above, below in zip(names, axes[:4], axes[4:], strict=True):
        (means,) = curves(above).values()
        assert means == pytest.approx([step_line(n, 1)[f"constraint/{name}/mean"] for n in range(1, 5)]), name
        levels = [float(line.get_ydata()[0]) for line in above.lines if len(line.get_xdata()) == 2]
        assert levels == ([tau[name]] if name in tau else [])
        assert [t.get_text() for t in above.texts] == ([f"τ = {tau[name]:g}"] if name in tau else [])
        (multiplier,) = below.lines
        assert list(multiplier.get_xdata()) == [1, 2, 3, 4]
        assert list(multiplier.get_ydata()) == pytest.approx(
            [step_line(n, 1)[f"lambda/{name}"] for n in range(1, 5)]
        ), name
        assert below.get_ylim()[0] == 0 and below.get_ylim()[1] > max(multiplier.get_ydata())
    assert drawn["figure8"].get_suptitle().startswith("FGRPO")


def test_a_run_without_a_configuration_of_its_own_has_the_thresholds_of_today(
    trained: tuple[Config, Path], drawn: dict[str, Figure]
) -> None:
    config, root = trained
    (root / config.preset / "rl-fgrpo" / "config.json").unlink()
    figures.draw(config, root)
    above = drawn["figure8"].axes[:3]
    levels = [float(line.get_ydata()[0]) for axis in above for line in axis.lines if len(line.get_xdata()) == 2]
    assert levels == [0.11, 0.12, 0.13]


def test_figure_4_of_checkpoints_shows_each_metric_at_its_step(
    stored: tuple[Config, Path], tmp_path: Path, drawn: dict[str, Figure]
) -> None:
    """Step 2 is a checkpoint with the figures of GRPO-T; step 4, the end, has those of FGRPO; both greedy."""
    (config, source), root = stored, tmp_path
    shutil.copytree(source / config.preset / "eval" / "fgrpo", root / config.preset / "eval" / "fgrpo")
    shutil.copytree(source / config.preset / "eval" / "grpo-t", root / config.preset / "eval" / "fgrpo@2")
    (root / config.preset / "rl-fgrpo").mkdir()
    write_jsonl(root / config.preset / "rl-fgrpo" / "metrics.jsonl", (step_line(n, 1) for n in range(1, 5)))
    figures.draw(config, root)
    for axis, metric, word in zip(
        drawn["figure4"].axes, ("accuracy", "inconsistency"), ("Accuracy", "Inconsistency"), strict=True
    ):
        assert axis.get_title(loc="left") == f"{word} of checkpoints, %"
        (line,) = axis.lines
        assert (str(line.get_label()), list(line.get_xdata())) == ("FGRPO", [2, 4])
        values = [expected(model, "greedy", metric, "average") for model in ("grpo-t", "fgrpo")]
        assert list(line.get_ydata()) == pytest.approx(values)
        corners = axis.collections[0].get_paths()[0].vertices
        for model, step in (("grpo-t", 2), ("fgrpo", 4)):
            cell = find(*stored)[model].summary["greedy"]["average"][metric]
            band = [y for x, y in corners if x == step]
            assert (min(band), max(band)) == (pytest.approx(100 * cell["low"]), pytest.approx(100 * cell["high"]))


@pytest.fixture(scope="module")
def page(world_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, str]:
    """Two models evaluated in the miniature world, their figures, and the page that shows them."""
    root = tmp_path_factory.mktemp("page")
    world = small_world(world_root)
    for name, stage, shares in (("grpo-t", "rl-grpo-t", (0.6, 0.3)), ("fgrpo", "rl-fgrpo", (0.1, 0.1))):
        evaluate(world, root, name, stage, *shares)
    figures.draw(world, root)
    return world, root, report.write(world, root).read_text(encoding="utf-8")


def text_of(part: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", part))


def test_the_cards_of_the_page_are_the_averages_of_the_two_methods(page: tuple[Config, Path, str]) -> None:
    config, root, text = page
    results = find(config, root)
    cards = re.findall(r'<div class="card"><div class="name">(.*?), %</div>(.*?)</div></div></div>', text, re.DOTALL)
    assert [name for name, _ in cards] == list(map(heading, METRICS[:5]))
    for metric, (_, body) in zip(METRICS, cards, strict=False):
        sides = re.findall(r'<div class="(\w)"><b>(.*?)</b><small>(.*?)<br>(.*?)</small>', body + "</div>", re.DOTALL)
        assert [(key, title) for key, _, title, _ in sides] == [("a", "GRPO-T"), ("b", "FGRPO")]
        for (_, value, _, bounds), model in zip(sides, TITLES, strict=True):
            cell = results[model].summary["sampled"]["average"][metric]
            assert value == f"{100 * cell['value']:.1f}"
            assert bounds == f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
    assert "GRPO-T against FGRPO" in text and "sampled answers, temperature 1; means of the benchmarks" in text


def test_a_card_has_a_dash_for_the_model_without_that_metric(stored: tuple[Config, Path]) -> None:
    results = list(find(*stored).values())
    del results[0].summary["greedy"]["average"]["spatial_grounding"]
    cards = {
        card["name"]: [side["value"] for side in card["sides"]] for card in report.cards(results, "greedy", stored[0])
    }
    assert cards == {
        "accuracy ↑, %": ["30.0", "55.0"], "inconsistency ↓, %": ["60.0", "20.0"], "flip ↓, %": ["25.0", "15.0"],
        "semantic grounding ↑, %": ["35.0", "70.0"], "spatial grounding ↑, %": ["–", "40.0"],
    }  # fmt: skip
    for result in results:
        result.summary["greedy"]["average"].pop("spatial_grounding", None)
    assert "spatial grounding ↑, %" not in {card["name"] for card in report.cards(results, "greedy", stored[0])}


def test_the_commands_of_figures_and_report_read_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn, page = (tmp_path / "smoke" / name for name in ("figures/figure3.png", "report/index.html"))
    folders = [drawn.parent, page.parent]
    seen: list[Any] = []

    def written(file: Path, *others: Path) -> Any:
        def write(config: Config, root: str) -> Path:
            seen.append((config, root))
            for path in (file, *others):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("written")
            return file

        return write

    draw = written(drawn, drawn.with_name("captions.json"))
    monkeypatch.setattr(figures, "draw", lambda config, root: [draw(config, root)])
    monkeypatch.setattr(report, "write", written(page))
    command = ["x", "--preset", "smoke", "--method", "grpo-t", "--runs", str(tmp_path), "--set", "seed=7"]
    monkeypatch.setattr("sys.argv", command)
    figures.main()
    report.main()
    assert [(c.preset, c.method, c.seed, root) for c, root in seen] == [("smoke", "grpo-t", 7, str(tmp_path))] * 2
    assert capsys.readouterr().out == f"figure: {drawn}\nreport: {page}\n"
    stamps = [json.loads((folder / "made_from.json").read_text()) for folder in folders]
    assert [(stamp["method"], stamp["config"]["seed"]) for stamp in stamps] == [("grpo-t", 7)] * 2
    monkeypatch.setattr("sys.argv", [*command, "--if-changed"])
    for lost, calls in (
        (None, 0),
        (page, 1),
        (drawn, 1),
    ):  # a figure drawn again to the same bytes leaves the page current
        seen.clear()
        if lost is not None:
            lost.unlink()
        figures.main()
        report.main()
        assert len(seen) == calls and drawn.is_file() and page.is_file()


def test_the_page_shows_the_tables_of_its_decoding_first_and_each_under_its_title(
    page: tuple[Config, Path, str],
) -> None:
    config, root, text = page
    _, everything, _ = tables.build(config, root)

    def section(begin: str, end: str) -> tuple[list[str], list[str]]:
        """Headings of tables (shown, folded away) between two places of the page."""
        part = text[text.index(begin) : text.index(end)]
        shown, _, folded = part.partition("<details")
        return tuple([html.unescape(t) for t in re.findall("<h3>(.*?)</h3>", p)] for p in (shown, folded))  # type: ignore[return-value]

    title = {t.name: t.title for t in everything}
    results = [[title[f"{name}-{kind}"] for name in ("accuracy", "faithfulness")] for kind in ("sampled", "greedy")]
    assert section('<h2 id="results">', "<h2>On the same questions") == tuple(results)
    shown, folded = section("<h2>On the same questions", '<h2 id="figures">')
    assert shown == [title["grpo-t-vs-fgrpo-sampled"]] and folded == [title["grpo-t-vs-fgrpo-greedy"]]
    assert "The same tables for greedy answers" in text
    paper = text[text.index('<h2 id="paper">') :]
    assert [html.unescape(t) for t in re.findall("<h3>(.*?)</h3>", paper)] == [title[f"table{n}"] for n in (1, 2, 3)]
    for table in everything:
        part = text[text.index(f"<h3>{html.escape(table.title, quote=False)}</h3>") :].partition("</table>")[0]
        body = part.partition("<tbody>")[2]
        cells = [
            re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", body, re.DOTALL)
        ]
        shown_cells = [["".join(text_of(cell).split()) for cell in row] for row in cells]
        assert shown_cells == [["".join(cell.split()) for cell in row] for row in table.rows], table.name


def test_the_page_embeds_each_figure_with_its_own_caption(page: tuple[Config, Path, str]) -> None:
    config, root, text = page
    folder = root / config.preset / "figures"
    found = re.findall(
        r'<figure><img src="data:image/png;base64,(.*?)" alt="(.*?)"><figcaption>(.*?)</figcaption>', text
    )
    captions = json.loads((folder / "captions.json").read_text())
    assert list(captions) == ["figure3"] and captions["figure3"].startswith("Figure 3")
    assert [(base64.b64decode(data), html.unescape(alt), html.unescape(words)) for data, alt, words in found] == [
        ((folder / "figure3.png").read_bytes(), captions["figure3"], captions["figure3"])
    ]


def test_the_page_shows_each_models_own_answers_and_verdicts(page: tuple[Config, Path, str]) -> None:
    config, root, text = page
    results = find(config, root)
    records = {m: {r.id: r for r in results[m].records()} for m in TITLES}
    rollouts = {m: results[m].rollouts() for m in TITLES}
    articles = re.findall(
        r'<article class="example" data-benchmark="(.*?)" data-tags="(.*?)">(.*?)</article>', text, re.DOTALL
    )
    assert len(articles) >= 7
    differing = 0
    for benchmark, tags, body in articles:
        title, _, rollout_id = text_of(re.findall(r'<div class="sub">(.*?)</div>', body)[0]).partition(" · ")
        assert title == html.unescape(benchmark) == base.benchmark(records["fgrpo"][rollout_id].benchmark).title
        columns = re.findall(r'<div class="column (\w)"><h4>(.*?)</h4>(.*?)(?=<div class="column |\Z)', body, re.DOTALL)
        assert [(key, name) for key, name, _ in columns] == [("a", "GRPO-T"), ("b", "FGRPO")]
        for (key, _, column), model in zip(columns, TITLES, strict=True):
            found, response = records[model][rollout_id], parse(rollouts[model][rollout_id].text)
            assert f"Answer: <b>{response.answer}</b>" in column
            for n, box in enumerate(response.boxes, start=1):
                assert f"{n} [{', '.join(f'{value:g}' for value in box)}]" in column
            assert response.think.splitlines()[-1] in text_of(column)
            correct, consistent = (found.scores[name].value == 1.0 for name in ("accuracy", "consistency"))
            assert ("✓ correct" in column) == correct and ("✗ not correct" in column) == (not correct)
            assert f'class="line {"consistent" if consistent else "inconsistent"}"' in column
            assert f"spatial grounding {100 * (found.scores['spatial_grounding'].value or 0):.0f}%" in column
            own = {t.removeprefix(f"{key}-") for t in tags.split() if t.startswith(f"{key}-")}
            assert ("right" in own, "no-consistency" in own) == (correct, not consistent)
        verdicts = [records[m][rollout_id].scores["consistency"].value for m in TITLES]
        differing += verdicts[0] != verdicts[1]
    assert differing >= 2
