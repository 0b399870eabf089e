"""`make lab-report`: the seal that it checks, what it publishes and when, the repeated cell, and the figures."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fgrpo.errors import UserError
from fgrpo.runs import write_json
from ops.lab import __main__ as main
from ops.lab import archive, arithmetic, cells, declaration, figures, results, runner, stored
from ops.lab.analysis import Results
from ops.lab.cells import Cell
from tests.ops.test_lab import DECLARED, lab, laboratory


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the declaration x.yaml, sealed, and the first block of cells finished."""
    file = tmp_path / "x.yaml"
    file.write_text("direction: below\n")
    monkeypatch.setattr(main, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(archive, "FOLDER", tmp_path / "docs" / "laboratory")
    monkeypatch.setattr(declaration, "file_of", lambda name: file)
    declaration.seal(tmp_path / "lab", file)
    return tmp_path


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "draw", lambda *given: {})


def write(checkout: Path, publish: bool = True, amend: str | None = None) -> Path:
    declared = lab()
    return main.report("x", declared, cells.plan(declared, checkout / "lab"), checkout / "lab", publish, amend)


@pytest.mark.parametrize("publish", [True, False])
def test_a_changed_declaration_gives_no_page_unless_the_change_is_recorded(
    checkout: Path, publish: bool, no_figures: None
) -> None:
    laboratory(checkout / "lab")
    page = write(checkout, publish)
    before = page.read_text()
    assert "Deviation" not in before and "Code that wrote this page: " in before
    (checkout / "x.yaml").write_text("direction: above\n")
    with pytest.raises(UserError, match=r'record the change as a deviation.*AMEND="the reason"'):
        write(checkout, publish)
    assert page.read_text() == before
    assert "**Deviation**" in write(checkout, publish, "the sign was wrong").read_text()
    assert write(checkout, publish).is_file()  # the deviation is in force now
    (checkout / "x.yaml").write_text("direction: below\n")
    with pytest.raises(UserError, match="was changed"):
        write(checkout, publish)


def test_another_checkout_checks_the_published_seal(checkout: Path, no_figures: None) -> None:
    declared, plan = laboratory(checkout / "lab")
    write(checkout)
    (checkout / "lab").rename(checkout / "gone")
    (checkout / "x.yaml").write_text("alpha: 0.3\n")
    with pytest.raises(UserError, match="was changed"):
        main.report("x", declared, plan, checkout / "lab", True)


def test_nothing_is_published_if_the_page_cannot_be_built(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory(checkout / "lab")

    def fails(*given: object) -> dict[str, Path]:
        raise RuntimeError("no figure")

    monkeypatch.setattr(figures, "draw", fails)
    with pytest.raises(RuntimeError):
        write(checkout)
    assert not list((checkout / "docs").rglob("*"))


def test_the_published_page_has_its_figures_alone(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laboratory(checkout / "lab")
    docs = checkout / "docs"
    docs.mkdir()
    for name in ("laboratory-x-figure9.png", "laboratory-y-figure4.png"):
        (docs / name).touch()

    def draw(found: Results, out: Path, prefix: str) -> dict[str, Path]:
        (out / f"{prefix}figure4.png").write_bytes(b"png")
        return {"figure4": out / f"{prefix}figure4.png"}

    monkeypatch.setattr(figures, "draw", draw)
    text = write(checkout).read_text()
    assert {path.name for path in docs.glob("*.png")} == {"laboratory-x-figure4.png", "laboratory-y-figure4.png"}
    assert "![figure4](laboratory-x-figure4.png)" in text and "[laboratory/x/](laboratory/x/)" in text
    assert not list(docs.glob(".*")) and not list((docs / "laboratory").glob(".*"))


def test_a_damaged_cell_leaves_page_and_archive_whole(checkout: Path, no_figures: None) -> None:
    """The published results take the place of the damaged ones; a cell that was never published is "damaged"."""
    _, plan = laboratory(checkout / "lab")
    write(checkout)
    folder = archive.FOLDER / "x"
    before = archive.entries(folder)
    (plan.of_cell[Cell("base", "fgrpo", 1)].folder / stored.ROW).unlink()
    assert "9 done" in write(checkout).read_text() and archive.entries(folder) == before
    lines = (folder / archive.ENTRIES).read_text().splitlines(keepends=True)
    (folder / archive.ENTRIES).write_text("".join(line for line in lines if "base/fgrpo/seed-1" not in line))
    (plan.of_cell[Cell("base", "fgrpo", 1)].folder / stored.QUESTIONS).unlink()
    text = write(checkout).read_text()
    assert (
        "8 done, 8 not started, 1 damaged" in text
        and "- base/fgrpo/seed-1: damaged: questions.parquet is missing" in text
    )
    assert archive.entries(folder)["base/fgrpo/seed-1"].row == {}


def test_a_repeated_cell_names_both_versions(checkout: Path) -> None:
    declared, plan = laboratory(checkout / "lab")
    archive.publish(plan, checkout / "lab", archive.FOLDER / "x")
    job = plan.of_cell[Cell("base", "fgrpo", 1)]
    row = next(r for r in results.collect(declared, plan, checkout / "lab") if r["cell"] == "base/fgrpo/seed-1")
    assert "these are the published figures" in main._against_published("x", row)
    again = {**row, "started": "later", "commit": "beef", "package/torch": "3.0", "cpu": "another"}
    text = main._against_published("x", again)
    assert "all figures are the published ones" in text
    assert "published at commit c0ffee with packages that were not recorded" in text
    assert "you are at commit beef with torch 3.0, on another" in text
    assert "1 figures differ" in main._against_published("x", {**again, "sampled/accuracy": 0.5})
    write_json(job.folder / runner.STATUS, vars(runner.Status("stopped", job.key, "x", started="t")))
    (archive.FOLDER / "x" / archive.ENTRIES).write_text(
        json.dumps({"cell": "base/fgrpo/seed-1", "status": vars(runner.read(job.folder)), "row": {}}) + "\n"
    )
    assert "has no figures of this cell" in main._against_published("x", row)


def test_other_arithmetic_is_said_before_a_published_cell_runs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = laboratory(checkout / "lab")
    job = plan.of_cell[Cell("base", "fgrpo", 1)]
    monkeypatch.setattr(arithmetic, "fingerprint", lambda: "f00d")
    said = []
    for made_by in (None, "f00d", "beef"):
        write_json(job.folder / stored.ROW, {**stored.row(job), arithmetic.COLUMN: made_by})
        archive.publish(plan, checkout / "lab", archive.FOLDER / "x")
        said.append(main._other_arithmetic("x", "base/fgrpo/seed-1"))
    assert said[:2] == ["", ""] and "come from arithmetic beef, and this machine has f00d" in said[2]
    assert main._other_arithmetic("x", "base/unknown/seed-1") == ""


def test_a_multiplier_is_named_as_what_weighed_the_last_step() -> None:
    assert main._label("lambda/consistency") == "lambda/consistency (as it weighed the last step, before its update)"
    assert main._label("saturated/consistency") == "saturated/consistency"


# --- figures -----------------------------------------------------------------------------------------------------------


def drawn(tmp_path: Path) -> Results:
    """Results of a lab with two more arms and two conditions; every value is the step, as a share."""
    methods = {**DECLARED["methods"], "other": {"of": "fgrpo", "title": "Another arm", "set": ["rl.masked=zero"]}}
    grid = [
        {"conditions": ["base", "long"], "methods": ["sft", "grpo-t", "fgrpo", "zero", "other"], "seeds": [0, 1, 2]}
    ]
    declared = lab(methods=methods, grid=grid)
    rows, curves = [], {}
    for cell in cells.cells(declared):
        rows.append({"cell": cell.name, **vars(cell), "state": "done"})
        if cell.method != "sft":
            keys = ["accuracy", "inconsistency"]
            keys += [] if cell.method == "grpo-t" else ["lambda/consistency", "constraint/consistency/mean"]
            for key in keys:
                curves[cell.name, key] = [(step, step / 100) for step in range(1, 21)]
    return Results(declared, rows, {}, curves)


def texts(figure: plt.Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(plt.Text) if text.get_text())


def test_figure_4_has_the_main_arms_and_the_others_have_panels_of_their_own(tmp_path: Path) -> None:
    found = drawn(tmp_path)
    main_figure = figures.figure4(found)
    assert main_figure is not None and len(main_figure.axes) == 4
    labels = main_figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["SFT start (steps 1 to 10)", "GRPO-T (3 seeds)", "FGRPO (3 seeds)"]
    assert np.asarray(main_figure.axes[0].lines[0].get_ydata()) == pytest.approx([5.5, 5.5])
    panels = figures.others(found, "long", "inconsistency")
    assert panels is not None
    assert [axis.get_title() for axis in panels.axes] == ["zero (3 seeds)", "Another arm (3 seeds)"]
    assert all(len(axis.lines) == 3 for axis in panels.axes)  # beside GRPO-T and FGRPO
    assert panels.axes[0].get_ylim() == panels.axes[1].get_ylim()
    assert figures.others(found, "weak", "inconsistency") is None
    plt.close("all")


def test_figure_8_has_a_row_per_condition_with_thresholds_and_one_scale_of_multipliers(tmp_path: Path) -> None:
    found = drawn(tmp_path)
    for key in [key for key in found.curves if key[0].startswith("long/fgrpo/seed-2")]:
        del found.curves[key]
    found.cells = [c for c in found.cells if c["cell"] != "long/fgrpo/seed-2"]
    found.curves["long/fgrpo/seed-0", "lambda/consistency"] = [(step, 3.0) for step in range(1, 21)]
    figure = figures.figure8(found, "fgrpo")
    assert figure is not None and len(figure.axes) == 4
    tau = cells.thresholds(found.lab, "base", "fgrpo")["consistency"]
    for axis in figure.axes[::2]:
        assert any(np.array_equal(line.get_ydata(), [tau, tau]) for line in axis.lines), "no line at τ"
    assert f"τ = {tau:g}" in texts(figure)
    assert figure.axes[1].get_ylim() == figure.axes[3].get_ylim()
    assert figure.axes[1].get_ylim()[0] == 0.0 and figure.axes[1].get_ylim()[1] >= 3.0
    assert figure.get_suptitle().startswith("FGRPO, base: 3 seeds, long: 2 seeds")
    assert figures.figure8(found, "grpo-t") is None
    plt.close("all")


def test_thresholds_are_those_of_the_arm(tmp_path: Path) -> None:
    words = ["rl.constraints.consistency.tau=0.5"]
    declared = lab(methods={**DECLARED["methods"], "zero": {"of": "fgrpo", "set": words}})
    assert cells.thresholds(declared, "base", "zero")["consistency"] == 0.5
    assert cells.thresholds(declared, "base", "fgrpo")["consistency"] != 0.5
    assert cells.thresholds(declared, "base", "sft") == {}
