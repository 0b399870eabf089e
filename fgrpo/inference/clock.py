"""The clock of clients and endpoints: monotonic seconds, and waits. Tests use one that does not wait."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """Seconds of the machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since an arbitrary moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for so many seconds."""
        await asyncio.sleep(seconds)


SYSTEM = Clock()
