"""What figures depend on besides the declaration: commit, package versions and processor of a cell, and the commit of a page."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fgrpo.installed import COMMIT_FILE, IS_WHEEL, ROOT
from ops.lab import arithmetic

PACKAGES = ("torch", "transformers", "trl", "numpy")  # those that change figures in the last digits
PACKAGE, CPU = "package/", "cpu"  # columns of a cell's row
CPU_INFO = Path("/proc/cpuinfo")


def columns(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Commit and package versions that a stage's manifest names, as columns of a cell's row."""
    versions = manifest.get("packages") or {}
    found = {f"{PACKAGE}{name}": versions[name] for name in PACKAGES if versions.get(name)}
    return {"commit": manifest.get("commit"), "dirty": manifest.get("dirty"), **found}


def is_column(name: str) -> bool:
    """Whether a column says where a row was made, not what was measured."""
    return name in ("commit", "dirty", CPU, arithmetic.COLUMN) or name.startswith(PACKAGE)


def cpu(info: Path = CPU_INFO) -> str:
    """The processor's name, with family, model and stepping, since a virtual one has a common name; its architecture if the system names none."""
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        found.setdefault(key.strip(), value.strip())
    numbers = [
        f"{key.removeprefix('cpu ')} {found[key]}" for key in ("cpu family", "model", "stepping") if key in found
    ]
    name = found.get("model name", platform.machine())
    return f"{name} ({', '.join(numbers)})" if numbers else name


def packages(row: Mapping[str, Any]) -> str:
    """The package versions of a row in words; "" where it has none."""
    return ", ".join(f"{name} {row[f'{PACKAGE}{name}']}" for name in PACKAGES if row.get(f"{PACKAGE}{name}"))


def words(row: Mapping[str, Any]) -> str:
    """Commit, packages and processor of a row."""
    commit = f"commit {row.get('commit') or 'unknown'}{' with changes' if row.get('dirty') else ''}"
    made = f"{commit} with {packages(row) or 'packages that were not recorded'}, on {row.get(CPU) or 'a processor that was not recorded'}"
    return f"{made}, arithmetic {row[arithmetic.COLUMN]}" if row.get(arithmetic.COLUMN) else made


def code() -> str:
    """The commit of this code, and whether anything but docs/ differs from it."""
    if IS_WHEEL:
        return COMMIT_FILE.read_text(encoding="utf-8").strip() if COMMIT_FILE.is_file() else "unknown"
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":!docs")
    return f"`{commit}`{' with uncommitted changes' if changed else ''}" if commit else "unknown"


def unknown_commits(commits: Iterable[object]) -> list[str]:
    """Those commits, each once, that the history here does not hold; none where git knows no history at all."""
    if IS_WHEEL or not _git("rev-parse", "HEAD"):
        return []
    return [
        str(one)
        for one in dict.fromkeys(commits)
        if one and not _git("rev-parse", "--verify", "--quiet", f"{one}^{{commit}}")
    ]


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
