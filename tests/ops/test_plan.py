"""The plan restates the paper's volumes, counts the real models, and says its formulas and assumptions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from fgrpo.config import load
from fgrpo.errors import UserError
from ops import gpu_hours, memory_estimate, storage, training_memory, training_stages
from ops.assumptions import Assumptions, with_pixels
from ops.judge_cost import judge_cost
from ops.measured import measured, measured_images
from ops.memory_estimate import shape_of
from ops.plan import report
from ops.workload import Line, demand, likely_tokens

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
    counted = shape_of(load(preset).models.base).parameters
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
    whole = {p.name: p.size for p in training_memory.memory(load("paper-7b"), "rl", shape, 1250, 350)}
    trained = 8_292_166_656 - 676_550_144
    assert whole["weights"] == whole["reference policy"] == 2 * 8_292_166_656 / 8
    assert whole["gradients"] == 2 * trained / 8
    assert whole["optimizer"] == 12 * trained / 8
    assert whole["log-probabilities"] == 4 * (1750 * 32768 + 3584 * (152064 + 1750)), "TRL builds no logits"
    adapted = {
        p.name: p.size for p in training_memory.memory(load("paper-7b", overrides=["@lora"]), "rl", shape, 1250, 350)
    }
    assert "reference policy" not in adapted, "the base without its adapters is the reference"
    assert adapted["optimizer"] < whole["optimizer"] / 20
    assert adapted["weights"] > 2 * 8_292_166_656, "ZeRO-2 keeps whole parameters"
    two = {
        p.name: p.size
        for p in training_memory.memory(load("paper-7b", overrides=["@multi-node"]), "rl", shape, 1250, 350)
    }
    assert two["optimizer"] == whole["optimizer"] / 2


def test_a_pass_computes_a_prompt_once_for_its_rollouts() -> None:
    """The issue's figures: a group of five at 900 + 350 tokens takes 2,650 tokens instead of 6,250."""
    assume = Assumptions(["lengths.prompt=900", "lengths.response=350"])
    group, apart, part, two = (
        load("paper-7b", overrides=list(given))
        for given in ((), ("rl.shared_prefix=off",), ("rl.micro_batch=4",), ("rl.micro_batch=10",))
    )
    assert [5 * training_stages.trained_length(cfg, "rl", assume) for cfg in (group, apart, two)] == pytest.approx(
        [2650, 6250, 2650]
    )
    assert training_stages.trained_length(part, "rl", assume) == 1.6 / 4 * 900 + 350
    assert training_stages.trained_length(group, "sft", assume) == 1250
    assert [training_stages.prompts_per_pass(cfg, most=True) for cfg in (group, apart, part, two)] == [1, 5, 2, 2]
    assert gpu_hours.stage_hours(group, "rl", shape_of(SEVEN), assume) == pytest.approx(
        2650 / 6250 * gpu_hours.stage_hours(apart, "rl", shape_of(SEVEN), assume)
    )
    assert "share rows (flash_attention_2): with 1.0 prompts of 900 tokens" in gpu_hours.rows_of(group, assume)
    assert "rl.micro_batch=5, a whole group, needs fewest" in gpu_hours.rows_of(part, assume)
    assert "each rollout has a row of its own (rl.shared_prefix=off)" in gpu_hours.rows_of(apart, assume)
    kept = [
        next(p.size for p in training_memory.memory(cfg, "rl", shape_of(SEVEN), 1250, 350) if p.name == "activations")
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
    kept = storage.checkpoints(load("paper-7b"), "rl", shape)
    assert kept.size == 3 * (2 * 8_292_166_656 + 12 * trained) + 2 * 8_292_166_656
    every = storage.checkpoints(load("paper-7b", overrides=["rl.keep_checkpoints=null"]), "rl", shape)
    assert every.formula.startswith(f"{-(-round(48700 * 3 / 64) // 20)} checkpoints x")
    adapters = storage.checkpoints(load("paper-7b", overrides=["@lora"]), "sft", shape)
    assert adapters.size < kept.size / 5


def test_judge_cost_at_configured_prices() -> None:
    prices = ["judges.evaluation.prompt_price=2", "judges.evaluation.completion_price=10"]
    config = load("paper-7b", overrides=prices)
    line = next(line for line in demand(config) if line.stage == "judge-eval")
    a_pair = 1024 + 1024 + 48 * (20 - 1)  # one label for consistency, one a sentence for grounding
    written = line.calls / 2 * a_pair
    cost = (line.calls * 1500 * 2 + written * 10) / 1e6
    assert f"at most {cost:,.0f} " in judge_cost(line, Assumptions(), None)
    assert f"at most {line.tokens * 3 / 1e6:,.0f} " in judge_cost(line, Assumptions(), 3.0)
    small = next(line for line in demand(load("mini")) if line.stage == "judge-eval")
    letters = next(line for line in demand(config) if line.stage == "extract")
    assert f"{letters.calls * 200:,} tokens read, at most {letters.calls * 16:,} written" in judge_cost(
        letters, Assumptions(), None
    )
    assert "calls no model" in judge_cost(small, Assumptions(), None)


def test_the_plan_stands_beside_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "mini" / "mcts"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"seconds": 300, "parts_seconds": 60, "counts": {"completions": 10800}})
    )
    planned = next(line.calls for line in demand(load("mini")) if line.stage == "mcts")
    (line,) = measured(load("mini"), tmp_path)
    assert f"0.10 hours, 10,800 continuations ({10800 / planned:.0%} of the plan's {planned:,})" in line


def test_the_plan_measures_the_images_of_curated_questions(tmp_path: Path) -> None:
    config, folder = load("paper-7b"), tmp_path / "paper-7b" / "data"
    assert measured_images(config, tmp_path, Assumptions()) == []
    folder.mkdir(parents=True)
    for name, size in (("wide", (640, 480)), ("square", (560, 560))):
        Image.new("RGB", size).save(folder / f"{name}.png")
    rows = [["wide"], ["square", "square"], ["gone"]]
    lines = [
        json.dumps({"id": str(i), "images": [str(folder / f"{n}.png") for n in row]}) for i, row in enumerate(rows)
    ]
    (folder / "rl.jsonl").write_text("\n".join([*lines, json.dumps({"id": "3"}), ""]))
    tokens = (23 * 17, 2 * 20 * 20)  # cells of 28 pixels
    (line,) = measured_images(config, tmp_path, Assumptions())
    assert (
        f"{sum(tokens) / 2:,.0f} tokens per question, at most 800 (2 of 4 RL questions; 2 more cannot be read" in line
    )
    assert 'the plan assumes 529: ASSUME="images.tokens=596" plans with them' in line
    (line,) = measured_images(config, tmp_path, Assumptions(["images.tokens=596"]))
    assert line.endswith("the plan assumes 596")
    (folder / "rl.jsonl").write_text(lines[2] + "\n")
    assert "none of 1 questions" in measured_images(config, tmp_path, Assumptions())[0]


def test_unknown_assumptions_are_named() -> None:
    with pytest.raises(UserError, match=r"unknown assumption 'sampling\.techer'; did you mean 'sampling\.teacher'"):
        Assumptions(["sampling.techer=1"])
    with pytest.raises(UserError, match="must be a number, got 'fast'"):
        Assumptions(["sampling.teacher=fast"])
    for value in ("0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match=rf"sampling\.base must be a positive, finite number, got '{value}'"):
            Assumptions([f"sampling.base={value}"])


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
    (hours,) = [line for line in totals if line.startswith("GPU hours")]
    config, assume = load("paper-7b"), Assumptions()
    trained = sum(gpu_hours.stage_hours(config, stage, shape_of(SEVEN), assume) for stage in ("sft", "rl"))
    assert (
        f"GPU hours  {sampled + trained:,.0f} busy ({sampled:,.0f} sampling and judging, {trained:,.0f} training), "
        in hours
    )
    (clock,) = [line for line in text if line.startswith("total  ")]
    held, wall = re.search(r", (\d+) held in ([\d.]+) hours of wall clock", hours).groups()
    assert f"{held} GPU hours held" in clock and float(clock.split()[1]) == pytest.approx(float(wall), abs=0.06)
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
        (rl,) = [wall for wall in gpu_hours.walls(config, lines, shape, assume) if wall.stage == "rl"]
        assert rl.hours == pytest.approx(sum(rl.parts.values()))
        return dict(rl.parts)

    plain = parts()
    updates = gpu_hours.stage_hours(config, "rl", shape, Assumptions()) / 8
    assert plain["updates"] == pytest.approx(updates)
    assert plain["sync"] == pytest.approx(1142 * 15 / 3600)
    assert plain["checkpoints"] == pytest.approx(storage.written_checkpoints(config, "rl", shape)[1] / 1e9 * 115 / 3600)
    judging = next(gpu_hours.sampling_hours(x, config, Assumptions()) for x in demand(config) if x.stage == "judge-rl")
    assert plain["waiting for judges"] == pytest.approx(judging / 2 - updates / 3)
    (rollouts,) = [gpu_hours.sampling_hours(x, config, Assumptions()) for x in demand(config) if x.stage == "rl"]
    assert plain["generation"] == pytest.approx(rollouts / 6), (
        "the second machine has 2 GPUs of judges, and 6 of rollouts"
    )
    assert plain["images"] == pytest.approx(1142 * 128 / 8 * 0.03 / 3600) and plain["start"] == pytest.approx(0.1)
    assert parts("judging.correct=1")["waiting for judges"] == pytest.approx(judging - updates / 3)
    assert parts("sampling.judge=1e9")["waiting for judges"] == 0.0
    assert parts("rl.sync_s=30")["sync"] == 2 * plain["sync"]
    assert parts("sampling.rollouts=6000")["generation"] == plain["generation"] / 2


def test_the_total_of_the_wall_clock_is_the_sum_of_its_lines() -> None:
    text = report(load("paper-7b"), Assumptions(), "nowhere")
    clock = text[text.index("wall clock (judges of evaluation aside)") + 1 :][:6]
    assert [line.split()[0] for line in clock] == ["data", "mcts", "sft", "rl", "eval", "total"]
    assert "on 7 GPUs" in clock[4] and "on 8 GPUs" in clock[0], "the option extractor has one"
    hours = [float(line.split()[1]) for line in clock]
    assert hours[-1] == pytest.approx(sum(hours[:-1]), abs=0.03)


def test_checkpoints_rollouts_and_pixel_values_of_a_run_are_said() -> None:
    text = "\n".join(report(load("paper-7b"), Assumptions(), "nowhere"))
    assert "115 checkpoints of 108 GB written in all, 12.4 TB (rl.save_steps=20)" in text
    assert "730,880 in 1,142 generations of 640 (128 prompts x 5)" in text
    assert "0.80 GB of pixel values in a process' generation, at most 12.33: 80 rollouts x 529 image tokens" in text
    patches = 4 * 1176  # numbers of an image token
    assert memory_estimate.pixel_bytes(529, 28) == 529 * patches * 4


def test_no_alarm_for_logits_that_are_never_built() -> None:
    """SFT at its limit of 8,192 tokens fits a GPU of 80 GB; logits of it alone would take 50 GB."""
    (line,) = [x for x in report(load("paper-7b"), Assumptions(), "nowhere") if x.startswith("sft") and "limit of" in x]
    assert "more than the GPU's" not in line


def test_bounds_of_an_image_change_tokens_hours_and_memory() -> None:
    plain, assume = load("paper-7b"), Assumptions()
    small, large = (load("paper-7b", overrides=[f"policy.pixels.{bound}"]) for bound in ("max=200704", "min=1003520"))
    assert with_pixels(plain, assume)["images.tokens"] == 529
    for config, tokens in ((small, 256), (large, 36 * 36)):
        changed = with_pixels(config, assume)
        assert changed["images.tokens"] == tokens and changed["lengths.prompt"] == 143 + tokens
        assert with_pixels(config, changed)["lengths.prompt"] == changed["lengths.prompt"], "once"
    assert assume["images.tokens"] == 529, "the assumptions themselves stay"
    shape = shape_of(SEVEN)
    sizes = [memory_estimate.peak(training_memory.likely_memory(c, "rl", shape, assume)) for c in (small, plain, large)]
    assert sizes == sorted(set(sizes))
    text = "\n".join(report(small, assume, "nowhere"))
    assert "448 x 448 pixels / 28^2: 640 x 640, resized within 3,136 to 200,704" in text and "256 image tokens" in text
    by_hand = with_pixels(small, Assumptions(["images.tokens=700"]))
    assert (by_hand["images.tokens"], by_hand["lengths.prompt"]) == (700, 143 + 700)


ANCHORED = ["rl.start=anchor"]


def test_a_method_that_starts_anchored_plans_that_stage_too() -> None:
    plain, config, shape, assume = (
        load("paper-7b"),
        load("paper-7b", overrides=ANCHORED),
        shape_of(SEVEN),
        Assumptions(),
    )
    calls = {line.stage: line.calls for line in demand(config)}
    assert list(calls)[2:5] == ["sft", "anchor", "rl"]
    assert calls["anchor"] == round(6000 * 10 * 1 / (4 * 2 * 8)), "one epoch of SFT's three"
    assert "anchor" not in {line.stage for line in demand(plain)}
    limited = load("paper-7b", overrides=[*ANCHORED, "anchor.max_steps=7"])
    assert {line.stage: line.calls for line in demand(limited)}["anchor"] == 7
    sft, anchor = (gpu_hours.stage_hours(config, stage, shape, assume) for stage in ("sft", "anchor"))
    traces = (calls["sft"] * 64, calls["anchor"] * 64)
    assert anchor / sft == pytest.approx(traces[1] * (2 * 672 + 350) / (traces[0] * (672 + 350))), "prompts pass twice"
    text = report(config, assume, "nowhere")
    clock = text[text.index("wall clock (judges of evaluation aside)") + 1 :][:7]
    assert [line.split()[0] for line in clock] == ["data", "mcts", "sft", "anchor", "rl", "eval", "total"]
    assert sum(line.startswith("anchor ") for line in text) == 6, "calls, hours, wall clock, checkpoints, memory, disk"
    assert not any(line.startswith("anchor ") for line in report(plain, assume, "nowhere"))
    assert "(sft.save_steps=100)" in next(
        line for line in text if line.startswith("anchor ") and "written in all" in line
    )


def test_memory_and_disk_of_the_anchor_stage() -> None:
    """The anchoring loss keeps a pass over each prompt until the backward pass; `start` is one more whole model."""
    config, shape, assume = load("paper-7b", overrides=ANCHORED), shape_of(SEVEN), Assumptions()
    sft, anchor = (
        {part.name: part.size for part in training_memory.likely_memory(config, stage, shape, assume)}
        for stage in ("sft", "anchor")
    )
    assert anchor["activations"] / sft["activations"] == pytest.approx((1022 + 672) / 1022)
    assert {name: size for name, size in anchor.items() if name != "activations"} == {
        name: size for name, size in sft.items() if name != "activations"
    }
    more = storage.checkpoints(config, "anchor", shape).size - storage.checkpoints(config, "sft", shape).size
    assert more == 2 * 8_292_166_656
    kept = load("paper-7b", overrides=["rl.auxiliary={anchoring: {weight: 0.001}}"])
    plain, with_loss = (
        next(p.size for p in training_memory.likely_memory(c, "rl", shape, assume) if p.name == "activations")
        for c in (config, kept)
    )
    assert with_loss / plain == pytest.approx((2 * 672 + 5 * 350) / (672 + 5 * 350))


def test_passes_on_changed_images_are_counted() -> None:
    config, shape, assume = load("paper-7b"), shape_of(SEVEN), Assumptions()
    base = gpu_hours.stage_hours(config, "rl", shape, assume)

    def ratio(*overrides: str) -> float:
        changed = load("paper-7b", overrides=list(overrides))
        return gpu_hours.stage_hours(changed, "rl", shape, assume) / base

    assert ratio("rl.monitor=[consistency,evidence_margin]") == pytest.approx((12 + 2 * 3) / 12), "boxes, two controls"
    assert ratio("rl.monitor=[evidence_margin]", "rl.probes.controls=4") == pytest.approx((12 + 2 * 5) / 12)
    assert ratio("rl.monitor=[vision_dependence]") == pytest.approx(14 / 12)
    assert ratio("rl.monitor=[attention_where_it_matters]") == pytest.approx(16 / 12), "evidence and attention"
    assert ratio("rl.auxiliary={papo: {weight: -0.02}}", "rl.token_weights={}") == pytest.approx(16 / 12)
    changed = load("paper-7b", overrides=["rl.monitor=[evidence_margin]"])
    (line,) = [x for x in report(changed, assume, "nowhere") if x.startswith("rl ") and "FLOP" in x]
    assert "x 18 FLOP" in line and "update 8, probes 2 x 3" in line


def test_a_family_has_its_own_cells_before_its_model_is_downloaded(monkeypatch) -> None:
    """configs/shapes says what an uncached model is."""
    from fgrpo.policy import model_files

    monkeypatch.setattr(model_files, "_local_file", lambda model, name: None)
    seven, eight = load("paper-7b"), load("qwen3-vl-8b")
    assert [with_pixels(config, Assumptions())["images.tokens"] for config in (seven, eight)] == [23 * 23, 20 * 20]
    for name in (eight.models.base, eight.models.teacher):
        assert model_files.pixel_bounds(name) == (65_536, 16_777_216, 32)
    text = "\n".join(report(eight, Assumptions(), "nowhere"))
    assert "400 image tokens x 32^2" in text and "28^2" not in text


def test_a_group_in_several_passes_is_one_prompt_in_each() -> None:
    def prompts(rows: int, size: int) -> tuple[float, float]:
        config = load("paper-7b", overrides=[f"rl.micro_batch={rows}", f"rl.group_size={size}"])
        return training_stages.prompts_per_pass(config), training_stages.prompts_per_pass(config, most=True)

    assert prompts(5, 10) == (1, 1) and prompts(2, 10) == (1, 1) and prompts(10, 5) == (2, 2)
    for rows, size in ((4, 5), (7, 5), (6, 4), (3, 10)):  # by hand: passes of consecutive rollouts
        ends = [range(start, start + rows) for start in range(0, rows * size, rows)]
        found = [len({rollout // size for rollout in one}) for one in ends]
        assert prompts(rows, size) == pytest.approx((sum(found) / len(found), max(found)))


def test_lengths_stay_within_the_limits_of_a_stage() -> None:
    config = load(
        "paper-7b", overrides=["rl.max_response_length=128", "rl.max_prompt_length=600", "sft.max_length=700"]
    )
    assume = Assumptions()
    assert training_stages.trained_length(config, "rl", assume) == 600 / 5 + 128
    assert training_stages.trained_length(config, "sft", assume) == 700
    text = report(config, assume, "none")
    assert any("prompts of 600 tokens and responses of 128, 248 tokens per rollout" in line for line in text)
    likely, most = (640 * (600 + 128) * 57_344 / 1e9,) * 2
    assert any(f"at most {most:,.1f} GB, likely {likely:,.1f} GB" in line for line in text)


@pytest.mark.parametrize("preset", ["paper-7b", "smoke", "mini", "qwen3-vl-4b"])
def test_nothing_is_likelier_than_at_most(preset: str) -> None:
    config, assume = load(preset), Assumptions()
    for line in demand(config, assume):
        assert likely_tokens(line, config, assume) <= line.tokens, line.stage


def test_benchmarks_of_unknown_size_are_named() -> None:
    unknown = "eval.counts=null"
    line = next(line for line in demand(load("paper-7b", overrides=[unknown])) if line.stage == "eval")
    assert line.calls == 0 and "not counted, since eval.counts has no size: cvb_2d, cvb_3d" in line.formula
    line = next(line for line in demand(load("paper-7b", overrides=[unknown, "eval.limit=20"])) if line.stage == "eval")
    assert line.calls == 7 * 20 * 4 and "not counted" not in line.formula


def test_models_behind_other_endpoints_take_no_gpu_hours() -> None:
    def hours(*names: str) -> float:
        config = load("paper-7b", overrides=[f"eval.models=[{','.join(names)}]"])
        (line,) = [line for line in demand(config) if line.stage == "eval"]
        return gpu_hours.sampling_hours(line, config, Assumptions())

    assert hours("gpt-4o") == 0 < hours("fgrpo") == pytest.approx(hours("fgrpo", "gpt-4o"))


def test_a_limited_evaluation_is_planned_as_limited() -> None:
    config = load("paper-7b", overrides=["@first-hour"])
    calls = {line.stage: line.calls for line in demand(config)}
    assert calls["eval"] == calls["extract"] == 7 * 20 * 4
    assert next(
        line for line in demand(load("paper-7b", overrides=["eval.limit=1000"])) if line.stage == "eval"
    ).calls == (4 * (1000 + 1000 + 1000 + 300 + 1000 + 765 + 300))


def test_memory_is_the_largest_phase_beside_what_is_always_held() -> None:
    part = memory_estimate.Part
    parts = [part("a", 5, ""), part("b", 3, "", "passes"), part("c", 2, "", "passes"), part("d", 4, "", "step")]
    assert memory_estimate.peak(parts) == 10 and memory_estimate.peak(parts[:1]) == 5
    config, shape, assume = load("paper-7b"), shape_of(SEVEN), Assumptions()
    found = {p.name: p for p in training_memory.likely_memory(config, "rl", shape, assume)}
    trained = 8_292_166_656 - 676_550_144
    assert found["update"].size == 8 * trained / 8 and found["update"].phase == "step"
    assert found["pixel values"].size == found["pixel values again"].size == 80 * 529 * 6 * 28**2 * 4
    assert "pixel values" not in {p.name for p in training_memory.likely_memory(config, "sft", shape, assume)}
    held = found["weights"].size + found["gradients"].size + found["optimizer"].size + found["reference policy"].size
    step = held + found["pixel values"].size + found["update"].size
    assert memory_estimate.peak(list(found.values())) == pytest.approx(step), "more than the passes of 2,650 tokens"
    few = load("paper-7b", overrides=["launch.rl_processes=2", "rl.deepspeed=configs/deepspeed/zero3.json"])
    wide = {p.name: p for p in training_memory.likely_memory(few, "rl", shape, assume)}
    assert wide["update"].size == 8e9, "ZeRO-3 updates a billion parameters of a shard at a time"


def test_deepspeed_and_trl_hold_what_the_memory_counts() -> None:
    """The lines of their sources that the parts `update` and `pixel values` stand for; read, not imported."""
    import importlib.util

    def source(package: str, file: str) -> str:
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        return (Path(folder) / file).read_text(encoding="utf-8")

    stage3 = source("deepspeed", "runtime/zero/stage3.py")
    assert "self.fp32_partitioned_groups_flat[sub_group_id].grad = single_grad_partition" in stage3
    assert "self.fp32_partitioned_groups_flat[sub_group_id].grad = None" in stage3, "freed after the sub-group"
    assert "sub_group_size: int = Field(pp_int(1e9)" in source("deepspeed", "runtime/zero/config.py")
    engine = source("deepspeed", "runtime/engine.py")
    assert "grad_accum_dtype = model_dtype" in engine, "gradients are held in bf16"
    trl = source("trl", "trainer/grpo_trainer.py")
    assert "self._buffered_inputs = [unsplit_pixel_values_by_grid(batch) for batch in generation_batches]" in trl
