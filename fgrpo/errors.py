"""Errors that are meant for the person at the keyboard.

A `UserError` names the thing that is wrong (file, id, key), and the way out. `fgrpo.cli.run` prints it as one line and
exits with code 2; every other exception keeps its traceback, because it is our fault and not the user's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: bad input, a missing file, a full disk, an unknown name."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name nobody knows, with the nearest known one.

    Args:
        kind: what the name was meant to be, such as "preset" or "configuration key".
        name: what was asked for.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    if not near:  # a dotted key often differs in its prefix only
        near = [k for k in names if k.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1]
    hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(names[:30])
    return UserError(f"unknown {kind} {name!r}; {hint}")
