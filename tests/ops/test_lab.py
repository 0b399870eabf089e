"""The laboratory from declaration to page, with stand-ins for the stages: expansion, results, hand-overs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from eval import summary
from eval.measured import LINES
from fgrpo.config import load as load_config
from fgrpo.errors import UserError
from fgrpo.files import json_line, write_jsonl
from fgrpo.runs import write_json
from fgrpo.sealed import write_sealed
from fgrpo.shards import Shard
from fgrpo.types import EvalRecord, Score
from ops.lab import cells, declaration, figures, report, results, runner
from ops.lab.analysis import Results
from ops.lab.cells import Cell, Job
from ops.lab.declaration import Lab

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ("cvb_2d", "cvb_3d")
QUESTIONS = 60
# Of 60 answers, how many have the score; odd seeds of fgrpo have one more.
COUNTS = {"sft": {"accuracy": 24, "consistency": 50}, "grpo-t": {"accuracy": 32, "consistency": 28}, "fgrpo": {"accuracy": 54, "consistency": 54}}  # fmt: skip
PART = {"a": "fgrpo", "b": "grpo-t"}
DECLARED: dict[str, Any] = {
    "title": "t",
    "question": "q",
    "preset": "smoke",
    "stopping": {"rule": "all cells"},
    "primary": {"metric": "inconsistency"},
    "analysis": {"samples": 300},
    "probe_questions": 0,
    "backbones": {"weak": {"seed": 1, "direct_steps": 9, "follow_steps": 0}},
    "conditions": {
        "base": {"about": "a"},
        "long": {"about": "b", "set": ["rl.max_steps=8"]},
        "weak": {"about": "c", "backbone": "weak"},
    },
    "methods": {"sft": {}, "grpo-t": {}, "fgrpo": {}, "zero": {"of": "fgrpo", "set": ["rl.masked=zero"]}},
    "grid": [
        {"conditions": ["base"], "methods": ["sft", "grpo-t", "fgrpo"], "seeds": [0, 1, 2]},
        {"conditions": ["long", "weak"], "methods": ["fgrpo", "zero"], "seeds": [0, 1]},
    ],
    "hypotheses": {
        "H1": {
            "claim": "less inconsistent",
            "conditions": ["base"],
            "parts": [{**PART, "metric": "inconsistency", "direction": "below"}],
        },
        "H2": {
            "claim": "more accurate",
            "conditions": ["base"],
            "parts": [{**PART, "metric": "accuracy", "direction": "above"}],
        },
        "H3": {
            "claim": "its multiplier reaches the bound",
            "conditions": ["base"],
            "parts": [{"metric": "cell/saturated/consistency", "a": "fgrpo", "direction": "above", "margin": 0.2}],
        },
    },
}


def lab(**more: Any) -> Lab:
    return Lab.model_validate({**DECLARED, **more})


# --- expansion ---------------------------------------------------------------------------------------------------------


def test_cells_come_in_order_of_priority_and_share_chains(tmp_path: Path) -> None:
    plan = cells.plan(lab(), tmp_path)
    names = [cell.name for cell in plan.of_cell]
    assert names[:4] == ["base/sft/seed-0", "base/grpo-t/seed-0", "base/fgrpo/seed-0", "base/sft/seed-1"]
    assert len(names) == 9 + 8
    assert plan.chain_of(Cell("long", "zero", 1)) == plan.chain_of(Cell("base", "sft", 1)) == "chains/base/seed-1"
    assert plan.chain_of(Cell("weak", "fgrpo", 0)) == "chains/weak/seed-0"
    order = [job.name for job in plan.jobs]
    assert all(order.index(need) < order.index(job.name) for job in plan.jobs for need in job.needs)
    assert len({job.folder for job in plan.jobs}) == len(plan.jobs)


def words(job: Job) -> list[str]:
    return [" ".join(command) for command in job.commands]


def test_overrides_reach_the_commands_of_their_cell_alone(tmp_path: Path) -> None:
    plan = cells.plan(lab(), tmp_path)
    training, evaluation = words(plan.of_cell[Cell("long", "zero", 1)])
    for command in (training, evaluation):
        assert "--method fgrpo" in command and "rl.max_steps=8" in command and "rl.masked=zero" in command
        assert " seed=1 " in command and f"data.root={tmp_path}/worlds/base/data" in command
    assert "rl.train" in training and "eval.run" in evaluation and "--model fgrpo" in evaluation
    assert all("masked" not in w and "max_steps" not in w for w in words(plan.of_cell[Cell("base", "fgrpo", 1)]))
    by_name = {job.name: job for job in plan.jobs}
    assert all("masked" not in w for w in words(by_name["chains/weak/seed-0"]))
    (backbone,) = words(by_name["backbones/weak"])
    assert "--seed 1 --direct-steps 9 --follow-steps 0" in backbone
    out = re.search(r"--out (\S+)", backbone)
    assert out and f"models.base={out[1]} models.teacher={out[1]}" in words(by_name["chains/weak/seed-0"])[0]
    (world,) = words(by_name["worlds/base"])
    assert world.count("seed=") == 1 and "seed=0" in world  # one world for all seeds


def test_arms_that_start_from_the_anchored_model_share_it_and_wait_for_it(tmp_path: Path) -> None:
    methods = {**DECLARED["methods"], "anchor": {}, "mr1": {}, "late": {"of": "grpo-t", "set": ["rl.start=anchor"]}}
    grid = [{"conditions": ["base", "long"], "methods": ["sft", "anchor", "mr1", "late"], "seeds": [1]}]
    part = {"metric": "accuracy", "a": "mr1", "b": "sft", "direction": "above"}
    claims = {"H1": {"claim": "c", "conditions": ["base"], "parts": [part]}}
    plan = cells.plan(lab(methods=methods, grid=grid, hypotheses=claims), tmp_path)
    by_name = {job.name: job for job in plan.jobs}
    assert [name for name in by_name if name.startswith("anchors/")] == ["anchors/base/seed-1"]
    anchor = by_name["anchors/base/seed-1"]
    (command,) = words(anchor)
    assert "sft.anchor" in command and " seed=1 " in command and anchor.needs[0] == "chains/base/seed-1"
    assert {link.name for link, _ in anchor.links} == {"data", "mcts", "sft"}
    for condition in ("base", "long"):
        for method in ("anchor", "mr1", "late"):
            job = by_name[f"cells/{condition}/{method}/seed-1"]
            assert "anchors/base/seed-1" in job.needs and "chains/base/seed-1" in job.needs
            targets = {link.name: target for link, target in job.links}
            assert targets["anchor"] == anchor.folder / "runs" / "smoke" / "anchor"
            assert targets["sft"] == tmp_path / "chains/base/seed-1/runs/smoke/sft"
        assert "anchors/base/seed-1" not in by_name[f"cells/{condition}/sft/seed-1"].needs
    with pytest.raises(UserError, match="changes what comes before RL"):
        cells.plan(
            lab(methods={**methods, "mr1": {"set": ["anchor.weight=2"]}}, grid=grid, hypotheses=claims), tmp_path
        )


def test_shards_hold_every_cell_once_and_no_chain_twice(tmp_path: Path) -> None:
    plan = cells.plan(lab(), tmp_path)
    parts = [plan.shard(Shard(i, 3)) for i in (1, 2, 3)]
    assert sorted(cell.name for part in parts for cell in part.of_cell) == sorted(c.name for c in plan.of_cell)
    chains = [{job.name for job in part.jobs if job.kind == "chain"} for part in parts]
    assert not chains[0] & chains[1] and not chains[1] & chains[2] and not chains[0] & chains[2]


def test_one_cell_takes_what_it_needs_alone(tmp_path: Path) -> None:
    plan = cells.plan(lab(), tmp_path)
    one = plan.only([cells.cell_named(plan, "weak/zero/seed-1")])
    assert [job.name for job in one.jobs] == [
        "worlds/base",
        "backbones/weak",
        "chains/weak/seed-1",
        "cells/weak/zero/seed-1",
    ]
    with pytest.raises(UserError, match="weak/zero/seed-1"):
        cells.cell_named(plan, "weak/zer/seed-1")


def test_what_a_change_of_the_declaration_makes_anew(tmp_path: Path) -> None:
    before = {job.name: job.key for job in cells.plan(lab(), tmp_path).jobs}
    conditions = {**DECLARED["conditions"], "long": {"about": "b", "set": ["rl.max_steps=9"]}}
    after = {job.name: job.key for job in cells.plan(lab(conditions=conditions), tmp_path).jobs}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"cells/long/{m}/seed-{s}" for m in ("fgrpo", "zero") for s in (0, 1)}
    weaker = {"weak": {"direct_steps": 8}}
    after = {job.name: job.key for job in cells.plan(lab(backbones=weaker), tmp_path).jobs}
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "weak" in name}


def test_bad_declarations(tmp_path: Path) -> None:
    def with_set(*texts: str) -> Lab:
        return lab(methods={**DECLARED["methods"], "zero": {"of": "fgrpo", "set": list(texts)}})

    with pytest.raises(UserError, match="changes what comes before RL"):
        cells.plan(with_set("sft.learning_rate=0.1"), tmp_path)
    with pytest.raises(UserError, match=r"rl\.maskd"):
        cells.plan(with_set("rl.maskd=zero"), tmp_path)
    with pytest.raises(UserError, match="fgrpoo"):
        cells.plan(lab(methods={**DECLARED["methods"], "zero": {"of": "fgrpoo"}}), tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/lab").glob("*.yaml")))
def test_the_declared_labs_expand(name: str, tmp_path: Path) -> None:
    declared = declaration.load(name)
    plan = cells.plan(declared, tmp_path)
    assert plan.of_cell and set(declaration.notes(name, declared)) <= {*declared.hypotheses, declaration.OF_CELLS}


def test_the_main_lab_has_the_cells_that_it_is_for() -> None:
    declared = declaration.load("main")
    every = cells.cells(declared)
    full = [
        c
        for c in declared.conditions
        if all(Cell(c, m, s) in every for m in ("sft", "grpo-t", "fgrpo") for s in range(5))
    ]
    assert len(full) >= 3 and list(declared.hypotheses) == [f"H{n}" for n in range(1, 20)]
    others = set(declared.methods) - {"backbone-direct", "backbone-cot"}
    assert all(Cell("mini", m, s) in every for m in others for s in range(3))
    assert len({b.seed for b in declared.backbones.values()}) >= 2


# --- declaration -------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=t", "-c", "user.email=t@t")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_change_after_the_first_cell_is_refused_or_recorded(tmp_path: Path) -> None:
    file, top = tmp_path / "x.yaml", tmp_path / "lab"
    file.write_text("a: 1\n")
    assert declaration.declared_by(file)["commit"] is None
    git(tmp_path, "init")
    git(tmp_path, "add", "x.yaml")
    git(tmp_path, "commit", "-m", "declare")
    first = declaration.seal(top, file)
    assert first["committed"] and len(first["commit"]) == 40
    assert declaration.seal(top, file) == first
    file.write_text("a: 2\n")
    with pytest.raises(UserError, match="was changed after the first cell started"):
        declaration.seal(top, file)
    changed = declaration.seal(top, file, "a typo")
    assert changed["sha256"] == first["sha256"] and [d["reason"] for d in changed["deviations"]] == ["a typo"]
    assert not changed["deviations"][0]["committed"]
    assert declaration.seal(top, file) == changed
    assert (changed["text"], changed["deviations"][0]["text"]) == ("a: 1\n", "a: 2\n")
    (top / declaration.SEAL).write_text((top / declaration.SEAL).read_text().replace("a: 2", "a: 3"))
    with pytest.raises(UserError, match=r"damaged.*a text differs from its SHA-256"):
        declaration.seal(top, file)
    for text in ('{"sha256": "x", "text": 1, "deviations": []}', '{"sha256": "x", "deviations": []}', "[]", "{"):
        (top / declaration.SEAL).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            declaration.seal(top, file)
    write_json(top / declaration.SEAL, changed)
    file.write_text("a: 1\n")  # back again: that is a change too
    with pytest.raises(UserError, match="was changed"):
        declaration.seal(top, file)


# --- results -----------------------------------------------------------------------------------------------------------


def records(of: str, counts: Mapping[str, int], seed: int) -> list[EvalRecord]:
    out = []
    for kind in ("greedy", "sampled"):
        for benchmark in BENCHMARKS:
            for n in range(QUESTIONS):
                place = (n * 7 + seed) % QUESTIONS
                more = seed % 2 if of == "fgrpo" else 0
                scores = {name: Score.of(float(place < count + more)) for name, count in counts.items()}
                name = f"{benchmark}/test/{n}"
                meta = {"kind": kind, "group": name, "finish": "stop", "answer": "a", "answer_from": "rules"}
                out.append(EvalRecord(name + ("" if kind == "greedy" else "#s0"), benchmark, of, name, scores, meta))
    return out


def leave_results(declared: Lab, cell: Cell, job: Job, counts: Mapping[str, int]) -> None:
    """What the stages of a cell leave behind."""
    of = declared.of(cell.method)
    runs = job.folder / "runs" / declared.preset
    folder = runs / "eval" / of
    folder.mkdir(parents=True)
    found = records(of, counts, cell.seed)
    write_jsonl(folder / "scores.jsonl", (r.to_dict() for r in found))
    config = load_config("smoke", "fgrpo", ["eval.bootstrap_samples=20"])
    write_json(
        folder / "summary.json",
        {"model": of, "title": of, "mode": "think", **summary.summarise(found, [], config.eval)},
    )
    write_sealed(folder / "manifest.json", {"outputs": {}, "commit": "c0ffee", "dirty": False})
    (folder / "done").touch()
    if of != "sft":
        (runs / f"rl-{of}").mkdir()
        lines = [
            {"step": s, "accuracy": s / 10, "inconsistency": 0.2, "lambda/consistency": s / 2,
             "constraint/consistency/mean": 0.9, "constraint/consistency/saturated": float(s > 2)}
            for s in (1, 2, 3, 4)
        ]  # fmt: skip
        (runs / f"rl-{of}" / "metrics.jsonl").write_text("".join(json_line(line) + "\n" for line in lines))
        checkpoint = runs / f"rl-{of}" / "checkpoints" / "checkpoint-4"
        checkpoint.mkdir(parents=True)
        write_sealed(runs / f"rl-{of}" / "manifest.json", {"outputs": {}})
        (runs / f"rl-{of}" / "done").touch()


def laboratory(top: Path, counts: Mapping[str, Mapping[str, int]] = COUNTS) -> tuple[Lab, cells.Plan]:
    """The first block of the lab as finished."""
    declared = lab()
    plan = cells.plan(declared, top)
    for cell, done in plan.of_cell.items():
        if cell.condition == "base":
            leave_results(declared, cell, done, counts[cell.method])
            results.finish_cell(declared, cell, done)
            write_json(
                done.folder / runner.STATUS,
                vars(runner.Status("done", done.key, seconds=9.0, cpu_seconds=8.0, started="t")),
            )
    return declared, plan


def outcomes(declared: Lab, plan: cells.Plan, top: Path) -> dict[str, str]:
    results.collect(declared, plan, top)
    return {v.hypothesis: v.outcome for v in Results.read(declared, top).verdicts()}


def test_a_row_per_declared_cell_whatever_became_of_it(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path)
    failed = plan.of_cell[Cell("long", "zero", 1)]
    failed.folder.mkdir(parents=True)
    write_json(
        failed.folder / runner.STATUS, vars(runner.Status("failed", failed.key, "rl.train, signal 9", started="t"))
    )
    results.collect(declared, plan, tmp_path)
    rows = {row["cell"]: row for row in pq.read_table(tmp_path / results.CELLS).to_pylist()}
    assert list(rows) == [cell.name for cell in plan.of_cell]
    assert (rows["long/zero/seed-1"]["state"], rows["long/zero/seed-1"]["reason"]) == ("failed", "rl.train, signal 9")
    assert rows["weak/fgrpo/seed-0"]["state"] == "not started"
    row = rows["base/fgrpo/seed-1"]
    assert (row["state"], row["steps"], row["lambda/consistency"], row["saturated/consistency"]) == (
        "done",
        4,
        2.0,
        0.5,
    )
    assert row["sampled/accuracy"] == pytest.approx(55 / 60) and row["greedy/inconsistency"] == pytest.approx(5 / 60)
    assert (row["seconds"], row["cpu_seconds"], row["commit"]) == (9.0, 8.0, "c0ffee")
    assert rows["base/sft/seed-0"]["steps"] is None and rows["base/sft/seed-0"]["sampled/flip"] is None
    assert not list(tmp_path.glob("cells/**/checkpoints"))
    answers = pq.read_table(tmp_path / results.QUESTIONS)
    assert answers.num_rows == 9 * 2 * len(BENCHMARKS) * QUESTIONS


def test_effects_are_those_of_the_answers(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path)
    results.collect(declared, plan, tmp_path)
    found = Results.read(declared, tmp_path).effect("base", declared.hypotheses["H2"].parts[0])
    assert found is not None and found.value == pytest.approx(67 / 180)
    assert found.by_seed == pytest.approx({0: 22 / 60, 1: 23 / 60, 2: 22 / 60})


def test_exchanged_results_exchange_the_verdicts(tmp_path: Path) -> None:
    right = laboratory(tmp_path / "right")
    crossed = laboratory(tmp_path / "crossed", {**COUNTS, "fgrpo": COUNTS["grpo-t"], "grpo-t": COUNTS["fgrpo"]})
    # H3: every seed is at its bound for two of four steps, so there is no test
    assert outcomes(*right, tmp_path / "right") == {"H1": "supported", "H2": "supported", "H3": "undecided"}
    assert outcomes(*crossed, tmp_path / "crossed") == {"H1": "refuted", "H2": "refuted", "H3": "undecided"}
    metrics = {m: {"accuracy": c["consistency"], "consistency": c["accuracy"]} for m, c in COUNTS.items()}
    metrics["fgrpo"] = {"accuracy": 54, "consistency": 10}
    swapped = laboratory(tmp_path / "swapped", metrics)
    assert outcomes(*swapped, tmp_path / "swapped") == {"H1": "refuted", "H2": "supported", "H3": "undecided"}


def test_what_is_measured_on_the_policy_reaches_effects_and_page(tmp_path: Path) -> None:
    """Per answer 0.9 and a hundredth per seed for fgrpo, 0.6 for the others, and none for the second benchmark."""
    part = {**PART, "metric": "probe/evidence_margin", "kind": "greedy", "direction": "above", "margin": 0.2}
    declared = lab(probe_answers=7, hypotheses={"H1": {"claim": "c", "conditions": ["base"], "parts": [part]}})
    plan = cells.plan(declared, tmp_path)
    for cell, job in plan.of_cell.items():
        command = next(w for w in words(job) if "ops.policy_probes" in w)
        assert f"--model {declared.of(cell.method)} --limit 7" in command
        if cell.condition != "base":
            continue
        leave_results(declared, cell, job, COUNTS[cell.method])
        folder = job.folder / "runs" / "smoke" / "eval" / declared.of(cell.method)
        with pytest.raises(UserError, match="probe"):
            results.finish_cell(declared, cell, job)
        value = 0.9 + 0.01 * cell.seed if cell.method == "fgrpo" else 0.6
        lines = []
        for benchmark in BENCHMARKS:
            score = Score.of(value) if benchmark == BENCHMARKS[0] else Score.not_applicable("no boxes")
            lines += [
                {"id": f"{benchmark}/test/{n}", "sample_id": "", "scores": {"evidence_margin": score.to_dict()}}
                for n in range(7)
            ]
        write_jsonl(folder / LINES, lines)
        results.finish_cell(declared, cell, job)
        status = runner.Status("done", job.key, seconds=9.0, cpu_seconds=8.0, started="t")
        write_json(job.folder / runner.STATUS, vars(status))
    results.collect(declared, plan, tmp_path)
    found = Results.read(declared, tmp_path)
    effect = found.effect("base", declared.hypotheses["H1"].parts[0])
    assert effect is not None and effect.value == pytest.approx(0.31)
    assert outcomes(declared, plan, tmp_path) == {"H1": "supported"}
    page = report.page("x", found, None, {}, {})
    assert re.search(r"## Measured on the policies.*\| FGRPO \| 3 \| 0\.910 ±0\.025 \| – ", page, re.S)
    assert "probe/evidence margin, greedy, fgrpo − grpo-t > 0.2" in page and "+0.310 [+0.285, +0.335]" in page
    with pytest.raises(ValueError, match="evidence_margn"):
        lab(
            hypotheses={
                "H1": {"claim": "c", "conditions": ["base"], "parts": [{**part, "metric": "probe/evidence_margn"}]}
            }
        )


def test_a_cell_of_another_declaration_does_not_count(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path)
    done = plan.of_cell[Cell("base", "fgrpo", 0)]
    write_json(done.folder / runner.STATUS, vars(runner.Status("done", "another key", started="t")))
    rows = {row["cell"]: row for row in results.collect(declared, plan, tmp_path)}
    assert rows["base/fgrpo/seed-0"]["state"] == "not started"
    assert "another declaration" in rows["base/fgrpo/seed-0"]["reason"]
    assert outcomes(declared, plan, tmp_path)["H2"] == "undecided"  # two seeds of at least three


def test_the_page(tmp_path: Path) -> None:
    declared, plan = laboratory(tmp_path)
    results.collect(declared, plan, tmp_path)
    found = Results.read(declared, tmp_path)
    pictures = figures.draw(found, tmp_path, "")
    assert set(pictures) == {"figure4", "figure8-fgrpo", "figure8-grpo-t"} and all(
        p.stat().st_size for p in pictures.values()
    )
    seal = {"commit": "abc", "date": "2026-01-01T00:00:00+00:00", "committed": True, "started": "2026-01-02T00:00:00+00:00", "text": "a: 1",
            "deviations": [{"recorded": "d", "commit": "def", "committed": True, "reason": "a typo", "text": "a: 2"}]}  # fmt: skip
    text = report.page(
        "x", found, seal, {"H1": "Read this.", "cells": "One ran twice."}, report.relative(pictures, tmp_path)
    )
    for expected in ("Declared by commit `abc`", "a typo", "17 declared: 9 done, 8 not started", "| H1 | base | supported |",
                     "Read this.", "One ran twice.", "configs/lab/notes/x.yaml", "![figure4](figure4.png)", "`make lab LAB=x CELL=<cell> RUNS=again`", "| base/fgrpo/seed-2 | done |"):  # fmt: skip
        assert expected in text, expected
    assert text.count("not written yet") == 2 and "< 0 points" in text and "-0 points" not in text
    table2 = text[text.index("### Table 2, base") :]
    assert re.search(r"\| FGRPO \| 3 \| 90\.6 ±\S+ / 67\.2 \| 9\.4 ±\S+ / 1\.7 \|", table2), table2[:600]
    undeclared = report.page("x", found, {**seal, "committed": False}, {}, {})
    assert "were not declared in advance" in undeclared


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    declared = lab()
    results.collect(declared, cells.plan(declared, tmp_path), tmp_path)
    found = Results.read(declared, tmp_path)
    text = report.page("x", found, None, {}, {})
    assert "17 declared: 17 not started" in text and "No cell has started" in text
    assert "Nothing is tested yet." in text and "- H1 in base: no seed of" in text
    assert "base/fgrpo (seeds 0, 1, 2)" in text


def test_notes_are_of_declared_hypotheses(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"H1": "text", "H9": "text"}))
    with pytest.raises(UserError, match="H9"):
        declaration.notes("x", lab(), tmp_path)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"H1": "text", "cells": "of the cells"}))
    assert declaration.notes("x", lab(), tmp_path) == {"H1": "text", "cells": "of the cells"}
