"""What a failed request means: one table for sampling and judging.

| what came back | action | as long as | the endpoint is up |
|---|---|---|---|
| no connection, a cut connection | retry | patience | no |
| a certificate that cannot be verified, TLS on a plain port | stop | | no |
| a time-out | retry | attempts | no |
| HTTP 200 without JSON: a page, an event stream, half a document | retry | patience | no |
| HTTP 200 with other JSON: a list, null, no choices | retry | patience | no |
| no text (null, empty, a refusal, a filter), a choice without message, a log-probability that is no number | retry | attempts | yes |
| a reply that is too long | retry | attempts | yes |
| HTTP 200 with an error | like its code | | |
| 5xx but 501 and 505 | retry | patience | no |
| 404 | retry, or stop if /models answers without the model | patience | no |
| 408, 409, 425, 429 | retry, after Retry-After at the earliest | patience | yes |
| 401, 403 (key), 402 (credit), 429 with an exhausted quota | stop: it concerns every request | | yes |
| any other status (400, 413, 422, ...) | refuse: this request fails | | yes |

`classify` is the only reader of this table; docs/endpoints.md explains it. A completion with a truncated text is no failure.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import openai

from fgrpo.inference.replies import NO_COMPLETION, NO_JSON, QUOTA, BadReply, words_of

Action = Literal["retry", "refuse", "stop"]

ERRORS = (openai.OpenAIError, TimeoutError, BadReply)  # everything that one attempt can raise
TIME_OUT, NO_CONNECTION, CERTIFICATE = "time-out", "no connection", "certificate"
ENDPOINTS_DOWN, SPEND_CAP = "endpoints down", "spend cap"
_STATUSES: Mapping[int, Action] = {
    **dict.fromkeys((401, 402, 403), "stop"),
    **dict.fromkeys((404, 408, 409, 425, 429), "retry"),
    **dict.fromkeys((501, 505), "refuse"),
}


@dataclass(frozen=True)
class Failure:
    """A request without a completion.

    `kind` groups failures in counts ("HTTP 500", "time-out"); `detail` is the endpoint's or the library's message. A retry
    waits for at least `after_s` seconds. `is_alive`: the endpoint itself answered, so it is up. `by_time`: the endpoint may
    recover, so retries last for the patience; otherwise it may be this request's own fault, and attempts are counted.
    """

    action: Action
    kind: str
    detail: str
    status: int | None = None
    after_s: float = 0.0
    is_alive: bool = False
    by_time: bool = False

    @property
    def is_unreachable(self) -> bool:
        """Whether there was no server to talk to. A time-out or a 5xx may be the fault of this one request."""
        return self.kind in (NO_CONNECTION, ENDPOINTS_DOWN)

    @property
    def is_transient(self) -> bool:
        """Whether a later run may succeed with the same request, perhaps with another key."""
        return self.action in ("retry", "stop") or self.kind == ENDPOINTS_DOWN


class RequestFailed(Exception):
    """A request that failed for good, after `attempts` attempts, `seconds` after the first of them failed."""

    def __init__(self, failure: Failure, attempts: int, seconds: float = 0.0) -> None:
        super().__init__(f"{failure.kind}: {failure.detail}")
        self.failure, self.attempts, self.seconds = failure, attempts, seconds

    @property
    def tries(self) -> str:
        """ "8 attempts", with the seconds where the patience decided."""
        return f"{self.attempts} attempts" + (
            f" over {self.seconds:.0f} s (patience_s)" if self.failure.by_time else ""
        )


def classify(error: Exception) -> Failure:
    """What to do about one of `ERRORS`."""
    if isinstance(error, BadReply):
        return _of_reply(error)
    if isinstance(error, openai.APIStatusError):
        words = words_of(error.body if error.body else str(error))
        detail = f"Error code: {error.status_code} - {words}"
        return _of_status(
            error.status_code, detail, QUOTA if QUOTA in (error.code, error.type) else "", _retry_after(error)
        )
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return Failure("retry", TIME_OUT, str(error) or "no reply within the time limit")
    if isinstance(error, openai.APIConnectionError):
        cause = _root(error)
        if isinstance(cause, ssl.SSLError) or "SSL:" in str(cause):
            return Failure("stop", CERTIFICATE, str(cause))
        return Failure("retry", NO_CONNECTION, f"{error} {cause}" if str(cause) else str(error), by_time=True)
    return Failure("refuse", type(error).__name__, str(error), is_alive=True)


def _of_reply(reply: BadReply) -> Failure:
    if reply.status is not None:
        return _of_status(reply.status, reply.detail, reply.code)
    is_endpoints = reply.kind in (NO_JSON, NO_COMPLETION)
    return Failure("retry", reply.kind, reply.detail, is_alive=not is_endpoints, by_time=is_endpoints)


def _of_status(status: int, detail: str, code: str, after_s: float = 0.0) -> Failure:
    action: Action = _STATUSES.get(status, "retry" if status >= 500 else "refuse")
    if code == QUOTA:
        action = "stop"
    is_alive = action != "retry" or (status < 500 and status != 404)
    return Failure(action, f"HTTP {status}", detail, status, after_s, is_alive, by_time=action == "retry")


def _root(error: BaseException) -> BaseException:
    """The first cause of an error, whose words are the most precise ("certificate verify failed")."""
    for _ in range(10):
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause
    return error


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that a Retry-After header requests; 0 without one."""
    try:
        return max(0.0, float(error.response.headers["retry-after"]))
    except (KeyError, ValueError):
        return 0.0
