"""Starts a vLLM server, waits until it is healthy, and stops it: the server of a teacher, a judge, or a test.

The server runs in a session of its own, so that stopping it reaches its workers and nothing else. Its output goes to a log
file, whose last lines are shown when it dies or never becomes healthy. `CPU_FLAGS` and `CPU_ENVIRONMENT` are for the CPU
(float32, eager, little memory for the KV cache, one thread).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from fgrpo.errors import UserError
from fgrpo.inference.http_get import get
from fgrpo.installed import ROOT
from fgrpo.policy import backbone

LOG_LINES = 25
PATIENCE_S = 20.0
CPU_FLAGS = (
    *("--dtype", "float32", "--enforce-eager"),
    *("--limit-mm-per-prompt", json.dumps(backbone.default().vllm_limits(4))),
    # vLLM 0.31 rewinds a request's random generator when it splits a prompt; a CPU generator cannot be rewound, and the
    # engine dies ("CPU Generator does not use offset") at the first seeded request that is split
    "--no-enable-chunked-prefill",
)
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Server:
    """A `vllm serve` process on the loopback interface, or on `host`. Use as a context manager, or `start` and `stop`."""

    def __init__(
        self,
        model: str,
        *,
        log: Path,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        flags: Sequence[str] = CPU_FLAGS,
        environment: Mapping[str, str] = CPU_ENVIRONMENT,
        timeout_s: float = 300.0,
    ) -> None:
        self.model, self.name, self.log, self.timeout_s = model, name or model, log, timeout_s
        self.host, self.port = host, port or free_port(host)
        self._flags, self._environment = tuple(flags), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its OpenAI-compatible API."""
        return f"http://{self.host}:{self.port}/v1"

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line."""
        address = ["--host", self.host, "--port", str(self.port)]
        return [str(executable()), "serve", self.model, "--served-model-name", self.name, *address, *self._flags]

    def start(self) -> Self:
        """Start the server and wait until it is healthy.

        Raises:
            UserError: no vLLM, the port is in use, the server died, or it was not healthy in time (shows its last log lines).
        """
        command = self.command()
        if _port_in_use(self.host, self.port):
            raise UserError(
                f"port {self.port} of {self.host} is in use; stop the process that listens there, or choose another port"
            )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )
        self._wait()
        return self

    def _wait(self) -> None:
        assert self._process is not None
        bar = tqdm(
            total=int(self.timeout_s),
            desc=f"waiting for vLLM to serve {self.name}",
            unit="s",
            leave=False,
            mininterval=5,
        )
        started = time.monotonic()
        with bar:
            while (waited := time.monotonic() - started) < self.timeout_s:
                if self._process.poll() is not None:
                    raise UserError(
                        f"the vLLM server ended with {self._process.returncode} before it was healthy; {self.tail()}"
                    )
                if healthy(self.url):
                    return
                time.sleep(0.5)
                bar.update(int(waited) - bar.n)
        raise UserError(f"the vLLM server was not healthy after {self.timeout_s:.0f} s; {self.tail()}")

    @property
    def pid(self) -> int:
        """Its process id; 0 when it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def wait(self) -> None:
        """Wait until the server ends by itself, or until interrupted.

        Raises:
            UserError: the server ended (shows its last log lines).
        """
        assert self._process is not None
        code = self._process.wait()
        raise UserError(f"the vLLM server of {self.name} ended with {code}; {self.tail()}")

    def tail(self) -> str:
        """The path and the last lines of its log, for messages."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return f"its log is {self.log} and ends with\n" + "\n".join(text.splitlines()[-LOG_LINES:])

    def stop(self) -> None:
        """Stop the server and its workers: terminate first, then kill."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()  # vLLM stops its own workers
        try:
            process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
        if _group_signalled(process.pid, signal.SIGKILL):  # workers that outlived it
            time.sleep(0.1)
        process.wait(timeout=10)


def executable() -> Path:
    """The `vllm` command: of this interpreter's environment, of .venv-vllm (for CPUs), or of the PATH.

    Raises:
        UserError: there is none.
    """
    for path in (Path(sys.executable).parent / "vllm", ROOT / ".venv-vllm" / "bin" / "vllm", shutil.which("vllm")):
        if path is not None and Path(path).is_file():
            return Path(path)
    raise UserError(
        "there is no vllm command; run `make setup-vllm` (CPU), or install requirements/gpu.txt on a GPU machine"
    )


def free_port(host: str = "127.0.0.1") -> int:
    """A port without a listener at present."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def healthy(url: str, timeout_s: float = 2.0) -> bool:
    """Whether the vLLM server at `url` (its /v1 address) reports that it is healthy: HTTP 200 with nothing in it.

    A server that says more is not vLLM. `timeout_s` bounds the whole reply.
    """
    try:
        reply = get(url.removesuffix("/v1") + "/health", timeout_s)
    except OSError:
        return False
    return (reply.status, reply.body) == (200, b"")


def _port_in_use(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _group_signalled(group: int, sign: int) -> bool:
    """Send `sign` to the process group; False if the group has ended."""
    try:
        os.killpg(group, sign)
    except ProcessLookupError:
        return False
    return True
