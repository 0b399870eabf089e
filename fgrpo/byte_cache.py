"""A cache that is bounded by the bytes of what it holds, not by their number: one photograph is as large as a thousand small images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """The values used last, of at most `limit` bytes together; the newest stays even where it alone has more.

    Safe for threads. Two threads that miss one key at a time both make its value, and the first one stays.

    Args:
        limit: bytes.
        size: bytes of a value.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self.limit, self._size = limit, size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, made if it is not there. What `make` raises is raised, and nothing is stored."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key in self._values:
                return self._values[key]
            self._values[key] = value
            self.bytes += self._size(value)
            while self.bytes > self.limit and len(self._values) > 1:
                self.bytes -= self._size(self._values.popitem(last=False)[1])
        return value

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def __len__(self) -> int:
        return len(self._values)
