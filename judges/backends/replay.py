"""Recorded verdicts as a judge: `record(judges, file)` writes them, the backend `replay` (model = that file) answers from them.

For tests and for scoring again without an endpoint. Verdicts are found by the content of what was asked, not by its id; what
was never recorded is a failed verdict.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_jsonl
from fgrpo.types import Verdict
from judges.base import (
    Backend,
    ConsistencyItem,
    ExtractionItem,
    GroundingItem,
    Judge,
    JudgeSet,
    Meter,
    failed_verdict,
)

AnyItem = TypeVar("AnyItem", ConsistencyItem, GroundingItem, ExtractionItem)
Book = dict[str, tuple[Verdict, ...]]
NOT_RECORDED = "not recorded"


def item_key(item: ConsistencyItem | GroundingItem | ExtractionItem) -> str:
    """sha256 of what an item asks: its kind and fields but for the id, with the contents of pictures in place of paths."""
    fields: dict[str, Any] = dataclasses.asdict(item)
    fields.pop("id")
    fields["images"] = [_picture_key(path) for path in fields.get("images", ())]
    text = json.dumps([type(item).__name__, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _picture_key(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return path  # it cannot be read now, so nothing else is known of it


def read(path: str | Path) -> Book:
    """The verdicts of a file by key. Raises UserError if the file is missing or broken."""
    try:
        return {row["id"]: tuple(Verdict.from_dict(v) for v in row["verdicts"]) for row in read_jsonl(path)}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds a line that is no recorded verdict ({error!r}); record it again") from error


class _Recorder(Generic[AnyItem]):
    def __init__(self, judge: Judge[AnyItem, Any], out: Appender) -> None:
        self._judge: Judge[AnyItem, Any] = judge
        self._out = out

    async def judge(self, items: Sequence[AnyItem]) -> list[Any]:
        results = await self._judge.judge(items)
        for item, result in zip(items, results, strict=True):
            verdicts = result if isinstance(result, tuple) else (result,)
            key = item_key(item)
            if key not in self._out and not any(v.failed for v in verdicts):
                self._out.add({"id": key, "verdicts": [v.to_dict() for v in verdicts]})
        return results


def record(judges: JudgeSet, path: str | Path) -> JudgeSet:
    """`judges`, with every usable verdict also written to `path` (one process at a time); failures are not recorded."""
    out = Appender(path)

    async def close() -> None:
        out.close()
        await judges.close()

    return dataclasses.replace(
        judges,
        consistency=_Recorder(judges.consistency, out),
        grounding=_Recorder(judges.grounding, out),
        extraction=_Recorder(judges.extraction, out),
        close=close,
    )


class _Single(Generic[AnyItem]):
    def __init__(self, book: Book, meter: Meter) -> None:
        self._book, self._meter = book, meter

    async def judge(self, items: Sequence[AnyItem]) -> list[Verdict]:
        return [_look_up(self._book, self._meter, item, 1)[0] for item in items]


class _Grounding:
    def __init__(self, book: Book, meter: Meter) -> None:
        self._book, self._meter = book, meter

    async def judge(self, items: Sequence[GroundingItem]) -> list[tuple[Verdict, ...]]:
        return [_look_up(self._book, self._meter, item, len(item.sentences)) for item in items]


def _look_up(book: Book, meter: Meter, item: Any, size: int) -> tuple[Verdict, ...]:
    meter.calls += 1
    found = book.get(item_key(item))
    if found is None or len(found) != size:
        meter.fail(NOT_RECORDED)
        return (failed_verdict(NOT_RECORDED, "replay"),) * size
    return found


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    book, meter = read(config.model), Meter()
    consistency: _Single[ConsistencyItem] = _Single(book, meter)
    extraction: _Single[ExtractionItem] = _Single(book, meter)
    return JudgeSet(consistency, _Grounding(book, meter), extraction, "replay", meter=meter)


BACKEND: Backend = _build
