"""Tree search through the real server, as `make mcts` runs it, and SFT on the traces, as `make sft` trains on them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from fgrpo import response
from fgrpo.config import load
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.vllm_server import Server
from fgrpo.runs import folder
from fgrpo.types import Sample
from mcts.run import distil
from miniworld import questions
from miniworld.render import render
from sft.train import train

BACKBONE = "miniworld/backbone"


def test_the_stage_through_a_vllm_server_and_sft_on_its_traces(server: Server, tmp_path: Path) -> None:
    engine = [f"engine.endpoints={json.dumps([server.url])}", f"engine.model_name={BACKBONE}", "engine.kind=openai"]
    config = load("smoke", overrides=[*engine, "mcts.simulations=3", f"models.teacher={BACKBONE}"])
    rng, samples = random.Random(2), []
    for n, family in enumerate(["hrel", "depth", "vrel", "view", "hrel", "depth"]):
        question = questions.make(family, rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            render(scene, rng).save(tmp_path / f"{n}-{k}.png")
            paths.append(str(tmp_path / f"{n}-{k}.png"))
        samples.append(Sample(f"sat/train/{n}", tuple(paths), question.text, question.choices, question.answer))
    seeds = folder(config, "data", tmp_path) / "seed.jsonl"
    seeds.parent.mkdir(parents=True)
    write_jsonl(seeds, (sample.to_dict() for sample in samples))
    path = distil(config, tmp_path)
    assert (path / "done").exists()
    assert {item["sample_id"] for item in read_jsonl(path / "trees.jsonl")} == {sample.id for sample in samples}
    traces = list(read_jsonl(path / "traces.jsonl"))
    assert traces
    answers = {sample.id: sample.answer for sample in samples}
    for trace in traces:
        parsed = response.parse(trace["text"])
        assert parsed.well_formed
        assert parsed.answer == answers[trace["sample_id"]]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["per_tree"]["read_tokens"] > 0 and manifest["counts"]["failed_trees"] == 0

    steps = ["sft.max_steps=6", "sft.batch_size=4", "sft.evals=3", "sft.logging_steps=1", "data.validation_share=0.4"]
    trained = train(load("smoke", overrides=steps), tmp_path)  # the records are training data as they are
    lines = list(read_jsonl(trained / "metrics.jsonl"))
    assert json.loads((trained / "manifest.json").read_text())["counts"]["traces"] > 0
    losses = [line["loss"] for line in lines if "loss" in line]
    held = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(losses) == 6 and all(0 < loss < 20 for loss in losses)
    assert min(held) < held[0]  # and what they teach carries over to questions that were not trained on
