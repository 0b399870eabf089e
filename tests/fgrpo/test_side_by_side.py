"""Commands side by side: so many at a time, each with its line of the terminal and its share of the cores; failures by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from fgrpo import side_by_side

NOTES = """
import json, os, sys
from pathlib import Path
name, out = sys.argv[1:]
here = {key: os.environ.get(key) for key in ("TQDM_POSITION", "OMP_NUM_THREADS", "FGRPO_SIDE_BY_SIDE")}
(Path(out) / name).write_text(json.dumps(here))
sys.exit(name in ("b", "d"))
"""


def test_all_run_and_those_that_fail_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    commands = {name: [sys.executable, "-c", NOTES, name, str(tmp_path)] for name in "abcde"}
    assert sorted(side_by_side.run(commands, 2)) == ["b", "d"]
    told = {name: json.loads((tmp_path / name).read_text()) for name in commands}
    assert {here["TQDM_POSITION"] for here in told.values()} == {"0", "1"}
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert all(here["OMP_NUM_THREADS"] == threads and here["FGRPO_SIDE_BY_SIDE"] == "1" for here in told.values())
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert side_by_side.run({"a": commands["a"]}, 2) == []
    assert json.loads((tmp_path / "a").read_text())["OMP_NUM_THREADS"] == "3"
