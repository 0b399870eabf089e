"""Seed questions by cluster: deterministic, spread over the kinds of questions, new texts before repeated ones."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from data_curation.clustering import select
from fgrpo.errors import UserError

KINDS = (
    "How many {} are on the table in the picture?",
    "Is the {} left or right of the lamp?",
    "What is the man with the {} wearing today?",
)
THINGS = ("cups", "dogs", "boats", "hats", "keys", "pens", "cars", "birds", "shoes", "books")
QUESTIONS = [kind.format(thing) for thing in THINGS for kind in KINDS]


def picked(questions: list[str], count: int, per_cluster: int, seed: int = 0) -> list[int]:
    return [i for cluster in select(questions, count, per_cluster, seed) for i in cluster.picked]


def test_each_kind_of_question_is_represented() -> None:
    chosen = picked(QUESTIONS, 6, 2)
    assert len(chosen) == len(set(chosen)) == 6
    assert {i % 3 for i in chosen} == {0, 1, 2}
    assert sum(c.size for c in select(QUESTIONS, 6, 2, 0)) == len(QUESTIONS)


def test_the_same_seed_picks_the_same_questions() -> None:
    assert picked(QUESTIONS, 9, 3) == picked(QUESTIONS, 9, 3)


def test_repeated_texts_rank_behind_new_ones() -> None:
    questions = [QUESTIONS[0]] * 50 + QUESTIONS[3:30:3]
    chosen = [questions[i] for i in picked(questions, 5, 5)]
    assert len(set(chosen)) == 5


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (5, 5), (10**6, len(QUESTIONS))])
def test_never_more_questions_than_exist(count: int, expected: int) -> None:
    chosen = picked(QUESTIONS, count, 10)
    assert len(chosen) == len(set(chosen)) == expected


def test_no_questions_give_no_clusters() -> None:
    assert select([], 5, 2, 0) == []


def test_a_missing_embedder_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UserError, match=r"not installed; run `pip install sentence-transformers`"):
        select(QUESTIONS, 3, 1, 0, "sentence-transformers", "all-MiniLM-L6-v2")


def test_a_sentence_model_is_loaded_by_name_and_its_failure_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is not pinned; docs/data.md reports results of the real one."""

    class Model:
        def __init__(self, name: str) -> None:
            if name == "nowhere":
                raise OSError("no such folder")

        def encode(self, texts: list[str], **options: object) -> np.ndarray:
            assert options["normalize_embeddings"] is True
            kinds = [next(i for i, kind in enumerate(KINDS) if t.startswith(kind.split("{")[0])) for t in texts]
            return np.eye(3)[kinds]

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    clusters = select(QUESTIONS, 6, 2, 0, "sentence-transformers", "some-model")
    assert sorted(c.size for c in clusters) == [10, 10, 10]
    assert {i % 3 for cluster in clusters for i in cluster.picked} == {0, 1, 2}
    with pytest.raises(UserError, match=r"data\.embedder_model 'nowhere' cannot be loaded \(no such folder\)"):
        select(QUESTIONS, 6, 2, 0, "sentence-transformers", "nowhere")
