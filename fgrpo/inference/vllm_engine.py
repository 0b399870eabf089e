"""Sampling from vLLM without a server: the engine starts with this process and ends with it (Appendix B.1).

Requests are what a server would get, rendered here: the same prompt ids (`fgrpo.policy.loading.render_prompt`), images, sampling
parameters and forbidden tokens. So the three engines give the same tokens under greedy decoding in float32 (tested on the
real vLLM for CPU). The interpreter needs vLLM: requirements/gpu.txt, or `.venv-vllm` for CPU
(`.venv-vllm/bin/python -m eval.run --set engine.kind=vllm …`).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import open_for_model
from fgrpo.inference.base import FORBIDDEN_BIAS, Completion, Request, SamplingError, UnusableImage, check, describe
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT
from fgrpo.policy import loading, model_files, plain_tags, tokens
from fgrpo.process_guard import Guard

IMAGES = 8  # per prompt at most
# vLLM 0.31 cannot rewind a CPU generator, so there a seeded prompt must not be split (fgrpo.inference.vllm_server.CPU_FLAGS)
CPU_ARGUMENTS: dict[str, Any] = {"enforce_eager": True, "enable_chunked_prefill": False}


class VLLMSampler:
    """A `Sampler` over a vLLM engine of its own, from `load`. It belongs to the event loop that samples first."""

    def __init__(self, engine: Any, processor: Any, forbidden: Sequence[int], path: str, guard: Guard) -> None:
        self._engine, self._processor, self._path, self._guard = engine, processor, path, guard
        self._bias = dict.fromkeys(forbidden, FORBIDDEN_BIAS)
        self._request_ids = itertools.count()
        self._plain: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "float32",
        batch_size: int = 16,
        *,
        context_length: int | None = None,
        memory: float = 0.9,
        tensor_parallel: int = 1,
        pixels: PixelBounds | None = None,
    ) -> VLLMSampler:
        """An engine over the model at `path`; waits until it is ready.

        Args:
            dtype: "float32", "bfloat16" or "float16".
            batch_size: sequences decoded together at most.
            context_length: tokens of prompt and reply at most; the model's own limit if that is smaller, or with None.
            memory: share of the GPU's memory that the engine may take.
            tensor_parallel: GPUs that share one copy of the model.
            pixels: bounds of a resized image, in place of the processor's own.

        Raises:
            UserError: no vLLM in this interpreter, an unknown model family, or an engine that does not start (for lack of
                memory, for example; the message says which settings to lower).
        """
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise UserError(
                f'engine.kind is "vllm" and this interpreter has no vLLM that loads ({error}); install '
                "requirements/gpu.txt, run with .venv-vllm/bin/python (`make setup-vllm`), or serve the model and set "
                "engine.kind=openai"
            ) from error
        tokens.check_served_tags(str(path))
        limit = context_of(model_files.check_policy(path))
        arguments: dict[str, Any] = {
            "model": str(path),
            "dtype": dtype,
            "max_model_len": min(limit, context_length or limit),
            "max_num_seqs": batch_size,
            "limit_mm_per_prompt": model_files.backbone_of(path).vllm_limits(IMAGES),
            "generation_config": "vllm",  # not the sampling defaults of the model's own file
            "gpu_memory_utilization": memory,
            "tensor_parallel_size": tensor_parallel,
            "disable_log_stats": True,
        }
        if pixels is not None:
            arguments["mm_processor_kwargs"] = model_files.processor_arguments(pixels)
        if loading.device() == "cpu":
            arguments |= CPU_ARGUMENTS
            for name, value in CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        plain = tempfile.TemporaryDirectory(prefix="fgrpo-plain-tags-")
        if (tokenizer := plain_tags.plain_copy(str(path), Path(plain.name))) is not None:
            arguments["tokenizer"] = tokenizer
        guard = Guard()  # its processes outlive a killed parent otherwise, and keep the memory
        try:
            engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except (RuntimeError, ValueError, OSError, MemoryError) as error:
            guard.release()
            raise UserError(
                f"vLLM's engine over {path} did not start ({_first_line(error)}; its own messages are above); if memory ran "
                "out, lower engine.gpu_memory, eval.context_length or the batch size (eval.batch_size)"
            ) from error
        sampler = cls(engine, loading.load_processor(path), tokens.forbidden_token_ids(str(path)), str(path), guard)
        sampler._plain = plain  # is deleted with the sampler
        return sampler

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` continuations.

        Raises:
            SamplingError: the request cannot be served: a bad parameter, an unreadable image, a prompt beyond the context.
            UserError: the engine has died.
        """
        from vllm.exceptions import VLLMError
        from vllm.v1.engine.exceptions import EngineDeadError

        check(request)
        try:
            prompt = await asyncio.to_thread(self._prompt, request)
        except UserError as error:
            raise UnusableImage(f"{describe(request)}: {error}") from error
        last: Any = None
        try:
            async for output in self._engine.generate(prompt, self._parameters(request), str(next(self._request_ids))):
                last = output
        except EngineDeadError as error:
            raise UserError(
                f"vLLM's engine over {self._path} died (its own messages are above); if memory ran out, lower "
                "engine.gpu_memory, eval.context_length or the batch size (eval.batch_size), then rerun to resume"
            ) from error
        except (ValueError, VLLMError) as error:
            raise SamplingError(f"{describe(request)}: {_first_line(error)}") from error
        outputs = sorted(last.outputs, key=lambda output: output.index) if last is not None else []
        if len(outputs) != request.n:
            raise SamplingError(
                f"{describe(request)}: {request.n} continuations were requested and {len(outputs)} came"
            )
        return [_completion(request, output) for output in outputs]

    async def close(self) -> None:
        """Stop the engine."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
            self._guard.release()
            gc.collect()  # it refers to itself, and its finalizer would run while the interpreter shuts down

    def _prompt(self, request: Request) -> dict[str, Any]:
        """vLLM's input: the rendered text with one image token per image, and the images."""
        text = loading.render_prompt(self._processor, request.images, request.text, request.prefix)
        if not request.images:
            return {"prompt": text}
        return {"prompt": text, "multi_modal_data": {"image": [open_for_model(path) for path in request.images]}}

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=request.n,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop) or None,
            include_stop_str_in_output=True,
            max_tokens=request.max_new_tokens,
            logprobs=0,  # of the sampled token alone
            logit_bias=self._bias or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def context_of(config: dict[str, Any]) -> int:
    """The model's longest sequence in tokens, from its config.json (older files have no `text_config`)."""
    text = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or config["max_position_embeddings"])


def _completion(request: Request, output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise SamplingError(f"{describe(request)}: the engine ended with {output.finish_reason!r}")
    ids = tuple(output.token_ids)
    logprobs = tuple(float(by_token[token].logprob) for token, by_token in zip(ids, output.logprobs or (), strict=True))
    return Completion(output.text, output.finish_reason, ids, logprobs)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
