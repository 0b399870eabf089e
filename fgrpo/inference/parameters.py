"""Parameters of a request that a server may not take: which are left out, and how a refusal that names one reads."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

REQUIRED = ("model", "messages")
LENGTH, OLD_LENGTH = "max_completion_tokens", "max_tokens"
_COMPLAINT = re.compile(
    r"unsupported|not supported|does not support|unrecognized|unknown|unexpected|not permitted|not allowed|extra|invalid param",
    re.IGNORECASE,
)


def fitted(body: dict[str, Any], leave_out: Collection[str]) -> dict[str, Any]:
    """`body` without the parameters of `leave_out`.

    A server that does not know `max_completion_tokens` gets `max_tokens`, unless that is left out too.
    """
    if LENGTH in leave_out and LENGTH in body:
        body = {**body, OLD_LENGTH: body[LENGTH]}
    return {name: value for name, value in body.items() if name in REQUIRED or name not in leave_out}


def advice(words: str, sent: Iterable[str], setting: str) -> str:
    """What to do if a refusal complains about a parameter that was sent; "" if it does not.

    Args:
        words: the server's message.
        sent: the parameters of the request.
        setting: the configuration key that lists parameters to leave out.
    """
    if not _COMPLAINT.search(words):
        return ""
    named = [name for name in sent if name not in REQUIRED and re.search(rf"\b{re.escape(name)}\b", words)]
    return f"; if the server does not take {', '.join(named)}, add the name to {setting}" if named else ""
