"""Trains the mini backbone from scratch: `python -m miniworld.train_backbone --out FOLDER` (`make backbone`).

Three phases with fixed step counts and seeds (miniworld/recipe.py), independent of wall-clock time: the vision tower with its
head (then frozen), direct answers, and reasoning that answers follow. A checkpoint is written every CHECKPOINT_EVERY steps; after
a kill, rerun to resume from it. The randomness of a step depends on its number only, so an interrupted run sees the same data. At
the end the folder contains the model, the processor and `provenance.json` (command, seed, steps, data hash, metrics). The model
replaces the paper's pretrained Qwen2.5-VL.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fgrpo import cli
from fgrpo.errors import UserError
from miniworld import backbone_eval, fast, language_phase, vision_phase
from miniworld import backbone_model as bm
from miniworld import questions as qs
from miniworld.curriculum import LessonSampler, Pool
from miniworld.recipe import LanguageStage, Recipe, learning_rate

CHECKPOINT_EVERY = 50
CHECKPOINT = "checkpoint.pt"
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.98), 0.01, 1.0
Step = Callable[[int, random.Random], dict[str, float]]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


class Training:
    """The model in training, and its checkpoint on disk.

    Raises:
        UserError: the folder contains a checkpoint of another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.model: Any = bm.build(recipe.seed)
        self.head = vision_phase.Head()
        self.codec = fast.Codec()
        self.seconds: dict[str, float] = {}
        self.phase, self.steps_done, self._optimizer = "", 0, None
        self.finished: list[str] = []
        self.digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True, default=dict).encode()).hexdigest()[:16]
        if (folder / CHECKPOINT).is_file():
            self._load(torch.load(folder / CHECKPOINT, weights_only=True))

    def _load(self, state: dict[str, Any]) -> None:
        if state["recipe"] != self.digest:
            raise UserError(
                f"{self.folder}/{CHECKPOINT} was written with another recipe. Use another --out, or delete the checkpoint"
            )
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.finished, self.seconds = state["finished"], state["seconds"]
        self.phase, self.steps_done, self._optimizer = state["phase"], state["steps_done"], state["optimizer"]

    def save(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the checkpoint atomically."""
        state = {
            "recipe": self.digest,
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "finished": self.finished,
            "seconds": self.seconds,
            "phase": self.phase,
            "steps_done": self.steps_done,
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        partial = self.folder / (CHECKPOINT + ".part")
        torch.save(state, partial)
        os.replace(partial, self.folder / CHECKPOINT)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to log.jsonl."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def run(self, phase: str, parameters: list[Any], step: Step, steps: int, lr: float, warmup: int) -> None:
        """Run the remaining steps of a phase.

        Args:
            step: (step number, rng) -> losses; leaves gradients in the parameters.
            lr: peak learning rate.
            warmup: number of warm-up steps.
        """
        if phase in self.finished:
            return
        optimizer = torch.optim.AdamW(parameters, lr, betas=BETAS, weight_decay=WEIGHT_DECAY)
        if self.phase == phase and self._optimizer is not None:
            optimizer.load_state_dict(self._optimizer)
        else:
            self.phase, self.steps_done = phase, 0
        started = time.process_time()
        window: list[dict[str, float]] = []
        for number in tqdm(range(self.steps_done, steps), desc=phase, initial=self.steps_done, total=steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(lr, number, steps, warmup)
            optimizer.zero_grad(set_to_none=True)
            window.append(step(number, random.Random(f"{self.recipe.seed}/{phase}/{number}")))
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, CLIP))
            if not math.isfinite(norm):
                raise UserError(
                    f"{phase}, step {number + 1}: the gradient norm is {norm}; training has diverged, and the step was not "
                    "taken. Lower the phase's learning rate; the last checkpoint stays"
                )
            optimizer.step()
            if (number + 1) % CHECKPOINT_EVERY == 0 or number + 1 == steps:
                means = {
                    k: _mean([w[k] for w in window if k in w]) for k in dict.fromkeys(k for w in window for k in w)
                }
                self.log({"phase": phase, "step": number + 1, **{k: round(v, 4) for k, v in means.items()}})
                window, self.steps_done = [], number + 1
                self.seconds[phase] = self.seconds.get(phase, 0.0) + time.process_time() - started
                started = time.process_time()
                self.save(optimizer)
        self.finished.append(phase)
        self.save(None)


def train_vision(training: Training) -> None:
    """Run the vision phase; leaves the tower frozen and normalised."""
    stage, visual = training.recipe.vision, training.model.model.visual

    def step(number: int, rng: random.Random) -> dict[str, float]:
        losses = vision_phase.step_loss(training.model, training.head, rng, stage.pictures)
        losses.sum().backward()
        return dict(zip(("color", "shape", "row", "column", "measures"), losses.tolist(), strict=True))

    parameters = [*visual.parameters(), *training.head.parameters()]
    training.run("vision", parameters, step, stage.steps, stage.lr, stage.warmup)
    if "normalise" not in training.finished:
        vision_phase.normalise(training.model, random.Random(f"{training.recipe.seed}/normalise"))
        training.finished.append("normalise")
        training.save(None)
    visual.requires_grad_(False)


def train_language(training: Training, phase: str, stage: LanguageStage, sampler: LessonSampler) -> None:
    """Run one language phase."""
    parameters = [p for p in training.model.parameters() if p.requires_grad]

    def step(number: int, rng: random.Random) -> dict[str, float]:
        return language_phase.step(training.model, sampler, stage, number, rng)

    training.run(phase, parameters, step, stage.steps, stage.lr, stage.warmup)


def data_hash(pool: Pool) -> str:
    """SHA-256 over scenes and pixels of the pool, the data of the language phases."""
    total = hashlib.sha256()
    for scene, image in zip(pool.scenes, pool.images, strict=True):
        total.update(json.dumps(scene.to_dict()).encode() + image.tobytes())
    return total.hexdigest()


def train(folder: Path, recipe: Recipe, command: str, exam: int) -> dict[str, Any]:
    """Train in `folder`, or resume there, and write the backbone to it. Returns the provenance.

    Args:
        command: the command line, stored in the provenance.
        exam: number of held-out questions per family.
    """
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(folder, recipe)
    train_vision(training)
    pool = Pool(recipe.singles, recipe.pairs, f"{recipe.seed}/pool")
    pool.compute(training.model.model.visual)
    sampler = LessonSampler(training.codec, pool)
    train_language(training, "direct", recipe.direct, sampler)
    train_language(training, "follow", recipe.follow, sampler)
    bm.save(training.model, folder)
    provenance = {
        "command": command,
        "seed": recipe.seed,
        "recipe": json.loads(json.dumps(asdict(recipe), default=dict)),
        "data_sha256": data_hash(pool),
        "parameters": sum(p.numel() for p in training.model.parameters()),
        "cpu_seconds": {k: round(v) for k, v in training.seconds.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "figures": {
            "core": backbone_eval.examine(training.model, training.codec, qs.CORE, exam, 1),
            "all": backbone_eval.examine(training.model, training.codec, qs.FAMILIES, exam, 2),
        },
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    (folder / CHECKPOINT).unlink()
    return provenance


def main() -> None:
    parser = argparse.ArgumentParser(description="train the mini backbone from scratch")
    parser.add_argument("--out", type=Path, required=True, help="output folder; an interrupted run resumes")
    parser.add_argument("--quick", action="store_true", help="a few steps of every phase, to test the code")
    parser.add_argument("--exam", type=int, default=100, help="held-out questions per family (default: 100)")
    parser.add_argument("--seed", type=int, help="seed of weights and data (default: the recipe's)")
    parser.add_argument("--direct-steps", type=int, help="steps of direct answers; fewer make a weaker eye")
    parser.add_argument(
        "--follow-steps", type=int, help="steps that teach answers to follow statements; 0 leaves them out"
    )

    def body(args: argparse.Namespace) -> None:
        recipe = (Recipe().quick() if args.quick else Recipe()).changed(args.seed, args.direct_steps, args.follow_steps)
        given = {"--seed": args.seed, "--direct-steps": args.direct_steps, "--follow-steps": args.follow_steps}
        words = [f"{flag} {value}" for flag, value in given.items() if value is not None]
        command = " ".join(["python -m miniworld.train_backbone", *(["--quick"] if args.quick else []), *words])
        provenance = train(args.out, recipe, command, 4 if args.quick else args.exam)
        print(json.dumps(provenance["figures"], indent=2))

    cli.run(body, parser)


if __name__ == "__main__":
    main()
