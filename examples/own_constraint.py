"""A reward of your own as a constraint, with its multiplier per step. It runs offline on a CPU: `python -m examples.own_constraint`.

The constraint: a text that names a side names one side only. λ rises while the batch mean is below τ and falls above it.
"""

import tempfile

from datasets import Dataset
from transformers import ProgressCallback
from trl import GRPOConfig

from examples.tiny import ON_A_CPU, PROMPTS, tiny_model
from fgrpo import Constraint, FaithfulGRPOTrainer


def correct(completions, answer, **_):  # the task reward
    return [float(gold in text) for gold, text in zip(answer, completions, strict=True)]


def one_side(completions, **_):  # None where the text names no side: not applicable, never 0
    sides = [{"left", "right"} & set(text.split()) for text in completions]
    return [float(len(named) == 1) if named else None for named in sides]


model, tokenizer = tiny_model()
constraint = Constraint("one_side", tau=0.9, lr=0.2)
with tempfile.TemporaryDirectory() as folder:
    args = GRPOConfig(folder, max_steps=16, logging_steps=1, **ON_A_CPU)
    trainer = FaithfulGRPOTrainer(
        model,
        reward_funcs=[correct, one_side],
        constraints=[constraint],
        args=args,
        train_dataset=Dataset.from_dict(PROMPTS),
        processing_class=tokenizer,
    )
    trainer.remove_callback(ProgressCallback)  # the table below is enough
    trainer.train()

print(f"step  mean of one_side (τ = {constraint.tau:g})  applicable      λ")
for line in trainer.state.log_history:
    if "lambda/one_side" in line:
        mean = line.get("constraint/one_side/mean")
        shown = "–" if mean is None else f"{mean:.2f}"
        print(f"{line['step']:4}  {shown:>26}  {line['constraint/one_side/n']:10.0f}  {line['lambda/one_side']:.3f}")
print(f"λ for the next step: {trainer.dual.lam['one_side']:.3f}")
