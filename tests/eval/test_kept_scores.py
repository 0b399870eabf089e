"""Scores of other judges are kept, and come back with their judges; a limit of tokens makes no other judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval import kept_scores, models, rescore, run_folder
from eval.run import evaluation_judges
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.policy.model_files import PixelBounds
from fgrpo.runs import Run
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed
from tests.eval.test_chain import checkpoint, engine

JUDGED = (
    "judges.evaluation.backend=openai",
    "judges.evaluation.model=j",
    'judges.evaluation.endpoints=["http://127.0.0.1:9/v1"]',
    "judges.extraction.backend=oracle",
)
PAID = {"scores.jsonl": '{"id": "a"}\n', "verdicts.jsonl": '{"id": "b"}\n'}


@pytest.fixture(autouse=True)
def _bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "bounds", lambda spec, path, config: PixelBounds(784, 12544, 28))


def settled(root: Path, *overrides: str) -> dict[str, str]:
    """The scores that an evaluation finds in its folder under a configuration."""
    config = load("mini", overrides=[*JUDGED, *overrides])
    spec = models.configured("fgrpo", config)
    with Run.open(config, "eval/fgrpo", [], root, run_folder.generation_identity(spec, "hub/x", config)) as run:
        run_folder.settle_scoring(run, evaluation_judges(config, run.path), config, "hub/x", spec)
        (run.path / "generations.jsonl").write_text('{"id": "a"}\n')
        return {name: (run.path / name).read_text() for name in PAID if (run.path / name).exists()}


def paid(root: Path) -> Path:
    assert settled(root) == {}
    folder = root / "mini" / "eval" / "fgrpo"
    for name, text in PAID.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        "judges.evaluation.max_completion_tokens=9999",
        "judges.evaluation.attempts=2",
        "judges.evaluation.engine={gpu_memory_utilization: 0.2}",
    ],
)
def test_what_changes_no_verdict_keeps_the_scores_in_place(tmp_path: Path, change: str) -> None:
    paid(tmp_path)
    assert settled(tmp_path, change) == PAID


@pytest.mark.parametrize(
    "change",
    [
        "judges.evaluation.model=other",
        "judges.evaluation.leave_out=[temperature]",
        "judges.evaluation.engine={quantization: fp8}",
        "judges.evaluation.engine={revision: abc}",
        "judges.extraction.model=another",
    ],
)
def test_scores_of_other_judges_are_kept_and_come_back(
    tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    folder = paid(tmp_path)
    assert settled(tmp_path, change) == {}
    (folder / "scores.jsonl").write_text("of the other\n")
    assert settled(tmp_path) == PAID
    assert settled(tmp_path, change) == {"scores.jsonl": "of the other\n"}
    assert settled(tmp_path) == PAID


def test_a_scoring_file_of_an_older_version_is_of_the_same_judges(tmp_path: Path) -> None:
    folder = paid(tmp_path)
    stored = read_sealed(folder / "scoring.json")
    stored["judges"]["evaluation"]["max_completion_tokens"] = 5
    (folder / "scoring.json").write_text(json.dumps(stored))
    assert settled(tmp_path) == PAID


def test_a_killed_move_is_completed(tmp_path: Path) -> None:
    """Killed after the first file moved: the same judges get it back."""
    folder = paid(tmp_path)
    judges = json.loads((folder / "scoring.json").read_text())["judges"]
    place = kept_scores.place(folder, judges)
    place.mkdir(parents=True)
    (folder / "scores.jsonl").rename(place / "scores.jsonl")
    assert settled(tmp_path) == PAID


def test_a_damaged_record_of_a_killed_move_is_named(tmp_path: Path) -> None:
    (tmp_path / "scores.jsonl").write_text("b\n")
    kept = kept_scores.place(tmp_path, {"judge": "x"})
    kept.mkdir(parents=True)
    (kept / kept_scores.HASHES).write_text("{")
    with pytest.raises(UserError, match=r"hashes\.json is damaged"):
        kept_scores.put_away(tmp_path, {"judge": "x"})
    assert (tmp_path / "scores.jsonl").read_text() == "b\n"


def test_nothing_kept_is_overwritten(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "scores.jsonl").write_text(text)
        kept_scores.put_away(tmp_path, None)
    assert sorted(p.read_text() for p in tmp_path.glob("scored/*/scores.jsonl")) == ["first", "second"]


def test_rescoring_keeps_the_scores_of_another_prompt_or_model(tmp_path: Path) -> None:
    identity = {"judge": {"model": "a"}, "prompts": {"consistency": "1"}}
    rescore._settle_judge(tmp_path, identity)
    (tmp_path / "scores.jsonl").write_text("a")
    rescore._settle_judge(tmp_path, identity)
    assert (tmp_path / "scores.jsonl").read_text() == "a"
    rescore._settle_judge(tmp_path, {**identity, "judge": {"model": "b"}})
    assert not (tmp_path / "scores.jsonl").exists()
    rescore._settle_judge(tmp_path, {**identity})
    assert (tmp_path / "scores.jsonl").read_text() == "a"
    (tmp_path / "judge.json").write_text("")
    with pytest.raises(UserError, match=r"judge\.json is empty or damaged"):
        rescore._settle_judge(tmp_path, identity)
    assert (tmp_path / "scores.jsonl").read_text() == "a"


def test_what_a_sampler_leaves_out_makes_other_answers() -> None:
    plain, other = load("mini"), load("mini", overrides=["engine.leave_out=[top_p, temperature]"])
    same = load("mini", overrides=["engine.leave_out=[temperature, top_p]"])
    spec = models.configured("fgrpo", plain)
    identities = [run_folder.generation_identity(spec, "hub/x", config) for config in (plain, other, same)]
    assert "leave_out" not in identities[0]["engine"] and identities[1] == identities[2] != identities[0]
    own = spec.model_copy(update={"engine": models.EngineOverride(leave_out=("seed",))})
    assert run_folder.generation_identity(own, "hub/x", plain)["engine"]["leave_out"] == ["seed"]


def test_a_summary_of_a_rescored_run_shows_no_key_of_an_address(world: Config, tmp_path: Path) -> None:
    from eval import run

    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    secret = "https://host/v1?api_key=sk-1234567890abcdef"
    judge = world.judges.evaluation.model_copy(update={"endpoints": (secret,)})
    keyed = world.model_copy(update={"judges": world.judges.model_copy(update={"evaluation": judge})})
    out = rescore.rescore(keyed, folder, "oracle")
    assert "sk-1234567890abcdef" not in "".join(p.read_text() for p in out.glob("*.json*"))
    assert json.loads((out / "summary.json").read_text())["judge"]["endpoints"] == ["https://host/v1"]
    assert len(list(read_jsonl(out / "scores.jsonl"))) > 0


def test_damaged_scores_are_named_before_they_are_put_away(tmp_path: Path) -> None:
    """Else their place would record the damage as what was there."""
    folder = paid(tmp_path)
    config = load("mini", overrides=list(JUDGED))
    spec = models.configured("fgrpo", config)
    with Run.open(config, "eval/fgrpo", [], tmp_path, run_folder.generation_identity(spec, "hub/x", config)) as run:
        run.finish([*PAID, "generations.jsonl"])
    (folder / "scores.jsonl").write_text('{"id": "A"}\n')
    with pytest.raises(UserError, match=r"scores\.jsonl is not what its finished stage wrote"):
        settled(tmp_path, "judges.evaluation.model=other")
    assert not (folder / "scored").exists() and (folder / "done").exists()
    (folder / "scores.jsonl").write_text(PAID["scores.jsonl"])
    assert settled(tmp_path, "judges.evaluation.model=other") == {}
    assert settled(tmp_path) == PAID
