"""Downloads from a hub: plan and disk, interruption and resume, checksums, archives, and an error for every refusal."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from data_curation import download, hub
from data_curation.source import names as source_names
from data_curation.source import source
from data_curation.unpack import unpack
from eval.base import benchmark, names
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.runs import held
from fgrpo.schema import Config

from .fake_hub import COMMIT, FakeHub, sha256

IMAGE = b"\xff\xd8" + bytes(range(256)) * 40 + b"\xff\xd9"


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


EXTRA = ("blink", "mmsi_bench", "treebench")  # benchmarks beside the paper's seven


def test_extra_benchmarks_are_fetched_when_they_are_named_and_only_what_is_read(place: Place) -> None:
    config = place.config.model_copy(
        update={"eval": place.config.eval.model_copy(update={"extra_benchmarks": ("treebench",)})}
    )
    known = download.catalogue()
    assert set(download.select_data_sets(config, (), known)) - set(
        download.select_data_sets(place.config, (), known)
    ) == {"treebench"}
    place.get("blink", "treebench", "mmsi_bench")
    files = {p.relative_to(place.root / "bench").as_posix() for p in (place.root / "bench").rglob("*") if p.is_file()}
    tasks = ("Counting", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation")
    blink = {f"BLINK/{task}/val-00000-of-00001.parquet" for task in tasks}
    assert files == {*blink, "MMSI-Bench/MMSI_Bench.parquet", "TreeBench/TreeBench.tsv"}


def repositories() -> dict[str, dict[str, bytes]]:
    """The layout of every repository of the catalogue, with small contents."""
    cot = tarred({f"cot_image_data/gqa/{i}.jpg": IMAGE + bytes([i]) for i in range(8)}, "w")
    third = len(cot) // 3
    pieces = [cot[:third], cot[third : 2 * third], cot[2 * third :]]
    return {
        "array/SAT": {
            "README.md": b"x", "SAT_train.parquet": b"train" * 9000, "SAT_val.parquet": b"v", "SAT_static.parquet": b"s",
            "SAT_test.parquet": b"test" * 50,
        },
        "BytedanceDouyinContent/VGR": {"vgr_shortcot.parquet": b"short", "vgr_longcot.parquet": b"long"},
        "lmms-lab/LLaVA-NeXT-Data": {
            "data/train-00000.parquet": b"not wanted",
            "llava_next_raw_format/llava_next_raw_format_images_1.tar.gz": tarred({"coco/train2017/1.jpg": IMAGE}),
            "llava_next_raw_format/llava_next_raw_format_images_2.tar.gz": tarred({"gqa/images/2.jpg": IMAGE}),
        },
        "deepcs233/Visual-CoT": {
            "metadata/gqa_cot_train.jsonl": b"{}\n",
            **{f"cot_images_tar_split/cot_images_{i:02d}": piece for i, piece in enumerate(pieces)},
        },
        "HaochenWang/TreeVGR-RL-37K": {"vstar30k.parquet": b"tree", "images.zip": zipped({"images/0.jpg": IMAGE})},
        "nyu-visionx/CV-Bench": {"test_2d.parquet": b"2", "test_3d.parquet": b"3", "img/2D/count/1.png": b"no"},
        "MLL-Lab/MindCube": {"data.zip": zipped({"data/raw/MindCube_tinybench.jsonl": b"{}\n"})},
        "MMVP/MMVP": {"Questions.csv": b"Index\n", "MMVP Images/1.jpg": IMAGE, "MMVP Images/2.jpg": IMAGE + b"2"},
        "qizekun/OmniSpatial": {
            "OmniSpatial-test.zip": zipped({"OmniSpatial-test/data.json": b"[]"}), "OmniSpatial-train.zip": b"no",
        },
        "BLINK-Benchmark/BLINK": {
            f"{task}/{split}-00000-of-00001.parquet": task.encode()
            for split in ("val", "test")
            for task in ("Counting", "Jigsaw", "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Spatial_Relation")
        },
        "RunsenXu/MMSI-Bench": {"MMSI_Bench.parquet": b"mmsi", "assets/1.png": b"no"},
        "HaochenWang/TreeBench": {"TreeBench.tsv": b"tree", "assets/1.png": b"no"},
        "xai-org/RealworldQA": {"data/test-00000-of-00002.parquet": b"r0", "data/test-00001-of-00002.parquet": b"r1"},
    }  # fmt: skip


class Place(NamedTuple):
    hub: FakeHub
    config: Config
    root: Path

    def get(self, *sets: str) -> None:
        download.fetch_all(self.config, sets, self.hub.url)

    def record(self, name: str) -> dict:  # type: ignore[type-arg]
        stored: dict = json.loads((self.root / "downloads" / f"{name}.json").read_text())  # type: ignore[type-arg]
        return stored


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000
    )  # upper bound of the bytes lost at a break
    monkeypatch.setattr(hub.fetch, "__defaults__", (lambda seconds: None,))
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    root = tmp_path / "paper"
    with FakeHub(repositories()) as running:
        yield Place(running, load("paper-7b", overrides=[f"data.root={root}"]), root)


def test_the_catalogue_covers_every_source_and_benchmark_with_the_loaders_folders() -> None:
    config, known = load("paper-7b"), download.catalogue()
    served = {reader for entry in known.values() for reader in entry.serves}
    assert (
        served == {*config.data.sources, *config.eval.benchmarks, *EXTRA} == {*source_names(), *set(names()) - {"own"}}
    )
    for name in (*config.eval.benchmarks, *EXTRA):
        assert {f"bench/{benchmark(name).folder}"} == {e.folder for e in known.values() if name in e.serves}
    for name in source_names():
        assert f"train/{source(name).folder}" in {e.folder for e in known.values() if name in e.serves}
    assert all(entry.licence and entry.layout and entry.sure for entry in known.values())


def test_all_files_are_written_where_the_loaders_read(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.get()
    root = place.root
    for name in place.config.data.sources:
        stored = source(name)
        assert stored.files(root / "train" / stored.folder), name
    assert (root / "train/VGR/llava_next_raw_format/coco/train2017/1.jpg").read_bytes() == IMAGE
    assert (root / "train/VisCoT/cot_image_data/gqa/7.jpg").read_bytes() == IMAGE + b"\x07"
    assert (root / "train/TreeVGR-RL-37K/images/0.jpg").is_file()
    assert (root / "bench/MindCube/data/raw/MindCube_tinybench.jsonl").is_file()
    assert (root / "bench/MMVP/MMVP Images/2.jpg").is_file() and (root / "bench/SAT/SAT_test.parquet").is_file()
    assert (
        not list(root.rglob("*.zip")) and not list(root.rglob("cot_images_0*")) and not list(root.rglob("*.part"))
    )  # unpacked archives are deleted
    unwanted = ("SAT_val.parquet", "train-00000.parquet", "OmniSpatial-train.zip", "img/2D/count/1.png")
    assert not any(place.hub.sent[name] for name in place.hub.sent if name.endswith(unwanted))
    output = capsys.readouterr().out
    assert "CC-BY-NC-4.0 (not for commercial use)" in output and "GB free" in output and "viscot" in output
    stored = place.record("sat")
    assert (stored["repo"], stored["commit"], stored["licence"]) == ("array/SAT", COMMIT, "MIT")
    train = place.hub.repos["array/SAT"]["SAT_train.parquet"]
    assert stored["files"]["SAT_train.parquet"] == {"size": len(train), "digest": f"sha256:{sha256(train)}"}


def test_a_second_call_fetches_nothing(place: Place) -> None:
    place.get()
    place.hub.sent.clear()
    place.get()
    assert not place.hub.sent


def test_a_broken_connection_resumes_where_it_stopped(place: Place) -> None:
    content = place.hub.repos["array/SAT"]["SAT_train.parquet"]
    place.hub.cut["SAT_train.parquet"] = [10_000, 7_000]
    place.get("sat")
    assert (place.root / "train/SAT/SAT_train.parquet").read_bytes() == content
    assert place.hub.sent["SAT_train.parquet"] == len(content)  # no byte twice
    assert [r for _, r in place.hub.ranges] == ["bytes=10000-", "bytes=17000-"]


KILLED = """
import sys
from data_curation import download
from fgrpo.config import load
download.fetch_all(load("paper-7b", overrides=["data.root=" + sys.argv[1]]), ["sat"], sys.argv[2])
"""


def test_a_killed_download_resumes(place: Place) -> None:
    content = os.urandom(40_000_000)
    place.hub.repos["array/SAT"]["SAT_train.parquet"] = content
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", KILLED, str(place.root), place.hub.url]
    place.hub.cut["SAT_train.parquet"] = [25_000_000]

    def large_partials() -> list[Path]:
        return [p for p in place.root.rglob("*.part") if p.stat().st_size > 15_000_000]

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not large_partials() and process.poll() is None and time.monotonic() < deadline:
        place.hub.down = place.hub.sent["SAT_train.parquet"] > 0  # requests after the break are not answered
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert large_partials()
    sent_before = place.hub.sent["SAT_train.parquet"]
    place.hub.down = False
    place.get("sat")
    assert (place.root / "train/SAT/SAT_train.parquet").read_bytes() == content
    assert place.hub.sent["SAT_train.parquet"] < sent_before + len(content) - 10_000_000


def test_a_wrong_checksum_is_retried_once_and_then_refused(place: Place) -> None:
    place.hub.lies["SAT_test.parquet"] = 1
    place.get("sat-real")
    assert (place.root / "bench/SAT/SAT_test.parquet").read_bytes() == b"test" * 50
    place.hub.lies["Questions.csv"] = 9
    with pytest.raises(UserError, match=r"1 of 1 data sets are unavailable: mmvp: .*Questions\.csv.*checksum git:"):
        place.get("mmvp")
    assert not (place.root / "bench/MMVP/Questions.csv").exists()
    assert not (place.root / "downloads/mmvp.json").exists()  # no file is recorded


def test_a_missing_or_closed_repository_is_named_and_the_others_are_fetched(place: Place) -> None:
    del place.hub.repos["MMVP/MMVP"]
    place.hub.gated = ("xai-org/RealworldQA",)
    with pytest.raises(UserError) as failed:
        place.get("mmvp", "realworldqa", "sat-real")
    message = str(failed.value)
    assert "2 of 3 data sets are unavailable" in message
    assert "mmvp: MMVP/MMVP: no such data set on the hub" in message and "hf auth login" in message
    assert f"mmvp: MMVP/MMVP -> {place.root}/bench/MMVP: Questions.csv, MMVP Images/1.jpg" in message
    assert (place.root / "bench/SAT/SAT_test.parquet").is_file()


def test_without_a_network_the_error_explains_the_manual_download(place: Place) -> None:
    place.hub.down = True
    with pytest.raises(UserError) as failed:
        place.get("sat", "mmvp")
    first, *rest = str(failed.value).splitlines()
    assert first.startswith("no connection to the hub for array/SAT")
    assert rest[0].startswith("To download by hand, copy these files") and len(rest) == 3
    assert not (place.root / "train").exists()


def test_a_hub_that_fails_midway_keeps_the_partial_file(place: Place) -> None:
    place.hub.cut["SAT_train.parquet"] = [30_000] + [0] * 200
    with pytest.raises(
        UserError, match=r"no connection to the hub for array/SAT, SAT_train\.parquet[\s\S]*To download by hand"
    ):
        place.get("sat")
    place.hub.cut.clear()
    place.get("sat")
    assert place.hub.sent["SAT_train.parquet"] == 45_000


def test_a_page_that_is_not_a_hub_is_reported(place: Place) -> None:
    place.hub.portal = True
    with pytest.raises(UserError, match=r"array/SAT: the server.s reply is not a hub.s .*HF_ENDPOINT"):
        place.get("sat")


def test_offline_mode_is_reported(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        place.get("sat")


def test_too_small_a_disk_is_refused_before_anything_starts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, int(2e9) + 1000))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"are needed on the disk of .* but only 2\.0 GB are free .*SETS="):
        place.get("sat")
    assert not place.hub.sent


def test_two_downloads_into_one_folder_are_refused(place: Place) -> None:
    with held(place.root / "downloads"), pytest.raises(UserError, match="another process is working on"):
        place.get("sat-real")
    assert not place.hub.sent


def test_the_plan_counts_archives_twice_and_downloads_nothing(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    download.fetch_all(place.config, ["mindcube"], place.hub.url, plan_only=True)
    assert not place.hub.sent
    entry = download.catalogue()["mindcube"]
    job = download.plan_job(place.root, "mindcube", entry, place.hub.url)
    size = len(place.hub.repos["MLL-Lab/MindCube"]["data.zip"])
    assert (job.download_bytes, job.disk_bytes) == (size, size + round(1.1 * size))
    assert "bench/MindCube from MLL-Lab/MindCube@c0ffee0000" in capsys.readouterr().out


def test_files_copied_by_hand_are_verified_and_kept(place: Place) -> None:
    target = place.root / "train/SAT/SAT_train.parquet"
    target.parent.mkdir(parents=True)
    target.write_bytes(place.hub.repos["array/SAT"]["SAT_train.parquet"])
    place.get("sat")
    assert not place.hub.sent and "SAT_train.parquet" in place.record("sat")["files"]


def test_a_new_version_of_a_file_is_fetched_again(place: Place) -> None:
    place.get("sat-real")
    place.hub.repos["array/SAT"]["SAT_test.parquet"] = b"TEST" * 50
    place.get("sat-real")
    assert (place.root / "bench/SAT/SAT_test.parquet").read_bytes() == b"TEST" * 50


def test_a_kill_while_unpacking_unpacks_the_rest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from data_curation import unpack

    real, placed = unpack._place, []

    def dies(into: Path, name: str, *rest: object) -> Path:
        if len(placed) == 3:
            raise KeyboardInterrupt
        placed.append(name)
        return real(into, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(unpack, "_place", dies)
    with pytest.raises(KeyboardInterrupt):
        place.get("viscot")
    monkeypatch.setattr(unpack, "_place", real)
    sent_before = dict(place.hub.sent)
    place.get("viscot")
    sent = {name: n for name, n in place.hub.sent.items() if "tar_split" in name}
    assert sent == {name: n for name, n in sent_before.items() if "tar_split" in name}  # the pieces were still there
    assert len(list((place.root / "train/VisCoT/cot_image_data/gqa").iterdir())) == 8


def test_an_archive_left_over_after_unpacking_is_deleted(place: Place) -> None:
    place.get("mindcube")
    leftover = place.root / "bench/MindCube/data.zip"
    leftover.write_bytes(place.hub.repos["MLL-Lab/MindCube"]["data.zip"])
    place.hub.sent.clear()
    place.get("mindcube")
    assert not leftover.exists() and not place.hub.sent


def test_links_in_an_archive_are_skipped_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../../a.jpg"
        archive.addfile(link)
    assert unpack([path], tmp_path) == 1
    assert "x.tar: 1 members are links" in capsys.readouterr().out and not (tmp_path / "b.jpg").is_symlink()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [(b"no zip at all", "is a damaged archive"), (zipped({"../../out.txt": b"x"}), "points outside the folder")],
)
def test_a_damaged_or_malicious_archive_is_refused(place: Place, archive: bytes, reason: str) -> None:
    place.hub.repos["MLL-Lab/MindCube"]["data.zip"] = archive
    with pytest.raises(UserError, match=reason):
        place.get("mindcube")
    assert not (place.root.parent / "out.txt").exists() and not (place.root / "out.txt").exists()


def test_a_preset_with_its_own_data_and_an_unknown_set_are_errors(place: Place) -> None:
    with pytest.raises(UserError, match="writes its own data"):
        download.fetch_all(load("mini"), (), place.hub.url)
    with pytest.raises(UserError, match="unknown data set 'mmpv'; did you mean 'mmvp'"):
        place.get("mmpv")
    del place.hub.repos["array/SAT"]["SAT_train.parquet"]
    with pytest.raises(UserError, match=r"array/SAT has no file SAT_train\.parquet \(its files: README\.md"):
        place.get("sat")
