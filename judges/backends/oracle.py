"""The exact truth of the miniature world as a judge, without a model or a prompt. Used by the demo and to check model judges.

Each task brings its own oracle function. Scenes are looked up in <data root>/scenes.jsonl by the pixels of an image, because
the genuine data formats carry no scene. What is not of the miniature world is a failed verdict, never a guess; so is every
item of a task without an oracle function.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fgrpo import schema
from fgrpo.types import Verdict
from judges.base import Backend, JudgeSet, Meter, failed_verdict
from judges.task import Item, JudgeTask, NoAnswer
from miniworld.scene import Scene
from miniworld.truth import TruthBook

NAME = "oracle"


class SceneTruth:
    """The scenes below a data root, read when the first one is looked up. See `judges.task.Truth`."""

    def __init__(self, data_root: Path) -> None:
        self._data_root = data_root

    @cached_property
    def _book(self) -> TruthBook:
        return TruthBook.load(self._data_root)

    def scenes(self, images: Sequence[str]) -> tuple[Scene, ...]:
        """The scenes of the images at these paths, in order.

        Raises:
            NoAnswer: an image cannot be read, or is not of the miniature world.
            UserError: the data root holds no scenes.jsonl, or a broken one.
        """
        try:
            scenes = self._book.scenes(images)
        except OSError as error:
            raise NoAnswer(f"an image cannot be read: {error}") from error
        if scenes is None:
            raise NoAnswer("an image is not of the miniature world")
        return scenes


class OracleJudge:
    """See `judges.base.Answerer`."""

    def __init__(self, meter: Meter, data_root: Path) -> None:
        self._meter, self._truth = meter, SceneTruth(data_root)

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """The oracle function's labels for each item."""
        return [self._verdicts(task, item) for item in items]

    def _verdicts(self, task: JudgeTask[Item], item: Item) -> tuple[Verdict, ...]:
        self._meter.calls += 1
        size = task.size(item)
        try:
            if task.oracle is None:
                raise NoAnswer(f"the oracle has no answer for task {task.name!r}")
            labels = task.oracle(item, self._truth)
        except NoAnswer as error:
            self._meter.fail(str(error))
            return (failed_verdict(str(error), NAME),) * size
        if len(labels) != size:
            raise ValueError(f"the oracle of task {task.name!r} gave {len(labels)} labels for {size} verdicts")
        return tuple(Verdict(label, reason, judge=NAME) for label, reason in labels)


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = Meter()
    return JudgeSet(OracleJudge(meter, data_root), NAME, meter=meter)


BACKEND: Backend = _build
