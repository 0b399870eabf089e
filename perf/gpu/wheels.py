"""The wheels that a GPU machine without network needs, with their versions: of requirements/gpu.txt, and flash-attn.

`pip download -d wheels -r requirements/gpu.txt` on a machine of the same Python and system fetches them and what they need.
"""

from __future__ import annotations

from fgrpo.installed import ROOT
from ops.doctor import pins

FLASH = "flash-attn"  # built against one torch and CUDA; without it the checks run with sdpa
FOR_TESTS = ("hypothesis", "import-linter", "mypy", "pytest", "ruff", "shellcheck", "types-")


def wheels() -> list[str]:
    """One requirement per line: the direct packages at their pinned versions, without those of `make check` and `make test`."""
    chosen = pins(ROOT / "requirements" / "gpu.txt")
    lines = [f"{name}=={version}" for name, version in sorted(chosen.items()) if not name.startswith(FOR_TESTS)]
    return [*lines, f"{FLASH}  # optional, a build for torch {chosen.get('torch', '?')}"]
