"""Run by .venv-vllm's interpreter (tests/vllm/test_rollouts.py): four steps of FGRPO whose rollouts come from vLLM.

After each weight sync the engine's tensors are compared with the trainer's; after the run the guards are taken away one at a
time. Prints one line of JSON. Command: `.venv-vllm/bin/python tests/vllm/rollouts.py RUNS SCRATCH KEY=VALUE …`; with a server
it waits for a line of input before its last question, which the server is no longer there to answer.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from trl.data_utils import prepare_multimodal_messages
from trl.generation.vllm_generation import VLLMGeneration
from weight_reader import differences, effective

from fgrpo import adapters, config, runs
from fgrpo.errors import UserError
from fgrpo.schema import Config
from rl.train import build_trainer
from rl.vllm_rollouts import GuardedGeneration


def engine_weights(generation: GuardedGeneration, scratch: Path) -> dict[str, torch.Tensor]:
    if generation.mode == "colocate":
        return effective(generation.engine_model())
    path = scratch / "engine.safetensors"
    generation.vllm_client.tell("collective_rpc", {"method": "write_weights", "args": [str(path)]})
    return load_file(path)


def trained_weights(trainer: Any) -> dict[str, torch.Tensor]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if adapters.is_adapted(model):
        with torch.no_grad():
            return {name: tensor.detach().clone() for name, tensor in adapters.merged(model)}
    return dict(model.named_parameters())


def probed(trainer: Any, rows: list[Any]) -> float:
    """Mean difference of log-probabilities a token over fresh rollouts of `rows`."""
    batch, engine = trainer.probe(rows)
    mask = batch["completion_mask"].bool()
    return float((trainer.logprobs(batch) - engine)[mask].abs().mean())


@contextmanager
def unguarded(method: str) -> Any:
    """GuardedGeneration with TRL's own method."""
    with mock.patch.object(GuardedGeneration, method, getattr(VLLMGeneration, method)):
        yield


def image_tokens(trainer: Any, pictures: int) -> dict[str, int]:
    """Image tokens of a prompt with so many pictures: the trainer's, and what vLLM reads with and without the guard."""
    rows = [row for row in trainer.train_dataset if len(row["images"]) == pictures][:1]
    ids, images, _ = trainer._tokenize_prompts([prepare_multimodal_messages(r["prompt"], r["images"]) for r in rows])
    token = trainer.processing_class.image_token_id
    found = {"trainer": ids[0].count(token)}
    found["guarded"] = trainer.generation.generate(ids, images, 1)[0][0].count(token)
    with unguarded("generate"):
        found["unguarded"] = trainer.generation.generate(ids, images, 1)[0][0].count(token)
    return found


def without_guards(trainer: Any) -> dict[str, Any]:
    """Colocated: what each guard is for, as figures with and without it."""
    rows = [row for row in trainer.train_dataset if len(row["images"]) == 2][:1]
    report: dict[str, Any] = {"image_tokens": {n: image_tokens(trainer, n) for n in (1, 2)}}
    report["right"] = probed(trainer, rows)
    with unguarded("generate"):
        report["doubled"] = probed(trainer, rows)
    tower = trainer.plain_model.model.visual
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.2)
    trainer._last_loaded_step = -1  # so that the next generation syncs
    with unguarded("sync_weights"):
        report["stale"] = probed(trainer, rows)
    trainer._last_loaded_step = -1
    report["fresh"] = probed(trainer, rows)
    return report


def four_steps(cfg: Config, root: Path, scratch: Path) -> tuple[Any, dict[str, Any]]:
    """A trainer that has trained, and what was seen after each of its weight syncs."""
    questions, policy = runs.folder(cfg, "data", root) / "rl.jsonl", runs.folder(cfg, "sft", root) / "final"
    name = f"rl-{cfg.method}" + ("-lora" if cfg.rl.lora else "")
    with runs.Run.open(cfg, name, [questions, policy], root) as run:
        trainer, logbook = build_trainer(cfg, run, questions, policy)
        report: dict[str, Any] = {"seed": torch.initial_seed(), "syncs": []}
        first = {name: tensor.detach().clone() for name, tensor in trainer.model.named_parameters()}
        before = {name: tensor.clone() for name, tensor in trained_weights(trainer).items()}
        sync = GuardedGeneration.sync_weights

        def checked(generation: GuardedGeneration) -> None:
            sync(generation)
            engine, trained = engine_weights(generation, scratch), trained_weights(trainer)
            moved = sum(not torch.equal(before[name], tensor) for name, tensor in trained.items())
            report["syncs"].append({"tensors": len(engine), "moved": moved, "wrong": differences(engine, trained)})

        with mock.patch.object(GuardedGeneration, "sync_weights", checked):
            trainer.train()
        logbook.close()
    still = [name for name, tensor in trainer.model.named_parameters() if not tensor.requires_grad]
    now = dict(trainer.model.named_parameters())
    report["frozen"] = len(still)
    report["frozen_moved"] = [name for name in still if not torch.equal(first[name], now[name])]
    return trainer, report


def main() -> None:
    root, scratch, *overrides = sys.argv[1:]
    trainer, report = four_steps(config.load("mini", "fgrpo", overrides), Path(root), Path(scratch))
    if trainer.generation.mode == "colocate":
        report |= without_guards(trainer)
    else:
        lora = config.load("mini", "fgrpo", [*overrides, "rl.lora={rank: 4, alpha: 8, dropout: 0.0}", "rl.max_steps=2"])
        adapted, report["lora"] = four_steps(lora, Path(root), Path(scratch))
        print("waiting", flush=True)
        sys.stdin.readline()
        adapted.generation.vllm_client.session.get_adapter("http://").max_retries.total = 0
        try:
            adapted.probe([adapted.train_dataset[0]])
        except UserError as error:
            report["gone"] = str(error)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
