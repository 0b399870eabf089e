"""The preset's commands in their order, as the Makefile has them, with the check of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fgrpo.config import load
from scripts.rehearsal_paper import checks
from scripts.rehearsal_paper.checks import Result
from scripts.rehearsal_paper.endpoint import Endpoint
from scripts.rehearsal_paper.prepare import BASELINES

PRESET, OVERLAY = "paper-7b", "rehearsal-paper"
ZERO3 = "configs/deepspeed/zero3.json"  # the preset's
Check = Callable[[Path, str, Endpoint], Result]


@dataclass(frozen=True)
class Stage:
    """One command: `python -m <module> <words> --set <settings>`; `codes` are the exit codes that are right here."""

    name: str
    module: str
    check: Check
    words: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)


def stages(short: bool, overrides: Sequence[str] = ()) -> list[Stage]:
    """All stages, for the configuration with these `overrides`. `short`: FGRPO alone, one baseline, few steps and questions, one process for each command.

    Otherwise SFT and FGRPO are trained by two processes under the preset's own ZeRO-3 file, GRPO-T by one.
    """
    config = load(PRESET, "fgrpo", [f"@{OVERLAY}", *overrides])
    methods = ("fgrpo",) if short else ("grpo-t", "fgrpo")
    baselines = BASELINES[:1] if short else BASELINES
    steps = ("sft.max_steps=1", "sft.save_steps=1", "rl.max_steps=2", "rl.save_steps=2") if short else ()
    limit = 4 if short else 12
    # the trained checkpoint is sampled in this process, which on a CPU affords few short answers to small images
    own = ("eval.engine=transformers", "eval.limit=1", "eval.max_new_tokens=96", "eval.batch_size=1")
    own_words = ("--model", "fgrpo", "--benchmarks", "cvb_2d,mmvp,treebench")
    two = {
        stage: () if short else (f"{stage}.deepspeed={ZERO3}", f"launch.{stage}_processes=2") for stage in ("sft", "rl")
    }
    trained = tuple(word for method in methods for word in ("--method", method))[-2:]
    return [
        Stage("plan", "ops.plan", partial(checks.plan, config)),
        Stage("doctor", "ops.doctor", checks.doctor, codes=(0, 1)),
        Stage("data", "data_curation.run", checks.data),
        Stage("mcts", "mcts.run", checks.mcts),
        Stage("sft", "sft.train", checks.sft, settings=(*steps, *two["sft"])),
        *(
            Stage(
                f"rl-{method}",
                "rl.train",
                partial(checks.rl, method),
                ("--method", method),
                (*steps, *(two["rl"] if method == "fgrpo" else ())),
            )
            for method in methods
        ),
        *(
            Stage(
                f"eval-{name}",
                "eval.run",
                partial(checks.evaluation, name),
                ("--model", name),
                (f"eval.limit={limit}",),
            )
            for name in ("qwen2.5-vl-7b-direct", *baselines)
        ),
        Stage("eval-fgrpo", "eval.run", partial(checks.evaluation, "fgrpo"), own_words, own),
        Stage("tables", "eval.tables", checks.tables, trained),
        Stage("figures", "eval.figures", checks.figures),
        Stage("report", "eval.report", checks.report),
        Stage(
            "judge-agreement",
            "eval.judge_validation.run",
            checks.judge_agreement,
            ("--judge", "evaluation", "--world", "6"),
        ),
        Stage("slurm", "ops.slurm", checks.slurm),
    ]
