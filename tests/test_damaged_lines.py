"""Valid JSON of another shape in a file of a run: one error that names file and line, in every reader."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval import generate, score
from eval.judge_validation import stored
from eval.results import read_records
from fgrpo.errors import UserError
from fgrpo.files import read_items, read_jsonl
from fgrpo.training.metrics_file import MetricsFile
from fgrpo.types import EvalRecord, Rollout, Score
from mcts import store

ROLLOUT = Rollout("a", "s", "text").to_dict()
RECORD = EvalRecord("a", "mmvp", "m", "s", {"accuracy": Score.of(1.0)}).to_dict()


def without(item: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key != name}


def written(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def scored(path: Path) -> object:
    scorer: Any = None
    samples: Any = {"s": None}
    return asyncio.run(score.score_file(scorer, samples, path, path.parent))


READERS: dict[str, Callable[[Path], object]] = {
    "held": generate.held_ids,
    "transient": lambda path: generate.transient(path, []),
    "refusal": generate.first_refusal,
    "forget": generate.forget_refusals,
    "settle": lambda path: generate.settle(path, []),
    "score": scored,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "odd",
    [{"id": "a"}, without(ROLLOUT, "sample_id"), without(ROLLOUT, "text"), {**ROLLOUT, "id": 5}, {**ROLLOUT, "tokens": "x"}, {**ROLLOUT, "meta": 3}],
)  # fmt: skip
def test_an_answer_of_another_shape(tmp_path: Path, name: str, odd: dict[str, Any]) -> None:
    path = written(tmp_path / "generations.jsonl", {**ROLLOUT, "id": "b", "sample_id": "t", "finish": "stop"}, odd)
    if name == "refusal":
        path = written(path, odd)
    line = 1 if name == "refusal" else 2
    with pytest.raises(UserError, match=rf"generations\.jsonl, line {line} is no answer"):
        READERS[name](path)


def test_the_lines_of_good_answers_keep_their_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "generations.jsonl", {**ROLLOUT, "own": 1})
    before = path.read_bytes()
    assert generate.held_ids(path) == {"a"} and not generate.forget_refusals(path)
    generate.settle(path, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "odd",
    [{"id": "a"}, {**RECORD, "scores": []}, {**RECORD, "scores": {"accuracy": 1.0}}, {**RECORD, "scores": {"accuracy": {"value": "x"}}}, {**RECORD, "id": None}],
)  # fmt: skip
def test_a_record_of_another_shape(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = written(tmp_path / "scores.jsonl", RECORD, odd)
    written(tmp_path / "generations.jsonl", ROLLOUT)
    written(tmp_path / "questions.jsonl")
    for read in (
        read_records,
        lambda p: stored._evaluated(p.parent),
        lambda p: scored(p.with_name("generations.jsonl")),
    ):
        with pytest.raises(UserError, match=r"scores\.jsonl, line 2 is no record of scores"):
            read(path)


@pytest.mark.parametrize("odd", [{"step": "x"}, {"step": None}, {"step": 1.5}, {"step": 3, "not_finite": 7}])
def test_metrics_of_another_shape_are_restored(
    tmp_path: Path, odd: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "metrics.jsonl", {"step": 1}, odd, {"step": 3})
    MetricsFile(tmp_path, 3, [{"step": n} for n in (1, 2, 3)]).close()
    assert [line["step"] for line in read_jsonl(path)] == [1, 2, 3]
    assert "metrics.jsonl, line 2 is no line of metrics" in capsys.readouterr().err


@pytest.mark.parametrize(("line", "words"), [('{"id": "b", "x"', "line 2: tree 'b' is not JSON"), ('{"id": nope', "line 2 does not start with an id"), ('{"id": 5}', "line 2 does not start"), ("[]", "line 2 does not start")])  # fmt: skip
def test_a_tree_of_another_shape(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "trees.jsonl"
    path.write_text('{"id": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"trees\.jsonl, {words}"):
        list(store.read(path, ["b"]))
    with pytest.raises(UserError, match=rf"trees\.jsonl, {words}"):
        store.sort_by_ids(path, ["b"])


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"id": "a"}\n\n{"id": 7}\n')
    with pytest.raises(UserError, match="f, line 3 is no thing"):
        list(read_items(tmp_path / "f", lambda item: item["id"] + "", "thing"))
