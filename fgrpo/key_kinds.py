"""What a changed configuration key means for a run folder that already holds work (docs/runs.md).

Every key of the schema has one kind; `KINDS` is the only place that states it, and a test compares it with the schema.

- no effect: the results do not depend on it. The run resumes.
- means: it changes how a result is computed, not what is computed. The run resumes, and the change is recorded.
- length: how long training lasts. The run resumes where the learning-rate schedule does not depend on its length.
- experiment: it changes what is computed. The stage refuses to mix both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Kind(Enum):
    """What a change of a key means."""

    NO_EFFECT = "no effect"
    MEANS = "means"
    LENGTH = "length"
    EXPERIMENT = "experiment"


_NONE, _MEANS, _LENGTH, _EXPERIMENT = Kind.NO_EFFECT, Kind.MEANS, Kind.LENGTH, Kind.EXPERIMENT
_SERVING = {_NONE: "images context tensor_parallel data_parallel dtype memory_share"}
_LORA = {_EXPERIMENT: "rank alpha dropout"}
# `max_completion_tokens`: a reply that is cut off is no verdict, so another limit changes none.
_JUDGE = {
    _NONE: "endpoints api_key_env concurrency timeout_s attempts backoff_s patience_s requests_per_minute "
    "tokens_per_minute prompt_price completion_price money_cap token_cap cache images max_completion_tokens",
    _EXPERIMENT: "backend model reasoning_effort box_frame sentence_calls rubric labels blind engine leave_out",
}
# Arguments of vllm.LLM; every other one (revision, quantization, dtype) may make it another model.
_JUDGE_ENGINE = {
    _NONE: "gpu_memory_utilization kv_cache_memory_bytes tensor_parallel_size pipeline_parallel_size data_parallel_size "
    "max_num_seqs max_num_batched_tokens swap_space cpu_offload_gb enable_prefix_caching enforce_eager download_dir "
    "disable_log_stats distributed_executor_backend",
}

# section -> {kind: names of its keys}; * stands for a name that the configuration chooses.
KINDS: dict[str, dict[Kind, str]] = {
    "": {_NONE: "preset", _EXPERIMENT: "method seed world"},
    "changed": {_NONE: "finished unfinished"},
    "models": {_EXPERIMENT: "base teacher"},
    "policy": {_EXPERIMENT: "box_tag box_frame"},
    "policy.pixels": {_EXPERIMENT: "min max"},
    "engine": {
        _NONE: "endpoints api_key_env concurrency prompt_price completion_price patience_s",
        _MEANS: "batch_size gpu_memory tensor_parallel",
        _EXPERIMENT: "kind model_name dtype context_length leave_out",
    },
    "prompts": {_EXPERIMENT: "think direct teacher"},
    "launch": {_NONE: "machines sft_processes rl_processes sft_image_workers rl_image_workers address port timeout_s"},
    "serve.*": _SERVING,
    "cluster": {_NONE: "partition account gpus cpus hours setup sbatch"},
    "cluster.shards": {_NONE: "data mcts eval"},
    "world": {_EXPERIMENT: "train_per_source bench_per_benchmark"},
    "data": {
        _NONE: "root",  # what lies there counts by its content
        _MEANS: "max_failed_share",
        _EXPERIMENT: "sources boxes_from choices embedder embedder_model per_cluster difficulty_rollouts "
        "difficulty_temperature difficulty_max_new_tokens difficulty_prefix keep_trivial validation_share",
    },
    "data.sources.*": {_EXPERIMENT: "seed rl pool"},
    "mcts": {
        _NONE: "trees_in_flight",
        _MEANS: "max_failed_share",
        _EXPERIMENT: "simulations c_puct children rollouts max_depth temperature top_p step_max_new_tokens "
        "rollout_max_new_tokens selection prior zoom direct_chains corrected_chains backtrack_cue expand_attempts",
    },
    "sft": {
        _NONE: "save_steps logging_steps report_to",
        _MEANS: "attention deepspeed nonfinite batch_size gradient_accumulation",  # their product: `fgrpo.identity`
        _LENGTH: "epochs max_steps",
        _EXPERIMENT: "traces learning_rate weight_decay warmup_ratio scheduler max_length freeze_vision "
        "freeze_projector precision evals lora shared_prefix group_by_length",  # the last two change the order of the traces
    },
    "sft.lora": _LORA,
    "anchor": {_EXPERIMENT: "loss layers cells floor weight epochs max_steps learning_rate add_row"},
    "rl": {
        _NONE: "save_steps keep_checkpoints report_to",
        _MEANS: "micro_batch attention gradient_checkpointing shared_prefix monitor max_failed_share deepspeed nonfinite",
        _LENGTH: "epochs max_steps",
        _EXPERIMENT: "start constraints combine task_reward auxiliary token_weights reference masked baseline whiten box_normaliser learning_rate weight_decay warmup_ratio "
        "scheduler group_size rollout_batch global_batch kl_coef epsilon epsilon_high max_grad_norm max_prompt_length "
        "max_response_length temperature loss freeze_vision freeze_projector precision rollout_engine lora unscorable grounding_mean",
    },
    "rl.constraints.*": {_EXPERIMENT: "tau indicator lr lam_init lam_max min_applicable"},
    "rl.auxiliary.*": {_EXPERIMENT: "weight options"},
    "rl.token_weights": {_EXPERIMENT: "keep lowest blank"},
    "rl.reference": {_EXPERIMENT: "decay every"},
    "rl.dual": {_EXPERIMENT: "kind lr kp kd lam_init lam_max min_applicable"},
    "rl.vllm": {
        _NONE: "server sync_port start_s reply_s memory_share tensor_parallel",
        _MEANS: "max_logprob_diff",
    },
    "rl.probes": {_EXPERIMENT: "fill dilation controls patch_share scope margin_scale layers least_dependence"},
    "rl.lora": _LORA,
    "judges.*": _JUDGE,
    "judges.*.engine": _JUDGE_ENGINE,
    "eval": {
        _MEANS: "max_refused_share batch_size",
        _EXPERIMENT: "engine benchmarks extra_benchmarks models limit temperature max_new_tokens context_length dtype bootstrap_samples "
        "confidence counts sampled_rollouts sampled_temperature",
    },
}

_BY_SECTION = {
    section: {name: kind for kind, names in kinds.items() for name in names.split()} for section, kinds in KINDS.items()
}


def kind_of(key: str) -> Kind | None:
    """The kind of a dotted key such as "rl.micro_batch" or "data.sources.sat.rl"; None for a key that is not listed."""
    *sections, name = key.split(".")
    for pattern, names in _BY_SECTION.items():
        wanted = pattern.split(".") if pattern else []
        if len(wanted) == len(sections) and all(w in ("*", s) for w, s in zip(wanted, sections, strict=True)):
            return names.get(name)
    return None


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings. A key of kind other than "experiment" keeps a mapping as its value."""
    out: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and kind_of(key) in (None, Kind.EXPERIMENT):
            out |= flat(value, f"{key}.")
        else:
            out[key] = value
    return out


def of_kind(section: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """The part of nested mappings whose keys have one of `kinds`; a key that is not listed is of the experiment."""

    def part(inside: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name, value in inside.items():
            kind = kind_of(f"{prefix}{name}")
            if isinstance(value, Mapping) and kind is None:
                if kept := part(value, f"{prefix}{name}."):
                    out[name] = kept
            elif (kind or Kind.EXPERIMENT) in kinds:
                out[name] = part(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
        return out

    return part(section, "")


def of_judge(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a judge's settings (`judges.<role>`, as plain JSON) can change a verdict. Empty settings are left out.

    Settings that an older version stored pass through it too, so that only real differences count.
    """
    kept = of_kind({"judges": {"role": settings}}, Kind.EXPERIMENT)["judges"]["role"]
    return {name: value for name, value in kept.items() if value or name not in ("engine", "leave_out")}
