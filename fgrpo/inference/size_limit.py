"""The most bytes that are read of one HTTP reply, so that a runaway server cannot fill the memory."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from fgrpo.inference.replies import TOO_LONG, BadReply

LEAST_BYTES = 1 << 20  # of any reply: error pages, lists of models
BYTES_PER_TOKEN = 1024  # text, log-probability and token id, as JSON
_LIMIT: ContextVar[int] = ContextVar("_LIMIT", default=LEAST_BYTES)


def allow(tokens: int) -> None:
    """Set the limit of this task's next replies to what so many completion tokens need."""
    _LIMIT.set(LEAST_BYTES + BYTES_PER_TOKEN * tokens)


async def stop_at_limit(response: Any) -> None:
    """A response hook of httpx that reads the body. Raises BadReply past the limit."""
    limit, size, parts = _LIMIT.get(), 0, []
    async for part in response.aiter_bytes():
        size += len(part)
        if size > limit:
            await response.aclose()
            raise BadReply(TOO_LONG, f"the reply has more than {limit:,} bytes")
        parts.append(part)
    response._content = b"".join(parts)  # what `aread` keeps; the library offers no limit of its own
