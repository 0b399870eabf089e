"""Mixed faults of an endpoint, by share: refusals, closed connections, a page instead of JSON, a cut reply, and silence.

They are what gateways and overloaded servers do. Which request fails is a pure function of the seed and of the order of arrival.
"""

from __future__ import annotations

import asyncio
import random
from typing import Literal

Fault = Literal["500", "503", "429", "closed", "page", "cut", "silent"]
KINDS: tuple[Fault, ...] = ("500", "503", "429", "closed", "page", "cut", "silent")
SILENCE_S = 3600.0  # longer than any client waits
CUT = 30  # bytes that a cut reply lacks
ERROR = '{"error": {"message": "x"}}'


def response(status: int, body: str, header: str = "") -> bytes:
    """An HTTP response with a JSON content type."""
    data = body.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{header}\r\n"
    return head.encode() + data


class Faults:
    """Draws the fault of each request in turn.

    Args:
        share: of the requests that fail.
        kinds: equally likely.
    """

    def __init__(self, share: float, kinds: tuple[Fault, ...] = KINDS, seed: int = 0) -> None:
        self.share, self.kinds, self._rng = share, kinds, random.Random(seed)

    def draw(self) -> Fault | None:
        """The next request's fault, or None."""
        return None if self._rng.random() >= self.share else self._rng.choice(self.kinds)


async def send(writer: asyncio.StreamWriter, fault: Fault | None, good: bytes) -> bool:
    """Answer with `good`, or with the fault in its place; whether the connection stays open."""
    if fault == "silent":
        await asyncio.sleep(SILENCE_S)
    elif fault == "cut":
        writer.write(good[:-CUT])
    elif fault == "page":
        writer.write(response(200, "<html>"))
    elif fault == "429":
        writer.write(response(429, ERROR, "Retry-After: 0.1\r\n"))
    elif fault in ("500", "503"):
        writer.write(response(int(fault), ERROR))
    elif fault is None:
        writer.write(good)
    await writer.drain()
    return fault not in ("silent", "cut", "closed")
