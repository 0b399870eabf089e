"""Two constraints that conflict, on text alone, with a plot. It runs offline on a CPU in a minute: `python -m examples.two_constraints`.

The task: name the right side. `brief` wants few words, `scenic` wants different nouns; every noun costs words. Each multiplier
rises while its constraint is violated and falls when it is met, so the two settle where both thresholds are about met.
"""

import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into a file

import matplotlib.pyplot as plt
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig

from examples.tiny import ON_A_CPU, PROMPTS, tiny_model
from fgrpo import Constraint, FaithfulGRPOTrainer

LIMIT = 8  # tokens
NOUNS = {"box", "lamp"}


def correct(completions, answer, **_):  # the task reward
    return [float(gold in text.split()) for gold, text in zip(answer, completions, strict=True)]


def brief(completions, **_):  # the share of the limit that is left
    return [1 - len(text.split()) / LIMIT for text in completions]


def scenic(completions, **_):  # None where the text names nothing at all: not applicable, never 0
    return [len(NOUNS & set(text.split())) / len(NOUNS) if text.split() else None for text in completions]


CONSTRAINTS = [Constraint("brief", tau=0.5, lr=0.2), Constraint("scenic", tau=0.9, lr=0.2)]


def train(steps=150):
    """The trainer after `steps` steps of 32 rollouts; its log has a line per step."""
    model, tokenizer = tiny_model()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            folder,
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            per_device_train_batch_size=32,
            lr_scheduler_type="constant",
            **{**ON_A_CPU, "max_completion_length": LIMIT, "disable_tqdm": True},
        )
        trainer = FaithfulGRPOTrainer(
            model,
            reward_funcs=[correct, brief, scenic],
            constraints=CONSTRAINTS,
            args=args,
            train_dataset=Dataset.from_dict(PROMPTS),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # the table below is enough
        trainer.train()
    return trainer


def rows_of(trainer):
    """The log's lines of steps."""
    return [line for line in trainer.state.log_history if "lambda/brief" in line]


def draw(rows, file):
    """The means with their thresholds above, the multipliers below, over the steps."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    steps = [row["step"] for row in rows]
    above.plot(steps, [row["task/mean"] for row in rows], color="0.6", label="correct (task)")
    for constraint, colour in zip(CONSTRAINTS, ("tab:blue", "tab:orange"), strict=True):
        name = constraint.reward
        above.plot(steps, [row[f"constraint/{name}/mean"] for row in rows], color=colour, label=name)
        above.axhline(constraint.tau, color=colour, linestyle="--", linewidth=1)
        below.plot(steps, [row[f"lambda/{name}"] for row in rows], color=colour, label=name)
    above.set(ylabel="batch mean (dashed: τ)", ylim=(0, 1.05))
    below.set(ylabel="λ", xlabel="step", ylim=(0, None))
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/two_constraints.png")
    rows = rows_of(train())
    print("step  correct  " + "  ".join(f"{c.reward} (τ = {c.tau:g})      λ" for c in CONSTRAINTS))
    for row in rows[:: len(rows) // 10]:
        pairs = "  ".join(
            f"{row[f'constraint/{c.reward}/mean']:15.2f}  {row[f'lambda/{c.reward}']:5.2f}" for c in CONSTRAINTS
        )
        print(f"{row['step']:4}  {row['task/mean']:7.2f}  {pairs}")
    draw(rows, file)
    print(f"the plot is in {file}")
