"""The shipped backbone: small, documented, and as capable as the demo requires."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("torch")

from fgrpo.policy import loading
from miniworld import backbone_eval, fast
from miniworld import questions as qs
from miniworld.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"
LIMIT = 10 * 1024 * 1024  # bytes


def test_provenance_and_size() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= LIMIT
    provenance = json.loads((FOLDER / "provenance.json").read_text())
    assert {"command", "seed", "recipe", "data_sha256", "cpu_seconds", "versions", "figures"} <= set(provenance)
    assert provenance["command"].startswith("python -m miniworld.train_backbone")
    assert len(provenance["data_sha256"]) == 64
    recipe = json.loads(json.dumps(asdict(Recipe()), default=dict))
    assert provenance["recipe"] == recipe, "recipe.py changed: train the backbone again (make backbone)"


def test_a_direct_answer_ends_at_its_closing_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy may write on after it; evaluation stops there."""
    asked = [qs.make("hrel", random.Random(seed)) for seed in range(4)]
    good = [f"<answer>{q.answer}</answer>" for q in asked]
    texts = [
        good[0],
        f"{good[1]}\n<think>The red",
        f"<answer>{asked[2].answer} side</answer>",
        f"<answer>{asked[3].answer}",
    ]
    monkeypatch.setattr(backbone_eval, "complete", lambda *given, **named: texts)
    assert backbone_eval.direct(None, fast.Codec(), backbone_eval.Exam(asked, [])) == [True, True, False, False]


def test_figures_hold_on_fresh_scenes() -> None:
    """Direct answers well above chance, well-formed replies, answers that follow statements (new seed, loose bounds)."""
    model, _ = loading.load_policy(FOLDER)
    codec = fast.Codec()
    exam = backbone_eval.Exam.draw(model.model.visual, qs.CORE, 32, seed=99)
    right = backbone_eval.direct(model, codec, exam)
    assert sum(right) / len(right) > 0.65
    scores, _ = backbone_eval.reasoned(model, codec, exam, sampled=False)
    assert scores["format"] is not None and scores["format"] > 0.9
    assert scores["accuracy"] is not None and scores["accuracy"] > 0.55
    assert backbone_eval.probe(model, codec, exam, random.Random(0))["follows_statement"] > 0.8


def test_judge_counts_a_planted_contradiction() -> None:
    rng = random.Random(0)
    q = qs.make("hrel", rng)
    wrong = next(c for c in q.choices if c != q.answer)
    true = backbone_eval.judge(q, qs.trace(q))
    assert true == {
        "format": 1.0,
        "accuracy": 1.0,
        "inconsistency": 0.0,
        "statement": 1.0,
        "semantic": 1.0,
        "spatial": 1.0,
    }
    flipped = backbone_eval.judge(q, qs.write_trace([*qs.steps(q)[:-1], qs.conclusion(q, wrong)], q.answer))
    assert (flipped["accuracy"], flipped["inconsistency"], flipped["statement"], flipped["flip"]) == (
        1.0,
        1.0,
        0.0,
        1.0,
    )
    assert flipped["semantic"] == pytest.approx(2 / 3)
    assert backbone_eval.judge(q, "left") == {"format": 0.0, "accuracy": 0.0}
