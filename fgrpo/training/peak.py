"""Time and memory of a pass over the largest rows of a training set, measured in the first minute instead of at hour five."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fgrpo.errors import UserError


def largest(sizes: Sequence[float] | Sequence[tuple[float, ...]], count: int) -> list[int]:
    """Indices of the `count` largest sizes, the largest first; of equal ones the earlier."""
    return sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)[:count]


def backward(loss: Tensor, engine: Any = None) -> None:
    """A backward pass whose gradients are to be dropped; `engine` is DeepSpeed's, if it trains.

    The engine adds up gradients until its next step, and they stay in its buffers. Those of `loss * 0` add nothing to that step,
    and its optimizer's `zero_grad` starts the count of micro-batches anew, which under ZeRO-3 overwrites the buffers.
    """
    if engine is None:
        loss.backward()
        return
    engine.set_gradient_accumulation_boundary(is_boundary=False)
    engine.backward(loss * 0)
    engine.optimizer.zero_grad()


def measured(device: torch.device, run: Callable[[], int], rows: str, passes: str, what: str, advice: str) -> str:
    """Run a pass; returns one line with its tokens, its seconds, and on a GPU the peak of its memory.

    Args:
        run: the pass; returns the tokens of its longest row.
        rows: what the rows are, for the line ("largest rows").
        passes: what is run ("forward and backward").
        what: the pass, for the error ("a pass over the largest prompts").
        advice: what to do if it does not fit.

    Raises:
        UserError: it does not fit into the memory of the device.
    """
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    try:
        tokens = run()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{what} does not fit into the device's memory ({str(error).splitlines()[0]}); {advice}"
        ) from error
    seconds = time.perf_counter() - began
    memory = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB at most" if is_cuda else ""
    if is_cuda:
        torch.cuda.empty_cache()
    return f"{rows}: up to {tokens:,} tokens, {passes} in {seconds:.1f} s{memory}"
