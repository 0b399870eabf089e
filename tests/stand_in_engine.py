"""Stands for DeepSpeed's engine around a model in one process: what it is asked for, in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Engine(nn.Module):
    """`said` lists forward passes, boundaries of accumulation, backward passes with their loss, and dropped gradients."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.said = module, list[Any]()
        self.optimizer = SimpleNamespace(zero_grad=lambda: self.said.append("zero_grad"))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # as DeepSpeed's does
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **more: Any) -> Any:
        self.said.append("forward")
        return self.module(*args, **more)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.said.append(f"boundary {is_boundary}")

    def backward(self, loss: Tensor) -> None:
        self.said.append(f"backward {abs(loss.item())}")  # -0.0 is no other loss
        loss.backward()
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        assert grads and not any(torch.count_nonzero(grad) for grad in grads), "they would be added to the first step's"
