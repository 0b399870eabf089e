"""Examples for the report: one question, its pictures with boxes, and what one or two models wrote, sentence by sentence.

Everything is plain text and numbers here; the template escapes it. Colours as in the paper's Appendix E: a grounded sentence
is blue, an ungrounded one orange, the answer green where it follows from the trace and red where it does not.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.downscale_images import fit
from eval.models import ModelSpec
from eval.results import SCORING, Result, scored_pixels
from fgrpo.boxes import convert, model_size
from fgrpo.images import image_size, open_rgb
from fgrpo.policy import backbone
from fgrpo.response import parse, parse_boxes
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Rollout, Sample

LONGEST_SIDE = 640  # pixels of an embedded picture; larger ones are scaled down
_ORDINAL = re.compile(
    r"\b(?:(first|second|third|fourth)\s+(?:picture|image|view)|(?:picture|image|view)\s+([1-4]))\b", re.IGNORECASE
)
_ORDINALS = ("first", "second", "third", "fourth")
_TAGGED = re.compile(r"<(\w{1,10})>\s*\[?[^<>]{0,200}?\]?\s*</\1>")
_COLOURS = {"CORRECT": "grounded", "INCORRECT": "ungrounded"}


@dataclass(frozen=True)
class Shape:
    """A rectangle over a picture, in the file's pixels."""

    picture: int
    x: float
    y: float
    width: float
    height: float
    kind: str  # "true", or the column ("a" or "b") whose model wrote it
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
class Column:
    """What one model wrote."""

    key: str
    title: str
    lines: tuple[Line, ...]
    answer: str
    correct: bool | None
    consistent: bool | None
    reason: str
    notes: tuple[str, ...]
    tags: tuple[str, ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Picture:
    """A picture to embed, and its size in the file's pixels, in which boxes are drawn."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """One question with one column a model."""

    id: str
    benchmark: str
    question: str
    choices: tuple[str, ...]
    gold: str
    pictures: tuple[Picture, ...]
    truth: tuple[Shape, ...]
    columns: tuple[Column, ...]

    @property
    def tags(self) -> str:
        """Filter words: "a-inconsistent", "b-wrong", …, and "differ" where the models' verdicts do."""
        differ = len({(c.correct, c.consistent) for c in self.columns}) > 1
        return " ".join([*(f"{c.key}-{tag}" for c in self.columns for tag in c.tags), *(["differ"] * differ)])


def choose(results: Sequence[Result], samples: Mapping[str, Sample], kind: str, each: int) -> list[str]:
    """Ids of rollouts to show, `each` a benchmark: those first on which the models' verdicts differ most, then in order. What an
    engine refused is no example."""
    by_model = [
        {r.id: r for r in result.records() if r.meta["kind"] == kind and r.meta["finish"] != "error"}
        for result in results
    ]
    chosen = []
    for name in dict.fromkeys(s.source for s in samples.values()):
        shared = [
            i for i, r in by_model[0].items() if r.benchmark == name and all(i in other for other in by_model[1:])
        ]
        order = {i: n for n, i in enumerate(shared)}
        chosen += sorted(shared, key=lambda i: (-_interest([m[i] for m in by_model]), order[i]))[:each]
    return chosen


def _interest(records: Sequence[EvalRecord]) -> int:
    """How much there is to see: verdicts that differ count most, then flips and inconsistent answers."""
    states = [(_value(r, "accuracy"), _value(r, "consistency")) for r in records]
    flips = sum(_value(r, "flip") == 1.0 for r in records)
    return 4 * (len(set(states)) > 1) + 2 * (flips > 0) + (any(s[1] == 0.0 for s in states))


def _value(record: EvalRecord, name: str) -> float | None:
    score = record.scores.get(name)
    return None if score is None else score.value


def build(
    rollout_id: str,
    sample: Sample,
    models: Sequence[tuple[Result, ModelSpec, EvalRecord, Rollout]],
    benchmark: str,
    config: Config | None = None,
) -> Example:
    """The example of one rollout id. Raises UserError if a picture cannot be read."""
    pictures = tuple(embed(path) for path in sample.images)
    sizes = [(p.width, p.height) for p in pictures]
    truth = []
    home = sample.meta.get("box_images") or [sample.meta.get("box_image", 0)] * len(sample.boxes or ())
    for k, box in zip(home, sample.boxes or (), strict=True):
        truth.append(
            _shape(k, convert(box, "original", sizes[k], model_size(sizes[k], *backbone.default().pixels)), "true")
        )
    columns = tuple(
        _column("ab"[n], result, spec, record, rollout, sample, sizes, config)
        for n, (result, spec, record, rollout) in enumerate(models)
    )
    return Example(
        rollout_id, benchmark, sample.question, sample.choices, sample.answer, pictures, tuple(truth), columns
    )


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
    bounds = scored_pixels(result.path / SCORING)  # the picture as this model's processor resized it
    shown = sample.images if config is None else fit([replace(sample, boxes=None)], spec, config, bounds)[0].images
    response = parse(rollout.text, box_tag=spec.box_tag, frame=spec.box_frame)
    semantic = record.scores.get("semantic")
    judged = list(semantic.detail.get("sentences", ())) if semantic is not None else []
    if not judged:
        judged = [
            {"text": line, "label": None, "reason": ""}
            for line in (response.think or rollout.text).splitlines()
            if line.strip()
        ]
    lines: list[Line] = []
    shapes: list[Shape] = []
    home = int(sample.meta.get("box_image", 0))
    for sentence in judged:
        pieces: list[Piece] = []
        at = 0
        picture = _picture_of(sentence["text"], home, len(sizes))
        for found in _TAGGED.finditer(sentence["text"]):
            boxes, _ = parse_boxes(found.group(0), box_tag=spec.box_tag, frame=spec.box_frame)
            if not boxes or not sizes:
                continue
            number = str(len(shapes) + 1)
            seen = model_size(image_size(shown[picture]), *bounds)
            shapes.append(_shape(picture, convert(boxes[0], "original", sizes[picture], seen), key, number))
            pieces += [
                Piece(sentence["text"][at : found.start()]),
                Piece(", ".join(f"{v:g}" for v in boxes[0]), number),
            ]
            at = found.end()
        pieces.append(Piece(sentence["text"][at:]))
        lines.append(Line(tuple(pieces), _COLOURS.get(sentence["label"] or "", "plain"), sentence["reason"]))
    correct, consistency = _value(record, "accuracy"), _value(record, "consistency")
    return Column(
        key,
        result.title,
        tuple(lines),
        response.answer if response.answer is not None else "no answer",
        None if correct is None else correct == 1.0,
        None if consistency is None else consistency == 1.0,
        record.scores["consistency"].reason if "consistency" in record.scores else "",
        _notes(record, rollout),
        _tags(record),
        tuple(shapes),
    )


def _notes(record: EvalRecord, rollout: Rollout) -> tuple[str, ...]:
    notes = []
    for name, words in (("semantic", "semantic grounding"), ("spatial", "spatial grounding")):
        value = _value(record, name)
        if value is not None:
            notes.append(f"{words} {100 * value:.0f}%")
    if _value(record, "flip") == 1.0:
        notes.append("flip: a wrong statement, another answer")
    if rollout.finish == "length":
        notes.append("cut off by the token limit")
    if record.meta.get("answer_from") in ("judge", "unresolved"):
        notes.append(f"answer read by: {record.meta['answer_from']}")
    return tuple(notes)


def _tags(record: EvalRecord) -> tuple[str, ...]:
    correct, consistency, semantic = (_value(record, name) for name in ("accuracy", "consistency", "semantic"))
    tags = [] if correct is None else ["right" if correct == 1.0 else "wrong"]
    if consistency is not None:
        tags.append("consistent" if consistency == 1.0 else "inconsistent")
    if semantic is not None:
        tags.append("grounded" if semantic == 1.0 else "ungrounded")
    if _value(record, "flip") == 1.0:
        tags.append("flip")
    return tuple(tags)


def _picture_of(text: str, home: int, count: int) -> int:
    """The picture that a sentence names ("the second picture", "image 2"), else the question's."""
    found = _ORDINAL.search(text)
    if found is None:
        return min(home, count - 1)
    index = _ORDINALS.index(found.group(1).lower()) if found.group(1) else int(found.group(2)) - 1
    return min(index, count - 1)


def _shape(picture: int, box: Any, kind: str, label: str = "") -> Shape:
    return Shape(picture, box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1, kind, label)


def embed(path: str) -> Picture:
    """A picture as a data URI, upright, at most 640 pixels a side. UserError if it cannot be read."""
    shown = open_rgb(path)
    width, height = shown.size
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    small = max(shown.size) <= 256
    shown.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return Picture(f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", width, height)
