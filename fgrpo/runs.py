"""Run folders: `runs/<preset>/<stage>/{config.json, manifest.json, done, …}` with a lock, resume and provenance.

A stage opens its folder with `Run.open`, writes its artefacts, and ends with `Run.finish`, which checks that they exist,
writes the manifest and, last, `done`. A folder of another configuration is moved to `runs/<preset>/.superseded/` and never
overwritten. Two processes cannot hold one folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgrpo.config import stage_slice
from fgrpo.errors import UserError
from fgrpo.files import Appender, write_atomic
from fgrpo.schema import Config

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "deepspeed",
    "peft",
    "vllm",
    "datasets",
    "numpy",
    "scipy",
    "openai",
)
FULL_HASH_BYTES = 256 << 20  # of larger input files only both ends are hashed


def folder(config: Config, stage: str, root: str | Path = "runs") -> Path:
    """The run folder of `stage`."""
    return Path(root) / config.preset / stage


def require(path: str | Path, made_by: str) -> Path:
    """`path`, which must exist; `made_by` is the make target that writes it.

    Raises:
        UserError: it does not exist (names the target, and how to force it).
    """
    path = Path(path)
    if path.exists():
        return path
    hint = (
        f"; the stage is marked done but its folder is incomplete, so delete {path.parent / 'done'} first"
        if (path.parent / "done").exists()
        else ""
    )
    raise UserError(f"{path} is missing; run `make {made_by}`{hint}")


def is_done(config: Config, stage: str, root: str | Path = "runs", inputs: Iterable[str | Path] | None = None) -> bool:
    """Whether `stage` is done for this configuration and for the present content of its inputs.

    Reads only: takes no lock and changes nothing, so that a finished stage ends early and beside other processes. Otherwise
    the stage decides with `Run.open`.

    Args:
        inputs: files this stage reads; None takes those that its folder recorded, which must be below `root`.
    """
    path = folder(config, stage, root)
    identity = _load_json(path / "config.json")
    if not (path / "done").exists() or not identity or identity.get("config") != stage_slice(config, stage):
        return False
    files = [Path(root) / label for label in identity["inputs"]] if inputs is None else [Path(p) for p in inputs]
    if not all(file.exists() for file in files):
        return False
    return identity["inputs"] == {_label(p, Path(root)): _hash_file(p) for p in files} and _is_complete(path)


class Run:
    """One stage's folder while the stage works on it. Use `with Run.open(...) as run`."""

    def __init__(self, path: Path, stage: str, config: Config, inputs: Mapping[str, str], lock: Any) -> None:
        self.path, self.stage, self.config = path, stage, config
        self.inputs = dict(inputs)
        self.counts: Counter[str] = Counter()
        self._lock = lock
        self._started = time.time()

    @classmethod
    def open(
        cls,
        config: Config,
        stage: str,
        inputs: Iterable[str | Path] = (),
        root: str | Path = "runs",
        depends_on: Mapping[str, Any] | None = None,
    ) -> Self:
        """Open the folder of `stage`: create it, or resume the work of an earlier process with the same configuration.

        Args:
            inputs: files that this stage reads; their hashes are part of the folder's identity and of the manifest.
            depends_on: the values that decide whether the folder is still valid; None = the stage's slice.

        Raises:
            UserError: another process holds the folder, or an input is missing.
        """
        path = folder(config, stage, root)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        hashes = {_label(Path(p), Path(root)): _hash_file(Path(p)) for p in inputs}
        identity = {"config": stage_slice(config, stage) if depends_on is None else dict(depends_on), "inputs": hashes}
        present = path / "config.json"
        if path.exists() and any(path.iterdir()) and (not present.exists() or _load_json(present) != identity):
            _supersede(path, stage)
        path.mkdir(parents=True, exist_ok=True)
        write_json(present, identity)
        return cls(path, stage, config, hashes, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_done(self) -> bool:
        """Whether the stage finished with this configuration and all its artefacts are still there, unchanged in size."""
        if not (self.path / "done").exists():
            return False
        complete = _is_complete(self.path)
        if not complete:
            (self.path / "done").unlink()
        return complete

    def append(self, name: str, key: str = "id") -> Appender:
        """A resumable jsonl file of this folder."""
        return Appender(self.path / name, key)

    def finish(self, outputs: Iterable[str], **extra: Any) -> None:
        """Write the manifest and `done`. `outputs` are names inside the folder; each must exist.

        Raises:
            UserError: an output is missing, so the stage is not done.
        """
        names = list(outputs)
        missing = [name for name in names if not (self.path / name).exists()]
        if missing:
            raise UserError(f"stage {self.stage} did not write {', '.join(missing)} in {self.path}; rerun it")
        write_json(
            self.path / "manifest.json",
            {
                "stage": self.stage,
                "preset": self.config.preset,
                "method": self.config.method,
                "seed": self.config.seed,
                "inputs": self.inputs,
                "outputs": {name: _size(self.path / name) for name in names},
                "counts": dict(self.counts),
                "seconds": round(time.time() - self._started, 1),
                **_provenance(),
                **extra,
            },
        )
        write_atomic(self.path / "done", time.strftime("%Y-%m-%dT%H:%M:%S\n"))


def same_identity(path: Path, other: Path) -> bool:
    """Whether two run folders have the same configuration and inputs."""
    first = _load_json(path / "config.json")
    return first is not None and first == _load_json(other / "config.json")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a run folder without opening it.

    Raises:
        UserError: another process is working on it.
    """
    lock = _lock(path)
    try:
        yield
    finally:
        lock.close()


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN and infinity are errors."""
    write_atomic(path, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _is_complete(path: Path) -> bool:
    """Whether the manifest's outputs are all there with their sizes."""
    manifest = _load_json(path / "manifest.json")
    outputs = (manifest or {}).get("outputs", {})
    return bool(manifest) and all(
        (path / name).exists() and _size(path / name) == size for name, size in outputs.items()
    )


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a torn or missing file belongs to no valid run: start anew
        return None


def _label(path: Path, root: Path) -> str:
    """The name of an input in a run's identity: its path below the run root, so that the root may be moved."""
    try:
        return path.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:  # from elsewhere, such as a shipped model
        return path.name


def _lock(path: Path) -> Any:
    locks = path.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    handle = (locks / path.name).open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.close()
        raise UserError(
            f"another process is working on {path}; wait for it, or end it, then rerun to resume"
        ) from error
    return handle


def _supersede(path: Path, stage: str) -> None:
    old = path.parent / ".superseded"
    old.mkdir(exist_ok=True)
    number = 0
    while (target := old / f"{stage.replace('/', '-')}.{number}").exists():
        number += 1
    path.rename(target)
    print(f"{path} belongs to another configuration or other inputs; moved to {target}")


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def _hash_file(path: Path) -> str:
    if not path.exists():
        raise UserError(f"the input {path} is missing; run the stage that writes it first")
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path)}:{size}\n".encode())
        with file.open("rb") as data:
            if size > FULL_HASH_BYTES:  # weights of a large model: both ends and the size identify them
                digest.update(data.read(1 << 20))
                data.seek(-(1 << 20), os.SEEK_END)
            while chunk := data.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _provenance() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    here = Path(__file__).resolve().parent
    return {
        "commit": _git(here, "rev-parse", "HEAD"),
        "dirty": bool(_git(here, "status", "--porcelain")),
        "packages": versions,
    }


def _git(where: Path, *words: str) -> str | None:
    try:
        out = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None
