"""What a machine has: its GPUs, and the compiler that DeepSpeed needs where a configuration moves states to the CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fgrpo.errors import UserError


def missing_tools() -> list[str]:
    """Which of g++ and ninja are not there (ninja may also stand beside the interpreter)."""
    beside = Path(sys.executable).parent / "ninja"
    return [t for t in ("g++", "ninja") if shutil.which(t) is None and not (t == "ninja" and beside.is_file())]


def how_to_install(missing: list[str]) -> str:
    """The command for Debian and its kin."""
    return f"apt install {' '.join(missing).replace('ninja', 'ninja-build')}"


def check_deepspeed(settings: str | None, key: str) -> None:
    """Refuse a DeepSpeed file that would end the run when its first step begins.

    The files of configs/deepspeed build nothing. One with an `offload_optimizer` builds DeepSpeed's own Adam at first use.

    Args:
        settings: the DeepSpeed file of the configuration, None without DeepSpeed.
        key: its configuration key, for the message.

    Raises:
        UserError: the file is missing or no JSON, names what follows from the preset, or needs a tool that is not here.
    """
    if settings is None:
        return
    path = Path(settings)
    if not path.is_file():
        raise UserError(f"{key}: there is no file {settings}; name one, or set {key}=null")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        zero = dict(content.get("zero_optimization", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{key}: {settings} is not a DeepSpeed configuration in JSON ({error})") from error
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    named = [name for name in sizes if content.get(name, "auto") != "auto"]
    if named:
        raise UserError(
            f'{key}: {settings} sets {named[0]}, which follows from the preset; leave it out or make it "auto"'
        )
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gathers) is not True:
        raise UserError(
            f"{key}: {settings} lacks zero_optimization.{gathers}=true, without which no whole model is saved"
        )
    if "offload_optimizer" in zero and (missing := missing_tools()):
        raise UserError(
            f"{key}: {settings} has offload_optimizer, for which DeepSpeed builds its own Adam with {' and '.join(missing)}, "
            f"which are not here; {how_to_install(missing)}, or leave it out"
        )


@dataclass(frozen=True)
class Gpu:
    """One GPU that this process may use: its name, and its memory in GiB."""

    name: str
    gib: float


def gpus() -> list[Gpu]:
    """The GPUs that the driver shows to this process (`CUDA_VISIBLE_DEVICES` hides the others), without importing torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    asked = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    found = [Gpu(name.strip(), float(mib) / 1024) for name, mib in rows if mib.strip().replace(".", "").isdigit()]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        found
        if hidden is None
        else found[: len([part for part in hidden.split(",") if part.strip() not in ("", "-1")])]
    )
