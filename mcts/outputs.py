"""Final files of the tree-search stage: traces, SFT records, report and viewer, in the order of the seed questions.

All files are written in one pass over the trees, so memory does not grow with their number. Each file is written to
`<name>.part` and renamed when complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from fgrpo import pending, prompts, shards
from fgrpo.errors import UserError
from fgrpo.files import AtomicJsonl, write_atomic, write_jsonl
from fgrpo.inference import budget
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.runs import Run
from fgrpo.schema import Config
from fgrpo.types import Sample, Trace
from mcts import report, store, viewer
from mcts.linearize import linearize
from mcts.step_rules import rules_of

TREES = "trees.jsonl"
FAILED = "failed.jsonl"
OUTPUTS = (TREES, "traces.jsonl", "sft.jsonl", FAILED, "report.md", "viewer.html")
USAGE = ("requests", "completions", "tokens", "read_tokens")


@dataclass(frozen=True)
class Failure:
    """Why a question has no tree, its usage (counts of `USAGE`), and whether a later run may grow it."""

    reason: str
    usage: Mapping[str, int]
    is_transient: bool = False


def sft_record(sample: Sample, trace: Trace, user_text: str) -> dict[str, Any]:
    """A trace as a sharegpt record: the user turn is the reasoning prompt, the assistant turn is the trace."""
    turns = [{"role": "user", "content": user_text}, {"role": "assistant", "content": trace.text}]
    return {
        "id": trace.id,
        "sample_id": sample.id,
        "kind": trace.kind,
        "messages": turns,
        "images": list(sample.images),
    }


def finish(config: Config, stage: Run, samples: list[Sample], failed: dict[str, Failure]) -> None:
    """Write every final file and the manifest.

    Args:
        samples: all seed questions, in order.
        failed: questions without a tree, by sample id.

    Raises:
        UserError: no tree holds a correct chain.
    """
    ids = [sample.id for sample in samples]
    template = prompts.read_for(config.policy, config.prompts.think)
    store.sort_by_ids(stage.path / TREES, ids)
    tally, rules = report.Tally(), rules_of(config)
    gallery = viewer.Gallery(pixel_bounds(config.models.teacher))
    with ExitStack() as files:
        traces_out = files.enter_context(AtomicJsonl(stage.path / "traces.jsonl"))
        sft_out = files.enter_context(AtomicJsonl(stage.path / "sft.jsonl"))
        for tree in store.read(stage.path / TREES, ids):
            tree.policy, tree.rules = config.policy, rules
            traces = linearize(tree)
            tally.add(tree, traces)
            gallery.offer(tree, traces)
            user_text = prompts.user_text(tree.sample, template)
            for trace in traces:
                traces_out.add(trace.to_dict())
                sft_out.add(sft_record(tree.sample, trace, user_text))
    write_failed(stage, failed)
    reasons = {name: failure.reason for name, failure in failed.items()}
    write_atomic(stage.path / "report.md", report.write(tally, reasons))
    write_atomic(stage.path / "viewer.html", gallery.page(config.preset))
    if not tally.accepted:
        raise UserError(
            f"no correct chain in {tally.counts['trees']} trees. Read {stage.path / 'report.md'}, "
            "check that the teacher follows its prompt, then rerun"
        )
    _finish_run(config, stage, tally, failed, template)


def _finish_run(
    config: Config, stage: Run, tally: report.Tally, failed: Mapping[str, Failure], think_template: str
) -> None:
    """Write counts, usage per tree and cost to the manifest, and mark the stage as done."""
    c = tally.counts
    stage.counts.update(c)
    failed_usage = {name: sum(failure.usage[name] for failure in failed.values()) for name in USAGE}
    stage.counts.update({"accepted": tally.accepted, "failed_trees": len(failed)})
    stage.counts.update({f"failed_trees/{name}": n for name, n in failed_usage.items()})
    if transient := sum(failure.is_transient for failure in failed.values()):
        stage.counts[pending.COUNT] = transient
    teacher_template = prompts.read_for(config.policy, config.prompts.teacher)
    per_tree = {name: round(c[name] / c["trees"], 2) for name in ("requests", "completions", "tokens")}
    reports_prompt_tokens = c["read_tokens"] > 0  # in-process engines do not; the cost is then unknown too
    read = {"read_tokens": round(c["read_tokens"] / c["trees"], 2) if reports_prompt_tokens else None}
    total = (c["read_tokens"] + failed_usage["read_tokens"], c["tokens"] + failed_usage["tokens"])
    stage.finish(
        OUTPUTS,
        per_tree={**per_tree, **read},
        cost=budget_of(config).price(*total) if reports_prompt_tokens else None,
        parts_seconds=shards.seconds(stage),
        prompt_hash={"teacher": prompts.digest(teacher_template), "think": prompts.digest(think_template)},
    )


def budget_of(config: Config) -> budget.Budget:
    """Token prices of the engine, from the configuration."""
    return budget.Budget(config.engine.prompt_price, config.engine.completion_price)


def write_failed(stage: Run, failed: Mapping[str, Failure]) -> None:
    """Write failed.jsonl: sample id, reason and usage per failed tree, and whether the next run grows it."""
    lines = (
        {"id": name, "reason": failure.reason, "is_transient": failure.is_transient, **failure.usage}
        for name, failure in failed.items()
    )
    write_jsonl(stage.path / FAILED, lines)
