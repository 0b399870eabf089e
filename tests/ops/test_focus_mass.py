"""The report on where the token looks: its questions, its models, and their order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import focus, loading
from ops import focus_mass
from tests.rl.conftest import mini, policy, world

__all__ = ["policy", "world"]


def test_before_and_after_on_held_out_questions(world: Path, policy: Path, tmp_path: Path) -> None:
    """The model after attends uniformly, so it has the area's share; the one before does not."""
    preset = tmp_path / "runs" / "mini"
    (preset / "data").mkdir(parents=True)
    rows = list(read_jsonl(world / "rl.jsonl"))
    write_jsonl(preset / "data" / "rl.jsonl", rows)
    write_jsonl(preset / "data" / "seed.jsonl", rows[:2])
    with pytest.raises(UserError, match="run `make anchor`"):
        focus_mass.report(mini(world), tmp_path / "runs", 400)
    focus.add(policy, preset / "anchor" / "start", add_row=True)
    shutil.copytree(preset / "anchor" / "start", preset / "anchor" / "final")
    model, _ = loading.load_policy(preset / "anchor" / "start")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                parameter.zero_()
    model.save_pretrained(preset / "anchor" / "final")
    found = focus_mass.report(mini(world), tmp_path / "runs", 400)
    with_boxes = sum(bool(row["boxes"]) for row in rows[2:])
    assert found["questions"] == with_boxes > 2
    assert json.loads((preset / "anchor" / "focus_mass.json").read_text()) == found
    uniform, before, after = (found[name] for name in ("uniform attention", "before", "after"))
    assert after["mean"] == pytest.approx(uniform["mean"], abs=1e-5)
    assert before["mean"] != pytest.approx(uniform["mean"], abs=1e-3)
    assert found["after - before"]["mean"] == pytest.approx(after["mean"] - before["mean"], abs=1e-6)
    assert before["low"] <= before["mean"] <= before["high"]
    write_jsonl(preset / "data" / "seed.jsonl", rows)
    with pytest.raises(UserError, match="no question with boxes beside the seed"):
        focus_mass.report(mini(world), tmp_path / "runs", 400)
