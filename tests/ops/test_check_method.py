"""A method that names no reward is refused before data, search and SFT."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from rewards.base import check_configured

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "rl.constraints.consistancy={tau: 0.9}",
            "unknown configuration key 'rl.constraints.consistancy'; did you mean",
        ),
        ("rl.constraints.task={tau: 0.9}", "unknown configuration key 'rl.constraints.task'"),
        ("rl.monitor=[spatial]", "unknown reward 'spatial'; did you mean 'spatial_grounding'"),
    ],
)
def test_a_reward_that_does_not_exist_is_said_before_any_stage(override: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_configured(load("mini", overrides=[override]))


def test_the_command_prints_nothing_or_one_line() -> None:
    words = [sys.executable, "-m", "ops.check_method", "--preset", "mini", "--set"]
    fine = subprocess.run([*words, "rl.kl_coef=0.1"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (fine.returncode, fine.stdout) == (0, "")
    wrong = subprocess.run([*words, "rl.monitor=[x]"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert wrong.returncode == 2 and "unknown reward 'x'" in wrong.stderr and "Traceback" not in wrong.stderr
