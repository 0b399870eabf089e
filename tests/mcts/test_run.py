"""The stage: records, order, resume after a kill, torn lines, failing trees, escaping in the viewer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_jsonl, write_jsonl
from fgrpo.inference.base import Completion, Request
from fgrpo.response import parse
from fgrpo.schema import Config
from fgrpo.types import Sample, Trace
from mcts.linearize import linearize
from mcts.run import OUTPUTS, distil
from mcts.tree import Tree
from tests.mcts.scripted import ScriptedEngine

CONFIG = load("smoke", overrides=["mcts.trees_in_flight=5"])


def seeded(root: Path, count: int, config: Config = CONFIG) -> Path:
    """A runs folder in which the data stage has written `count` seed questions."""
    image_file = root / "picture.png"
    image_file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (112, 112), "white").save(image_file)
    folder = root / "runs" / config.preset / "data"
    folder.mkdir(parents=True)
    write_jsonl(
        folder / "seed.jsonl",
        (
            Sample(
                f"sat/train/{i}", (str(image_file),), f"Left or right, <b>{i}</b>?", ("left", "right"), "left"
            ).to_dict()
            for i in range(count)
        ),
    )
    return root / "runs"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def test_the_stage_writes_trees_traces_and_records_in_the_order_of_the_seeds(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    folder = distil(CONFIG, seeded(tmp_path, 12), engine)
    trees = [Tree.from_dict(item) for item in read_jsonl(folder / "trees.jsonl")]
    assert [tree.id for tree in trees] == [f"sat/train/{i}" for i in range(12)]
    traces = [Trace.from_dict(item) for item in read_jsonl(folder / "traces.jsonl")]
    assert traces == [trace for tree in trees for trace in linearize(tree)]
    assert {trace.kind for trace in traces} == {"direct", "corrected"}
    records = list(read_jsonl(folder / "sft.jsonl"))
    assert [r["id"] for r in records] == [t.id for t in traces] and len({r["id"] for r in records}) == len(records)
    assert records[0] == {
        "id": "sat/train/0/direct-0",
        "sample_id": "sat/train/0",
        "kind": "direct",
        "messages": [
            {"role": "user", "content": "Left or right, <b>0</b>?"},
            {"role": "assistant", "content": traces[0].text},
        ],
        "images": [str(tmp_path / "picture.png")],
    }
    assert all(parse(t.text).well_formed and parse(t.text).answer == "left" for t in traces)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["accepted"] == len(traces) and manifest["counts"]["trees"] == 12
    assert manifest["counts"]["requests"] == len(engine.requests)
    assert manifest["counts"]["completions"] == sum(request.n for request in engine.requests)
    assert all(request.prefix.startswith("<think>") for request in engine.requests)
    assert distil(CONFIG, tmp_path / "runs", engine) == folder  # done: no further request
    assert manifest["counts"]["requests"] == len(engine.requests)


def test_the_user_turn_of_a_record_is_the_reasoning_prompt_not_the_teachers(tmp_path: Path) -> None:
    overrides = ["prompts.think=think", "prompts.teacher=teacher", "policy.box_frame=thousand", "policy.box_tag=box"]
    config = load("smoke", overrides=overrides)
    engine = ScriptedEngine()
    folder = distil(config, seeded(tmp_path, 2), engine)
    record = next(iter(read_jsonl(folder / "sft.jsonl")))
    assert "Start with large regions" in record["messages"][0]["content"]
    assert "(A) left" in record["messages"][0]["content"]
    assert all("Work this out one step at a time" in request.text for request in engine.requests)
    for text in (record["messages"][0]["content"], *(request.text for request in engine.requests)):
        assert "<box>[x1,y1,x2,y2]</box> in coordinates from 0 to 1000" in text, "the policy's form and frame"


def test_files_do_not_depend_on_how_many_trees_are_in_flight(tmp_path: Path) -> None:
    one = distil(load("smoke", overrides=["mcts.trees_in_flight=1"]), seeded(tmp_path / "a", 6), ScriptedEngine())
    many = distil(load("smoke", overrides=["mcts.trees_in_flight=6"]), seeded(tmp_path / "b", 6), ScriptedEngine())
    for name in ("trees.jsonl", "traces.jsonl"):
        assert (one / name).read_bytes().replace(b"/a/", b"/b/") == (many / name).read_bytes()


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.mcts.test_run import CONFIG, ScriptedEngine
from mcts.run import distil

class Slow(ScriptedEngine):
    async def sample(self, request):
        await asyncio.sleep(0.01)
        return await super().sample(request)

distil(CONFIG, Path(sys.argv[1]), Slow())
"""


def test_a_killed_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    undisturbed = contents(distil(CONFIG, seeded(tmp_path, 16), ScriptedEngine()))
    runs = tmp_path / "runs"
    mcts = runs / "smoke" / "mcts"
    subprocess.run(["rm", "-r", str(mcts)], check=True)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(runs)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not ((mcts / "trees.jsonl").exists() and read_ids(mcts / "trees.jsonl")):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = read_ids(mcts / "trees.jsonl")
    assert 0 < len(before) < 16 and not (mcts / "done").exists()
    engine = ScriptedEngine()
    assert contents(distil(CONFIG, runs, engine)) == undisturbed
    questions = {request.text for request in engine.requests}
    assert len(questions) == 16 - len(before)  # finished trees are not grown again


def test_a_torn_line_is_dropped_and_its_tree_is_grown_again(tmp_path: Path) -> None:
    folder = distil(CONFIG, seeded(tmp_path, 4), ScriptedEngine())
    undisturbed = contents(folder)
    (folder / "done").unlink()
    data = undisturbed["trees.jsonl"]
    (folder / "trees.jsonl").write_bytes(data[: len(data) - 40])
    assert contents(distil(CONFIG, tmp_path / "runs", ScriptedEngine())) == undisturbed


def bad_question(number: int) -> ScriptedEngine:
    def fails(request: Request) -> bool:
        return f"<b>{number}</b>" in request.text

    return ScriptedEngine(fails)


def test_a_failed_question_is_counted_with_its_reason_and_retried(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 8)
    folder = distil(CONFIG, runs, bad_question(3))
    (failed,) = read_jsonl(folder / "failed.jsonl")
    assert failed["id"] == "sat/train/3" and "3 step" in failed["reason"]
    assert failed["requests"] == 3 and failed["tokens"] == failed["completions"] == 0  # its usage
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["failed_trees"] == 1 and counts["failed_trees/requests"] == 3
    assert "sat/train/3: no usable first step" in (folder / "report.md").read_text()
    (folder / "done").unlink()
    again = distil(CONFIG, runs, ScriptedEngine())
    undisturbed = distil(CONFIG, seeded(tmp_path / "other", 8), ScriptedEngine())
    assert (again / "failed.jsonl").read_bytes() == b""
    assert (again / "traces.jsonl").read_bytes() == (undisturbed / "traces.jsonl").read_bytes()


def test_an_endpoint_that_is_down_stops_the_stage_and_keeps_finished_trees(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 12)
    engine = ScriptedEngine(lambda request: len(engine.requests) > 150)
    with pytest.raises(UserError, match=r"of 12 trees failed.*rerun to resume"):
        distil(CONFIG, runs, engine)
    finished = read_ids(runs / "smoke" / "mcts" / "trees.jsonl")
    assert 0 < len(finished) < 12 and not (runs / "smoke" / "mcts" / "done").exists()
    folder = distil(CONFIG, runs, ScriptedEngine())
    assert len(read_ids(folder / "trees.jsonl")) == 12


def test_a_teacher_that_is_never_right_is_an_error(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 2)
    path = runs / "smoke" / "data" / "seed.jsonl"
    write_jsonl(path, [{**item, "answer": "neither", "choices": []} for item in list(read_jsonl(path))])
    with pytest.raises(UserError, match="no correct chain in 2 trees"):
        distil(CONFIG, runs, ScriptedEngine())


def test_missing_or_empty_seeds_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make data"):
        distil(CONFIG, tmp_path, ScriptedEngine())
    with pytest.raises(UserError, match="contains no questions"):
        distil(CONFIG, seeded(tmp_path, 0), ScriptedEngine())


def test_concurrent_searches_are_limited_to_trees_in_flight(tmp_path: Path) -> None:
    alive: list[str] = []
    most = 0

    class Counting(ScriptedEngine):
        async def sample(self, request: Request) -> Sequence[Completion]:
            nonlocal most
            alive.append(request.text)
            most = max(most, len(set(alive)))
            try:
                await asyncio.sleep(0)
                return await super().sample(request)
            finally:
                alive.remove(request.text)

    distil(CONFIG, seeded(tmp_path, 30), Counting())
    assert most == CONFIG.mcts.trees_in_flight


def test_the_viewer_escapes_text_of_data_and_models(tmp_path: Path) -> None:
    page = (distil(CONFIG, seeded(tmp_path, 3), ScriptedEngine()) / "viewer.html").read_text()
    assert "<b>0</b>" not in page and "&lt;b&gt;0&lt;/b&gt;" in page
    assert "&lt;think&gt;" in page and page.count("data:image/png;base64,") == 3
    assert "<rect" in page and "<script" not in page


def test_the_viewer_draws_in_the_pixels_that_the_teacher_sees(tmp_path: Path) -> None:
    """The images have 112 x 112 pixels; a processor of at most 56 x 56 shows them to the teacher in that size."""
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    (teacher / "processor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 56 * 56}))
    config = load("smoke", overrides=["mcts.trees_in_flight=5", f"models.teacher={teacher}"])
    for of_run, side in ((config, 56), (CONFIG, 112)):
        folder = distil(of_run, seeded(tmp_path / str(side), 1, of_run), ScriptedEngine())
        assert f'viewBox="0 0 {side} {side}"' in (folder / "viewer.html").read_text()
