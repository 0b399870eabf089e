"""One process of `test_killed.py`: the RL stage, which kills itself with SIGKILL at a named place.

Started by that test: `python -m tests.rl.killed <runs> <data root> <place>`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from fgrpo.runs import Run
from fgrpo.training import stored
from rl import train
from rl.logging_callback import LoggingCallback
from rl.trainer import FaithfulGRPOTrainer
from tests.rl.conftest import mini

OVERRIDES = ("rl.global_batch=1", "rl.micro_batch=4", "rl.max_steps=6", "rl.max_response_length=60")


def die() -> None:
    """As the kernel's memory killer, or a pulled plug, would."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(runs: Path, world: Path, place: str) -> None:
    """Arm one trap and run."""
    if place == "between two backward passes":
        inner = FaithfulGRPOTrainer.training_step

        def step(self: Any, *args: Any, **more: Any) -> Any:
            out = inner(self, *args, **more)
            if self.state.global_step == 3:  # the second update on the second generation
                die()
            return out

        FaithfulGRPOTrainer.training_step = step
    elif place == "while a checkpoint is written":
        extra = FaithfulGRPOTrainer._write_extra

        def write(self: Any, folder: Path) -> None:
            if self.state.global_step == 4:
                die()
            extra(self, folder)

        FaithfulGRPOTrainer._write_extra = write
    elif place == "while the final model is written":
        save = FaithfulGRPOTrainer.save_model

        def save_model(self: Any, output_dir: Any = None, *args: Any, **more: Any) -> None:
            save(self, output_dir, *args, **more)
            if str(output_dir).endswith("final.part"):
                die()

        FaithfulGRPOTrainer.save_model = save_model
    elif place == "between the final model and done":
        Run.finish = lambda *_, **__: die()  # type: ignore[method-assign]
    elif place == "before an old checkpoint is deleted":
        stored.rotate = lambda *_: die()  # type: ignore[assignment]
    elif place == "between rollouts and their checkpoint":
        log = LoggingCallback._write_rollouts

        def rollouts(self: Any, step: Any) -> None:
            log(self, step)
            if step.rollouts[0].step == 2:
                die()

        LoggingCallback._write_rollouts = rollouts  # type: ignore[method-assign]
    train.train(mini(world, *OVERRIDES), runs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
