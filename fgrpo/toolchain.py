"""What a machine has: the compiler that DeepSpeed needs on a CPU, where it builds its ops at first use, and its GPUs."""

from __future__ import annotations

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


def check_deepspeed(settings: str | None, key: str, *, on_cpu: bool) -> None:
    """Refuse a DeepSpeed run that would die in the middle of a build.

    Args:
        settings: the DeepSpeed file of the configuration, None without DeepSpeed.
        key: its configuration key, for the message.
        on_cpu: whether models run on the CPU; our GPU configuration builds nothing.

    Raises:
        UserError: the file is missing, or a tool is.
    """
    if settings is None:
        return
    if not Path(settings).is_file():
        raise UserError(f"{key}: there is no file {settings}; name one, or set {key}=null")
    if on_cpu and (missing := missing_tools()):
        raise UserError(
            f"{key} is {settings}, and DeepSpeed builds its ops with {' and '.join(missing)}, which are not here; "
            f"{how_to_install(missing)}, or set {key}=null"
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
