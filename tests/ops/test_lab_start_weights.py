"""Two arms are compared at a seed only if they start from the same SFT weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgrpo.sealed import write_sealed
from ops.lab import archive, runner, start_weights
from ops.lab.cells import Job
from ops.lab.declaration import Part
from tests.ops.test_lab_findings import page, results

PART = Part.model_validate({"metric": "accuracy", "a": "fgrpo", "b": "grpo-t", "direction": "above"})


def job(folder: Path, outputs: dict[str, Any] | None) -> Job:
    if outputs is not None:
        place = folder / "runs" / "mini" / "sft"
        place.mkdir(parents=True)
        write_sealed(place / "manifest.json", {"outputs": outputs})
    return Job("cells/base/fgrpo/seed-0", "cell", folder, ())


def test_the_weights_are_those_of_sft(tmp_path: Path) -> None:
    files = {
        "final/model.safetensors": {"hash": "a"},
        "final/config.json": {"hash": "b"},
        "metrics.jsonl": {"hash": "c"},
    }
    found = start_weights.of_cell(job(tmp_path / "1", files))
    (value,) = found.values()
    assert list(found) == [start_weights.COLUMN] and len(value) == 16
    assert start_weights.of_cell(job(tmp_path / "2", {**files, "metrics.jsonl": {"hash": "d"}})) == found
    assert start_weights.of_cell(job(tmp_path / "3", {**files, "final/model.safetensors": {"hash": "d"}})) != found
    assert start_weights.of_cell(job(tmp_path / "4", {})) == start_weights.of_cell(job(tmp_path / "5", None)) == {}


@pytest.mark.parametrize(
    ("of_fgrpo", "of_grpo_t", "seeds"),
    [
        ({0: "x", 1: "y", 2: "z"}, {0: "x", 1: "y", 2: "z"}, [0, 1, 2]),
        ({0: "x", 1: "y", 2: "z"}, {0: "x", 1: "other", 2: "z"}, [0, 2]),
        ({0: "x", 1: "y", 2: "z"}, {0: "x", 2: "z"}, [0, 2]),  # one was repeated since weights are recorded
        ({0: "x", 2: "z"}, {0: "x", 2: "z"}, [0, 1, 2]),  # both are from before
    ],
)
def test_seeds_of_different_weights_are_left_out_and_named(
    of_fgrpo: dict[int, str], of_grpo_t: dict[int, str], seeds: list[int]
) -> None:
    found = results()
    known = {"fgrpo": of_fgrpo, "grpo-t": of_grpo_t}
    for cell in found.cells:
        cell[start_weights.COLUMN] = known.get(cell["method"], of_grpo_t).get(cell["seed"])
    effect = found.effect("base", PART)
    assert effect is not None and list(effect.by_seed) == seeds
    said = "seed 1: no runs of fgrpo and grpo-t are known to start from the same SFT weights, so it is left out"
    assert (said in effect.gaps) == (said in page(found)) == (1 not in seeds)
    alone = found.compare("base", "accuracy", "sampled", "fgrpo")
    assert alone is not None and alone.seeds == 3, "a mean compares nothing"


def test_a_repeated_cell_says_that_it_starts_from_other_weights() -> None:
    status = runner.Status("done", "k")
    row = {"cell": "c", "sampled/accuracy": 0.5}
    now = {**row, start_weights.COLUMN: "new"}
    assert archive.differences(now, archive.Entry("c", status, row)) == []  # it was not recorded then
    old = archive.Entry("c", status, {**row, start_weights.COLUMN: "old"})
    assert archive.differences(now, old) == ["start_weights: 'new', published 'old'"]
