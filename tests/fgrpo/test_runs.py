"""Run folders: lock, resume, manifests, and what happens when the configuration changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.runs import Run, folder, is_done, require

CONFIG = load("mini")


def finish(root: Path, config=CONFIG, text: str = "x\n", inputs: tuple[Path, ...] = ()) -> Path:
    with Run.open(config, "mcts", inputs, root=root) as run:
        (run.path / "traces.jsonl").write_text(text)
        run.counts["scored"] += 1
        run.finish(["traces.jsonl"], note="n")
        return run.path


def test_done_is_remembered_with_a_manifest(tmp_path: Path) -> None:
    path = finish(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    record = manifest["outputs"].pop("traces.jsonl")
    assert (record["bytes"], record["lines"]) == (2, 1) and len(record["hash"]) == 32
    assert manifest["counts"] == {"scored": 1} and not manifest["outputs"] and manifest["note"] == "n"
    with Run.open(CONFIG, "mcts", root=tmp_path) as run:
        assert run.is_done


def test_a_half_deleted_folder_is_not_done(tmp_path: Path) -> None:
    path = finish(tmp_path)
    (path / "traces.jsonl").unlink()
    with Run.open(CONFIG, "mcts", root=tmp_path) as run:
        assert not run.is_done
    assert not (path / "done").exists()


def test_a_folder_that_lost_a_file_inside_is_not_done(tmp_path: Path) -> None:
    with Run.open(CONFIG, "mcts", root=tmp_path) as run:
        (run.path / "final").mkdir()
        for name in ("model.safetensors", "config.json"):
            (run.path / "final" / name).write_text("x")
        run.finish(["final"])
        assert run.is_done
        (run.path / "final" / "model.safetensors").unlink()
        assert not run.is_done


def test_superseded_folders_never_collide(tmp_path: Path) -> None:
    for k, c_puct in enumerate((2.0, 1.0, 3.0, 4.0)):
        if k == 3:
            (tmp_path / "mini" / ".superseded" / "mcts.0" / "traces.jsonl").unlink()
            (tmp_path / "mini" / ".superseded" / "mcts.0" / "config.json").unlink()
            for file in (tmp_path / "mini" / ".superseded" / "mcts.0").iterdir():
                file.unlink()
            (tmp_path / "mini" / ".superseded" / "mcts.0").rmdir()
        finish(tmp_path, load("mini", overrides=[f"mcts.c_puct={c_puct}"]), text=f"{k}\n")
    superseded = {p.parent.name: p.read_text() for p in tmp_path.glob("mini/.superseded/*/traces.jsonl")}
    assert superseded == {"mcts.0": "2\n", "mcts.1": "1\n"}


def test_another_configuration_supersedes_the_old_folder(tmp_path: Path) -> None:
    finish(tmp_path, text="old\n")
    other = load("mini", overrides=["mcts.c_puct=1.0"])
    with Run.open(other, "mcts", root=tmp_path) as run:
        assert not run.is_done and not (run.path / "traces.jsonl").exists()
    assert (tmp_path / "mini" / ".superseded" / "mcts.0" / "traces.jsonl").read_text() == "old\n"


def test_a_number_of_another_stage_changes_nothing_here(tmp_path: Path) -> None:
    finish(tmp_path)
    with Run.open(load("mini", overrides=["rl.kl_coef=0.5"]), "mcts", root=tmp_path) as run:
        assert run.is_done


def test_changed_input_is_another_run(tmp_path: Path) -> None:
    seed = tmp_path / "seed.jsonl"
    seed.write_text("1\n")
    finish(tmp_path, inputs=(seed,))
    seed.write_text("2\n")
    with Run.open(CONFIG, "mcts", (seed,), root=tmp_path) as run:
        assert not run.is_done


def test_unfinished_work_is_kept_for_the_next_process(tmp_path: Path) -> None:
    with Run.open(CONFIG, "mcts", root=tmp_path) as run, run.append("trees.jsonl") as out:
        out.add({"id": "a"})
    with Run.open(CONFIG, "mcts", root=tmp_path) as run, run.append("trees.jsonl") as out:
        assert "a" in out and not run.is_done


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    code = "import sys; from fgrpo.config import load; from fgrpo.runs import Run; Run.open(load('mini'), 'mcts', root=sys.argv[1])"
    with Run.open(CONFIG, "mcts", root=tmp_path):
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
    assert second.returncode != 0 and "another process is working on" in second.stderr


def test_missing_output_is_not_done(tmp_path: Path) -> None:
    with (
        Run.open(CONFIG, "mcts", root=tmp_path) as run,
        pytest.raises(UserError, match=r"did not write nothing\.jsonl"),
    ):
        run.finish(["nothing.jsonl"])
    assert not (folder(CONFIG, "mcts", tmp_path) / "done").exists()


def test_require_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `make mcts`"):
        require(tmp_path / "traces.jsonl", "mcts")


def test_a_moved_run_root_keeps_what_is_done(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    seed = first / "mini" / "data" / "seed.jsonl"
    seed.parent.mkdir(parents=True)
    seed.write_text("1\n")
    finish(first, inputs=(seed,))
    first.rename(second)
    with Run.open(CONFIG, "mcts", (second / "mini" / "data" / "seed.jsonl",), root=second) as run:
        assert run.is_done


def test_is_done_tells_without_opening_the_folder(tmp_path: Path) -> None:
    """The same answer as `Run.open` gives, with the lock held by another process and nothing changed."""
    seed = tmp_path / "mini" / "data" / "seed.jsonl"
    seed.parent.mkdir(parents=True)
    seed.write_text("one\n")
    assert not is_done(CONFIG, "mcts", tmp_path)
    path = finish(tmp_path, inputs=(seed,))
    with Run.open(CONFIG, "mcts", [seed], root=tmp_path):
        assert is_done(CONFIG, "mcts", tmp_path) and is_done(CONFIG, "mcts", tmp_path, [seed])
    assert not is_done(load("mini", overrides=["mcts.simulations=3"]), "mcts", tmp_path)  # another configuration
    assert not is_done(CONFIG, "mcts", tmp_path, [])  # other inputs
    seed.write_text("two\n")
    assert not is_done(CONFIG, "mcts", tmp_path)  # the same input with other content
    seed.write_text("one\n")
    (path / "traces.jsonl").write_text("longer than it was\n")
    assert not is_done(CONFIG, "mcts", tmp_path) and (path / "done").exists()
    (path / "traces.jsonl").write_text("x\n")
    assert is_done(CONFIG, "mcts", tmp_path)
    seed.unlink()
    assert not is_done(CONFIG, "mcts", tmp_path)


def test_an_input_outside_the_root_is_left_to_the_stage(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "rows.jsonl"
    outside.parent.mkdir()
    outside.write_text("one\n")
    root = tmp_path / "runs"
    finish(root, inputs=(outside,))
    assert not is_done(CONFIG, "mcts", root) and is_done(CONFIG, "mcts", root, [outside])
