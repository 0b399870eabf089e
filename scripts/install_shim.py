"""Install the torchvision shim into the environment of the interpreter that runs this script.

Writes `fgrpo_torchvision_shim.py` (a copy of fgrpo/policy/torchvision_shim.py) and a `.pth` file that installs its import hook
when an interpreter starts. Run it again after the shim has changed; `--remove` removes it.

Command: `.venv/bin/python scripts/install_shim.py`, likewise with `.venv-vllm/bin/python`.
"""

from __future__ import annotations

import argparse
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "fgrpo" / "policy" / "torchvision_shim.py"
MODULE = "fgrpo_torchvision_shim"


def install(site: Path) -> None:
    """Write the module before the .pth file, so that no interpreter starts with a .pth file but no module."""
    (site / f"{MODULE}.py").write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    (site / f"{MODULE}.pth").write_text(f"import {MODULE}; {MODULE}.install_hook()\n", encoding="utf-8")


def remove(site: Path) -> None:
    """Remove the files that `install` wrote, the .pth file first."""
    (site / f"{MODULE}.pth").unlink(missing_ok=True)
    (site / f"{MODULE}.py").unlink(missing_ok=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description="install the torchvision shim into this interpreter's environment")
    arguments.add_argument("--remove", action="store_true", help="remove it")
    site = Path(sysconfig.get_paths()["purelib"])
    if arguments.parse_args().remove:
        remove(site)
    else:
        install(site)
        print(f"torchvision shim installed into {site}")


if __name__ == "__main__":
    main()
