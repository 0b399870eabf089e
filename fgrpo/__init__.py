"""The vocabulary every stage shares: types, configuration, run folders, jsonl, prompts, boxes, model text, sampling.

Nothing here imports torch at import time except the modules that say so (`fgrpo.policy.loading`, the transformers engine). The stages'
packages import this one first, so that too old a Python, or ctrl-C while torch is being imported, ends in one line too.
"""

import sys

__version__ = "0.1.0"

OLDEST_PYTHON = (3, 11)
INTERRUPTED = "\ninterrupted: what is finished is kept; the same command carries on from here"

if sys.version_info < OLDEST_PYTHON:  # whoever has an older one has not read pyproject.toml
    sys.exit("error: Python %d.%d or newer is needed, this is %s" % (*OLDEST_PYTHON, sys.version.split()[0]))  # noqa: UP031


def _interrupted(kind, error, trace):  # type: ignore[no-untyped-def]
    """In place of a traceback before `fgrpo.cli.run` is reached."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    import os

    sys.stderr.write(INTERRUPTED + "\n")
    sys.stderr.flush()
    os._exit(130)  # Python itself would end by the signal, and threads of half-imported libraries may hang


if sys.argv[:1] == ["-m"]:  # what `python -m` puts there while it looks for the module: a command, not a library
    sys.excepthook = _interrupted
