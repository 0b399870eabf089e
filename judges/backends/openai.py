"""A model behind any OpenAI-compatible endpoint: a vLLM server, or the OpenAI API (reasoning effort, JSON schema).

The paper's judges: Qwen3-VL-30B-A3B-Instruct in training, GPT-5.4 in evaluation, Qwen3-4B-Instruct for extraction (Sections
4.1, B.2, C.1). One grounding call holds all sentences of a rollout; the paper makes one call per sentence (`sentence_calls`).
"""

from __future__ import annotations

from pathlib import Path

from fgrpo import schema
from judges.base import Backend, JudgeSet, make_meter
from judges.client import OpenAITransport
from judges.model_judge import judges_of_model


def _build(config: schema.Judge, data_root: Path) -> JudgeSet:
    meter = make_meter(config)
    transport = OpenAITransport(config, meter)
    return judges_of_model(config, meter, transport, transport.check, transport.slots)


BACKEND: Backend = _build
