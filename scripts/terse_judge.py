"""A logits processor for the rehearsal's judge: the mini model has never seen JSON and would fill reasons without end.

A bias favours JSON's own marks, so that replies are short and have the required form. Their content means nothing.
Used as `vllm serve … --logits-processors terse_judge:Terse` by scripts/rehearsal.py.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer
from vllm.v1.sample.logits_processor import LogitsProcessor

MARKS = {'"': 90.0, ":": 50.0, ",": 50.0, "{": 50.0, "}": 50.0}


class Terse(LogitsProcessor):
    """The same bias for every request."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        tokenizer = AutoTokenizer.from_pretrained(vllm_config.model_config.model)
        self.ids = torch.tensor([tokenizer.convert_tokens_to_ids(mark) for mark in MARKS], device=device)
        self.bias = torch.tensor(list(MARKS.values()), device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        return None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        logits[:, self.ids] += self.bias.to(logits.dtype)
        return logits
