"""Run by .venv-vllm's interpreter (test_rollouts.py, test_zero3.py): the RL stage with rollouts that come from vLLM.

After each weight sync the engine's tensors are compared with the trainer's; after a run of one process the guards are taken
away one at a time. Behind a server the stage runs a second time, with adapters, below RUNS/lora. Prints one line of JSON.
Command: `.venv-vllm/bin/python tests/vllm/rollouts.py RUNS SCRATCH KEY=VALUE …`, or through torchrun; one process with a
server waits for a line of input before its last question, which the server is no longer there to answer.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.data_utils import prepare_multimodal_messages
from trl.generation.vllm_generation import VLLMGeneration
from weight_reader import differences, effective

import rl.train
from fgrpo import config
from fgrpo.errors import UserError
from fgrpo.policy import adapters, loading
from fgrpo.schema import Config
from fgrpo.schema_base import Lora
from fgrpo.training import distributed
from rl.dry_run import DryRun
from rl.vllm_rollouts import GuardedGeneration


def engine_weights(generation: GuardedGeneration, scratch: Path) -> dict[str, torch.Tensor]:
    if generation.mode == "colocate":
        return effective(generation.engine_model())
    path = scratch / "engine.safetensors"
    generation.vllm_client.post("collective_rpc", {"method": "write_weights", "args": [str(path)]})
    return load_file(path)


def trained_weights(trainer: Any, *, merged: bool = True) -> dict[str, torch.Tensor]:
    """Copies of the policy's tensors, whole on every process; `merged`: with adapters added to what they adapt."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.generation._dist.gather_params(list(model.parameters())), torch.no_grad():
        adapted = merged and adapters.is_adapted(model)
        named = adapters.merged(model) if adapted else model.named_parameters()
        return {name: tensor.detach().clone() for name, tensor in named}


def difference_of(trainer: Any, rows: list[Any]) -> float:
    """Mean difference of log-probabilities a token over fresh rollouts of `rows`."""
    dry_run = DryRun(trainer)
    batch, engine = dry_run.rollout(rows)
    mask = batch["completion_mask"].bool()
    return float((dry_run.logprobs(batch) - engine)[mask].abs().mean())


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
    report["right"] = difference_of(trainer, rows)
    with unguarded("generate"):
        report["doubled"] = difference_of(trainer, rows)
    tower = trainer.plain_model.model.visual
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(1.2)
    trainer._last_loaded_step = -1  # so that the next generation syncs
    with unguarded("sync_weights"):
        report["stale"] = difference_of(trainer, rows)
    trainer._last_loaded_step = -1
    report["fresh"] = difference_of(trainer, rows)
    return report


def stage(cfg: Config, root: Path, scratch: Path) -> tuple[Any, dict[str, Any]]:
    """The whole RL stage; its trainer, and what was seen after each of its weight syncs."""
    report: dict[str, Any] = {"syncs": []}
    held: dict[str, Any] = {}
    build, sync = rl.train.build_trainer, GuardedGeneration.sync_weights

    def kept(*args: Any) -> Any:
        trainer, logbook = build(*args)
        held.update(trainer=trainer, before=trained_weights(trainer), first=trained_weights(trainer, merged=False))
        report["seed"] = torch.initial_seed()
        return trainer, logbook

    def checked(generation: GuardedGeneration) -> None:
        sync(generation)
        trained = trained_weights(held["trainer"])
        if distributed.rank() == 0:
            engine = engine_weights(generation, scratch)
            moved = sum(not torch.equal(held["before"][name], tensor) for name, tensor in trained.items())
            report["syncs"].append({"tensors": len(engine), "moved": moved, "wrong": differences(engine, trained)})

    with (
        mock.patch.object(rl.train, "build_trainer", kept),
        mock.patch.object(GuardedGeneration, "sync_weights", checked),
    ):
        final = rl.train.train(cfg, root) / "final"
    trainer = held["trainer"]
    now, whole = trained_weights(trainer, merged=False), trained_weights(trainer)
    still = [name for name, tensor in trainer.model.named_parameters() if not tensor.requires_grad]
    report["frozen"] = len(still)
    report["frozen_moved"] = [name for name in still if not torch.equal(held["first"][name], now[name])]
    unset_hf_deepspeed_config()  # what is loaded now is whole
    saved = dict(loading.load_policy(final)[0].named_parameters())
    report["saved_otherwise"] = [name for name, tensor in whole.items() if not torch.equal(saved[name], tensor)]
    return trainer, report


def with_adapters(cfg: Config) -> Config:
    """The same with LoRA, two steps."""
    lora = Lora(rank=4, alpha=8, dropout=0.0)
    return cfg.model_copy(update={"rl": cfg.rl.model_copy(update={"lora": lora, "max_steps": 2})})


def main() -> None:
    cfg, root, scratch = config.load("mini", "fgrpo", sys.argv[3:]), Path(sys.argv[1]), Path(sys.argv[2])
    trainer, report = stage(cfg, root, scratch)
    if trainer.generation.mode == "colocate":
        report |= without_guards(trainer)
    else:
        del trainer
        gc.collect()
        adapted, report["lora"] = stage(with_adapters(cfg), root / "lora", scratch)
        if distributed.world_size() == 1:
            print("waiting", flush=True)
            sys.stdin.readline()
            adapted.generation.vllm_client.session.get_adapter("http://").max_retries.total = 0
            try:
                DryRun(adapted).rollout([adapted.train_dataset[0]])
            except UserError as error:
                report["gone"] = str(error)
    distributed.print_once(json.dumps(report))


if __name__ == "__main__":
    main()
