"""Stored verdicts by judge: of an evaluated folder (with those that `make judge-rescore` put below it), or of RL rollouts.

Two judges are compared on the same generations, on items that both judged: consistency and answer extraction per rollout,
semantic grounding per sentence. A decision by rule (no answer, no trace, an answer in plain form, a verbatim repetition) is
no verdict and is counted separately, because it is the same for every judge and would inflate agreement.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval import models
from eval.extraction import EXTRACTION_TASK, UNRESOLVED, ExtractionItem
from eval.judge_validation.labelled.base import Labelled
from eval.judge_validation.stats import BY_RULE, FAILED, MISSING, NOT_APPLICABLE, NOT_RATED, Agreement, Pair, compare
from fgrpo.boxes import PixelBounds, model_size
from fgrpo.errors import UserError
from fgrpo.files import read_items
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.response import COMMON, OWN, Tags, answer_span, parse
from fgrpo.runs import verify
from fgrpo.types import EvalRecord, Rollout, Sample, Score
from judges.task import JudgeTask
from rewards.consistency import CONSISTENCY_LABELS, CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_LABELS, GROUNDING_TASK, GroundingItem
from rewards.sentences import Prefix

CONSISTENCY, GROUNDING, EXTRACTION = "consistency", "semantic_grounding", "extraction"
LABELS = {
    CONSISTENCY: CONSISTENCY_LABELS,
    GROUNDING: GROUNDING_LABELS,
}  # of extraction: the options' letters, and UNRESOLVED
Item = ConsistencyItem | GroundingItem | ExtractionItem
TASKS: dict[type, JudgeTask[Any]] = {
    ConsistencyItem: CONSISTENCY_TASK,
    GroundingItem: GROUNDING_TASK,
    ExtractionItem: EXTRACTION_TASK,
}
QUESTIONS = "questions.jsonl"  # the samples of an evaluated folder, one `Sample` per line
Sentences = tuple[tuple[str, str | None], ...]  # text and label (None: trivial, not judged)


@dataclass
class Generations:
    """Stored answers of one run with the verdicts of its judges; `origin` names the run, `tags` are those of its model."""

    origin: str
    judged: list[Stored]
    rollouts: list[Rollout]
    questions: Path
    tags: Tags = COMMON


@dataclass
class Stored:
    """The verdicts of one judge, by rollout id.

    Attributes:
        consistency, extraction: one rating per rollout. `extraction` is empty if the questions are unknown.
        grounding: the sentences with their labels, or one word of `NOT_RATED` for all of them.
    """

    judge: str
    consistency: dict[str, str] = field(default_factory=dict)
    grounding: dict[str, Sentences | str] = field(default_factory=dict)
    extraction: dict[str, str] = field(default_factory=dict)

    def add(self, rollout: str, consistency: Score | None, grounding: Score | None) -> None:
        """Add the scores of one rollout."""
        if consistency is not None:
            self.consistency[rollout] = _consistency_rating(consistency)
        if grounding is not None:
            self.grounding[rollout] = _grounding_ratings(grounding)

    def only(self, rollouts: Set[str]) -> Stored:
        """The verdicts on these rollouts."""
        consistency = {key: value for key, value in self.consistency.items() if key in rollouts}
        grounding = {key: value for key, value in self.grounding.items() if key in rollouts}
        extraction = {key: value for key, value in self.extraction.items() if key in rollouts}
        return Stored(self.judge, consistency, grounding, extraction)


def _consistency_rating(score: Score) -> str:
    if score.value is None:
        return FAILED if score.failed else NOT_APPLICABLE
    if score.detail.get("cause") != "judge":
        return BY_RULE
    return CONSISTENCY_LABELS[0] if score.value == 1.0 else CONSISTENCY_LABELS[1]


def _grounding_ratings(score: Score) -> Sentences | str:
    if score.failed:
        return FAILED
    sentences = score.detail.get("sentences")
    if not sentences:
        return NOT_APPLICABLE
    return tuple((str(s["text"]), BY_RULE if s.get("by_rule") else s["label"]) for s in sentences)


def _extraction_rating(meta: Mapping[str, Any], sample: Sample) -> str:
    """The letter of the option that the extraction judge chose; `BY_RULE` if rules read the answer."""
    source, answer = meta.get("answer_from"), meta.get("answer")
    if source == "failed":
        return FAILED
    if source == "unresolved":
        return UNRESOLVED
    if source != "judge" or answer not in sample.choices:
        return BY_RULE
    return chr(ord("A") + sample.choices.index(answer))


def read(folder: Path) -> Generations:
    """The answers and verdicts of a folder.

    An evaluated model has the verdicts of its own evaluation, then those below rescored/; an RL run has the training judge's.

    Raises:
        UserError: the folder is neither, a file is broken or was changed since, or there are no verdicts.
    """
    if (folder / "scores.jsonl").is_file():
        verify(folder, "eval")
        return _evaluated(folder)
    if (folder / "rollouts").is_dir():
        verify(folder / "rollouts", folder.name)
    files = sorted((folder / "rollouts").glob("*.parquet"))
    if not files:
        raise UserError(
            f"{folder} holds neither scores.jsonl (an evaluated model, runs/<preset>/eval/<model>, by `make eval`) nor "
            "rollouts/*.parquet (a run runs/<preset>/rl-<method>, by `make rl-<method>`)"
        )
    return _trained(folder, files)


def _evaluated(folder: Path) -> Generations:
    judged = []
    samples = questions(folder / QUESTIONS) if (folder / QUESTIONS).is_file() else {}
    for path in [folder / "scores.jsonl", *sorted(folder.glob("rescored/*/scores.jsonl"))]:
        verify(path, "judge-rescore")
        records = list(read_items(path, EvalRecord.from_dict, "record of scores"))
        judge = str(records[0].meta.get("judge", "evaluation")) if records else "evaluation"
        stored = Stored(judge if path.parent == folder else f"{path.parent.name} (rescored)")
        for record in records:
            stored.add(record.id, record.scores.get(CONSISTENCY), record.scores.get(GROUNDING))
            if record.sample_id in samples:
                stored.extraction[record.id] = _extraction_rating(record.meta, samples[record.sample_id])
        judged.append(stored)
    rollouts = list(read_items(folder / "generations.jsonl", Rollout.from_dict, "answer"))
    return Generations(str(folder), judged, rollouts, folder / QUESTIONS, _tags(folder))


def _tags(folder: Path) -> Tags:
    """The tags of an evaluated model; those of common models where its file is gone. UserError: the file is damaged."""
    if (spec := models.described(folder)) is not None:
        return spec.tags
    name = folder.name.partition(models.AT)[0]
    return models.load(name).tags if name in models.names() else COMMON


def _trained(folder: Path, files: Sequence[Path]) -> Generations:
    import pyarrow.parquet as pq

    names = ["step", "id", "sample_id", "text"]
    names += [f"{role}{part}" for role in (CONSISTENCY, GROUNDING) for part in ("", "/state", "/detail")]
    stored, rollouts = Stored("training"), []
    for file in files:
        columns = [name for name in names if name in pq.read_schema(file).names]  # images are not read
        for row in _rows(file, columns):
            rollouts.append(Rollout(f"{row['step']}/{row['id']}", row["sample_id"], row["text"]))
            stored.add(rollouts[-1].id, *(_column_score(row, name) for name in (CONSISTENCY, GROUNDING)))
    if not stored.consistency and not stored.grounding:
        raise UserError(f"{folder}/rollouts holds no verdicts: no reward of that method has a judge; name another run")
    return Generations(str(folder), [stored], rollouts, folder.parent / "data" / "rl.jsonl", OWN)


def _rows(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of a parquet file, with its pages' checksums compared. UserError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=columns, page_checksum_verification=True)
        rows: list[dict[str, Any]] = table.to_pandas().to_dict("records")
        return rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(
            f"{file} is damaged ({str(error).strip():.200}); restore it from a copy, or delete it to leave its step out"
        ) from error


def _column_score(row: Mapping[str, Any], name: str) -> Score | None:
    if f"{name}/state" not in row:
        return None
    state = row[f"{name}/state"]
    detail = json.loads(row[f"{name}/detail"])
    return Score(float(row[name]) if state == "scored" else None, "", state == "failed", detail)


def agreements(first: Stored, second: Stored, samples: int = 2000, confidence: float = 0.95) -> list[Agreement]:
    """Agreement of two judges, one `Agreement` per role.

    The roles are consistency (per rollout), semantic grounding (per sentence, resampled by rollout) and, if one of the judges
    extracted answers, answer extraction (per rollout).

    Raises:
        UserError: the two judged different sentences under one rollout's id, so their generations differ.
    """
    names = (first.judge, second.judge)
    if names[0] == names[1]:
        names = (f"{names[0]} (1)", f"{names[1]} (2)")
    roles = [
        (CONSISTENCY, _pairs(first.consistency, second.consistency), CONSISTENCY_LABELS),
        (GROUNDING, _grounding_pairs(first, second), GROUNDING_LABELS),
    ]
    letters = {r for stored in (first, second) for r in stored.extraction.values() if r not in NOT_RATED}
    if letters:
        labels = (*sorted(letters - {UNRESOLVED}), UNRESOLVED)
        roles.append((EXTRACTION, _pairs(first.extraction, second.extraction), labels))
    return [
        compare(role, *names, pairs, labels, samples=samples, confidence=confidence) for role, pairs, labels in roles
    ]


def _pairs(first: Mapping[str, str], second: Mapping[str, str]) -> Iterator[Pair]:
    for rollout in dict.fromkeys([*first, *second]):
        yield Pair(rollout, first.get(rollout, MISSING), second.get(rollout, MISSING))


def _grounding_pairs(first: Stored, second: Stored) -> Iterator[Pair]:
    for rollout in dict.fromkeys([*first.grounding, *second.grounding]):
        one, other = first.grounding.get(rollout, MISSING), second.grounding.get(rollout, MISSING)
        if isinstance(one, str) and isinstance(other, str):
            yield Pair(rollout, one, other)
            continue
        size = len(other if isinstance(one, str) else one)
        left, right = (((None, x),) * size if isinstance(x, str) else x for x in (one, other))
        texts = [tuple(text for text, _ in x) for x in (one, other) if not isinstance(x, str)]
        if len(texts) == 2 and texts[0] != texts[1]:
            raise UserError(
                f"{rollout}: {first.judge} and {second.judge} judged different sentences, so their generations differ; score "
                "this run again with `make judge-rescore`"
            )
        for (_, a), (_, b) in zip(left, right, strict=True):
            if a is not None and b is not None:  # trivial sentences are not judged
                yield Pair(rollout, a, b)


def questions(path: Path) -> dict[str, Sample]:
    """Samples by id of a jsonl file of samples. UserError if it is missing or broken."""
    if not path.is_file():
        raise UserError(
            f"{path} is missing: the questions of these answers, one sample per line. `make eval` writes it for an evaluated "
            "model (for a finished one, delete its `done` file first; no answer is generated again), `make data` for RL "
            "rollouts; or name the file with --questions FILE"
        )
    return {sample.id: sample for sample in read_items(path, Sample.from_dict, "sample")}


def judged_items(
    stored: Stored,
    rollouts: Iterable[Rollout],
    samples: Mapping[str, Sample],
    pixels: PixelBounds,
    tags: Tags = COMMON,
) -> list[Item]:
    """The items that `stored`'s judge rated, for another judge: the same traces, sentences and answers, word for word.

    Boxes are assumed to have this project's own tag and frame.

    Args:
        pixels: the policy's processor's bounds, for the frame of boxes (`fgrpo.policy.model_files.pixel_bounds`).
        tags: of the model's traces and answers (`Generations.tags`).
    """
    items: list[Item] = []
    for rollout in rollouts:
        sample = samples.get(rollout.sample_id)
        if sample is None:
            continue
        response, span = parse(rollout.text, tags=tags, choices=sample.choices), answer_span(rollout.text, tags)
        if stored.consistency.get(rollout.id) in CONSISTENCY_LABELS and (answer := response.answer or span):
            items.append(ConsistencyItem(rollout.id, sample.question, sample.choices, response.think, answer))
        if stored.extraction.get(rollout.id, MISSING) not in NOT_RATED and span:
            items.append(ExtractionItem(rollout.id, sample.choices, span))
        split = stored.grounding.get(rollout.id, MISSING)
        if not isinstance(split, str):
            texts = tuple(text for text, _ in split)
            visual = [i for i, (_, label) in enumerate(split) if label is not None]
            sentences, contexts = tuple(texts[i] for i in visual), tuple(Prefix(texts, i) for i in visual)
            sizes = _sizes(sample, pixels)
            items.append(GroundingItem(rollout.id, sample.images, sample.question, sentences, contexts, sizes))
    return items


def _sizes(sample: Sample, pixels: PixelBounds) -> tuple[tuple[int, int], ...]:
    try:
        return tuple(model_size(image_size(path), *pixels) for path in sample.images)
    except IMAGE_ERRORS:
        return ()  # the judge fails with the reason that it cannot read the image


def from_ratings(judge: str, stored: Stored, items: Sequence[Item], ratings: Sequence[tuple[str, ...]]) -> Stored:
    """The ratings of the items of `judged_items` as this judge's verdicts; trivial sentences as in `stored`."""
    out = Stored(judge)
    for item, labels in zip(items, ratings, strict=True):
        if isinstance(item, ConsistencyItem):
            out.consistency[item.id] = labels[0]
            continue
        if isinstance(item, ExtractionItem):
            out.extraction[item.id] = labels[0]
            continue
        split, of_visual = stored.grounding[item.id], iter(labels)
        assert not isinstance(split, str)  # otherwise there is no item
        out.grounding[item.id] = tuple((text, None if label is None else next(of_visual)) for text, label in split)
    return out


def swapped(
    stored: Stored, rollouts: Iterable[Rollout], samples: Mapping[str, Sample], tags: Tags = COMMON
) -> tuple[list[Labelled], dict[str, int]]:
    """Negatives for consistency: traces that `stored` labels consistent, each with another option as its answer.

    A trace that entails one option does not entail another, so INCONSISTENT is the true label, as far as `stored` is right.

    Returns:
        The items, and the number of consistent traces that could not be used, by reason.
    """
    items: list[Labelled] = []
    dropped: dict[str, int] = {}
    for rollout in rollouts:
        if stored.consistency.get(rollout.id) != CONSISTENCY_LABELS[0]:
            continue
        sample = samples.get(rollout.sample_id)
        response = parse(rollout.text, tags=tags, choices=() if sample is None else sample.choices)
        answer = response.answer or answer_span(rollout.text, tags) or ""
        place = _option(answer, sample.choices) if sample is not None else None
        if sample is None or place is None:
            reason = "its question is missing" if sample is None else "its answer is not one option's letter or text"
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        other = sample.choices[(place + 1 + len(items) % (len(sample.choices) - 1)) % len(sample.choices)]
        item = ConsistencyItem(rollout.id, sample.question, sample.choices, response.think, other)
        items.append(Labelled(item, (CONSISTENCY_LABELS[1],), ("swapped answer",)))
    return items, dropped


def _option(answer: str, choices: tuple[str, ...]) -> int | None:
    """Index of the option that is `answer` by text or bare letter; None if none or several, or if there is one option only."""
    plain = answer.strip().strip(".()").casefold()
    texts = [choice.strip().strip(".").casefold() for choice in choices]
    places = [i for i, text in enumerate(texts) if text == plain]
    if not places and len(plain) == 1 and 0 <= ord(plain) - ord("a") < len(choices):
        places = [ord(plain) - ord("a")]
    return places[0] if len(places) == 1 and len(choices) > 1 else None
