"""GPU acceptance: every part that a CPU cannot test, at true shapes on one card of 80 GB, in under 25 minutes (`make gpu-check`).

Random weights, no downloads but the tokenizer (npm, once; without it the miniature world's). Checks run one after the other,
each in a process of its own with a time limit; one that fails stops no other. Results are files below the work folder:
a later call goes on with what is missing or failed. `--only`, `--limit-s` divide the work over several calls:

    python -m perf.gpu --only machine,prepare,passes,sft --limit-s 570
    python -m perf.gpu --limit-s 570
    python -m perf.gpu --publish gpu-check.json      # elsewhere: writes the tables to docs/benchmarks.md

`--device cpu --shape tiny` runs all of it on small models, except what needs vLLM. `--wheels` lists the packages to carry.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from fgrpo.errors import UserError, unknown
from perf.gpu.checks import CHECKS, Check
from perf.gpu.page import page
from perf.gpu.result import Result
from perf.gpu.runner import Call, run_all
from perf.gpu.setting import add_options, setting_of
from perf.gpu.wheels import wheels
from perf.run import publish

TOTAL_S = 1500.0  # 25 minutes
SUMMARY = "gpu-check.json"


def chosen(only: str) -> list[Check]:
    """The checks that `--only` names, in their order; all without one.

    Raises:
        UserError: there is no check of such a name.
    """
    known = [check.name for check in CHECKS]
    names = [name for name in only.split(",") if name]
    for name in names:
        if name not in known:
            raise unknown("check", name, known)
    return [check for check in CHECKS if not names or check.name in names]


def stored(file: Path) -> list[Result]:
    """The results of a summary.

    Raises:
        UserError: it is none.
    """
    try:
        return [
            Result(**{**entry, "memory": {k: (v[0], v[1]) for k, v in entry["memory"].items()}})
            for entry in json.loads(file.read_text(encoding="utf-8"))["results"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{file} is no summary of `python -m perf.gpu` ({error})") from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    out.add_argument("--only", default="", metavar="CHECK[,CHECK]", help=", ".join(check.name for check in CHECKS))
    out.add_argument("--limit-s", type=float, default=TOTAL_S, help="seconds that this call may take (default: 1500)")
    out.add_argument("--again", action="store_true", help="run checks that have passed, too")
    out.add_argument("--out", type=Path, help="folder of the summary (default: that of the results)")
    out.add_argument("--no-page", action="store_true", help="leave docs/benchmarks.md as it is")
    out.add_argument("--publish", type=Path, metavar="FILE", help="only write a summary's tables to docs/benchmarks.md")
    out.add_argument("--wheels", action="store_true", help="only list the packages to carry, with versions")
    add_options(out)
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the checks; returns the exit code: 1 if a check failed or timed out.

    Raises:
        UserError: an unknown check, no GPU, a file that is no summary.
    """
    args = parser().parse_args(argv)
    if args.wheels:
        print("\n".join(wheels()))
        return 0
    if args.publish:
        publish(page(stored(args.publish)))
        return 0
    selected, setting = chosen(args.only), setting_of(args)
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU that torch can use; `--device cpu --shape tiny` tries the checks on a CPU")
    results = run_all(
        Call(setting, setting.work / "results" / f"{setting.device}-{setting.shape}", args.limit_s, args.again),
        selected,
    )
    text = page(results)
    print(text)
    folder = args.out or setting.work / "results" / f"{setting.device}-{setting.shape}"
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"device": setting.device, "shape": setting.shape, "results": [asdict(result) for result in results]}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    if setting.device == "cuda" and setting.shape == "true" and not args.no_page:
        publish(text)
    missing = [check.name for check in selected if check.name not in {result.name for result in results}]
    failed = [result.name for result in results if result.state in ("failed", "timed out")]
    print(
        f"{len(results) - len(failed)} of {len(CHECKS)} checks without fault"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    if missing:
        print(f"not run yet: {', '.join(missing)}; call again")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
