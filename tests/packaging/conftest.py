"""The tree of the wheel on a path of its own, beside packages that have the names of our folders."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def wheel_tree() -> ModuleType:
    """The module scripts/wheel_tree.py."""
    spec = importlib.util.spec_from_file_location("wheel_tree", ROOT / "scripts" / "wheel_tree.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, wheel_tree: ModuleType) -> Path:
    """A folder with what the wheel installs, and a stranger's package for each of our folders' names."""
    folder = tmp_path_factory.mktemp("site")
    wheel_tree.write(folder)
    for name in wheel_tree.PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("STRANGER = True\n")
    return folder


@pytest.fixture
def python(site: Path, tmp_path: Path) -> Python:
    """Runs Python in an empty folder outside the repository, where `fgrpo` is the wheel's."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run
