"""Tokens that passes compute over tokens that rollouts and traces have, for every trainer, on a wide mix of lengths.

Command: `python -m perf.padding` (minutes; needs no earlier stage). Prompts have 374 to 3,974 tokens (log-uniform; the shortest
and longest of the training data; their mean of 1,525 is no estimate of the data's, see configs/plan.yaml), responses 175 to 525. The
model is tiny: only the shapes of its inputs count.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

import sft.train
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.policy import loading
from fgrpo.training import distributed
from fgrpo.types import Sample
from perf.common import show
from perf.gpu import stand_in
from perf.gpu.setting import Setting
from perf.token_count import Count, of_rollouts, of_traces
from rl import data
from rl.arguments import grpo_config
from rl.dual import Constraint
from rl.in_process_trainer import InProcessTrainer
from rl.trainer import FaithfulGRPOTrainer

SHORTEST, LONGEST, RESPONSE = 374, 3974, 350
PROMPTS, GROUP = 8, 5  # per process and generation; the paper's 128 prompts are 16 on each of 8
QUESTIONS, TRACES = 16, 4
LIMIT = 1.15
WORD = " left"  # one token of the miniature world's tokenizer
PRESET = "paper-7b"


@dataclass(frozen=True)
class Case:
    """One trainer: "own" (our decoder), "trl" (TRL's generation; the trainer of vLLM's rollouts has its passes), or "sft"."""

    trainer: str
    rows: str
    micro_batch: int
    processes: int = 1

    @property
    def words(self) -> str:
        """Its name in the table."""
        return {"own": "RL, our decoder", "trl": "RL, TRL's generation or vLLM", "sft": "SFT"}[self.trainer]


CASES = [
    Case("trl", "trl", 5),
    *(
        Case(trainer, rows, micro)
        for trainer in ("own", "trl")
        for rows in ("shared", "by_length")
        for micro in (5, 10)
    ),
    *(Case("trl", rows, micro, 2) for rows in ("shared", "by_length") for micro in (5, 10)),
    *(Case("sft", rows, 4, processes) for rows in ("random", "by_length", "shared") for processes in (1, 2)),
]


def mix(count: int, seed: int) -> list[int]:
    """`count` lengths of prompts: log-uniform, the shortest and the longest among them, shuffled."""
    steps = [SHORTEST * (LONGEST / SHORTEST) ** (n / (count - 1)) for n in range(count)]
    lengths = [round(step) for step in steps]
    random.Random(seed).shuffle(lengths)
    return lengths


def response(rng: random.Random) -> int:
    """A length of a response: uniform, half around its mean."""
    return rng.randrange(RESPONSE // 2, RESPONSE * 3 // 2)


def questions(setting: Setting, count: int) -> list[Sample]:
    """Questions whose prompts have the mix's lengths, up to the few tokens of image, options and template."""
    folder = stand_in.data(setting)
    return [
        Sample(f"sat/train/{n}", (str(folder / "0.jpg"),), (WORD * (length - 40)).strip(), ("left", "right"), "left")
        for n, length in enumerate(mix(count, seed=0))
    ]


def rl_count(case: Case, setting: Setting) -> Count:
    """The tokens of one generation with its two updates, in this process."""
    model_folder = stand_in.model(setting, "3b")
    world = distributed.world_size()
    cfg = load(
        PRESET,
        "fgrpo",
        [
            *(
                f"models.base={model_folder}",
                "prompts.think=mini",
                f"rl.micro_batch={case.micro_batch}",
                f"rl.group_size={GROUP}",
            ),
            *(f"rl.rollout_batch={PROMPTS * world}", f"rl.global_batch={PROMPTS * world // 2}", "rl.precision=fp32"),
            *("rl.deepspeed=null", "rl.rollout_engine=transformers", "rl.attention=sdpa", "launch.rl_image_workers=0"),
            *("rl.gradient_checkpointing=false", "rl.report_to=none", "rl.max_steps=2"),
        ],
    )
    samples = questions(setting, PROMPTS * world)
    model, processor = loading.load_policy(model_folder)
    loading.freeze_vision(model, projector=True)
    forbidden = loading.forbidden_token_ids(processor.tokenizer, model.lm_head.weight.shape[0])
    args = grpo_config(cfg, setting.work / "rl", 2, forbidden)
    args.save_strategy = SaveStrategy.NO
    kind = InProcessTrainer if case.trainer == "own" else FaithfulGRPOTrainer
    trainer = kind(
        model, [_alternating("task", 2), _alternating("one", 3)], args, data.to_dataset(samples, "{question}\n{options}"),
        processing_class=processor, constraints=[Constraint("one", 0.5, min_applicable=1)], rows=case.rows,
    )  # fmt: skip
    rng = random.Random(distributed.rank())
    word = processor.tokenizer(WORD)["input_ids"][0]
    trainer._generate_single_turn = lambda ids, *_, **__: ([[word] * response(rng) for _ in ids], None)
    with of_rollouts(trainer) as count:
        trainer.train()
    return count


def _alternating(name: str, period: int) -> Any:
    def column(*, prompts: Any, **_: Any) -> list[float]:
        return [float(n % period == 0) for n in range(len(prompts))]

    column.__name__ = name
    return column


def sft_count(case: Case, setting: Setting) -> Count:
    """The tokens of one pass over the traces, in this process."""
    model_folder = stand_in.model(setting, "3b")
    rng, records = random.Random(1), []
    for sample in questions(setting, QUESTIONS):
        for n in range(TRACES):
            text = f"<think>{WORD * response(rng)}</think><answer>left</answer>"
            messages = [{"role": "user", "content": sample.question}, {"role": "assistant", "content": text}]
            records.append(
                {"id": f"{sample.id}/{n}", "sample_id": sample.id, "messages": messages, "images": list(sample.images)}
            )
    traces = setting.work / f"traces-{distributed.rank()}.jsonl"
    write_jsonl(traces, records)
    world = distributed.world_size()
    cfg = load(
        PRESET,
        "fgrpo",
        [
            *(f"models.base={model_folder}", "sft.precision=fp32", "sft.deepspeed=null", "sft.attention=sdpa"),
            *(
                f"sft.batch_size={case.micro_batch}",
                f"sft.max_steps={QUESTIONS * TRACES // (case.micro_batch * 2 * world)}",
            ),
            *("launch.sft_image_workers=0", "data.validation_share=0.0", "sft.report_to=none"),
            *(
                f"sft.shared_prefix={'auto' if case.rows == 'shared' else 'off'}",
                f"sft.group_by_length={case.rows == 'by_length'}".lower(),
            ),
        ],
    )
    run: Any = SimpleNamespace(path=setting.work / f"sft-{distributed.rank()}", counts=Counter())
    run.path.mkdir()
    trainer, log = sft.train.build_trainer(cfg, run, traces)
    trainer.args.save_strategy = SaveStrategy.NO
    with of_traces(trainer) as count:
        trainer.train()
    log.close()
    return count


def small(folder: Path) -> Setting:
    """The tiny model below `folder`."""
    return Setting("cpu", "tiny", folder / "work")


def report(case: Case, folder: Path) -> None:
    """One process of one case; writes its counts to `folder`."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    with distributed.session(None, 600):
        count = (sft_count if case.trainer == "sft" else rl_count)(case, small(folder))
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(asdict(count)))


def measure(case: Case) -> dict[str, dict[str, int]]:
    """Run a case in processes of its own; the sums over these.

    Raises:
        UserError: it failed.
    """
    with TemporaryDirectory() as folder:
        stand_in.model(small(Path(folder)), "3b")  # here: of several processes only the first would write it
        stand_in.data(small(Path(folder)))
        starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.processes)]
        words = ["-m", "perf.padding", "--case", str(CASES.index(case)), "--folder", folder]
        done = subprocess.run(
            [sys.executable, *(starter if case.processes > 1 else []), *words],
            stdout=sys.stderr, check=False, env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise UserError(f"{case} failed (see above)")
        ranks = [json.loads(file.read_text()) for file in sorted(Path(folder).glob("*.json"))]
        return {part: {key: sum(rank[part][key] for rank in ranks) for key in ranks[0][part]} for part in ranks[0]}


def row(case: Case, found: dict[str, dict[str, int]]) -> tuple[tuple[str, ...], float]:
    """The table's row, and the case's worst ratio."""
    ratios = [
        part["computed"] / part["real"] if part["real"] else math.nan for part in (found["logprobs"], found["update"])
    ]
    computed, needed = (sum(part[key] for part in found.values()) for key in ("computed", "needed"))
    shown = [f"{ratio:.2f}" if ratio == ratio else "–" for ratio in ratios]
    cells = (
        case.words,
        case.rows.replace("_", " "),
        str(case.micro_batch),
        str(case.processes),
        *shown,
        f"{computed / needed:.2f}",
    )
    return cells, max(ratio for ratio in (*ratios, computed / needed) if ratio == ratio)


def main() -> None:
    """Command line: all cases and their table, or one process of a case."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--trainer", choices=("own", "trl", "sft"), help="only cases of this trainer")
    args = arguments.parse_args()
    if args.case is not None:
        return report(CASES[args.case], args.folder)
    rows, worst = [], 0.0
    for case in CASES:
        if args.trainer in (None, case.trainer):
            print(case, file=sys.stderr)
            cells, ratio = row(case, measure(case))
            rows.append(cells)
            if case.rows not in ("trl", "random"):
                worst = max(worst, ratio)
    show(
        "Padding: tokens computed over tokens of rollouts",
        f"Prompts of {SHORTEST} to {LONGEST:,} tokens, responses around {RESPONSE}, groups of {GROUP}, {PROMPTS} prompts per process and generation; "
        f"{QUESTIONS * TRACES} traces in SFT. Below 1, a prompt is computed once for several rollouts. The last column is the cost of padding alone. "
        f"Rows of TRL and SFT's random order are what the others avoid; the worst figure of the others is {worst:.2f}.",
        ("trainer", "rows", "micro-batch", "processes", "old and reference passes", "updates", "computed / needed"),
        rows,
    )


if __name__ == "__main__":
    main()
