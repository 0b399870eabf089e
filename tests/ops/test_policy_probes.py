"""Probes on stored answers: the numbers of a pass made by hand, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval import base, maps
from eval.measured import LINES, SUMMARY
from eval.measured import stored as stored_scores
from fgrpo import prompts
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.images import open_rgb
from fgrpo.policy import focus, loading, model_files
from fgrpo.policy.backbone import of_model
from fgrpo.policy.blanked_pixels import blanked
from fgrpo.policy.cells import sample_shares, touched
from fgrpo.types import Rollout, Sample
from ops import focus_mass, policy_maps, policy_probes
from rewards.probes import MEASURED
from rl.probes import stored_answers
from tests.rl.conftest import mini, policy, world

__all__ = ["policy", "world"]
TEXT = "<think>The red ball is left. <bbox>[10, 10, 50, 50]</bbox></think><answer>left</answer>"


@pytest.fixture
def evaluated(world: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A configuration whose model "sft" has answered six questions, the root of its runs, and the questions."""
    cfg = mini(world, "rl.micro_batch=4")
    samples = [Sample.from_dict(row) for row in read_jsonl(world / "rl.jsonl")][:6]
    root = tmp_path / "runs"
    final = root / "mini" / "sft" / "final"
    final.parent.mkdir(parents=True)
    final.symlink_to(policy)
    folder = root / "mini" / "eval" / "sft"
    folder.mkdir(parents=True)
    finishes: list[Any] = ["stop", "length", "stop", "error", "stop", "stop"]
    answers = [Rollout(s.id, s.id, TEXT, f, 30, {"kind": "greedy"}) for s, f in zip(samples, finishes, strict=True)]
    sampled = [Rollout(f"{s.id}#s0", s.id, TEXT, "stop", 30, {"kind": "sampled"}) for s in samples]
    write_jsonl(folder / "generations.jsonl", (r.to_dict() for r in (*answers, *sampled)))
    monkeypatch.setattr(policy_probes, "book", lambda root: None)  # every other question has boxes of its own
    monkeypatch.setattr(base, "load", lambda name, cfg: base.Loaded(base.Benchmark(name, name, "", "", _none), samples))
    return cfg, root, samples


def _none(*_: Any) -> Any:
    return ()


def by_hand(cfg: Any, policy: Path, sample: Sample, text: str, ended: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of an answer's tokens on the image, and with the cells under its boxes blanked."""
    model, processor = loading.load_policy(policy)
    tokenizer = processor.tokenizer
    template = prompts.read_for(cfg.policy, cfg.prompts.think)
    rendered = loading.render_prompt(processor, sample.images, prompts.user_text(sample, template))
    given = processor(text=[rendered], images=[open_rgb(p) for p in sample.images], return_tensors="pt")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
    family = of_model(model)
    shares = sample_shares(sample, model_files.pixel_bounds(policy))
    assert shares is not None
    grid, per_cell = given[family.grid_field], family.patches_per_token(family.vision_tower(model))
    found = []
    for cells in (None, touched(shares)):
        pixels = given["pixel_values"]
        if cells is not None:
            pixels = blanked(pixels, grid, per_cell, list(cells), cfg.rl.probes.fill)
        whole = torch.cat([given["input_ids"], torch.tensor([ids])], dim=1)
        token = family.image_token_id(model.config)
        with torch.no_grad():
            logits = model(
                input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=pixels,
                mm_token_type_ids=(whole == token).long(), **{family.grid_field: grid},
            ).logits[0, -len(ids) - 1 : -1]  # fmt: skip
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0])
    return found[0], found[1]


def test_the_drop_is_that_of_a_pass_made_by_hand(evaluated: Any, policy: Path) -> None:
    cfg, root, samples = evaluated
    summary = policy_probes.measure(cfg, "sft", root)
    folder = root / "mini" / "eval" / "sft"
    lines = {line["id"]: line for line in read_jsonl(folder / LINES)}
    assert list(lines) == [s.id for n, s in enumerate(samples) if n != 3], "a refused request has no answer to measure"
    with_boxes = [n for n, s in enumerate(samples) if s.boxes]
    assert {1, 5} <= set(with_boxes)
    for n in (1, 5):  # truncated, and ended by itself
        score = lines[samples[n].id]["scores"]["evidence_margin"]
        before, after = by_hand(cfg, policy, samples[n], TEXT, ended=n != 1)
        assert score["detail"]["evidence"] == pytest.approx(float((before - after).mean()), abs=1e-4)
    stored = json.loads((folder / SUMMARY).read_text())
    assert stored == summary and summary["answers"] == 5 and set(MEASURED) <= set(summary["metrics"])
    cell = summary["metrics"]["evidence_margin"]
    values = [lines[samples[n].id]["scores"]["evidence_margin"]["value"] for n in with_boxes if n != 3]
    assert cell["n"] == len(values) and cell["mean"] == pytest.approx(float(np.mean(values)))
    assert cell["not_applicable"] == {"no_boxes": 5 - len(values)} and cell["failed"] == 0
    assert summary["metrics"]["vision_dependence"]["n"] == 5
    assert stored_scores(folder)[samples[0].id]["evidence_margin"] is None


def test_a_killed_run_goes_on_and_other_probes_begin_anew(evaluated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, root, samples = evaluated
    whole = policy_probes.measure(cfg, "sft", root)
    lines = root / "mini" / "eval" / "sft" / LINES
    complete = lines.read_text()
    lines.write_text("".join(complete.splitlines(keepends=True)[:3]))
    measured: list[str] = []
    inner = stored_answers.StoredAnswers.measure

    def watched(self: Any, answers: Any) -> Any:
        measured.extend(answer.item.rollout_id for answer in answers)
        return inner(self, answers)

    monkeypatch.setattr(stored_answers.StoredAnswers, "measure", watched)
    again = policy_probes.measure(cfg, "sft", root)
    assert measured == [samples[4].id, samples[5].id]
    for metric, cell in whole["metrics"].items():
        assert again["metrics"][metric]["mean"] == pytest.approx(cell["mean"], abs=1e-5)
    measured.clear()
    assert policy_probes.measure(cfg, "sft", root, limit=2)["answers"] == 2
    assert not measured, "a smaller limit takes what is there"
    black = cfg.model_copy(
        update={"rl": cfg.rl.model_copy(update={"probes": cfg.rl.probes.model_copy(update={"fill": "black"})})}
    )
    assert policy_probes.measure(black, "sft", root)["answers"] == 5 and len(measured) == 5
    measured.clear()
    assert policy_probes.measure(black, "sft", root, kind="sampled")["answers"] == 6 and len(measured) == 6


def test_an_anchored_model_is_measured_under_its_own_prompt(evaluated: Any, policy: Path, tmp_path: Path) -> None:
    cfg, root, _samples = evaluated
    folder = root / "mini" / "anchor" / "final"
    token = focus.add(policy, folder, add_row=True)
    (root / "mini" / "eval" / "sft").rename(root / "mini" / "eval" / "anchor")
    seen: list[torch.Tensor] = []
    inner = stored_answers.FaithfulGRPOTrainer.batch_of

    class Watched(stored_answers.FaithfulGRPOTrainer):
        def batch_of(self, *args: Any) -> dict[str, Any]:
            made = inner(self, *args)
            seen.append(made["ids_BL"])
            return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_answers, "FaithfulGRPOTrainer", Watched)
        policy_probes.measure(cfg, "anchor", root, limit=2)
    assert ((seen[0] == token).sum(dim=1) == 1).all()


@pytest.mark.parametrize("given", ["0", "-3", "1.5", "all"])
@pytest.mark.parametrize("command", [policy_probes, policy_maps, focus_mass])
def test_a_number_of_answers_is_a_positive_one(command: Any, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is read or written: maps of no answer would replace those that are there."""
    option = ["--questions"] if command is focus_mass else ["--model", "sft", "--limit"]
    with pytest.raises(SystemExit) as ended:
        command.main([*option, given])
    assert ended.value.code == 2
    assert f"argument {option[-1]}: must be a whole number above 0, not '{given}'" in capsys.readouterr().err


def test_refusals(evaluated: Any, tmp_path: Path) -> None:
    cfg, root, _samples = evaluated
    with pytest.raises(UserError, match="are not on this machine"):
        policy_probes.measure(cfg, "gpt-4o", root)
    folder = root / "mini" / "eval" / "sft"
    rows = list(read_jsonl(folder / "generations.jsonl"))
    write_jsonl(folder / "generations.jsonl", [row for row in rows if row["meta"]["kind"] == "greedy"])
    with pytest.raises(UserError, match="no sampled answer; run `make eval PRESET=mini MODEL=sft`"):
        policy_probes.measure(cfg, "sft", root, kind="sampled")
    with pytest.raises(UserError, match="is missing; run `make probe`"):
        stored_scores(folder)
    write_jsonl(folder / "generations.jsonl", [{**rows[0], "sample_id": "vgr/train/99"}])
    with pytest.raises(UserError, match="vgr/train/99, which is no question"):
        policy_probes.measure(cfg, "sft", root)
    (folder / "generations.jsonl").unlink()
    with pytest.raises(UserError, match="run `make eval MODEL=sft`"):
        policy_probes.measure(cfg, "sft", root)


def test_answers_of_other_weights_are_refused(evaluated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, root, _ = evaluated
    monkeypatch.setattr(maps, "made_from", lambda folder: ("a hash of other weights",))
    with pytest.raises(UserError, match=r"has other weights .*make eval PRESET=mini MODEL=sft"):
        policy_probes.measure(cfg, "sft", root)
