"""Where shown results come from: preset, seed, code, date, judges and libraries, from the manifests of the evaluations."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.results import Result
from fgrpo.errors import UserError
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed

LIBRARIES = ("torch", "transformers", "trl", "vllm")
JUDGES = ("evaluation", "extraction")
SHORT = 10  # characters of a commit
Fact = tuple[str, str]


def facts(shown: Sequence[Result], config: Config) -> list[Fact]:
    """(what, value) lines; a fact that no manifest states is left out. UserError as `manifest`."""
    manifests = [manifest(result.path) for result in shown]
    lines = [
        ("preset", f"{config.preset}, method {config.method}"),
        ("seed", _several(m.get("seed") for m in manifests)),
        ("code", _several(commit(m) for m in manifests)),
        ("evaluated", _days([finished(result.path, m) for result, m in zip(shown, manifests, strict=True)])),
        ("judges", _several(_judges(m) for m in manifests)),
        ("libraries", _several(_libraries(m) for m in manifests)),
    ]
    return [(what, value) for what, value in lines if value]


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder; empty if it has none. UserError: it is damaged."""
    file = folder / "manifest.json"
    try:
        return read_sealed(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); run its stage again, which writes it anew") from error


def commit(written: dict[str, Any]) -> str:
    """The commit in a manifest, shortened; empty if it is not known."""
    known = str(written.get("commit") or "")[:SHORT]
    return f"commit {known}{' with local changes' if written.get('dirty') else ''}" if known else ""


def finished(folder: Path, written: dict[str, Any]) -> str:
    """The day on which a stage finished (UTC), as YYYY-MM-DD; that of its files for a manifest of an older version."""
    if "finished" in written:
        return str(written["finished"])[:10]
    done = folder / "done"
    if not done.is_file():
        return ""
    return datetime.datetime.fromtimestamp(done.stat().st_mtime, datetime.UTC).date().isoformat()


def _several(values: Iterable[Any]) -> str:
    """Different values, joined."""
    return "; ".join(dict.fromkeys(str(value) for value in values if value not in (None, "")))


def _days(days: Sequence[str]) -> str:
    known = sorted(day for day in days if day)
    return "" if not known else known[0] if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def _judges(written: dict[str, Any]) -> str:
    judges = written.get("judges") or {}
    models = {role: str(judges[role]["model"]) for role in JUDGES if isinstance(judges.get(role), dict)}
    if len(set(models.values())) == 1:
        return next(iter(models.values()))
    return ", ".join(f"{model} ({role})" for role, model in models.items())


def _libraries(written: dict[str, Any]) -> str:
    packages = written.get("packages") or {}
    return ", ".join(f"{name} {packages[name]}" for name in LIBRARIES if packages.get(name))
