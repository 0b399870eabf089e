"""A model in this process: vLLM's `LLM` with structured outputs, for judging without a server.

Prompts, cache and strict parsing are those of an endpoint. Calls that arrive together form one batch. Images are passed as
data URLs. Image tokens and other special tokens cannot be sampled. Roles with the same model share one engine. The
interpreter needs vLLM (requirements/gpu.txt, or `.venv-vllm` on CPU). `judges.<role>.engine` holds arguments of `vllm.LLM`,
such as {gpu_memory_utilization: 0.3, tensor_parallel_size: 2}.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT
from fgrpo.policy import backbone, tokens
from judges.base import Backend, JudgeSet, Meter, make_meter
from judges.client import CUT_OFF, CutOff, Unanswered, estimate, messages
from judges.model_judge import judges_of_model
from judges.requests import Call, Unusable

IMAGES_PER_CALL = 8  # at most, unless `engine` sets it
_FORBIDDEN_BIAS = -100.0
_GATHERING_S = 0.01  # how long a batch waits for further calls


@dataclass
class _Pending:
    """One call that waits for the engine; its future gets vLLM's output, or the error of this call."""

    call: Call
    urls: Sequence[str]
    max_tokens: int
    reply: Future[Any] = field(default_factory=Future)


class Engine:
    """A vLLM engine and the thread that feeds it; shared by all transports of one model, which count as its users.

    Raises:
        UserError: no vLLM in this interpreter, or an engine that does not start.
    """

    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        try:
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(
                f"the judge's backend is vllm and this interpreter has no vLLM that loads ({error}); install requirements/gpu.txt, "
                "or serve the judge and set its backend to openai"
            ) from error
        self._name = f"vLLM's engine over the judge {model}"
        defaults: dict[str, Any] = {
            "limit_mm_per_prompt": backbone.default().vllm_limits(IMAGES_PER_CALL),
            "generation_config": "vllm",
        }
        if current_platform.is_cpu():
            defaults |= {"enforce_eager": True, "dtype": "float32"}
            for name, value in CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        try:
            self._llm = vllm.LLM(model=model, **{**defaults, **arguments})
        except (RuntimeError, ValueError, OSError, TypeError, MemoryError) as error:
            raise UserError(
                f"{self._name} did not start ({_first_line(error)}; its log is above); if memory ran "
                "out, lower gpu_memory_utilization in the judge's `engine`"
            ) from error
        self._bias = dict.fromkeys(tokens.forbidden_token_ids(model), _FORBIDDEN_BIAS)
        self._waiting: queue.Queue[_Pending | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"judge {model}", daemon=True)
        self._thread.start()
        self.users = 0

    def submit(self, pending: _Pending) -> None:
        """Queue a call; its future gets the result."""
        self._waiting.put(pending)

    def stop(self) -> None:
        """Finish the calls in flight and stop the engine."""
        self._waiting.put(None)
        self._thread.join()
        self._llm.llm_engine.engine_core.shutdown()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, is_last = [first], False
            while not is_last:
                try:
                    more = self._waiting.get(timeout=_GATHERING_S)
                except queue.Empty:
                    break
                is_last = more is None
                batch += [] if more is None else [more]
            # the future of a cancelled call takes no result
            batch = [pending for pending in batch if pending.reply.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)
            if is_last:
                return

    def _answer(self, batch: list[_Pending]) -> None:
        """Run a batch. A call that vLLM refuses fails alone."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs = self._llm.chat(
                [_conversation(p) for p in batch], [self._parameters(p) for p in batch], use_tqdm=False
            )
        except Exception as error:  # noqa: BLE001 - passed on to the waiting calls: this thread must not end
            refused = isinstance(error, (ValueError, VLLMClientError))
            if refused and len(batch) > 1:  # vLLM does not say which call it refuses
                for pending in batch:
                    self._answer([pending])
                return
            reported: Exception = Unanswered("refused", _first_line(error)) if refused else error
            if isinstance(error, EngineDeadError):
                reported = UserError(f"{self._name} died (its log is above); rerun to resume")
            for pending in batch:
                pending.reply.set_exception(reported)
            return
        for pending, output in zip(batch, outputs, strict=True):
            pending.reply.set_result(output)

    def _parameters(self, pending: _Pending) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        if pending.call.choices:
            form = StructuredOutputsParams(choice=list(pending.call.choices))
        else:
            form = StructuredOutputsParams(json=pending.call.schema, disable_any_whitespace=True)
        return SamplingParams(
            temperature=0.0, max_tokens=pending.max_tokens, structured_outputs=form, logit_bias=self._bias or None
        )


_ENGINES: dict[str, Engine] = {}
_LOCK = threading.Lock()


class VLLMTransport:
    """A `judges.client.Transport` to an engine in this process. The engine starts with the first call."""

    def __init__(self, config: schema.Judge, meter: Meter) -> None:
        self._config, self._meter = config, meter
        self._name = json.dumps([config.model, config.engine], sort_keys=True)
        self._engine: Engine | None = None

    async def ask(self, call: Call, urls: Sequence[str], widened: int = 0) -> str:
        """See `judges.client.Transport`."""
        engine = await asyncio.to_thread(self._started)
        max_tokens = self._config.room(call.size, widened)
        reserved = estimate(call, urls, max_tokens)
        if (cap_reached := self._meter.reserve(*reserved)) is not None:
            raise Unanswered("spend cap", cap_reached)
        used: tuple[int, int] | None = None
        try:
            pending = _Pending(call, urls, max_tokens)
            engine.submit(pending)
            output = await asyncio.wrap_future(pending.reply)
            used = len(output.prompt_token_ids or ()), len(output.outputs[0].token_ids)
        except Unanswered as error:
            self._meter.fault(error.kind)
            raise
        finally:
            self._meter.settle(reserved, used)
        if output.outputs[0].finish_reason == "length":
            raise CutOff(CUT_OFF.format(max_tokens))
        if not output.outputs[0].text:
            raise Unusable("empty")
        return str(output.outputs[0].text)

    async def close(self) -> None:
        """Release the engine; its last user stops it."""
        with _LOCK:
            engine, self._engine = self._engine, None
            if engine is None:
                return
            engine.users -= 1
            if engine.users:
                return
            _ENGINES.pop(self._name, None)
        await asyncio.to_thread(engine.stop)

    def _started(self) -> Engine:
        with _LOCK:
            if self._engine is None:
                if self._name not in _ENGINES:
                    _ENGINES[self._name] = Engine(self._config.model, self._config.engine)
                self._engine = _ENGINES[self._name]
                self._engine.users += 1
            return self._engine


def _conversation(pending: _Pending) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in pending.urls]
    return messages(pending.call, [*content, {"type": "text", "text": pending.call.text}])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = make_meter(config)
    if config.images != "base64":
        config = config.model_copy(update={"images": "base64"})  # nothing is sent over a network
    return judges_of_model(config, meter, VLLMTransport(config, meter))


BACKEND: Backend = _build
