"""The in-process sampling engine against transformers' own `generate`: tokens per second for the same prompts.

Both sample at temperature 1 from the SFT policy, a batch of groups of rollouts; rounds alternate, and every round reads its
images anew. The engine reads a group's prompt once, and finished rows leave the batch.
Command: `python -m perf.sampling --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from PIL import Image

from fgrpo import prompts, runs
from fgrpo.files import read_jsonl
from fgrpo.inference.base import Request
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.policy import loading
from fgrpo.schema import Config
from fgrpo.types import Sample
from perf.common import load, main, median, show

PROMPTS, ROUNDS = 32, 3


def ours(cfg: Config, model: Any, processor: Any, samples: list[Sample], template: str) -> tuple[int, float]:
    """(tokens, seconds) of one round of the engine."""
    engine = TransformersSampler(model, processor, PROMPTS * cfg.rl.group_size)
    requests = [
        Request(
            s.images,
            prompts.user_text(s, template),
            n=cfg.rl.group_size,
            max_new_tokens=cfg.rl.max_response_length,
            seed=i,
        )
        for i, s in enumerate(samples)
    ]
    began = time.perf_counter()
    completed = engine.complete(requests)
    spent = time.perf_counter() - began
    tokens = 0
    for completions in completed:
        if isinstance(completions, Exception):
            raise completions
        tokens += sum(len(c.token_ids) for c in completions)
    return tokens, spent


def theirs(cfg: Config, model: Any, processor: Any, samples: list[Sample], template: str) -> tuple[int, float]:
    """(tokens, seconds) of one round of `generate` over the same prompts, each repeated for its group."""
    tokenizer = processor.tokenizer
    began = time.perf_counter()
    repeated = [s for s in samples for _ in range(cfg.rl.group_size)]
    texts = [loading.render_prompt(processor, s.images, prompts.user_text(s, template)) for s in repeated]
    pictures = [[Image.open(path).convert("RGB") for path in s.images] for s in repeated]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=cfg.rl.max_response_length,
            suppress_tokens=loading.forbidden_token_ids(tokenizer, model.config.get_text_config().vocab_size),
        )
    spent = time.perf_counter() - began
    written = out[:, inputs["input_ids"].shape[1] :]
    return int((written != tokenizer.pad_token_id).sum()), spent


def body(args: argparse.Namespace) -> None:
    """One table."""
    torch.set_num_threads(1)
    cfg = load(args, args.method)
    questions = runs.require(runs.folder(cfg, "data", args.runs) / "rl.jsonl", "data")
    policy = runs.require(runs.folder(cfg, "sft", args.runs) / "final", "sft")
    samples = [Sample.from_dict(item) for item in read_jsonl(questions)][:PROMPTS]
    model, processor = loading.load_policy(policy)
    template = prompts.read_for(cfg.policy, cfg.prompts.think)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for name, work in (("ours", ours), ("theirs", theirs)):
            tokens, spent = work(cfg, model, processor, samples, template)
            rates[name].append(tokens / spent)
    mine, other = median(rates["ours"]), median(rates["theirs"])
    show(
        "Sampling",
        f"{len(samples)} prompts x {cfg.rl.group_size} rollouts of at most {cfg.rl.max_response_length} tokens, one core, "
        f"{ROUNDS} alternating rounds, images included.",
        ("engine", "tokens per second", "over `generate`"),
        [("transformers' `generate`", f"{other:,.0f}", "1.0"), ("ours", f"{mine:,.0f}", f"{mine / other:.1f}")],
    )


if __name__ == "__main__":
    main(__doc__ or "", body)
