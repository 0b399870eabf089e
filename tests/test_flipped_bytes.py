"""One flipped bit in files that no manifest records: named, or read as what it was. `scripts/flip_bytes.py` walks whole runs."""

from __future__ import annotations

import json
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval import freshness, kept_scores
from eval.curves import thresholds
from eval.judge_validation import stored as judged
from fgrpo import recorded, runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.hashing import CACHE, Hashes
from fgrpo.identity import Identity
from fgrpo.sealed import CHECKSUM, read_sealed, write_sealed
from fgrpo.training.stored import REPLACED, put_in_place, settle_replaced
from judges.cache import Cache


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


DATA = {"tau": 0.6, "names": ["a", "ü"], "deep": {"2": None, "x": True}, "text": 'a "quoted" line'}


def test_no_flipped_bit_of_a_sealed_file_is_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    write_sealed(path, DATA)
    whole, named = path.read_bytes(), 0
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole)
            flip(path, place, bit)
            try:
                assert read_sealed(path) == DATA, (place, bit)
            except ValueError:
                named += 1
    assert named > 0.8 * 8 * len(whole)  # the others are blanks, which do not count


def test_a_sealed_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sealed.json"
    write_sealed(path, {1: (1, 2), 10: "b", 9: float(2**70)})
    assert read_sealed(path) == {"1": [1, 2], "10": "b", "9": float(2**70)}
    path.write_text('{"a": 1}')  # an older version's, or an edited one without the key
    assert read_sealed(path) == {"a": 1}
    path.write_text(json.dumps({**DATA, "tau": 0.7, CHECKSUM: json.loads(path.read_text()).get(CHECKSUM, "x")}))
    with pytest.raises(ValueError, match="if it was edited on purpose, remove that key"):
        read_sealed(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="list"):
        read_sealed(path)


def finished(root: Path, stage: str = "rl-fgrpo") -> Path:
    with runs.Run.open(load("mini", "fgrpo"), stage, root=root) as run:
        (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
        run.finish(["metrics.jsonl"])
        return run.path


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_configuration_file_of_a_finished_run_moves_nothing(tmp_path: Path, seed: int) -> None:
    """Its manifest holds the same identity; a changed digit is no other experiment."""
    path, rng = finished(tmp_path), random.Random(seed)
    before = Identity.read(path)
    flip(path / "config.json", rng.randrange((path / "config.json").stat().st_size), rng.randrange(7))
    assert Identity.read(path) == before
    assert runs.is_done(load("mini", "fgrpo"), "rl-fgrpo", tmp_path)
    with runs.Run.open(load("mini", "fgrpo"), "rl-fgrpo", root=tmp_path) as run:
        assert run.is_done
    assert not (tmp_path / "mini" / ".superseded").exists()


def test_a_changed_manifest_vouches_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished(tmp_path, "data")
    text = (path / "manifest.json").read_text()
    digest = json.loads(text)["outputs"]["metrics.jsonl"]["hash"]
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    (path / "manifest.json").write_text(text.replace(digest, other))
    with pytest.raises(UserError, match=r"manifest\.json is missing, empty or damaged"):
        runs.require(path / "metrics.jsonl", "data")
    with runs.Run.open(load("mini", "fgrpo"), "data", root=tmp_path) as run:
        assert not run.is_done
    assert "manifest.json is missing or damaged; the stage writes it again" in capsys.readouterr().out


def test_the_thresholds_of_a_figure_are_those_of_the_run(tmp_path: Path) -> None:
    path, config = finished(tmp_path), load("mini", "fgrpo", ["rl.constraints.consistency.tau=0.5"])
    trained = thresholds(config, "fgrpo", tmp_path)
    assert trained["consistency"] != 0.5
    file = path / "config.json"
    tau = str(trained["consistency"])
    assert f'"tau": {tau}' in file.read_text()
    file.write_text(file.read_text().replace(f'"tau": {tau}', '"tau": 0.11', 1))
    assert thresholds(config, "fgrpo", tmp_path) == trained
    (path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is empty or damaged"):
        thresholds(config, "fgrpo", tmp_path)


def test_a_changed_cache_of_hashes_costs_time_only(tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(range(256)) * 32)
    os.utime(big)
    hashes = Hashes(tmp_path)
    hashes._known = {"1:2:3:4:5": "of an older file"}
    hashes._is_changed = True
    hashes.save()
    whole = (tmp_path / CACHE).read_bytes()
    flip(tmp_path / CACHE, whole.index(b"older"), 0)
    assert Hashes(tmp_path)._known == {} and hashes._known


def test_parts_of_the_cache_of_hashes_of_dead_processes_go(tmp_path: Path) -> None:
    name = f"{CACHE}.{os.uname().nodename}-{2**22 + 1}.part"
    (tmp_path / name).write_text("torn")
    hashes = Hashes(tmp_path)
    hashes._is_changed = True
    hashes.save()
    assert [p.name for p in tmp_path.iterdir()] == [CACHE]


def test_an_image_that_changed_since_the_data_stage_is_named(tmp_path: Path) -> None:
    data, images = tmp_path / "data", [tmp_path / f"{n}.png" for n in "abc"]
    data.mkdir()
    for image in images:
        Image.new("RGB", (32, 32), "red").save(image)
    names = [str(image) for image in images]
    recorded.write(data / recorded.IMAGES, Path(), names, Hashes())
    recorded.check_images(data, names)
    flip(images[1], images[1].stat().st_size - 20, 0)
    recorded.check_images(data, [names[0], names[2]])  # only what is read
    with pytest.raises(UserError, match=r"b\.png is not what was written: it has the right size and another content"):
        recorded.check_images(data, names)
    images[1].unlink()
    with pytest.raises(UserError, match=r"b\.png is not what was written: it is missing"):
        recorded.check_images(data, names)
    (data / recorded.IMAGES).write_text('{"id": 3}\n')
    with pytest.raises(UserError, match=r"images\.jsonl, line 1 is no entry of a file"):
        recorded.check_images(data, names)
    (data / recorded.IMAGES).unlink()  # of an older version
    recorded.check_images(data, names)


def test_a_damaged_reply_of_a_judge_is_requested_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "replies.sqlite"
    cache = Cache(file)
    for key in ("a", "b"):
        cache.put(key, "consistency", "m", f'{{"label": "CONSISTENT", "why": "{key}"}}')
    cache.close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE replies SET reply = replace(reply, 'CONSISTENT', 'CONSISTEMT') WHERE key = 'a'")
        connection.execute("INSERT INTO replies VALUES ('old', 'consistency', 'm', 'of an older version', NULL)")
    assert cache.get("a") is None and "a stored reply is damaged" in capsys.readouterr().err
    assert '"b"' in str(cache.get("b")) and cache.get("old") == "of an older version" and len(cache) == 2
    cache.put("a", "consistency", "m", "again")
    assert cache.get("a") == "again"


def test_a_cache_of_an_older_version_is_read_and_extended(tmp_path: Path) -> None:
    file = tmp_path / "replies.sqlite"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "CREATE TABLE replies (key TEXT PRIMARY KEY, role TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL)"
        )
        connection.execute("INSERT INTO replies VALUES ('k', 'r', 'm', 'reply')")
    first, second = Cache(file), Cache(file)
    second.put("new", "r", "m", "other")
    assert first.get("k") == "reply" and first.get("new") == "other"


def test_a_cache_of_which_a_page_is_damaged_says_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "replies.sqlite"
    cache = Cache(file)
    for number in range(200):
        cache.put(str(number), "consistency", "m", "x" * 200)
    cache.close()
    data = bytearray(file.read_bytes())
    data[4096:] = bytes(len(data) - 4096)  # all pages but the first
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"replies\.sqlite .*(delete it|restore it)"):
        for number in range(200):
            Cache(file).get(str(number))


def test_kept_scores_that_changed_do_not_come_back(tmp_path: Path) -> None:
    judges, text = {"judge": "a"}, '{"id": "x", "value": 1.0}\n'
    for name in kept_scores.FILES:
        (tmp_path / name).write_text(text)
    kept_scores.put_away(tmp_path, judges)
    kept = kept_scores.place(tmp_path, judges)
    flip(kept / "scores.jsonl", text.index("1.0"), 0)
    with pytest.raises(UserError, match=r"scores\.jsonl is not what was kept there.*move .* away"):
        kept_scores.bring_back(tmp_path, judges)
    (kept / "scores.jsonl").write_text(text)
    kept_scores.bring_back(tmp_path, judges)
    assert (tmp_path / "scores.jsonl").read_text() == text and not kept.exists()


def test_a_move_of_kept_scores_that_was_killed_keeps_their_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = {"judge": "a"}
    for name in kept_scores.FILES:
        (tmp_path / name).write_text(name)
    replace, moved = os.replace, list[str]()

    def once(source: Any, target: Any) -> None:
        if "scored" in str(target) and not str(target).endswith(("hashes.json", ".part")):
            if moved:
                raise KeyboardInterrupt
            moved.append(str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        kept_scores.put_away(tmp_path, judges)
    monkeypatch.setattr(os, "replace", replace)
    kept_scores.bring_back(tmp_path, judges)
    assert {name: (tmp_path / name).read_text() for name in kept_scores.FILES} == {n: n for n in kept_scores.FILES}


def test_rescored_scores_are_compared_with_their_own_manifest(tmp_path: Path) -> None:
    out = tmp_path / "rescored" / "oracle"
    out.mkdir(parents=True)
    (out / "scores.jsonl").write_text('{"id": "a"}\n')
    runs.record_outputs(out, ["scores.jsonl"])
    runs.verify(out / "scores.jsonl", "judge-rescore")
    flip(out / "scores.jsonl", 8, 0)
    with pytest.raises(UserError, match=r"scores\.jsonl is not what its finished stage wrote.*make judge-rescore"):
        runs.verify(out / "scores.jsonl", "judge-rescore")


def test_rollouts_have_page_checksums(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tmp_path / "1.parquet"
    table = pa.table({"text": [f"trace {n} is red" for n in range(500)], "step": list(range(500))})
    pq.write_table(table, file, compression="zstd", write_page_checksum=True)
    assert len(judged._rows(file, ["text", "step"])) == 500
    whole, named = file.read_bytes(), 0
    for place in range(40, len(whole) // 2, 97):
        file.write_bytes(whole)
        flip(file, place, 1)
        try:
            assert judged._rows(file, ["text", "step"]) == table.to_pylist(), place
        except UserError as error:
            assert "1.parquet is damaged" in str(error)
            named += 1
    assert named > 5


def test_a_figure_that_changed_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "figure3.png").write_bytes(b"png")
    freshness.check_written(tmp_path, "figures")  # without a stamp
    freshness.stamp(tmp_path, {"files": {}}, [tmp_path / "figure3.png"])
    freshness.check_written(tmp_path, "figures")
    flip(tmp_path / "figure3.png", 1, 1)
    with pytest.raises(UserError, match=r"figure3\.png is not what `make figures` wrote; rerun it"):
        freshness.check_written(tmp_path, "figures")
    (tmp_path / "figure3.png").unlink()
    with pytest.raises(UserError, match="rerun `make figures`"):
        freshness.check_written(tmp_path, "figures")


@pytest.mark.parametrize("dies_at", range(4))
def test_a_folder_is_replaced_without_a_moment_without_any(
    tmp_path: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each change: afterwards the old or the new folder is there, whole."""
    new, folder = tmp_path / "new", tmp_path / "best"
    for place, text in ((new, "new"), (folder, "old")):
        place.mkdir()
        for name in "abc":
            (place / name).write_text(text)
    calls = [0]

    def dying(inner: Any) -> Any:
        def change(*args: Any, **more: Any) -> Any:
            if calls[0] == dies_at:
                raise KeyboardInterrupt
            calls[0] += 1
            return inner(*args, **more)

        return change

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(os, name, dying(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            put_in_place(new, folder)
    settle_replaced(folder)
    texts = {p.read_text() for p in folder.iterdir()}
    assert texts == ({"old"} if dies_at < 2 else {"new"}) and len(list(folder.iterdir())) == 3
    assert not folder.with_name(folder.name + REPLACED).exists()
