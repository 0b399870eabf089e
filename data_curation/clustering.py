"""Seed questions by cluster (Appendix A.3): embed the questions, cluster them, and pick representatives of each cluster.

The paper states neither the embedding, nor the algorithm, nor the number of clusters. Ours: hashed word n-grams (offline, no
download; optionally a sentence-transformers model), mini-batch k-means, and `per_cluster` questions per cluster.
Representatives are nearest to the centre; a text that the cluster has already picked ranks behind new texts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fgrpo.errors import UserError

FEATURES = 1024  # hashed features of the offline embedder
BATCH = 4096  # questions per k-means step
STEPS = 30  # maximum number of passes over the questions


@dataclass(frozen=True)
class Cluster:
    """One cluster: its number of questions, and the indices of the picked questions."""

    size: int
    picked: tuple[int, ...]


def embed(questions: Sequence[str], embedder: str, model: str) -> Any:
    """Unit vectors, one row per question: sparse (N, 1024) for "hashing", dense (N, D) for "sentence-transformers".

    Raises:
        UserError: sentence-transformers is requested but not installed, or `model` cannot be loaded.
    """
    if embedder == "hashing":
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False).transform(questions)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            "data.embedder is sentence-transformers, which is not installed; "
            'run `pip install sentence-transformers`, or set "data.embedder=hashing"'
        ) from error
    try:
        encoder = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.embedder_model {model!r} cannot be loaded ({error}). Download it, or set the path of a local folder"
        ) from error
    return encoder.encode(list(questions), normalize_embeddings=True, show_progress_bar=True)


def select(
    questions: Sequence[str], total_count: int, per_cluster: int, seed: int, embedder: str = "hashing", model: str = ""
) -> list[Cluster]:
    """Pick `total_count` questions (all, if there are fewer), about `per_cluster` per cluster; deterministic.

    Clusters contribute one question each in turn, nearest to the centre first, until `total_count` is reached. Clusters are in
    the order of their first question.

    Args:
        embedder: "hashing" or "sentence-transformers".
        model: name or folder of the sentence-transformers model.

    Raises:
        UserError: see `embed`.
    """
    if total_count <= 0 or not questions:
        return []
    n_clusters = max(1, min(math.ceil(total_count / per_cluster), len(set(questions))))
    labels_N, distance_N = _cluster(embed(questions, embedder, model), n_clusters, seed)
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels_N):
        members.setdefault(int(label), []).append(i)
    queues = [_ranked(indices, questions, distance_N) for indices in members.values()]
    picked: list[list[int]] = [[] for _ in queues]
    n_picked = 0
    for rank in range(max(len(queue) for queue in queues)):
        for queue, chosen in zip(queues, picked, strict=True):
            if rank < len(queue) and n_picked < total_count:
                chosen.append(queue[rank])
                n_picked += 1
    return [Cluster(len(queue), tuple(chosen)) for queue, chosen in zip(queues, picked, strict=True)]


def _ranked(indices: Sequence[int], questions: Sequence[str], distance_N: Any) -> list[int]:
    """Members of a cluster: first occurrences of a text first, then by distance to the centre, then by a hash of the index."""
    nearest = sorted(indices, key=lambda i: (round(float(distance_N[i]), 6), _hash(i)))
    occurrences: Counter[str] = Counter()
    ranked = []
    for i in nearest:
        ranked.append((occurrences[questions[i]], i))
        occurrences[questions[i]] += 1
    return [i for _, i in sorted(ranked, key=lambda pair: pair[0])]  # the sort is stable


def _hash(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def _cluster(vectors_ND: Any, n_clusters: int, seed: int) -> tuple[Any, Any]:
    """Labels (N,) and distances (N,) to the own centre.

    One thread only, so that floating-point sums do not depend on the number of cores.
    """
    import numpy as np
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    model = MiniBatchKMeans(n_clusters, batch_size=BATCH, max_iter=STEPS, n_init=1, random_state=seed)
    with threadpool_limits(1):
        labels_N = model.fit_predict(vectors_ND)
    n_rows = vectors_ND.shape[0]
    distance_N = np.empty(n_rows)
    for start in range(0, n_rows, BATCH):
        own = model.cluster_centers_[labels_N[start : start + BATCH]]
        rows = vectors_ND[start : start + BATCH]
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        distance_N[start : start + BATCH] = np.linalg.norm(dense - own, axis=1)
    return labels_N, distance_N
