"""Which interpreter `make` and the Slurm scripts use: the one that was named or activated, never .venv over it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPLETE = '#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "$0"\n'
EMPTY = COMPLETE.replace("exit 0", "exit 1")
ACTIVATED = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "VENV", "PYTHON", "QUIET")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    return tmp_path


def environment(folder: Path, name: str, text: str = COMPLETE, *, stamp: str | None = None) -> Path:
    """An environment whose interpreter is a stand-in."""
    python = folder / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(text)
    python.chmod(0o755)
    if stamp is not None:
        (folder / name / stamp).touch()
    return folder / name


def chosen(folder: Path, **settings: str) -> tuple[str, str]:
    """(what scripts/python.sh prints, its notes)."""
    inherited = {k: v for k, v in os.environ.items() if k not in ACTIVATED}
    words = ["bash", "scripts/python.sh"]
    done = subprocess.run(words, cwd=folder, env=inherited | settings, capture_output=True, text=True, check=False)
    return done.stdout.strip(), done.stderr


def test_without_a_choice_it_is_the_one_that_make_setup_creates(folder: Path) -> None:
    assert chosen(folder) == (".venv/bin/python .venv/.stamp", "")
    assert chosen(folder, VENV="mine", QUIET="setup") == ("mine/bin/python mine/.stamp", "")


def test_an_environment_that_is_named_and_missing_is_an_error(folder: Path) -> None:
    printed, notes = chosen(folder, VENV=".venv-gpv")
    assert printed == "" and "VENV=.venv-gpv has no interpreter" in notes and "make setup VENV=.venv-gpv" in notes
    environment(folder, ".venv-gpv", stamp=".unfinished")
    (folder / ".venv-gpv/bin/python").unlink()  # `make setup` was killed
    assert chosen(folder, VENV=".venv-gpv") == (".venv-gpv/bin/python .venv-gpv/.stamp", "")


def test_one_setup_at_a_time(folder: Path) -> None:
    """A second `make setup` waits for the first, and ends when that one has completed the environment."""
    script = """
    VENV=.venv BODY=$(mktemp); . scripts/install.sh
    ( exec 9<requirements; flock 9; touch held; until [ -e waits ]; do sleep 0.05; done; mkdir .venv; touch .venv/.stamp ) &
    until [ -e held ]; do sleep 0.05; done
    touch -d "1 minute ago" "$BODY"
    echo() { touch waits; command echo "$@"; }
    alone
    command echo "not reached"
    """
    (folder / "requirements").mkdir(exist_ok=True)
    words = ["bash", "-euc", script]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "" and "waiting: another make sets up" in done.stderr
    free = 'VENV=.venv BODY=x; . scripts/install.sh; alone; echo "went on"'
    assert subprocess.run(["bash", "-euc", free], cwd=folder, capture_output=True, text=True).stdout == "went on\n"


def test_an_activated_environment_comes_before_dot_venv(folder: Path) -> None:
    environment(folder, ".venv", stamp=".stamp")
    active = environment(folder, "active")
    assert chosen(folder, VIRTUAL_ENV=str(active))[0] == f"{active}/bin/python"
    assert chosen(folder, CONDA_PREFIX=str(active), CONDA_DEFAULT_ENV="lab")[0] == f"{active}/bin/python"
    assert chosen(folder, CONDA_PREFIX=str(active), CONDA_DEFAULT_ENV="base")[0].startswith(".venv/")


def test_an_activated_environment_without_the_libraries_is_said(folder: Path) -> None:
    active = environment(folder, "active", EMPTY)
    printed, notes = chosen(folder, VIRTUAL_ENV=str(active))
    assert printed == ".venv/bin/python .venv/.stamp" and f"{active} has no torch or no TRL" in notes
    assert chosen(folder, VIRTUAL_ENV=str(active), QUIET="setup")[1] == ""


def test_what_is_named_comes_first_and_is_left_as_it_is(folder: Path) -> None:
    active, named = environment(folder, "active"), environment(folder, "named")
    assert chosen(folder, VIRTUAL_ENV=str(active), VENV="named")[0] == "named/bin/python"
    python = str(named / "bin" / "python")
    assert chosen(folder, VIRTUAL_ENV=str(active), VENV="x", PYTHON=python)[0] == python
    assert "no interpreter" in chosen(folder, PYTHON="no-such-python")[1]


@pytest.mark.parametrize(("stamp", "is_ours"), [(None, False), (".stamp", True), (".unfinished", True)])
def test_make_setup_looks_after_its_own_environments_only(folder: Path, stamp: str | None, is_ours: bool) -> None:
    environment(folder, ".venv", stamp=stamp)
    assert chosen(folder)[0].endswith("/.stamp") == is_ours


def test_no_cpu_environment_on_a_gpu_machine(folder: Path) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H100"\n')
    tool.chmod(0o755)
    words = ["bash", "scripts/setup.sh"]
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (folder / ".venv").exists()
    for words in ("pip install -r requirements/gpu.txt", "conda env create -f environment.yml", "make setup CPU=1"):
        assert words in done.stderr


def test_a_slurm_script_uses_what_its_set_up_activated(tmp_path: Path) -> None:
    template = (ROOT / "ops/slurm_templates/head.j2").read_text()
    (lines,) = re.findall(r"^(# the interpreter.*?)^CONFIG=", template, re.M | re.S)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for place in (tmp_path / ".venv/bin", tmp_path / "active"):
        place.mkdir(exist_ok=True)
        (place / "python").write_text(f"#!/bin/sh\necho {place}\n")
        (place / "python").chmod(0o755)
    script = f'set -euo pipefail\n{lines}\n"$PY"\n'

    def ran(**settings: str) -> str:
        path = f"{tmp_path / 'active'}:/usr/bin:/bin"
        env = {"PATH": path, **settings}
        return subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
        ).stdout.strip()

    assert ran(CONDA_PREFIX="/x") == ran(VIRTUAL_ENV="/x") == str(tmp_path / "active")
    assert ran() == str(tmp_path / ".venv/bin")
    assert (
        ran(PYTHON=str(tmp_path / "active/python"))
        == ran(PY=str(tmp_path / "active/python"))
        == str(tmp_path / "active")
    )


def test_make_hands_the_choice_on() -> None:
    words = ["make", "-n", "tables", f"PYTHON={sys.executable}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{sys.executable} -m eval.tables" in done.stdout and "setup.sh" not in done.stdout
    words = ["make", "-n", "tables", "VENV=no-such-folder"]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "VENV=no-such-folder has no interpreter" in done.stderr and done.stdout == ""
