"""Damaged files, bad teachers, kills at critical moments, two processes: a clear error or a counted drop, never a silent loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.base import Completion, Request
from fgrpo.inference.openai_engine import OpenAISampler
from mcts.run import OUTPUTS, distil
from perf.endpoint import MODEL, Endpoint
from tests.mcts.scripted import ScriptedEngine
from tests.mcts.test_run import CONFIG, contents, seeded


def damage(item: dict[str, Any], **changes: Any) -> dict[str, Any]:
    out = {**item, **changes}
    return {key: value for key, value in out.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": ...}, r"question 2 \(sat/train/1\) is not a valid sample \(KeyError\('answer'\)\)"),
        ({"id": ...}, r"question 2 \(without id\) is not a valid sample"),
        ({"images": None}, r"is not a valid sample \(TypeError"),
        ({"boxes": [{"xyxy": [1, 2, 3], "frame": "original"}]}, r"is not a valid sample \(ValueError"),
        ({"question": 7}, r"is not a valid sample \(AttributeError"),
        ({"question": " "}, "has no question"),
        ({"answer": "up"}, "not among its options"),
        ({"id": "sat/train/0"}, "occurs twice"),
    ],
)
def test_a_damaged_seed_question_is_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    runs = seeded(tmp_path, 3)
    path = runs / "smoke" / "data" / "seed.jsonl"
    items = list(read_jsonl(path))
    write_jsonl(path, [items[0], damage(items[1], **changes), items[2]])
    with pytest.raises(UserError, match=reason) as failed:
        distil(CONFIG, runs, ScriptedEngine())
    assert "Fix that line, or delete" in str(failed.value) and "rerun `make data`" in str(failed.value)


def test_a_damaged_tree_is_named(tmp_path: Path) -> None:
    folder = distil(CONFIG, seeded(tmp_path, 3), ScriptedEngine())
    (folder / "done").unlink()
    trees = list(read_jsonl(folder / "trees.jsonl"))
    del trees[1]["root"]["outcomes"]
    write_jsonl(folder / "trees.jsonl", trees)
    with pytest.raises(UserError, match=r"tree 'sat/train/1' is damaged.*Delete its line"):
        distil(CONFIG, tmp_path / "runs", ScriptedEngine())


class BadTeacher:
    """An engine whose replies are `reply_of(request, index)`."""

    def __init__(self, reply_of: Callable[[Request, int], tuple[str, Literal["stop", "length"]]]) -> None:
        self._reply_of = reply_of

    async def sample(self, request: Request) -> Sequence[Completion]:
        texts = [self._reply_of(request, i) for i in range(request.n)]
        return [Completion(text, finish, (0,) * 5, (-0.5,) * 5) for text, finish in texts]

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("reply_of", "reason"),
    [
        (lambda request, i: ("and on and on", "length"), "no usable first step: 9 unended"),
        (lambda request, i: ("see <|image_pad|><|image_pad|>\n", "stop"), "no usable first step: 9 special token"),
        (lambda request, i: ("\n", "stop"), "no usable first step: 9 blank"),
    ],
    ids=["never ends a step", "emits image tokens", "says nothing"],
)
def test_a_teacher_without_a_usable_step_stops_the_stage_with_the_reason(
    tmp_path: Path, reply_of: Any, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        distil(CONFIG, seeded(tmp_path, 4), BadTeacher(reply_of))


def test_a_teacher_that_repeats_itself_stops_the_stage_with_the_reason(tmp_path: Path) -> None:
    def reply_of(request: Request, index: int) -> tuple[str, Literal["stop", "length"]]:
        return ("The same line.\n" * (1 if "\n" in request.stop else 30), "stop" if "\n" in request.stop else "length")

    runs = seeded(tmp_path, 4)
    with pytest.raises(UserError, match="no correct chain in 4 trees"):
        distil(CONFIG, runs, BadTeacher(reply_of))
    report = (runs / "smoke" / "mcts" / "report.md").read_text()
    assert "| duplicate |" in report and "| repeated_text |" in report and "| unended |" in report
    tree = next(iter(read_jsonl(runs / "smoke" / "mcts" / "trees.jsonl")))
    assert [child["step"] for child in tree["root"]["children"]] == ["The same line."]
    assert tree["root"]["children"][0]["closed"]


def test_occasional_teacher_errors_are_counted_and_never_reach_a_trace(tmp_path: Path) -> None:
    good = ScriptedEngine()

    class Sloppy(BadTeacher):
        async def sample(self, request: Request) -> Sequence[Completion]:
            replies = list(await good.sample(request))
            bad = {0: Completion("a <|vision_start|> token\n", "stop"), 1: Completion("on and on", "length")}
            chosen = (request.seed or 0) % 4  # of the first two replies, in every other request
            return [bad[i] if i == chosen and i in bad else reply for i, reply in enumerate(replies)]

    folder = distil(CONFIG, seeded(tmp_path, 8), Sloppy(lambda request, i: ("", "stop")))
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts["rejected/special_token"] > 0 and counts["rejected/unended"] > 0 and counts["trees"] == 8
    for name in ("traces.jsonl", "sft.jsonl"):
        text = (folder / name).read_text()
        assert text and "<|" not in text and "on and on" not in text


SLOW = """
import asyncio, sys
from pathlib import Path
from tests.mcts.test_run import CONFIG, ScriptedEngine
from mcts.run import distil

class Waiting(ScriptedEngine):
    async def sample(self, request):
        print("asked", flush=True)
        await asyncio.sleep(600)

distil(CONFIG, Path(sys.argv[1]), Waiting())
"""


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 2)
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(runs)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline().strip() == "asked"
        with pytest.raises(UserError, match=r"another process is working on .*smoke.mcts; wait for it"):
            distil(CONFIG, runs, ScriptedEngine())
    finally:
        first.kill()
        first.wait()
    assert (distil(CONFIG, runs, ScriptedEngine()) / "done").exists()  # the lock was released with its process


class Killed(BaseException):
    """Represents a kill: no handler catches it."""


def test_a_kill_at_any_final_rename_leaves_a_run_that_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = seeded(tmp_path, 5)
    folder = runs / "smoke" / "mcts"
    whole = contents(distil(CONFIG, runs, ScriptedEngine()))
    real, kills = os.replace, 0
    for which in range(len(OUTPUTS)):
        (folder / "done").unlink()
        for name in OUTPUTS[1:]:
            (folder / name).unlink(missing_ok=True)
        seen = 0

        def dies(source: Any, target: Any, which: int = which) -> None:
            nonlocal seen
            if Path(target).name in OUTPUTS:
                seen += 1
                if seen > which:
                    raise Killed
            real(source, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", dies)
            distil(CONFIG, runs, ScriptedEngine())
        kills += 1
        engine = ScriptedEngine()
        assert contents(distil(CONFIG, runs, engine)) == whole
        assert not engine.requests
    assert kills == len(OUTPUTS) == 6


def test_the_manifest_and_the_progress_bar_show_usage_and_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priced = CONFIG.model_copy(
        update={"engine": CONFIG.engine.model_copy(update={"prompt_price": 1.0, "completion_price": 2.0})}
    )
    with Endpoint(4, 0.0) as endpoint:
        folder = distil(priced, seeded(tmp_path, 4), OpenAISampler([endpoint.url], MODEL, forbidden=()))
    over_http = capsys.readouterr().err.rsplit("4/4", 1)[1]  # the bar as it stays
    manifest = json.loads((folder / "manifest.json").read_text())
    counts = manifest["counts"]
    names = ("requests", "completions", "tokens", "read_tokens")
    assert manifest["per_tree"] == {name: round(counts[name] / 4, 2) for name in names}
    assert manifest["cost"] == pytest.approx(1e-6 * counts["read_tokens"] + 2e-6 * counts["tokens"])
    silent = distil(
        priced, seeded(tmp_path / "silent", 4), ScriptedEngine()
    )  # an engine that does not say what it read
    silent_manifest = json.loads((silent / "manifest.json").read_text())
    assert silent_manifest["cost"] is None and silent_manifest["per_tree"]["read_tokens"] is None
    in_process = capsys.readouterr().err.rsplit("4/4", 1)[1]
    for bar, stage in ((over_http, manifest), (in_process, silent_manifest)):
        assert f"{stage['counts']['requests']:,} calls, {stage['counts']['accepted']:,} chains, " in bar
    assert "tokens, 0.0" in over_http and "completion tokens, cost unknown, 0 failed" in in_process
    report = (folder / "report.md").read_text()
    assert f"{counts['requests'] / 4:.1f} requests" in report and "of the trees' steps name a region" in report


def test_the_cost_of_failed_trees_is_in_the_manifest(tmp_path: Path) -> None:
    priced = CONFIG.model_copy(
        update={"engine": CONFIG.engine.model_copy(update={"prompt_price": 0.0, "completion_price": 1e6})}
    )
    good = ScriptedEngine()

    class Endless(BadTeacher):
        async def sample(self, request: Request) -> Sequence[Completion]:
            read = [replace(reply, prompt_tokens=1) for reply in await good.sample(request)]
            return (
                [Completion("on and on", "length", (0,) * 5, (-0.5,) * 5)] * request.n
                if "<b>2</b>" in request.text
                else read
            )

    folder = distil(priced, seeded(tmp_path, 8), Endless(lambda request, i: ("", "stop")))
    (failed,) = read_jsonl(folder / "failed.jsonl")
    assert (failed["id"], failed["requests"], failed["completions"], failed["tokens"]) == ("sat/train/2", 3, 9, 45)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["failed_trees/tokens"] == 45
    assert manifest["cost"] == manifest["counts"]["tokens"] + 45
    assert manifest["per_tree"]["tokens"] == round(manifest["counts"]["tokens"] / 7, 2)  # of the trees that there are


def test_a_price_or_the_number_of_trees_in_flight_does_not_change_the_run_identity(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 3)
    folder = distil(CONFIG, runs, ScriptedEngine())
    before = (folder / "manifest.json").read_bytes()
    engine = CONFIG.engine.model_copy(update={"completion_price": 9.0})
    mcts = CONFIG.mcts.model_copy(update={"trees_in_flight": 2})
    assert distil(CONFIG.model_copy(update={"engine": engine, "mcts": mcts}), runs, ScriptedEngine()) == folder
    assert (folder / "manifest.json").read_bytes() == before
