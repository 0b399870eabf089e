"""How a command ends: one line and an exit code for errors the user can fix, 130 for ctrl-C, a traceback for our bugs."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fgrpo
from fgrpo import cli
from fgrpo.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FULL = OSError(errno.ENOSPC, "No space left on device", "runs/x.jsonl")


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    def body(_: object) -> None:
        raise error

    with pytest.raises(SystemExit) as info:
        cli.run(body, cli.parser("x"), [])
    return info.value.code, capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("no such thing; make it"), 2, "error: no such thing; make it"),
        (FULL, 2, "no space left on the disk (runs/x.jsonl)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "no space left on the disk"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), 2, "no space left"),
        (ExceptionGroup("tasks", [ValueError("x"), FULL]), 2, "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs"), 2, "/runs: permission denied"),
        (KeyboardInterrupt(), 130, "rerun to resume"),
    ],
)
def test_one_line_and_a_code(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code, line = ended(error, capsys)
    assert exit_code == code and words in line and len(line.splitlines()) == 1


def test_our_own_bugs_keep_their_traceback() -> None:
    def body(_: object) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        cli.run(body, cli.parser("x"), [])


def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """A stage's package comes first; what it imports then (here: something that takes its time) may be interrupted."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").write_text("import fgrpo\n")
    (tmp_path / "slow" / "train.py").write_text("import time\nprint('in', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "slow.train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout is not None and process.stdout.readline() == "in\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and err.strip() == fgrpo.INTERRUPTED.strip()


@pytest.mark.parametrize("stage", ["data_curation", "mcts", "sft", "rl", "eval", "miniworld"])
def test_every_stage_imports_fgrpo_first(stage: str) -> None:
    tree = ast.parse((ROOT / stage / "__init__.py").read_text(encoding="utf-8"))
    first = next(node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert isinstance(first, ast.Import) and first.names[0].name == "fgrpo"


def test_an_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old Python must be able to parse the file that refuses it."""
    source = (ROOT / "fgrpo" / "__init__.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer is needed"):
        exec(compile(source, "fgrpo/__init__.py", "exec"), {"__name__": "fgrpo"})
