"""What shared prompts save: one log-prob pass and its backward pass over groups of rollouts, in three forms of rows.

Command: `python -m perf.shared_prefix` (minutes; needs no earlier stage). Prompts and responses are random text tokens, so that
lengths can be chosen; every form runs in processes of its own, in turn, and its log-probabilities are checked against TRL's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from transformers.utils import logging
from trl.trainer.utils import add_fused_lm_head

from fgrpo.policy import backbone, loading
from perf.common import show
from rl.passes import LogprobPasses, Rows

Result = TypeVar("Result")
BACKBONE = Path(__file__).resolve().parent.parent / "miniworld" / "backbone"
FORMS: dict[Rows, str] = {"trl": "TRL's rows", "by_length": "rows by length", "shared": "shared prompts"}
ROUNDS = 3
CLOSE = 2e-4  # of log-probabilities, float32


@dataclass(frozen=True)
class Shape:
    """Groups of rollouts: `prompt` and `response` are mean lengths in tokens, `micro_batch` rollouts of one of TRL's passes."""

    name: str
    model: str
    prompt: int
    response: int
    groups: int
    group_size: int
    micro_batch: int


MINI = Shape("miniature", "mini", 51, 49, 16, 5, 80)
PAPER = Shape("900 + 350 tokens, 2 layers of 512", "two-layers", 900, 350, 2, 5, 5)
GROWTH = [Shape(f"G = {size}", "mini", 51, 49, 4, size, 4 * size) for size in (2, 4, 8, 16)]


class Passes(LogprobPasses):
    """The passes alone, without a trainer around them."""

    def __init__(self, model: Any, rows: Rows) -> None:
        self.model, self.rows = model, rows
        self.accelerator = Accelerator(cpu=True)
        self.args = SimpleNamespace(report_to=[])


def load(name: str) -> Any:
    """The shipped policy, or two random layers of 512 with a small vocabulary."""
    if name == "mini":
        model, _ = loading.load_policy(BACKBONE)
    else:
        text = {
            "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 8,
            "num_key_value_heads": 2, "vocab_size": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        }  # fmt: skip
        vision = {"depth": 1, "hidden_size": 64, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 512}
        torch.manual_seed(0)
        family = backbone.default()
        model = family.model_class()(family.config_class()(text_config=text, vision_config=vision))
    model.train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def batch(shape: Shape) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Token ids (B, P + T), their mask, and T. Lengths vary by half around their means, as rollouts' do."""
    generator = torch.Generator().manual_seed(1)

    def lengths(mean: int, count: int) -> list[int]:
        return (mean * (0.5 + torch.rand(count, generator=generator))).long().clamp(min=1).tolist()

    prompts, size = lengths(shape.prompt, shape.groups), shape.group_size
    responses = lengths(shape.response, shape.groups * size)
    left, right = max(prompts), max(responses)
    ids = torch.zeros(shape.groups * size, left + right, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for group, prompt in enumerate(prompts):
        text = torch.randint(20, 500, (prompt,), generator=generator)
        for row in range(group * size, (group + 1) * size):
            ids[row, left - prompt : left] = text
            ids[row, left : left + responses[row]] = torch.randint(20, 500, (responses[row],), generator=generator)
            mask[row, left - prompt : left + responses[row]] = 1
    return ids, mask, right


def measure(shape: Shape, rows: Rows) -> tuple[float, float, int, list[Any]]:
    """In a process of its own: (CPU seconds, peak memory in MB above the loaded model, tokens computed, log-probabilities)."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, (ids, mask, kept) = load(shape.model), batch(shape)
    tokens: list[int] = []
    model.register_forward_pre_hook(lambda _, __, given: tokens.append(given["input_ids"].numel()), with_kwargs=True)
    passes = Passes(model, rows)
    _ = passes.plain_model  # accelerate's first look at a model imports libraries, once per process
    before, began = _peak(), time.process_time()
    found = []
    for start in range(0, len(ids), shape.micro_batch):
        part = slice(start, start + shape.micro_batch)
        logps, _, _ = passes._get_per_token_logps_and_entropies(
            model, ids[part], mask[part], kept, compute_entropy=True
        )
        known = mask[part, -kept:]
        (logps * known).sum().backward()
        found.append((logps.detach() * known).numpy())
    return time.process_time() - began, _peak() - before, sum(tokens), found


def in_own_process(work: Callable[..., Result], *given: Any) -> Result:
    """What `work` returns in a new process. Raises BrokenProcessPool if that process is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare(shape: Shape) -> dict[Rows, tuple[float, float, float, int]]:
    """Per form: median CPU seconds, their relative spread, peak memory, tokens. Forms alternate over the rounds."""
    seen: dict[Rows, list[tuple[float, float, int]]] = defaultdict(list)
    reference: list[Any] = []
    for _ in range(ROUNDS):
        for rows in FORMS:
            cpu, memory, tokens, found = in_own_process(measure, shape, rows)
            reference = reference or found
            error = max(float(abs(a - b).max()) for a, b in zip(found, reference, strict=True))
            if error > CLOSE:
                raise SystemExit(f"{shape.name}, {FORMS[rows]}: log-probabilities differ by {error:.1e} from TRL's")
            seen[rows].append((cpu, memory, tokens))
    out: dict[Rows, tuple[float, float, float, int]] = {}
    for rows, runs in seen.items():
        times = sorted(run[0] for run in runs)
        middle = statistics.median(times)
        out[rows] = (middle, (times[-1] - times[0]) / middle, statistics.median(run[1] for run in runs), runs[0][2])
    return out


def main() -> None:
    """One table per question."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = []
    for shape in (MINI, PAPER):
        print(f"{shape.name} …", file=sys.stderr)
        found = compare(shape)
        base = found["trl"]
        for rows, (cpu, spread, memory, tokens) in found.items():
            share = [f"{cpu / base[0]:.2f} (± {spread / 2:.0%})", f"{memory / base[2]:.2f}", f"{tokens / base[3]:.2f}"]
            lines.append((shape.name, FORMS[rows], *share))
    show(
        "Prompts that are read once",
        f"One log-prob pass with its backward pass, over TRL's padded rows; one core, medians of {ROUNDS} alternating rounds, "
        "half the range in brackets. Groups of 5; lengths vary by half around 51 + 49 tokens (miniature) and 900 + 350; memory is "
        "the peak above the loaded model. Text alone: with images, each is encoded once per group instead of once per rollout.",
        ("shape", "rows", "CPU seconds", "peak memory", "tokens"),
        lines,
    )
    grown = []
    for shape in GROWTH:
        print(f"{shape.name} …", file=sys.stderr)
        found = compare(shape)
        base = found["trl"]
        times = (f"{found[rows][0] / base[0]:.2f} (± {found[rows][1] / 2:.0%})" for rows in FORMS)
        grown.append((shape.name, *times, f"{found['shared'][3] / base[3]:.2f}"))
    show(
        "Cost as groups grow",
        "The same at the miniature's lengths with 4 groups: CPU seconds over TRL's rows, half the range in brackets, and tokens.",
        ("group size", *FORMS.values(), "tokens of shared prompts"),
        grown,
    )


if __name__ == "__main__":
    main()
