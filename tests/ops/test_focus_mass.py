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
from fgrpo.runs import Run
from ops import clean_checkpoints, focus_mass
from tests.rl.conftest import mini, policy, world

__all__ = ["policy", "world"]


def test_before_and_after_on_held_out_questions(
    world: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    of_rl, other = preset / "rl-mr1" / "final", preset / "anchor" / "start"
    of_rl.parent.mkdir()
    shutil.copytree(other, of_rl)
    found = focus_mass.report(mini(world), tmp_path / "runs", 400, [str(of_rl), str(other)])
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if "trained on these questions" in line] == [str(of_rl)]
    assert {name for name in found if name != "questions" and not found[name]["held_out"]} == {str(of_rl)}
    assert f"{found['questions']} questions of mini that no stage before RL trains on" in printed
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
    shutil.rmtree(preset / "anchor" / "start")
    with pytest.raises(UserError, match=r"start is deleted, and .*anchor is not of this configuration"):
        focus_mass.report(mini(world), tmp_path / "runs", 400)


def test_a_deleted_start_is_made_again_from_the_same_sft_model(world: Path, policy: Path, tmp_path: Path) -> None:
    cfg, root = mini(world), tmp_path / "runs"
    sft = root / "mini" / "sft" / "final"
    shutil.copytree(policy, sft)
    with Run.open(cfg, "anchor", [sft], root) as run:
        focus.add(sft, run.path / "start", add_row=True)
        shutil.copytree(run.path / "start", run.path / "final")
        (run.path / "metrics.jsonl").write_text("{}\n")
        run.finish(["metrics.jsonl", "final"])
    before = {path.name: path.read_bytes() for path in (run.path / "start").iterdir()}
    assert list(clean_checkpoints.clean(cfg, root)) == [run.path / "start"]
    start = focus_mass.start_of(cfg, root)
    assert {path.name: path.read_bytes() for path in start.iterdir()} == before
    clean_checkpoints.clean(cfg, root)
    (sft / "config.json").write_text((sft / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="is not of this configuration and SFT model"):
        focus_mass.start_of(cfg, root)
