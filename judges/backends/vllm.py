"""A model in this process: vLLM's `LLM` with structured outputs, for judging where no server is to run.

The same prompts, cache and strict reading as behind an endpoint; calls that come together are one batch. Pictures go in as
data URLs. Image tokens and other special ones cannot be sampled. Two roles of one model share one engine. The interpreter
needs vLLM (requirements/gpu.txt, or `.venv-vllm` on CPU); `judges.<role>.engine` are arguments of `vllm.LLM`, such as
{gpu_memory_utilization: 0.3, tensor_parallel_size: 2}.
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
from fgrpo.policy import tokens
from judges.base import Backend, JudgeSet, Meter, make_meter
from judges.client import CUT_OFF, Unanswered, estimate
from judges.model_judge import judges_of_model
from judges.requests import Call, Unusable

PICTURES = 8  # in one call at most, if `engine` does not say otherwise
_FORBIDDEN_BIAS = -100.0
_GATHERING_S = 0.01  # how long a batch waits for calls that come together


@dataclass
class _Asked:
    """One call that waits for the engine."""

    call: Call
    urls: Sequence[str]
    most: int
    reply: Future[Any] = field(default_factory=Future)


class Engine:
    """A vLLM engine and the thread that feeds it; made by `shared`, which counts its users.

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
        given: dict[str, Any] = {"limit_mm_per_prompt": {"image": PICTURES, "video": 0}, "generation_config": "vllm"}
        if current_platform.is_cpu():
            given |= {"enforce_eager": True, "dtype": "float32"}
            for name, value in CPU_ENVIRONMENT.items():
                os.environ.setdefault(name, value)
        try:
            self._llm = vllm.LLM(model=model, **{**given, **arguments})
        except (RuntimeError, ValueError, OSError, TypeError, MemoryError) as error:
            raise UserError(
                f"{self._name} did not start ({_first_line(error)}; its own words stand above); if memory "
                "ran out, lower gpu_memory_utilization in the judge's `engine`"
            ) from error
        self._bias = dict.fromkeys(tokens.forbidden_token_ids(model), _FORBIDDEN_BIAS)
        self._waiting: queue.Queue[_Asked | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"judge {model}", daemon=True)
        self._thread.start()
        self.users = 0

    def submit(self, asked: _Asked) -> None:
        """Hand a call over; its future gets vLLM's output, or the error of this call."""
        self._waiting.put(asked)

    def stop(self) -> None:
        """Finish what is under way and end the engine."""
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
            # nobody waits any more for a call that was cancelled; its future would take no answer
            batch = [asked for asked in batch if asked.reply.set_running_or_notify_cancel()]
            if batch:
                self._answer(batch)
            if is_last:
                return

    def _answer(self, batch: list[_Asked]) -> None:
        """The outputs of a batch; a call that vLLM refuses fails alone."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            outputs = self._llm.chat(
                [_conversation(asked) for asked in batch], [self._parameters(asked) for asked in batch], use_tqdm=False
            )
        except Exception as error:  # noqa: BLE001 - handed to those who wait: this thread must live
            refused = isinstance(error, (ValueError, VLLMClientError))
            if refused and len(batch) > 1:  # it does not say which one
                for asked in batch:
                    self._answer([asked])
                return
            told: Exception = Unanswered("refused", _first_line(error)) if refused else error
            if isinstance(error, EngineDeadError):
                told = UserError(f"{self._name} died (its own words stand above); run the same command again")
            for asked in batch:
                asked.reply.set_exception(told)
            return
        for asked, output in zip(batch, outputs, strict=True):
            asked.reply.set_result(output)

    def _parameters(self, asked: _Asked) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        if asked.call.choices:
            form = StructuredOutputsParams(choice=list(asked.call.choices))
        else:
            form = StructuredOutputsParams(json=asked.call.schema, disable_any_whitespace=True)
        return SamplingParams(
            temperature=0.0, max_tokens=asked.most, structured_outputs=form, logit_bias=self._bias or None
        )


_ENGINES: dict[str, Engine] = {}
_LOCK = threading.Lock()


class VLLMTransport:
    """A `judges.client.Transport` to an engine in this process, which starts with the first call."""

    def __init__(self, config: schema.Judge, meter: Meter) -> None:
        self._config, self._meter = config, meter
        self._name = json.dumps([config.model, config.engine], sort_keys=True)
        self._engine: Engine | None = None

    async def ask(self, call: Call, urls: Sequence[str]) -> str:
        """See `judges.client.Transport`."""
        engine = await asyncio.to_thread(self._started)
        most = self._config.room(call.size)
        set_aside = estimate(call, urls, most)
        if (full := self._meter.reserve(*set_aside)) is not None:
            raise Unanswered("spend cap", full)
        used: tuple[int, int] | None = None
        try:
            asked = _Asked(call, urls, most)
            engine.submit(asked)
            output = await asyncio.wrap_future(asked.reply)
            used = len(output.prompt_token_ids or ()), len(output.outputs[0].token_ids)
        except Unanswered as error:
            self._meter.fault(error.kind)
            raise
        finally:
            self._meter.settle(set_aside, used)
        if output.outputs[0].finish_reason == "length":
            raise Unusable(CUT_OFF.format(most))
        if not output.outputs[0].text:
            raise Unusable("empty")
        return str(output.outputs[0].text)

    async def close(self) -> None:
        """Let the engine go; its last user stops it."""
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


def _conversation(asked: _Asked) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in asked.urls]
    return [{"role": "user", "content": [*content, {"type": "text", "text": asked.call.text}]}]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = make_meter(config)
    if config.images != "base64":
        config = config.model_copy(update={"images": "base64"})  # nothing goes over a wire
    return judges_of_model(config, meter, VLLMTransport(config, meter))


BACKEND: Backend = _build
