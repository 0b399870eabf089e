"""Where servers answer: address files that `fgrpo.inference.serve` writes, and how a stage's list of endpoints is read.

An endpoint is an http address, or the path (or pattern) of address files such as `runs/paper-7b/serve/*.json`. Of the files
that a pattern finds, those count whose server serves the model that is asked for, so one pattern does for every role. A file
is looked up when a stage starts: a server that moved to another port needs no change of the configuration.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.runs import write_json

SUFFIX = ".json"
HTTP = ("http://", "https://")


@dataclass(frozen=True)
class Address:
    """One running server: its role, the name its model is served under, its /v1 address, and whose process it is."""

    role: str
    model: str
    url: str
    host: str
    pid: int


def write(path: Path, address: Address) -> None:
    """Write an address file (aside, then renamed)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(address))


def read(path: Path) -> Address:
    """The address in a file.

    Raises:
        UserError: the file is gone, or is no address file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Address(**{field.name: found[field.name] for field in fields(Address)})
    except FileNotFoundError as error:
        raise UserError(f"{path} is gone: its server has stopped; start it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no address file ({error}); `make serve-…` writes them; delete this one") from error


def is_pattern(entry: str) -> bool:
    """Whether an endpoint names address files."""
    return entry.endswith(SUFFIX) and not entry.startswith(HTTP)


def found(entry: str) -> Iterator[Address]:
    """The addresses in the files that `entry` names, in the order of their names."""
    for name in sorted(glob.glob(entry)):
        yield read(Path(name))


def resolve(entries: Sequence[str], model: str, key: str = "the endpoints") -> tuple[str, ...]:
    """The http addresses that `entries` mean for `model`; an empty list stays empty.

    Args:
        entries: http addresses, and paths or patterns of address files.
        model: the served model's name; address files of other models are passed over.
        key: the configuration key, for the error.

    Raises:
        UserError: files are named and none of them has the address of a server of `model` (says what they serve).
    """
    out: list[str] = []
    others: list[str] = []
    for entry in entries:
        if not is_pattern(entry):
            out.append(entry)
            continue
        for address in found(entry):
            if address.model == model:
                out.append(address.url)
            else:
                others.append(address.model)
    if entries and not out:
        serving = f"servers are up for {', '.join(sorted(set(others)))} only" if others else "no server has written one"
        raise UserError(
            f"{key} {', '.join(entries)}: no address of a server of {model} ({serving}); start one "
            "(`make serve-teacher`, `serve-judge`, `serve-extractor`, `serve-base`, or `serve-model MODEL=…`), "
            'or give addresses such as ["http://host:8000/v1"]'
        )
    return tuple(dict.fromkeys(out))
