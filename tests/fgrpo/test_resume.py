"""What a stage does with a folder of another configuration: nothing is lost, and nothing is restarted without being asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.resume import CHANGES, holds_work
from fgrpo.runs import Run, is_done, require
from fgrpo.sealed import read_sealed
from judges.cache import Cache

CONSTANT = "rl.scheduler=constant"


def opened(root: Path, overrides: Sequence[str] = (), stage: str = "rl-fgrpo", inputs: Sequence[Path] = ()) -> Path:
    with Run.open(load("mini", overrides=overrides), stage, inputs, root) as run:
        return run.path


def with_work(root: Path, overrides: Sequence[str] = (), stage: str = "rl-fgrpo", inputs: Sequence[Path] = ()) -> Path:
    """A folder that holds a checkpoint (training) or a tree (search)."""
    path = opened(root, overrides, stage, inputs)
    if stage == "mcts":
        (path / "trees.jsonl").write_text('{"id": "a"}\n')
    else:
        (path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    return path


def finished(root: Path, overrides: Sequence[str] = (), stage: str = "rl-fgrpo") -> Path:
    path = with_work(root, overrides, stage)
    with Run.open(load("mini", overrides=overrides), stage, root=root) as run:
        (path / "final").mkdir(exist_ok=True)
        (path / "final" / "w").write_text("weights")
        (path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        run.finish(["metrics.jsonl", "final"])
    return path


def superseded(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "mini").glob(".superseded/*"))


@pytest.mark.parametrize(
    "change",
    [
        "rl.save_steps=7",
        "rl.report_to=wandb",
        "rl.keep_checkpoints=9",
        "judges.training.attempts=3",
        "judges.training.max_completion_tokens=9",
        "judges.training.engine={gpu_memory_utilization: 0.2}",
        "launch.port=1234",
    ],
)
def test_a_key_without_effect_resumes(tmp_path: Path, change: str) -> None:
    path = with_work(tmp_path)
    assert opened(tmp_path, [change]) == path and (path / "checkpoints" / "checkpoint-2").is_dir()
    assert not superseded(tmp_path) and not (path / CHANGES).exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rl.micro_batch", "8"),
        ("rl.attention", "eager"),
        ("rl.gradient_checkpointing", "true"),
        ("rl.monitor", "[]"),
        ("rl.max_failed_share", "0.5"),
        ("rl.deepspeed", "configs/deepspeed/zero2.json"),
        ("rl.nonfinite", "skip"),
    ],
)
def test_a_key_that_changes_how_resumes_and_is_recorded(tmp_path: Path, key: str, value: str) -> None:
    path = with_work(tmp_path)
    assert opened(tmp_path, [f"{key}={value}"]) == path and not superseded(tmp_path)
    (entry,) = json.loads((path / CHANGES).read_text())
    assert entry["key"] == key and entry["kind"] == "means" and entry["from"] != entry["to"]
    with Run.open(load("mini", overrides=[f"{key}={value}"]), "rl-fgrpo", root=tmp_path) as run:
        (path / "final").mkdir()
        run.finish(["final"])
    assert json.loads((path / "manifest.json").read_text())["changes"] == [entry]


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("rl-fgrpo", "rl.kl_coef=0.5", "rl.kl_coef: "),
        ("rl-fgrpo", "rl.constraints.consistency.tau=0.1", "rl.constraints.consistency.tau: "),
        ("rl-fgrpo", "prompts.think=think", "content of prompts.think: "),
        ("sft", "sft.batch_size=64", "sft.batch_size x sft.gradient_accumulation: "),
        ("mcts", "mcts.simulations=3", "mcts.simulations: "),
        ("mcts", "engine.leave_out=[temperature]", "engine.leave_out: "),
        ("rl-fgrpo", "judges.training.leave_out=[temperature]", "judges.training.leave_out: "),
        ("rl-fgrpo", "judges.training.engine={quantization: fp8}", "judges.training.engine.quantization: "),
        ("sft", "launch.sft_processes=4", "sft.batch_size x sft.gradient_accumulation: "),
        ("sft", "launch.machines=2", "sft.batch_size x sft.gradient_accumulation: "),
    ],
)
def test_another_experiment_is_refused_with_the_difference_and_two_ways_out(
    tmp_path: Path, stage: str, change: str, words: str
) -> None:
    path = with_work(tmp_path, stage=stage)
    before = sorted(p.name for p in path.rglob("*"))
    with pytest.raises(UserError) as refused:
        opened(tmp_path, [change], stage)
    message = str(refused.value)
    assert words in message and "its own name" in message and "changed.unfinished=resume" in message
    assert sorted(p.name for p in path.rglob("*")) == before and not superseded(tmp_path)
    assert opened(tmp_path, stage=stage) == path  # the old configuration still resumes


def test_the_override_continues_the_folder_and_is_recorded(tmp_path: Path) -> None:
    path = with_work(tmp_path)
    opened(tmp_path, ["rl.kl_coef=0.5", "changed.unfinished=resume"])
    (entry,) = json.loads((path / CHANGES).read_text())
    assert entry["key"] == "rl.kl_coef" and entry["kind"] == "experiment" and not superseded(tmp_path)
    opened(tmp_path, ["rl.kl_coef=0.5"])  # from then on the folder is of the new experiment


def test_a_restart_that_was_asked_for_keeps_the_old_folder(tmp_path: Path) -> None:
    path = with_work(tmp_path)
    opened(tmp_path, ["rl.kl_coef=0.5", "changed.unfinished=restart"])
    assert not (path / "checkpoints").exists() and superseded(tmp_path) == ["rl-fgrpo.0"]


def test_an_unfinished_folder_without_work_starts_anew(tmp_path: Path) -> None:
    path = opened(tmp_path)
    (path / "metrics.jsonl").write_text('{"step": 1}\n')  # no checkpoint: the same command starts from step 0 too
    opened(tmp_path, ["rl.kl_coef=0.5"])
    assert superseded(tmp_path) == ["rl-fgrpo.0"]


def test_a_finished_run_of_another_experiment(tmp_path: Path) -> None:
    """The miniature presets repeat it and keep the old folder; paper presets refuse."""
    finished(tmp_path)
    opened(tmp_path, ["rl.kl_coef=0.5"])
    assert superseded(tmp_path) == ["rl-fgrpo.0"]
    again = tmp_path / "again"
    finished(again)
    with pytest.raises(UserError, match=r"is finished and belongs to another experiment: .*changed\.finished=restart"):
        opened(again, ["rl.kl_coef=0.5", "changed.finished=refuse"])
    assert load("paper-7b").changed.finished == load("paper-3b").changed.finished == "refuse"


def test_deleted_checkpoints_do_not_repeat_a_finished_run(tmp_path: Path) -> None:
    path = finished(tmp_path)
    shutil.rmtree(path / "checkpoints")
    assert is_done(load("mini"), "rl-fgrpo", tmp_path, [])
    with Run.open(load("mini"), "rl-fgrpo", root=tmp_path) as run:
        assert run.is_done


def test_more_steps_extend_a_run_where_the_schedule_allows_it(tmp_path: Path) -> None:
    steps = load("mini").rl.max_steps
    more = [CONSTANT, f"rl.max_steps={steps + 2}"]
    path = finished(tmp_path, [CONSTANT])
    assert not is_done(load("mini", overrides=more), "rl-fgrpo", tmp_path, [])
    opened(tmp_path, more)
    assert not (path / "done").exists() and (path / "checkpoints" / "checkpoint-2").exists()
    assert json.loads((path / CHANGES).read_text())[0]["kind"] == "length" and not superseded(tmp_path)


@pytest.mark.parametrize("change", [["rl.scheduler=cosine", "+2"], ["rl.scheduler=constant", "-2"]])
def test_a_length_that_changes_the_schedule_or_shrinks_is_another_experiment(tmp_path: Path, change: list[str]) -> None:
    scheduler, by = change
    with_work(tmp_path, [scheduler])
    with pytest.raises(UserError, match=r"rl\.max_steps: "):
        opened(tmp_path, [scheduler, f"rl.max_steps={load('mini').rl.max_steps + int(by)}"])


def test_a_run_without_checkpoints_cannot_be_extended(tmp_path: Path) -> None:
    shutil.rmtree(finished(tmp_path, [CONSTANT]) / "checkpoints")
    with pytest.raises(UserError, match="checkpoints are deleted, so it cannot be extended"):
        opened(tmp_path, [CONSTANT, f"rl.max_steps={load('mini').rl.max_steps + 2}"])


def test_the_same_batch_in_smaller_parts_resumes(tmp_path: Path) -> None:
    path = with_work(tmp_path, ["sft.batch_size=8", "sft.gradient_accumulation=1"], "sft")
    opened(tmp_path, ["sft.batch_size=4", "sft.gradient_accumulation=2"], "sft")
    assert {entry["key"] for entry in json.loads((path / CHANGES).read_text())} == {
        "sft.batch_size",
        "sft.gradient_accumulation",
    }


@pytest.mark.parametrize("content", ["", "{", "null", "[]"])
def test_a_damaged_identity_is_named_and_moves_nothing(tmp_path: Path, content: str) -> None:
    path = with_work(tmp_path)
    (path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is missing, empty or damaged"):
        opened(tmp_path)
    assert (path / "checkpoints" / "checkpoint-2").exists() and not superseded(tmp_path)
    opened(tmp_path, ["changed.unfinished=resume"])
    opened(tmp_path)
    assert (path / "checkpoints" / "checkpoint-2").exists() and not superseded(tmp_path)


def test_a_damaged_identity_of_a_finished_run_is_healed_from_its_manifest(tmp_path: Path) -> None:
    path = finished(tmp_path)
    before = (path / "config.json").read_bytes()
    (path / "config.json").write_text("")
    assert is_done(load("mini"), "rl-fgrpo", tmp_path, [])
    with Run.open(load("mini"), "rl-fgrpo", root=tmp_path) as run:
        assert run.is_done
    assert (path / "config.json").read_bytes() == before


def test_linked_and_moved_inputs_are_the_same_inputs(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "sft" / "final"
    real.mkdir(parents=True)
    (real / "config.json").write_text("{}")
    (real / "model.safetensors").write_text("weights")
    inside = tmp_path / "runs" / "mini" / "sft"
    shutil.copytree(real.parent, inside)
    path = with_work(tmp_path / "runs", inputs=[inside / "final"])
    shutil.rmtree(inside)
    inside.symlink_to(real.parent)
    assert opened(tmp_path / "runs", inputs=[inside / "final"]) == path
    assert opened(tmp_path / "runs", inputs=[real]) == path
    (real / "model.safetensors").write_text("WEIGHTS")
    with pytest.raises(UserError, match="input mini/sft/final: "):
        opened(tmp_path / "runs", inputs=[inside / "final"])


def test_inputs_of_one_name_all_count(tmp_path: Path) -> None:
    files = [tmp_path / "data" / part / "rows" / "train.json" for part in ("a", "b")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text(file.parent.parent.name)
    with_work(tmp_path / "runs", stage="mcts", inputs=files)
    files[0].write_text("changed")
    with pytest.raises(UserError, match=r"input rows/train\.json: "):
        opened(tmp_path / "runs", stage="mcts", inputs=files)


def test_a_moved_base_model_is_the_same_model(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("w")
    path = with_work(tmp_path / "runs", [f"models.base={tmp_path / 'here'}"], "sft")
    assert opened(tmp_path / "runs", [f"models.base={tmp_path / 'there'}"], "sft") == path
    (tmp_path / "there" / "model.safetensors").write_text("v")
    with pytest.raises(UserError, match=r"content of models\.base: "):
        opened(tmp_path / "runs", [f"models.base={tmp_path / 'there'}"], "sft")


def test_left_overs_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    path = with_work(tmp_path, stage="mcts")
    (path / "failed.jsonl.part").write_text("{")
    (path / "final.part").mkdir()
    (path / "final.part" / "w").write_text("half")
    opened(tmp_path, stage="mcts")
    assert not list(path.rglob("*.part")) and (path / "trees.jsonl").exists()


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("metrics.jsonl", lambda data: data[:-4], "has 1 complete lines instead of 2"),
        ("metrics.jsonl", lambda data: data.replace(b"1", b"7", 1), "another content"),
        ("final/w", lambda data: b"W" + data[1:], "another content"),
        ("final/w", lambda data: data[:-1], "has 6 bytes instead of 7"),
    ],
)
def test_a_changed_output_is_named_before_use(tmp_path: Path, file: str, damage: object, words: str) -> None:
    path = finished(tmp_path)
    (path / file).write_bytes(damage((path / file).read_bytes()))  # type: ignore[operator]
    for name in {file, file.split("/")[0]}:
        with pytest.raises(UserError) as named:
            require(path / name, "rl-fgrpo")
        assert words in str(named.value) and file in str(named.value) and "make rl-fgrpo" in str(named.value)
    other = "final" if file == "metrics.jsonl" else "metrics.jsonl"
    assert require(path / other, "rl-fgrpo") == path / other
    assert not is_done(load("mini"), "rl-fgrpo", tmp_path, [])
    with Run.open(load("mini"), "rl-fgrpo", root=tmp_path) as run, pytest.raises(UserError, match="is not what its"):
        _ = run.is_done
    assert (path / "done").exists()


def test_finishing_again_gives_the_same_identity(tmp_path: Path) -> None:
    """An evaluation reads the model's content, no manifest with times."""
    path = finished(tmp_path)
    final = path / "final"
    (final / "config.json").write_text("{}")
    evaluation = with_work(tmp_path, stage="mcts", inputs=[final])
    (path / "done").unlink()
    with Run.open(load("mini"), "rl-fgrpo", root=tmp_path) as run:
        (final / "training_args.bin").write_text("another time and path")
        run.finish(["metrics.jsonl", "final"], seconds_of_the_day=1)
    assert opened(tmp_path, stage="mcts", inputs=[final]) == evaluation and not superseded(tmp_path)


def test_folders_of_older_versions_are_the_same_experiment(tmp_path: Path) -> None:
    """Keys that no longer count are still in them, and `leave_out` is not there yet."""
    for stage in ("rl-fgrpo", "mcts"):
        path = with_work(tmp_path, stage=stage)
        stored = read_sealed(path / "config.json")
        judge, engine = stored["config"].get("judges.training"), stored["config"].get("engine")
        for section in filter(None, (judge, engine)):
            assert section.pop("leave_out") == []
        if judge is not None:
            judge["max_completion_tokens"] = 77
        (path / "config.json").write_text(json.dumps(stored))
        assert opened(tmp_path, stage=stage) == path and not superseded(tmp_path)


@pytest.mark.parametrize("name", ["judge_replies.sqlite", "spend.jsonl"])
def test_paid_replies_of_a_training_run_are_work(tmp_path: Path, name: str) -> None:
    path = opened(tmp_path)
    (path / name).write_text('{"model": "m"}\n')
    with pytest.raises(UserError, match="holds unfinished work"):
        opened(tmp_path, ["rl.kl_coef=0.5"])
    assert (path / name).exists() and not superseded(tmp_path)


def test_an_empty_cache_of_replies_is_no_work(tmp_path: Path) -> None:
    cache = Cache(opened(tmp_path) / "judge_replies.sqlite")
    assert not holds_work(cache.path.parent, "rl-fgrpo")
    cache.put("k", "consistency", "m", "reply")
    assert holds_work(cache.path.parent, "rl-fgrpo")
    cache.close()


@pytest.mark.parametrize(("name", "content"), [("manifest.json", ""), ("manifest.json", None), ("metrics.jsonl", None)])
@pytest.mark.parametrize("stage", ["sft", "rl-fgrpo"])
def test_no_run_trains_again_over_its_own_result(tmp_path: Path, stage: str, name: str, content: str | None) -> None:
    path = finished(tmp_path, stage=stage)
    shutil.rmtree(path / "checkpoints")
    (path / name).unlink()
    if content is not None:
        (path / name).write_text(content)
    for _ in range(2):
        with Run.open(load("mini"), stage, root=tmp_path) as run, pytest.raises(UserError, match="train from step 0"):
            _ = run.is_done
    (path / "done").unlink(missing_ok=True)
    with Run.open(load("mini"), stage, root=tmp_path) as run, pytest.raises(UserError, match="train from step 0"):
        _ = run.is_done
    assert (path / "final" / "w").exists()


def test_an_unreadable_manifest_vouches_for_no_input(tmp_path: Path) -> None:
    path = finished(tmp_path)
    for content in ("", "[]", '{"outputs": {"final/w": 3}}', None):
        (path / "manifest.json").unlink(missing_ok=True)
        if content is not None:
            (path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=r"manifest\.json is missing, empty or damaged.*make rl-fgrpo"):
            require(path / "final", "rl-fgrpo")


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", "", '{"config": {}, "inputs": {}, "length": {"rl": 5}}', '{"config": {}, "inputs": {"a": 1}}'],
)
def test_an_identity_of_another_shape_is_restored_from_the_manifest(tmp_path: Path, content: str) -> None:
    path = finished(tmp_path)
    before = (path / "config.json").read_bytes()
    (path / "config.json").write_text(content)
    with Run.open(load("mini"), "rl-fgrpo", root=tmp_path) as run:
        assert run.is_done
    assert (path / "config.json").read_bytes() == before and not superseded(tmp_path)


def test_a_finished_folder_keeps_the_means_that_made_it(tmp_path: Path) -> None:
    path = finished(tmp_path)
    before = (path / "config.json").read_bytes()
    with Run.open(load("mini", overrides=["rl.attention=eager"]), "rl-fgrpo", root=tmp_path) as run:
        assert run.is_done
        assert (path / "config.json").read_bytes() == before and not (path / CHANGES).exists()
        run.reopen()
    assert [c["key"] for c in json.loads((path / CHANGES).read_text())] == ["rl.attention"]
    assert json.loads((path / "config.json").read_text())["means"]["rl.attention"] == "eager"


def test_a_superseded_link_still_points_at_its_folder(tmp_path: Path) -> None:
    path = finished(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(Path("..") / "elsewhere", target_is_directory=True)
    opened(tmp_path, ["rl.kl_coef=0.5"])
    assert (tmp_path / "mini" / ".superseded" / "rl-fgrpo.0" / "final" / "w").is_file()


def test_half_written_files_of_a_rescoring_process_stay(tmp_path: Path) -> None:
    path = opened(tmp_path, stage="eval/fgrpo")
    for name in ("rescored/other/scores.jsonl.part", "scores.jsonl.part"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{")
    opened(tmp_path, stage="eval/fgrpo")
    assert (path / "rescored" / "other" / "scores.jsonl.part").exists() and not (path / "scores.jsonl.part").exists()


@pytest.mark.parametrize(
    ("stage", "advice"), [("sft", "to train anew"), ("rl-fgrpo", "the last checkpoint gives it again")]
)
def test_the_advice_for_a_damaged_model_fits_its_stage(tmp_path: Path, stage: str, advice: str) -> None:
    path = finished(tmp_path, stage=stage)
    (path / "final" / "w").write_text("WEIGHTS")
    with pytest.raises(UserError, match=advice):
        require(path / "final", stage)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(UserError, match="to train anew"):
        require(path / "final", stage)
