"""Downloads the data sets and benchmarks from the hub into the folders that the loaders read (configs/datasets.yaml).

It first prints the plan: per data set the licence, the remaining download and the disk space; it refuses to start if the disk is
too small. Then it downloads file by file, verifies each against the hub's checksum, and unpacks archives. After an interruption,
rerun to resume. `<data.root>/downloads/<name>.json` records repository, commit, licence and checksums. Files that were copied
into the folders by hand work as well: the loaders read the folders only.

Command: `make data-download PRESET=paper-7b [SETS="mmvp sat"]` (`python -m data_curation.download --preset paper-7b`;
`--plan` prints the plan only). To use a mirror, set HF_ENDPOINT.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from data_curation import hub
from data_curation.unpack import is_archive, unpack
from fgrpo.cli import parser, run
from fgrpo.config import CONFIGS, load
from fgrpo.errors import UserError, unknown
from fgrpo.runs import held, write_json
from fgrpo.schema import Config

WORKERS = 8  # parallel downloads of one data set
UNPACKED = 1.1  # ratio of unpacked to archive size: images hardly compress
RESERVE = 2e9  # bytes of disk to leave free


class DataSet(BaseModel):
    """One entry of configs/datasets.yaml.

    Attributes:
        serves: names of the sources and benchmarks that read it.
        repo, revision: repository of the hub, and its revision.
        files: patterns of the files to download.
        unpack: "none", "each" (every archive separately), or the pattern of the parts of one tar file.
        folder: destination below `data.root`.
        licence: licence of the data set, from its card.
        layout: file layout that the loaders expect, for files that are copied by hand.
        sure, unsure: what of this entry is verified, and what is not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    serves: tuple[str, ...]
    repo: str
    files: tuple[str, ...]
    folder: str
    licence: str
    layout: str
    sure: str
    unsure: str
    revision: str = "main"
    unpack: str = "none"


def catalogue(path: Path = CONFIGS / "datasets.yaml") -> dict[str, DataSet]:
    """All data sets by name.

    Raises:
        UserError: the file is not a valid catalogue.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: DataSet(**entry) for name, entry in entries.items()}
    except (yaml.YAMLError, ValidationError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a valid catalogue of data sets: {error}. Fix the file") from error


def select_data_sets(config: Config, names: Sequence[str], entries: Mapping[str, DataSet]) -> dict[str, DataSet]:
    """The data sets that the preset reads, or those in `names` (data sets, sources or benchmarks).

    Raises:
        UserError: a name is unknown.
    """
    readers = {reader for entry in entries.values() for reader in entry.serves}
    for name in names:
        if name not in entries and name not in readers:
            raise unknown("data set", name, {*entries, *readers})
    requested = set(names) or {*config.data.sources, *config.eval.every_benchmark}
    return {name: entry for name, entry in entries.items() if name in requested or requested & set(entry.serves)}


@dataclass(frozen=True)
class Job:
    """The remaining work for one data set.

    Attributes:
        listing: the matching files of the repository.
        missing: files to download.
        archives: archives that are not unpacked yet, downloaded or not.
    """

    name: str
    entry: DataSet
    listing: hub.Listing
    missing: tuple[hub.Remote, ...]
    archives: tuple[hub.Remote, ...]

    @property
    def download_bytes(self) -> int:
        """Bytes to download."""
        return sum(remote.size for remote in self.missing)

    @property
    def disk_bytes(self) -> int:
        """Upper bound of the disk space in bytes: files, archives, and unpacked archives."""
        return self.download_bytes + round(UNPACKED * sum(remote.size for remote in self.archives))


class Record:
    """`<data.root>/downloads/<name>.json`: the verified files of a data set, and which archives are unpacked."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "downloads" / f"{name}.json"
        try:
            self.data: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            self._files: dict[str, dict[str, Any]] = self.data["files"]
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: existing files are verified again
            self.data = {"files": {}}
            self._files = self.data["files"]

    def has(self, remote: hub.Remote, folder: Path) -> bool:
        """Whether this version of the file exists, or was unpacked."""
        stored = self._files.get(remote.path, {})
        if stored.get("digest") != remote.digest or stored.get("size") != remote.size:
            return False
        path = folder / remote.path
        return bool(stored.get("unpacked")) or (path.is_file() and path.stat().st_size == remote.size)

    def is_unpacked(self, remote: hub.Remote) -> bool:
        return bool(self._files.get(remote.path, {}).get("unpacked"))

    def add(self, entry: DataSet, listing: hub.Listing, remotes: Iterable[hub.Remote], **facts: Any) -> None:
        """Record files with size and checksum, plus `facts`."""
        for remote in remotes:
            self._files[remote.path] = {"size": remote.size, "digest": remote.digest, **facts}
        self.data = {"repo": entry.repo, "commit": listing.commit, "licence": entry.licence, "files": self._files}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)


def plan_job(root: Path, name: str, entry: DataSet, endpoint: str | None) -> Job:
    """List the repository and compare it with local files; files without a record are verified by checksum.

    Raises:
        hub.Unreachable, UserError: see `hub.listing`.
    """
    listing = hub.listing(entry.repo, entry.files, entry.revision, endpoint)
    record, folder = Record(root, name), root / entry.folder
    unrecorded = [remote for remote in listing.files if not record.has(remote, folder)]
    verified = [r for r in unrecorded if (folder / r.path).is_file() and hub.is_intact(folder / r.path, r)]
    if verified:  # copied by hand, or downloaded before a kill
        record.add(entry, listing, verified)
    missing = tuple(remote for remote in unrecorded if remote not in verified)
    packed = {path for group in _groups(entry, listing.files) for path in group}
    archives = tuple(r for r in listing.files if r in packed and not record.is_unpacked(r))
    return Job(name, entry, listing, missing, archives)


def _groups(entry: DataSet, files: Sequence[hub.Remote]) -> list[list[hub.Remote]]:
    """The archives among `files`, each as the ordered list of its parts."""
    if entry.unpack == "none":
        return []
    if entry.unpack == "each":
        return [[remote] for remote in files if is_archive(remote.path)]
    pieces = [remote for remote in files if fnmatch.fnmatchcase(remote.path, entry.unpack)]
    return [sorted(pieces, key=lambda remote: remote.path)] if pieces else []


def download(root: Path, job: Job, endpoint: str | None) -> None:
    """Download, verify and unpack the missing files of one data set; resumes an interrupted download.

    Raises:
        hub.Unreachable, UserError: see `hub.fetch` and `unpack`.
    """
    entry, folder, record = job.entry, root / job.entry.folder, Record(root, job.name)
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(entry, job.listing.files)
    packed = {remote for group in groups for remote in group}
    for group in groups:  # one archive at a time, so that the disk holds at most one archive plus unpacked files
        pieces = [folder / remote.path for remote in group]
        if all(record.is_unpacked(remote) for remote in group):
            for piece in pieces:
                piece.unlink(missing_ok=True)  # left over after a kill
            continue
        _fetch_all(job, [r for r in group if r in job.missing], folder, record, endpoint)
        count = unpack(pieces, pieces[0].parent if entry.unpack == "each" else folder)
        record.add(entry, job.listing, group, unpacked=count)
        for piece in pieces:
            piece.unlink()
    _fetch_all(job, [r for r in job.missing if r not in packed], folder, record, endpoint)


def _fetch_all(job: Job, files: Sequence[hub.Remote], folder: Path, record: Record, endpoint: str | None) -> None:
    if not files:
        return
    pool = ThreadPoolExecutor(WORKERS)
    try:
        fetched = pool.map(lambda remote: (remote, hub.fetch(job.listing, remote, folder, endpoint)), files)
        with tqdm(fetched, total=len(files), desc=job.name, unit=" files") as progress:
            for number, (remote, _) in enumerate(progress):
                if remote.size >= hub.SMALL_FILE or number % 200 == 0 or number + 1 == len(files):
                    record.add(job.entry, job.listing, files[: number + 1])
    finally:
        pool.shutdown(cancel_futures=True)


def format_plan(jobs: Sequence[Job], root: Path, free: float) -> str:
    """The plan as text: licences, sizes, folders, disk space.

    Args:
        free: free disk space in bytes.
    """
    lines = [f"{'data set':<12} {'download':>10} {'disk':>10}  licence; folder"]
    for job in jobs:
        lines.append(
            f"{job.name:<12} {_size(job.download_bytes):>10} {_size(job.disk_bytes):>10}  {job.entry.licence}; "
            f"{root / job.entry.folder} from {job.entry.repo}@{job.listing.commit[:10]}"
        )
    need = sum(job.disk_bytes for job in jobs)
    lines.append(
        f"{'all':<12} {_size(sum(job.download_bytes for job in jobs)):>10} {_size(need):>10}  {_size(free)} free"
    )
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def manual_instructions(root: Path, entries: Mapping[str, DataSet]) -> str:
    """How to copy the files to the loaders' folders by hand."""
    lines = ["To download by hand, copy these files to these folders, then run `make doctor` to check them:"]
    lines += [f"  {name}: {entry.repo} -> {root / entry.folder}: {entry.layout}" for name, entry in entries.items()]
    return "\n".join(lines)


def fetch_all(
    config: Config, names: Sequence[str] = (), endpoint: str | None = None, *, plan_only: bool = False
) -> None:
    """Plan and download all data sets of the preset, or those in `names`.

    Args:
        endpoint: URL of the hub; None for the default or HF_ENDPOINT.
        plan_only: print the plan and download nothing.

    Raises:
        UserError: the preset writes its own data, the hub is unreachable, the disk is too small, another process downloads to the
            same folder, or a data set is unavailable (the others are downloaded; the message explains the manual download).
    """
    if config.world is not None and not names:
        raise UserError(f"preset {config.preset} writes its own data (`make data`); use PRESET=paper-7b")
    root = Path(config.data.root)
    chosen = select_data_sets(config, names, catalogue())
    jobs, problems = [], {}
    for name, entry in chosen.items():
        try:
            jobs.append(plan_job(root, name, entry, endpoint))
        except hub.Unreachable as error:
            raise UserError(f"{error}\n{manual_instructions(root, chosen)}") from error
        except UserError as error:
            problems[name] = str(error)
    existing = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    print(format_plan(jobs, root, free), flush=True)
    need = sum(job.disk_bytes for job in jobs)
    if any(job.disk_bytes for job in jobs) and free - RESERVE < need:
        raise UserError(
            f"{_size(need)} are needed on the disk of {root}, but only {_size(free)} are free ({_size(RESERVE)} of them are "
            'reserved). Free some space, set data.root to another disk, or download some sets only: SETS="mmvp sat"'
        )
    with nullcontext() if plan_only else held(root / "downloads"):
        for job in () if plan_only else jobs:
            try:
                download(root, job, endpoint)
            except hub.Unreachable as error:
                raise UserError(f"{error}. Rerun to resume\n{manual_instructions(root, chosen)}") from error
            except UserError as error:
                problems[job.name] = str(error)
    if problems:
        listed = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
        manual = manual_instructions(root, {name: chosen[name] for name in problems})
        raise UserError(f"{len(problems)} of {len(chosen)} data sets are unavailable: {listed}\n{manual}")


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        fetch_all(config, args.sets, plan_only=args.plan)
        if not args.plan:
            print(f"all files are in {config.data.root}; run `make doctor PRESET={config.preset}` to check them")

    arguments = parser("download the data sets and benchmarks from the hub; resumes an interrupted download")
    arguments.add_argument(
        "--sets", nargs="*", default=[], metavar="NAME", help="only these data sets, sources or benchmarks"
    )
    arguments.add_argument("--plan", action="store_true", help="print download and disk sizes only")
    run(body, arguments)


if __name__ == "__main__":
    main()
