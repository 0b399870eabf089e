"""Replies of judge models on disk, found by the content of the request; shared by any number of processes.

SQLite in WAL mode: readers never wait, writers wait for each other at most `timeout` seconds. Only usable replies are kept,
so that a failure is asked again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

from fgrpo.errors import UserError

_TABLE = "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, role TEXT NOT NULL, model TEXT NOT NULL, reply TEXT NOT NULL)"


class Cache:
    """`get` and `put` replies by key; safe between threads and processes, and after a fork.

    Raises:
        UserError: the file cannot be opened, or is no cache.
    """

    def __init__(self, path: str | Path, timeout: float = 60.0) -> None:
        self.path, self._timeout = Path(path), timeout
        self._lock = threading.Lock()
        self._pid = -1
        self._open()

    def _open(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(
                    self.path, timeout=self._timeout, check_same_thread=False, isolation_level=None
                )
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(_TABLE)
            except (sqlite3.Error, OSError) as error:
                raise UserError(
                    f"the judge cache {self.path} cannot be used ({error}); delete it, or name another file"
                ) from error
            self._connection, self._pid = connection, os.getpid()
        return self._connection

    def get(self, key: str) -> str | None:
        """The reply kept under `key`, None if there is none."""
        with self._lock:
            row = self._open().execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, role: str, model: str, reply: str) -> None:
        """Keep `reply`; the first one under a key stays."""
        with self._lock:
            self._open().execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", (key, role, model, reply))

    def __len__(self) -> int:
        with self._lock:
            return int(self._open().execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            if self._pid == os.getpid():
                self._connection.close()
            self._pid = -1
