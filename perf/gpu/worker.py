"""One check in a process of its own: `python -m perf.gpu.worker NAME --result FILE …` (started by `python -m perf.gpu`)."""

from __future__ import annotations

import argparse
import os
import resource
import traceback
from pathlib import Path

from fgrpo.cli import explain
from fgrpo.process_guard import Guard
from perf.gpu.checks import Check, named
from perf.gpu.result import NotApplicable, Result
from perf.gpu.setting import Setting, add_options, setting_of


def run(check: Check, setting: Setting) -> Result:
    """The check's result; an error of any kind is a failure with its message."""
    result = Result(check.name)
    try:
        check.run(setting, result)
    except NotApplicable as reason:
        result.state, result.finding = "not applicable", str(reason)
    except Exception as error:  # noqa: BLE001 (it becomes the check's result, and the traceback is in its log)
        traceback.print_exc()
        line = explain(error) or f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
        result.must(False, line)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result.cpu_seconds = sum(usage.ru_utime + usage.ru_stime for usage in spent)
    return result


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("name")
    arguments.add_argument("--result", type=Path, required=True)
    add_options(arguments)
    args = arguments.parse_args()
    guard = Guard()  # ends a server that this check started if it is killed
    try:
        result = run(named(args.name), setting_of(args))
    finally:
        guard.release()
    result.write(args.result)
    print(f"{result.name}: {result.state}: {result.finding}", flush=True)
    os._exit(0)  # library threads of an engine may keep the process alive


if __name__ == "__main__":
    main()
