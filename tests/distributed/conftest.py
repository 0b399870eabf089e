"""A small world for runs in several processes: traces, questions, replayed completions, and a copy of the mini policy."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo.files import write_jsonl
from fgrpo.types import Box, Sample
from miniworld import questions, truth
from miniworld.render import render

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("evidence_margin", "control_margin", "vision_dependence", "attention_where_it_matters")
GENEROUS = 1800  # seconds for one start; machines are slow, and no test depends on time
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@dataclass(frozen=True)
class Small:
    """Folders of the world, and the completions that are replayed, by question."""

    folder: Path
    texts: dict[str, list[str]]

    def root(self, name: str) -> Path:
        """A runs root of its own, in which the stages before training are done."""
        root = self.folder / "roots" / name
        if not root.exists():
            shutil.copytree(self.folder / "before", root)
            if name.startswith(("rl", "anchor")):
                (root / "mini" / "sft").mkdir()
                (root / "mini" / "sft" / "final").symlink_to(self.folder / "backbone")
        return root

    def sft(self, *more: str) -> list[str]:
        """Four steps of eight traces; the mini preset else."""
        return [
            f"models.base={self.folder / 'backbone'}",
            *("sft.max_steps=4", "sft.batch_size=4", "sft.save_steps=2", "sft.evals=2", "sft.logging_steps=1"),
            *("data.validation_share=0.2", *more),
        ]

    def rl(self, *more: str) -> list[str]:
        """Four steps of two questions by four rollouts."""
        return [
            *(f"data.root={self.folder}", "data.boxes_from=[vgr]", "rl.rollout_batch=2", "rl.global_batch=2"),
            *("rl.group_size=4", "rl.max_response_length=64", "rl.save_steps=2", "rl.max_steps=4"),
            *("rl.dual.min_applicable=1", f"rl.monitor=[consistency,{','.join(MEASURED)}]", *more),
        ]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The shipped policy's."""
    return small_world(tmp_path_factory.mktemp("distributed"), ROOT / "miniworld" / "backbone")


def small_world(folder: Path, policy: Path) -> Small:
    """Sixteen questions with one and two pictures, and a copy of `policy`, in `folder`."""
    shutil.copytree(policy, folder / "backbone")
    rng, traces, samples, scenes, texts = random.Random(4), [], [], [], {}
    for n in range(16):
        question = questions.make(("hrel", "view", "vrel", "depth")[n % 4], rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            path = folder / f"{n}-{k}.png"
            render(scene, rng).save(path)
            scenes.append({"key": truth.image_key(path), "scene": scene.to_dict()})
            paths.append(str(path))
        trace = questions.trace(question)
        turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": trace}]
        traces += [{"id": f"{n}/{k}", "sample_id": f"sat/{n}", "messages": turns, "images": paths} for k in range(2)]
        things = [question.scenes[-1].by_name(name) for name in question.targets]
        boxes = tuple(Box(*map(float, thing.box)) for thing in things if thing) if n % 2 else None
        sample = Sample(f"vgr/train/{n}", tuple(paths), question.text, question.choices, question.answer, boxes)
        samples.append(sample.to_dict())
        (other,) = (choice for choice in question.choices if choice != question.answer)
        think, answer = trace.split("<answer>")
        texts[sample.id] = [
            trace,
            f"{think}<answer>{other}</answer>",  # contradicts itself, and is wrong
            f"{think.replace(f' {question.answer} ', f' {other} ')}<answer>{answer}",  # contradicts itself, and is right
            f"<think>Nothing is said here.</think><answer>{question.answer}</answer>",
            think.split(".")[0],  # cut off
        ]
    seed = [{**sample, "id": f"sat/{n}"} for n, sample in enumerate(samples)]
    before = folder / "before" / "mini"
    for stage in ("mcts", "data"):
        (before / stage).mkdir(parents=True)
    write_jsonl(before / "mcts" / "sft.jsonl", traces)
    write_jsonl(before / "data" / "rl.jsonl", samples)
    write_jsonl(before / "data" / "seed.jsonl", seed)
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scenes))
    return Small(folder, texts)


def in_two_processes(folder: Path, jobs: list[dict[str, Any]], texts: dict[str, list[str]]) -> None:
    """Do `jobs` of `tests.distributed.worker` in two processes; what each saw is in `folder` as <name>.<rank>.json."""
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs, "texts": texts}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, *torchrun, "-m", "tests.distributed.worker", str(folder / "jobs.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=ROOT,
            timeout=GENEROUS,
            check=False,
        )
    assert done.returncode == 0, (folder / "log").read_text()[-6000:]
