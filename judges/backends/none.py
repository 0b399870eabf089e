"""No judge: accuracy by rules, and every reward that asks no judge (`make eval JUDGES=none`).

Evaluation asks `JudgeSet.answers` first and leaves judged metrics unscored. A reward that asks a judge all the same, as in
training, ends the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.types import Verdict
from judges.base import Backend, JudgeSet
from judges.task import Item, JudgeTask


class _NoJudge:
    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """See `judges.base.Answerer`. UserError: there is no judge."""
        raise UserError(
            f"{task.name} needs a judge, but the configured backend is none; set judges.<role>.backend (judges/README.md)"
        )


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    return JudgeSet(_NoJudge(), "none", is_none=True)


BACKEND: Backend = _build
