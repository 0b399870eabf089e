"""Hand-overs of one generation batch without a model: rollouts -> scorer -> columns -> failures, step and figures."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.response import parse
from fgrpo.types import Sample, Score
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem
from rl import train
from rl.advantage import combine, couple, shares
from rl.dual import Constraint, DualAscent
from rl.failures import over_the_limit
from rl.reward_validation import NoScore, guarded
from rl.scored_batch import Gathered, ScoreColumn, ScoredBatch, batch_metrics, gather, report_named
from rl.scoring import RolloutScorer
from rl.step import StepOptions, fgrpo_step
from rl.trainer import FaithfulGRPOTrainer

NAN = math.nan
NAMES = ("consistency", "spatial_grounding", "semantic_grounding")


# --- rollouts -> scorer ---------------------------------------------------------------------------------------------------


class Given:
    """A reward that returns what it is given, and keeps its items and context."""

    def __init__(self, name: str, scores: Callable[[Sequence[RewardItem]], Sequence[Score]]) -> None:
        self.name, self.scores, self.calls = name, scores, list[tuple[Any, Any]]()

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]:
        self.calls.append((tuple(items), context))
        return list(self.scores(items))


@pytest.fixture
def exchange(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Given]]:
    """Exchange rewards for given ones, by name."""

    def of(**scores: Callable[[Sequence[RewardItem]], Sequence[Score]]) -> dict[str, Given]:
        made = {name: Given(name, function) for name, function in scores.items()}
        for name, reward in made.items():
            monkeypatch.setattr(importlib.import_module(f"rewards.{name}"), "REWARD", reward)
        return made

    return of


def row(n: int) -> dict[str, Any]:
    sample = Sample(f"vgr/train/{n}", (), f"Question {n}?", ("left", "right"), "left")
    return {"sample": json.dumps(sample.to_dict())}


def context(**more: Any) -> RewardContext:
    return RewardContext(JudgeSet(None, "none"), mask="correct", **more)  # type: ignore[arg-type]


def stub(loop: Any, step: int = 7, rank: int = 2) -> Any:
    return SimpleNamespace(
        state=SimpleNamespace(global_step=step), accelerator=SimpleNamespace(process_index=rank), async_loop=loop,
        group_size=2, is_cut_off=lambda ids: ids[-1] != 2,
    )  # fmt: skip


def columns_of(scorer: RolloutScorer, rows: Sequence[Any], completions: Sequence[Any], prompts: Any = None) -> Any:
    """What the scorer's reward functions return, by name."""

    async def work() -> dict[str, Any]:
        ids = [[1] * (n + 3) for n in range(len(rows))]
        scorer.start(rows, completions, ids, stub(asyncio.get_running_loop()))
        given = rows if prompts is None else prompts
        return {func.__name__: await func(prompts=given) for func in scorer.reward_funcs()}

    return asyncio.run(work())


def numbered(base: float) -> Callable[[Sequence[RewardItem]], list[Score]]:
    return lambda items: [Score.of(base + n / 10) for n in range(len(items))]


def test_each_column_is_that_of_its_reward_with_the_rollouts_it_scores(exchange: Any) -> None:
    rewards = exchange(
        task=numbered(1.0),
        consistency=numbered(2.0),
        semantic_grounding=lambda items: [Score.failure("gone"), Score.not_applicable("x"), Score.of(0.5)],
        spatial_grounding=numbered(4.0),
    )
    scorer = RolloutScorer(
        ["semantic_grounding", "consistency"], context(), ["spatial_grounding", "consistency", "task"]
    )
    assert scorer.names == ("task", "semantic_grounding", "consistency") and scorer.monitored == ("spatial_grounding",)
    rows = [row(n) for n in range(3)]
    completions = [
        "<think>One.</think><answer>left</answer>",
        [{"role": "assistant", "content": "first turn"}, {"role": "assistant", "content": "<think>Two.</think>"}],
        [{"role": "assistant", "content": "<think>Three.</think>"}],
    ]
    columns = columns_of(scorer, rows, completions)
    assert list(columns) == list(scorer.names)
    assert columns["task"] == [1.0, 1.1, 1.2] and columns["consistency"] == [2.0, 2.1, 2.2]
    assert columns["semantic_grounding"] == [None, None, 0.5]
    assert columns["semantic_grounding"].failures == ("gone", None, None)
    assert columns["task"].failures == (None, None, None)
    batch = columns["task"].batch
    assert all(column.batch is batch for column in columns.values())
    assert (batch.step, batch.tokens, batch.monitored) == (7, (3, 4, 5), ("spatial_grounding",))
    assert batch.texts == ("<think>One.</think><answer>left</answer>", "<think>Two.</think>", "<think>Three.</think>")
    assert [i.rollout_id for i in batch.items] == [f"000007/2/{n:04d}/vgr/train/{n}" for n in range(3)]
    assert [(i.sample.question, i.response.think) for i in batch.items] == [
        ("Question 0?", "One."), ("Question 1?", "Two."), ("Question 2?", "Three."),
    ]  # fmt: skip
    assert [s.value for s in batch.scores["spatial_grounding"]] == [4.0, 4.1, 4.2]
    for reward in rewards.values():
        ((items, given),) = reward.calls  # each rollout is scored once, whatever the number of columns
        assert items == batch.items and given.mask == "correct"


def test_boxes_are_read_with_the_contexts_tag_and_frame(exchange: Any) -> None:
    exchange(task=numbered(0.0))
    scorer = RolloutScorer([], context(box_tag="box", box_frame="thousand"))
    text = "<think><box>[1,2,3,4]</box><bbox>[5,6,7,8]</bbox></think>"
    (item,) = columns_of(scorer, [row(0)], [text])["task"].batch.items
    assert [(list(box), box.frame) for box in item.response.boxes] == [([1, 2, 3, 4], "thousand")]


def test_a_scorer_that_cannot_fit_its_rollouts_stops(exchange: Any) -> None:
    exchange(task=numbered(0.0), consistency=lambda items: [Score.of(1.0)])
    scorer = RolloutScorer([], context())
    with pytest.raises(RuntimeError, match="scoring was not started"):
        asyncio.run(scorer.reward_funcs()[0](prompts=[1]))
    with pytest.raises(RuntimeError, match="2 rollouts were scored, but TRL has 3"):
        columns_of(scorer, [row(0), row(1)], ["a", "b"], prompts=[1, 2, 3])
    with pytest.raises(NoScore, match="the reward 'consistency' returned 1 scores for 2 rollouts"):
        columns_of(RolloutScorer(["consistency"], context()), [row(0), row(1)], ["a", "b"])
    with pytest.raises(ValueError, match="zip"):
        columns_of(scorer, [row(0), row(1)], ["a"])
    with pytest.raises(UserError, match="consistency"):
        RolloutScorer(["consistencyy"], context())


def test_a_score_that_is_not_finite_is_named_with_its_rollout(exchange: Any) -> None:
    def second_is_bad(items: Sequence[RewardItem]) -> list[Score]:
        return [Score.of(NAN if item.sample.id.endswith("/1") else 1.0) for item in items]

    exchange(task=numbered(0.0), consistency=second_is_bad)
    scorer = RolloutScorer(["consistency"], context())
    with pytest.raises(NoScore, match=r"the reward 'consistency' failed on rollout 000007/2/0001/vgr/train/1: "):
        columns_of(scorer, [row(n) for n in range(3)], ["a", "b", "c"])

    def together(items: Sequence[RewardItem]) -> list[Score]:
        return [Score.of(math.inf if len(items) > 1 else 1.0) for _ in items]

    exchange(consistency=together)
    with pytest.raises(NoScore, match=r"the reward 'consistency' failed: "):
        columns_of(RolloutScorer(["consistency"], context()), [row(0), row(1)], ["a", "b"])


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_a_reward_function_returns_is_noted_under_its_name(kind: str) -> None:
    column = ScoreColumn([1.0, None], [None, "gone"])

    def plain(**_: Any) -> Any:
        return column

    async def waited(**_: Any) -> Any:
        return column

    noted: dict[str, Any] = {}
    func = guarded(plain if kind == "plain" else waited, noted.__setitem__)
    got = func(prompts=[1, 2]) if kind == "plain" else asyncio.run(func(prompts=[1, 2]))
    assert got is column and noted == {"plain" if kind == "plain" else "waited": column}
    assert func.__name__ in noted
    assert guarded("a/model", noted.__setitem__) == "a/model"


# --- columns -> gathered -> failures --------------------------------------------------------------------------------------


def gathered(table: Mapping[str, Sequence[Any]]) -> Gathered:
    """Scores by reward; a text is the reason of a failure."""
    columns = {
        name: ScoreColumn([None if isinstance(v, str) else v for v in values], [v if isinstance(v, str) else None for v in values])
        for name, values in table.items()
    }  # fmt: skip
    scores = torch.tensor([[NAN if v is None else v for v in column] for column in columns.values()]).T
    return gather(scores, columns, list(table), len(scores))


def test_gathering_keeps_rows_columns_and_reasons() -> None:
    got = gathered({"task": [1.0, 2.0], "one": ["gone", None], "two": [0.5, "late"]})
    assert got.reasons_NK == ((None, "gone", None), (None, None, "late")) and got.batches == ()
    assert got.failed_NK.tolist() == [[False, True, False], [False, False, True]]
    assert got.failed_NK.shape == got.scores_NK.shape
    plain = gather(torch.ones(2, 2), {"task": [1.0, 1.0]}, ["task", "missing"], 2)  # a plain list, and none at all
    assert plain.reasons_NK == ((None, None), (None, None)) and not plain.failed_NK.any()


def test_the_limit_is_each_rewards_own() -> None:
    names = ["task", "one", "two"]
    tables = {
        "task": [1.0] * 6,
        "one": [None, None, "gone", "late", "late", 1.0],
        "two": [0.5, "gone", "gone", 0.5, 0.5, 0.5],
    }
    got = gathered(tables)
    assert over_the_limit(got, names, 1.0) is None and over_the_limit(got, names, 0.75) is None
    wrong = over_the_limit(got, names, 0.5)  # three of four is more than half; two of six is not
    assert wrong == "3 of 4 judgements of 'one' failed (allowed: 50.0%): late"
    assert "'one'" in str(over_the_limit(got, names, 0.1))  # the worst is named
    other = gathered({**tables, "one": [1.0] * 6})
    assert over_the_limit(other, names, 0.34) is None
    assert over_the_limit(other, names, 0.25) == "2 of 6 judgements of 'two' failed (allowed: 25.0%): gone"
    single = gathered({"task": [1.0] * 3, "one": ["gone", None, None], "two": [1.0] * 3})
    assert over_the_limit(single, names, 0.01) is None  # one is always allowed,
    assert over_the_limit(single, names, 0.0) == "1 of 1 judgements of 'one' failed (allowed: 0.0%): gone"
    many = gathered({"task": [1.0] * 20, "one": ["gone"] * 3 + [1.0] + [None] * 16, "two": ["late"] * 9 + [1.0] * 11})
    assert "3 of 4 judgements of 'one'" in str(over_the_limit(many, names, 0.5))  # the largest excess, not the most
    nothing = gathered({"task": [1.0], "one": [None], "two": [None]})
    assert over_the_limit(nothing, names, 0.0) is None


def test_a_column_names_what_failed_even_without_a_reason() -> None:
    column = ScoreColumn.of([Score.of(0.0), Score.failure(""), Score.not_applicable("no boxes"), Score.failure("late")])
    assert list(column) == [0.0, None, None, None]
    assert column.failures == (None, "no reason given", None, "late") and column.batch is None
    assert ScoreColumn([1.0, None]).failures == (None, None)
    for short in (["gone"], [None] * 3):
        with pytest.raises(ValueError, match=f"2 scores, but {len(short)} entries of failures"):
            ScoreColumn([None, None], short)


def test_rollouts_are_gathered_from_the_first_column_that_knows_them() -> None:
    batch = batch_of(["a", "b"], task=[Score.of(1.0)] * 2)
    known, unknown = ScoreColumn([1.0, 1.0], batch=batch), ScoreColumn([1.0, 1.0])
    scores = torch.ones(2, 3)
    assert gather(scores, {"task": unknown, "one": [1.0, 1.0], "two": known}, ["task", "one", "two"], 2).batches == (
        batch,
    )
    with pytest.raises(ValueError, match="zip"):  # columns of different rollouts
        gather(scores, {"task": known, "one": ScoreColumn([1.0] * 3)}, ["task", "one"], 2)


# --- rollouts -> figures --------------------------------------------------------------------------------------------------


def batch_of(texts: Sequence[str], monitored: tuple[str, ...] = (), **scores: Sequence[Score]) -> ScoredBatch:
    sample = Sample("s", (), "Left or right?", ("left", "right"), "left")
    items = tuple(RewardItem(str(n), sample, parse(text)) for n, text in enumerate(texts))
    return ScoredBatch(0, items, tuple(texts), (1,) * len(texts), {n: tuple(s) for n, s in scores.items()}, monitored)


def test_figures_of_rollouts_are_left_out_where_nothing_is_known() -> None:
    no_score = [Score.not_applicable("x"), Score.failure("gone")]
    got = batch_metrics([batch_of(["a", "b"], ("spatial_grounding",), task=[Score.of(1.0), Score.of(2.0)],
                                  consistency=no_score, spatial_grounding=no_score)])  # fmt: skip
    assert got["failed"] == 2 and got["boxes_dropped"] == 0 and got["monitor/spatial_grounding/n"] == 0
    for key in ("inconsistency", "accuracy", "format", "monitor/spatial_grounding/mean", "monitor/consistency/n"):
        assert key not in got, key  # a task reward of one's own has no accuracy


def test_figures_of_rollouts_by_hand() -> None:
    task = [Score.of(2, format=1, accuracy=1), Score.of(0, format=0, accuracy=0), Score.of(1, format=1, accuracy=0)]
    texts = ["<think><bbox>[1]</bbox><bbox>[2]</bbox></think>", "b", "<think><bbox>[1]</bbox></think>"]
    got = batch_metrics([batch_of(texts, ("semantic_grounding", "brevity"), task=task,
                                  consistency=[Score.of(1.0), Score.of(0.0), Score.of(0.0)],
                                  semantic_grounding=[Score.of(0.25), Score.of(0.5), Score.not_applicable("")],
                                  brevity=[Score.of(-3.0)] * 3)])  # fmt: skip
    expected = {
        "accuracy": 1 / 3, "format": 2 / 3, "inconsistency": 2 / 3, "failed": 0, "boxes_dropped": 3,
        "monitor/semantic_grounding/mean": 3 / 8, "monitor/semantic_grounding/n": 2, "monitor/brevity/mean": -3.0,
        "monitor/brevity/n": 3,
    }  # fmt: skip
    assert {key: got.get(key) for key in expected} == {key: pytest.approx(value) for key, value in expected.items()}
    assert "semantic_grounding" not in got
    assert report_named("brevity") is None and report_named("task") is None
    report = report_named("consistency")
    assert report is not None and report.metric == "inconsistency"


# --- scores -> step -------------------------------------------------------------------------------------------------------

SCORES = torch.tensor(
    [[2.0, 1.0, NAN], [0.0, 0.0, 0.5], [1.0, NAN, 1.0], [1.0, 1.0, 0.25], [NAN, NAN, NAN], [1.0, 0.0, NAN]]
)
FAILED = torch.zeros_like(SCORES, dtype=torch.bool)
FAILED[2, 1] = True


def dual(**changes: Any) -> DualAscent:
    one = Constraint("one", tau=0.9, lam_init=2.0, lr=0.5, min_applicable=1)
    two = Constraint("two", tau=0.2, lam_init=0.5, lr=0.1, min_applicable=1)
    return DualAscent([one, two], **changes)


def test_the_reward_is_weighed_and_what_has_no_score_at_all_has_none() -> None:
    """Sums of task + 2 one + 0.5 two: 4, 0.25, 1.5, 3.125 and 1; the fifth rollout has no score."""
    step = fgrpo_step(SCORES, FAILED, dual(), StepOptions(group_size=2))
    rewards = torch.tensor([4.0, 0.25, 1.5, 3.125, 1.0])
    assert step.metrics["reward"] == pytest.approx(float(rewards.mean()))
    assert step.metrics["reward_std"] == pytest.approx(float(rewards.std()))
    assert step.weights_K.tolist() == [1.0, 2.0, 0.5]
    assert torch.equal(step.advantages_N, combine(SCORES, step.weights_K, 2, failed_NK=FAILED))
    assert torch.equal(step.scores_NK, SCORES) or torch.equal(step.scores_NK.isnan(), SCORES.isnan())
    assert torch.equal(step.failed_NK, FAILED)
    empty = fgrpo_step(torch.full((2, 3), NAN), None, dual(), StepOptions(group_size=2))
    assert "reward" not in empty.metrics and "constraint/one/mean" not in empty.metrics
    assert empty.metrics["constraint/one/n"] == 0 and "constraint/one/violation" not in empty.metrics
    single = fgrpo_step(torch.tensor([[1.0, NAN, NAN], [NAN] * 3]), None, dual(), StepOptions(group_size=2))
    assert single.metrics["reward"] == 1.0 and "reward_std" not in single.metrics


def test_each_constraints_figures_are_its_own() -> None:
    step = fgrpo_step(SCORES, FAILED, dual(), StepOptions(group_size=2))
    m = step.metrics
    assert [m[f"constraint/{n}/mean"] for n in ("one", "two")] == pytest.approx([0.5, 1.75 / 3])
    assert [m[f"constraint/{n}/n"] for n in ("one", "two")] == [4, 3]
    assert [m[f"constraint/{n}/failed"] for n in ("one", "two")] == [1, 0]
    assert [m[f"constraint/{n}/mixed_share"] for n in ("one", "two")] == pytest.approx([1 / 3, 1 / 3])
    assert [m[f"constraint/{n}/violation"] for n in ("one", "two")] == pytest.approx([0.4, 0.2 - 1.75 / 3])
    assert [m[f"lambda/{n}"] for n in ("one", "two")] == [2.0, 0.5]  # λ_t, which weighed this batch
    expected = shares(SCORES, torch.tensor([1.0, 2.0, 0.5]), 2, failed_NK=FAILED)
    assert [m["task/share"], m["constraint/one/share"], m["constraint/two/share"]] == pytest.approx(expected.tolist())
    assert [s.name for s in step.dual_steps] == ["one", "two"]
    assert [s.lam for s in step.dual_steps] == pytest.approx([2.2, 0.5 + 0.1 * (0.2 - 1.75 / 3)])
    states = step.dual_state["states"]
    assert [states[n]["lam"] for n in ("one", "two")] == [s.lam for s in step.dual_steps]
    assert m["constraint/one/steps_to_bound"] == 14 and m["constraint/one/saturated"] == 0


@pytest.mark.parametrize("option", [{"masked": "zero"}, {"baseline": "batch"}])
def test_shares_are_those_of_the_configured_advantage(option: dict[str, Any]) -> None:
    step = fgrpo_step(SCORES, FAILED, dual(), StepOptions(group_size=2, **option))
    expected = shares(SCORES, torch.tensor([1.0, 2.0, 0.5]), 2, failed_NK=FAILED, **option)
    got = [step.metrics[k] for k in ("task/share", "constraint/one/share", "constraint/two/share")]
    assert got == pytest.approx(expected.tolist())
    assert got != pytest.approx(shares(SCORES, torch.tensor([1.0, 2.0, 0.5]), 2, failed_NK=FAILED).tolist())


def test_fixed_multipliers_are_logged_and_stay() -> None:
    step = fgrpo_step(SCORES, FAILED, dual(kind="fixed"), StepOptions(group_size=2))
    assert [s.lam for s in step.dual_steps] == [2.0, 0.5] and not any(s.moved for s in step.dual_steps)
    assert step.metrics["lambda/one"] == 2.0 and step.metrics["constraint/one/violation"] == pytest.approx(0.4)
    assert step.dual_state == dual(kind="fixed").state_dict()


def test_a_bound_that_is_reached_is_counted() -> None:
    tight = DualAscent([Constraint("one", 0.9, 1.0, 0.5, 1.05, 1)])
    step = fgrpo_step(SCORES[:, :2], FAILED[:, :2], tight, StepOptions(group_size=2))
    assert (step.metrics["constraint/one/saturated"], step.metrics["constraint/one/at_bound"]) == (1, 1)
    tight.load_state_dict(step.dual_state)
    again = fgrpo_step(SCORES[:, :2], FAILED[:, :2], tight, StepOptions(group_size=2))
    assert again.metrics["constraint/one/at_bound"] == 2 and "constraint/one/steps_to_bound" not in again.metrics


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_coupled_columns_by_name(kind: Any) -> None:
    options = StepOptions(2, coupling=kind, names=("task", "one", "two"))
    step = fgrpo_step(SCORES, FAILED, DualAscent([]), options)
    reward = couple(SCORES, kind, FAILED)[:, 0]
    known = reward[~reward.isnan()]
    assert step.metrics["reward"] == pytest.approx(float(known.mean()))
    assert step.metrics["constraint/two/mean"] == pytest.approx(1.75 / 3)
    assert "task/share" not in step.metrics and "lambda/one" not in step.metrics
    with pytest.raises(ValueError, match="coupled as 'additive' take no constraints, but the dual has 2"):
        fgrpo_step(SCORES, FAILED, dual(), StepOptions(2, coupling="additive"))


def test_evaluation_computes_advantages_and_leaves_the_rest() -> None:
    before = dual()
    step = fgrpo_step(SCORES, FAILED, before, StepOptions(group_size=2, training=False))
    assert torch.equal(step.advantages_N, combine(SCORES, torch.tensor([1.0, 2.0, 0.5]), 2, failed_NK=FAILED))
    assert step.dual_state == before.state_dict() and set(step.metrics) == {
        *("reward", "reward_std", "task/mean"),
        *(f"constraint/{name}/{figure}" for name in ("one", "two") for figure in ("mean", "n")),
    }
    with pytest.raises(ValueError, match="a group of 1 has no baseline"):
        fgrpo_step(SCORES, FAILED, dual(), StepOptions(group_size=1))
    batch = batch_of(["a"], task=[Score.of(1.0, format=1, accuracy=1)])
    training = fgrpo_step(SCORES, FAILED, dual(), StepOptions(group_size=2), rollouts=[batch])
    assert training.rollouts == (batch,) and training.metrics["accuracy"] == 1.0
    assert (
        "accuracy" not in fgrpo_step(SCORES, FAILED, dual(), StepOptions(2, training=False), rollouts=[batch]).metrics
    )


# --- YAML -> constraints and context --------------------------------------------------------------------------------------


def test_each_field_of_a_constraint_comes_from_its_own_key() -> None:
    shared = "rl.dual={lam_init: 1.25, lr: 0.03, lam_max: 6.0, min_applicable: 4}"
    fields = {"lam_init": 2.5, "lr": 0.07, "lam_max": 7.5, "min_applicable": 3, "indicator": 0.5}
    plain = {"indicator": None, "tau": 0.4, "lam_init": 1.25, "lr": 0.03, "lam_max": 6.0, "min_applicable": 4}
    for key, value in {**fields, "tau": 0.45}.items():
        own = {"tau": 0.4, key: value}
        text = ", ".join(f"{k}: {v}" for k, v in own.items())
        cfg = config.load("mini", "fgrpo", [shared, f"rl.constraints.consistency={{{text}}}"])
        got = dataclasses.asdict(train.make_constraint(cfg, "consistency"))
        assert got == {"reward": "consistency", **plain, key: value}, key
    zero = config.load("mini", "fgrpo", ["rl.constraints.consistency={tau: 0.4, lam_init: 0.0, min_applicable: 0}"])
    got = train.make_constraint(zero, "consistency")
    assert (got.lam_init, got.min_applicable) == (0.0, 0)  # zero is a value


def test_a_constraint_of_no_reward_or_no_sense_is_refused() -> None:
    for name in ("consistencyy", "task"):
        cfg = config.load("mini", "fgrpo", [f"rl.constraints.{name}={{tau: 0.5}}"])
        with pytest.raises(UserError, match=rf"rl\.constraints\.{name}"):
            train.make_dual(cfg)
    cfg = config.load("mini", "fgrpo", ["rl.constraints.consistency={tau: 0.5, lam_init: 9.0}"])
    with pytest.raises(UserError, match=r"rl\.constraints, rl\.dual: .*consistency.*lam_init"):
        train.make_dual(cfg)


def test_the_scorers_context_has_each_key_of_the_configuration(tmp_path: Any) -> None:
    options = ["data.boxes_from=[sat]", "rl.box_normaliser=matched", "policy.box_tag=box", "policy.box_frame=unit",
               "rl.monitor=[spatial_grounding]", "rl.constraints={consistency: null, spatial_grounding: null}"]  # fmt: skip
    cfg = config.load("mini", "fgrpo", options)
    scorer = train.make_scorer(cfg, PixelBounds(1568, 25088, 14), tmp_path)
    got = scorer._context
    assert (got.mask, got.boxes_from, got.box_normaliser) == ("correct", ("sat",), "matched")
    assert (got.min_pixels, got.max_pixels, got.patch_factor) == (1568, 25088, 14)
    assert (got.box_tag, got.box_frame) == ("box", "unit")
    assert (scorer.names, scorer.monitored) == (("task", "semantic_grounding"), ("spatial_grounding",))


def test_a_missing_input_is_named_with_the_stage_that_makes_it(tmp_path: Any) -> None:
    cfg = config.load("mini", "fgrpo")
    with pytest.raises(UserError, match=r"rl\.jsonl.*make data( |$|`|;|,)"):
        train.train(cfg, tmp_path)
    (tmp_path / "mini" / "data").mkdir(parents=True)
    (tmp_path / "mini" / "data" / "rl.jsonl").touch()
    with pytest.raises(UserError, match=r"final.*make sft( |$|`|;|,)"):
        train.train(cfg, tmp_path)


def test_a_reward_sees_tokens_finish_and_group_of_each_rollout() -> None:
    """So that E[1 - tokens/limit] is a constraint; rows of a later process continue the groups of the first."""
    seen: list[tuple[RewardItem, ...]] = []

    async def short(items: Any, context: Any) -> list[Score]:
        seen.append(tuple(items))
        return [Score.of(1 - item.tokens / context.token_limit) for item in items]

    answerer: Any = None
    scorer = RolloutScorer(["consistency"], RewardContext(JudgeSet(answerer), token_limit=8))
    scorer._rewards = {"task": short, "consistency": short}  # type: ignore[dict-item]
    row = {"sample": json.dumps(Sample("sat/train/0", (), "q", ("a", "b"), "a").to_dict())}
    ids = [[5, 5, 2], [5, 5, 5, 5], [2], [7] * 8]

    async def work() -> Any:
        scorer.start([row] * 4, ["t"] * 4, ids, stub(asyncio.get_running_loop(), rank=1))
        return [await func(prompts=[0] * 4) for func in scorer.reward_funcs()]

    columns = asyncio.run(work())
    assert columns[0] == [1 - 3 / 8, 0.5, 1 - 1 / 8, 0.0]
    assert [(i.tokens, i.finish) for i in seen[0]] == [(3, "stop"), (4, "length"), (1, "stop"), (8, "length")]
    assert [i.group for i in seen[0]] == ["7/2", "7/2", "7/3", "7/3"]


def test_a_completion_is_cut_off_without_an_end_token() -> None:
    trainer: Any = SimpleNamespace(eos_token_ids=[2, 3], _tokenizer=SimpleNamespace(pad_token_id=0))
    cut = [FaithfulGRPOTrainer.is_cut_off(trainer, ids) for ids in ([5, 2], [5, 3], [5, 0], [5, 5], [])]
    assert cut == [False, False, False, True, False]
