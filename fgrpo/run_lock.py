"""The lock of a run folder: one process at a time works on it, and a process that ends, however it ends, releases it.

A forked process (a worker that decodes images) would hold the lock of its parent for as long as it lives, also after the parent
was killed. So it closes its copy.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from typing import IO

from fgrpo.errors import UserError

_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def lock(path: Path) -> IO[str]:
    """Lock the folder `path`; closing the returned file releases it.

    Raises:
        UserError: another process holds the lock.
    """
    real = path.resolve()  # a link to the folder has the same lock
    locks = real.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    handle = (locks / real.name).open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UserError(
            f"another process is working on {path}; wait for it, or end it, then rerun to resume"
        ) from error
    _held.add(handle)
    return handle


def _close_copies() -> None:
    for handle in list(_held):
        handle.close()
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)
