"""Writes all data of the miniature world below `data.root`: four training sources, ten benchmarks, and the truth book.

Stage "world": `runs/<preset>/world/` contains the progress, the scenes of each data set's images, and the manifest. The data itself
is `<data.root>/{train,bench}/…` and `<data.root>/scenes.jsonl` (the truth book). Each data set is written atomically, so a kill
loses those in progress; complete data sets are not written again. `--jobs` processes write data sets side by side; how many
there are does not change a byte.

Command: `python -m miniworld.write --preset mini [--jobs 2]`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from tqdm import tqdm

from fgrpo import recorded
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_jsonl, write_atomic, write_jsonl
from fgrpo.hashing import Hashes
from fgrpo.plugins import plugin_names
from fgrpo.runs import Run, folder, is_done
from fgrpo.schema import Config
from miniworld.truth import FILE
from miniworld.write.side_by_side import write_all, writer_of
from miniworld.write.studio import Writer

MARKER = "MINIATURE"  # marks a data root as written by this module
PROGRESS = "written.jsonl"


def writers() -> dict[str, Writer]:
    """The writers of all data sets, by module name."""
    names = plugin_names("miniworld.write", "WRITER")
    return {name: writer_of(name) for name in names}


def write_world(config: Config, runs: str | Path = "runs", jobs: int = 1) -> Path:
    """Write the missing data, in `jobs` processes, and return the data root.

    Raises:
        UserError: the preset has no miniature world, or the root contains other data.
    """
    if config.world is None:
        raise UserError(
            f"the preset {config.preset!r} has no miniature world (world: null). Run `make data-download` for its data"
        )
    root = Path(config.data.root)
    path = folder(config, "world", runs)
    if is_done(config, "world", runs) and not _unwritten(path) and not _broken(path, root):
        return root
    with Run.open(config, "world", root=runs) as stage:
        if stage.is_done:
            _forget(stage.path, _broken(stage.path, root))
        stage.reopen()
        _claim(root)
        with stage.append(PROGRESS) as progress:
            every = writers()
            missing = {
                name: _count(config, writer)
                for name, writer in every.items()
                if not _is_written(name, writer, progress, stage.path, root)
            }
            written = write_all(missing, config.seed, root, jobs)
            done = len(every) - len(missing)
            for name, entries in tqdm(
                written, desc="miniature world", unit=" data sets", total=len(every), initial=done
            ):
                write_jsonl(stage.path / f"scenes-{name}.jsonl", entries)
                if name not in progress:
                    row = {"folder": every[name].folder, "questions": missing[name]}
                    progress.add({"id": name, **row, "images": len(entries)})
        rows = {row["id"]: row for row in read_jsonl(stage.path / PROGRESS)}
        write_jsonl(stage.path / PROGRESS, (rows[name] for name in writers()))
        _write_book(stage.path, root)
        stage.counts.update({f"{row['id']}/images": row["images"] for row in read_jsonl(stage.path / PROGRESS)})
        hashes = Hashes(stage.path.parent)
        recorded.write(stage.path / recorded.LIST, root, _files(root), hashes)
        _copy_list(stage.path, root)
        stage.finish([PROGRESS, recorded.LIST, *(f"scenes-{name}.jsonl" for name in writers())])
    return root


def _is_written(name: str, writer: Writer, progress: Appender, stage: Path, root: Path) -> bool:
    return name in progress and (stage / f"scenes-{name}.jsonl").is_file() and (root / writer.folder).is_dir()


def _count(config: Config, writer: Writer) -> int:
    """Number of questions of a data set."""
    assert config.world is not None
    return config.world.train_per_source if writer.part == "train" else config.world.bench_per_benchmark


def _claim(root: Path) -> None:
    if root.exists() and any(root.iterdir()) and not (root / MARKER).exists():
        raise UserError(
            f"{root} contains data that is not the miniature world's. Set another data.root, or empty that folder"
        )
    root.mkdir(parents=True, exist_ok=True)
    for part in sorted(root.rglob("*.part")):  # of a killed process
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    (root / MARKER).write_text("written by python -m miniworld.write; may be overwritten by it\n", encoding="utf-8")


def _write_book(stage: Path, root: Path) -> None:
    """Write the truth book of all data sets, one line per image."""
    partial = root / (FILE + ".part")
    with partial.open("wb") as out:
        for name in writers():
            out.write((stage / f"scenes-{name}.jsonl").read_bytes())
    partial.replace(root / FILE)


def _files(root: Path) -> list[str]:
    """Files of the data sets and the truth book, below `root`; not the loaders' cache."""
    folders = {writer.folder for writer in writers().values()}
    files = [p for folder in sorted(folders) for p in (root / folder).rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(root)) for p in [*files, root / FILE, root / MARKER])


def _copy_list(stage: Path, root: Path) -> None:
    """The list of files lies beside the data too, for stages that read it under another root of runs."""
    write_atomic(root / recorded.LIST, (stage / recorded.LIST).read_text(encoding="utf-8"))


def _broken(stage: Path, root: Path) -> list[str]:
    """Files that were written and are missing or changed; a damaged copy of their list is written again."""
    hashes = Hashes(stage.parent)
    broken = list(recorded.damaged(stage / recorded.LIST, root, hashes))
    hashes.save()
    if broken:
        print(f"{root}: {len(broken)} files are missing or changed and are written again, such as {broken[0]}")
    copy = root / recorded.LIST
    if not copy.is_file() or copy.read_bytes() != (stage / recorded.LIST).read_bytes():
        print(f"{copy} is missing or changed and is written again")
        _copy_list(stage, root)
    return broken


def _unwritten(stage: Path) -> set[str]:
    """Data sets that a finished world lacks: it was written before they had a writer."""
    return set(writers()) - {row["id"] for row in read_jsonl(stage / PROGRESS)}


def _forget(stage: Path, broken: list[str]) -> None:
    """Drop the progress of the data sets that `broken` files belong to."""
    rows = [r for r in read_jsonl(stage / PROGRESS) if not any(name.startswith(r["folder"] + "/") for name in broken)]
    write_jsonl(stage / PROGRESS, rows)


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        print(f"miniature data in {write_world(config, args.runs, args.jobs)}")

    arguments = parser("write the miniature world's data in the formats of the real data sets")
    arguments.add_argument("--jobs", type=int, default=1, help="number of processes that write data sets side by side")
    run(body, arguments)


if __name__ == "__main__":
    main()
