"""Runs steps one after the other, each with its servers up, and leaves no process behind.

Every process has a session of its own and its GPUs in CUDA_VISIBLE_DEVICES. A server is up when it has written its address file,
which `fgrpo.inference.serve` does once vLLM is healthy. Servers that the next step needs too are kept. A server that dies, or is
not up in time, stops the step with the end of its log. On an error, ctrl-C or SIGTERM all processes are stopped; if this process
is killed, its guard stops them (`fgrpo.process_guard`), and the next call stops those that the guard did not know yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fgrpo.errors import UserError
from fgrpo.process_guard import Guard
from fgrpo.runs import write_json
from ops.paper.steps import Server, Step

STEPS, PROCESSES = "steps.jsonl", "processes.json"
TAIL_LINES, TELL_EVERY_S = 30, 30.0


@dataclass
class _Process:
    """A running process: what it is, and where its output goes (None: to the terminal)."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path | None = None

    def tail(self) -> str:
        """The path and the last lines of its log."""
        assert self.log is not None
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return f"its log is {self.log} and ends with\n" + "\n".join(text.splitlines()[-TAIL_LINES:])


@dataclass
class Runner:
    """Runs steps on one machine.

    Attributes:
        options: command-line words of the configuration (`--preset …`).
        pool: the machine's GPUs as CUDA_VISIBLE_DEVICES names them; empty: processes see what this one sees.
        folder: where logs and times go.
        address: the address file of a server, by its name.
        port: of the first server, the next one has the next; None: free ones.
        healthy_s: how long a server may take until it is up.
        environment: of the processes.
        tell: prints a line of progress.
    """

    options: Sequence[str]
    pool: Sequence[str]
    folder: Path
    address: Callable[[str], Path]
    port: int | None = None
    healthy_s: float = 1800.0
    stop_s: float = 60.0
    poll_s: float = 0.5
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    tell: Callable[[str], None] = lambda line: print(line, flush=True)
    _servers: dict[Server, _Process] = field(default_factory=dict)
    _ports: dict[Server, int] = field(default_factory=dict)
    _command: _Process | None = None

    def run(self, steps: Sequence[Step]) -> None:
        """Run what is not done, in order.

        Raises:
            UserError: a step or a server failed (names it), or processes of an earlier call are still there.
            KeyboardInterrupt: ctrl-C or SIGTERM; everything is stopped.
        """
        self.end_earlier()
        self.folder.mkdir(parents=True, exist_ok=True)
        guard = Guard()
        before = signal.signal(signal.SIGTERM, _interrupt)
        began = time.monotonic()
        try:
            for number, step in enumerate(steps, start=1):
                title = f"[{number}/{len(steps)}] {step.name}"
                if step.is_done():
                    self.tell(f"{title}: done already")
                    continue
                self._settle(step, title)
                self._work(step, title)
            self.tell(f"all {len(steps)} steps are done after {clock(time.monotonic() - began)}")
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not interrupt the stopping
            ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._stop_all()
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, ctrl_c)
            guard.release()

    def _settle(self, step: Step, title: str) -> None:
        """Stop the servers that `step` does not need, start those that it lacks, and wait until all are up."""
        self._check_servers(step)
        for server in [server for server in self._servers if server not in step.servers]:
            self.tell(f"{title}: stopping {server.name}")
            self._stop(self._servers.pop(server))
        started = [server for server in step.servers if server not in self._servers]
        for server in started:
            self._servers[server] = self._start_server(server, title)
        began, told = time.monotonic(), 0.0
        while waiting := [server for server in started if not self.address(server.name).exists()]:
            self._check_servers(step)
            waited = time.monotonic() - began
            if waited > self.healthy_s:
                raise UserError(
                    f"the server {waiting[0].name} of {step.name} was not up after {waited:.0f} s (--health-timeout); "
                    f"{self._servers[waiting[0]].tail()}"
                )
            if waited - told >= TELL_EVERY_S:
                told = waited
                self.tell(f"{title}: waiting for {', '.join(s.name for s in waiting)} for {clock(waited)}")
            time.sleep(self.poll_s)
        if started:
            names = ", ".join(server.name for server in started)
            self.tell(f"{title}: {names} up after {clock(time.monotonic() - began)}")

    def _start_server(self, server: Server, title: str) -> _Process:
        self.address(server.name).unlink(missing_ok=True)  # of a server that was killed
        words = server.command(self.options, self._free_port(server), self.healthy_s)
        log = self.folder / f"{server.name}.log"
        self.tell(f"{title}: starting {server.name} on GPUs {','.join(self._ids(server.gpus))} ({log})")
        return self._start(server.name, words, server.gpus, log)

    def _free_port(self, server: Server) -> int | None:
        """The first port from `port` on that none of our servers has; None without `port`."""
        if self.port is None:
            return None
        used = {port for other, port in self._ports.items() if other in self._servers}
        self._ports[server] = next(port for port in range(self.port, self.port + len(used) + 1) if port not in used)
        return self._ports[server]

    def _work(self, step: Step, title: str) -> None:
        """Run the command of `step` while its servers live."""
        began = time.monotonic()
        on = f" on GPUs {','.join(self._ids(step.gpus))}" if step.gpus else ""
        self._wait_for_gpus(step)
        self.tell(f"{title}: running{on}")
        self._command = self._start(step.name, step.command(self.options), step.gpus)
        while (code := self._command.process.poll()) is None:
            self._check_servers(step)
            time.sleep(self.poll_s)
        self._command = None
        if code:
            self._check_servers(step)
            raise UserError(
                f"{step.name} ended with {code} (its own message is above); finished items are kept: run the same command to go on"
            )
        seconds = time.monotonic() - began
        with (self.folder / STEPS).open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step.name, "seconds": round(seconds, 1), "ended": time.time()}) + "\n")
        self.tell(f"{title}: done in {clock(seconds)}")

    def _wait_for_gpus(self, step: Step) -> None:
        """Give the driver time to free the memory of servers that have stopped. Raises UserError as `Step.check`."""
        limit = time.monotonic() + self.stop_s
        while True:
            try:
                return step.check()
            except UserError:
                if time.monotonic() > limit:
                    raise
                time.sleep(self.poll_s)

    def _ids(self, gpus: Sequence[int]) -> list[str]:
        return [self.pool[gpu] for gpu in gpus]

    def _start(self, name: str, words: Sequence[str], gpus: Sequence[int], log: Path | None = None) -> _Process:
        environment = dict(self.environment)
        if self.pool:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._ids(gpus))
        out = None if log is None else log.open("ab")
        try:
            process = subprocess.Popen(
                words, stdout=out, stderr=None if out is None else out, env=environment, start_new_session=True
            )
        finally:
            if out is not None:
                out.close()
        started = _Process(name, process, log)
        self._remember(started)
        return started

    def _check_servers(self, step: Step) -> None:
        """Raises UserError if a server has ended."""
        for server, running in self._servers.items():
            code = running.process.poll()
            if code is not None:
                raise UserError(
                    f"the server {server.name} ended with {code} during {step.name}; finished items are kept: run the same command to go "
                    f"on; {running.tail()}"
                )

    def _stop_all(self) -> None:
        if self._command is not None:
            self._stop(self._command)
        for running in self._servers.values():  # at once, so that they end side by side
            _signal(running.process, signal.SIGTERM)
        for running in self._servers.values():
            self._stop(running)
        self._command, self._servers = None, {}
        (self.folder / PROCESSES).unlink(missing_ok=True)

    def _stop(self, running: _Process) -> None:
        """End a process and its group: SIGTERM, then SIGKILL."""
        _signal(running.process, signal.SIGTERM)
        try:
            running.process.wait(timeout=self.stop_s)
        except subprocess.TimeoutExpired:
            self.tell(f"{running.name} does not stop after {self.stop_s:.0f} s; killing it")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()

    def _remember(self, started: _Process) -> None:
        """Write the running processes down, for a call after this one was killed."""
        alive = [p for p in (*self._servers.values(), self._command, started) if p is not None]
        entries = []
        for one in alive:
            try:
                entries.append(
                    {"name": one.name, "pid": one.process.pid, "since": psutil.Process(one.process.pid).create_time()}
                )
            except psutil.NoSuchProcess:
                continue
        write_json(self.folder / PROCESSES, entries)

    def end_earlier(self) -> bool:
        """End the processes that a killed call left: those that its guard did not know yet. Each is known by id and start.

        Returns:
            Whether a call was killed: vLLM, which has a session of its own, may still be about to end and to free its GPUs.

        Raises:
            UserError: they are still there.
        """
        try:
            entries = json.loads((self.folder / PROCESSES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            for entry in filter(_is_alive, entries):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(entry["pid"]), number)
            limit = time.monotonic() + self.stop_s
            while any(map(_is_alive, entries)) and time.monotonic() < limit:
                time.sleep(self.poll_s)
        if alive := [f"{entry['name']} (process {entry['pid']})" for entry in entries if _is_alive(entry)]:
            raise UserError(
                f"processes of an earlier call are still there: {', '.join(alive)}; end them, then run again"
            )
        return True


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 02:05:07."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def _is_alive(entry: Mapping[str, object]) -> bool:
    try:
        process = psutil.Process(int(str(entry["pid"])))
        return process.create_time() == entry["since"] and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, ValueError, TypeError):
        return False


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM is ctrl-C."""
    raise KeyboardInterrupt
