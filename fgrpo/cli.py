"""The command line every stage shares: `--preset`, `--method`, `--set`, `--runs`, and how errors and ctrl-C end."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence

from fgrpo.errors import UserError

OLDEST_PYTHON = (3, 11)


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options every stage takes."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--preset", default="mini", help="a file of configs/scale (default: mini)")
    out.add_argument("--method", default="fgrpo", help="a file of configs/method (default: fgrpo)")
    out.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help='overrides, such as "rl.kl_coef=0.02"')
    out.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders live (default: runs)")
    return out


def run(
    body: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> None:
    """Parse and call `body`; a `UserError` or a full disk is one line and exit code 2, ctrl-C is exit code 130."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"error: Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed, this is {sys.version.split()[0]}"
        )
    args = arguments.parse_args(argv)
    try:
        body(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"error: no space left on the disk ({error.filename or 'while writing'}); free some and run again",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept; the same command carries on from here", file=sys.stderr)
        sys.exit(130)
