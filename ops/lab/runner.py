"""Runs jobs, one process per core, in order of priority; each resumes after a kill, and none is dropped.

Every job has `status.json` in its folder: its state (running, done, failed, stopped), the reason, seconds, CPU seconds, and the earlier
attempts. A job whose `key` is done is not run again, unless its results are damaged. One that failed twice is left alone until it is
asked for by name. A status that says "running" while nobody holds the folder is that of a killed laboratory: `read`
reports it as stopped. The processes get one thread each, so that figures do not depend on how many run.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from fgrpo.cli import SIDE_BY_SIDE
from fgrpo.errors import UserError
from fgrpo.process_guard import end_with_parent
from fgrpo.runs import held, write_json
from ops.lab import arithmetic
from ops.lab.cells import Job

STATUS, LOG = "status.json", "log.txt"
POLL_S, ELSEWHERE_S = 0.2, 2.0
KILLED = "the laboratory was killed before the job ended"
OTHERWISE = "it was done as another declaration says"
DONE, FAILED, STOPPED, RUNNING, WAITING = "done", "failed", "stopped", "running", "not started"
MOST_FAILURES = 2  # the stopping rule: a job that failed so often has ended
ENVIRONMENT = {
    **arithmetic.ENVIRONMENT,
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TRANSFORMERS_VERBOSITY": "error",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_MININTERVAL": "30",
    SIDE_BY_SIDE: "1",
}
Finish = Callable[[Job], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Status:
    """How a job stands. `seconds` and `cpu_seconds` are over all attempts; `attempts` lists the earlier ones."""

    state: str = WAITING
    key: str = ""
    reason: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    started: str = ""
    finished: str = ""
    attempts: tuple[dict[str, Any], ...] = ()

    def is_done(self, job: Job) -> bool:
        """Whether the job is done as it is declared now."""
        return self.state == DONE and self.key == job.key

    def has_ended(self, job: Job) -> bool:
        """Whether the job failed as often as the stopping rule allows, as it is declared now."""
        ended = [*self.attempts, {"state": self.state, "key": self.key}]
        mine = [one for one in ended if one.get("key", job.key) == job.key]
        return self.state not in (DONE, RUNNING) and sum(one["state"] == FAILED for one in mine) >= MOST_FAILURES

    def history(self, job: Job, damage: str = "") -> tuple[dict[str, Any], ...]:
        """The earlier attempts and this one, as the next attempt of `job` lists them.

        Args:
            damage: what is wrong with the results, if the job is done and must run again.
        """
        if self.state == WAITING:
            return self.attempts
        state, reason = self.state, self.reason
        if state == DONE:
            reason = damage if self.key == job.key else OTHERWISE
        last: dict[str, Any] = {"state": state, "reason": reason, "started": self.started, "key": self.key}
        if self.key != job.key:  # its cost is no part of the job's any more
            last |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return (*self.attempts, last)


def read(folder: Path) -> Status:
    """The status of the job in `folder`. UserError: the file is damaged."""
    status = read_unlocked(folder)
    if status.state != RUNNING:
        return status
    try:
        with held(folder):
            return Status(**{**vars(status), "state": STOPPED, "reason": KILLED})
    except UserError:  # another process works on it
        return status


def read_unlocked(folder: Path) -> Status:
    """The status as it is stored, whoever holds the folder. UserError: the file is damaged."""
    path = folder / STATUS
    if not path.is_file():
        return Status()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Status(**{**data, "attempts": tuple(data["attempts"])})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error!r}); delete it, then rerun: the stages keep their work") from error


@dataclass
class _Work:
    """A job under way: its process, and what it has cost in this attempt."""

    job: Job
    before: Status
    attempts: tuple[dict[str, Any], ...]
    stack: ExitStack
    log: IO[bytes]
    offset: int
    began: float
    started: str
    step: int = 0
    cpu_seconds: float = 0.0
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Runner:
    """Runs jobs with at most `at_once` processes.

    Attributes:
        finish: called when the commands of a job succeeded; a UserError of it fails the job.
        tell: prints a line of progress.
        damage: what cannot be read of a finished job's results, which then runs again; "" if all is there.
        insists: start jobs that failed twice too.
    """

    at_once: int
    finish: Finish = lambda job: None
    tell: Tell = print
    damage: Callable[[Job], str] = lambda job: ""
    insists: bool = False
    _running: dict[str, _Work] = field(default_factory=dict)
    _states: dict[str, str] = field(default_factory=dict)
    _elsewhere: dict[str, Job] = field(default_factory=dict)  # jobs that another process works on

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Run what is not done; returns {job: reason} of those that failed or could not start.

        Raises:
            KeyboardInterrupt: ctrl-C; running jobs are recorded as stopped.
        """
        problems: dict[str, str] = {}
        self._states = {}
        for job in jobs:
            self._states[job.name] = self._state(job, read(job.folder), problems)
        wanted = _in_order(jobs, self._states)
        for job in jobs:
            if job.name not in wanted and self._states[job.name] == WAITING:
                self._states[job.name] = DONE
        jobs = [*wanted.values(), *(job for job in jobs if job.name not in wanted)]
        try:
            while True:
                self._start_ready(jobs, problems)
                if not self._running and not self._elsewhere:
                    return problems
                time.sleep(POLL_S if self._running else ELSEWHERE_S)
                self._look_elsewhere()
                for work in list(self._running.values()):
                    self._look(work, jobs, problems)
        finally:
            for work in list(self._running.values()):
                self._end(work, STOPPED, "the laboratory was interrupted")

    def _state(self, job: Job, status: Status, problems: dict[str, str]) -> str:
        """Done, failed (for good, or for a need that is) or not started, before the job starts here."""
        if status.is_done(job) and not self.damage(job):
            return DONE
        if status.has_ended(job) and not self.insists:
            last = status.reason or status.attempts[-1]["reason"]
            problems[job.name] = f"failed twice, so it is not started again unless CELL=<cell> asks for it: {last}"
            return FAILED
        ended = next((need for need in job.needs if self._states.get(need) == FAILED), None)
        if ended is not None:
            problems[job.name] = f"{ended}, which it needs, is not done"
            return FAILED
        return WAITING

    def _start_ready(self, jobs: Sequence[Job], problems: dict[str, str]) -> None:
        for job in jobs:
            if self._states[job.name] != WAITING or job.name in self._elsewhere:
                continue
            failed = [need for need in job.needs if self._states.get(need) == FAILED]
            if failed:
                self._states[job.name] = FAILED
                problems[job.name] = f"{failed[0]}, which it needs, is not done"
            elif len(self._running) < self.at_once and all(self._states.get(need) == DONE for need in job.needs):
                self._start(job, problems)

    def _look_elsewhere(self) -> None:
        """Forget the jobs that the other process has ended; one that it left unfinished starts here."""
        for name, job in list(self._elsewhere.items()):
            if read(job.folder).state != RUNNING:
                del self._elsewhere[name]

    def _start(self, job: Job, problems: dict[str, str]) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        stack = ExitStack()
        try:
            stack.enter_context(held(job.folder))
        except UserError:
            self._elsewhere[job.name] = job
            return
        before = read_unlocked(job.folder)
        if before.state == RUNNING:  # nobody holds it
            before = replace(before, state=STOPPED, reason=KILLED)
        self._states[job.name] = self._state(job, before, problems)
        if self._states[job.name] != WAITING:  # meanwhile, by another process
            stack.close()
            return
        attempts = before.history(job, self.damage(job) if before.is_done(job) else "")
        log = stack.enter_context((job.folder / LOG).open("ab"))
        work = _Work(job, before, attempts, stack, log, log.tell(), time.monotonic(), _now())
        self._running[job.name] = work
        self._states[job.name] = RUNNING
        self._write(work, RUNNING, "")
        for link, target in job.links:
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(os.path.relpath(target, link.parent))
        self._next(work)

    def _next(self, work: _Work) -> None:
        environment = {**os.environ, **ENVIRONMENT}
        words = work.job.commands[work.step]
        work.log.write(f"\n$ {' '.join(words)}\n".encode())
        work.log.flush()
        work.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=work.log,
            stderr=work.log,
            env=environment,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )

    def _look(self, work: _Work, jobs: Sequence[Job], problems: dict[str, str]) -> None:
        assert work.process is not None
        pid, code, usage = os.wait4(work.process.pid, os.WNOHANG)
        if pid == 0:
            return
        work.process.returncode = os.waitstatus_to_exitcode(code)
        work.cpu_seconds += usage.ru_utime + usage.ru_stime
        if work.process.returncode:
            state, reason = FAILED, _reason(work)
        elif work.step + 1 < len(work.job.commands):
            work.step += 1
            self._next(work)
            return
        else:
            state, reason = DONE, ""
            try:
                self.finish(work.job)
            except UserError as error:
                state, reason = FAILED, str(error)
        self._end(work, state, reason)
        if state == FAILED:
            problems[work.job.name] = reason
        self.tell(self._line(work, state, reason, jobs))

    def _end(self, work: _Work, state: str, reason: str) -> None:
        if work.process is not None and work.process.returncode is None:
            work.process.send_signal(signal.SIGTERM)
            _, code, usage = os.wait4(work.process.pid, 0)
            work.process.returncode = os.waitstatus_to_exitcode(code)
            work.cpu_seconds += usage.ru_utime + usage.ru_stime
        self._write(work, state, reason)
        del self._running[work.job.name]
        self._states[work.job.name] = state
        work.stack.close()

    def _write(self, work: _Work, state: str, reason: str) -> None:
        before, spent = work.before, time.monotonic() - work.began
        is_same = before.key == work.job.key
        status = Status(
            state,
            work.job.key,
            reason,
            round((before.seconds if is_same else 0.0) + spent, 1),
            round((before.cpu_seconds if is_same else 0.0) + work.cpu_seconds, 1),
            work.started,
            "" if state == RUNNING else _now(),
            work.attempts,
        )
        write_json(work.job.folder / STATUS, vars(status))

    def _line(self, work: _Work, state: str, reason: str, jobs: Sequence[Job]) -> str:
        status = read_unlocked(work.job.folder)
        ended = sum(self._states[job.name] in (DONE, FAILED) for job in jobs)
        cost = f"{status.seconds:,.0f} s, {status.cpu_seconds:,.0f} s of CPU"
        left = time_left([j for j in jobs if self._states[j.name] not in (DONE, FAILED)], measured(jobs), self.at_once)
        return f"[{ended}/{len(jobs)}] {work.job.name}: {state}{f' ({reason})' if reason else ''}; {cost}; {left}"


def _in_order(jobs: Sequence[Job], states: Mapping[str, str]) -> dict[str, Job]:
    """{name: job} of what must run: each job that no other needs, in the order given, right after what it needs itself.

    A shared job whose dependents are all done or have failed for good is left out.
    """
    by_name, wanted = {job.name: job for job in jobs}, dict[str, Job]()
    needed = {need for job in jobs for need in job.needs}

    def add(job: Job) -> None:
        if job.name not in wanted and states[job.name] == WAITING:
            for need in job.needs:
                add(by_name[need])
            wanted[job.name] = job

    for job in jobs:
        if job.name not in needed:
            add(job)
    return wanted


def measured(jobs: Iterable[Job], elsewhere: Mapping[str, Status] | None = None) -> dict[str, tuple[float, float]]:
    """{kind: (seconds, CPU seconds) per unit of weight} of the jobs that are done.

    Args:
        elsewhere: {job: status} of jobs that are done in another checkout; one that is done here has its own cost.
    """
    sums: dict[str, list[float]] = {}
    for job in jobs:
        status = read_unlocked(job.folder)
        if not status.is_done(job):
            status = (elsewhere or {}).get(job.name, status)
        if status.is_done(job):
            entry = sums.setdefault(job.kind, [0.0, 0.0, 0.0])
            for i, part in enumerate((status.seconds, status.cpu_seconds, job.weight)):
                entry[i] += part
    return {kind: (seconds / weight, cpu / weight) for kind, (seconds, cpu, weight) in sums.items() if weight}


def time_left(jobs: Sequence[Job], rates: Mapping[str, tuple[float, float]], at_once: int) -> str:
    """About how long these jobs take, in words, from the cost of finished jobs of their kinds."""
    unknown = sorted({job.kind for job in jobs} - set(rates))
    hours = sum(rates[job.kind][0] * job.weight for job in jobs if job.kind in rates) / at_once / 3600
    more = f" and jobs whose cost is not known yet ({', '.join(unknown)})" if unknown else ""
    return f"{len(jobs)} left, about {hours:.1f} h with {at_once} processes{more}"


def _reason(work: _Work) -> str:
    """Why a command failed: its error message, else its last line, and how it ended."""
    assert work.process is not None
    text = (work.job.folder / LOG).read_bytes()[work.offset :].decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    code = work.process.returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    words = work.job.commands[work.step]
    module = words[words.index("-m") + 1] if "-m" in words else words[0]
    last = lines[-1] if lines else ""
    said = errors[-1].removeprefix("error:").strip() if errors else ("" if last.startswith("$ ") else last)
    return f"{module}, {how}{f': {said[:400]}' if said else ''}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
