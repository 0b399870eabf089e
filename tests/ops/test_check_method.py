"""A method that names no reward is refused before data, search and SFT."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from ops.model_checks import check_anchored
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


def test_an_anchored_start_that_cannot_be_is_said_before_any_stage() -> None:
    """Days of data, search and SFT come before `make anchor`."""
    check_anchored(load("mini", overrides=["anchor.add_row=false"]))  # no method of the anchor stage
    check_anchored(load("mini", overrides=["rl.start=anchor"]))
    check_anchored(load("paper-7b", overrides=["rl.start=anchor", "models.base=nobody/none"]))
    with pytest.raises(
        UserError, match=r"none is left for <\|focus\|>, which the method fgrpo needs .*anchor\.add_row=true"
    ):
        check_anchored(load("mini", overrides=["rl.start=anchor", "anchor.add_row=false"]))
    with pytest.raises(UserError, match=r"adapters leave as it is; set sft\.lora=null"):
        check_anchored(load("mini", overrides=["rl.start=anchor", "@lora"]))
    words = [sys.executable, "-m", "ops.check_method", "--preset", "mini", "--set", "rl.start=anchor"]
    wrong = subprocess.run([*words, "anchor.add_row=false"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert wrong.returncode == 2 and "none is left for <|focus|>" in wrong.stderr and "Traceback" not in wrong.stderr
