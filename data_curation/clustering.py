"""Seed questions by cluster (Appendix A.3): embed the questions, cluster them, take representatives of each cluster.

The paper names neither the embedding nor the algorithm nor the number of clusters; ours are hashed word n-grams (offline,
no download; a sentence-transformers model as an option), mini-batch k-means, and `per_cluster` questions a cluster. The
representatives are those nearest to the centre, texts that a cluster has already given standing back behind new ones.
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
BATCH = 4096  # questions a k-means step
STEPS = 30  # passes over the questions at most


@dataclass(frozen=True)
class Cluster:
    """One cluster: how many questions it holds, and which of them were picked (indices into the questions)."""

    size: int
    picked: tuple[int, ...]


def embed(questions: Sequence[str], embedder: str, model: str) -> Any:
    """Unit vectors, one row a question: sparse (N, 1024) for "hashing", dense (N, D) for "sentence-transformers".

    Raises:
        UserError: sentence-transformers is asked for and not installed, or `model` cannot be loaded.
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
            f"data.embedder_model {model!r} cannot be loaded ({error}); download it, or use a folder"
        ) from error
    return encoder.encode(list(questions), normalize_embeddings=True, show_progress_bar=True)


def select(
    questions: Sequence[str], wanted: int, per_cluster: int, seed: int, embedder: str = "hashing", model: str = ""
) -> list[Cluster]:
    """Pick `wanted` of `questions` (all, if there are fewer), about `per_cluster` from each cluster; deterministic.

    Clusters give one question each in turn, nearest to the centre first, until there are enough. The order of the clusters
    is that of their first question.
    """
    if wanted <= 0 or not questions:
        return []
    count = max(1, min(math.ceil(wanted / per_cluster), len(set(questions))))
    labels_N, distance_N = _cluster(embed(questions, embedder, model), count, seed)
    members: dict[int, list[int]] = {}
    for i, label in enumerate(labels_N):
        members.setdefault(int(label), []).append(i)
    queues = [_ranked(indices, questions, distance_N) for indices in members.values()]
    picked: list[list[int]] = [[] for _ in queues]
    total = 0
    for rank in range(max(len(queue) for queue in queues)):
        for queue, chosen in zip(queues, picked, strict=True):
            if rank < len(queue) and total < wanted:
                chosen.append(queue[rank])
                total += 1
    return [Cluster(len(queue), tuple(chosen)) for queue, chosen in zip(queues, picked, strict=True)]


def _ranked(indices: Sequence[int], questions: Sequence[str], distance_N: Any) -> list[int]:
    """Members of a cluster: texts not seen before first, then by distance to the centre, then by a hash of the place."""
    nearest = sorted(indices, key=lambda i: (round(float(distance_N[i]), 6), _hash(i)))
    times: Counter[str] = Counter()
    ranked = []
    for i in nearest:
        ranked.append((times[questions[i]], i))
        times[questions[i]] += 1
    return [i for _, i in sorted(ranked, key=lambda pair: pair[0])]  # sorting is stable


def _hash(i: int) -> bytes:
    return hashlib.sha256(str(i).encode()).digest()


def _cluster(vectors_ND: Any, count: int, seed: int) -> tuple[Any, Any]:
    """(label, distance to the own centre) of each row. One thread, so that sums do not depend on the number of cores."""
    import numpy as np
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    model = MiniBatchKMeans(count, batch_size=BATCH, max_iter=STEPS, n_init=1, random_state=seed)
    with threadpool_limits(1):
        labels_N = model.fit_predict(vectors_ND)
    total = vectors_ND.shape[0]
    distance_N = np.empty(total)
    for start in range(0, total, BATCH):
        own = model.cluster_centers_[labels_N[start : start + BATCH]]
        rows = vectors_ND[start : start + BATCH]
        dense = rows.toarray() if hasattr(rows, "toarray") else rows
        distance_N[start : start + BATCH] = np.linalg.norm(dense - own, axis=1)
    return labels_N, distance_N
