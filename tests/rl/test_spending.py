"""A judge's cap reached in training: what was not asked is failed and never a zero, and the step stops before anything is trained."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgrpo.schema import Judge
from fgrpo.types import Sample
from judges.base import build
from rewards.base import RewardContext
from rl.failures import FailedJudgements, over_the_limit
from rl.scored_batch import ScoreColumn, gather
from rl.scoring import RolloutScorer
from rl.trainer import FaithfulGRPOTrainer
from tests.loopback import Replies, serving

ROLLOUTS, A_REPLY, CAP = 40, 500, 10_000


class Consistent(Replies):
    """Says CONSISTENT of everything, for `A_REPLY` tokens each."""

    def do_POST(self) -> None:
        self.body()
        usage = {"prompt_tokens": A_REPLY - 10, "completion_tokens": 10, "total_tokens": A_REPLY}
        self.verdict("CONSISTENT", usage=usage)


@pytest.fixture
def url() -> Iterator[str]:
    with serving(Consistent) as address:
        yield address


def test_a_cap_reached_in_a_step_stops_it(url: str, tmp_path: Path) -> None:
    judge = Judge(backend="openai", model="m", endpoints=(url,), max_completion_tokens=64, concurrency=2, token_cap=CAP)
    judges = build(judge, "unused", tmp_path)
    scorer = RolloutScorer(["consistency"], RewardContext(judges, mask="correct"))
    sample = json.dumps(Sample("sat/train/0", (), "Left or right?", ("left", "right"), "left").to_dict())
    texts = [f"<think>It stands on the left of {n}.</think><answer>left</answer>" for n in range(ROLLOUTS)]

    async def go() -> Any:
        place: Any = SimpleNamespace(
            state=SimpleNamespace(global_step=3),
            accelerator=SimpleNamespace(process_index=0),
            async_loop=asyncio.get_running_loop(),
            group_size=2,
            is_cut_off=lambda ids: False,
        )
        scorer.start([{"sample": sample}] * ROLLOUTS, texts, [[0]] * ROLLOUTS, place)
        columns = [await func(prompts=texts) for func in scorer.reward_funcs()]
        await judges.close()
        return columns

    task, consistency = asyncio.run(go())
    scored = CAP // A_REPLY - 4  # the last calls are reserved at a little more than they take
    assert task == [2.0] * ROLLOUTS
    assert set(consistency) == {1.0, None} and scored <= consistency.count(1.0) <= CAP // A_REPLY
    assert [reason is not None for reason in consistency.failures] == [value is None for value in consistency]
    assert judges.meter.prompt_tokens + judges.meter.completion_tokens <= CAP
    values = torch.tensor([[t, float("nan") if c is None else c] for t, c in zip(task, consistency, strict=True)])
    saved: list[str] = []
    trainer: Any = SimpleNamespace(
        max_failed_share=0.02, reward_func_names=scorer.names, state=SimpleNamespace(global_step=3),
        _save_where_possible=lambda: saved.append("checkpoint"),
    )  # fmt: skip
    with pytest.raises(
        FailedJudgements,
        match=r"step 4: \d+ of 40 judgements of 'consistency' failed.*the cap of 10,000 tokens for m is",
    ):
        FaithfulGRPOTrainer._stop_if_failed(
            trainer, gather(values, {"task": task, "consistency": consistency}, scorer.names, ROLLOUTS)
        )
    assert saved == ["checkpoint"]


@pytest.mark.parametrize(
    ("failed", "share", "named"),
    [
        ((1, 0), 0.02, None),  # 1 of 10: one is always allowed
        ((1, 0), 0.0, "1 of 10 judgements of 'one' failed .*: one broke"),  # unless none is
        ((2, 0), 0.02, "2 of 10 judgements of 'one' failed .*: one broke"),
        ((1, 5), 0.3, "5 of 10 judgements of 'two' failed .*: two broke"),  # 6 of 20 would be let through
        ((3, 3), 0.3, None),
    ],
)
def test_failures_are_counted_by_reward(failed: tuple[int, int], share: float, named: str | None) -> None:
    columns = {
        name: ScoreColumn([None] * n + [1.0] * (10 - n), [f"{name} broke"] * n + [None] * (10 - n))
        for name, n in (("one", failed[0]), ("two", failed[1]))
    }
    scores = torch.tensor([[1.0] * 10, *[[float("nan") if v is None else v for v in c] for c in columns.values()]]).T
    gathered = gather(scores, columns, ["task", "one", "two"], 10)
    assert gathered.failed_NK.sum(dim=0).tolist() == [0, *failed]
    wrong = over_the_limit(gathered, ["task", "one", "two"], share)
    assert (wrong is None) if named is None else (wrong is not None and re.match(named, wrong) is not None)


def test_a_failed_score_with_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"row 1 failed \(timeout\), so it must be None"):
        ScoreColumn([1.0, 0.0], [None, "timeout"])
    with pytest.raises(ValueError, match="2 scores, but 1 entries"):
        ScoreColumn([1.0, 0.0], ["timeout"])
