"""Errors that the user can fix.

A `UserError` names what is wrong (file, id, key) and what to do. `fgrpo.cli.run` prints it as one line and exits with
code 2. Every other exception keeps its traceback, because it is our bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: bad input, a missing file, a full disk, an unknown name."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for an unknown name; its message suggests the nearest known name, or lists the known ones.

    Args:
        kind: what the name stands for, such as "preset" or "configuration key".
        name: the unknown name.
        known: every valid name.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if not near:  # a dotted key often differs in its prefix only
        near = [k for k in names if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(names[:30])
    return UserError(f"unknown {kind} {name!r}; {hint}")
