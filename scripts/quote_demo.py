"""Puts the figures of a finished demo into README.md, between its markers, as `python -m eval.tables` prints them.

python -m scripts.quote_demo --preset mini [--runs runs]: nothing between the markers is written by hand. Figure 4 goes to docs/.
With --methods Tables 2 and 3 alone, once the other methods are trained and evaluated too.
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

README = Path("README.md")
COMPARED = ("grpo-t", "fgrpo")


def quoted(text: str, name: str, shown: str) -> str:
    """`text` with `shown` as the block between the markers of `name`."""
    pattern = re.compile(rf"(<!-- {name} -->\n```\n).*?(\n```\n<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise UserError(f"{README} has no single block between <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: found[1] + shown + found[2], text)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = config.load(args.preset, args.method, args.set)
        shown, everything, _ = tables.build(cfg, args.runs)
        if args.methods:
            of_methods = [t.text() for t in everything if t.name in ("table2", "table3")]
            text = README.read_text(encoding="utf-8")
            README.write_text(quoted(text, "methods", "\n\n".join(of_methods)), encoding="utf-8")
            return
        against = [t for t in shown if t.name.startswith(f"{COMPARED[0]}-vs-{COMPARED[1]}")]
        headline = [t for t in shown if t.name.startswith(("accuracy", "faithfulness"))]
        if not against or not headline:
            raise UserError(
                f"no tables of {' and '.join(COMPARED)} among {[t.name for t in shown]}; run `make demo` first"
            )
        text = README.read_text(encoding="utf-8")
        text = quoted(text, "demo", "\n\n".join(t.text() for t in headline))
        text = quoted(text, "compared", "\n\n".join(t.text() for t in against))
        README.write_text(text, encoding="utf-8")
        shutil.copy(runs.folder(cfg, "figures", args.runs) / "figure4.png", Path("docs/figure4.png"))

    arguments = cli.parser(__doc__ or "")
    arguments.add_argument("--methods", action="store_true", help="Tables 2 and 3 only")
    cli.run(body, arguments, argv)


if __name__ == "__main__":
    main()
