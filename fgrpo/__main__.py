"""The make targets as the command `fgrpo`, where this code was installed with pip: `fgrpo eval MODEL=mine BENCHMARKS=mmvp`.

It runs the Makefile that the wheel contains, in the working directory, with this interpreter. In a checkout use `make`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from fgrpo.installed import IS_WHEEL, ROOT

NEEDS_CHECKOUT = ("setup", "setup-vllm", "bench", "test", "test-wheel", "test-vllm", "rehearsal", "check")


def command(words: Sequence[str]) -> list[str]:
    """The call of make for the words after `fgrpo`; without a target it lists the targets."""
    targets = [word for word in words if "=" not in word and not word.startswith("-")]
    for target in targets:
        if target in NEEDS_CHECKOUT:
            sys.exit(f"error: {target} is for a checkout of the repository; run `make {target}` there")
    settings = [f"PYTHON={sys.executable}", f"INSTALLED={ROOT}"]
    return [
        "make",
        "--no-print-directory",
        "-f",
        str(ROOT / "Makefile"),
        *settings,
        *words,
        *([] if targets else ["help"]),
    ]


def main() -> None:
    """Replace this process by make."""
    if not IS_WHEEL:
        sys.exit("error: this is a checkout; use `make` in its folder")
    if shutil.which("make") is None:
        sys.exit(
            "error: there is no make; install it (apt install make), or run the stages: python -m fgrpo.eval.run --help"
        )
    os.execvp("make", command(sys.argv[1:]))


if __name__ == "__main__":
    main()
