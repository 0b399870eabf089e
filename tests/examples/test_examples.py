"""The examples run offline on a CPU, and so does the README's script for a model of one's own."""

from __future__ import annotations

import itertools
import os
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import trl

from examples.tiny import ON_A_CPU, tiny_model

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def test_drop_in(capsys: pytest.CaptureFixture[str]) -> None:
    out = runpy.run_module("examples.drop_in", run_name="__main__")
    assert out["trainer"].state.global_step == 10 and isinstance(out["trainer"], trl.GRPOTrainer)
    multiplier = out["trainer"].dual.lam["brief"]
    assert multiplier != 1.0 and f"the multiplier of `brief` is {multiplier:.3f}" in capsys.readouterr().out


def test_own_constraint(capsys: pytest.CaptureFixture[str]) -> None:
    out = runpy.run_module("examples.own_constraint", run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" +\d+ ", line)]
    shown = [(row[1], float(row[3])) for row in rows]
    assert len(shown) == 16 and shown[0][1] == 1.0
    pairs = list(itertools.pairwise(shown))
    moves = [(float(mean), after - before) for (mean, before), (_, after) in pairs if mean != "–" and after != before]
    assert moves and all((mean < 0.9) == (move > 0) for mean, move in moves)  # up below the threshold, down above it
    assert out["one_side"](["left", "left right", "the box", ""]) == [1.0, 0.0, None, None]


def test_two_constraints(tmp_path: Path) -> None:
    """Each multiplier rises below its threshold and falls above it; the plot shows both."""
    import examples.two_constraints as two_constraints

    trainer = two_constraints.train(steps=12)
    rows = two_constraints.rows_of(trainer)
    assert len(rows) == 12
    for constraint in two_constraints.CONSTRAINTS:
        name = constraint.reward
        later = [*(row[f"lambda/{name}"] for row in rows[1:]), trainer.dual.lam[name]]
        for row, after in zip(rows, later, strict=True):
            moved = after - row[f"lambda/{name}"]
            assert moved == pytest.approx(0.2 * (constraint.tau - row[f"constraint/{name}/mean"]), abs=1e-6)
    assert {row["constraint/brief/n"] for row in rows} == {32.0}
    assert two_constraints.brief(["left", "a b c d e f g h"]) == [7 / 8, 0.0]
    assert two_constraints.scenic(["box box", "lamp of box", "left", ""]) == [0.5, 1.0, 0.0, None]
    two_constraints.draw(rows, tmp_path / "new" / "two.png")
    assert (tmp_path / "new" / "two.png").stat().st_size > 10_000


def test_the_readmes_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code block as it is printed; only the model's name and the device differ here."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "tiny")
    name = re.search(r'"([\w.-]+/[\w.-]+)"', code)
    assert name is not None
    # transformers would choose Qwen2's own tokenizer class by the model type, which cannot read this one
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.chdir(tmp_path)
    genuine = trl.GRPOConfig

    def on_a_cpu(*args: Any, **more: Any) -> trl.GRPOConfig:
        return genuine(*args, **{**ON_A_CPU, **more})

    monkeypatch.setattr(trl, "GRPOConfig", on_a_cpu)
    scope: dict[str, Any] = {}
    exec(compile(code.replace(name[1], str(tmp_path / "tiny")), "README.md", "exec"), scope)
    assert scope["trainer"].state.global_step > 0 and scope["trainer"].dual.lam
