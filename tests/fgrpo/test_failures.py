"""What a failure says and does beyond the table that tests/test_odd_endpoints.py tests."""

from __future__ import annotations

import httpx
import openai
import pytest

from fgrpo.inference.failures import Failure, RequestFailed, classify
from fgrpo.training.finite import NotFinite


@pytest.mark.parametrize(
    "body", [{"type": "insufficient_quota", "code": None}, {"type": "x", "code": "insufficient_quota"}]
)
def test_an_exhausted_quota_is_read_from_code_and_type(body: dict[str, str | None]) -> None:
    response = httpx.Response(429, request=httpx.Request("POST", "http://host/v1"))
    error = openai.RateLimitError("used up", response=response, body={"message": "used up", **body})
    assert classify(error).action == "stop"
    assert classify(openai.RateLimitError("slow down", response=response, body={"type": "requests"})).action == "retry"


def test_a_failed_request_names_the_seconds_of_its_patience() -> None:
    by_time = RequestFailed(Failure("retry", "HTTP 429", "slow down", 429, by_time=True), 31, 900.4)
    own = RequestFailed(Failure("retry", "no text", "empty"), 8, 12.0)
    assert by_time.tries == "31 attempts over 900 s (patience_s)" and own.tries == "8 attempts"


def test_an_error_of_training_says_what_happened_to_the_step() -> None:
    assert "the step was not taken" in str(NotFinite(7, "the loss is nan"))
    saved = str(NotFinite(7, "weight a is not finite", "nothing was saved"))
    assert "nothing was saved" in saved and "the step was not taken" not in saved
