"""The table of other harnesses' answers: what was read, and accuracy by our rules beside theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping

from eval.layout import DASH, Table
from eval.results import AGAIN, Result
from fgrpo.errors import UserError

FILE = "external.json"  # in an evaluation's folder: what was read, what was left out, our accuracy beside theirs
NAME = "other-harnesses"


def build(results: Mapping[str, Result]) -> list[Table]:
    """One table, or none if no evaluation is of another harness. UserError: a file is damaged."""
    rows = []
    for result in results.values():
        path = result.path / FILE
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            accuracy = found["accuracy"]
            shares = [DASH if accuracy[who] is None else f"{100 * accuracy[who]:.1f}" for who in ("ours", "theirs")]
            left_out = ", ".join(f"{n} × {reason}" for reason, n in found["left_out"].items())
            rows.append(
                (
                    result.title,
                    str(found["rows"]),
                    str(found["scored"]),
                    left_out or DASH,
                    str(accuracy["n"]),
                    *shares,
                    str(len(accuracy["differ"])),
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}); {AGAIN}") from error
    headings = ("model", "rows", "scored", "left out", "n", "accuracy, ours", "theirs", "differ on")
    note = (
        "n: rows that both score. Ours: the rules of eval/extract.py, then the extraction judge; theirs: the metric in the "
        "harness' file. Rows without a question or an image are in no figure."
    )
    return [Table(NAME, "Answers of other harnesses, accuracy in %", headings, tuple(rows), note)] if rows else []
