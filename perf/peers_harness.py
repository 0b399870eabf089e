"""The evaluation harness against lmms-eval and VLMEvalKit: whole evaluations of the same questions at the same endpoint.

Each harness runs as its users run it, as its own process from start to summary, with as many requests in flight (`perf.peers`).
Measured are the seconds from start to first request, answers per second of the whole run, the requests that are repeated when the
process is killed (SIGKILL) in the middle and started again, and questions that are without an answer when 30% of the replies are
lost. Ratios are to our harness in the same round. A peer that no environment of $PEERS has is "not installed".

Command: `PEERS=/path/to/venv[:/another] python -m perf.peers_harness --preset mini` (after `make sft`).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from eval import base
from fgrpo import cli
from fgrpo.errors import UserError
from fgrpo.types import Sample
from perf import peers
from perf.common import load, median, ratio, show, spread
from perf.endpoint import Endpoint
from perf.faults import KINDS, Faults
from perf.peers import Harness

ROOT = Path(__file__).resolve().parent.parent
SERVICE_S, FAULTS = 1.0, 0.3
SPOKEN = tuple(kind for kind in KINDS if kind != "silent")  # time-outs differ between the harnesses
LIMIT_S = 900.0  # for one evaluation


@dataclass(frozen=True)
class Whole:
    """One undisturbed evaluation: seconds to the first request, seconds in all."""

    start_s: float
    seconds: float


@dataclass(frozen=True)
class Killed:
    """Requests served beyond the questions, after a kill in the middle and a second run; questions without an answer."""

    repeated: int
    lost: int


@dataclass(frozen=True)
class Faulty:
    """Seconds of one evaluation with faults, requests it made, and questions without an answer."""

    seconds: float
    requests: int
    lost: int


@dataclass
class Found:
    """All rounds of one harness."""

    whole: list[Whole]
    killed: list[Killed]
    faulty: list[Faulty]


class Runner:
    """Evaluations of one harness.

    Args:
        python: its interpreter.
        samples: the questions.
        service_s: seconds that the endpoint takes per request.
    """

    def __init__(self, harness: Harness, python: str, samples: Sequence[Sample], service_s: float) -> None:
        self.harness, self.python, self.samples, self.service_s = harness, python, samples, service_s

    def whole(self) -> Whole:
        """An undisturbed evaluation."""
        with Endpoint(peers.IN_FLIGHT, self.service_s) as endpoint, TemporaryDirectory() as name:
            folder = self._prepared(name)
            began, epoch = time.perf_counter(), time.time()
            self._finish(self._start(endpoint, folder), folder)
            seconds = time.perf_counter() - began
            self._check(folder)
            return Whole(endpoint.began_at - epoch, seconds)

    def killed(self) -> Killed:
        """An evaluation that is killed when half of the requests have been served, and its resumption."""
        with Endpoint(peers.IN_FLIGHT, self.service_s) as endpoint, TemporaryDirectory() as name:
            folder = self._prepared(name)
            endpoint.hold_at = len(self.samples) // 2
            process = self._start(endpoint, folder)
            deadline = time.monotonic() + LIMIT_S
            while endpoint.served < endpoint.hold_at:
                if process.poll() is not None or time.monotonic() > deadline:
                    self._fail(process, folder, "ended, or stood still, before it was killed")
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            endpoint.hold_at = None
            self._finish(self._start(endpoint, folder), folder)
            return Killed(endpoint.served - len(self.samples), len(self.samples) - self.harness.answered(folder))

    def faulty(self) -> Faulty:
        """An evaluation in which 30% of the replies are lost."""
        faults = Faults(FAULTS, SPOKEN)
        with Endpoint(peers.IN_FLIGHT, self.service_s, faults=faults) as endpoint, TemporaryDirectory() as name:
            folder = self._prepared(name)
            began = time.perf_counter()
            self._finish(self._start(endpoint, folder), folder)
            seconds = time.perf_counter() - began
            return Faulty(seconds, endpoint.served, len(self.samples) - self.harness.answered(folder))

    def _prepared(self, name: str) -> Path:
        folder = Path(name)
        self.harness.prepare(folder, self.samples)
        return folder

    def _start(self, endpoint: Endpoint, folder: Path) -> subprocess.Popen[bytes]:
        command = self.harness.command(self.python, endpoint.url, folder)
        cwd = folder if self.harness.install else ROOT
        with (folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                command, cwd=cwd, env=peers.environment(folder), stdout=log, stderr=log, start_new_session=True
            )

    def _finish(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._fail(process, folder, f"took more than {LIMIT_S:g} s")
        if code:
            self._fail(process, folder, f"ended with {code}")

    def _fail(self, process: subprocess.Popen[bytes], folder: Path, reason: str) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise UserError(f"{self.harness.name} {reason}:\n" + "\n".join(lines))

    def _check(self, folder: Path) -> None:
        """UserError if an undisturbed evaluation lacks answers: then it did not run as it should."""
        answered = self.harness.answered(folder)
        if answered != len(self.samples):
            raise UserError(f"{self.harness.name} stored {answered} answers to {len(self.samples)} questions")


HEADINGS = (
    "harness", "start-up, s", "answers per second, whole run", "over this harness", "requests repeated after a kill",
    "faults: answers per second over this harness", "faults: seconds over those without", "faults: without an answer",
)  # fmt: skip


def row(name: str, found: Found, base: Found, questions: int) -> tuple[str, ...]:
    """One harness' row."""
    rates, ours = ([questions / w.seconds for w in f.whole] for f in (found, base))
    faulty, ours_faulty = ([questions / f.seconds for f in x.faulty] for x in (found, base))
    lost = sum(f.lost for f in found.faulty)
    return (
        name,
        spread([w.start_s for w in found.whole], ".1f"),
        f"{median(rates):.1f}",
        ratio(rates, ours),
        spread([k.repeated for k in found.killed], ".0f") + _lost(found.killed),
        ratio(faulty, ours_faulty),
        ratio([f.seconds for f in found.faulty], [w.seconds for w in found.whole]),
        f"{lost} of {questions * len(found.faulty)}",
    )


def _lost(killed: Sequence[Killed]) -> str:
    """A note where a resumed evaluation lacked answers."""
    lost = sum(k.lost for k in killed)
    return f", {lost} lost" if lost else ""


def absent(harness: Harness) -> tuple[str, ...]:
    """The row of a harness that no environment has."""
    return (f"{harness.name}: not installed (`{harness.install}`)", *["–"] * (len(HEADINGS) - 1))


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        cfg = load(args, args.method)
        samples = base.load("cvb_2d", cfg).samples
        mine = peers.ours([f"data.root={Path(cfg.data.root).resolve()}"], args.preset)
        runners, missing = {mine.name: Runner(mine, sys.executable, samples, args.service)}, list[Harness]()
        environments = peers.named_environments(args.peers)
        for harness in peers.PEERS:
            python = peers.interpreter(harness, environments)
            if python is None:
                missing.append(harness)
            else:
                runners[harness.name] = Runner(harness, python, samples, args.service)
        found = {name: Found([], [], []) for name in runners}
        for _ in range(args.rounds):
            for name, runner in runners.items():
                found[name].whole.append(runner.whole())
                found[name].killed.append(runner.killed())
                found[name].faulty.append(runner.faulty())
        rows = [row(name, rounds, found[mine.name], len(samples)) for name, rounds in found.items()]
        show(
            "Harness against lmms-eval and VLMEvalKit",
            f"{len(samples)} questions with images, an endpoint of {peers.IN_FLIGHT} slots and {args.service:g} s per request, "
            f"{peers.IN_FLIGHT} in flight, {args.rounds} alternating rounds of whole runs, without judges. The kill comes when half of the "
            f"requests are served and {peers.IN_FLIGHT} are in flight; then the same command resumes. With faults, {FAULTS:.0%} of the replies are "
            "lost (500, 503, 429, closed, a page, cut). In brackets the lowest and highest round.",
            HEADINGS,
            [*rows, *map(absent, missing)],
        )

    arguments = cli.parser((__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--peers", metavar="VENV[:VENV]", help=f"environments with other harnesses (default: ${peers.VARIABLE})"
    )
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--service", type=float, default=SERVICE_S, help="seconds per request")
    cli.run(body, arguments)


if __name__ == "__main__":
    main()
