"""Any two or more evaluated models against each other: paired tables, and a page with the questions that changed.

Works on finished evaluations of one preset, whatever made them: checkpoints, endpoints, or another harness (`eval.external`).
Questions that both models of a pair answered are compared (`eval.comparisons`).

Command: `python -m eval.compare --preset mini --models sft,fgrpo` writes runs/<preset>/compare/<a-vs-b>/: the tables,
comparison.json (with the ids of the questions whose 0/1 scores differ), and index.html, which shows such questions with their
images and both replies side by side.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval import report
from eval.comparisons import KINDS, Entry, compare, comparison_name, comparison_table
from eval.examples import KEYS
from eval.layout import Table
from eval.results import Result, one
from eval.tables import main_tables
from fgrpo.cli import parser, positive, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import write_atomic
from fgrpo.runs import folder, write_json
from fgrpo.schema import Config

EACH = 12  # questions per benchmark on the page


def chosen(names: Sequence[str], config: Config, root: str | Path = "runs") -> list[Result]:
    """The finished evaluations called `names`.

    Raises:
        UserError: fewer than two names, more than a page has columns, a name twice, or a model that is not evaluated.
    """
    if not 2 <= len(names) <= len(KEYS) or len(set(names)) < len(names):
        raise UserError(f"name two to {len(KEYS)} different evaluated models: --models a,b (MODELS=a,b)")
    return [one(name, config, root) for name in names]


def paired(results: Sequence[Result], config: Config) -> dict[tuple[str, str, str], dict[str, Entry]]:
    """Every pair's comparison by (name of a, name of b, kind), in the order of `results`; pairs without a shared answer are left out.

    Raises:
        UserError: no pair shares an answer.
    """
    out = {}
    for (a, b), kind in itertools.product(itertools.combinations(results, 2), KINDS):
        if kind in a.kinds() and kind in b.kinds() and (entries := compare(a, b, kind, config)):
            out[a.name, b.name, kind] = entries
    if not out:
        raise UserError(f"{', '.join(r.name for r in results)} share no question; evaluate them on the same benchmarks")
    return out


def write(
    names: Sequence[str], config: Config, root: str | Path = "runs", each: int = EACH
) -> tuple[list[Table], Path]:
    """Write tables, comparison.json and the page; returns the paired tables and the folder.

    Args:
        each: questions per benchmark on the page; those whose verdicts differ come first.

    Raises:
        UserError: as `chosen` and `paired`.
    """
    results = chosen(names, config, root)
    by_name = {r.name: r for r in results}
    compared = paired(results, config)
    out = folder(config, "compare", root) / "-vs-".join(names)
    out.mkdir(parents=True, exist_ok=True)
    tables = [comparison_table(by_name[a], by_name[b], kind, entries) for (a, b, kind), entries in compared.items()]
    singles = main_tables(by_name, config, "range")
    for table in (*singles, *tables):
        write_atomic(out / f"{table.name}.md", table.markdown())
        write_atomic(out / f"{table.name}.tex", table.latex())
    plain: dict[str, Any] = {
        comparison_name(by_name[a], by_name[b], kind): entries for (a, b, kind), entries in compared.items()
    }
    write_json(out / "comparison.json", plain)
    kinds = [kind for *_, kind in compared]
    kind = "sampled" if all(k in kinds for k in KINDS) and all("sampled" in r.kinds() for r in results) else kinds[0]
    shown = [r for r in results if kind in r.kinds()]
    examples = report.collect(shown, config, kind, each, least=2)
    report.write_page(shown, [*singles, *tables], examples, kind, config, root, out, every_model=True)
    return tables, out


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        tables, out = write(args.models.split(","), config, args.runs, args.each)
        print("\n\n".join(table.text() for table in tables))
        print(f"\ntables: {out}\nflipped questions, with images: {out / 'index.html'}")

    arguments = parser("compare two or more evaluated models on the same questions")
    arguments.add_argument("--models", required=True, metavar="NAME,NAME[,NAME]", help="folders of runs/<preset>/eval")
    arguments.add_argument(
        "--each", type=positive, default=EACH, help=f"questions per benchmark on the page (default: {EACH})"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
