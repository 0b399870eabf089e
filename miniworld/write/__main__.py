"""Writes all data of the miniature world below `data.root`: four training sources, ten benchmarks, and the truth book.

Stage "world": `runs/<preset>/world/` contains the progress, the scenes of each data set's images, and the manifest. The data itself
is `<data.root>/{train,bench}/…` and `<data.root>/scenes.jsonl` (the truth book). Each data set is written atomically, so a kill
loses at most one; complete data sets are not written again.

Command: `python -m miniworld.write --preset mini`.
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
from fgrpo.files import read_jsonl, write_atomic, write_jsonl
from fgrpo.hashing import Hashes
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.runs import Run, folder, is_done
from fgrpo.schema import Config
from miniworld.truth import FILE
from miniworld.write.studio import Studio, Writer

MARKER = "MINIATURE"  # marks a data root as written by this module
PROGRESS = "written.jsonl"


def writers() -> dict[str, Writer]:
    """The writers of all data sets, by module name."""
    names = plugin_names("miniworld.write", "WRITER")
    return {name: load_plugin("miniworld.write", name, "WRITER", "writer") for name in names}


def write_world(config: Config, runs: str | Path = "runs") -> Path:
    """Write the missing data and return the data root.

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
            for name, writer in tqdm(writers().items(), desc="miniature world", unit="data set"):
                scenes = stage.path / f"scenes-{name}.jsonl"
                if name in progress and scenes.is_file() and (root / writer.folder).is_dir():
                    continue
                train = config.world.train_per_source
                count = train if writer.part == "train" else config.world.bench_per_benchmark
                studio = _write_one(name, writer, count, config.seed, root)
                write_jsonl(scenes, studio.entries)
                if name not in progress:
                    progress.add(
                        {"id": name, "folder": writer.folder, "questions": count, "images": len(studio.entries)}
                    )
        rows = {row["id"]: row for row in read_jsonl(stage.path / PROGRESS)}
        write_jsonl(stage.path / PROGRESS, (rows[name] for name in writers()))
        _write_book(stage.path, root)
        stage.counts.update({f"{row['id']}/images": row["images"] for row in read_jsonl(stage.path / PROGRESS)})
        hashes = Hashes(stage.path.parent)
        recorded.write(stage.path / recorded.LIST, root, _files(root), hashes)
        _copy_list(stage.path, root)
        stage.finish([PROGRESS, recorded.LIST, *(f"scenes-{name}.jsonl" for name in writers())])
    return root


def _write_one(name: str, writer: Writer, count: int, seed: int, root: Path) -> Studio:
    target = root / writer.folder
    partial = target.with_name(target.name + ".part")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    studio = Studio(seed, name, writer.part)
    writer.write(partial, count, studio)
    partial.rename(target)
    return studio


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
        print(f"miniature data in {write_world(load(args.preset, args.method, args.set), args.runs)}")

    run(body, parser("write the miniature world's data in the formats of the real data sets"))


if __name__ == "__main__":
    main()
