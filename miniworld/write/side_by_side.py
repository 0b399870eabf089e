"""Writes data sets side by side in several processes, or one after the other in this one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin
from fgrpo.process_guard import end_with_parent
from miniworld.write.studio import Studio, Writer

Entries = list[dict[str, object]]  # of the truth book, one per image


def write_all(counts: Mapping[str, int], seed: int, root: Path, jobs: int) -> Iterator[tuple[str, Entries]]:
    """Write data sets in `jobs` processes; yields the name and the entries of each as soon as it is written.

    Args:
        counts: number of questions by data set.
    """
    if jobs < 2 or len(counts) < 2:
        for name, count in counts.items():
            yield name, write_one(name, count, seed, root)
        return
    spawn = multiprocessing.get_context("spawn")
    start = partial(_start_worker, os.getpid())
    with ProcessPoolExecutor(min(jobs, len(counts)), mp_context=spawn, initializer=start) as pool:
        running = {pool.submit(write_one, name, count, seed, root): name for name, count in counts.items()}
        try:
            for future in as_completed(running):
                try:
                    entries = future.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        f"a process that wrote data sets ended before {running[future]} was complete (killed, or out of memory?); "
                        "rerun to resume"
                    ) from error
                yield running[future], entries
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(parent: int) -> None:
    end_with_parent(parent)  # which may have ended while this process imported its modules
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the parent


def writer_of(name: str) -> Writer:
    """The writer of a data set. Raises UserError if there is none of this name."""
    writer: Writer = load_plugin("miniworld.write", name, "WRITER", "writer")
    return writer


def write_one(name: str, count: int, seed: int, root: Path) -> Entries:
    """Write one data set; returns the truth book's entries of its images."""
    writer = writer_of(name)
    target = root / writer.folder
    partial = target.with_name(target.name + ".part")
    for old in (partial, target):
        if old.exists():
            shutil.rmtree(old)
    studio = Studio(seed, name, writer.part)
    writer.write(partial, count, studio)
    partial.rename(target)
    return studio.entries
