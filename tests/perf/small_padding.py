"""One process of a case of `perf.padding` at small lengths, which also writes how many passes it made.

Command, under torchrun: `python -m tests.perf.small_padding <number of the case> <folder>`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

from fgrpo.training import distributed
from perf import padding
from perf.token_count import Tokens

# short prompts and few of them; the shares of prompt and response are about the same
SMALL = {"SHORTEST": 60, "LONGEST": 400, "RESPONSE": 40, "PROMPTS": 4, "QUESTIONS": 8, "TRACES": 4}


def main(case: int, folder: Path) -> None:
    """Writes <rank>.json, as `perf.padding.report` does, and passes-<rank>.json: the computed tokens of each pass."""
    passes: list[int] = []
    add = Tokens.add

    def noted(self: Tokens, real: int = 0, needed: int = 0, computed: int = 0) -> None:
        passes.extend([computed] if computed else [])
        add(self, real, needed, computed)

    with mock.patch.multiple(padding, **SMALL), mock.patch.object(Tokens, "add", noted):
        padding.report(padding.CASES[case], folder)
    (folder / f"passes-{distributed.rank()}.json").write_text(json.dumps(passes))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
