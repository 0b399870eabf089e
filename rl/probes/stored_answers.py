"""Probes on answers that exist already, such as those of an evaluation: the passes of RL, and no training.

The tokens of an answer are those of its text, and the end token if the answer ended by itself. A sampled answer may have consisted of
other tokens for the same text; what is measured is the text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PrinterCallback
from trl.data_utils import prepare_multimodal_messages

from fgrpo.images import open_rgb
from fgrpo.policy import loading, model_files
from fgrpo.schema import Config
from rewards.base import RewardContext, RewardItem
from rewards.probes import Probes
from rl import arguments
from rl.probes.base import Batch, Rollouts, measure
from rl.probes.passes import Passes
from rl.scoring import RolloutScorer
from rl.trainer import FaithfulGRPOTrainer


@dataclass(frozen=True)
class Answer:
    """An answer to measure.

    Attributes:
        prompt: the text of the user's turn.
        text: the assistant's turn from its beginning.
    """

    item: RewardItem
    prompt: str
    text: str


class StoredAnswers:
    """Measures what `rewards` need on answers of the checkpoint `policy`.

    Args:
        rewards: names of rewards with `needs`.
        context: its `probing` says how the policy is measured.

    Raises:
        UserError: as `make rl-…` before its first step: the model's family, attention or layers cannot be measured.
    """

    def __init__(self, cfg: Config, policy: Path, rewards: Sequence[str], context: RewardContext) -> None:
        off = {
            "kl_coef": 0.0,
            "rollout_engine": "transformers",
            "deepspeed": None,
            "report_to": "none",
            "auxiliary": {},
            "reference": None,
        }
        cfg = cfg.model_copy(update={"rl": cfg.rl.model_copy(update=off)})
        scorer = RolloutScorer((), context, rewards)
        model, processor = loading.load_policy(policy, cfg.eval.dtype, cfg.rl.attention)
        family = model_files.backbone_of(policy)
        forbidden = loading.forbidden_token_ids(processor.tokenizer, loading.text_vocabulary(policy), family)
        with tempfile.TemporaryDirectory() as nothing:
            self.trainer = FaithfulGRPOTrainer(
                model,
                scorer.reward_funcs(),
                arguments.grpo_config(cfg, nothing, 1, forbidden, world=1),
                Dataset.from_dict({"prompt": ["none"]}),  # the trainer wants one; nothing reads it
                processing_class=processor,
                scorer=scorer,
            )
        self.trainer.remove_callback(PrinterCallback)
        self._context, self._needs, self._tokenizer = context, scorer.needs, processor.tokenizer

    def measure(self, answers: Sequence[Answer]) -> tuple[Probes, ...]:
        """What was measured for each answer, in order."""
        batch = self.batch(answers)
        return measure(self._needs, batch, Passes(self.trainer, batch), self._tokenizer)

    def batch(self, answers: Sequence[Answer]) -> Batch:
        """The answers as the passes see them."""
        ids = [self._ids(answer) for answer in answers]
        turns = [
            prepare_multimodal_messages(
                [{"role": "user", "content": answer.prompt}],
                images=[open_rgb(path) for path in answer.item.sample.images],
            )
            for answer in answers
        ]
        of_pass = {**self.trainer.batch_of(turns, ids), "most": self.trainer.args.per_device_train_batch_size}
        rollouts = Rollouts(
            tuple(answer.item for answer in answers),
            tuple(answer.text for answer in answers),
            tuple(tuple(one) for one in ids),
            self._context,
        )
        return Batch(rollouts, **of_pass)

    def _ids(self, answer: Answer) -> list[int]:
        ids: list[int] = self._tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        return ids if answer.item.finish == "length" else [*ids, int(self._tokenizer.eos_token_id)]


def chunks(answers: Sequence[Answer], size: int) -> Iterable[Sequence[Answer]]:
    """The answers, `size` at a time."""
    return (answers[start : start + size] for start in range(0, len(answers), size))
