"""Copies a finished demo's tables into README.md (the small one), docs/results.md and docs/comparisons.md, between markers.

No text between the markers is written by hand. Figure 4 is copied to docs/. With --methods it copies Tables 2 and 3 alone,
once the other methods are trained and evaluated too.

Command: `python -m scripts.quote_demo --preset mini [--runs runs] [--methods]`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from eval import tables
from fgrpo import cli, config, runs
from fgrpo.errors import UserError
from fgrpo.schema import Config

README, RESULTS, COMPARISONS = Path("README.md"), Path("docs/results.md"), Path("docs/comparisons.md")
FIGURE = Path("docs/figure4.png")
COMPARED = ("grpo-t", "fgrpo")
OVERVIEW = "overview.md"  # the small table, as `python -m eval.tables` writes it


def quoted(page: Path, name: str, shown: str) -> None:
    """Replace the block of `page` between the markers of `name`; a fenced block stays fenced.

    Raises:
        UserError: the page does not have exactly one such block.
    """
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n(?:```\n)?).*?((?:\n```)?\n<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"{page} has no single block between <!-- {name} --> and <!-- /{name} -->; restore the markers")
    page.write_text(pattern.sub(lambda block: block[1] + shown.strip() + block[2], text), encoding="utf-8")


def rows_of(markdown: str) -> str:
    """The first Markdown table of a text, without its heading and notes."""
    lines = [line.strip() for line in markdown.splitlines()]
    first = next((n for n, line in enumerate(lines) if line.startswith("|")), len(lines))
    last = next((n for n, line in enumerate(lines[first:], first) if not line.startswith("|")), len(lines))
    return "\n".join(lines[first:last])


def quote(cfg: Config, root: str | Path, methods: bool) -> None:
    """Fill the pages from the evaluations below `root`; raises UserError where a table or a marker is missing."""
    shown, everything, out = tables.build(cfg, root)
    if methods:
        quoted(RESULTS, "methods", "\n\n".join(t.text() for t in everything if t.name in ("table2", "table3")))
        return
    main = tables.main_tables(tables.find(cfg, root), cfg)
    headline = [t for t in main if t.name.startswith(("accuracy", "faithfulness"))]
    against = [t for t in [*shown, *everything] if t.name.startswith(f"{COMPARED[0]}-vs-{COMPARED[1]}-sampled")][:1]
    overview = out / OVERVIEW
    if not against or not headline or not overview.is_file():
        raise UserError(
            f"no tables of {' and '.join(COMPARED)}, or no {overview}; run `make demo` and `make tables` first"
        )
    quoted(README, "overview", rows_of(overview.read_text(encoding="utf-8")))
    quoted(RESULTS, "demo", "\n\n".join(t.text() for t in headline))
    quoted(COMPARISONS, "compared", "\n\n".join(t.text() for t in against))
    shutil.copy(runs.folder(cfg, "figures", root) / "figure4.png", FIGURE)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        quote(config.load(args.preset, args.method, args.set), args.runs, args.methods)

    arguments = cli.parser(__doc__ or "")
    arguments.add_argument("--methods", action="store_true", help="Tables 2 and 3 only")
    cli.run(body, arguments, argv)


if __name__ == "__main__":
    main()
