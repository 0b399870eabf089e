"""The laboratory: runs the cells of a declared lab, collects their results, and writes its page.

    python -m ops.lab --lab main [--shard 1/4] [--jobs 2]   run what is not done (`make lab LAB=main`), then collect
    python -m ops.lab --lab main --cell <cell> --runs again one cell with what it needs; prints its commands, its figures, and
                                                            whether they are the published ones
    python -m ops.lab --lab main --cell <cell> --repeat     a finished cell once more, beside its first run (ops.lab.repetitions)
    python -m ops.lab --lab main --plan                     cells, states and costs; starts nothing
    python -m ops.lab --lab main --report [--publish]       the page, in runs/lab/main/; or docs/laboratory.md, with the results
                                                            in docs/laboratory/main/ (ops.lab.archive)

A declaration is configs/lab/<name>.yaml (CONTRIBUTING.md says how to write one).
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fgrpo import cli
from fgrpo.config import load as load_config
from fgrpo.errors import UserError
from fgrpo.files import write_atomic
from fgrpo.shards import Shard, add_option
from ops.clean_checkpoints import clean
from ops.lab import archive, arithmetic, cells, declaration, repetitions, results, runner, standing, stored, versions
from ops.lab.cells import Cell, Job, Plan
from ops.lab.declaration import Lab

PAGE = "laboratory.md"
DOCS = Path("docs")


def top_of(name: str, runs: str | Path) -> Path:
    """The folder of a lab's results."""
    return Path(runs) / "lab" / name


def run(
    name: str,
    lab: Lab,
    whole: Plan,
    chosen: Plan,
    top: Path,
    jobs: int,
    amend: str | None = None,
    insists: bool = False,
    repeats: bool = False,
) -> dict[str, str]:
    """Run the jobs of `chosen` that are not done, and collect; returns {job: reason} of those that failed.

    Args:
        insists: start jobs that failed twice too.
        repeats: run finished cells once more; the first run stays (`ops.lab.repetitions`).

    Raises:
        UserError: the declaration was changed since the first cell started and `amend` gives no reason.
    """
    restored = archive.restore(whole, top, archive.FOLDER / name)
    if restored:
        print(f"{len(restored)} finished cells are taken from {archive.FOLDER / name}; RUNS=another runs them anew")
    seal = declaration.seal(top, declaration.file_of(name), amend)
    if not seal["committed"]:
        print(f"configs/lab/{name}.yaml was not committed when the first cell started; the report will say so")
    by_job = {job.name: cell for cell, job in whole.of_cell.items()}
    if repeats:
        for job in chosen.of_cell.values():
            repetitions.make_room(job)
    is_new = any(not stored.is_done(job) for job in chosen.of_cell.values())
    computed = arithmetic.fingerprint() if is_new else None

    def finish(job: Job) -> None:
        if job.name in by_job:
            results.finish_cell(lab, by_job[job.name], job, computed)
        elif job.kind == cells.CHAIN:  # before its cells, which would find them behind their links
            clean(load_config(lab.preset), job.folder / "runs")

    try:
        tell = partial(print, flush=True)
        return runner.Runner(jobs, finish, tell, stored.damage, insists).run(chosen.jobs)
    finally:
        results.collect(lab, whole, top)


def show(whole: Plan, chosen: Sequence[Cell], jobs: int, folder: Path) -> None:
    """Print every cell with its state and cost, and the time left.

    Args:
        folder: the archive, whose finished cells do not run again.

    Raises:
        UserError: a status or the archive is damaged.
    """
    published, waiting = archive.published(whole, folder), list[Cell]()
    for cell in chosen:
        job = whole.of_cell[cell]
        found = standing.of_cell(job, whole)
        state, cost = str(found["state"]), found["cpu_seconds"]
        if state == runner.WAITING and job.name in published:
            state, cost = f"{runner.DONE} ({folder})", published[job.name].cpu_seconds
        elif state != runner.DONE:
            waiting.append(cell)
        words = "" if cost is None else f"{cost:,.0f} s of CPU"
        print(f"{cell.name:<45} {state:<12} {words} {found['reason'] or ''}".rstrip())
    left = [job for job in whole.only(waiting).jobs if not stored.is_done(job)]
    costs = runner.measured(whole.jobs, published)
    print(f"cells: {len(waiting)} of {len(chosen)} are not done; jobs: {runner.time_left(left, costs, jobs)}")
    for kind, (seconds, cpu) in costs.items():
        weight = max(job.weight for job in whole.jobs if job.kind == kind)
        print(f"cost of one job, {kind}: {seconds * weight:,.0f} s, {cpu * weight:,.0f} s of CPU")


def report(name: str, lab: Lab, whole: Plan, top: Path, publish: bool, amend: str | None = None) -> Path:
    """Collect the results and write the page with its figures, and with `publish` the archive; returns the page.

    Raises:
        UserError: the declaration is not the sealed one and `amend` gives no reason, or a published cell would vanish.
    """
    from ops.lab import figures
    from ops.lab import report as pages
    from ops.lab.analysis import Results

    folder = archive.FOLDER / name
    archive.restore(whole, top, folder)
    if declaration.sealed(top) is not None:
        declaration.seal(top, declaration.file_of(name), amend)
    results.collect(lab, whole, top)
    found = Results.read(lab, top)
    out, prefix = (DOCS, f"laboratory-{name}-") if publish else (top, "")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".report-", dir=top) as made:  # a kill leaves nothing in docs/
        draft = Path(made)
        pictures = figures.draw(found, draft, prefix)
        text = pages.page(
            name,
            found,
            declaration.sealed(top),
            declaration.notes(name, lab),
            pages.relative(pictures, draft),
            shared=archive.shared(whole, folder),
            code=versions.code(),
            archive=f"{folder.relative_to(DOCS).as_posix()}/" if publish else "",
        )
        if publish:
            archive.publish(whole, top, folder)
        for picture in pictures.values():
            shutil.move(picture, out / picture.name)
    for path in out.glob(f"{prefix}figure*.png"):
        if path.name not in {picture.name for picture in pictures.values()}:
            path.unlink()
    write_atomic(out / PAGE, text)
    pages.write_verdicts(name, found, declaration.sealed(top), archive.FOLDER / name if publish else top)
    return out / PAGE


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description="run a declared lab cell by cell, and report on its hypotheses")
    arguments.add_argument("--lab", default="main", help="a file of configs/lab (default: main)")
    arguments.add_argument("--runs", default="runs", metavar="FOLDER", help="root of the run folders (default: runs)")
    arguments.add_argument("--jobs", type=int, default=0, help="processes at a time (default: one per core)")
    arguments.add_argument("--cell", help="run this cell only, such as mini/fgrpo/seed-0, with what it needs")
    arguments.add_argument(
        "--repeat", action="store_true", help="with --cell: run a finished cell once more, beside its first run"
    )
    arguments.add_argument(
        "--amend", metavar="REASON", help="accept a changed declaration; the report lists the reason"
    )
    arguments.add_argument("--plan", action="store_true", help="print cells, states and costs; start nothing")
    arguments.add_argument("--report", action="store_true", help="write the page from the results; start nothing")
    arguments.add_argument("--publish", action="store_true", help="with --report: write docs/laboratory.md")
    add_option(arguments)

    def body(args: argparse.Namespace) -> None:
        lab, top = declaration.load(args.lab), top_of(args.lab, args.runs)
        whole = cells.plan(lab, top)
        chosen = whole.shard(Shard.parse(args.shard)) if args.shard else whole
        if args.cell:
            chosen = whole.only([cells.cell_named(whole, args.cell)])
        if args.repeat and (not args.cell or args.plan or args.report or args.publish):
            raise UserError(
                "--repeat runs one cell once more: it needs --cell, and goes with neither --plan nor --report"
            )
        jobs = args.jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        if args.plan:
            show(whole, list(chosen.of_cell), jobs, archive.FOLDER / args.lab)
        elif args.report or args.publish:
            print(f"report: {report(args.lab, lab, whole, top, args.publish, args.amend)}")
        else:
            _run(args, lab, whole, chosen, top, jobs)

    cli.run(body, arguments, argv)


def _run(args: argparse.Namespace, lab: Lab, whole: Plan, chosen: Plan, top: Path, jobs: int) -> None:
    if args.cell:
        for job in chosen.jobs:
            print("\n".join([f"# {job.name}", *(shlex.join(command) for command in job.commands)]))
        if said := _other_arithmetic(args.lab, args.cell):
            print(said, flush=True)
    problems = run(args.lab, lab, whole, chosen, top, jobs, args.amend, insists=bool(args.cell), repeats=args.repeat)
    if args.cell:
        row = next(r for r in results.collect(lab, whole, top) if r["cell"] == args.cell)
        if args.repeat:
            further = [r for r, _ in results.further_rows(whole) if r[repetitions.REPEATS] == args.cell]
            row = {**max([row, *further], key=lambda run: str(run["started"])), "cell": args.cell}
        print("\n".join(f"{_label(key)}: {value!r}" for key, value in row.items() if value is not None))
        print(_against_published(args.lab, row))
    if problems:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in problems.items())
        raise UserError(
            f"{len(problems)} jobs are not done:\n{lines}\nTheir logs are log.txt in their folders. Rerun to resume"
        )
    print(f"results: {top / results.CELLS}; the page: make lab-report LAB={args.lab}")


def _other_arithmetic(name: str, cell: str) -> str:
    """A warning, if the published figures of a cell come from other arithmetic than this machine's."""
    folder = archive.FOLDER / name
    first = archive.run_for(folder, cell, None)
    if first is None:  # no need to compute
        return ""
    published = archive.run_for(folder, cell, arithmetic.fingerprint())
    there = published.row.get(arithmetic.COLUMN) if published is not None else None
    if there is None or there == arithmetic.fingerprint():
        return ""
    return (
        f"The published figures of {cell} come from arithmetic {there}, and this machine has {arithmetic.fingerprint()} "
        "(python -m ops.lab.arithmetic): expect other figures, since sums are rounded otherwise and sampling then drifts apart"
    )


def _label(column: str) -> str:
    """A column of a cell's row as it is printed."""
    return f"{column} (as it weighed the last step, before its update)" if column.startswith("lambda/") else column


def _against_published(name: str, row: results.Row) -> str:
    """Whether a cell's figures are those of the archive, and on which versions each was made, in words."""
    folder = archive.FOLDER / name
    published = archive.run_for(folder, row["cell"], row.get(arithmetic.COLUMN))
    if published is None:
        return f"{folder} has no figures of this cell"
    if row["state"] != runner.DONE:
        return "the cell is not done"
    if row["started"] == published.status.started:
        return f"these are the published figures ({folder}); RUNS=again runs the cell anew"
    wrong = archive.differences(row, published)
    said = (
        f"{len(wrong)} figures differ from the published ones ({folder}):"
        if wrong
        else f"all figures are the published ones ({folder})"
    )
    return "\n".join(
        [said, *wrong, f"published at {versions.words(published.row)}", f"you are at {versions.words(row)}"]
    )


if __name__ == "__main__":
    main()
