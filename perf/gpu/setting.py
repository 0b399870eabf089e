"""Where the checks run: device, shape and folders, and the sizes that follow from them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SHAPE_FILES = {"3b": "Qwen2.5-VL-3B-Instruct", "7b": "Qwen2.5-VL-7B-Instruct"}  # of configs/shapes
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """Batch sizes and lengths of the training checks, and the width and height of the images."""

    questions: int
    rollout_batch: int
    global_batch: int
    micro_batch: int
    group_size: int
    response: int
    steps: int
    sft_steps: int
    learning_rate: float
    images: tuple[tuple[int, int], ...]


# 256, 391, 529, 999 and 1,564 image tokens; responses as long as configs/plan.yaml assumes
TRUE = Sizes(
    questions=24, rollout_batch=8, global_batch=4, micro_batch=5, group_size=5, response=350, steps=6, sft_steps=4,
    learning_rate=1e-3, images=((448, 448), (640, 480), (640, 640), (1024, 768), (1280, 960)),
)  # fmt: skip
TINY = Sizes(
    questions=6, rollout_batch=2, global_batch=1, micro_batch=3, group_size=3, response=8, steps=4, sft_steps=3,
    learning_rate=1e-2, images=((56, 56), (84, 56), (112, 84)),
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One run of the checks.

    Attributes:
        shape: "true" are the published shapes; "tiny" has two layers in their place.
        work: models, data and run folders; large.
        tokenizer: a folder with Qwen's tokenizer.json; None to fetch it, or to do with the miniature world's.
    """

    device: Literal["cuda", "cpu"]
    shape: Literal["true", "tiny"]
    work: Path
    tokenizer: Path | None = None

    @property
    def sizes(self) -> Sizes:
        return TRUE if self.shape == "true" else TINY

    @property
    def precision(self) -> str:
        return "bf16" if self.device == "cuda" else "fp32"

    def model(self, size: str) -> Path:
        """The folder of the model "3b" or "7b"."""
        return self.work / f"{size}-{self.shape}"

    @property
    def questions(self) -> Path:
        return self.work / f"data-{self.shape}" / "rl.jsonl"

    @property
    def traces(self) -> Path:
        return self.work / f"data-{self.shape}" / "sft.jsonl"

    def words(self) -> list[str]:
        """The command-line options that make this setting again."""
        out = ["--device", self.device, "--shape", self.shape, "--work", str(self.work)]
        return [*out, *(["--tokenizer", str(self.tokenizer)] if self.tokenizer else [])]


def add_options(arguments: argparse.ArgumentParser) -> None:
    """The options of `words`."""
    arguments.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments.add_argument("--shape", choices=("true", "tiny"), default="true", help="tiny: two small layers, to test")
    arguments.add_argument(
        "--work", type=Path, default=Path("runs/gpu-check"), help="models and run folders, about 40 GB"
    )
    arguments.add_argument("--tokenizer", type=Path, help="a folder with Qwen's tokenizer.json (default: fetched once)")


def setting_of(args: Any) -> Setting:
    """The setting of parsed options."""
    return Setting(args.device, args.shape, args.work, args.tokenizer)
