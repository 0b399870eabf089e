"""Files after a kill: atomic writes, and append-only files without lost or repeated items."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from fgrpo.files import Appender, part_of_process, read_jsonl, remove_dead_parts, write_atomic


def test_a_torn_last_line_is_truncated_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Appender(path) as out:
        out.add({"id": "a"})
        out.add({"id": "b"})
    complete = path.read_bytes()
    path.write_bytes(complete + b'{"id": "c", "te')
    assert [item["id"] for item in read_jsonl(path)] == ["a", "b"]
    with Appender(path) as out:
        assert "a" in out and "c" not in out and len(out) == 2
        out.add({"id": "c"})
    assert path.read_bytes() == complete + b'{"id": "c"}\n'


def test_nothing_twice(tmp_path: Path) -> None:
    with Appender(tmp_path / "x.jsonl") as out:
        out.add({"id": "a"})
        with pytest.raises(ValueError, match="already holds"):
            out.add({"id": "a"})


def test_a_broken_line_inside_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n{oops\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 2"):
        list(read_jsonl(path))


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        list(read_jsonl(tmp_path / "no.jsonl"))


def test_nan_is_refused(tmp_path: Path) -> None:
    with Appender(tmp_path / "x.jsonl") as out, pytest.raises(ValueError, match="JSON compliant"):
        out.add({"id": "a", "value": float("nan")})


def test_a_file_with_only_a_torn_line_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"')
    with Appender(path) as out:
        assert len(out) == 0
    assert path.read_text() == ""


def test_an_atomic_write_replaces_the_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, "old\n")
    monkeypatch.setattr("fgrpo.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new\n")
    assert path.read_text() == "old\n"
    monkeypatch.undo()
    write_atomic(str(path), "né\n")
    assert path.read_bytes() == "né\n".encode() and [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_unfinished_files_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    mine = part_of_process(tmp_path / "a.png")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}.", f"-{ended.pid}."))
    other_host = tmp_path / f"b.png.elsewhere-{ended.pid}.part"
    for path in (mine, dead, other_host):
        path.write_text("half")
    assert remove_dead_parts(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([mine, other_host])
