"""The drop-in trainer over a text model of two layers: what a user of TRL expects of it, option by option."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from examples.tiny import ON_A_CPU, PROMPTS, tiny_model
from fgrpo.errors import UserError
from rl.alarms import Alarms
from rl.checks import checked_constraints, out_of_reach
from rl.dual import Constraint, DualAscent
from rl.failures import FailedJudgements
from rl.scored_batch import ScoreColumn
from rl.trainer import DUALS, FaithfulGRPOTrainer


def correct(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(gold in text) for gold, text in zip(answer, completions, strict=True)]


def brief(completions: list[str], **_: Any) -> list[float | None]:
    return [1 / len(text.split()) if text.strip() else None for text in completions]


def half(completions: list[str], **_: Any) -> list[float | None]:
    """Applies to every second completion."""
    return [None if row % 2 else 0.25 for row in range(len(completions))]


BRIEF = (Constraint("brief", tau=0.9),)


def build(
    folder: Path,
    funcs: Any = (correct, brief),
    kind: type[GRPOTrainer] = FaithfulGRPOTrainer,
    evaluate: bool = False,
    config: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """A trainer of `kind` over the tiny model, with TRL's own batch of eight."""
    model, tokenizer = tiny_model()
    settings = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "seed": 3, **ON_A_CPU, **(config or {})}
    data = Dataset.from_dict(PROMPTS)
    if evaluate:
        more["eval_dataset"] = data.select(range(4))
    if isinstance(funcs, tuple):
        funcs = list(funcs)
    args = GRPOConfig(str(folder), **settings)
    return kind(model, funcs, args, data, processing_class=tokenizer, **more)


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "fgrpo"]


# -- a literal swap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("funcs", "config"),
    [
        ((correct,), {}),
        ((correct,), {"scale_rewards": "none", "loss_type": "grpo", "beta": 0.0}),
        ((correct, brief), {"reward_weights": [1.0, 0.5], "scale_rewards": "batch"}),
        ((correct, brief), {"multi_objective_aggregation": "normalize_then_sum", "gradient_accumulation_steps": 2}),
    ],
    ids=["one", "unscaled", "weighted", "accumulated"],
)
def test_without_constraints_it_is_trl_bit_for_bit(tmp_path: Path, funcs: Any, config: dict[str, Any]) -> None:
    start = weights(build(tmp_path, funcs))
    theirs = build(tmp_path / "theirs", funcs, GRPOTrainer, config=config)
    theirs.train()
    ours = build(tmp_path / "ours", funcs, config=config)
    ours.train()
    assert torch.equal(weights(theirs), weights(ours)) and not torch.equal(weights(ours), start)
    assert [set(line) for line in theirs.state.log_history] == [set(line) for line in ours.state.log_history]
    assert ours.last_step is None and list(theirs._logs["advantages"]) == list(ours._logs["advantages"])


def test_several_rewards_without_constraints_are_said_to_be_summed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, correct)
    assert not warnings_of(caplog)
    build(tmp_path, correct, max_failed_share=0.5)
    assert "max_failed_share has no effect" in warnings_of(caplog)[0]
    caplog.clear()
    build(tmp_path)
    (said,) = warnings_of(caplog)
    assert "(correct, brief) are summed" in said and "Constraint('brief', tau=…)" in said


def test_with_constraints_it_sets_what_it_needs_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = build(
        tmp_path, constraints=BRIEF,
        config={"reward_weights": [2.0, 0.5], "scale_rewards": "none", "steps_per_generation": 1, "gradient_accumulation_steps": 2},
    )  # fmt: skip
    trainer.train()
    (said,) = warnings_of(caplog)
    assert "(brief: 0.5) by their multipliers" in said and "scale_rewards='none'" in said
    assert trainer.dual.lam["brief"] != 1.0 and trainer.args.reward_weights == [2.0, 0.5]


def test_rewards_without_a_constraint_are_one_task_reward(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever their order: 2 x correct + 0.5 x half, where half does not apply to every second rollout."""
    trainer = build(
        tmp_path, (half, brief, correct), constraints=BRIEF, config={"reward_weights": [0.5, 1.0, 2.0], "max_steps": 1}
    )
    seen: list[torch.Tensor] = []
    inner = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *a: seen.append(inner(*a)) or seen[-1]
    trainer.train()
    (scores,) = seen
    task = torch.nan_to_num(0.5 * scores[:, 0]) + 2 * scores[:, 2]
    assert torch.allclose(trainer.last_step.scores_NK, torch.stack([task, scores[:, 1]], dim=1), equal_nan=True)
    assert any("0.5 × half + 2 × correct" in said for said in warnings_of(caplog))
    line = trainer.state.log_history[0]
    assert line["task/mean"] == pytest.approx(float(task.mean())) and line["lambda/brief"] == 1.0


def test_the_weight_of_a_single_task_reward_counts(tmp_path: Path) -> None:
    """A negative one makes a penalty of it."""

    def long(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trainer = build(
        tmp_path,
        (long, half),
        constraints=[Constraint("half", 0.2)],
        config={"reward_weights": [-1.0, 1.0], "max_steps": 1},
    )
    trainer.train()
    step = trainer.last_step
    assert step.scores_NK[:, 0].tolist() == [-length for length in trainer._logs["rewards"]["long"]]
    assert step.metrics["task/mean"] < 0


def test_a_judge_that_fails_in_evaluation_leaves_a_checkpoint_of_the_finished_step(tmp_path: Path) -> None:
    """Its multipliers are those of the step that was trained, not of the one before."""
    moved: dict[int, float] = {}

    def judged(completions: list[str], **_: Any) -> list[float | None] | ScoreColumn:
        if trainer.model.training:
            return [0.0] * len(completions)
        moved[trainer.state.global_step] = trainer.dual.lam["judged"]
        return ScoreColumn([None] * len(completions), ["down"] * len(completions))

    trainer = build(
        tmp_path, (correct, judged), evaluate=True, constraints=[Constraint("judged", 1.0)], max_failed_share=0.1,
        config={"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2},
    )  # fmt: skip
    with pytest.raises(FailedJudgements):
        trainer.train()
    saved = json.loads((tmp_path / "checkpoint-2" / DUALS).read_text())
    assert moved == {2: pytest.approx(1.1)} and saved["states"]["judged"]["lam"] == moved[2]


def test_a_failure_in_a_part_of_the_task_reward_is_one_of_the_task(tmp_path: Path) -> None:
    def judged(completions: list[str], **_: Any) -> ScoreColumn:
        return ScoreColumn([None, *[1.0] * (len(completions) - 1)], ["timeout", *[None] * (len(completions) - 1)])

    trainer = build(tmp_path, (correct, judged, brief), constraints=BRIEF, config={"max_steps": 1})
    trainer.train()
    step = trainer.last_step
    assert math.isnan(step.scores_NK[0, 0]) and step.failed_NK[:, 0].tolist() == [True, *[False] * 7]


# -- multipliers that stand still --------------------------------------------------------------------------------------


def test_a_default_batch_moves_lambda(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = build(tmp_path, (correct, half), constraints=[Constraint("half", tau=0.5)])
    trainer.train()
    lines = [line for line in trainer.state.log_history if "lambda/half" in line]
    assert [line["constraint/half/moved"] for line in lines] == [1.0, 1.0] and [
        line["constraint/half/n"] for line in lines
    ] == [4, 4]
    assert trainer.dual.lam["half"] == pytest.approx(1 + 2 * 0.05 * 0.25) and not warnings_of(caplog)


@pytest.mark.parametrize(
    ("needed", "words"), [(8, "batches in which all 8 rollouts"), (9, "can never move: it needs 9")]
)
def test_a_lambda_out_of_reach_is_said_at_the_start_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, needed: int, words: str
) -> None:
    trainer = build(tmp_path, (correct, half), constraints=[Constraint("half", 0.5, min_applicable=needed)])
    (said,) = warnings_of(caplog)
    assert words in said and "then 2 are enough" in said
    trainer.train()
    assert trainer.dual.lam["half"] == 1.0 and trainer.state.log_history[0]["constraint/half/moved"] == 0
    assert "λ of half never moved in this run (2 steps)" in warnings_of(caplog)[-1]


def test_a_constraint_that_applies_to_nothing_is_said_at_the_end() -> None:
    line: dict[str, float] = {"constraint/c/n": 0, "constraint/c/moved": 0}
    alarms = Alarms([Constraint("c", 0.5), Constraint("d", 0.5)])
    for _ in range(2):
        alarms.of({**line, "constraint/d/n": 1, "constraint/d/moved": 0})
    (nowhere, seldom) = alarms.at_end()
    assert "λ of c never moved" in nowhere and "applied to no rollout" in nowhere and "min_applicable" not in nowhere
    assert "λ of d never moved" in seldom and "lower it" in seldom


@pytest.mark.parametrize("given", ["brief", ["brief"], {"brief": 0.5}, ("brief",)])
def test_what_is_no_constraint_is_an_error_that_shows_one(given: Any) -> None:
    with pytest.raises(TypeError, match=r"'brief' is no constraint; write constraints=\[Constraint\('brief', tau="):
        checked_constraints(given)


def test_one_constraint_needs_no_list(tmp_path: Path) -> None:
    trainer = build(tmp_path, (correct, half), constraints=Constraint("half", 0.5))
    assert trainer.dual.lam == {"half": 1.0} and not trainer.is_plain


def test_what_is_said_of_small_batches() -> None:
    def said(batch: int, needed: int | None) -> list[str]:
        return out_of_reach(DualAscent([Constraint("c", 0.5, min_applicable=needed)]), batch)

    assert said(3, None) == said(64, None) == said(8, 4) == said(4, 0) == []
    assert said(2, None) == [
        "λ of c moves only by batches in which all 2 rollouts have a score; enlarge the generation batch"
    ]
    assert "in which 5 of 8 rollouts have a score; leave min_applicable out (then 2 are enough), or" in said(8, 5)[0]


def test_fixed_multipliers_are_not_expected_to_move(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(tmp_path, (correct, half), dual=DualAscent([Constraint("half", 0.5, min_applicable=9)], "fixed")).train()
    assert not warnings_of(caplog)


@pytest.mark.parametrize("shown", [True, False])
def test_alarms_are_the_trainers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    monkeypatch.setattr("rl.alarms.Alarms.EVERY", 2)

    def nowhere(completions: list[str], **_: Any) -> list[None]:
        return [None] * len(completions)

    def constant(completions: list[str], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    constraints = [Constraint("nowhere", 0.5), Constraint("constant", 0.5, lam_max=1.0)]
    trainer = build(tmp_path, (correct, nowhere, constant), constraints=constraints)
    trainer.shows_alarms = shown
    trainer.train()
    assert [alarm.split(":")[0] for alarm in trainer.last_alarms] == [
        "nowhere applied to no rollout for 2 steps (every score was None, or failed)",
        "constant has been at its bound λ = 1 for 2 steps and is still violated",
        "constant has varied in no group for 2 steps",
    ]
    assert warnings_of(caplog) == (list(trainer.last_alarms) if shown else [])


def test_a_limit_of_failures_that_nothing_reports_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, constraints=BRIEF, max_failed_share=0.1).train()
    assert sum("max_failed_share=0.1 has no effect" in said for said in warnings_of(caplog)) == 1


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_the_evaluated_reward_does_not_follow_lambda(tmp_path: Path) -> None:
    def constant(completions: list[str], **_: Any) -> list[float]:
        return [0.5] * len(completions)

    def one(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    trainer = build(
        tmp_path, (one, constant), evaluate=True, constraints=[Constraint("constant", 1.0, lr=1.0)],
        config={"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True},
    )  # fmt: skip
    trainer.train()
    found = [line for line in trainer.state.log_history if "eval_reward" in line]
    assert trainer.dual.lam["constant"] == 2.0 and len(found) == 3
    for line in found:
        assert (line["eval_reward"], line["eval_task/mean"], line["eval_constraint/constant/mean"]) == (1.0, 1.0, 0.5)
    trained = [line for line in trainer.state.log_history if "lambda/constant" in line]
    assert [line["reward"] for line in trained] == [1.5, 1.75]  # with λ, as it is trained on
    assert [line["task/mean"] for line in trained] == [1.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"masked": "zero"}, {"baseline": "batch"}, {"whiten": "token"}, {"whiten": "none"},
        {"constraints": (), "coupling": "additive"}, {"constraints": (), "coupling": "multiplicative"},
        {"constraints": ()}, {"config": {"per_device_eval_batch_size": 1}}, {"config": {"per_device_eval_batch_size": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_one_rollout_per_evaluated_prompt(tmp_path: Path, options: dict[str, Any]) -> None:
    config = {"num_generations_eval": 1, **options.get("config", {})}
    more = {"constraints": [Constraint("half", 0.5)], **options, "config": config}
    trainer = build(tmp_path, (correct, half), evaluate=True, **more)
    trainer.train()
    assert math.isfinite(trainer.evaluate()["eval_reward"])


def test_a_scorer_groups_rollouts_as_the_phase_does(tmp_path: Path) -> None:
    """Several rollouts per prompt in training, one in evaluation."""
    seen: list[tuple[bool, int]] = []

    class Scorer:
        def start(self, inputs: Any, completions: Any, ids: Any, trainer: Any) -> None:
            seen.append((trainer.model.training, trainer.group_size))

    trainer = build(
        tmp_path, (correct, half), constraints=[Constraint("half", 0.5)], evaluate=True, scorer=Scorer(),
        config={"num_generations_eval": 1, "max_steps": 1},
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    assert set(seen) == {(True, int(trainer.num_generations)), (False, 1)} and trainer.num_generations > 1


# -- reward functions ------------------------------------------------------------------------------------------------


def test_iterators_are_read(tmp_path: Path) -> None:
    def yielded(completions: list[str], **_: Any) -> Iterator[float]:
        yield from (float(row) for row in range(len(completions)))

    async def mapped(completions: list[str], **_: Any) -> Any:
        return map(len, completions)

    trainer = build(tmp_path, (yielded, mapped), constraints=[Constraint("mapped", 0.5)], config={"max_steps": 1})
    trainer.train()
    scores = trainer.last_step.scores_NK
    assert scores[:, 0].tolist() == list(range(8)) and scores[:, 1].max() > 8


def at_least(completions: list[str], words: int, **_: Any) -> list[float]:
    return [float(len(text.split()) >= words) for text in completions]


@pytest.mark.parametrize(
    "funcs",
    [
        (lambda completions, **_: [1.0] * len(completions), lambda completions, **_: [0.0] * len(completions)),
        (functools.partial(at_least, words=1), functools.partial(at_least, words=4)),
    ],
    ids=["lambdas", "partials"],
)
def test_functions_of_one_name_are_told_apart(tmp_path: Path, funcs: tuple[Callable[..., Any], ...]) -> None:
    name = "at_least" if isinstance(funcs[0], functools.partial) else "<lambda>"
    with pytest.raises(ValueError, match=f"two reward functions are called '{name}'.*reward_names="):
        build(tmp_path, funcs, constraints=[Constraint(name, 0.5)])
    trainer = build(tmp_path, funcs, constraints=[Constraint("long", 0.5)], reward_names=["any", "long"])
    trainer.train()
    line = trainer.state.log_history[0]
    assert {"rewards/any/mean", "rewards/long/mean", "lambda/long"} <= set(line)
    build(tmp_path, funcs, reward_names=["any", "long"]).train()  # without constraints too


def test_an_environments_own_reward_is_the_tasks() -> None:
    from rl.checks import check_names
    from rl.columns import Columns

    dual = DualAscent([Constraint("brief", 0.5)])
    check_names(["brief"], dual, [], None, more_to_come=True)
    assert Columns.of(["brief", "Game"], ["brief"]) == Columns((1,), (0,), ("Game", "brief"))
    with pytest.raises(ValueError, match=r"the task reward.*is missing"):
        check_names(["brief"], dual, [], None)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
def test_a_checkpoint_of_trl_is_resumed_with_fresh_multipliers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, by_name: bool
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    build(tmp_path, kind=GRPOTrainer, config=saving).train()
    trainer = build(tmp_path, constraints=BRIEF, config={**saving, "max_steps": 4})
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2") if by_name else True)
    (said,) = warnings_of(caplog)
    assert "checkpoint-2 was trained without constraints: the multipliers begin at brief 1" in said
    assert trainer.state.global_step == 4 and [
        line["step"] for line in trainer.state.log_history if "lambda/brief" in line
    ] == [3, 4]
    (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=r"cannot resume from .*checkpoint-2 \(trainer_state.json is missing\)"):
        build(tmp_path, constraints=BRIEF).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_checkpoint_within_a_generation_holds_the_multipliers_before_its_dual_step(tmp_path: Path) -> None:
    """Two updates per generation: resuming at the first samples the batch anew, and takes the dual step then."""
    config = {
        "save_strategy": "steps",
        "save_steps": 1,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
        "max_steps": 4,
    }
    trainer = build(tmp_path, constraints=BRIEF, config=config)
    trainer.train()
    steps = {
        n: json.loads((tmp_path / f"checkpoint-{n}" / DUALS).read_text())["states"]["brief"]["lam"] for n in range(1, 5)
    }
    logged = {line["step"]: line["lambda/brief"] for line in trainer.state.log_history if "lambda/brief" in line}
    assert steps[1] == logged[1] == 1.0 and steps[2] == steps[3] == logged[3] != 1.0
    assert steps[4] == trainer.dual.lam["brief"] != steps[2]
    resumed = build(tmp_path, constraints=BRIEF, config={**config, "max_steps": 2})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed._before_step["states"]["brief"]["lam"] == 1.0 and resumed.dual.lam["brief"] != 1.0


def test_a_loaded_checkpoint_leaves_nothing_of_an_earlier_training(tmp_path: Path) -> None:
    """Else a checkpoint within the next generation, or of a failed judgement, would hold the other training's multipliers."""
    config = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    trainer = build(tmp_path, constraints=BRIEF, config=config)
    trainer.train()
    assert trainer._before_step is not None and trainer._finished is not None
    trainer._step = 1  # within a generation of two updates
    trainer.args.steps_per_generation = 2
    trainer._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-1"))
    saved = json.loads((tmp_path / "checkpoint-1" / DUALS).read_text())
    assert trainer.multipliers_to_save() == saved and trainer._finished is None


# -- the hub -----------------------------------------------------------------------------------------------------------


class Hub:
    """Notes what is uploaded, as the hub's own filter sees it at the time."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str | None, list[str]]] = []

    def upload_folder(
        self, folder_path: str, path_in_repo: str | None = None, ignore_patterns: Any = None, **_: Any
    ) -> Any:
        from huggingface_hub.utils import filter_repo_objects

        files = sorted(p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*") if p.is_file())
        self.pushed.append((path_in_repo, list(filter_repo_objects(files, ignore_patterns=ignore_patterns))))
        return functools.partial(bool)

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(repo_id=repo_id)


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_what_is_pushed_to_the_hub_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    monkeypatch.setattr("transformers.trainer.PushInProgress.is_done", lambda _: True)
    config = {
        "save_strategy": "steps",
        "save_steps": 1,
        "push_to_hub": True,
        "hub_strategy": strategy,
        "hub_model_id": "me/own",
    }
    trainer = build(tmp_path / "own", constraints=BRIEF, config=config)
    (tmp_path / "own" / "_checkpoint.part" / "checkpoint-9").mkdir(parents=True)  # of a save that is under way
    (tmp_path / "own" / "_checkpoint.part" / "checkpoint-9" / "optimizer.pt").write_text("half")
    trainer.train()
    models = [files for where, files in hub.pushed if where is None]
    assert len(models) == 2
    for files in models:
        assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(files)
        assert not any("optimizer" in file or ".part" in file or "checkpoint" in file for file in files)
    checkpoints = [files for where, files in hub.pushed if where == "last-checkpoint"]
    assert len(checkpoints) == (2 if strategy == "checkpoint" else 0)
    for files in checkpoints:
        assert {"optimizer.pt", DUALS, "checksums.json", "trainer_state.json"} <= set(files)


@pytest.mark.parametrize("constraints", [(), BRIEF])
def test_the_model_card(tmp_path: Path, constraints: Any) -> None:
    trainer = build(tmp_path, constraints=constraints, config={"save_strategy": "steps", "save_steps": 2})
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    assert ("2604.08476" in card and "faithful-grpo" in card) == bool(constraints)
    assert ("trained with GRPO" in card) == (not constraints)
