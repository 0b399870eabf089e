"""Content hashes of files and folders (xxh3, 128 bits), and the check of finished files against their recorded hash.

Large files are hashed once: a cache file keeps their hashes by device, inode, size, modification and change time. A file that
was changed within the last seconds is not cached, because its times could stay the same at the next change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from fgrpo.errors import UserError
from fgrpo.files import files_below, part_of_process, remove_dead_parts
from fgrpo.sealed import read_sealed, sealed

CACHE = ".hashes.json"
CACHED_BYTES = 1 << 12  # smaller files are read again each time
CACHED_FILES = 200_000  # the oldest entries are dropped
_SETTLED_NS = 3_000_000_000
_CHUNK = 1 << 20

# Files of a model folder that do not change what the model answers.
NOT_THE_MODEL = frozenset(
    {
        *("training_args.bin", "trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt", "README.md"),
        *("best.json", "duals.json", "processes.json", "checksums.json", "counters.json", "provenance.json"),
        *("latest", "zero_to_fp32.py"),
    }
)


class Hashes:
    """Hashes of files, with the cache file `<folder>/.hashes.json`.

    Args:
        folder: where the cache file is; None: without a cache file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / CACHE
        self._known: dict[str, str] = {}
        self._is_changed = False
        if self._file is not None:
            try:
                stored = read_sealed(self._file)["hashes"]
                self._known = {str(key): str(value) for key, value in stored.items()}
            except (
                OSError,
                ValueError,
                KeyError,
                AttributeError,
            ):  # no cache, or a damaged one: every file is read again
                self._known = {}

    def of_file(self, path: Path) -> str:
        """The hash of one file's bytes."""
        stat = path.stat()
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        if stat.st_size >= CACHED_BYTES and key in self._known:
            return self._known[key]
        digest = _read(path)
        if stat.st_size >= CACHED_BYTES and time.time_ns() - stat.st_ctime_ns > _SETTLED_NS:
            self._known[key] = digest
            self._is_changed = True
        return digest

    def of(self, path: Path, keep: Callable[[Path], bool] = lambda file: True) -> str:
        """The hash of a file, or of the names and contents of all files below a folder.

        Args:
            keep: whether a file of a folder counts.

        Raises:
            UserError: the path does not exist.
        """
        if not path.exists():
            raise UserError(f"the input {path} is missing; run the stage that writes it first")
        if not path.is_dir():
            return self.of_file(path)
        whole = xxhash.xxh3_128()
        for file in files_below(path):
            if keep(file):
                whole.update(f"{file.relative_to(path).as_posix()}:{self.of_file(file)}\n".encode())
        return whole.hexdigest()

    def of_model(self, path: Path) -> str:
        """The hash of what decides a model's answers: weights, configuration, tokenizer and processor files."""
        return self.of(path, lambda file: is_of_model(file.relative_to(path)))

    def of_input(self, path: Path) -> str:
        """The hash of a stage's input: a file, a model folder (`of_model`), or a folder."""
        is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
        return self.of_model(path) if is_model else self.of(path)

    def save(self) -> None:
        """Write the cache file if something is new. A folder that cannot be written only costs time."""
        if self._file is None or not self._is_changed or not self._file.parent.is_dir():
            return
        try:
            newest = dict(list(self._known.items())[-CACHED_FILES:])
            part = part_of_process(self._file)  # stages run in parallel
            part.write_text(sealed({"hashes": newest}), encoding="utf-8")
            part.replace(self._file)
            remove_dead_parts(self._file.parent, f"{CACHE}.*")
        except OSError:
            return
        self._is_changed = False


def is_of_model(file: Path) -> bool:
    """Whether a file of a model's folder, by its path in it, can change the model's answers."""
    if file.parts[0].startswith("global_step"):  # DeepSpeed's states
        return False
    return file.name not in NOT_THE_MODEL and not file.name.startswith(("rng_state", ".")) and file.suffix != ".part"


def describe(path: Path, hashes: Hashes) -> dict[str, Any]:
    """{"bytes", "hash"} of a finished file; with "lines" for jsonl."""
    out: dict[str, Any] = {"bytes": path.stat().st_size, "hash": hashes.of_file(path)}
    if path.suffix == ".jsonl":
        out["lines"] = count_lines(path)
    return out


def describe_all(folder: Path, names: list[str], hashes: Hashes) -> dict[str, dict[str, Any]]:
    """`describe` for each of `names` in `folder`; a folder counts with all its files, as "<folder>/<file>"."""
    files = [f for name in names for f in (files_below(folder / name) if (folder / name).is_dir() else [folder / name])]
    return {file.relative_to(folder).as_posix(): describe(file, hashes) for file in files}


def damage(path: Path, recorded: Mapping[str, Any], hashes: Hashes) -> str | None:
    """How a file differs from its record, None if it does not."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if "lines" in recorded and size != recorded["bytes"] and (lines := count_lines(path)) != recorded["lines"]:
        return f"has {lines} complete lines instead of {recorded['lines']}"
    if size != recorded["bytes"]:
        return f"has {size} bytes instead of {recorded['bytes']}"
    if hashes.of_file(path) != recorded["hash"]:
        return "has the right size and another content (its hash differs)"
    return None


def count_lines(path: Path) -> int:
    """Newlines of a file, so that a line without its end does not count."""
    count = 0
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK):
            count += chunk.count(b"\n")
    return count


def _read(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
