"""A TRL script with FaithfulGRPOTrainer in GRPOTrainer's place. It runs offline on a CPU: `python -m examples.drop_in`."""

import tempfile

from datasets import Dataset
from trl import GRPOConfig

from examples.tiny import ON_A_CPU, PROMPTS, tiny_model
from fgrpo import Constraint, FaithfulGRPOTrainer  # the latter instead of trl.GRPOTrainer


def correct(completions, answer, **_):  # the task reward
    return [float(gold in text) for gold, text in zip(answer, completions, strict=True)]


def brief(completions, **_):  # None = not applicable, never 0
    return [1 / len(text.split()) if text.strip() else None for text in completions]


model, tokenizer = tiny_model()
with tempfile.TemporaryDirectory() as folder:
    trainer = FaithfulGRPOTrainer(
        model,
        reward_funcs=[correct, brief],
        constraints=[Constraint("brief", tau=0.5)],  # what no constraint names is the task's
        args=GRPOConfig(folder, max_steps=10, logging_steps=5, **ON_A_CPU),
        train_dataset=Dataset.from_dict(PROMPTS),
        processing_class=tokenizer,
    )
    trainer.train()
print(f"after {trainer.state.global_step} steps the multiplier of `brief` is {trainer.dual.lam['brief']:.3f}")
