"""The extension of a rollout server's worker on CPU.

`vllm serve … --worker-extension-cls fgrpo.inference.vllm_extension.PlainLinears` imports it before the model is loaded. The import
itself keeps linear layers plain (`fgrpo.inference.vllm_worker`) for the worker's life: do not import it anywhere else.
"""

from __future__ import annotations

from typing import Any

from fgrpo.inference.vllm_worker import packed, plain_linears

_guard = plain_linears()
_guard.__enter__()


class PlainLinears:
    """Methods added to vLLM's worker; the trainer calls them through the server's /collective_rpc."""

    model_runner: Any

    def packed_layers(self) -> dict[str, list[str]]:
        """{"packed": names of layers that new weights would not reach}."""
        return {"packed": packed(self.model_runner.model)}
