"""What the page of a lab says, on results made up here: marks, denominators, ceilings, gaps and the analysis that was mended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.measures import measures
from ops.lab import findings, first_published, report, verdict_text, versions, words
from ops.lab.analysis import Results
from ops.lab.declaration import Lab, Part
from ops.lab.first_published import Mend

PART = {"a": "fgrpo", "b": "grpo-t"}
DECLARED: dict[str, Any] = {
    "title": "t",
    "question": "q",
    "preset": "smoke",
    "stopping": {"rule": "all cells"},
    "primary": {"metric": "inconsistency"},
    "analysis": {"samples": 100},
    "conditions": {"base": {"about": "a"}, "long": {"about": "b"}},
    "methods": {"sft": {}, "grpo-t": {}, "fgrpo": {}, "mr1": {}},
    "grid": [{"conditions": ["base", "long"], "methods": ["sft", "grpo-t", "fgrpo", "mr1"], "seeds": [0, 1, 2]}],
    "hypotheses": {
        "H1": {
            "claim": "more accurate",
            "conditions": ["base", "long"],
            "parts": [{**PART, "metric": "accuracy", "direction": "above"}],
        },
        "H2": {
            "claim": "follows",
            "conditions": ["base"],
            "parts": [{**PART, "metric": "cell/forced/follows_statement", "direction": "above"}],
        },
        "H3": {
            "claim": "another start",
            "conditions": ["base"],
            "parts": [{"a": "mr1", "b": "grpo-t", "metric": "accuracy", "direction": "below"}],
        },
    },
}
RATE = {"sft": 0.5, "grpo-t": 0.5, "fgrpo": 0.9, "mr1": 0.5}
QUESTIONS = 60


def results(conditions: tuple[str, ...] = ("base",), **more: Any) -> Results:
    """Every arm with three seeds; flips are known for a quarter of the answers of fgrpo, and for half of the others'."""
    declared, rng = Lab.model_validate({**DECLARED, **more}), np.random.default_rng(0)
    cells, answers = list[dict[str, Any]](), dict[str, dict[str, list[Any]]]()
    for condition in DECLARED["conditions"]:
        for method, rate in RATE.items():
            for seed in range(3):
                name = f"{condition}/{method}/seed-{seed}"
                cell = {"cell": name, "condition": condition, "method": method, "seed": seed, "state": "done"}
                cells.append({**cell, "cpu_seconds": 1.0, "commit": f"{seed}c0ffee0123456", "dirty": seed == 2})
                if condition not in conditions:
                    cells[-1] = {**cell, "state": "not started", "cpu_seconds": None}
                    continue
                cells[-1] |= {"steps": 10, "forced/follows_statement": 1.0, "forced/direct": 0.5 + 0.1 * seed}
                if method == "fgrpo":
                    cells[-1] |= {"lambda/consistency": 1.0 + seed, "saturated/consistency": 0.1}
                right = (rng.random(QUESTIONS) < rate + 0.02 * seed).astype(float)
                asked = 4 if method == "fgrpo" else 2
                columns: dict[str, list[Any]] = {"kind": [], "benchmark": [], "group": []}
                columns |= {measure.metric: [] for measure in measures()}
                for kind in ("sampled", "greedy"):
                    columns["kind"] += [kind] * QUESTIONS
                    columns["benchmark"] += ["cvb_2d"] * (QUESTIONS // 2) + ["cvb_3d"] * (QUESTIONS // 2)
                    columns["group"] += [f"q{n}" for n in range(QUESTIONS)]
                    for measure in measures():
                        values = [float(n % asked == 0) if n % asked == 0 else None for n in range(QUESTIONS)]
                        columns[measure.metric] += values if measure.metric == "flip" else right.tolist()
                answers[name] = columns
    return Results(declared, cells, answers, {})


def page(found: Results, name: str = "x", seal: dict[str, Any] | None = None) -> str:
    return report.page(name, found, seal, {}, {})


def test_the_findings_come_first_and_count_every_verdict() -> None:
    text = page(results())
    head = text[: text.index("## Declaration")]
    assert "12 of 24 cells are done. Of 4 verdicts (3 hypotheses" in head
    assert "1 supported (H1 in base), 0 refuted, 2 undecided, 1 wait for cells" in head


def test_other_starts_stand_below_the_question_and_at_the_comparisons() -> None:
    text = page(results())
    assert re.search(r"\n\nq\n\n\*\*Not every arm starts from SFT\*\*: `mr1` start", text)
    assert "| H3 | base | undecided | different starts |" in text
    assert "mr1 − grpo-t (different starts)" in text and "fgrpo − grpo-t (different starts)" not in text


def test_a_ceiling_is_named_and_its_cells_are_shown() -> None:
    text = page(results())
    assert "| H2 | base | undecided | every value is 100% | 3 | 1 | 1 |" in text
    assert "(no test: every value is 100%) | > 0 points | 0: +0.0, 1: +0.0, 2: +0.0 | +0.0 |" in text
    assert "| FGRPO | 3 | 100.0 (100.0 to 100.0) | – | 60.0 (50.0 to 70.0) |" in text
    assert "| FGRPO | consistency | 2.000 (1.000 to 3.000) | 10.0 (10.0 to 10.0) |" in text


def test_denominators_stand_beside_the_means() -> None:
    text = page(results())
    sampled = text[text.index("### base, sampled answers") : text.index("### base, greedy answers")]
    behind = sampled[sampled.index("Answers with a value") :]
    assert "| FGRPO | 3 | 60 | 60 | 60 | 60 | 15 | 60 | 60 |" in behind
    assert "| GRPO-T | 3 | 60 | 60 | 60 | 60 | 30 | 60 | 60 |" in behind
    assert "- flip: Among answers whose last statement is wrong" in text


def test_effects_name_their_seeds_and_p_values_have_three_digits() -> None:
    found = results()
    text = page(found)
    effect = found.effect("base", found.lab.hypotheses["H1"].parts[0])
    assert effect is not None
    seeds = ", ".join(f"{seed}: {100 * value:+.1f}" for seed, value in effect.by_seed.items())
    assert f"| > 0 points | {seeds} | {100 * effect.value:+.1f} [" in text
    assert [words.p_value(p) for p in (0.0504, 0.794, 1.0, 0.0009)] == ["0.0504", "0.794", "1", "<0.001"]


def test_power_is_said_per_number_of_hypotheses_and_seeds() -> None:
    text = page(results())
    assert "- 3 hypotheses (base): 4.4 over 3 seeds (without the correction 2.5)" in text
    assert "- 1 hypothesis (long): 2.5 over 3 seeds" in text


def test_tests_over_conditions_have_a_table_of_their_own() -> None:
    text = page(results())
    assert "| H1 | base | not tested: 1 of at least 2 conditions have enough seeds |" in text
    both = page(results(("base", "long")))
    table = both[both.index("### Over conditions (not declared)") :]
    assert re.search(r"\| H1 \| base, long \| supported \| accuracy, sampled, fgrpo − grpo-t: \+\d", table)


def test_an_arm_that_has_not_run_keeps_its_row_in_the_paper_s_tables() -> None:
    text = page(results())
    table2 = text[text.index("### Table 2, base") : text.index("### Table 3")]
    assert "| + additive | 0 | – / 65.0 | – / 4.2 |" in table2 and "| FGRPO | 3 | " in table2
    assert "### Table 2, long" not in text


def test_every_cell_names_its_commit() -> None:
    text = page(results())
    assert "| base/fgrpo/seed-1 | done | `1c0ffee012` |" in text
    assert "| base/fgrpo/seed-2 | done | `2c0ffee012` with changes |" in text


def test_values_that_are_missing_are_named() -> None:
    found = results()
    columns = found.answers["base/fgrpo/seed-1"]
    columns["accuracy"] = [
        None if b == "cvb_3d" else v for b, v in zip(columns["benchmark"], columns["accuracy"], strict=True)
    ]
    text = page(found)
    gap = "fgrpo, seed 1, has no value in cvb_3d"
    assert f"- base, accuracy, sampled, fgrpo − grpo-t: {gap}" in text and f"- base, greedy: {gap}" in text


def test_a_mended_analysis_shows_what_it_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "before the mend" not in page(results())
    monkeypatch.setitem(first_published.MENDS, "x", Mend("abc", "too wide"))
    found = results()
    text = page(found)
    assert "mended after results had been seen** (commit `abc`): too wide." in text and "| before the mend |" in text
    of = findings.of("x", found, None)
    stored = json.loads(report.write_verdicts("x", found, None, tmp_path / "x").read_text())
    assert of.before is not None and of.before[0].p > of.verdicts[0].p
    assert stored["verdicts"][0]["first_published"]["p"] == of.before[0].p
    assert [one["hypothesis"] for one in stored["over_conditions"]] == ["H1"]


@pytest.mark.parametrize(("started", "said"), [("2026-01-01T00:30:00+02:00", "by the clocks"), ("2026-01-01T01:30:00+02:00", "the first cell started 2026")])  # fmt: skip
def test_dates_are_compared_across_time_zones(started: str, said: str) -> None:
    seal = {"commit": "abc", "date": "2025-12-31T23:00:00+00:00", "committed": True, "started": started, "deviations": (), "text": "a: 1"}  # fmt: skip
    text = page(results(), seal=seal)
    assert f"({seal['date']}); {said}" in text or f"of {seal['date']}; {said}" in text


def test_commits_that_the_history_lacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "a" * 40,
        "HEAD",
        *(f"{seed}c0ffee0123456" for seed in range(1, 10)),
    }  # cells of seed 0 name an unknown one
    monkeypatch.setattr(versions, "_git", lambda *words: "x" if words[-1].removesuffix("^{commit}") in known else "")
    change = {"recorded": "d", "commit": "b" * 40, "committed": True, "reason": "a typo", "text": "a: 2"}
    seal = {"commit": "a" * 40, "date": "2025-12-31T23:00:00+00:00", "committed": True, "started": "2026-01-01T00:00:00+00:00",
            "text": "a: 1", "deviations": [change]}  # fmt: skip
    gone = "Not in the history of the repository that wrote this page: `bbbbbbbbbb`, `0c0ffee012`."
    assert gone in page(results(), seal=seal)
    known |= {"b" * 40, "0c0ffee0123456"}
    assert "Not in the history" not in page(results(), seal=seal)
    known.clear()  # a copy without git
    assert versions.unknown_commits(["a" * 40]) == []


def test_what_is_compared_in_words() -> None:
    part = Part.model_validate({**PART, "metric": "inconsistency", "direction": "below", "margin": -0.03})
    assert words.comparison(part) == "inconsistency, sampled, fgrpo − grpo-t" and words.claim(part) == "< 3 points"
    assert words.listed(["a"]) == "a" and words.listed(["a", "b", "c"]) == "a, b and c"
    assert verdict_text.DIFFERENT == "different starts"
