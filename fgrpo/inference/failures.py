"""What a failed request means: one table for sampling and judging.

| what came back | action | the endpoint is up |
|---|---|---|
| no connection, a cut connection, a time-out | retry | no |
| no JSON, a gateway's page | retry | no |
| 5xx | retry | no |
| 408, 409, 429 | retry, after Retry-After at the earliest | yes |
| 401, 403 (key), 404 (model not served), 429 with an exhausted quota | stop: it concerns every request | yes |
| any other status (400, 413, 422, ...) | refuse: this request fails | yes |

`classify` is the only reader of this table. A completion with an empty or truncated text is no failure here: its caller
knows what a usable text is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import openai
from openai.types.chat import ChatCompletion

Action = Literal["retry", "refuse", "stop"]

ERRORS = (openai.OpenAIError, TimeoutError, json.JSONDecodeError)  # everything that one attempt can raise
QUOTA = "insufficient_quota"  # the code of a 429 that no wait resolves
TIME_OUT, NO_CONNECTION, NO_JSON = "time-out", "no connection", "no JSON"
ENDPOINTS_DOWN, SPEND_CAP = "endpoints down", "spend cap"
_STATUSES: Mapping[int, Action] = {
    **dict.fromkeys((401, 403, 404), "stop"),
    **dict.fromkeys((408, 409, 429), "retry"),
}


@dataclass(frozen=True)
class Failure:
    """A request without a completion.

    `kind` groups failures in counts ("HTTP 500", "time-out"); `detail` is the endpoint's or the library's message. A retry
    waits for at least `after_s` seconds. `is_alive`: the endpoint itself answered, so it is up.
    """

    action: Action
    kind: str
    detail: str
    status: int | None = None
    after_s: float = 0.0
    is_alive: bool = False

    @property
    def is_unreachable(self) -> bool:
        """Whether there was no server to talk to. A time-out or a 5xx may be the fault of this one request."""
        return self.kind in (NO_CONNECTION, ENDPOINTS_DOWN)


class RequestFailed(Exception):
    """A request that failed for good, after `attempts` attempts."""

    def __init__(self, failure: Failure, attempts: int) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure, self.attempts = failure, attempts


def classify(result: object) -> Failure | None:
    """What to do about the result of one attempt.

    Args:
        result: a reply of the library, or one of `ERRORS`.

    Returns:
        None for a completion, otherwise the failure with its action.
    """
    if isinstance(result, ChatCompletion):
        return None
    if isinstance(result, openai.APIStatusError):
        status = result.status_code
        action: Action = "retry" if status >= 500 else _STATUSES.get(status, "refuse")
        if result.code == QUOTA:
            action = "stop"
        is_alive = action != "retry" or status < 500
        return Failure(action, f"HTTP {status}", str(result), status, _retry_after(result), is_alive)
    if isinstance(result, (TimeoutError, openai.APITimeoutError)):
        return Failure("retry", TIME_OUT, str(result) or "no reply within the time limit")
    if isinstance(result, openai.APIConnectionError):
        return Failure("retry", NO_CONNECTION, str(result))
    if isinstance(result, openai.OpenAIError) and not isinstance(result, openai.APIResponseValidationError):
        return Failure("refuse", type(result).__name__, str(result), is_alive=True)
    if isinstance(result, Exception):
        return Failure("retry", NO_JSON, str(result))
    return Failure(
        "retry", NO_JSON, f"the reply is no JSON: {str(result)[:100]!r}"
    )  # the library returns such a page as it is


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that a Retry-After header requests; 0 without one."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return 0.0
