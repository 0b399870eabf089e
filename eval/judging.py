"""Judge validation as tables: agreement of judges (Cohen's kappa) and error rates where truth is known (Appendix B.3).

Reads the files that `python -m eval.judge_validation.run` writes into the folders of evaluated models and into
runs/<preset>/judge_validation. Without those files there are no tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.layout import DASH, Table
from fgrpo.errors import UserError
from fgrpo.runs import folder
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed

FILE = "judge_validation.json"
FILES = (f"*/{FILE}", f"eval/*/{FILE}")  # below the preset's folder


def build(config: Config, root: str | Path = "runs") -> list[Table]:
    """At most two tables: agreement, and error rates.

    Raises:
        UserError: a file is no judge validation.
    """
    top = folder(config, "", root)
    agreements: list[tuple[str, ...]] = []
    errors: list[tuple[str, ...]] = []
    for path in sorted(path for pattern in FILES for path in top.glob(pattern)):
        where = path.parent.name if path.parent.name != "judge_validation" else ""
        try:
            for section in read_sealed(path)["sections"]:
                title = str(section["title"]) if not where else f"{where}: {section['title']}"
                agreements += [(title, *cells) for cells in _agreements(section)]
                errors += [(title, *cells) for cells in _errors(section)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no judge validation ({error!r}); delete it, then rerun `make judge-agreement`"
            ) from error
    out = []
    if agreements:
        headings = ("items", "judges", "role", "κ [interval]", "agreement, %", "ratings", "rollouts")
        note = (
            "Cohen's κ with its bootstrap interval over rollouts; κ is not defined if both judges used a single label."
        )
        out.append(
            Table("judge-agreement", "Agreement of judges", headings, tuple(dict.fromkeys(agreements)), note, left=3)
        )
    if errors:
        headings = ("items", "role", "kind of item", "error rate, % [interval]", "wrong", "n", "failed")
        note = "Verdicts against known truth, with Wilson intervals; failed verdicts are in no rate."
        out.append(Table("judge-errors", "Errors of judges", headings, tuple(dict.fromkeys(errors)), note, left=3))
    return out


def _agreements(section: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for a in section.get("agreements", ()):
        kappa = DASH
        if a["kappa"] is not None:
            kappa = f"{a['kappa']:.3f}" + (f" [{a['low']:.3f}, {a['high']:.3f}]" if a["low"] is not None else "")
        share = DASH if a["agreement"] is None else f"{100 * a['agreement']:.1f}"
        yield f"{a['first']}, {a['second']}", str(a["role"]), kappa, share, str(a["n"]), str(a["clusters"])


def _errors(section: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for role, rates in section.get("errors", {}).items():
        for r in rates:
            rate = DASH if r["rate"] is None else f"{100 * r['rate']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            yield str(role), str(r["kind"]), rate, str(r["wrong"]), str(r["n"]), str(r["failed"])
