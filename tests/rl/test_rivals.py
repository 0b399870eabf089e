"""The rival methods' files: advantages against numbers worked out by hand, wires of their options, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from eval import models
from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from rl import train
from rl.advantage import indicators
from rl.configured import check_configured, check_groups
from rl.dual import Constraint
from rl.step import Step, StepOptions, fgrpo_step
from tests.rl.conftest import OVERRIDES

NAN = math.nan
FAILED = "failed"
RIVALS = (
    "gdpo",
    "constrained-grpo",
    "cora",
    "fapo",
    "groupwise",
    "grpo-care",
    "ced",
    "papo",
    "vppo",
    "mr1",
    "fgrpo-mr1",
)
TASK = (2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # two groups of four; the second is constant
Z_TASK = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # of ±1/2: deviation √(4 · ¼ / 3)


def step_of(method: str, column: Sequence[Any], *overrides: str, task: Sequence[float] = TASK) -> Step:
    """The step that this method's file makes of a batch with one constraint's column; `FAILED` marks a failure."""
    (name,) = config.load("mini", method, overrides).rl.constraints
    return step_of_several(method, {name: column}, *overrides, task=task)


def step_of_several(
    method: str, columns: dict[str, Sequence[Any]], *overrides: str, task: Sequence[float] = TASK
) -> Step:
    """The same with the columns of all constraints, by name."""
    cfg = config.load("mini", method, overrides)
    rows = list(zip(*columns.values(), strict=True))
    scores = torch.tensor(
        [[t, *(NAN if x in (None, FAILED) else x for x in row)] for t, row in zip(task, rows, strict=True)]
    )
    failed = torch.tensor([[False, *(x == FAILED for x in row)] for row in rows])
    coupling: Any = cfg.rl.combine if cfg.rl.combine in ("additive", "multiplicative") else None
    names = ("task", *cfg.rl.constraints)
    assert names == ("task", *columns)
    options = StepOptions(4, coupling, cfg.rl.masked, cfg.rl.baseline, cfg.rl.whiten, names)
    return fgrpo_step(scores, failed, train.make_dual(cfg), options)


def whitened(values: Sequence[float]) -> list[float]:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
    return [(x - mean) / (deviation + 1e-4) for x in values]


def only(name: str) -> str:
    """The override that leaves one constraint of the paper's three."""
    others = {"consistency", "spatial_grounding", "semantic_grounding"} - {name}
    return "rl.constraints={" + ", ".join(f"{other}: null" for other in sorted(others)) + "}"


def test_gdpo_counts_what_does_not_apply_as_zero_and_no_failure() -> None:
    """c = 1, n/a, failed, 0: over 1, 0, 0 the mean is 1/3 and the deviation √(1/3); group 2 has one score beside three zeros."""
    step = step_of("gdpo", [1.0, None, FAILED, 0.0, None, None, None, 1.0], only("consistency"))
    scale = math.sqrt(1 / 3) + 1e-4
    c1 = [2 / 3 / scale, -1 / 3 / scale, 0.0, -1 / 3 / scale]
    c2 = [-0.25 / 0.5001] * 3 + [0.75 / 0.5001]  # over 0, 0, 0, 1: mean 1/4, deviation 1/2
    total = [Z_TASK + c1[0], Z_TASK + c1[1], -Z_TASK, -Z_TASK + c1[3], *c2]
    assert step.advantages_N.tolist() == pytest.approx(whitened(total), abs=1e-5)
    assert step.weights_K.tolist() == [1.0, 1.0] and not step.dual_steps[0].moved
    fixed = step_of("fgrpo-fixed", [1.0, None, FAILED, 0.0, None, None, None, 1.0], only("consistency"))
    assert fixed.advantages_N[4:].tolist() == pytest.approx([0.0] * 4, abs=1e-6), "one score is no spread"


def test_constrained_grpo_by_its_costs() -> None:
    """Costs of 0.5, 0.49, n/a, 0.9 at the bound 0.5: 0, 1, –, 0. A = Z_R − λ Z_C, whitened; τ = 0.8 allows d = 0.2."""
    column = [0.5, 0.49, None, 0.9, 0.1, 0.6, FAILED, 0.7]
    step = step_of("constrained-grpo", column, only("spatial_grounding"), "rl.dual.min_applicable=1")
    scale = math.sqrt(1 / 3) + 1e-4
    z_cost = [-1 / 3 / scale, 2 / 3 / scale, 0.0, -1 / 3 / scale, 2 / 3 / scale, -1 / 3 / scale, 0.0, -1 / 3 / scale]
    z_task = [Z_TASK, Z_TASK, -Z_TASK, -Z_TASK, 0.0, 0.0, 0.0, 0.0]
    total = [z - 1.0 * cost for z, cost in zip(z_task, z_cost, strict=True)]
    assert step.advantages_N.tolist() == pytest.approx(whitened(total), abs=1e-5)
    (move,) = step.dual_steps
    assert move.mean == pytest.approx(4 / 6) and move.lam == pytest.approx(1 - 0.05 * (4 / 6 - 0.8))
    assert step.metrics["constraint/spatial_grounding/mean"] == pytest.approx(4 / 6)
    assert step.metrics["constraint/spatial_grounding/score"] == pytest.approx((0.5 + 0.49 + 0.9 + 0.1 + 0.6 + 0.7) / 6)
    assert step.scores_NK[:, 1].nan_to_num(nan=-1).tolist() == [1, 0, -1, 1, 0, 1, -1, 1]
    constraints = {
        c.reward: (c.indicator, c.tau) for c in train.make_dual(config.load("mini", "constrained-grpo")).constraints
    }
    assert constraints == {
        "consistency": (1.0, 0.95),
        "spatial_grounding": (0.5, 0.8),
        "semantic_grounding": (1.0, 0.8),
    }


def test_cora_sums_two_normalised_rewards_and_whitens_nothing() -> None:
    step = step_of("cora", [1.0, None, FAILED, 0.0, 1.0, 1.0, 0.0, 0.0])
    c1, c2 = 0.5 / (math.sqrt(1 / 2) + 1e-4), 0.5 / (math.sqrt(1 / 3) + 1e-4)  # of 1 and 0; of 1, 1, 0, 0
    total = [Z_TASK + c1, Z_TASK, -Z_TASK, -Z_TASK - c1, c2, c2, -c2, -c2]
    assert step.advantages_N.tolist() == pytest.approx(total, abs=1e-5)
    assert not step.dual_steps[0].moved and config.load("mini", "cora").rl.dual.lam_init == 1.0


def test_groupwise_adds_the_rank_to_the_task_reward() -> None:
    """Group 1: two correct, ranked: 2.5, 1.5, and two wrong of 1. Group 2: one correct (0), one whose judge failed, two wrong."""
    task = (2.0, 2.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0)
    step = step_of("groupwise", [0.5, -0.5, None, None, 0.0, FAILED, None, None], task=task)
    one = [2.5 - 1.5, 0.0, -0.5, -0.5]
    scale = math.sqrt((1 + 0.25 + 0.25) / 3) + 1e-4
    mean = 4 / 3  # of 2, 1, 1
    deviation = math.sqrt(((2 - mean) ** 2 + 2 * (1 - mean) ** 2) / 2) + 1e-4
    two = [(2 - mean) / deviation, (1 - mean) / deviation, (1 - mean) / deviation]
    total = [*(x / scale for x in one), *two]
    wanted = whitened(total)
    assert step.advantages_N[[0, 1, 2, 3, 4, 6, 7]].tolist() == pytest.approx(wanted, abs=1e-5)
    assert float(step.advantages_N[5]) == 0.0
    assert step.metrics["constraint/groupwise/failed"] == 1


def test_mr1_adds_the_attention_of_right_answers_before_one_normalisation() -> None:
    """Group 1: right with r = 0.6 and without a score, right but failed, wrong: 2.6, 2, –, 1. Group 2: right with r = 0.2, three wrong."""
    task = (2.0, 2.0, 2.0, 1.0, 2.0, 1.0, 1.0, 1.0)
    step = step_of("mr1", [0.6, None, FAILED, None, 0.2, None, None, None], task=task)
    mean = 5.6 / 3  # of 2.6, 2, 1
    scale = math.sqrt(sum((x - mean) ** 2 for x in (2.6, 2.0, 1.0)) / 2) + 1e-4
    one = [(x - mean) / scale for x in (2.6, 2.0, 1.0)]
    scale = math.sqrt((0.9**2 + 3 * 0.3**2) / 3) + 1e-4  # of 2.2, 1, 1, 1: mean 1.3
    wanted = whitened([*one, 0.9 / scale, -0.3 / scale, -0.3 / scale, -0.3 / scale])
    assert step.advantages_N[[0, 1, 3, 4, 5, 6, 7]].tolist() == pytest.approx(wanted, abs=1e-5)
    assert float(step.advantages_N[2]) == 0.0 and step.metrics["constraint/attention_where_it_matters/failed"] == 1
    assert not step.dual_steps and step.weights_K.tolist() == [1.0, 1.0], "a fixed weight"


def test_each_of_the_five_constraints_of_fgrpo_mr1_has_its_own_normalisation_and_multiplier() -> None:
    """Group 1 by hand, with the deviations √(1/3), 0.2, √0.08, √0.08 and 0.3; group 2 is constant. λ_k: 0.5, 1, 1.5, 2, 2.5."""
    columns: dict[str, Sequence[Any]] = {
        "consistency": [1.0, 0.0, 1.0, None],
        "spatial_grounding": [0.5, 0.5, 0.5, 0.1],
        "semantic_grounding": [0.8, FAILED, 0.4, None],
        "evidence_margin": [0.95, 0.55, None, None],
        "attention_where_it_matters": [0.1, 0.4, 0.7, None],
    }
    lams = dict(zip(columns, (0.5, 1.0, 1.5, 2.0, 2.5), strict=True))
    options = [f"rl.constraints.{name}.lam_init={lam}" for name, lam in lams.items()]
    full = {name: [*column, *[None] * 4] for name, column in columns.items()}
    step = step_of_several(
        "fgrpo-mr1", full, "rl.dual.min_applicable=1", *options, task=(2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    )
    third, hundredths = math.sqrt(1 / 3) + 1e-4, math.sqrt(0.08) + 1e-4
    z = {
        "consistency": [1 / 3 / third, -2 / 3 / third, 1 / 3 / third, 0.0],
        "spatial_grounding": [0.1 / 0.2001, 0.1 / 0.2001, 0.1 / 0.2001, -0.3 / 0.2001],
        "semantic_grounding": [0.2 / hundredths, 0.0, -0.2 / hundredths, 0.0],
        "evidence_margin": [0.2 / hundredths, -0.2 / hundredths, 0.0, 0.0],
        "attention_where_it_matters": [-0.3 / 0.3001, 0.0, 0.3 / 0.3001, 0.0],
    }
    z_task = [0.25 / 0.5001, 0.25 / 0.5001, 0.25 / 0.5001, -0.75 / 0.5001]
    one = [z_task[row] + sum(lams[name] * z[name][row] for name in z) for row in range(4)]
    assert step.advantages_N.tolist() == pytest.approx(whitened([*one, 0.0, 0.0, 0.0, 0.0]), abs=1e-5)
    assert step.weights_K.tolist() == [1.0, *lams.values()]
    means = (2 / 3, 0.4, 0.6, 0.75, 0.4)
    taus = (0.95, 0.6, 0.85, 0.93, 0.30)  # the last two are of the method, the others of the preset
    for move, name, mean, tau in zip(step.dual_steps, columns, means, taus, strict=True):
        assert (move.name, move.mean) == (name, pytest.approx(mean))
        assert move.moved and move.lam == pytest.approx(lams[name] - 0.05 * (mean - tau))


def test_indicators_keep_what_has_no_bound_and_what_has_no_score() -> None:
    scores = torch.tensor([[0.3, 0.3, NAN], [0.7, 0.7, 0.7]])
    found = indicators(scores, (None, 0.7, 0.7))
    assert found.nan_to_num(nan=-1).tolist() == [[pytest.approx(0.3), 0, -1], [pytest.approx(0.7), 1, 1]]


# --- the methods' files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_is_a_model_of_evaluation_with_a_title_and_is_documented(method: str) -> None:
    check_configured(config.load("paper-7b", method))
    spec = models.load(method)
    assert spec.made_by == f"rl-{method}" and spec.title != method
    page = (Path(__file__).parents[2] / "docs" / "rivals.md").read_text()
    assert f"| `{method}` |" in page and f" {method}" in page.split("for m in")[1].split(";")[0]


def test_which_rewards_a_rival_trains_on() -> None:
    expected = {
        "gdpo": ("task", "consistency", "spatial_grounding", "semantic_grounding"),
        "constrained-grpo": ("task", "consistency", "spatial_grounding", "semantic_grounding"),
        "cora": ("task", "consistency"), "fapo": ("fapo",), "groupwise": ("task", "groupwise"),
        "papo": ("task",), "vppo": ("task",), "grpo-care": ("task", "grpo_care"), "ced": ("ced",),
        "mr1": ("task", "attention_where_it_matters"),
        "fgrpo-mr1": (
            *("task", "consistency", "spatial_grounding", "semantic_grounding"),
            *("evidence_margin", "attention_where_it_matters"),
        ),
    }  # fmt: skip
    for method, names in expected.items():
        cfg = config.load("mini", method)
        scorer = train.make_scorer(cfg, PixelBounds(784, 12544, 28))
        assert scorer.names == names, method
        assert ("task" in scorer.monitored) == (method in ("fapo", "ced"))
        groups = {"groupwise": ("groupwise",), "grpo-care": ("grpo_care",)}
        assert scorer.needs_groups == groups.get(method, ())
        of_boxes = {"evidence", "controls"}
        measured = {"grpo-care": {"answer_likelihood"}, "ced": of_boxes}
        measured |= dict.fromkeys(("mr1", "fgrpo-mr1"), of_boxes | {"attention"})
        assert scorer.needs == measured.get(method, set())
        assert (cfg.rl.start == "anchor") == (method in ("mr1", "fgrpo-mr1"))
        assert bool(cfg.rl.auxiliary) == (method == "papo") and (cfg.rl.token_weights is not None) == (method == "vppo")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rl.task_reward=fapoo", "unknown reward 'fapoo'; did you mean 'fapo'"),
        ("rl.task_reward=consistency", "rl.task_reward is 'consistency', which is a constraint too"),
    ],
)
def test_a_task_reward_that_cannot_be_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_configured(config.load("mini", "fgrpo", ["rl.constraints.consistency.tau=0.9", override]))


@pytest.mark.parametrize("combine", ["additive", "multiplicative"])
def test_an_indicator_without_a_multiplier_is_refused(combine: str) -> None:
    with pytest.raises(
        UserError, match=rf"rl.constraints.consistency.indicator has no effect with rl.combine={combine}"
    ):
        config.load("mini", "constrained-grpo", [f"rl.combine={combine}"])
    assert not config.load("mini", "constrained-grpo", ["rl.combine=none"]).rl.constraints


@pytest.mark.parametrize(("indicator", "tau"), [(NAN, 0.5), (0.5, 1.5), (0.5, -0.1)])
def test_an_indicators_threshold_is_a_share(indicator: float, tau: float) -> None:
    with pytest.raises(ValueError, match="constraint 'c': indicator must be finite"):
        Constraint("c", tau, indicator=indicator)
    assert Constraint("c", 7.0).indicator is None


def test_processes_must_not_share_a_group_that_a_reward_sees() -> None:
    check_groups(("groupwise",), 8, 4)
    check_groups((), 8, 3)
    with pytest.raises(UserError, match="a score of groupwise depends on its group of rollouts, and 3 processes"):
        check_groups(("groupwise",), 8, 3)


def test_a_stage_refuses_to_split_groups(world: Path, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.distributed, "world_size", lambda: 4)
    monkeypatch.setattr(train.loading, "load_policy", lambda *_: pytest.fail("the model was loaded"))
    overrides = [f"data.root={world}", *OVERRIDES, "rl.micro_batch=1"]
    cfg = config.load("mini", "groupwise", overrides)
    run = SimpleNamespace(path=chain, counts={})
    policy = chain / "mini" / "sft" / "final"
    with pytest.raises(UserError, match=r"4 processes cannot hold rl.rollout_batch = 2 complete groups"):
        train.build_trainer(cfg, run, chain / "mini" / "data" / "rl.jsonl", policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["groupwise", "fapo"])
def test_a_judged_method_without_a_judge_is_refused(method: str) -> None:
    cfg = config.load("mini", method, ["judges.training={backend: none, model: none}", "rl.monitor=[]"])
    scorer = train.make_scorer(cfg, PixelBounds(784, 12544, 28))
    with pytest.raises(UserError, match=f"the reward '{method}' asks a judge, and judges.training.backend is none"):
        scorer.check_judges()
    rules = config.load(
        "mini", "grpo-t", ["judges.training={backend: none, model: none}", "rl.monitor=[spatial_grounding]"]
    )
    train.make_scorer(rules, PixelBounds(784, 12544, 28)).check_judges()


# --- in a run -------------------------------------------------------------------------------------------------------------


def rollouts(world: Path, chain: Path, method: str) -> pd.DataFrame:
    more = [
        "rl.max_steps=3",
        "rl.max_response_length=60",
        "rl.rollout_batch=4",
        "rl.micro_batch=16",
        "rl.global_batch=4",
    ]
    folder = train.train(config.load("mini", method, [f"data.root={world}", *OVERRIDES, *more]), chain)
    frame = pd.concat([pd.read_parquet(file) for file in sorted((folder / "rollouts").iterdir())], ignore_index=True)
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    assert len(lines) == 3 and all(math.isfinite(line["loss"]) and "accuracy" in line for line in lines)
    return frame


def test_groupwise_ranks_the_correct_rollouts_of_each_group(world: Path, chain: Path) -> None:
    frame = rollouts(world, chain, "groupwise")
    seen = 0
    for start in range(0, len(frame), 4):
        group = frame.iloc[start : start + 4]
        assert group["sample_id"].nunique() == 1
        right = group["task/detail"].str.contains('"accuracy": 1')
        assert (group["groupwise/state"] == right.map({True: "scored", False: "not_applicable"})).all()
        assert group["groupwise"].sum() == pytest.approx(0.0)
        seen += int(right.sum() >= 2)
    assert seen, "no group of this test has two correct rollouts"


def test_fapo_trains_on_its_own_reward_and_logs_the_tasks(world: Path, chain: Path) -> None:
    frame = rollouts(world, chain, "fapo")
    form = frame["task/detail"].str.contains('"format": 1').astype(float)
    right = frame["task/detail"].str.contains('"accuracy": 1')
    worth = frame["fapo"] - form
    assert set(worth[~right]) <= {-1.0} and set(worth[right]) <= {0.0, 1.0} and right.any()
    sound = (frame["consistency"] == 1) & (frame["semantic_grounding"].fillna(0) == 1)
    assert ((worth == 1) == (right & sound)).all()


def test_grpo_care_gives_its_bonus_by_the_measured_likelihoods(world: Path, chain: Path) -> None:
    frame = rollouts(world, chain, "grpo-care")
    seen = set()
    for start in range(0, len(frame), 4):
        group = frame.iloc[start : start + 4]
        right = group[group["task/detail"].str.contains('"accuracy": 1')]
        assert (group["grpo_care/state"] == "scored").sum() == len(right)
        likely = right["grpo_care/detail"].map(lambda text: json.loads(text)["likelihood"]).astype(float)
        assert ((likely > 0) & (likely <= 0.95)).all()
        wanted = (likely >= likely.mean() - 0.01 - 1e-9) * 0.5
        assert list(right["grpo_care"]) == list(wanted)
        seen |= set(wanted)
    assert 0.5 in seen


def test_ced_trains_on_the_gated_reward(world: Path, chain: Path) -> None:
    """By the margin in its detail; rollouts without boxes have correctness alone."""
    frame = rollouts(world, chain, "ced")
    gated = 0
    for row in frame.to_dict("records"):
        detail = json.loads(row["ced/detail"])
        c = 1.0 if detail["accuracy"] else -0.25
        m = detail.get("margin")
        if m is not None:
            gated += 1
            c = c * (1 + math.tanh(m / 0.2)) / 2 + 0.1 * m
        assert row["ced"] == pytest.approx(detail["format"] + c)
        assert row["task"] == detail["format"] + detail["accuracy"]
        assert (m is None) == (detail.get("cause") is not None)
        assert row["gold_boxes"] is not None or m is None
    assert 0 < gated < len(frame)
