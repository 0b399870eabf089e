"""The card of data: the traces of the tree search, or the curated RL set."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from data_curation.download import catalogue
from eval import facts
from eval.results import Result
from fgrpo.files import read_jsonl
from ops.card import Source, render

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
FIELDS = {
    "traces.jsonl": (
        ("id", "question, kind and number of the trace"),
        ("sample_id", "the question; records of one question belong into one split"),
        ("kind", "`direct`, or `corrected`: the trace follows a wrong branch and takes it back"),
        ("text", "the trace and its answer"),
        ("meta", "nodes of the tree, and number of steps"),
    ),
    "sft.jsonl": (
        ("id, sample_id, kind", "as in traces.jsonl"),
        ("messages", "one user turn (the prompt) and one assistant turn (trace and answer)"),
        ("images", "paths of the question's images, in order"),
    ),
    "rl.jsonl": (
        ("id", "source and record"),
        ("question, choices, answer", "a multiple-choice question with its true answer"),
        ("images", "paths of the images, in order"),
        ("boxes", "annotated boxes, where the source has any"),
    ),
    "seed.jsonl": (("id, question, choices, answer, images", "questions of the tree search"),),
}
FILES = {"mcts": ("traces.jsonl", "sft.jsonl"), "data": ("rl.jsonl", "seed.jsonl")}
TITLES = {"mcts": "Reasoning traces of a tree search", "data": "Questions for reinforcement learning"}


@dataclass(frozen=True)
class File:
    """One file: its name, number of records, fields, counts by kind and source, and the first record."""

    name: str
    count: int
    fields: tuple[tuple[str, str], ...]
    by: tuple[tuple[str, int], ...]
    first: str


def text(source: Source) -> str:
    """The whole card."""
    files = [described(source.path / name) for name in FILES[source.stage] if (source.path / name).is_file()]
    config = source.config
    return render(
        "data.md.j2",
        metadata=metadata(source, files).to_yaml(),
        title=TITLES[source.stage],
        is_traces=source.stage == "mcts",
        miniature=config.world is not None,
        teacher=f"{source.value('models.teacher')}{source.note('models.teacher')}",
        mcts=source.stored.get("mcts", {}),
        files=files,
        sources=[] if config.world is not None else _origins(source),
        has_own_sources=source.is_stored("data.sources"),
        counts=_trees(source.manifest.get("counts", {})) if source.stage == "mcts" else [],
        facts=_facts(source),
    )


def described(path: Path) -> File:
    """What a jsonl file holds."""
    kinds: Counter[str] = Counter()
    for record in read_jsonl(path):
        origin = str(record.get("sample_id", record.get("id", ""))).split("/", 1)[0]
        kinds[f"{origin}, {record['kind']}" if "kind" in record else origin] += 1
    first = next(iter(islice(read_jsonl(path), 1)), {})
    return File(
        path.name,
        sum(kinds.values()),
        FIELDS[path.name],
        tuple(sorted(kinds.items())),
        json.dumps(first, ensure_ascii=False, indent=1),
    )


def metadata(source: Source, files: list[File]) -> DatasetCardData:
    """The YAML header; each file is a configuration that `datasets.load_dataset` can name."""
    count = max((file.count for file in files), default=0)
    configs: list[dict[str, Any]] = [{"config_name": Path(file.name).stem, "data_files": file.name} for file in files]
    configs[:1] = [{**config, "default": True} for config in configs[:1]]
    return DatasetCardData(
        language="en",
        license="other",
        license_name="as-the-sources",
        task_categories=["visual-question-answering", "image-text-to-text"],
        size_categories=next((words for limit, words in SIZES if count < limit), "1M<n<10M"),
        source_datasets=sorted({entry.repo for entry in entries(source)}) or None,
        pretty_name=TITLES[source.stage],
        tags=[
            "spatial-reasoning",
            "visual-grounding",
            "faithful-grpo",
            *(["reasoning-traces"] if source.stage == "mcts" else []),
        ],
        configs=configs,
    )


def entries(source: Source) -> list[Any]:
    """Entries of the catalogue for the sources of the data; none in the miniature world."""
    if source.config.world is not None:
        return []
    wanted = set(source.value("data.sources"))
    return [entry for entry in catalogue().values() if wanted & set(entry.serves)]


def _origins(source: Source) -> list[tuple[str, str]]:
    return [(entry.repo, entry.licence) for entry in entries(source)]


def _trees(counts: dict[str, int]) -> list[tuple[str, int]]:
    wanted = ("trees", "solved", "accepted", "direct", "corrected", "failed_trees", "completions", "tokens")
    return [(name.replace("_", " "), counts[name]) for name in wanted if name in counts]


def _facts(source: Source) -> list[tuple[str, str]]:
    made = Result(source.stage, source.stage, source.path, {})
    named = dict(facts.facts([made], source.config))
    named["made"] = named.pop("evaluated", "")
    command = f"make {source.stage} PRESET={source.config.preset}"
    return [("command", command), *((what, value) for what, value in named.items() if value)]
