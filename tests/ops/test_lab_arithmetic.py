"""The fingerprint of a machine's arithmetic."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from fgrpo.errors import UserError
from ops.lab import arithmetic, runner


def test_a_fingerprint_repeats_and_shows_another_order_of_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    first = arithmetic.measure()
    assert first == arithmetic.measure() and len(first) == arithmetic.DIGITS
    linear = torch.nn.functional.linear

    def in_halves(x: Any, weight: Any, bias: Any = None) -> Any:
        half = weight.shape[1] // 2
        return linear(x[..., :half], weight[:, :half]) + linear(x[..., half:], weight[:, half:], bias)

    monkeypatch.setattr(torch.nn.functional, "linear", in_halves)
    assert arithmetic.measure() != first


def test_it_is_taken_under_the_environment_of_a_labs_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def run(command: tuple[str, ...], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        given.update(env)
        return subprocess.CompletedProcess(command, 0, "0123456789abcdef\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    arithmetic.fingerprint.cache_clear()
    assert arithmetic.fingerprint() == "0123456789abcdef"
    arithmetic.fingerprint.cache_clear()
    assert (
        arithmetic.ENVIRONMENT.items() <= given.items() and arithmetic.ENVIRONMENT.items() <= runner.ENVIRONMENT.items()
    )


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no backbone")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    arithmetic.fingerprint.cache_clear()
    with pytest.raises(UserError, match=r"arithmetic --here failed: no backbone"):
        arithmetic.fingerprint()
