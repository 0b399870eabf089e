"""Plugins are found by file: a module counts if it defines the constant, listing imports nothing, errors name the way out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin, plugin_names

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = [
    ("rewards", "REWARD", "task"),
    ("judges.backends", "BACKEND", "oracle"),
    ("data_curation.sources", "SOURCE", "sat"),
    ("eval.benchmarks", "BENCHMARK", "mmvp"),
    ("eval.judge_validation.labelled", "LABELLED", "vsr"),
    ("miniworld.write", "WRITER", "sat"),
]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "own_plugins"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "annotated.py").write_text("THING: int = 1\n")
    (folder / "plain.py").write_text("THING = 2\n")
    (folder / "helper.py").write_text("OTHER = 3\n\n\ndef f() -> int:\n    THING = 4\n    return THING\n")
    (folder / "compares.py").write_text("THING == 5\n")
    (folder / "broken.py").write_text("THING = 6\nraise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_plugins"


def test_modules_with_the_constant_are_listed_and_none_is_imported(package: str) -> None:
    assert plugin_names(package, "THING") == ["annotated", "broken", "plain"]
    assert not [name for name in sys.modules if name.startswith(f"{package}.")]
    assert load_plugin(package, "annotated", "THING", "thing") == 1


def test_errors(package: str) -> None:
    with pytest.raises(UserError, match="unknown thing 'plane'; did you mean 'plain'"):
        load_plugin(package, "plane", "THING", "thing")
    with pytest.raises(UserError, match=r"unknown thing '\.\./own_plugins/plain'"):
        load_plugin(package, "../own_plugins/plain", "THING", "thing")
    with pytest.raises(UserError, match=r"own_plugins/helper\.py defines no THING, so it is no thing.*annotated"):
        load_plugin(package, "helper", "THING", "thing")
    with pytest.raises(RuntimeError, match="imported"):  # its own error, not one of ours
        load_plugin(package, "broken", "THING", "thing")


@pytest.mark.parametrize(("package_name", "constant", "example"), PACKAGES)
def test_every_kind_of_plugin_is_listed_without_imports(package_name: str, constant: str, example: str) -> None:
    names = plugin_names(package_name, constant)
    assert example in names and not {"__init__", "base"} & set(names)
    code = (
        f"import sys; from fgrpo.plugins import plugin_names; plugin_names({package_name!r}, {constant!r}); "
        f"heavy = [m for m in sys.modules if m in ('torch', 'transformers') or m.startswith({package_name + '.'!r})]; "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
