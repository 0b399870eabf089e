"""Runs training stages as one process of several, or as the only one, and writes down what it saw.

Started by `test_training.py` through torchrun: `worker.py <jobs.json>`. A job is {"name", "stage": "sft", "anchor", "rl" or "best",
"set": overrides, "root": runs folder, "stop_at": step or null, "real": whether RL samples itself, "unchecked": whether nothing is tried out
before the first step}. Unless it samples itself, its completions are replayed: they depend on step, question and place in the group alone, so every layout trains on the same rollouts.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import rl.preflight
import rl.train
import sft.anchor
import sft.preflight
import sft.train
from fgrpo import config
from fgrpo.training import distributed
from fgrpo.training.checkpoints import last_checkpoint
from rl.trainer import FaithfulGRPOTrainer


class Replayed(FaithfulGRPOTrainer):
    """Completions from a list, and the multipliers of each step written down."""

    texts: ClassVar[dict[str, list[str]]] = {}
    seen: ClassVar[list[dict[str, Any]]] = []

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        rows, group = list(self._inputs), self.group_size
        if len(rows) != len(prompt_ids):  # the preflight's probe
            return [[self._tokenizer.eos_token_id] for _ in prompt_ids], None
        out = []
        for n, row in enumerate(rows):
            sample = json.loads(row["sample"])["id"]
            text = random.Random(f"{self.state.global_step}:{sample}:{n % group}").choice(self.texts[sample])
            out.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
        return out, None

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        step = self.last_step
        assert step is not None
        self.seen.append({"weights": step.weights_K.tolist(), "lambda": self.dual.lam, "rows": len(step.scores_NK)})
        return output


def run(job: dict[str, Any], texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Do one job; returns what RL saw."""
    Replayed.texts, Replayed.seen = texts, []
    cfg = config.load("mini", "fgrpo", job["set"])
    kind = rl.train.trainer_of if job.get("real") else lambda _: Replayed
    with mock.patch.object(rl.train, "trainer_of", kind), _stopping(job.get("stop_at")), ExitStack() as patches:
        for preflight in (sft.preflight, rl.preflight) if job.get("unchecked") else ():
            patches.enter_context(mock.patch.object(preflight.Preflight, "on_train_begin", lambda *_, **__: None))
        try:
            if job["stage"] == "best":
                _best_at_the_end(cfg, Path(job["root"]))
            else:
                {"sft": sft.train, "anchor": sft.anchor, "rl": rl.train}[job["stage"]].train(cfg, job["root"])
        except KeyboardInterrupt:
            if job.get("stop_at") is None:
                raise
    return list(Replayed.seen)


def _stopping(step: int | None) -> Any:
    """As if ctrl-C came in the step after `step`, on every process."""
    from transformers import Trainer

    real = Trainer.training_step

    def training_step(self: Any, *args: Any, **more: Any) -> Any:
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    return mock.patch.object(Trainer, "training_step", training_step)


def _best_at_the_end(cfg: Any, root: Path) -> None:
    """transformers' own `load_best_model_at_end`; leaves best.txt (which checkpoint) and the model as `loaded`."""
    plain = sft.train.sft_config

    def with_best(*args: Any, **more: Any) -> Any:
        made = plain(*args, **more)
        made.load_best_model_at_end, made.metric_for_best_model, made.greater_is_better = True, "eval_loss", False
        made.save_total_limit = 2  # the best and the last
        return made

    traces = root / "mini" / "mcts" / "sft.jsonl"
    with (
        mock.patch.object(sft.train, "sft_config", with_best),
        distributed.session(cfg.sft.deepspeed, cfg.launch.timeout_s),
        distributed.open_run(cfg, "sft", [traces], root) as opened,
    ):
        trainer, logbook = sft.train.build_trainer(cfg, opened, traces)
        trainer.train()
        logbook.close()
        trainer.save_model(str(root / "loaded"))
        if distributed.rank() == 0:
            state = last_checkpoint(opened.path / "checkpoints")
            facts = {"best": trainer.state.best_model_checkpoint, "last": str(state)}
            (root / "best.json").write_text(json.dumps(facts))
        trainer.accelerator.wait_for_everyone()


def main(path: Path) -> None:
    """All jobs of a file, one after the other in the same processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    given = json.loads(path.read_text())
    for job in given["jobs"]:
        seen = run(job, given["texts"])
        (path.parent / f"{job['name']}.{distributed.rank()}.json").write_text(json.dumps(seen))
        gc.collect()
        unset_hf_deepspeed_config()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
