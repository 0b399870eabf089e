"""Evaluation and its endpoints: what may pass is requested again, damaged records heal, verdicts are written as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from eval import miniworld_truth, rescore, run, score
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.inference.base import Completion, NoText, Request, SamplingError
from fgrpo.pending import COUNT, pending
from fgrpo.runs import held
from fgrpo.schema import Config

FILES = ("generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")


class Moody(Scripted):
    """Fails the first `failures` requests with `error`."""

    failures, error = 0, NoText

    async def sample(self, request: Request) -> Sequence[Completion]:
        if self.failures > 0:
            self.failures -= 1
            self.asked.append(request)
            raise self.error("the message has no text")
        return await super().sample(request)


def moody(world: Config, failures: int = 0, error: type[SamplingError] = NoText) -> Moody:
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    engine = Moody(book)
    engine.failures, engine.error = failures, error
    return engine


def evaluate(world: Config, root: Path, engine: Moody) -> dict[str, bytes]:
    folder = run.evaluate(world, "backbone-cot", ["mmvp"], root, engine)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_transient_refusal_is_requested_again_by_the_same_command(
    world: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate(world, tmp_path / "plain", moody(world))
    root = tmp_path / "odd"
    first = evaluate(world, root, moody(world, 1))
    folder = root / world.preset / "eval/backbone-cot"
    assert (folder / "done").exists() and pending(folder) == 1 and first != plain
    assert "1 of 8 requests have no answer (1 for reasons that may pass)" in capsys.readouterr().out
    scores = [row["scores"]["accuracy"] for row in read_jsonl(folder / "scores.jsonl")]
    assert [row["failed"] for row in scores].count(True) == 1 and all(
        row["value"] is None for row in scores if row["failed"]
    )
    again = moody(world)
    assert evaluate(world, root, again) == plain and len(again.asked) == 1
    assert not pending(folder) and COUNT not in (folder / "manifest.json").read_text()
    never = moody(world)
    evaluate(world, root, never)
    assert not never.asked


def test_past_the_share_the_stage_is_not_done(world: Config, tmp_path: Path) -> None:
    plain = evaluate(world, tmp_path / "plain", moody(world))
    root = tmp_path / "odd"
    with pytest.raises(UserError, match=r"2 of 8 requests .* eval\.max_refused_share=0\.02 .* rerun to resume"):
        evaluate(world, root, moody(world, 2))
    assert not (root / world.preset / "eval/backbone-cot/done").exists()
    again = moody(world)
    assert evaluate(world, root, again) == plain and len(again.asked) == 2


def test_a_final_refusal_is_requested_again_only_when_told(world: Config, tmp_path: Path) -> None:
    evaluate(world, tmp_path, moody(world, 1, SamplingError))
    never = moody(world)
    evaluate(world, tmp_path, never)
    assert not never.asked


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}", "\x00"])
def test_a_damaged_manifest_heals(content: str, world: Config, tmp_path: Path) -> None:
    name = "manifest.json"
    plain = evaluate(world, tmp_path, moody(world))
    folder = tmp_path / world.preset / "eval/backbone-cot"
    (folder / name).write_text(content)
    again = moody(world)
    assert evaluate(world, tmp_path, again) == plain and not again.asked


def test_each_verdict_is_written_as_it_comes(world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar moves by one answer, and a record is on disk before the next answer is judged."""
    moved: list[int] = []
    written: list[int] = []
    path = tmp_path / world.preset / "eval/backbone-cot/scores.jsonl"
    plain = score.Scorer.score

    async def watched(self: score.Scorer, pairs: Any) -> Any:
        written.append(len(path.read_bytes().splitlines()) if path.exists() else 0)
        return await plain(self, pairs)

    def moving(*_: Any) -> Any:
        return moved.append

    monkeypatch.setattr(score, "IN_FLIGHT", 1)
    monkeypatch.setattr(score.Scorer, "score", watched)
    monkeypatch.setattr("fgrpo.progress.moving", moving)
    evaluate(world, tmp_path, moody(world))
    assert moved == [1] * 8 and written == list(range(8))


def test_two_rescoring_commands_do_not_pay_twice(world: Config, tmp_path: Path) -> None:
    evaluate(world, tmp_path, moody(world))
    folder = tmp_path / world.preset / "eval/backbone-cot"
    with (
        held(folder / "rescored" / "oracle"),
        pytest.raises(UserError, match=r"another process is working on .*rescored/oracle"),
    ):
        rescore.rescore(world, folder, "oracle")
    assert (rescore.rescore(world, folder, "oracle") / "summary.json").exists()


def test_an_error_while_scoring_cancels_the_rest(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: score.Scorer, pairs: Any) -> Any:
        await asyncio.sleep(0)
        raise UserError("the judge refuses the key")

    monkeypatch.setattr(score.Scorer, "score", broken)
    with pytest.raises(UserError, match="the judge refuses the key"):
        evaluate(world, tmp_path, moody(world))
