"""Sampling engines behind one asynchronous interface (`fgrpo.inference.base`)."""

from __future__ import annotations

from fgrpo.boxes import PixelBounds
from fgrpo.inference.base import Sampler
from fgrpo.schema import Config


def build(config: Config, model_path: str, pixels: PixelBounds | None = None) -> Sampler:
    """The engine that the configuration names, over `model_path`. Imports torch only for the engines in process.

    Args:
        model_path: a saved folder or hub name. For an endpoint it is also the name of the served model, unless
            `engine.model_name` gives another.
        pixels: bounds of a resized image, in place of the processor's own. A vLLM server gets them with each request.

    Raises:
        UserError: the model does not load, or no endpoint is configured.
    """
    engine = config.engine
    if engine.kind == "transformers":
        from fgrpo.inference.transformers_engine import TransformersSampler

        return TransformersSampler.load(
            model_path, engine.dtype, engine.batch_size, context_length=engine.context_length, pixels=pixels
        )
    if engine.kind == "vllm":
        from fgrpo.inference.vllm_engine import VLLMSampler

        return VLLMSampler.load(
            model_path,
            engine.dtype,
            engine.batch_size,
            context_length=engine.context_length,
            memory=engine.gpu_memory,
            tensor_parallel=engine.tensor_parallel,
            pixels=pixels,
        )
    from fgrpo.inference.openai_engine import OpenAISampler

    return OpenAISampler(
        engine.endpoints,
        engine.model_name or model_path,
        tokenizer=model_path,
        concurrency=engine.concurrency,
        leave_out=engine.leave_out,
        key_variable=engine.api_key_env,
        patience_s=engine.patience_s,
        pixels=pixels,
    )
