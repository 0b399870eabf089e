"""The data that flows between stages: Sample -> Trace (MCTS -> SFT) -> Rollout -> Score -> EvalRecord, frozen dataclasses.

Each type has `to_dict` and `from_dict`; `from_dict(to_dict(x)) == x` is tested for each. Stages exchange only files that
hold these dictionaries, so the field names are also the column names of the jsonl files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from fgrpo.text import clean_json

Frame = Literal["original", "model", "unit", "thousand"]
FRAMES: tuple[Frame, ...] = ("original", "model", "unit", "thousand")


@dataclass(frozen=True)
class Box:
    """An axis-aligned box (x1, y1, x2, y2) that knows its frame.

    Frames: `original` pixels of the image file; `model` pixels of the image that the processor resized (Qwen2.5-VL sees and
    writes these); `unit` 0-1; `thousand` 0-1000 (Qwen2-VL, Qwen3-VL). A box unpacks and indexes like its four numbers.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    frame: Frame = "model"

    def __iter__(self) -> Iterator[float]:
        return iter((self.x1, self.y1, self.x2, self.y2))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return (self.x1, self.y1, self.x2, self.y2)[index]

    @property
    def is_valid(self) -> bool:
        """Four finite numbers with x1 < x2 and y1 < y2."""
        return all(math.isfinite(v) for v in self) and self.x1 < self.x2 and self.y1 < self.y2

    def to_dict(self) -> dict[str, Any]:
        return {"xyxy": [self.x1, self.y1, self.x2, self.y2], "frame": self.frame}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        x1, y1, x2, y2 = data["xyxy"]
        return cls(x1, y1, x2, y2, data["frame"])


@dataclass(frozen=True)
class Sample:
    """One question about one or several images, from a training source or a benchmark.

    `id` is "<source>/<split>/<n>". `images` are paths. `answer` is the text of the gold option, or the free-form answer if
    `choices` is empty. `boxes` are the annotated regions, None if the source annotates none. `meta` is plain JSON. Its texts hold
    no lone surrogate (`fgrpo.text.clean`).
    """

    id: str
    images: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    answer: str
    boxes: tuple[Box, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "question", "choices", "answer", "meta"):  # data sets enter here
            object.__setattr__(self, name, clean_json(getattr(self, name)))

    @property
    def source(self) -> str:
        return self.id.split("/", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "images": list(self.images),
            "question": self.question,
            "choices": list(self.choices),
            "answer": self.answer,
            "boxes": None if self.boxes is None else [b.to_dict() for b in self.boxes],
            "meta": dict(self.meta),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        boxes = data.get("boxes")
        return cls(
            id=data["id"],
            images=tuple(data["images"]),
            question=data["question"],
            choices=tuple(data["choices"]),
            answer=data["answer"],
            boxes=None if boxes is None else tuple(Box.from_dict(b) for b in boxes),
            meta=dict(data.get("meta") or {}),
        )


def box_image(sample: Sample, place: int) -> int:
    """The index of the image that holds annotated box `place` of a sample.

    It is the sample's meta["box_images"][place] if its boxes are in several images, else meta["box_image"], else 0.

    Raises:
        ValueError: the sample has no such image.
    """
    indices = sample.meta.get("box_images")
    index = int(indices[place] if indices and place < len(indices) else sample.meta.get("box_image", 0))
    if not 0 <= index < len(sample.images):
        raise ValueError(f"sample {sample.id} has a box in image {index}, and {len(sample.images)} images")
    return index


@dataclass(frozen=True)
class Trace:
    """One linearized chain of a search tree: `text` is exactly `<think>…</think><answer>…</answer>` (Appendix A.4)."""

    id: str
    sample_id: str
    kind: Literal["direct", "corrected"]
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**_shallow(self), "meta": dict(self.meta)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["id"], data["sample_id"], data["kind"], data["text"], dict(data.get("meta") or {}))


@dataclass(frozen=True)
class Rollout:
    """A policy's response to one sample. `finish` is how it ended: `length` means truncated, `error` refused by the engine."""

    id: str
    sample_id: str
    text: str
    finish: Literal["stop", "length", "error"] = "stop"
    tokens: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**_shallow(self), "meta": dict(self.meta)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            _text(data, "id"),
            _text(data, "sample_id"),
            _text(data, "text"),
            data.get("finish", "stop"),
            int(data.get("tokens", 0)),
            dict(data.get("meta") or {}),
        )


class NotFinite(ValueError):
    """A score of NaN or infinity, which would count as "not applicable" or corrupt a batch."""


@dataclass(frozen=True)
class Score:
    """A score has three states: scored (a finite value), not applicable, failed. None is never zero.

    Use the constructors `Score.of`, `Score.not_applicable` and `Score.failure`. `detail` is plain JSON for inspection
    (verdicts per sentence, matched boxes).

    Raises:
        NotFinite: the value is NaN or infinite.
        ValueError: a failed score with a value.
    """

    value: float | None
    reason: str = ""
    failed: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise NotFinite(f"a score must be finite, got {self.value!r} ({self.reason})")
        if self.failed and self.value is not None:
            raise ValueError(f"a failed score has no value, got {self.value!r} ({self.reason})")

    @classmethod
    def of(cls, value: float, reason: str = "", **detail: Any) -> Self:
        return cls(float(value), reason, False, detail)

    @classmethod
    def not_applicable(cls, reason: str) -> Self:
        return cls(None, reason)

    @classmethod
    def failure(cls, reason: str) -> Self:
        return cls(None, reason, True)

    @property
    def state(self) -> Literal["scored", "not_applicable", "failed"]:
        if self.failed:
            return "failed"
        return "not_applicable" if self.value is None else "scored"

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "reason": self.reason, "failed": self.failed, "detail": dict(self.detail)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["value"], data.get("reason", ""), bool(data.get("failed")), dict(data.get("detail") or {}))


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one item: a label, or `failed=True` with the reason. A failure is never a score.

    Labels: consistency "CONSISTENT" / "INCONSISTENT"; grounding "CORRECT" / "INCORRECT" / "SKIP" (one verdict per sentence);
    extraction an option letter, or "0" (unresolved).
    """

    label: str | None
    reason: str = ""
    failed: bool = False
    judge: str = ""
    prompt_hash: str = ""

    def to_dict(self) -> dict[str, Any]:
        return _shallow(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


@dataclass(frozen=True)
class EvalRecord:
    """One scored generation of one benchmark: scores by name ("accuracy", a reward's name, …)."""

    id: str
    benchmark: str
    model: str
    sample_id: str
    scores: Mapping[str, Score]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            **_shallow(self),
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
            "meta": dict(self.meta),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            _text(data, "id"),
            _text(data, "benchmark"),
            _text(data, "model"),
            _text(data, "sample_id"),
            {name: Score.from_dict(score) for name, score in data["scores"].items()},
            dict(data.get("meta") or {}),
        )


def _text(data: Mapping[str, Any], name: str) -> str:
    """The value of a key. Raises KeyError if it is missing, TypeError if it is no text."""
    value = data[name]
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is no text")
    return value


def _shallow(item: Any) -> dict[str, Any]:
    return {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
