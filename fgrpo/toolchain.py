"""The compiler that DeepSpeed needs on a CPU, where it builds its communication and optimizer ops at first use."""

from __future__ import annotations

import shutil
import sys
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
