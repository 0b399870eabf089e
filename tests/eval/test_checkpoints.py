"""Figure 4 from evaluated checkpoints (the paper's way), and from training rollouts where none was evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scripted import Scripted

from eval import curves, figures, miniworld_truth, models, results, run
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.schema import Config

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"


def checkpoint(folder: Path, content: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"content": content}))
    shutil.copy(BACKBONE / "processor_config.json", folder)


@pytest.fixture
def trained(world: Config, tmp_path: Path) -> Path:
    """An RL run that kept steps 2 and 10 and ended at 12, and its SFT."""
    top = tmp_path / world.preset
    checkpoint(top / "sft/final", "sft")
    for step in (10, 2):
        checkpoint(top / f"rl-fgrpo/checkpoints/checkpoint-{step}", str(step))
    checkpoint(top / "rl-fgrpo/final", "end")
    write_jsonl(top / "rl-fgrpo/metrics.jsonl", ({"step": n, "accuracy": 0.5, "inconsistency": 0.2} for n in range(13)))
    return tmp_path


def evaluate(world: Config, root: Path, name: str, inconsistent: float) -> None:
    book = miniworld_truth.book(world.data.root)
    assert book is not None
    run.evaluate(world, name, ["mmvp"], root, Scripted(book, inconsistent=inconsistent))


def test_a_checkpoint_is_a_model_of_its_own(world: Config, trained: Path) -> None:
    assert models.steps("fgrpo", world, trained) == [2, 10] and models.steps("gpt-4o", world, trained) == []
    spec = models.load("fgrpo@10")
    assert spec.title == "FGRPO, step 10"
    assert models.checkpoint(spec, world, trained).endswith("rl-fgrpo/checkpoints/checkpoint-10")
    assert run.with_checkpoints(["fgrpo", "sft"], world, trained) == ["fgrpo", "sft", "fgrpo@2", "fgrpo@10"]


def test_names_that_are_no_checkpoint(world: Config, trained: Path) -> None:
    for name in ("fgrpo@last", "gpt-4o@10", "fgrpo@"):
        with pytest.raises(UserError, match="is no checkpoint: write it as"):
            models.load(name)
    with pytest.raises(UserError, match=r"step 4 is missing .*rl\.keep_checkpoints=null"):
        run.evaluate(world, "fgrpo@4", root=trained)
    with pytest.raises(UserError, match=r"no checkpoint of grpo-t .*keep_checkpoints=null"):
        run.with_checkpoints(["grpo-t"], world, trained)


def test_figure_4_takes_evaluated_checkpoints_and_says_so(world: Config, trained: Path) -> None:
    captions = trained / world.preset / "figures" / results.CAPTION_FILE
    assert [p.name for p in figures.draw(world, trained)] == [
        "figure4.png",
        "figure4.svg",
    ]  # nothing evaluated: training rollouts
    assert "training rollouts" in json.loads(captions.read_text())["figure4"]
    for name, share in (("sft", 0.1), ("fgrpo@2", 0.3), ("fgrpo@10", 0.6), ("fgrpo", 0.8)):
        evaluate(world, trained, name, share)
    found = curves.paths(world, results.find(world, trained), curves.training(world, trained), trained)
    assert list(found) == ["fgrpo"] and list(found["fgrpo"]) == [0, 2, 10, 12]
    assert [r.name for r in found["fgrpo"].values()] == ["sft", "fgrpo@2", "fgrpo@10", "fgrpo"]
    drawn = figures.figure4_checkpoints(found)
    assert drawn is not None
    line = drawn.axes[1].lines[0]
    cells = [r.cell("greedy", "average", "inconsistency") for r in found["fgrpo"].values()]
    assert list(line.get_xdata()) == [0, 2, 10, 12]
    assert list(line.get_ydata()) == [100 * c["value"] for c in cells if c is not None]
    figures.draw(world, trained)
    assert "evaluated checkpoints" in json.loads(captions.read_text())["figure4"]


def test_step_0_is_the_model_that_the_method_starts_from(world: Config, trained: Path) -> None:
    checkpoint(trained / world.preset / "anchor/final", "anchor")
    for name in ("sft", "anchor", "fgrpo@2"):
        evaluate(world, trained, name, 0.2)

    def start() -> str:
        shown = curves.paths(world, results.find(world, trained), {}, trained)
        return shown["fgrpo"][0].name

    assert start() == "sft"
    file = trained / world.preset / "rl-fgrpo" / "config.json"
    stored = {"config": {"rl": {"start": "anchor"}}, "inputs": {}}
    file.write_text(json.dumps(stored))
    assert start() == "anchor"


def test_checkpoints_are_no_rows_of_the_tables(world: Config, trained: Path) -> None:
    for name in ("fgrpo@2", "fgrpo"):
        evaluate(world, trained, name, 0.2)
    assert list(results.find(world, trained)) == ["fgrpo"]
