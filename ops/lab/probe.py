"""What a checkpoint's answer follows when its trace holds true boxes and a FALSE statement (hypothesis H12).

`miniworld.backbone_eval.probe` forces such traces on held-out questions. Writes a JSON file {"questions", "follows_statement",
"true", "direct"}: shares of answers that follow the forced statement, that are true in spite of it, and that are right without a trace.

Command: `python -m ops.lab.probe --model <folder> --out <file> [--questions 100]` (questions per family of the core).
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from fgrpo import cli
from fgrpo.runs import require, write_json

SEED = 1


def measure(model: Path, count: int) -> dict[str, Any]:
    """The shares of the checkpoint `model`, over `count` held-out questions per core family."""
    from fgrpo.policy import backbone, focus, loading
    from miniworld import backbone_eval, fast
    from miniworld import questions as qs

    policy, processor = loading.load_policy(model, "float32", "sdpa")
    policy.eval()
    codec = fast.Codec(focus.focus_id(processor.tokenizer))
    exam = backbone_eval.Exam.draw(backbone.of_model(policy).vision_tower(policy), qs.CORE, count, SEED)
    right = backbone_eval.direct(policy, codec, exam)
    shares = backbone_eval.probe(policy, codec, exam, random.Random(SEED))
    return {"questions": len(exam.questions), "direct": sum(right) / len(right), **shares}


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description="force false statements on a checkpoint of the miniature world")
    arguments.add_argument("--model", type=Path, required=True, help="the folder of a checkpoint")
    arguments.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments.add_argument(
        "--questions", type=cli.positive, default=100, help="held-out questions per family (default: 100)"
    )

    def body(args: argparse.Namespace) -> None:
        figures = measure(require(args.model, "the stage that trains it", check=False), args.questions)
        write_json(args.out, figures)
        print(figures)

    cli.run(body, arguments)


if __name__ == "__main__":
    main()
