"""Run folders: `runs/<preset>/<stage>/{config.json, manifest.json, done, …}` with a lock, resume and provenance.

A stage opens its folder with `Run.open`, writes its artefacts, and ends with `Run.finish`, which checks that they exist,
writes the manifest with their hashes and, last, `done`. What happens to a folder of another configuration is decided by
`fgrpo.resume`; it is never overwritten. A finished file is compared with its manifest before another stage reads it
(`require`). Two processes cannot hold one folder.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fgrpo import resume, run_lock
from fgrpo.errors import UserError
from fgrpo.files import Appender, write_atomic
from fgrpo.hashing import Hashes, damage, describe_all
from fgrpo.identity import FILE as IDENTITY
from fgrpo.identity import Identity, labels
from fgrpo.installed import COMMIT_FILE, IS_WHEEL, ROOT
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed

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
MANIFEST, DONE = "manifest.json", "done"
RESCORED = "rescored"  # below an evaluation: folders with locks of their own


def folder(config: Config, stage: str, root: str | Path = "runs") -> Path:
    """The run folder of `stage`."""
    return Path(root) / config.preset / stage


def require(path: str | Path, made_by: str, *, check: bool = True) -> Path:
    """`path`, which must exist and be what its stage wrote; `made_by` is the make target that writes it.

    Args:
        check: compare the content too (once is enough for several processes).

    Raises:
        UserError: it does not exist, or differs from the manifest of its finished stage (names the file and what to do).
    """
    path = Path(path)
    if path.exists():
        if check:
            verify(path, made_by)
        return path
    hint = (
        f"; the stage is marked done but its folder is incomplete, so delete {path.parent / DONE} first"
        if (path.parent / DONE).exists()
        else ""
    )
    raise UserError(f"{path} is missing; run `make {made_by}`{hint}")


def verify(path: Path, made_by: str) -> None:
    """Compare a file or folder of a finished stage with the stage's manifest. Files without a record pass.

    Raises:
        UserError: a file is missing, shortened or changed, or the manifest cannot be read.
    """
    run = next((p for p in (path, *path.parents) if (p / MANIFEST).is_file() or (p / DONE).is_file()), None)
    if run is None or not (run / DONE).exists():
        return
    name, outputs = path.relative_to(run).as_posix(), _outputs(run)
    if outputs is None:
        raise UserError(
            f"{run / MANIFEST} is missing, empty or damaged, so {path} cannot be checked; restore it from a copy, or rerun "
            f"`make {made_by.split('/')[0]}`, which writes it again"
        )
    chosen = {file: r for file, r in outputs.items() if name == "." or file == name or file.startswith(f"{name}/")}
    hashes = Hashes(run.parent)
    for file, record in chosen.items():
        if (problem := damage(run / file, record, hashes)) is not None:
            raise UserError(_damaged(run, file, problem, made_by))
    hashes.save()


def is_done(config: Config, stage: str, root: str | Path = "runs", inputs: Iterable[str | Path] | None = None) -> bool:
    """Whether `stage` is done for this configuration and for the present content of its inputs.

    Takes no lock and changes nothing, so that a finished stage ends early and beside other processes. Otherwise the stage
    decides with `Run.open`.

    Args:
        inputs: files this stage reads; None takes those that its folder recorded, which must be below `root`.
    """
    path = folder(config, stage, root)
    stored = Identity.read(path)
    if not (path / DONE).exists() or stored is None:
        return False
    files = [Path(root) / label for label in stored.inputs] if inputs is None else [Path(p) for p in inputs]
    if not all(file.exists() for file in files):
        return False
    hashes = Hashes(path.parent)
    now = Identity.of(config, stage, labels(files, Path(root)), hashes)
    done = not resume.needs_work(stored.changes(now)) and _problems(path, hashes) == {}
    hashes.save()
    return done


class Run:
    """One stage's folder while the stage works on it. Use `with Run.open(...) as run`."""

    def __init__(self, path: Path, stage: str, config: Config, identity: Identity | None, lock: Any) -> None:
        self.path, self.stage, self.config, self.identity = path, stage, config, identity
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
        growing: Mapping[str, Path] | None = None,
    ) -> Self:
        """Open the folder of `stage`: create it, or resume the work of an earlier process with the same configuration.

        Args:
            inputs: files that this stage reads; their hashes are part of the folder's identity and of the manifest.
            depends_on: the values that decide whether the folder is still valid; None = the stage's keys.
            growing: {name: folder} of contents that later calls may add to (`Identity.growing`).

        Raises:
            UserError: another process holds the folder, an input is missing, or the folder holds work of another experiment.
        """
        path = folder(config, stage, root)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = run_lock.lock(path)
        try:
            hashes = Hashes(path.parent)
            identity = Identity.of(config, stage, labels(inputs, Path(root)), hashes, depends_on, growing)
            hashes.save()
            resume.settle(path, stage, config, identity)
            path.mkdir(parents=True, exist_ok=True)
            write_sealed(path / IDENTITY, _as_stored(path, identity).to_dict())
            _remove_unfinished(path)
        except BaseException:
            lock.close()
            raise
        return cls(path, stage, config, identity, lock)

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
        """Whether the stage finished with this configuration and its artefacts are all there.

        Raises:
            UserError: an artefact was changed since, or a training run has its result and no checkpoint to repeat the rest from.
        """
        if not (self.path / DONE).exists():
            self._check_repeatable("it is not marked done")
            return False
        hashes = Hashes(self.path.parent)
        problems = _problems(self.path, hashes)
        hashes.save()
        if problems is None or any(not (self.path / name).exists() for name in problems):
            lost = MANIFEST if problems is None else next(name for name in problems if not (self.path / name).exists())
            self._check_repeatable(f"{lost} is missing or damaged")
            print(f"{self.path / lost} is missing or damaged; the stage writes it again from what is there")
            self.reopen()
            return False
        for name, problem in problems.items():
            raise UserError(_damaged(self.path, name, problem, self.stage))
        return True

    def _check_repeatable(self, why: str) -> None:
        """UserError for a training run without checkpoints that would train from step 0 over its own result."""
        final = self.path / "final"
        if resume.is_training(self.stage) and final.exists() and not resume.has_checkpoints(self.path):
            raise UserError(
                f"{final} is there, but {why}, and the checkpoints are deleted, so the stage would train from step 0. Restore "
                f"the missing file from a copy, or move {self.path} away and rerun to train anew"
            )

    def reopen(self) -> None:
        """Mark the folder as unfinished before its artefacts change, so that a kill leaves no folder that looks damaged.

        From now on its results have the present means, so the change of them is recorded.
        """
        if self.identity is not None and (self.path / DONE).exists():
            stored = Identity.read(self.path)
            resume.record(self.path, stored.changes(self.identity) if stored is not None else [])
            write_sealed(self.path / IDENTITY, self.identity.to_dict())
        (self.path / DONE).unlink(missing_ok=True)

    def append(self, name: str, key: str = "id") -> Appender:
        """A resumable jsonl file of this folder."""
        return Appender(self.path / name, key)

    def finish(self, outputs: Iterable[str], **extra: Any) -> None:
        """Write the manifest and `done`.

        Args:
            outputs: names inside the folder; each must exist. Checkpoints are no output.

        Raises:
            UserError: an output is missing, so the stage is not done.
        """
        names = list(outputs)
        missing = [name for name in names if not (self.path / name).exists()]
        if missing:
            raise UserError(f"stage {self.stage} did not write {', '.join(missing)} in {self.path}; rerun it")
        hashes = Hashes(self.path.parent)
        identity = {} if self.identity is None else self.identity.to_dict()
        write_sealed(
            self.path / MANIFEST,
            {
                "stage": self.stage,
                "preset": self.config.preset,
                "method": self.config.method,
                "seed": self.config.seed,
                "inputs": identity.get("inputs", {}),
                "identity": identity,
                "changes": resume.recorded_changes(self.path),
                "outputs": describe_all(self.path, names, hashes),
                "counts": dict(self.counts),
                "seconds": round(time.time() - self._started, 1),
                "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                **_provenance(),
                **extra,
            },
        )
        hashes.save()
        write_atomic(self.path / DONE, time.strftime("%Y-%m-%dT%H:%M:%S\n"))


def record_outputs(path: Path, names: Iterable[str], manifest: Mapping[str, Any] | None = None) -> None:
    """Mark a folder as finished, with the hashes of its files `names`, so that `verify` compares them.

    Args:
        manifest: that of a stage's folder, of which everything else stays.
    """
    known = manifest or {"outputs": {}}
    outputs = {**known["outputs"], **describe_all(path, list(names), Hashes(path.parent))}
    write_sealed(path / MANIFEST, {**known, "outputs": outputs})
    write_atomic(path / DONE, time.strftime("%Y-%m-%dT%H:%M:%S\n"))


def same_identity(path: Path, other: Path) -> bool:
    """Whether two run folders have the same configuration and inputs."""
    first, second = Identity.read(path), Identity.read(other)
    return first is not None and second is not None and first.same(second)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock of a run folder without opening it.

    Raises:
        UserError: another process is working on it.
    """
    lock = run_lock.lock(path)
    try:
        yield
    finally:
        lock.close()


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; NaN and infinity are errors."""
    write_atomic(path, json.dumps(data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _outputs(path: Path) -> dict[str, Any] | None:
    """{file: record} of a folder's manifest; None where the manifest is missing or damaged."""
    try:
        outputs = read_sealed(path / MANIFEST)["outputs"]
        return {name: {"bytes": int(record["bytes"]), **record} for name, record in outputs.items() if record["hash"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the stage then writes its manifest again
        return None


def _problems(path: Path, hashes: Hashes) -> dict[str, str] | None:
    """{output: how it differs from the manifest}; None without a readable manifest."""
    outputs = _outputs(path)
    if outputs is None:
        return None
    found = {name: damage(path / name, record, hashes) for name, record in outputs.items()}
    return {name: problem for name, problem in found.items() if problem is not None}


def _as_stored(path: Path, identity: Identity) -> Identity:
    """The identity to write into a folder: a finished one keeps the means that made its results."""
    stored = Identity.read(path) if (path / DONE).exists() else None
    return identity if stored is None else dataclasses.replace(identity, means=stored.means)


def _damaged(run: Path, file: str, problem: str, made_by: str) -> str:
    target = made_by.split("/")[0]
    again = f"delete {run / DONE} and rerun `make {target}`"
    is_model = resume.is_training(made_by) and file.startswith("final/")
    if resume.is_training(made_by) and (made_by in ("sft", "anchor") or not resume.has_checkpoints(run)) and is_model:
        again = f"move {run} away and rerun `make {target}` to train anew"  # no checkpoint holds the best state
        return f"{run / file} is not what its finished stage wrote: it {problem}. Restore it from a copy, or {again}"
    if is_model:
        again = (
            f"delete {run / 'final'} and {run / DONE}, and rerun `make {target}`: the last checkpoint gives it again"
        )
        return f"{run / file} is not what its finished stage wrote: it {problem}. Restore it from a copy, or {again}"
    way = f"{again}: what is missing is done again" if problem.startswith("has ") and "lines" in problem else ""
    return f"{run / file} is not what its finished stage wrote: it {problem}. Restore it from a copy, or " + (
        way or f"delete it, then {again}"
    )


def _remove_unfinished(path: Path) -> None:
    """Delete files and folders that a killed process left half written. The caller holds the folder's lock.

    Another process may be at work in `rescored/`, whose folders have locks of their own.
    """
    for part in sorted(path.rglob("*.part")):
        if RESCORED in part.relative_to(path).parts:
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _provenance() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if IS_WHEEL:  # a repository around the environment is not this one
        commit = COMMIT_FILE.read_text(encoding="utf-8").strip() if COMMIT_FILE.is_file() else None
        return {"commit": commit and commit.rstrip("+"), "dirty": bool(commit and "+" in commit), "packages": versions}
    return {
        "commit": _git(ROOT, "rev-parse", "HEAD"),
        "dirty": bool(_git(ROOT, "status", "--porcelain")),
        "packages": versions,
    }


def _git(where: Path, *words: str) -> str | None:
    try:
        out = subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return out.stdout.strip() if out.returncode == 0 else None
