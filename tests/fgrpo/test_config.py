"""Layers, overrides, slices, and the errors a person sees."""

from __future__ import annotations

import pytest

from fgrpo.config import CONFIGS, STAGE_KEYS, load, stage_slice
from fgrpo.errors import UserError

PRESETS = sorted(p.stem for p in (CONFIGS / "scale").glob("*.yaml"))
METHODS = sorted(p.stem for p in (CONFIGS / "method").glob("*.yaml"))
OVERLAYS = sorted(p.stem for p in (CONFIGS / "overlay").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_checked_in_configuration_loads(preset: str, method: str) -> None:
    config = load(preset, method)
    assert (config.preset, config.method) == (preset, method)


def test_method_files_stay_small() -> None:
    for path in (CONFIGS / "method").glob("*.yaml"):
        assert len(path.read_text().splitlines()) <= 8, path


def test_later_layers_win_and_overrides_last() -> None:
    assert load("paper-7b").rl.learning_rate == 1e-6
    assert load("mini").rl.learning_rate == 1.5e-4
    assert (
        load("mini", overrides=["rl.learning_rate=0.5", "rl.constraints.consistency.tau=0.5"]).rl.learning_rate == 0.5
    )
    assert load("smoke").judges.training.backend == "oracle", "smoke extends mini"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_overlay_loads_and_changes_something(preset: str, overlay: str) -> None:
    assert load(preset, overrides=[f"@{overlay}"]) != load(preset)


def test_overlays_are_layers_among_the_overrides_in_their_order() -> None:
    both = load("paper-7b", overrides=["@lora,one-node", "rl.lora.rank=8"])
    assert (both.rl.lora and both.rl.lora.rank, both.sft.lora and both.sft.lora.rank) == (8, 64)
    assert (both.launch.sft_processes, both.launch.rl_processes) == (8, 4)
    assert load("paper-7b", overrides=["launch.machines=3", "@multi-node"]).launch.machines == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preset": "mimi"}, "unknown preset 'mimi'; did you mean 'mini'"),
        ({"preset": "mini", "overrides": ["@lor"]}, "unknown overlay 'lor'; did you mean 'lora'"),
        ({"preset": "mini", "method": "fgrp"}, "unknown method 'fgrp'; did you mean 'fgrpo'"),
        (
            {"preset": "mini", "overrides": ["rl.klcoef=1"]},
            "unknown configuration key 'rl.klcoef'; did you mean 'rl.kl_coef'",
        ),
        ({"preset": "mini", "overrides": ["rl.kl_coef=often"]}, "'rl.kl_coef'"),
        ({"preset": "mini", "overrides": ["rl.group_size=1"]}, "'rl.group_size'"),
        ({"preset": "mini", "overrides": ["rl.kl_coef"]}, "dotted.key=value"),
    ],
)
def test_mistakes_name_the_thing_and_the_way_out(arguments: dict, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(**arguments)
    assert words in str(caught.value)


def test_a_rollout_server_at_another_address_is_no_other_run() -> None:
    moved = load("mini", "fgrpo", ["rl.vllm.server=http://elsewhere:1", "rl.vllm.reply_s=5"])
    assert moved.rl.vllm.server == "http://elsewhere:1"
    assert stage_slice(moved, "rl-fgrpo") == stage_slice(load("mini", "fgrpo"), "rl-fgrpo")
    assert stage_slice(load("mini", "fgrpo", ["rl.rollout_engine=vllm-server"]), "rl-fgrpo") != stage_slice(moved, "rl")


def slices(*overrides: str) -> dict[str, object]:
    """The slice of each stage; one for RL per method."""
    configs = {method: load("mini", method, overrides) for method in METHODS}
    before = {stage: stage_slice(configs["fgrpo"], stage) for stage in STAGE_KEYS if stage != "rl"}
    return before | {f"rl-{method}": stage_slice(config, f"rl-{method}") for method, config in configs.items()}


def changed(*overrides: str) -> set[str]:
    """The stages whose slice `overrides` change."""
    before, after = slices(), slices(*overrides)
    return {stage for stage in before if before[stage] != after[stage]}


def test_editing_one_rl_number_changes_the_rl_slices_and_nothing_before() -> None:
    assert changed() == set()
    assert changed("rl.kl_coef=0.5") == {f"rl-{method}" for method in METHODS}


def test_an_unknown_scheduler_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"'sft\.scheduler'.*'cosine'"):
        load("mini", overrides=["sft.scheduler=cosin"])


def test_sft_runs_again_when_its_validation_share_changes() -> None:
    assert changed("data.validation_share=0.5") == {"data", "sft", "anchor"}


def test_stage_slices_cover_run_folder_names() -> None:
    config = load("mini", "grpo-t")
    assert stage_slice(config, "rl-grpo-t")["method"] == "grpo-t"
    assert stage_slice(config, "eval/fgrpo") == stage_slice(config, "eval")
    assert all(stage_slice(config, stage) for stage in STAGE_KEYS)


def test_paper_values_restated_independently() -> None:
    """The numbers of Tables 4 to 7 and Appendix B.1, typed again from the paper, so that a slip in paper.yaml shows."""
    c = load("paper-7b", "fgrpo")
    assert (c.sft.epochs, c.sft.learning_rate, c.sft.weight_decay, c.sft.warmup_ratio) == (3, 1e-6, 0.01, 0.03)
    assert (c.sft.scheduler, c.sft.batch_size, c.sft.gradient_accumulation, c.sft.max_length) == ("cosine", 4, 2, 8192)
    assert (c.sft.freeze_vision, c.sft.precision, c.sft.attention) == (True, "bf16", "flash_attention_2")
    assert not c.sft.freeze_projector and c.rl.freeze_vision and c.rl.freeze_projector
    assert (c.rl.epochs, c.rl.learning_rate, c.rl.weight_decay, c.rl.warmup_ratio) == (3, 1e-6, 0.01, 0.0)
    assert (c.rl.group_size, c.rl.kl_coef, c.rl.epsilon, c.rl.epsilon_high, c.rl.max_grad_norm) == (
        5,
        0.01,
        0.2,
        0.28,
        1.0,
    )
    assert (c.rl.rollout_batch, c.rl.global_batch, c.rl.max_prompt_length, c.rl.max_response_length) == (
        128,
        64,
        8192,
        1024,
    )
    assert {name: constraint.tau for name, constraint in c.rl.constraints.items()} == {
        "consistency": 0.95,
        "spatial_grounding": 0.65,
        "semantic_grounding": 0.95,
    }
    assert c.rl.dual.model_dump() == {
        "kind": "adaptive",
        "lr": 0.05,
        "lam_init": 1.0,
        "lam_max": 5.0,
        "min_applicable": 8,
        "kp": 0.5,
        "kd": 0.1,
    }
    assert (c.mcts.simulations, c.mcts.c_puct, c.mcts.children, c.mcts.rollouts, c.mcts.max_depth) == (8, 2.0, 3, 2, 10)
    assert (c.mcts.direct_chains, c.mcts.corrected_chains) == (8, 2)
    assert c.mcts.backtrack_cue == "Wait, this seems off. Let's try something else."
    sources = {name: (s.seed, s.rl) for name, s in c.data.sources.items()}
    assert sources == {"sat": (1500, 15700), "vgr": (1500, 7000), "viscot": (3000, 13000), "treevgr": (0, 13000)}
    assert (c.data.difficulty_rollouts, c.data.keep_trivial) == (4, 0.10)
    assert (c.eval.temperature, c.eval.max_new_tokens, c.eval.context_length, c.eval.batch_size) == (
        0.0,
        4096,
        32768,
        16,
    )
    assert c.judges.training.model == "Qwen/Qwen3-VL-30B-A3B-Instruct"
    assert (c.judges.evaluation.model, c.judges.evaluation.reasoning_effort) == ("gpt-5.4", "medium")
    assert c.judges.evaluation.max_completion_tokens == 1024
    assert c.judges.extraction.model == "Qwen/Qwen3-4B-Instruct-2507"


def test_the_six_methods_are_the_rows_of_tables_2_and_3() -> None:
    rows = {
        m: (len(load("mini", m).rl.constraints), load("mini", m).rl.combine, load("mini", m).rl.dual.kind)
        for m in METHODS
    }
    rivals = set(METHODS) - {
        "grpo-t",
        "grpo-additive",
        "grpo-multiplicative",
        "fgrpo-consistency",
        "fgrpo",
        "fgrpo-fixed",
    }
    listed = (CONFIGS.parent / "docs" / "rivals.md").read_text()
    assert all(f"| `{m}` |" in listed for m in rivals), (
        "a method is a row of the paper's tables, or a rival of docs/rivals.md"
    )
    assert {m: row for m, row in rows.items() if m not in rivals} == {
        "grpo-t": (0, "none", "adaptive"),
        "grpo-additive": (3, "additive", "adaptive"),
        "grpo-multiplicative": (2, "multiplicative", "adaptive"),
        "fgrpo-consistency": (1, "decoupled", "adaptive"),
        "fgrpo": (3, "decoupled", "adaptive"),
        "fgrpo-fixed": (3, "decoupled", "fixed"),
    }


def test_the_policys_boxes_are_part_of_every_run_that_reads_them() -> None:
    """SFT trains on finished texts and reads no boxes; the world writes none of the policy's."""
    plain, other = load("mini"), load("mini", overrides=["policy.box_tag=box", "policy.box_frame=thousand"])
    changed = {stage for stage in STAGE_KEYS if stage_slice(plain, stage) != stage_slice(other, stage)}
    assert changed == {"data", "mcts", "rl", "eval"}


@pytest.mark.parametrize("section", ["sft", "rl"])
def test_skipping_steps_is_refused_under_deepspeed(section: str) -> None:
    skip, zero = f"{section}.nonfinite=skip", f"{section}.deepspeed=configs/deepspeed/zero2.json"
    load("mini", overrides=[skip])
    load("mini", overrides=[zero])
    with pytest.raises(UserError, match=rf"{section}.*nonfinite=skip is not possible under DeepSpeed"):
        load("mini", overrides=[skip, zero])
