"""Checks a method before the stages that come before its training, which may take days.

Command: `python -m ops.check_method --preset paper-7b --method fgrpo` (`make rl-<method>` calls it first). Prints nothing.
"""

from __future__ import annotations

import argparse

from fgrpo.cli import parser, run
from fgrpo.config import load
from ops.model_checks import check_anchored
from rl.configured import check_configured


def main() -> None:
    """Command line; an invalid configuration ends with its message and exit code 2."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        check_configured(config)
        check_anchored(config)

    run(body, parser("check a method's configuration"))


if __name__ == "__main__":
    main()
