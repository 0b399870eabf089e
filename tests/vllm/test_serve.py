"""`make serve-teacher` as a user calls it: the real server, its address file, a stage that finds it there, and the end of it."""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
from pathlib import Path

from fgrpo.config import load
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.vllm_server import healthy
from fgrpo.runs import folder
from fgrpo.types import Sample
from miniworld import questions
from miniworld.render import render


def test_a_stage_finds_the_teacher_by_its_address_file(tmp_path: Path) -> None:
    rng, samples = random.Random(4), []
    for n in range(2):
        question = questions.make("hrel", rng)
        render(question.scenes[0], rng).save(tmp_path / f"{n}.png")
        picture = (str(tmp_path / f"{n}.png"),)
        samples.append(Sample(f"sat/train/{n}", picture, question.text, question.choices, question.answer))
    seeds = folder(load("smoke"), "data", tmp_path) / "seed.jsonl"
    seeds.parent.mkdir(parents=True)
    write_jsonl(seeds, (sample.to_dict() for sample in samples))
    address = tmp_path / "smoke" / "serve" / "teacher.json"
    settings = ["engine.kind=openai", f"engine.endpoints=[{tmp_path}/smoke/serve/*.json]", "mcts.simulations=2"]
    stage = [sys.executable, "-m", "mcts.run", "--preset", "smoke", "--runs", str(tmp_path), "--set", *settings]
    stage_and_look = f"{shlex.join(stage)} && echo address {{url}} && cat {shlex.quote(str(address))}"
    command = [
        sys.executable,
        "-m",
        "fgrpo.inference.serve",
        "teacher",
        "--preset",
        "smoke",
        "--runs",
        str(tmp_path),
        "--cpu",
    ]
    done = subprocess.run(
        [*command, "--run", shlex.join(["bash", "-c", stage_and_look])], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    url = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("address "))
    assert f'"url": "{url}"' in done.stdout, "the address file was there while the stage ran"
    trees = {item["id"] for item in read_jsonl(tmp_path / "smoke" / "mcts" / "trees.jsonl")}
    assert trees == {sample.id for sample in samples}
    assert not address.exists()
    assert not healthy(url)
