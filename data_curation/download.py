"""Fetches the real data sets and benchmarks from the hub to where the loaders look for them (configs/datasets.yaml).

First the plan: every data set with its licence, what is still to come, and the disk that takes; nothing starts where the disk
is too small. Then file by file, each checked against the hub's checksum, archives unpacked. Stopped at any moment, the same
command goes on. `<data.root>/downloads/<name>.json` keeps repository, commit, licence and checksums of what was fetched. Files put in
their folders by hand are as good: the loaders only look at the folders.

Command: `make data-download PRESET=paper-7b [SETS="mmvp sat"]` (`python -m data_curation.download --preset paper-7b`;
`--plan` only prints the plan). A mirror: HF_ENDPOINT.
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

WORKERS = 8  # files of one data set at a time
UNPACKED = 1.1  # unpacked size over an archive's: pictures hardly shrink
RESERVE = 2e9  # bytes that stay free


class DataSet(BaseModel):
    """One entry of configs/datasets.yaml.

    Attributes:
        serves: names of the sources and benchmarks that read it.
        files: patterns of the files that are wanted.
        unpack: "none", "each" archive on its own, or the pattern of the pieces of one tar file.
        folder: where it goes, below `data.root`.
        layout: what the loaders look for there, for those who put files there by hand.
        sure, unsure: what of this entry was verified, and what was not.
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
    """Every data set there is, by name. UserError if the file does not have its form."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: DataSet(**entry) for name, entry in entries.items()}
    except (yaml.YAMLError, ValidationError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a catalogue of data sets: {error}") from error


def wanted(config: Config, names: Sequence[str], known: Mapping[str, DataSet]) -> dict[str, DataSet]:
    """The data sets that the preset reads, or those that `names` asks for (a data set, a source or a benchmark)."""
    readers = {reader for entry in known.values() for reader in entry.serves}
    for name in names:
        if name not in known and name not in readers:
            raise unknown("data set", name, {*known, *readers})
    asked = set(names) or {*config.data.sources, *config.eval.benchmarks}
    return {name: entry for name, entry in known.items() if name in asked or asked & set(entry.serves)}


@dataclass(frozen=True)
class Job:
    """What is still to do for one data set."""

    name: str
    entry: DataSet
    found: hub.Listing
    missing: tuple[hub.Remote, ...]
    archives: tuple[hub.Remote, ...]  # of the missing ones, and of those here that are not unpacked yet

    @property
    def to_come(self) -> int:
        """Bytes still to be downloaded."""
        return sum(remote.size for remote in self.missing)

    @property
    def disk(self) -> int:
        """Bytes of free disk that it takes at most: files, unpacked archives, and archives until they are unpacked."""
        return self.to_come + round(UNPACKED * sum(remote.size for remote in self.archives))


class Record:
    """`<data.root>/downloads/<name>.json`: what of a data set is here, checked, and which archives are unpacked."""

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "downloads" / f"{name}.json"
        try:
            self.data: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            self._files: dict[str, dict[str, Any]] = self.data["files"]
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: what is here is checked again
            self.data = {"files": {}}
            self._files = self.data["files"]

    def has(self, remote: hub.Remote, folder: Path) -> bool:
        """Whether this version of the file is here, or was here and is unpacked."""
        known = self._files.get(remote.path, {})
        if known.get("digest") != remote.digest or known.get("size") != remote.size:
            return False
        path = folder / remote.path
        return bool(known.get("unpacked")) or (path.is_file() and path.stat().st_size == remote.size)

    def is_unpacked(self, remote: hub.Remote) -> bool:
        return bool(self._files.get(remote.path, {}).get("unpacked"))

    def add(self, entry: DataSet, found: hub.Listing, remotes: Iterable[hub.Remote], **facts: Any) -> None:
        """Remember files, with what the hub says of them."""
        for remote in remotes:
            self._files[remote.path] = {"size": remote.size, "digest": remote.digest, **facts}
        self.data = {"repo": entry.repo, "commit": found.commit, "licence": entry.licence, "files": self._files}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.data)


def job(root: Path, name: str, entry: DataSet, endpoint: str | None) -> Job:
    """Ask the hub what there is, and compare with what is here, by checksum where it is not known. Raises as `hub.listing`."""
    found = hub.listing(entry.repo, entry.files, entry.revision, endpoint)
    record, folder = Record(root, name), root / entry.folder
    unknown_ones = [remote for remote in found.files if not record.has(remote, folder)]
    here = [r for r in unknown_ones if (folder / r.path).is_file() and hub.fits(folder / r.path, r)]
    if here:  # put there by hand, or fetched before a kill
        record.add(entry, found, here)
    missing = tuple(remote for remote in unknown_ones if remote not in here)
    packed = {path for group in _groups(entry, found.files) for path in group}
    archives = tuple(r for r in found.files if r in packed and not record.is_unpacked(r))
    return Job(name, entry, found, missing, archives)


def _groups(entry: DataSet, files: Sequence[hub.Remote]) -> list[list[hub.Remote]]:
    """The archives among `files`: each is the list of its pieces, in order."""
    if entry.unpack == "none":
        return []
    if entry.unpack == "each":
        return [[remote] for remote in files if is_archive(remote.path)]
    pieces = [remote for remote in files if fnmatch.fnmatchcase(remote.path, entry.unpack)]
    return [sorted(pieces, key=lambda remote: remote.path)] if pieces else []


def download(root: Path, work: Job, endpoint: str | None) -> None:
    """Fetch, check and unpack what is missing of one data set; goes on where an earlier call stopped."""
    entry, folder, record = work.entry, root / work.entry.folder, Record(root, work.name)
    folder.mkdir(parents=True, exist_ok=True)
    groups = _groups(entry, work.found.files)
    packed = {remote for group in groups for remote in group}
    for group in groups:  # one archive after the other: the disk holds one of them, and what is unpacked
        pieces = [folder / remote.path for remote in group]
        if all(record.is_unpacked(remote) for remote in group):
            for piece in pieces:
                piece.unlink(missing_ok=True)  # left by a kill
            continue
        _fetch_all(work, [r for r in group if r in work.missing], folder, record, endpoint)
        count = unpack(pieces, pieces[0].parent if entry.unpack == "each" else folder)
        record.add(entry, work.found, group, unpacked=count)
        for piece in pieces:
            piece.unlink()
    _fetch_all(work, [r for r in work.missing if r not in packed], folder, record, endpoint)


def _fetch_all(work: Job, files: Sequence[hub.Remote], folder: Path, record: Record, endpoint: str | None) -> None:
    if not files:
        return
    pool = ThreadPoolExecutor(WORKERS)
    try:
        done = pool.map(lambda remote: (remote, hub.fetch(work.found, remote, folder, endpoint)), files)
        with tqdm(done, total=len(files), desc=work.name, unit=" files") as shown:
            for number, (remote, _) in enumerate(shown):
                if remote.size >= hub.SMALL or number % 200 == 0 or number + 1 == len(files):
                    record.add(work.entry, work.found, files[: number + 1])
    finally:
        pool.shutdown(cancel_futures=True)


def plan(jobs: Sequence[Job], root: Path, free: float) -> str:
    """What is to come, as text: licences, sizes, folders, disk."""
    lines = [f"{'data set':<12} {'to come':>10} {'on disk':>10}  licence; folder"]
    for work in jobs:
        lines.append(
            f"{work.name:<12} {_size(work.to_come):>10} {_size(work.disk):>10}  {work.entry.licence}; "
            f"{root / work.entry.folder} from {work.entry.repo}@{work.found.commit[:10]}"
        )
    need = sum(work.disk for work in jobs)
    lines.append(
        f"{'all':<12} {_size(sum(work.to_come for work in jobs)):>10} {_size(need):>10}  {_size(free)} are free"
    )
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def by_hand(root: Path, entries: Mapping[str, DataSet]) -> str:
    """How to put the files where the loaders look, without this command."""
    lines = ["by hand: put these files there, then `make doctor` says what it finds"]
    lines += [f"  {name}: {entry.repo} -> {root / entry.folder}: {entry.layout}" for name, entry in entries.items()]
    return "\n".join(lines)


def fetch_all(
    config: Config, names: Sequence[str] = (), endpoint: str | None = None, *, only_plan: bool = False
) -> None:
    """Plan and download everything that the preset (or `names`) wants.

    Raises:
        UserError: the preset writes its own data, no hub answers, the disk is too small, another process downloads there, or
            a data set cannot be had (the others are fetched all the same; the message says how to go on by hand).
    """
    if config.world is not None and not names:
        raise UserError(f"preset {config.preset} writes its data itself (`make data`); choose PRESET=paper-7b")
    root = Path(config.data.root)
    chosen = wanted(config, names, catalogue())
    jobs, problems = [], {}
    for name, entry in chosen.items():
        try:
            jobs.append(job(root, name, entry, endpoint))
        except hub.Unreachable as error:
            raise UserError(f"{error}\n{by_hand(root, chosen)}") from error
        except UserError as error:
            problems[name] = str(error)
    there = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    print(plan(jobs, root, free), flush=True)
    need = sum(work.disk for work in jobs)
    if any(work.disk for work in jobs) and free - RESERVE < need:
        raise UserError(
            f"{_size(need)} are needed on the disk of {root} and {_size(free)} are free ({_size(RESERVE)} stay so); free "
            'some, set data.root to another disk, or fetch parts of it: SETS="mmvp sat"'
        )
    with nullcontext() if only_plan else held(root / "downloads"):
        for work in () if only_plan else jobs:
            try:
                download(root, work, endpoint)
            except hub.Unreachable as error:
                raise UserError(f"{error}; run again to go on\n{by_hand(root, chosen)}") from error
            except UserError as error:
                problems[work.name] = str(error)
    if problems:
        listed = "; ".join(f"{name}: {why}" for name, why in problems.items())
        hand = by_hand(root, {name: chosen[name] for name in problems})
        raise UserError(f"{len(problems)} of {len(chosen)} data sets could not be had: {listed}\n{hand}")


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        fetch_all(config, args.sets, only_plan=args.plan)
        if not args.plan:
            print(f"all of it is in {config.data.root}; `make doctor PRESET={config.preset}` looks at it")

    arguments = parser("fetch the data sets and benchmarks from the hub; goes on where it was stopped")
    arguments.add_argument("--sets", nargs="*", default=[], metavar="NAME", help="only these (sources, benchmarks)")
    arguments.add_argument("--plan", action="store_true", help="only say what would come, and the disk it takes")
    run(body, arguments)


if __name__ == "__main__":
    main()
