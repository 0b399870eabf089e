"""What may pass and what will not, when an OpenAI-compatible endpoint fails; shared by the sampling engine and the judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import urlsplit

import openai
from tenacity import RetryCallState, wait_random_exponential

from fgrpo.errors import UserError

PASSING_STATUS = (408, 409, 429)
QUOTA = "insufficient_quota"  # a 429 that no waiting mends
ERRORS = (openai.OpenAIError, TimeoutError, json.JSONDecodeError)  # all that a call can raise
_PASSING = (openai.APIConnectionError, openai.APIResponseValidationError, TimeoutError, json.JSONDecodeError)


def normal_url(endpoint: str) -> str:
    """The address of an endpoint's API root.

    Raises:
        UserError: not an http address, or one with a password, which would stand in logs and manifests.
    """
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise UserError(
            f"the endpoint at {parts.hostname} has a user or password in its address; take it out and put the key into "
            "OPENAI_API_KEY (a judge's: the variable that its api_key_env names)"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"{endpoint!r} is not an endpoint; write it as http://host:port/v1")
    return endpoint.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed: no connection, time-out, a reply that is no HTTP JSON, 408, 409, 429, 5xx."""
    if isinstance(error, _PASSING):
        return True
    if not isinstance(error, openai.APIStatusError) or error.code == QUOTA:
        return False
    return error.status_code >= 500 or error.status_code in PASSING_STATUS


def waits(first_s: float, longest_s: float, most_s: float | None = None) -> Callable[[RetryCallState], float]:
    """Jittered exponential waits from about `first_s` to `most_s` (default: `longest_s`), at least what a Retry-After header
    asks for, at most `longest_s`."""
    jittered = wait_random_exponential(multiplier=first_s, max=longest_s if most_s is None else most_s)

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return min(longest_s, max(jittered(state), _retry_after(error)))

    return wait


def _retry_after(error: BaseException | None) -> float:
    """Seconds that a Retry-After header asks for, 0 without one."""
    response = getattr(error, "response", None)
    try:
        return max(0.0, float(response.headers["retry-after"])) if response is not None else 0.0
    except (KeyError, ValueError):
        return 0.0
