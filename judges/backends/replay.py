"""Recorded verdicts as a judge: `record(judges, file)` writes them; the backend `replay` (model = that file) answers from them.

For tests, and for scoring again without an endpoint. Verdicts are looked up by the content of the item, not by its id. An
item that was never recorded is a failed verdict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_jsonl
from fgrpo.types import Verdict
from judges.base import Answerer, Backend, JudgeSet, Meter, failed_verdict
from judges.task import Item, JudgeTask

Recording = Mapping[str, tuple[Verdict, ...]]  # by `item_key`
NOT_RECORDED = "not recorded"


def item_key(task: JudgeTask[Item], item: Item) -> str:
    """sha256 of the task and the item's fields except the id, with the content of images in place of their paths."""
    fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}  # type: ignore[arg-type]  # a dataclass
    fields.pop("id")
    fields["images"] = [_image_key(path) for path in task.images(item)]
    digest = hashlib.sha256()
    for part in _JSON.iterencode([task.record_kind or task.name, fields]):  # the contexts of a long trace are not held
        digest.update(part.encode())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} in an item cannot be recorded; use plain values, sequences or dataclasses")


_JSON = json.JSONEncoder(sort_keys=True, default=_plain)


def _image_key(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return path  # unreadable now; its path is all that identifies it


def read(path: str | Path) -> Recording:
    """The verdicts of a file by key. Raises UserError if the file is missing or broken."""
    try:
        return {row["id"]: tuple(Verdict.from_dict(v) for v in row["verdicts"]) for row in read_jsonl(path)}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds a line that is no recorded verdict ({error!r}); record it again") from error


class Recorder:
    """Answers as another judge does, and appends every usable answer to a file. See `judges.base.Answerer`."""

    def __init__(self, answerer: Answerer, out: Appender) -> None:
        self._answerer, self._out = answerer, out

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """The other judge's verdicts."""
        answers = await self._answerer.answer(task, items)
        for item, verdicts in zip(items, answers, strict=True):
            key = item_key(task, item)
            if key not in self._out and not any(v.failed for v in verdicts):
                self._out.add({"id": key, "verdicts": [v.to_dict() for v in verdicts]})
        return answers


def record(judges: JudgeSet, path: str | Path) -> JudgeSet:
    """`judges`, with every usable verdict also appended to `path` (one process at a time). Failures are not recorded."""
    out = Appender(path)

    async def close() -> None:
        out.close()
        await judges.close()

    def recorded(one: JudgeSet) -> JudgeSet:
        delegates = {name: recorded(other) for name, other in one.delegates.items()}
        return dataclasses.replace(one, answerer=Recorder(one.answerer, out), delegates=delegates)

    return dataclasses.replace(recorded(judges), close=close)


class ReplayJudge:
    """See `judges.base.Answerer`."""

    def __init__(self, recording: Recording, meter: Meter) -> None:
        self._recording, self._meter = recording, meter

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """The recorded verdicts on each item."""
        return [self._verdicts(task, item) for item in items]

    def _verdicts(self, task: JudgeTask[Item], item: Item) -> tuple[Verdict, ...]:
        self._meter.calls += 1
        size = task.size(item)
        verdicts = self._recording.get(item_key(task, item))
        if verdicts is None or len(verdicts) != size:
            self._meter.fail(NOT_RECORDED)
            return (failed_verdict(NOT_RECORDED, "replay"),) * size
        return verdicts


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = Meter()
    return JudgeSet(ReplayJudge(read(config.model), meter), "replay", meter=meter)


BACKEND: Backend = _build
