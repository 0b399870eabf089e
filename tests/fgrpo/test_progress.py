"""Bars of parallel processes stay readable in a log file."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fgrpo import progress


def test_a_log_file_gets_complete_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    monkeypatch.setenv("TQDM_POSITION", "1")  # the second of two bars: no cursor movements in a file
    out = io.StringIO()
    with progress.bar("rl-fgrpo", 4, "step", initial=1, out=out) as bar:
        for _ in range(3):
            bar.update()
    lines = out.getvalue().split("\n")
    assert lines[-1] == ""
    assert all(line.startswith("rl-fgrpo: ") for line in lines[:-1])
    assert "1/4" in lines[0] and "4/4" in lines[-2]
    assert not set("\r\x1b") & set(out.getvalue())


def test_reports_are_rare_in_a_log_file() -> None:
    out = io.StringIO()
    with progress.bar("rl", 1000, "step", out=out) as bar:
        for _ in range(1000):
            bar.update()
    assert len(out.getvalue().splitlines()) <= 3


@pytest.mark.parametrize("columns", [80, 0])
def test_a_terminal_gets_a_bar_on_the_line_it_was_given(columns: int) -> None:
    """On a terminal of its own, since tqdm reads TQDM_POSITION when it is imported. One without a size gets lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    code = "from fgrpo import progress; progress.bar('b', 2, 'step').close()"
    environment = {**os.environ, "TQDM_POSITION": "1"}
    subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "b:   0%" in shown
    assert ("\x1b[A" in shown) == (columns > 0)


def test_the_bar_shows_the_status() -> None:
    out = io.StringIO()
    with progress.bar("score", 4, "answer", out=out) as shown:
        shown.mininterval = 0.0
        move = progress.moving(shown, lambda: "gpt: 1.2M tokens, 3.40 of 50.00")
        move(2)
        move(2)
        assert shown.n == 4
    assert "3.40 of 50.00" in out.getvalue()


def test_a_killed_child_that_was_drawing_blocks_nobody() -> None:
    """A forked process that holds tqdm's lock is killed; the parent draws on. In a process of its own, since a failure hangs."""
    code = """
import io, os, signal, time
from fgrpo import progress
from tqdm import tqdm
tqdm.get_lock()
child = os.fork()
if child == 0:
    tqdm.get_lock().acquire()
    os.write(1, b"held\\n")
    time.sleep(60)
os.read(0, 1)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
with progress.bar("drawn", total=1, unit="item", out=io.StringIO()) as bar:
    bar.update()
print("drawn")
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        out, _ = process.communicate("x", timeout=60)
    finally:
        process.kill()
    assert out == "drawn\n"
