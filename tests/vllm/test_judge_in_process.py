"""The judge's backend `vllm`, on the real vLLM: structured replies, a refused call that fails alone, no image tokens."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fgrpo.inference.base import Request
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT, executable

ROOT = Path(__file__).resolve().parent.parent.parent
SENTENCE = "The red circle is left of the blue square."
# The mini model has never seen JSON and fills reasons without end; a bias keeps it to the marks.
SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from fgrpo.policy import tokens
from fgrpo.schema import Judge
from judges.backends.vllm import Engine
from judges.base import build
from eval.extraction import EXTRACTION_TASK, ExtractionItem
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_TASK, GroundingItem

given = json.loads(sys.stdin.read())
made, biases = Engine._parameters, []

def nudged(self, asked):
    parameters = made(self, asked)
    biases.append(dict(parameters.logit_bias))
    parameters.logit_bias |= {int(i): weight for i, weight in given["bias"].items()}
    return parameters

Engine._parameters = nudged
engine = {"max_model_len": 8192, "max_num_seqs": 16, "limit_mm_per_prompt": {"image": 4, "video": 0},
          "hf_overrides": {"text_config": {"max_position_embeddings": 8192}}}
config = Judge(backend="vllm", model=given["model"], max_completion_tokens=300, concurrency=16, engine=engine,
               cache=given["cache"], prompt_price=1.0, completion_price=2.0)
texts = [ConsistencyItem(str(n), f"Question {n}?", ("left", "right"), given["sentence"], "left") for n in range(4)]
spans = [ExtractionItem(str(n), ("left", "right"), f"span {n}") for n in range(4)]
pictures = [GroundingItem(str(n), tuple(images), "Where?", (given["sentence"], "It is red."), ((), (given["sentence"],)))
            for n, images in enumerate(given["images"])]

async def go():
    judges = build(config, "data", given["run"])
    try:
        found = await asyncio.gather(judges.ask(CONSISTENCY_TASK, texts), judges.ask(EXTRACTION_TASK, spans), judges.ask_several(GROUNDING_TASK, pictures))
        first = judges.meter.to_dict()
        again = await judges.ask(EXTRACTION_TASK, spans)
        return found, again, first, judges.meter.to_dict()
    finally:
        await judges.close()

(consistency, extraction, grounding), again, first, last = asyncio.run(go())
forbidden = set(tokens.forbidden_token_ids(given["model"]))
print("RESULT " + json.dumps({
    "consistency": [v.to_dict() for v in consistency],
    "extraction": [v.to_dict() for v in extraction],
    "grounding": [[v.to_dict() for v in of_rollout] for of_rollout in grounding],
    "again": again == extraction, "first": first, "last": last,
    "biased": all(bias.get(i) == -100.0 for bias in biases for i in forbidden) and len(forbidden),
}))
"""


@pytest.mark.slow
def test_judges_in_this_process(greedy: list[Request], tmp_path: Path) -> None:
    from fgrpo.policy import loading

    tokenizer = loading.load_processor("miniworld/backbone").tokenizer
    marks = {'"': 90.0, ":": 50.0, ",": 50.0, "{": 50.0, "}": 50.0}
    given = {
        "model": "miniworld/backbone",
        "sentence": SENTENCE,
        "bias": {tokenizer.convert_tokens_to_ids(mark): weight for mark, weight in marks.items()},
        "images": [list(greedy[0].images), list(greedy[1].images), list(greedy[0].images[:1]) * 9],
        "cache": str(tmp_path / "cache.sqlite"),
        "run": str(tmp_path / "run"),
    }
    done = subprocess.run(
        [executable().parent / "python", "-c", SCRIPT],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, **CPU_ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    assert len(lines) == 1, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("RESULT "))
    assert {v["label"] for v in found["extraction"]} <= {"A", "B", "0"}
    assert not any(v["failed"] for v in found["extraction"])
    assert {v["label"] for v in found["consistency"] if not v["failed"]} <= {"CONSISTENT", "INCONSISTENT"}
    assert not all(v["failed"] for v in found["consistency"]), found["consistency"]
    assert [len(of_rollout) for of_rollout in found["grounding"]] == [2, 2, 2]
    seen = [v["label"] for of_rollout in found["grounding"][:2] for v in of_rollout if not v["failed"]]
    assert seen and set(seen) <= {"CORRECT", "INCORRECT", "SKIP"}
    assert all(v["failed"] and v["label"] is None for v in found["grounding"][2])  # nine pictures: refused, alone
    assert found["biased"] > 0  # image tokens among them
    assert found["again"] and found["last"]["cached"] == 4  # the second pass asks nobody
    assert found["last"]["requests"] == found["first"]["requests"]
    assert found["last"]["money"] > 0 and found["last"]["faults"] == {"refused": 1}
    assert len((tmp_path / "run" / "spend.jsonl").read_text().splitlines()) == found["last"]["requests"] - 1
