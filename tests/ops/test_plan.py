"""The plan restates the paper's volumes, counts the real models, and says its formulas and assumptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from ops import memory_estimate, plan
from ops.memory_estimate import shape_of
from ops.plan import Assumptions, parameters, report
from ops.workload import Line, demand

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def test_paper_volumes() -> None:
    calls = {line.stage: line.calls for line in demand(load("paper-7b"))}
    assert calls["data"] == 4 * (15700 + 7000 + 13000 + 13000)
    assert calls["mcts"] == 6000 * 8 * 3 * (1 + 2)
    assert calls["sft"] == round(6000 * 10 * 3 / (4 * 2 * 8))
    assert calls["rl"] == round(48700 * 3 / 64) * 64 * 5


def test_extra_benchmarks_are_counted_with_their_published_questions() -> None:
    config, extra = load("paper-7b"), load("paper-7b", overrides=["eval.extra_benchmarks=[blink,treebench,mmvp]"])
    seven, more = ({line.stage: line for line in demand(c)}["eval"] for c in (config, extra))
    assert more.calls - seven.calls == (642 + 405) * len(config.eval.models), "MMVP is one of the seven"


def test_step_limit_wins_over_epochs() -> None:
    line = next(x for x in demand(load("mini", overrides=["rl.max_steps=7"])) if x.stage == "rl")
    assert line.calls == 7 * 16 * 5


def test_judges_are_counted_by_what_the_method_asks() -> None:
    def calls(method: str) -> dict[str, int]:
        return {line.stage: line.calls for line in demand(load("paper-7b", method))}

    fgrpo, task_only = calls("fgrpo"), calls("grpo-t")
    assert fgrpo["judge-rl"] == 2 * fgrpo["rl"]  # consistency and semantic grounding
    assert task_only["judge-rl"] == task_only["rl"]  # consistency is monitored
    assert fgrpo["eval"] == 4 * (1438 + 1200 + 1050 + 300 + 1533 + 765 + 300)
    assert fgrpo["judge-eval"] == 2 * fgrpo["eval"]
    assert fgrpo["extract"] == fgrpo["eval"]


@pytest.mark.parametrize(
    ("preset", "exact", "published"),
    [
        ("paper-3b", 3_754_622_976, 3.75),
        ("paper-7b", 8_292_166_656, 8.29),
        ("qwen3-vl-4b", 4_437_815_808, 4.44),
        ("qwen3-vl-8b", 8_767_123_696, 8.77),
    ],
)
def test_models_have_the_published_size(preset: str, exact: int, published: float) -> None:
    counted = parameters(load(preset))
    print(f"{preset}: {counted:,} parameters")
    assert counted == exact
    assert round(counted / 1e9, 2) == published


def test_what_is_trained_and_what_is_frozen() -> None:
    shape, small = shape_of(SEVEN), shape_of("miniworld/backbone")
    assert shape.encoder + shape.projector == 676_550_144
    projector_trained = shape.trainable(freeze_vision=True, freeze_projector=False)
    assert projector_trained - shape.trainable(freeze_vision=True, freeze_projector=True) == shape.projector
    assert shape.trainable(freeze_vision=False, freeze_projector=True) == shape.parameters

    from fgrpo.policy import loading

    model, _ = loading.load_policy("miniworld/backbone")
    loading.freeze_vision(model, projector=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == small.trainable(freeze_vision=True, freeze_projector=True)


def test_adapters_are_pefts(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from fgrpo.policy import loading

    config = load("mini", overrides=["@lora"])
    assert config.rl.lora is not None
    model, _ = loading.load_policy("miniworld/backbone")
    names = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    adapted = get_peft_model(model, LoraConfig(r=config.rl.lora.rank, target_modules=names))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == shape_of("miniworld/backbone").adapters(config.rl.lora)


def test_memory_of_a_gpu_under_zero3_and_with_adapters() -> None:
    shape = shape_of(SEVEN)
    whole = {p.name: p.size for p in plan.memory(load("paper-7b"), "rl", shape, 1250, 350)}
    trained = 8_292_166_656 - 676_550_144
    assert whole["weights"] == whole["reference policy"] == 2 * 8_292_166_656 / 8
    assert whole["gradients"] == 2 * trained / 8
    assert whole["optimizer"] == 12 * trained / 8
    assert whole["log-probabilities"] == 4 * (1750 * 32768 + 3584 * (152064 + 1750)), "TRL builds no logits"
    adapted = {p.name: p.size for p in plan.memory(load("paper-7b", overrides=["@lora"]), "rl", shape, 1250, 350)}
    assert "reference policy" not in adapted, "the base without its adapters is the reference"
    assert adapted["optimizer"] < whole["optimizer"] / 20
    assert adapted["weights"] > 2 * 8_292_166_656, "ZeRO-2 keeps whole parameters"
    two = {p.name: p.size for p in plan.memory(load("paper-7b", overrides=["@multi-node"]), "rl", shape, 1250, 350)}
    assert two["optimizer"] == whole["optimizer"] / 2


def test_a_pass_computes_a_prompt_once_for_its_rollouts() -> None:
    """The issue's figures: a group of five at 900 + 350 tokens takes 2,650 tokens instead of 6,250."""
    assume = Assumptions(["lengths.prompt=900", "lengths.response=350"])
    group, apart, part, two = (
        load("paper-7b", overrides=list(given))
        for given in ((), ("rl.shared_prefix=off",), ("rl.micro_batch=4",), ("rl.micro_batch=10",))
    )
    assert [5 * plan.trained_length(cfg, "rl", assume) for cfg in (group, apart, two)] == pytest.approx(
        [2650, 6250, 2650]
    )
    assert plan.trained_length(part, "rl", assume) == 1.6 / 4 * 900 + 350
    assert plan.trained_length(group, "sft", assume) == 1250
    assert [plan.prompts_per_pass(cfg, most=True) for cfg in (group, apart, part, two)] == [1, 5, 2, 2]
    assert plan.stage_hours(group, "rl", shape_of(SEVEN), assume) == pytest.approx(
        2650 / 6250 * plan.stage_hours(apart, "rl", shape_of(SEVEN), assume)
    )
    assert "share rows (flash_attention_2): with 1.0 prompts of 900 tokens" in plan.rows_of(group, assume)
    assert "rl.micro_batch=5, a whole group, needs fewest" in plan.rows_of(part, assume)
    assert "each rollout has a row of its own (rl.shared_prefix=off)" in plan.rows_of(apart, assume)
    kept = [
        next(p.size for p in plan.memory(cfg, "rl", shape_of(SEVEN), 1250, 350) if p.name == "activations")
        for cfg in (group, apart)
    ]
    assert kept[0] < kept[1] / 1.5


def test_checkpointing_trades_memory() -> None:
    shape = shape_of(SEVEN)
    kept, again = (
        memory_estimate.activations(shape, 5000, 0, half=True, checkpointing=c)[0].size for c in (False, True)
    )
    assert again < kept / 5
    assert memory_estimate.cache_bytes(shape) == 57_344


def test_every_line_has_its_formula_and_every_assumption_its_source() -> None:
    text = "\n".join(report(load("paper-7b"), Assumptions(["sampling.teacher=123"]), "nowhere"))
    for words in (
        "6,000 trees x 8 simulations x 3 children x (1 step + 2 rollouts)",
        "a tree needs 72 continuations if every proposal is accepted, at most 120 if many are rejected, likely 55",
        "8,292,166,656 parameters",
        "GPU hours: likely tokens (written) / sampling.<sampler> / 3600",
        "57,344 bytes per token (2 x 28 layers x 512 wide x 2)",
        "3 checkpoints x (2 bytes x 8,292,166,656 saved + 12 x 7,615,616,512 trained)",
        "set judges.training.prompt_price and completion_price for its cost",
    ):
        assert words in text
    assert "sampling.teacher            123  --assume" in text
    assert all(line.strip() and len(line.split()) > 2 for line in Assumptions().lines())
    assert "measured in this preset" not in text


def test_disk_of_checkpoints() -> None:
    shape = shape_of(SEVEN)
    trained = 8_292_166_656 - 676_550_144
    kept = plan.checkpoints(load("paper-7b"), "rl", shape)
    assert kept.size == 3 * (2 * 8_292_166_656 + 12 * trained) + 2 * 8_292_166_656
    every = plan.checkpoints(load("paper-7b", overrides=["rl.keep_checkpoints=null"]), "rl", shape)
    assert every.formula.startswith(f"{-(-round(48700 * 3 / 64) // 20)} checkpoints x")
    adapters = plan.checkpoints(load("paper-7b", overrides=["@lora"]), "sft", shape)
    assert adapters.size < kept.size / 5


def test_judge_cost_at_configured_prices() -> None:
    prices = ["judges.evaluation.prompt_price=2", "judges.evaluation.completion_price=10"]
    config = load("paper-7b", overrides=prices)
    line = next(line for line in demand(config) if line.stage == "judge-eval")
    a_pair = 1024 + 1024 + 48 * (20 - 1)  # one label for consistency, one a sentence for grounding
    written = line.calls / 2 * a_pair
    cost = (line.calls * 1500 * 2 + written * 10) / 1e6
    assert f"at most {cost:,.0f} " in plan.judge_cost(line, Assumptions(), None)
    assert f"at most {line.tokens * 3 / 1e6:,.0f} " in plan.judge_cost(line, Assumptions(), 3.0)
    small = next(line for line in demand(load("mini")) if line.stage == "judge-eval")
    letters = next(line for line in demand(config) if line.stage == "extract")
    assert f"{letters.calls * 200:,} tokens read, at most {letters.calls * 16:,} written" in plan.judge_cost(
        letters, Assumptions(), None
    )
    assert "calls no model" in plan.judge_cost(small, Assumptions(), None)


def test_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "mcts"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"seconds": 300, "parts_seconds": 60, "counts": {"completions": 10800}})
    )
    planned = next(line.calls for line in demand(load("mini")) if line.stage == "mcts")
    (line,) = plan.measured(load("mini"), tmp_path)
    assert f"0.10 hours, 10,800 continuations ({10800 / planned:.0%} of the plan's {planned:,})" in line


def test_unknown_assumptions_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown assumption 'sampling\.techer'; did you mean 'sampling\.teacher'"):
        Assumptions(["sampling.techer=1"])
    with pytest.raises(UserError, match="must be a number, got 'fast'"):
        Assumptions(["sampling.teacher=fast"])


def test_a_model_without_a_shape_is_said() -> None:
    with pytest.raises(UserError, match="tests"):
        shape_of("tests")


def test_sentences_that_are_judged_one_by_one_are_calls() -> None:
    def judged(*overrides: str) -> Line:
        lines = demand(load("paper-7b", overrides=overrides), Assumptions(["judging.sentences=7"]))
        return next(line for line in lines if line.stage == "judge-eval")

    together, apart = judged(), judged("judges.evaluation.sentence_calls=true")
    answers = together.calls / 2
    assert together.tokens == answers * (1024 + 1024 + 48 * 6)
    assert (apart.calls, apart.tokens) == (answers * (1 + 7), answers * 1024 * (1 + 7))


def test_totals_are_the_sums_of_the_lines() -> None:
    text = report(load("paper-7b"), Assumptions(), "nowhere")
    totals = text[text.index("total, one method (fgrpo)") :]
    lines = [line for line in demand(load("paper-7b")) if line.sampler]
    assert f"requests   {sum(line.calls for line in lines):,}" in totals
    table = text[: next(n for n, line in enumerate(text) if line.startswith("likely:"))]
    sampled = sum(float(line.split()[4]) for line in table if line.split()[:1] in [[entry.stage] for entry in lines])
    assert f"GPU hours  159: {sampled:,.0f} sampling and judging, 43 training" in totals
    assert "judge cost unknown; no prices are set for judge-rl, judge-eval, extract" in totals
    prices = [f"judges.evaluation.{kind}_price={price}" for kind, price in (("prompt", 1), ("completion", 4))]
    priced = report(load("paper-7b", overrides=prices), Assumptions(), "nowhere")
    assert "judge cost at most 391; no prices are set for judge-rl, extract" in priced
    assert "judge cost at most 0" in report(load("mini"), Assumptions(), "nowhere"), "oracles are free"


def test_wall_clock_is_serial_and_per_stage() -> None:
    """Generation, sync, updates and checkpoints wait for one another; judging is hidden as far as passes run beside it."""
    config, shape = load("paper-7b"), shape_of(SEVEN)

    def parts(*changes: str) -> dict[str, float]:
        assume = Assumptions(changes)
        lines = demand(config, assume)
        (rl,) = [wall for wall in plan.walls(config, lines, shape, assume) if wall.stage == "rl"]
        assert rl.hours == pytest.approx(sum(rl.parts.values()))
        return dict(rl.parts)

    plain = parts()
    updates = plan.stage_hours(config, "rl", shape, Assumptions()) / 8
    assert plain["updates"] == pytest.approx(updates)
    assert plain["sync"] == pytest.approx(1142 * 15 / 3600)
    assert plain["checkpoints"] == pytest.approx(plan.written_checkpoints(config, "rl", shape)[1] / 1e9 * 115 / 3600)
    judging = next(plan.sampling_hours(x, config, Assumptions()) for x in demand(config) if x.stage == "judge-rl")
    assert plain["waiting for judges"] == pytest.approx(judging / 2 - updates / 3)
    assert parts("sampling.judge=1e9")["waiting for judges"] == 0.0
    assert parts("rl.sync_s=30")["sync"] == 2 * plain["sync"]
    assert parts("sampling.rollouts=6000")["generation"] == plain["generation"] / 2


def test_the_total_of_the_wall_clock_is_the_sum_of_its_lines() -> None:
    text = report(load("paper-7b"), Assumptions(), "nowhere")
    clock = text[text.index("wall clock (judges of evaluation aside)") + 1 :][:6]
    assert [line.split()[0] for line in clock] == ["data", "mcts", "sft", "rl", "eval", "total"]
    hours = [float(line.split()[1]) for line in clock]
    assert hours[-1] == pytest.approx(sum(hours[:-1]), abs=0.03)


def test_checkpoints_rollouts_and_pixel_values_of_a_run_are_said() -> None:
    text = "\n".join(report(load("paper-7b"), Assumptions(), "nowhere"))
    assert "115 checkpoints of 108 GB written in all, 12.4 TB (rl.save_steps=20)" in text
    assert "730,880 in 1,142 generations of 640 (128 prompts x 5)" in text
    assert "0.80 GB of pixel values in a process' generation of 80 rollouts, at most 12.3" in text
    patches = 4 * 1176  # numbers of an image token
    assert memory_estimate.pixel_bytes(529, 28) == 529 * patches * 4


def test_no_alarm_for_logits_that_are_never_built() -> None:
    """SFT at its limit of 8,192 tokens fits a GPU of 80 GB; logits of it alone would take 50 GB."""
    (line,) = [x for x in report(load("paper-7b"), Assumptions(), "nowhere") if x.startswith("sft") and "limit of" in x]
    assert "more than the GPU's" not in line


def test_bounds_of_an_image_change_tokens_hours_and_memory() -> None:
    plain, assume = load("paper-7b"), Assumptions()
    small, large = (load("paper-7b", overrides=[f"policy.pixels.{bound}"]) for bound in ("max=200704", "min=1003520"))
    assert plan.with_pixels(plain, assume) is assume
    for config, tokens in ((small, 256), (large, 1280)):
        changed = plan.with_pixels(config, assume)
        assert changed["images.tokens"] == tokens and changed["lengths.prompt"] == 900 - 529 + tokens
        assert plan.with_pixels(config, changed)["lengths.prompt"] == changed["lengths.prompt"], "once"
    assert assume["images.tokens"] == 529, "the assumptions themselves stay"
    shape = shape_of(SEVEN)
    sizes = [sum(part.size for part in plan.likely_memory(c, "rl", shape, assume)) for c in (small, plain, large)]
    assert sizes == sorted(set(sizes))
    text = "\n".join(report(small, assume, "nowhere"))
    assert "policy.pixels: 3,136 to 200,704 pixels of an image" in text and "(256; limit 8,192)" in text
