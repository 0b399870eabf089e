"""The command that runs all measurements: each name is a module that exists, and sections replace those of their heading."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from perf import run
from perf.run import commands, sections


def test_every_measurement_is_a_module() -> None:
    found = commands(argparse.Namespace(preset="mini", method="fgrpo", runs="runs", set=["rl.max_steps=2"]))
    assert {"peers_search", "peers_harness", "judging_ordinary", "constraints_cost"} <= set(found)
    assert [name for name, (module, *_) in found.items() if find_spec(module) is None] == []
    assert found["peers_harness"][-2:] == found["constraints_cost"][-2:] == ["--set", "rl.max_steps=2"]


def test_a_section_ends_with_its_table() -> None:
    page = "noise\n## One\n\nWords.\n\n| a |\n|---|\n| 1 |\nmore noise\n## Two\n\nWords.\n"
    assert sections(page) == {"## One": "## One\n\nWords.\n\n| a |\n|---|\n| 1 |\n", "## Two": "## Two\n\nWords.\n"}


def test_a_measurement_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Performance\n\n## One\n\n| old |\n\n## Two\n\n| kept |\n")

    def text_of(name: str, command: list[str]) -> str:
        if name == "broken":
            raise run.UserError("the measurement broken failed")
        return f"noise\n## {name}\n\n| new |\nnoise\n"

    monkeypatch.setattr(run, "PAGE", page)
    monkeypatch.setattr(run, "section", text_of)
    monkeypatch.setattr(run, "commands", lambda args: {"broken": [], "One": [], "Three": []})
    monkeypatch.setattr(sys, "argv", ["perf.run", "--only", "One,broken,Three"])
    with pytest.raises(SystemExit):
        run.main()
    assert "1 measurements failed (see above): broken" in capsys.readouterr().err
    found = sections(page.read_text())
    assert found == {
        f"## {name}": f"## {name}\n\n| {text} |\n" for name, text in (("One", "new"), ("Two", "kept"), ("Three", "new"))
    }
