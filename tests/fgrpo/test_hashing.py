"""Hashes by content: the cache never hides a change, and every kind of damage to a finished file is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fgrpo import hashing
from fgrpo.hashing import CACHE, Hashes, damage, describe, describe_all


def test_a_folder_counts_by_names_and_contents_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a.txt").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "one")
    hashes = Hashes()
    assert len({hashes.of(tmp_path / name) for name in ("one", "two", "link")}) == 1
    before = hashes.of(tmp_path / "two")
    (tmp_path / "two" / "sub" / "a.txt").rename(tmp_path / "two" / "sub" / "b.txt")
    assert hashes.of(tmp_path / "two") != before


def test_training_state_is_no_part_of_a_model(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    hashes = Hashes()
    before = hashes.of_model(tmp_path)
    (tmp_path / "global_step4").mkdir()
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "duals.json", "global_step4/zero.pt"):
        (tmp_path / name).write_text("x")
    assert hashes.of_model(tmp_path) == before == hashes.of_input(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert hashes.of_model(tmp_path) != before


def test_the_cache_is_used_and_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = tmp_path / "weights.bin"
    big.write_bytes(bytes(hashing.CACHED_BYTES))
    monkeypatch.setattr(hashing, "_SETTLED_NS", -1)  # as if the file were old
    first = Hashes(tmp_path)
    digest = first.of_file(big)
    first.save()
    assert list(json.loads((tmp_path / CACHE).read_text())["hashes"].values()) == [digest]
    reads: list[Path] = []
    read = hashing._read
    monkeypatch.setattr(hashing, "_read", lambda path: (reads.append(path), read(path))[1])
    second = Hashes(tmp_path)
    assert second.of_file(big) == digest and not reads
    times = big.stat()
    with big.open("r+b") as file:
        file.write(b"\1")
    os.utime(big, ns=(times.st_atime_ns, times.st_mtime_ns))  # the change time still tells
    assert second.of_file(big) != digest and reads == [big]


def test_a_file_that_was_just_written_is_not_cached(tmp_path: Path) -> None:
    big = tmp_path / "weights.bin"
    big.write_bytes(bytes(hashing.CACHED_BYTES))
    os.utime(big)
    hashes = Hashes(tmp_path)
    hashes._known.clear()
    hashes.of_file(big)
    assert not hashes._known


def test_a_damaged_cache_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / CACHE).write_text("[")
    file = tmp_path / "a"
    file.write_text("a")
    assert Hashes(tmp_path).of_file(file) == Hashes().of_file(file)


def test_damage_is_described(tmp_path: Path) -> None:
    rows, blob, hashes = tmp_path / "rows.jsonl", tmp_path / "blob.bin", Hashes()
    rows.write_text('{"id": 1}\n{"id": 2}\n')
    blob.write_bytes(b"abc")
    recorded = describe_all(tmp_path, ["rows.jsonl", "blob.bin"], hashes)
    assert recorded["rows.jsonl"] == describe(rows, hashes) and recorded["rows.jsonl"]["lines"] == 2
    assert damage(rows, recorded["rows.jsonl"], hashes) is None
    rows.write_bytes(rows.read_bytes()[:-3])
    assert damage(rows, recorded["rows.jsonl"], hashes) == "has 1 complete lines instead of 2"
    rows.write_text('{"id": 1}\n{"id": 3}\n')
    assert "another content" in str(damage(rows, recorded["rows.jsonl"], hashes))
    blob.write_bytes(b"ab")
    assert damage(blob, recorded["blob.bin"], hashes) == "has 2 bytes instead of 3"
    blob.unlink()
    assert damage(blob, recorded["blob.bin"], hashes) == "is missing"
