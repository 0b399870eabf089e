"""Replies of judge models on disk, by a hash of the request's content; shared by any number of processes of one machine.

SQLite in WAL mode: readers never wait, writers wait for each other at most `timeout` seconds. Only usable replies are stored,
so that a failed call is sent again. A process claims a key before it sends the request, so that no two processes send the
same one. A claim ends with the reply, with its process, or when its time is up. A process is its id and the time of its start,
since ids are used again.
"""

from __future__ import annotations

import os
import random
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import xxhash
from tenacity import Retrying, retry_if_exception_message, stop_after_delay

from fgrpo.errors import UserError

_REPLIES = (
    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, role TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL, "
    "digest TEXT)"
)
_CLAIMS = (
    "CREATE TABLE IF NOT EXISTS leases (key TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, "
    "started REAL NOT NULL, until REAL NOT NULL)"
)
_JITTER = random.Random()  # not the generator whose state a trainer saves
_DAMAGE = ("malformed", "not a database", "Could not decode", "schema")  # in SQLite's messages
_CLOCK_DRIFT_S = 2.0  # of the time of a start, which is computed from the clock and the time since the machine's start
_CLAIM = (
    "INSERT INTO leases VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET host = excluded.host, pid = excluded.pid, "
    "started = excluded.started, until = excluded.until WHERE until < ? RETURNING key"
)


class Cache:
    """`get` and `put` replies by key; safe between threads and processes, and after a fork.

    Raises:
        UserError: the file cannot be opened, is no cache, or fails later (every method).
    """

    def __init__(self, path: str | Path, timeout: float = 60.0) -> None:
        self.path, self._timeout = Path(path), timeout
        self._lock = threading.Lock()
        self._host, self._pid = socket.gethostname(), -1
        self._open()

    def _open(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            retrying = Retrying(  # the change to WAL mode does not wait for the lock by itself
                retry=retry_if_exception_message(match=".*locked.*"),
                stop=stop_after_delay(self._timeout),
                wait=lambda _: _JITTER.uniform(0.01, 0.1),
                reraise=True,
            )
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._connection, self._pid = retrying(self._connect), os.getpid()
            except (sqlite3.Error, OSError) as error:
                raise UserError(
                    f"the judge cache {self.path} cannot be used ({error}); delete it, or name another file"
                ) from error
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=self._timeout, check_same_thread=False, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(_REPLIES)
        connection.execute(_CLAIMS)
        if "digest" not in {row[1] for row in connection.execute("PRAGMA table_info(replies)")}:  # of an older version
            with suppress(sqlite3.OperationalError):  # another process adds it at this moment
                connection.execute("ALTER TABLE replies ADD COLUMN digest TEXT")
        return connection

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            connection = self._open()
            try:
                yield connection
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.rollback()
                is_damaged = any(words in str(error) for words in _DAMAGE)
                way = (
                    "delete it (its replies are then paid again), restore it"
                    if is_damaged
                    else "free space on its disk"
                )
                raise UserError(
                    f"the judge cache {self.path} failed ({error}); {way} or name another file, then rerun to resume"
                ) from error

    def get(self, key: str) -> str | None:
        """The reply stored under `key`, or None. A damaged reply is named and deleted, so that it is requested again."""
        with self._using() as connection:
            row = connection.execute("SELECT reply, digest FROM replies WHERE key = ?", (key,)).fetchone()
            if row is None or row[1] in (None, _digest(key, row[0])):
                return None if row is None else str(row[0])
            print(f"{self.path}: a stored reply is damaged; it is requested again", file=sys.stderr)
            connection.execute("DELETE FROM replies WHERE key = ?", (key,))
        return None

    def put(self, key: str, role: str, model: str, reply: str) -> None:
        """Store `reply`; the first one under a key stays. Ends the claim on the key."""
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            values = (key, role, model, reply, _digest(key, reply))
            connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", values)
            connection.execute("DELETE FROM leases WHERE key = ?", (key,))
            connection.execute("COMMIT")

    def claim(self, key: str, seconds: float) -> bool:
        """Claim `key` for this process for so many seconds; False while the claim of another live process holds."""
        with self._using() as connection:
            now = time.time()
            claim = (key, self._host, self._pid, _start_of(self._pid), now + seconds, now)
            if connection.execute(_CLAIM, claim).fetchone() is not None:
                return True
            row = connection.execute("SELECT host, pid, started FROM leases WHERE key = ?", (key,)).fetchone()
            if row is not None and row[0] == self._host and not _is_alive(row[1], row[2]):
                connection.execute(
                    "DELETE FROM leases WHERE key = ? AND host = ? AND pid = ? AND started = ?", (key, *row)
                )
                return connection.execute(_CLAIM, claim).fetchone() is not None
            return False

    def release(self, key: str) -> None:
        """End this process' claim on `key` without a reply."""
        with self._using() as connection:
            claim = (key, self._host, os.getpid())
            connection.execute("DELETE FROM leases WHERE key = ? AND host = ? AND pid = ?", claim)

    def __len__(self) -> int:
        with self._using() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        """Close the connection. The next use opens it again."""
        with self._lock:
            if self._pid == os.getpid():
                self._connection.close()
            self._pid = -1


def _digest(key: str, reply: object) -> str:
    return xxhash.xxh3_128(f"{key}\0{reply}".encode("utf-8", "surrogatepass")).hexdigest()


def _start_of(pid: int) -> float:
    """When the process started, in seconds since the epoch."""
    return psutil.Process(pid).create_time()


def _is_alive(pid: int, started: float) -> bool:
    """Whether the process that started then still runs, and not another one under its id."""
    try:
        return abs(_start_of(pid) - started) <= _CLOCK_DRIFT_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's process
        return True
