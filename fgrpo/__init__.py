"""The vocabulary that every stage shares: types, configuration, run folders, jsonl files, prompts, images, boxes, model text.

Modules here import no torch. Of the sub-packages only those import it that say so, such as `fgrpo.policy.loading`. The
stages' packages import this package first. So too old a Python ends in one line, and so does ctrl-C during `import torch`.

A user's script imports the names of `EXPORTS` from here. They are of packages above this one and are loaded on first use; the
repository's own modules import them from where they are.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers of users' scripts
    from rl.dual import Constraint as Constraint
    from rl.dual import DualAscent as DualAscent
    from rl.scored_batch import ScoreColumn as ScoreColumn
    from rl.trainer import FaithfulGRPOTrainer as FaithfulGRPOTrainer

__version__ = "0.1.0"

EXPORTS = {
    "Constraint": "rl.dual",
    "DualAscent": "rl.dual",
    "FaithfulGRPOTrainer": "rl.trainer",
    "ScoreColumn": "rl.scored_batch",
}

OLDEST_PYTHON = (3, 11)
INTERRUPTED = "\ninterrupted: finished items are kept; rerun to resume"

if sys.version_info < OLDEST_PYTHON:  # an older Python does not read pyproject.toml
    sys.exit("error: Python %d.%d or newer is needed, this is %s" % (*OLDEST_PYTHON, sys.version.split()[0]))  # noqa: UP031


def _interrupted(kind, error, trace):  # type: ignore[no-untyped-def]
    """Print one line in place of a traceback before `fgrpo.cli.run` is reached."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    import os

    sys.stderr.write(INTERRUPTED + "\n")
    sys.stderr.flush()
    os._exit(130)  # Python would end by the signal, and threads of partly imported libraries may hang


if sys.argv[:1] == ["-m"]:  # `python -m` sets this while it looks for the module: a command, not a library
    sys.excepthook = _interrupted


def __getattr__(name):  # type: ignore[no-untyped-def]
    """A name of `EXPORTS`, from the package that it is in."""
    if name not in EXPORTS:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))  # noqa: UP031
    import importlib

    from fgrpo.installed import importable

    return getattr(importlib.import_module(importable(EXPORTS[name])), name)


def __dir__():  # type: ignore[no-untyped-def]
    return sorted(set(globals()) | set(EXPORTS))
