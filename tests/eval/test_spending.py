"""Evaluation stops in words when a judge's cap was reached, whichever role's it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from eval.run import evaluation_judges
from eval.scored_answers import check_spending
from fgrpo import config
from fgrpo.errors import UserError
from fgrpo.inference.budget import LEDGER


def test_a_cap_of_either_judge_stops_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    keys: dict[str, Any] = {"backend": "openai", "token_cap": 10_000, "endpoints": ["http://x/v1"]}
    given = [f"judges.{role}.{k}={v}" for role in ("evaluation", "extraction") for k, v in keys.items()]
    given += ["judges.evaluation.model=large", "judges.extraction.model=small"]
    judges = evaluation_judges(config.load("mini", overrides=given), tmp_path)
    check_spending(judges)
    assert [meter.name for meter in judges.meters] == ["large", "small"]
    judges.meters[1].add(9_000, 900)
    check_spending(judges)
    assert judges.meters[1].reserve(100, 16) is not None
    with pytest.raises(UserError, match=r"the cap of 10,000 tokens for small is reached.*money_cap or token_cap"):
        check_spending(judges)
    check_spending(dataclasses.replace(judges, delegates={}))
    assert "small" in (tmp_path / LEDGER).read_text()


def test_spending_is_no_part_of_what_a_run_depends_on() -> None:
    plain = config.load("paper-7b")
    other = config.load(
        "paper-7b",
        overrides=["judges.training.token_cap=5", "judges.evaluation.prompt_price=1", "judges.training.cache=x"],
    )
    for stage in ("rl-fgrpo", "eval"):
        assert config.stage_slice(plain, stage) == config.stage_slice(other, stage)
    changed = config.load("paper-7b", overrides=["judges.training.model=x"])
    assert config.stage_slice(plain, "rl-fgrpo") != config.stage_slice(changed, "rl-fgrpo")
