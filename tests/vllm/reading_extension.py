"""The rollout server's worker extension, which can also tell its weights (tests/vllm/test_rollouts.py)."""

from __future__ import annotations

from safetensors.torch import save_file
from weight_reader import effective

from fgrpo.inference.vllm_extension import PlainLinears


class Reader(PlainLinears):
    """`POST /collective_rpc {"method": "write_weights", "args": [path]}`."""

    def write_weights(self, path: str) -> None:
        save_file(effective(self.model_runner.model), path)
