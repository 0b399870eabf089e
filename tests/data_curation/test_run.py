"""The data stage from the writers' files to seed and RL set: selected by difficulty, disjoint, resumable, failures counted."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_curation import clustering, moved
from data_curation.difficulty import fraction, histogram, is_kept, order
from data_curation.run import curate
from fgrpo import recorded
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.base import Completion, Request, SamplingError
from fgrpo.schema import Config
from fgrpo.types import Sample
from miniworld.language import parse_question
from miniworld.write.__main__ import write_world

COUNTS = [f"data.sources.{name}.{key}" for name, key in (("sat", "seed=4"), ("vgr", "seed=4"), ("viscot", "seed=4"))]
COUNTS += [f"data.sources.{name}.rl=8" for name in ("sat", "vgr", "viscot", "treevgr")]


class Scripted:
    """A sampler whose answers depend on the request only; it can be killed or refuse some questions."""

    def __init__(self, dies_after: int | None = None, refuses: str | None = None, always: str | None = None) -> None:
        self.dies_after, self.refuses, self.always = dies_after, refuses, always
        self.requests: list[Request] = []

    async def sample(self, request: Request) -> Sequence[Completion]:
        if self.dies_after is not None and len(self.requests) >= self.dies_after:
            raise KeyboardInterrupt
        self.requests.append(request)
        if self.refuses is not None and self.refuses in request.text:
            raise SamplingError("the endpoint is gone")
        parsed = parse_question(request.text)
        assert parsed is not None
        rng = random.Random(request.seed)
        answers = [self.always or rng.choice(parsed.options) for _ in range(request.n)]
        return [Completion(f"I look.</think><answer>{a}</answer>", "stop") for a in answers]

    async def close(self) -> None:
        raise AssertionError("the stage closes only the engine it has built")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    folder = tmp_path_factory.mktemp("data")
    sizes = ["world.train_per_source=40", "world.bench_per_benchmark=2", f"data.root={folder / 'root'}"]
    config = load("smoke", "fgrpo", [*sizes, *COUNTS])
    write_world(config, folder / "runs")
    yield config


def samples(path: Path) -> list[Sample]:
    return [Sample.from_dict(row) for row in read_jsonl(path)]


def test_the_stage_selects_seed_and_rl_samples_and_reports_them(config: Config, tmp_path: Path) -> None:
    engine = Scripted()
    folder = curate(config, tmp_path, engine)
    seeds, rl_samples = samples(folder / "seed.jsonl"), samples(folder / "rl.jsonl")
    measured = {row["id"]: row for row in read_jsonl(folder / "difficulty.jsonl")}
    assert [sum(s.source == name for s in seeds) for name in ("sat", "vgr", "viscot", "treevgr")] == [4, 4, 4, 0]
    assert [sum(s.source == name for s in rl_samples) for name in ("sat", "vgr", "viscot", "treevgr")] == [8, 8, 8, 8]
    assert not {s.id for s in seeds} & {s.id for s in rl_samples}
    for sample in rl_samples:
        row = measured[sample.id]
        assert sample.meta["difficulty"] == row["mean"] == sum(row["correct"]) / 4
        assert 0 < row["mean"] < 1 or fraction(config.seed, f"trivial/{sample.id}") < config.data.keep_trivial
        assert [answer == sample.answer for answer in row["answers"]] == row["correct"]
        assert (sample.boxes is not None) == (sample.source in ("vgr", "treevgr"))  # VisCoT's only by `boxes_from`
        assert all(Path(image).is_file() for image in sample.images)
    assert all((r.prefix, r.n, r.max_new_tokens) == ("<think>", 4, 80) for r in engine.requests)
    assert len({r.seed for r in engine.requests}) == len(engine.requests) == len(measured)
    assert {s.source for s in rl_samples[:12]} == {"sat", "vgr", "viscot", "treevgr"}  # sources are mixed
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sum(manifest["difficulty"]["all"].values()) == len(measured) == manifest["counts"]["rollouts/scored"]
    assert json.loads((folder / "dropped.json").read_text())["sat"] == {
        "records": 40,
        "kept": 40,
        "dropped": {},
        "notes": {},
    }
    report = (folder / "report.md").read_text()
    for name in ("sat", "vgr", "viscot", "treevgr"):
        assert re.search(
            rf"^- {name}: by word overlap \d+%, .*by length \d+%, by position \d+% \(chance", report, re.MULTILINE
        )
    assert "| sat | 40 | 40 | 4 (4) | 8 (8) |" in report
    for mean, count in manifest["difficulty"]["sat"].items():
        assert re.search(rf"^{mean}  #+ {count}$", report, re.MULTILINE)
    clusters = json.loads((folder / "clusters.json").read_text())
    assert {name: sum(c["size"] for c in group) for name, group in clusters.items() if group} == dict.fromkeys(
        ("sat", "vgr", "viscot"), 40
    )
    largest = max(clusters["vgr"], key=lambda c: c["size"])
    assert f"vgr: {len(clusters['vgr'])} clusters, sizes {largest['size']} to " in report
    assert f"- {largest['size']}: {'; '.join(largest['examples'])}\n" in report


def test_a_second_run_samples_nothing(config: Config, tmp_path: Path) -> None:
    curate(config, tmp_path, Scripted())
    again = Scripted()
    curate(config, tmp_path, again)
    assert not again.requests


@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: text.split("\n", 3)[3]])
def test_a_damaged_pool_is_read_again(config: Config, tmp_path: Path, damage: Callable[[str], str]) -> None:
    folder = curate(config, tmp_path, Scripted())
    pool, before = folder / "pool" / "sat.jsonl", (folder / "rl.jsonl").read_bytes()
    reference = pool.read_text()
    pool.write_text(damage(reference))
    (folder / "done").unlink()
    curate(config, tmp_path, Scripted())
    assert pool.read_text() == reference and (folder / "rl.jsonl").read_bytes() == before


def test_after_a_kill_and_a_torn_line_the_sets_are_equal_and_nothing_is_sampled_twice(
    config: Config, tmp_path: Path
) -> None:
    reference = curate(config, tmp_path / "whole", Scripted())
    first, second = Scripted(dies_after=20), Scripted()
    with pytest.raises(KeyboardInterrupt):
        curate(config, tmp_path / "torn", first)
    path = tmp_path / "torn" / "smoke" / "data" / "difficulty.jsonl"
    written_bytes = path.read_bytes()
    assert written_bytes.count(b"\n") == 20
    path.write_bytes(written_bytes[:-30])  # a partly written last line
    folder = curate(config, tmp_path / "torn", second)
    for name in ("seed.jsonl", "rl.jsonl", "dropped.json", "report.md"):
        text = (folder / name).read_text().replace(str(tmp_path / "torn"), str(tmp_path / "whole"))
        assert text == (reference / name).read_text(), name
    rows = [row["id"] for row in read_jsonl(path)]
    assert len(rows) == len(set(rows))
    assert len(first.requests) + len(second.requests) == len(rows) + 1  # only the torn one was repeated


def test_questions_are_embedded_once_however_often_the_stage_is_killed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded_counts: list[int] = []
    real = clustering.select

    def counted(questions: Sequence[str], *rest: Any) -> list[clustering.Cluster]:
        embedded_counts.append(len(questions))
        return real(questions, *rest)

    monkeypatch.setattr(clustering, "select", counted)
    with pytest.raises(KeyboardInterrupt):
        curate(config, tmp_path, Scripted(dies_after=20))
    first = (tmp_path / "smoke" / "data" / "seed.jsonl").read_bytes()
    folder = curate(config, tmp_path, Scripted())
    assert len(embedded_counts) == 4 and (folder / "seed.jsonl").read_bytes() == first
    (folder / "done").unlink()
    (folder / "selected.json").write_text('{"sat": [[3, [0')
    curate(config, tmp_path, Scripted())
    assert len(embedded_counts) == 8 and (folder / "seed.jsonl").read_bytes() == first  # a damaged file is rebuilt


def test_too_few_usable_samples_are_all_taken_and_reported(config: Config, tmp_path: Path) -> None:
    folder = curate(config, tmp_path, Scripted(always="nothing of the kind"))
    rl_samples = samples(folder / "rl.jsonl")
    measured = list(read_jsonl(folder / "difficulty.jsonl"))
    assert {row["mean"] for row in measured} == {0.0}
    assert len(measured) == 4 * 40 - 12  # every candidate was looked at
    assert [s.id for s in rl_samples] != [] and all(
        is_kept(0.0, s.id, config.data.keep_trivial, config.seed) for s in rl_samples
    )
    assert "RL samples**, because no more are usable" in (folder / "report.md").read_text()


def test_an_engine_that_fails_too_often_stops_the_stage_and_keeps_measured_samples(
    config: Config, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"could not be rolled out; last failure: .*: the endpoint is gone"):
        curate(config, tmp_path, Scripted(refuses="Is the"))
    folder = tmp_path / "smoke" / "data"
    assert not (folder / "done").exists()
    curate(config, tmp_path, Scripted())
    assert (folder / "done").exists()


def test_a_few_failures_are_counted_and_never_wrong_answers(config: Config, tmp_path: Path) -> None:
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"max_failed_share": 0.9})})
    folder = curate(lenient, tmp_path, Scripted(refuses="behind"))
    manifest = json.loads((folder / "manifest.json").read_text())
    failed = manifest["counts"]["rollouts/failed"]
    assert failed > 0
    assert f"{failed} samples could not be rolled out" in (folder / "report.md").read_text()
    assert not any("behind" in s.question for s in samples(folder / "rl.jsonl"))


def test_missing_data_names_the_command_that_writes_it(config: Config, tmp_path: Path) -> None:
    empty = config.model_copy(update={"data": config.data.model_copy(update={"root": str(tmp_path / "none")})})
    with pytest.raises(UserError, match=r"no annotation files of sat .*`make world PRESET=smoke`"):
        curate(empty, tmp_path, Scripted())
    real = empty.model_copy(update={"world": None})
    with pytest.raises(UserError, match=r"`make data-download PRESET=smoke` downloads array/SAT"):
        curate(real, tmp_path, Scripted())


def test_a_data_set_without_usable_records_names_the_reasons(config: Config, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(config.data.root, root)
    shutil.rmtree(root / "train" / "VGR" / "llava_next_raw_format")
    (root / recorded.LIST).unlink()  # as a real data set, of which there is no list
    broken = config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})
    with pytest.raises(UserError, match=r"none of the \d+ records of vgr in .* is usable: missing_image \d+"):
        curate(broken, tmp_path / "runs", Scripted())


def test_a_moved_data_root_is_the_same_data(config: Config, tmp_path: Path) -> None:
    """Its path is no part of the experiment; rows whose images are gone say which link is missing."""
    first, second, runs = tmp_path / "first", tmp_path / "second", tmp_path / "runs"
    shutil.copytree(config.data.root, first)

    def at(root: Path) -> Config:
        return config.model_copy(update={"data": config.data.model_copy(update={"root": str(root)})})

    folder = curate(at(first), runs, Scripted())
    before = {name: (folder / name).read_bytes() for name in ("seed.jsonl", "rl.jsonl", "difficulty.jsonl")}
    first.rename(second)
    again = Scripted()
    with pytest.raises(UserError, match=rf"ln -s {second} {first}") as error:
        curate(at(second), runs, again)
    assert "pool" in str(error.value) or "seed.jsonl" in str(error.value)
    first.symlink_to(second)
    for root in (second, first, tmp_path / "runs" / ".." / "second"):
        assert curate(at(root), runs, again) == folder
    assert not again.requests and {name: (folder / name).read_bytes() for name in before} == before
    (folder / "done").unlink()  # unfinished work goes on too
    curate(at(second), runs, again)
    assert not again.requests and {name: (folder / name).read_bytes() for name in before} == before
    with _annotation_files(second)[0].open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match="another experiment"):
        curate(
            at(second).model_copy(update={"changed": config.changed.model_copy(update={"finished": "refuse"})}),
            runs,
            again,
        )


@pytest.mark.parametrize("left", ["nothing", "a folder", "a link"])
def test_the_printed_link_makes_the_images_exist(left: str, tmp_path: Path) -> None:
    """Also with a blank in a path, and where a folder without the images or a link to nowhere lies at the old place."""
    old, new, stage = tmp_path / "old place", tmp_path / "new $place", tmp_path / "data"
    image = Path("train") / "a.png"
    (new / "train").mkdir(parents=True)
    (new / image).touch()
    stage.mkdir()
    (stage / "rl.jsonl").write_text(json.dumps({"images": [str(old / image)]}) + "\n")
    if left == "a folder":
        old.mkdir()
    elif left == "a link":
        old.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link its old place") as error:
        moved.check_images(stage, new)
    command = str(error.value).partition("to the new one: ")[2].partition(", or move ")[0]
    subprocess.run(["bash", "-c", command], check=True)
    moved.check_images(stage, new)
    assert (old / image).is_file()


def _annotation_files(root: Path) -> list[Path]:
    return sorted((root / "train").rglob("*.json*"))


def test_the_trivial_share_is_kept_by_hash() -> None:
    ids = [f"sat/train/{n}" for n in range(4000)]
    share = sum(is_kept(1.0, i, 0.10, 0) for i in ids) / len(ids)
    assert 0.08 < share < 0.12
    assert share == sum(is_kept(0.0, i, 0.10, 0) for i in ids) / len(ids)
    assert [is_kept(1.0, i, 0.10, 1) for i in ids] != [is_kept(1.0, i, 0.10, 0) for i in ids]
    assert all(is_kept(mean, ids[0], 0.0, 0) for mean in (0.25, 0.5, 0.75))
    assert order(0, ids) != order(1, ids) and sorted(order(0, ids)) == list(range(4000))


def test_the_histogram_is_per_source_and_for_all() -> None:
    means = {"sat/train/0": 0.0, "sat/train/1": 0.25, "vgr/shortcot/0": 0.25}
    assert histogram(means) == {"all": {"0.00": 1, "0.25": 2}, "sat": {"0.00": 1, "0.25": 1}, "vgr": {"0.25": 1}}
