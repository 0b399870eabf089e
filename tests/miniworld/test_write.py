"""Writers of the miniature data: genuine formats, disjoint parts, a correct truth book, deterministic, resumable."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from data_curation import source
from eval import base as benchmarks
from fgrpo import boxes
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.hashing import Hashes, describe_all
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, sealed
from miniworld import oracle
from miniworld.language import parse_question
from miniworld.scene import Scene
from miniworld.truth import TruthBook, image_key
from miniworld.write import side_by_side
from miniworld.write.__main__ import write_world, writers
from miniworld.write.studio import part_of

TRAIN, BENCH = 16, 12


def config_for(folder: Path, *more: str) -> Config:
    sizes = (f"world.train_per_source={TRAIN}", f"world.bench_per_benchmark={BENCH}")
    return load("smoke", "fgrpo", [f"data.root={folder / 'data'}", *sizes, *more])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Path]]:
    folder = tmp_path_factory.mktemp("world")
    config = config_for(folder)
    yield config, write_world(config, folder / "runs")


def digests(root: Path) -> dict[str, str]:
    files = (p for p in root.rglob("*") if p.is_file() and "cache" not in p.parts)
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read_source(name: str, root: Path, out: Path) -> tuple[list[source.Sample], source.Tally]:
    data_set, tally = source.source(name), source.Tally()
    return list(data_set.read(source.Context(root / "train" / data_set.folder, out, 0, 4, tally))), tally


BENCHMARKS = ("cvb_2d", "cvb_3d", "mindcube", "mmvp", "omnispatial", "realworldqa", "sat_real")
MORE = ("blink", "mmsi_bench", "treebench")  # beside the paper's seven


def test_every_source_and_benchmark_has_a_writer() -> None:
    assert len(writers()) == 13
    assert len({w.folder for w in writers().values()}) == 13


@pytest.mark.parametrize("name", ["sat", "vgr", "viscot", "treevgr"])
def test_the_loaders_read_every_training_record_and_it_is_true(
    name: str, world: tuple[Config, Path], tmp_path: Path
) -> None:
    samples, tally = read_source(name, world[1], tmp_path)
    book = TruthBook.load(world[1])
    assert (len(samples), tally.dropped, tally.notes) == (TRAIN, {}, {})
    for sample in samples:
        scenes = book.scenes(sample.images)
        assert scenes is not None
        assert all(part_of(scene) == "train" for scene in scenes)
        assert sample.answer in sample.choices
        # only the statement of the gold answer is true in the scene
        verdicts = {
            c: oracle.judge_sentence(scenes, sample.question, [], statement(sample.question, c))[0]
            for c in sample.choices
        }
        assert [c for c, v in verdicts.items() if v == "CORRECT"] == [sample.answer]
        if name != "sat":
            assert sample.boxes is not None
            true = {thing.box for thing in scenes[0].things}
            drawn = [boxes.convert(b, "original", (112, 112), (112, 112)) for b in sample.boxes]
            assert {tuple(round(v) for v in b) for b in drawn} <= true


def statement(question: str, choice: str) -> str:
    """The sentence that answers `question` with `choice`, written independently."""
    plain = question.lower().removeprefix("seen from behind, ")
    lead = "Seen from behind, the" if plain != question.lower() else "The"
    names = parse_question(question).names  # type: ignore[union-attr]
    if plain.startswith("how many"):
        noun = plain.split()[2].removesuffix("s")
        return f"There are {choice} {noun}s."
    if "nearer" in plain:
        return f"The {names[0]} is nearer to the {choice}."
    if plain.startswith("did"):
        return f"The {names[0]} moved {choice}."
    tail = {"left": " of", "right": " of", "closer": " than", "farther": " than"}.get(choice, "")
    return f"{lead} {names[0]} is {choice}{tail} the {names[1]}."


@pytest.mark.parametrize("name", [*BENCHMARKS, *MORE])
def test_the_benchmark_loaders_read_every_question(name: str, world: tuple[Config, Path]) -> None:
    loaded = benchmarks.load(name, world[0])
    assert len(loaded.samples) == (2 * BENCH if name == "sat_real" else BENCH)
    assert not loaded.dropped
    book = TruthBook.load(world[1])
    for sample in loaded.samples:
        scenes = book.scenes(sample.images)
        assert scenes is not None
        assert all(part_of(scene) == "bench" for scene in scenes)
        assert sample.answer in sample.choices
        assert "A." not in sample.question and "letter" not in sample.question
    assert len({s.answer for s in loaded.samples}) >= 2


def test_the_boxes_of_treebench_are_those_of_the_things_asked_about(world: tuple[Config, Path]) -> None:
    book = TruthBook.load(world[1])
    for sample in benchmarks.load("treebench", world[0]).samples:
        scenes, asked = book.scenes(sample.images), parse_question(sample.question)
        assert scenes is not None and asked is not None and sample.boxes
        named = {scenes[0].by_name(name).box for name in asked.names}  # type: ignore[union-attr]
        drawn = {tuple(round(v) for v in box) for box in sample.boxes}
        assert drawn <= {thing.box for thing in scenes[0].things} and named <= drawn
        assert {box.frame for box in sample.boxes} == {"original"}


def test_a_world_of_an_older_version_gets_the_data_sets_it_lacks(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    root = write_world(config, tmp_path / "runs")
    before, stamp = digests(root), (root / "bench" / "SAT" / "SAT_test.parquet").stat().st_mtime_ns
    stage = tmp_path / "runs" / config.preset / "world"
    shutil.rmtree(root / "bench" / "BLINK")
    written = [line for line in (stage / "written.jsonl").read_text().splitlines() if '"blink"' not in line]
    (stage / "written.jsonl").write_text("".join(f"{line}\n" for line in written))
    listed = [line for line in (stage / "files.jsonl").read_text().splitlines() if "bench/BLINK" not in line]
    for place in (stage, root):
        (place / "files.jsonl").write_text("".join(f"{line}\n" for line in listed))
    record_outputs_of(stage)
    write_world(config, tmp_path / "runs")
    assert digests(root) == before and (root / "bench" / "SAT" / "SAT_test.parquet").stat().st_mtime_ns == stamp


def test_processes_side_by_side_write_the_same_bytes(world: tuple[Config, Path], tmp_path: Path) -> None:
    _, root = world
    side_by_side = config_for(tmp_path)
    written = write_world(side_by_side, tmp_path / "runs", jobs=2)
    assert digests(written) == digests(root)
    stage = tmp_path / "runs" / "smoke" / "world"
    before = {path.name: path.read_bytes() for path in stage.glob("*.jsonl")}
    shutil.rmtree(written / writers()["sat"].folder)
    (stage / "done").unlink()
    write_world(side_by_side, tmp_path / "runs", jobs=2)
    assert digests(written) == digests(root)
    assert {path.name: path.read_bytes() for path in stage.glob("*.jsonl")} == before


KILLED_AT_THE_START = """
import os, signal, sys, threading, time
from pathlib import Path
import psutil
from miniworld.write.side_by_side import write_all

def kill():
    while len(found := [c for c in psutil.Process().children() if "--multiprocessing-fork" in c.cmdline()]) < 2:
        time.sleep(0.01)
    print(*(c.pid for c in found), flush=True)
    time.sleep(0.1)  # they have what they need to start, and import their modules
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=kill, daemon=True).start()
    list(write_all({"mmvp": 4, "sat": 4}, 0, Path(sys.argv[1]), 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_workers_of_a_writer_that_is_killed_while_they_start_write_nothing(tmp_path: Path) -> None:
    """Else they write beside the resumed run, into the same folders, and never end."""
    script = tmp_path / "writer.py"
    script.write_text(KILLED_AT_THE_START)
    writer = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "root")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert writer.stdout is not None
    workers = [int(pid) for pid in writer.stdout.readline().split()]
    writer.wait()
    _, alive = psutil.wait_procs([p for p in psutil.process_iter() if p.pid in workers], timeout=300)
    for process in alive:
        process.kill()
    assert len(workers) == 2 and not alive
    assert not (tmp_path / "root").exists()


def end_this_process(*_: object) -> None:
    os._exit(9)


def test_a_worker_that_is_killed_ends_the_stage_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "write_one", end_this_process)
    with pytest.raises(UserError, match=r"ended before (mmvp|sat) was complete .*rerun to resume"):
        list(side_by_side.write_all({"mmvp": 4, "sat": 4}, 0, tmp_path / "root", 2))


def record_outputs_of(stage: Path) -> None:
    """The manifest of the present files."""
    manifest = read_sealed(stage / "manifest.json")
    outputs = describe_all(stage, list(manifest["outputs"]), Hashes())
    (stage / "manifest.json").write_text(sealed({**manifest, "outputs": outputs}))


def test_mmvp_pairs_differ_only_in_image_and_answer(world: tuple[Config, Path]) -> None:
    folder = world[1] / "bench" / "MMVP"
    rows = list(csv.DictReader((folder / "Questions.csv").open(encoding="utf-8")))
    book = TruthBook.load(world[1])
    assert [int(r["Index"]) for r in rows] == list(range(1, BENCH + 1))
    for one, two in zip(rows[::2], rows[1::2], strict=True):
        assert (one["Question"], one["Options"]) == (two["Question"], two["Options"])
        assert one["Correct Answer"] != two["Correct Answer"]
        scenes = book.scenes([folder / "MMVP Images" / f"{r['Index']}.jpg" for r in (one, two)])
        assert scenes is not None
        changed = set(scenes[0].things) ^ set(scenes[1].things)
        assert len({thing.name for thing in changed}) == 2
        assert {t.name for t in scenes[0].things} == {t.name for t in scenes[1].things}


def test_the_truth_book_is_keyed_by_the_decoded_file(world: tuple[Config, Path]) -> None:
    book = TruthBook.load(world[1])
    image_file = world[1] / "bench" / "MMVP" / "MMVP Images" / "1.jpg"
    scenes = book.scenes([image_file])
    assert scenes is not None
    assert book.scenes([image_file]) == (Scene.from_dict(scenes[0].to_dict()),)
    from miniworld.render import render

    assert image_key(render(scenes[0])) != image_key(image_file)  # JPEG and jitter: never the image as drawn


def test_treevgr_has_lettered_and_free_form_rows(world: tuple[Config, Path]) -> None:
    rows = pq.read_table(world[1] / "train" / "TreeVGR-RL-37K" / "TreeVGR-RL-37K.parquet").to_pylist()
    lettered = [r for r in rows if len(r["answer"]) == 1]
    assert len(lettered) == TRAIN // 5
    assert all(r["problem"].startswith("<image>\n") for r in rows)
    assert all("\nA. " in r["problem"] for r in lettered)


def test_the_bytes_depend_on_the_seed(world: tuple[Config, Path], tmp_path: Path) -> None:
    again = write_world(config_for(tmp_path / "same"), tmp_path / "same" / "runs")
    assert digests(again) == digests(world[1])
    other = write_world(config_for(tmp_path / "other", "seed=1"), tmp_path / "other" / "runs")
    assert digests(other)["scenes.jsonl"] != digests(world[1])["scenes.jsonl"]


def test_a_second_run_writes_nothing_and_a_lost_file_comes_back(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    root = write_world(config, tmp_path / "runs")
    before, stamps = digests(root), {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    write_world(config, tmp_path / "runs")
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == stamps
    (root / "train" / "SAT" / "SAT_train.parquet").unlink()
    write_world(config, tmp_path / "runs")
    assert digests(root) == before
    assert (root / "train" / "VGR" / "vgr_longcot.parquet").stat().st_mtime_ns == stamps[
        root / "train" / "VGR" / "vgr_longcot.parquet"
    ]


def test_it_never_overwrites_other_data(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    real_file = tmp_path / "data" / "train" / "SAT" / "SAT_train.parquet"
    real_file.parent.mkdir(parents=True)
    real_file.write_bytes(b"172K real questions")
    with pytest.raises(UserError, match="not the miniature world's"):
        write_world(config, tmp_path / "runs")
    assert real_file.read_bytes() == b"172K real questions"


def test_a_preset_without_a_world_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no miniature world"):
        write_world(load("paper-7b"), tmp_path)


def test_a_flipped_byte_is_named_and_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for(tmp_path)
    root = write_world(config, tmp_path / "runs")
    before = digests(root)
    (root / "train" / "left.part").mkdir()  # of a killed process
    image = min(root.rglob("*.png"))
    data = bytearray(image.read_bytes())
    data[-20] ^= 1
    image.write_bytes(bytes(data))
    write_world(config, tmp_path / "runs")
    assert f"1 files are missing or changed and are written again, such as {image.relative_to(root)}" in (
        capsys.readouterr().out
    )
    assert digests(root) == before and not list(root.rglob("*.part"))
