"""Code counts, its layout does not: which edits of a reward make what it scored stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgrpo import identity, runs
from fgrpo.code_hash import code_hash, code_hashes
from fgrpo.config import load
from fgrpo.errors import UserError

REWARD = '"""A reward."""\nfrom rewards.helper import f\n\nFILE = "words.yaml"\n\n\ndef score(x):\n    """Doc."""\n    return f(x) + 1\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rewards = tmp_path / "rewards"
    rewards.mkdir()
    for name, text in (
        ("own.py", REWARD),
        ("helper.py", "def f(x):\n    return x\n"),
        ("words.yaml", "a: 1\n"),
        ("other.py", "x = 1\n"),
    ):
        (rewards / name).write_text(text)
    return rewards


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("own.py", "+ 1", "+ 2"), ("helper.py", "return x", "return -x"), ("words.yaml", "1", "2")],
)
def test_code_helpers_and_data_count(folder: Path, file: str, old: str, new: str) -> None:
    before = code_hash(folder, "own")
    (folder / file).write_text((folder / file).read_text().replace(old, new))
    assert code_hash(folder, "own") != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("own.py", "A reward", "Another text"), ("own.py", "Doc.", "Longer doc."), ("own.py", "+ 1", "+ 1  # why"),
     ("own.py", "\n\n\n", "\n\n"), ("other.py", "1", "2")],
)  # fmt: skip
def test_words_layout_and_other_modules_do_not(folder: Path, file: str, old: str, new: str) -> None:
    before = code_hash(folder, "own")
    changed = (folder / file).read_text().replace(old, new, 1)
    assert changed != (folder / file).read_text()
    (folder / file).write_text(changed)
    assert code_hash(folder, "own") == before


def test_a_broken_module_has_a_hash_too(folder: Path) -> None:
    (folder / "own.py").write_text("def (")
    assert code_hash(folder, "own")


def test_every_reward_of_this_repository_has_one_and_unknown_names_have_none() -> None:
    found = code_hashes("rewards", ["task", "consistency", "nothing"])
    assert list(found) == ["consistency", "task"] and len(set(found.values())) == 2


def test_an_edited_reward_makes_the_run_that_it_trained_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The miniature presets start anew and say why; the paper's refuse and name the reward. A reward that is not used is no change."""
    config = load("mini", "fgrpo")
    code = dict.fromkeys(("task", "spatial_grounding", "semantic_grounding", "consistency", "other"), "a" * 32)
    monkeypatch.setattr(
        identity, "code_hashes", lambda package, names: {n: code[n] for n in dict.fromkeys(names) if n in code}
    )

    def finish() -> None:
        with runs.Run.open(config, "rl-fgrpo", [], tmp_path) as run:
            (run.path / "metrics.jsonl").write_text("{}\n")
            run.finish(["metrics.jsonl"])

    finish()
    code["other"] = "b" * 32
    assert runs.is_done(config, "rl-fgrpo", tmp_path)
    code["semantic_grounding"] = "b" * 32
    assert not runs.is_done(config, "rl-fgrpo", tmp_path)
    strict = config.model_copy(update={"changed": config.changed.model_copy(update={"finished": "refuse"})})
    with pytest.raises(UserError, match="code of the reward semantic_grounding: aaaaaaaa… -> bbbbbbbb…"):
        runs.Run.open(strict, "rl-fgrpo", [], tmp_path)
    finish()
    assert "code of the reward semantic_grounding" in capsys.readouterr().out
    assert (tmp_path / "mini" / ".superseded" / "rl-fgrpo.0").is_dir()


def test_a_folder_that_records_no_code_stays_valid() -> None:
    """An older version wrote it."""
    old, new = identity.Identity({}), identity.Identity({}, code={"task": "a"})
    assert old.changes(new) == [] and old.same(new) and new.same(old)
    assert [c.key for c in identity.Identity({}, code={"task": "b"}).changes(new)] == ["code of the reward task"]
