"""The hardware of a machine: its GPUs, and the compiler that DeepSpeed needs to keep the optimizer on the CPU."""

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
    """Which of g++ and ninja are missing (ninja may also be in the interpreter's folder)."""
    local_ninja = Path(sys.executable).parent / "ninja"
    return [t for t in ("g++", "ninja") if shutil.which(t) is None and not (t == "ninja" and local_ninja.is_file())]


def how_to_install(missing: list[str]) -> str:
    """The command that installs these tools on Debian and its derivatives."""
    return f"apt install {' '.join(missing).replace('ninja', 'ninja-build')}"


def check_deepspeed(settings: str | None, key: str) -> None:
    """Refuse a DeepSpeed file that would make the run fail in its first step.

    The files of configs/deepspeed compile nothing. With `offload_optimizer`, DeepSpeed compiles its own Adam at first use.

    Args:
        settings: the DeepSpeed file of the configuration, None without DeepSpeed.
        key: its configuration key, for the message.

    Raises:
        UserError: the file is missing or not JSON, sets what follows from the preset, or needs a missing tool.
    """
    if settings is None:
        return
    path = Path(settings)
    if not path.is_file():
        raise UserError(f"{key}: {settings} is missing; name another file, or set {key}=null")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        zero = dict(content.get("zero_optimization", {}))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{key}: {settings} is not a DeepSpeed configuration in JSON ({error})") from error
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    fixed = [name for name in sizes if content.get(name, "auto") != "auto"]
    if fixed:
        raise UserError(
            f'{key}: {settings} sets {fixed[0]}, which follows from the preset; remove it or set it to "auto"'
        )
    gathers = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gathers) is not True:
        raise UserError(
            f"{key}: {settings} lacks zero_optimization.{gathers}=true, which saving the full model requires; add it"
        )
    if "offload_optimizer" in zero and (missing := missing_tools()):
        raise UserError(
            f"{key}: {settings} has offload_optimizer, for which DeepSpeed compiles its own Adam with "
            f"{' and '.join(missing)}, missing here; run `{how_to_install(missing)}`, or remove offload_optimizer"
        )


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use: its name, and its memory in GiB."""

    name: str
    gib: float


def gpus() -> list[Gpu]:
    """The GPUs that the driver shows to this process (`CUDA_VISIBLE_DEVICES` hides the others), without importing torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line] if done.returncode == 0 else []
    present = [Gpu(name.strip(), float(mib) / 1024) for name, mib in rows if mib.strip().replace(".", "").isdigit()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return present[: len([part for part in visible.split(",") if part.strip() not in ("", "-1")])]


def free_memory(kind: str = "memory.free") -> dict[str, float]:
    """GiB of memory of each GPU that this process may use, by its name in CUDA_VISIBLE_DEVICES (its index by default), in that order.

    Args:
        kind: what nvidia-smi reports: "memory.free" or "memory.used".
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    query = [tool, f"--query-gpu=index,uuid,{kind}", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 2]
    present: dict[str, float] = {}
    for index, uuid, mib in rows if done.returncode == 0 else ():
        if mib.replace(".", "").isdigit():
            present[index] = present[uuid] = float(mib) / 1024
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [row[0] for row in rows] if visible is None else [part.strip() for part in visible.split(",")]
    return {name: present[name] for name in names if name in present}
