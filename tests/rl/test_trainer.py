"""The seam: Eq. 6 inside the real trainer, the order of primal and dual step, checkpoints, refusals."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOTrainer

from fgrpo import config
from fgrpo.errors import UserError
from fgrpo.policy import focus
from fgrpo.training.checkpoints import PROCESSES, UNFINISHED
from fgrpo.training.stored import write_checksums
from rl import advantage, train
from rl.advantage import combine, couple
from rl.checks import check_dataset
from rl.dual import Constraint, DualAscent
from rl.reward_validation import check_reward_models
from rl.scored_batch import ScoreColumn
from rl.trainer import DUALS, FaithfulGRPOTrainer, resume_point
from tests.rl.conftest import OVERRIDES, Watch, scattered, scorer


@pytest.fixture
def trls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The advantages of each batch by TRL's own aggregation, before ours take their place."""
    seen: list[torch.Tensor] = []
    inner = GRPOTrainer._generate_and_score_completions

    def watched(self: Any, inputs: Any) -> Any:
        output = inner(self, inputs)
        seen.append(output["advantages"].clone())
        return output

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", watched)
    return seen


@pytest.mark.parametrize("missing", [(0.0, 0.3, 0.5), (0.4, 0.5, 0.6)], ids=["task always known", "unknown rows"])
def test_trls_advantages_are_eq_6(make, trls: list[torch.Tensor], missing: tuple[float, float, float]) -> None:
    """The alarm for TRL upgrades: its aggregation of the same scores and weights equals ours, masked groups included.

    Scores are binary fractions, of which float32 means are exact: TRL has no guard for constant groups. A row of which
    nothing is known has 0 and is in no statistic.
    """
    levels = (3, 2, 5)
    funcs = [
        scorer(name, scattered(salt, share, level))
        for salt, (name, share, level) in enumerate(zip(("task", "one", "two"), missing, levels, strict=True), start=1)
    ]
    trainer = make(funcs, steps=3)
    watch = Watch(trainer)
    trainer.train()
    assert len(watch.seen) == len(trls) == 3
    unknown = 0
    for (scores, weights, adv, _), trl in zip(watch.seen, trls, strict=True):
        rows = scores.isnan().all(dim=1)
        unknown += int(rows.sum())
        assert torch.isnan(scores).any()
        assert torch.allclose(adv, trl, atol=1e-6) and torch.equal(adv, combine(scores, weights, 4))
        assert not adv[rows].any() and adv[~rows].abs().max() > 0.1
    assert (unknown > 0) == (missing[0] > 0)


@pytest.mark.parametrize("method", sorted(path.stem for path in (config.CONFIGS / "method").glob("*.yaml")))
def test_combine_is_what_trains(world: Path, chain: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the method, the policy moves by what `rl.advantage.combine` returns: with its signs changed, elsewhere."""
    real = advantage.combine
    cfg = config.load("mini", method, [f"data.root={world}", *OVERRIDES, "rl.max_steps=2", "rl.max_response_length=60"])

    def trained(name: str) -> tuple[torch.Tensor, list[float]]:
        root = chain.parent / name
        (root / "mini").mkdir(parents=True)
        for stage in ("data", "sft"):
            (root / "mini" / stage).symlink_to(chain / "mini" / stage)
        if cfg.rl.start == "anchor":
            focus.add(chain / "mini" / "sft" / "final", root / "mini" / "anchor" / "final", add_row=True)
        folder = train.train(cfg, root)
        weights = load_file(folder / "final" / "model.safetensors")
        advantages = [x for file in sorted((folder / "rollouts").iterdir()) for x in pd.read_parquet(file)["advantage"]]
        return torch.cat([tensor.flatten() for tensor in weights.values()]), advantages

    plain, written = trained("plain")
    calls: list[torch.Tensor] = []

    def turned(*args: Any, **more: Any) -> torch.Tensor:
        calls.append(-real(*args, **more))
        return calls[-1]

    monkeypatch.setattr(advantage, "combine", turned)
    other, written_then = trained("turned")
    assert written_then == torch.cat(calls).tolist() and any(written)
    assert len(calls) == 2 and not torch.equal(plain, other)


def test_lambda_weighs_the_batch_and_then_moves(make) -> None:
    trainer = make(steps=2)
    watch = Watch(trainer)
    trainer.train()
    replay = DualAscent(trainer.dual.constraints)
    for scores, weights, _, _ in watch.seen:
        assert weights.tolist() == pytest.approx(replay.weights())
        replay.step(scores[:, 1:])
    assert trainer.dual.lam == replay.lam != {"one": 1.0, "two": 2.0}


@pytest.mark.parametrize("option", [{"masked": "zero"}, {"baseline": "batch"}, {"whiten": "token"}, {"whiten": "none"}])
def test_options_that_trl_lacks_reach_the_loss(make, option: dict[str, str]) -> None:
    constant_then_mixed = scorer("one", lambda step, row: 1.0 if row < 4 else float(row % 2))
    funcs = [scorer("task", scattered(1)), constant_then_mixed, scorer("two", scattered(3, 0.5, 4))]
    trainer = make(funcs, steps=1, **option)
    watch = Watch(trainer)
    trainer.train()
    ((scores, weights, adv, lengths),) = watch.seen
    assert torch.allclose(adv, combine(scores, weights, 4, lengths_N=lengths, **option), atol=1e-6)
    assert not torch.allclose(adv, combine(scores, weights, 4), atol=1e-3)


@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_coupled_rewards_are_one_column(make, kind: str) -> None:
    trainer = make(steps=1, coupling=kind)
    raw: list[torch.Tensor] = []
    inner = trainer._calculate_rewards
    trainer._calculate_rewards = lambda *a: raw.append(inner(*a)) or raw[-1]
    watch = Watch(trainer)
    trainer.train()
    adv = watch.seen[0][2]
    reward = couple(raw[0], kind)
    assert torch.equal(adv, combine(reward, torch.ones(1), 4))
    assert trainer.state.log_history[0]["reward"] == pytest.approx(float(reward.mean()))  # not the columns' sum
    assert list(trainer._logs["advantages"]) == adv.tolist()


@pytest.mark.parametrize("masked", ["exclude", "zero"])
def test_a_failed_score_is_in_no_statistic(make, masked: str) -> None:
    """Row 1 has failed, row 2 is not applicable: of eight rollouts six count, and only row 2 may ever be a zero."""
    failed = torch.zeros(8, 2, dtype=torch.bool)
    failed[1, 1] = True

    values = [1.0, None, None, 0.0, 1.0, 0.0, 1.0, 1.0]

    def one(**_: Any) -> ScoreColumn:
        return ScoreColumn(values, [None, "timeout", *[None] * 6])

    trainer = make(
        [scorer("task", scattered(1)), one], [Constraint("one", 0.9, min_applicable=6)], steps=1, masked=masked
    )
    watch = Watch(trainer)
    trainer.train()
    ((scores, weights, adv, _),) = watch.seen
    assert torch.allclose(adv, combine(scores, weights, 4, masked=masked, failed_NK=failed), atol=1e-6)
    if masked == "zero":
        assert not torch.allclose(adv, combine(scores, weights, 4, masked=masked), atol=1e-3)
    line = trainer.state.log_history[0]
    assert (line["constraint/one/n"], line["constraint/one/failed"]) == (6, 1)
    assert trainer.dual.lam["one"] == pytest.approx(1 - 0.05 * (4 / 6 - 0.9))


def test_evaluation_moves_no_multiplier(make) -> None:
    trainer = make(steps=1)
    before = trainer.dual.state_dict()
    found = trainer.evaluate(eval_dataset=trainer.train_dataset.select(range(2)))
    assert math.isfinite(found["eval_reward"]) and trainer.dual.state_dict() == before
    trainer.train()
    assert trainer.dual.state_dict() != before


def test_a_trainer_without_data_is_refused(make) -> None:
    full = make(steps=1)
    with pytest.raises(ValueError, match="the training data set is empty"):
        FaithfulGRPOTrainer(
            full.model, full.reward_funcs, full.args, full.train_dataset.select([]), processing_class=full.processing_class,
            constraints=full.dual.constraints,
        )  # fmt: skip


def test_task_only_needs_no_constraint(make) -> None:
    trainer = make([scorer("task", scattered(5))], steps=1, dual=DualAscent([]))
    watch = Watch(trainer)
    trainer.train()
    assert torch.allclose(watch.seen[0][2], combine(watch.seen[0][0], torch.ones(1), 4), atol=1e-6)


def test_checkpoints_carry_the_multipliers(make, tmp_path: Path) -> None:
    trainer = make(steps=4)
    trainer.train()
    folder = resume_point(tmp_path / "out")
    assert folder is not None and folder.name == "checkpoint-4"
    saved = json.loads((folder / DUALS).read_text())
    assert {name: state["lam"] for name, state in saved["states"].items()} == trainer.dual.lam
    (folder / "trainer_state.json").write_text("{torn")
    assert resume_point(tmp_path / "out").name == "checkpoint-2"  # type: ignore[union-attr]
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_k_and_k_is_2k_bit_for_bit(make, tmp_path: Path) -> None:
    """Two steps, a new process' worth of objects, two more: the weights, λ, its PID terms and scores of four steps in one go."""

    def pid() -> DualAscent:
        constraints = [Constraint("one", 0.9, min_applicable=1), Constraint("two", 0.6, 2.0, min_applicable=1)]
        return DualAscent(constraints, "pid", kp=0.5, kd=0.1)

    whole = make(steps=4, out="whole", dual=pid())
    whole.train()
    make(steps=4, out="parts", tweak={"max_steps": 2}, dual=pid()).train()
    second = make(steps=4, out="parts", dual=pid())
    second.train(resume_from_checkpoint=str(resume_point(tmp_path / "parts")))
    assert second.dual.state_dict() == whole.dual.state_dict()
    assert second.dual.state_dict()["states"]["one"]["error_before"] is not None
    for (name, one), two in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_checkpoint_of_another_constraint_set_is_refused(make, tmp_path: Path) -> None:
    make(steps=2, tweak={"max_steps": 2}).train()
    other = make([scorer("task", scattered(1)), scorer("two", scattered(3))], [Constraint("two", 0.5)])
    with pytest.raises(ValueError, match=r"\['one', 'two'\].*\['two'\]"):
        other.train(resume_from_checkpoint=str(resume_point(tmp_path / "out")))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_checkpoint_of_more_processes_is_refused(make, tmp_path: Path, by_name: bool) -> None:
    make(steps=2, tweak={"max_steps": 2}).train()
    folder = resume_point(tmp_path / "out")
    assert folder is not None
    (folder / PROCESSES).write_text('{"processes": 2, "zero": 0}')
    write_checksums(folder)
    with pytest.raises(UserError, match=r"checkpoint-2 was saved by 2 processes .*and this run has 1 process"):
        make(steps=4).train(resume_from_checkpoint=str(folder) if by_name else True)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_torn_checkpoint_is_refused_in_words(make, tmp_path: Path, name: str) -> None:
    make(steps=2, tweak={"max_steps": 2}).train()
    folder = resume_point(tmp_path / "out")
    assert folder is not None
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot resume from .*checkpoint-2 .*delete that folder"):
        make(steps=4).train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize(("value", "word"), [(math.inf, "inf"), (math.nan, "nan")])
@pytest.mark.parametrize("kind", ["plain", "async", "class"])
def test_a_score_that_is_no_number_is_named(make, value: float, word: str, kind: str) -> None:
    """NaN is not None: a reward that returns it by mistake would pass for "not applicable"."""
    plain = scorer("one", lambda step, row: value if row == 3 else 1.0)

    async def waited(**given: Any) -> list[float | None]:
        return plain(**given)

    class Judge:
        def __call__(self, **given: Any) -> list[float | None]:
            return plain(**given)

    waited.__name__ = Judge.__name__ = "one"
    one = {"plain": plain, "async": waited, "class": Judge()}[kind]
    trainer = make([scorer("task", lambda *_: 1.0), one], [Constraint("one", 0.5)])
    with pytest.raises(ValueError, match=rf"the reward 'one' is {word} for rollout 000000/0/0003: .*assistant"):
        trainer.train()


def test_a_reward_model_that_says_nan_is_named() -> None:
    class Model(torch.nn.Module):
        config = type("Config", (), {"_name_or_path": "models/judge"})()

    functions = [scorer("task", scattered(1)), Model(), scorer("two", scattered(2))]
    scores = torch.tensor([[1.0, 0.0, math.nan], [1.0, 0.0, 1.0], [math.nan, math.nan, 1.0]])
    with pytest.raises(ValueError, match=r"reward model 'one' gives nan for rollout 2 of step 0"):
        check_reward_models(functions, ["task", "one", "two"], scores, 0)


def test_a_reward_of_the_wrong_length_is_named(make) -> None:
    def short(prompts: Any, **_: Any) -> list[float]:
        return [1.0] * (len(prompts) - 1)

    trainer = make([scorer("task", lambda *_: 1.0), short], [Constraint("short", 0.5)])
    with pytest.raises(ValueError, match="'short' returned 7 rewards, but 8 were expected"):
        trainer.train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constraints": [Constraint("onee", 0.5)]}, r"no reward function is called 'onee'.*did you mean 'one'\?"),
        ({"constraints": [Constraint("three", 0.5)]}, "there are .*reward_names"),
        ({"constraints": [Constraint(name, 0.5) for name in ("task", "one", "two")]}, "the task reward.*is missing"),
        ({"coupling": "additive", "constraints": [Constraint("one", 0.5)]}, "no multipliers"),
        ({"coupling": "none"}, "coupling is None"),
        (
            {"constraints": [Constraint("one", 0.5)], "dual": DualAscent([Constraint("two", 0.5)])},
            "not two different sets",
        ),
        (
            {"constraints": [Constraint("one", 0.5)], "reward_names": ["task", "one"]},
            "name each of the 3 reward functions",
        ),
        (
            {"constraints": [Constraint("one", 0.5)], "reward_names": ["a", "one", "a"]},
            "two reward functions are called 'a'",
        ),
    ],
)
def test_constraints_that_do_not_fit_are_refused(
    make, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TRL's trainer, and so the model, is built."""
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda *_, **__: pytest.fail("the model was loaded first"))
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_data_are_checked_first() -> None:
    with pytest.raises(ValueError, match="empty"):
        check_dataset(Dataset.from_dict({"prompt": []}))
    check_dataset(Dataset.from_dict({"prompt": ["a"]}))
    check_dataset(None)


def test_trl_generation_works_as_well(make) -> None:
    trainer = make(steps=1, kind=FaithfulGRPOTrainer)
    trainer.train()
    assert trainer.state.global_step == 1


def test_judging_runs_beside_the_log_prob_passes(make) -> None:
    """A judge that answers only once the reference pass has been asked for: awaited earlier, it gives up."""
    passes = threading.Event()
    order: list[str] = []

    class Judge:
        """A scorer whose answer hangs on the trainer's progress."""

        def start(self, inputs: Any, completions: Any, ids: Any, trainer: Any) -> None:
            async def work() -> list[float]:
                order.append("judging begins")
                for _ in range(60_000):  # ten minutes and more
                    if passes.is_set():
                        break
                    await asyncio.sleep(0.01)
                else:
                    raise AssertionError("the judge was awaited before the log-prob pass")
                order.append("judging ends")
                return [float(n % 2) for n in range(len(completions))]

            self.pending = asyncio.run_coroutine_threadsafe(work(), trainer.async_loop)

        async def judged(self, **_: Any) -> list[float]:
            return await asyncio.wrap_future(self.pending)

    judge = Judge()
    judge.judged.__func__.__name__ = "judged"
    trainer = make([scorer("task", scattered(1)), judge.judged], [Constraint("judged", 0.9)], steps=1, scorer=judge)
    inner = trainer._get_per_token_logps_and_entropies

    def watched(*args: Any, **more: Any) -> Any:
        if not passes.is_set():
            order.append("log-prob pass")
        passes.set()
        return inner(*args, **more)

    trainer._get_per_token_logps_and_entropies = watched
    trainer.train()
    assert sorted(order[:2]) == ["judging begins", "log-prob pass"] and order[2] == "judging ends"
