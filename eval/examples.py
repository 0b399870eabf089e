"""Examples for the report: one question, its images with boxes, and the text of some models, sentence by sentence.

Everything here is plain text and numbers; the template escapes it. Colours as in the paper's Appendix E: a sentence that a judge
calls correct is blue, an incorrect one orange; the answer is green if every 0/1 reward holds, else red. Sentence verdicts come
from the first reward whose score has `sentences` in its detail.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval import verdict_classes
from eval.downscale_images import fit
from eval.measures import ACCURACY, FLIP, Measure, reward_measures
from eval.models import ModelSpec, location
from eval.results import SCORING, Result, scored_pixels
from fgrpo import box_forms
from fgrpo.boxes import convert, model_size
from fgrpo.images import image_size, open_rgb
from fgrpo.policy.model_files import assumed_family
from fgrpo.response import answer_span, box_of, parse
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Rollout, Sample

LONGEST_SIDE = 640  # pixels of an embedded image; larger ones are downscaled
_ORDINAL = re.compile(
    r"\b(?:(first|second|third|fourth)\s+(?:picture|image|view)|(?:picture|image|view)\s+([1-4]))\b", re.IGNORECASE
)
_ORDINALS = ("first", "second", "third", "fourth")
KEYS = "abcdef"  # of the columns
_COLOURS = {"CORRECT": "grounded", "INCORRECT": "ungrounded"}


@dataclass(frozen=True)
class Shape:
    """A rectangle over image number `image`, in the file's pixels."""

    image: int
    x: float
    y: float
    width: float
    height: float
    kind: str  # "true", or the key of the column ("a", "b", …) whose model wrote it
    label: str = ""


@dataclass(frozen=True)
class Piece:
    """A part of a sentence: text, or a box with its number."""

    text: str
    box: str = ""


@dataclass(frozen=True)
class Line:
    """One sentence with its verdict: "grounded", "ungrounded" or "plain"."""

    pieces: tuple[Piece, ...]
    colour: str
    reason: str


@dataclass(frozen=True)
class Check:
    """A 0/1 reward of one answer: whether it holds, None if it has no value, and the reason."""

    title: str
    holds: bool | None
    reason: str


@dataclass(frozen=True)
class Column:
    """The text of one model with its verdicts; `tags` are words to filter by."""

    key: str
    title: str
    lines: tuple[Line, ...]
    answer: str
    correct: bool | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    tags: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def holds(self) -> bool | None:
        """Whether every 0/1 reward with a value holds; None if none has one."""
        values = [check.holds for check in self.checks if check.holds is not None]
        return all(values) if values else None


@dataclass(frozen=True)
class Image:
    """An image to embed, and its size in the file's pixels, in which boxes are drawn."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One question with one column per model."""

    id: str
    benchmark: str
    question: str
    choices: tuple[str, ...]
    gold: str
    images: tuple[Image, ...]
    truth: tuple[Shape, ...]
    columns: tuple[Column, ...]

    @property
    def tags(self) -> str:
        """Filter words: "a-no-consistency", "b-wrong", …, and "differ" if the models' verdicts differ."""
        differ = len({(c.correct, c.holds) for c in self.columns}) > 1
        return " ".join([*(f"{c.key}-{tag}" for c in self.columns for tag in c.tags), *(["differ"] * differ)])


def choose(results: Sequence[Result], samples: Mapping[str, Sample], kind: str, each: int, least: int = 1) -> list[str]:
    """Ids of rollouts to show, `each` per benchmark: first those on which the models' verdicts differ most, then in order.

    Both of the first two models have answered them; where these share none on a benchmark, `least` of the models have. Refused
    rollouts are never shown.
    """
    checks = [m for m in reward_measures() if m.report.binary]
    by_model = [
        {r.id: r for r in result.records() if r.meta["kind"] == kind and r.meta["finish"] != "error"}
        for result in results
    ]
    chosen: list[str] = []
    for name in dict.fromkeys(s.source for s in samples.values()):
        of_each = [[i for i, r in model.items() if r.benchmark == name] for model in by_model]
        shared = [i for i in of_each[0] if all(i in model for model in by_model[1:2])]
        any_of = dict.fromkeys(i for ids in of_each for i in ids)
        shared = shared or [i for i in any_of if sum(i in model for model in by_model) >= least]
        order = {i: n for n, i in enumerate(shared)}
        records = {i: [model[i] for model in by_model if i in model] for i in shared}
        chosen += sorted(shared, key=lambda i: (-_interest(records[i], checks), order[i]))[:each]
    return chosen


def _interest(records: Sequence[EvalRecord], checks: Sequence[Measure]) -> int:
    """How much an example shows: verdicts that differ count most, then flips, then a 0/1 reward that fails."""
    states = [tuple(_score(r, m) for m in (ACCURACY, *checks)) for r in records]
    flips = any(_score(r, FLIP) == 1.0 for r in records)
    fails = any(0.0 in state[1:] for state in states)
    return 4 * (len(set(states)) > 1) + 2 * flips + fails


def _score(record: EvalRecord, measure: Measure) -> float | None:
    score = record.scores.get(measure.score)
    return None if score is None else score.value


def build(
    rollout_id: str,
    sample: Sample,
    models: Sequence[tuple[Result, ModelSpec, EvalRecord, Rollout]],
    benchmark: str,
    config: Config | None = None,
    keys: Sequence[str] = KEYS,
) -> Example:
    """The example of one rollout id.

    Args:
        models: per column: result, model (`models.configured`), record and rollout.
        benchmark: the benchmark's title.
        config: for images that were downscaled for the model; None = shown as they are.
        keys: of the columns, one letter each.

    Raises:
        UserError: an image cannot be read.
    """
    images = tuple(embed(path) for path in sample.images)
    sizes = [(image.width, image.height) for image in images]
    truth = []
    bounds = scored_pixels(models[0][0].path / SCORING)
    box_images = sample.meta.get("box_images") or [sample.meta.get("box_image", 0)] * len(sample.boxes or ())
    for k, box in zip(box_images, sample.boxes or (), strict=True):
        truth.append(_shape(k, convert(box, "original", sizes[k], model_size(sizes[k], *bounds)), "true"))
    columns = tuple(
        _column(key, result, spec, record, rollout, sample, sizes, config)
        for key, (result, spec, record, rollout) in zip(keys, models, strict=False)
    )
    return Example(rollout_id, benchmark, sample.question, sample.choices, sample.answer, images, tuple(truth), columns)


def _column(
    key: str,
    result: Result,
    spec: ModelSpec,
    record: EvalRecord,
    rollout: Rollout,
    sample: Sample,
    sizes: Sequence[tuple[int, int]],
    config: Config | None,
) -> Column:
    bounds = scored_pixels(result.path / SCORING)  # of this model's processor
    seen = sample.images
    if config is not None and spec.prompt:  # another harness chose what its model saw
        family = assumed_family(location(spec, config, result.path.parents[2]))
        seen = fit([replace(sample, boxes=None)], spec, config, bounds, family)[0].images
    response = parse(rollout.text, box_tag=spec.box_tag, frame=spec.box_frame, tags=spec.tags, choices=sample.choices)
    answer = response.answer if response.answer is not None else answer_span(rollout.text, spec.tags)
    lines: list[Line] = []
    shapes: list[Shape] = []
    pixel_sizes = sizes
    if sizes and spec.box_frame != "original":
        pixel_sizes = [model_size(image_size(path), *bounds) for path in seen]
    for sentence in _sentences(record, response.think or rollout.text):
        image = _image_of(sentence["text"], int(sample.meta.get("box_image", 0)), len(sizes))
        pieces: list[Piece] = []
        at = 0
        for written in box_forms.written(sentence["text"], spec.box_tag, spec.box_frame, pixel_sizes):
            box = box_of(written, spec.box_frame)
            if box is None or not sizes:
                continue
            number = str(len(shapes) + 1)
            shapes.append(_shape(image, convert(box, "original", sizes[image], pixel_sizes[image]), key, number))
            pieces += [
                Piece(sentence["text"][at : written.start]),
                Piece(", ".join(f"{v:g}" for v in box), number),
            ]
            at = written.end
        pieces.append(Piece(sentence["text"][at:]))
        lines.append(Line(tuple(pieces), _COLOURS.get(sentence["label"] or "", "plain"), sentence["reason"]))
    correct = _score(record, ACCURACY)
    return Column(
        key,
        result.title,
        tuple(lines),
        answer if answer is not None else "no answer",
        None if correct is None else correct == 1.0,
        _checks(record),
        _notes(record, rollout),
        _tags(record),
        tuple(shapes),
    )


def _sentences(record: EvalRecord, text: str) -> list[dict[str, Any]]:
    """{"text", "label", "reason"} of each sentence, from the first reward that judges sentences, else of each line."""
    for measure in reward_measures():
        score = record.scores.get(measure.score)
        if score is not None and score.detail.get("sentences"):
            return list(score.detail["sentences"])
    return [{"text": line, "label": None, "reason": ""} for line in text.splitlines() if line.strip()]


def _checks(record: EvalRecord) -> tuple[Check, ...]:
    """Every 0/1 reward that the record has."""
    checks = []
    for measure in reward_measures():
        score = record.scores.get(measure.score)
        if measure.report.binary and score is not None:
            holds = None if score.value is None else score.value == 1.0
            checks.append(Check(measure.score_title, holds, score.reason))
    return tuple(checks)


def _notes(record: EvalRecord, rollout: Rollout) -> tuple[str, ...]:
    notes = []
    for measure in reward_measures():
        value = _score(record, measure)
        if value is not None and not measure.report.binary:
            notes.append(f"{measure.score_title} {100 * value:.0f}%")
    if _score(record, FLIP) == 1.0:
        notes.append("flip: a wrong statement, another answer")
    if rollout.finish == "length":
        notes.append("truncated at the token limit")
    if record.meta.get("answer_from") in ("judge", "unresolved"):
        notes.append(f"answer read by: {record.meta['answer_from']}")
    return tuple(notes)


def tag_titles() -> dict[str, str]:
    """The filter words of a column, and what they mean."""
    below = {
        _tag(m): f"{m.score_title} fails" if m.report.binary else f"{m.score_title} below 100%"
        for m in reward_measures()
    }
    classes = verdict_classes.titles()
    return {
        **classes,
        **below,
        "flip": "flips away from a wrong statement",
        "wrong": "wrong answer",
        "right": "right answer",
    }


def _tag(measure: Measure) -> str:
    return f"no-{measure.score}" if measure.report.binary else f"low-{measure.score}"


def _tags(record: EvalRecord) -> tuple[str, ...]:
    """The filter words that apply to one record."""
    correct = _score(record, ACCURACY)
    tags = [] if correct is None else ["right" if correct == 1.0 else "wrong"]
    for measure in reward_measures():
        value = _score(record, measure)
        if value is not None and value < 1.0:
            tags.append(_tag(measure))
    if _score(record, FLIP) == 1.0:
        tags.append("flip")
    return tuple(dict.fromkeys((*tags, *verdict_classes.tags(record))))


def _image_of(text: str, default: int, count: int) -> int:
    """The index of the image that a sentence names ("the second picture", "image 2"), else `default`."""
    named = _ORDINAL.search(text)
    if named is None:
        return min(default, count - 1)
    index = _ORDINALS.index(named.group(1).lower()) if named.group(1) else int(named.group(2)) - 1
    return min(index, count - 1)


def _shape(image: int, box: Any, kind: str, label: str = "") -> Shape:
    return Shape(image, box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1, kind, label)


def embed(path: str) -> Image:
    """An image as a data URI, upright, at most 640 pixels per side. UserError if it cannot be read."""
    shown = open_rgb(path)
    width, height = shown.size
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    small = max(shown.size) <= 256
    shown.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return Image(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", width, height)
