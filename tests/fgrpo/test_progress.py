"""Bars of processes side by side stay readable in a log file."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from fgrpo import progress


def test_a_log_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_on_the_line_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position is read by tqdm when it is imported, so it is asked of a new interpreter."""
    code = (
        "from tests.fgrpo.test_progress import Terminal; from fgrpo import progress; out = Terminal();"
        "progress.bar('b', 2, 'step', out=out); print(ascii(out.getvalue()))"
    )
    monkeypatch.setenv("TQDM_POSITION", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("'\\n") and "\\x1b[A" in done.stdout
