"""A real vLLM server on the mini backbone, one for the whole session, and what to ask it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fgrpo.inference.base import Request
from fgrpo.inference.serve import COMPACT_JSON, TRUSTING
from fgrpo.inference.vllm_server import CPU_FLAGS, Server
from miniworld import questions
from miniworld.render import render

BACKBONE = "miniworld/backbone"
FAMILIES = ("hrel", "view", "count", "depth", "nearer", "moved", "vrel", "behind")
# Judges' prompts are long in the mini tokenizer's bytes; the weights do not depend on the number of positions.
CONTEXT = 8192
LONG = ("--hf-overrides", json.dumps({"text_config": {"max_position_embeddings": CONTEXT}}))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    files = ("--allowed-local-media-path", str(tmp_path_factory.getbasetemp()))
    with Server(BACKBONE, log=log, flags=(*CPU_FLAGS, *LONG, *COMPACT_JSON, *TRUSTING, *files)) as running:
        yield running


@pytest.fixture(scope="session")
def greedy(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """Greedy requests with one and two pictures."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(11)
    made = []
    for n in range(24):
        question = questions.make(FAMILIES[n % len(FAMILIES)], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            render(scene, rng).save(folder / f"{n}-{k}.png")
            paths.append(str(folder / f"{n}-{k}.png"))
        made.append(Request(tuple(paths), question.text, max_new_tokens=48, temperature=0.0))
    return made
