"""What a judge is asked and what it gives back, and how a backend is found.

Three roles (Sections 3.2, B.2, Figures 6 and 7): consistency sees text only; grounding sees pictures, question, context and
sentences; extraction sees the options and the closed answer span only, never the trace and never the gold answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from fgrpo import schema
from fgrpo.errors import unknown
from fgrpo.inference import budget
from fgrpo.types import Frame, Verdict

BACKENDS = Path(__file__).resolve().parent / "backends"

CONSISTENCY_LABELS = ("CONSISTENT", "INCONSISTENT")
GROUNDING_LABELS = ("CORRECT", "INCORRECT", "SKIP")
UNRESOLVED = "0"


@dataclass(frozen=True)
class ConsistencyItem:
    """Does `answer` follow from `think`? Labels CONSISTENT / INCONSISTENT."""

    id: str
    question: str
    choices: tuple[str, ...]
    think: str
    answer: str


@dataclass(frozen=True)
class GroundingItem:
    """All sentences of one rollout that are to be judged, each with the sentences said before it.

    Boxes in the text stand in `box_tag` tags and in the frame `box_frame`. `image_sizes` gives (width, height) in pixels of
    each picture: as the policy's processor resizes it, or of the file if `box_frame` is "original"; so a backend can say boxes
    in the judge's own frame. Empty where unknown.
    """

    id: str
    images: tuple[str, ...]
    question: str
    sentences: tuple[str, ...]
    contexts: tuple[tuple[str, ...], ...]
    image_sizes: tuple[tuple[int, int], ...] = ()
    box_tag: str = "bbox"
    box_frame: Frame = "model"


@dataclass(frozen=True)
class ExtractionItem:
    """Which option does the answer span mean? The label is its letter, or "0" if it cannot be told."""

    id: str
    choices: tuple[str, ...]
    answer_span: str


Item = TypeVar("Item", contravariant=True)
Out = TypeVar("Out")


class Judge(Protocol[Item, Out]):
    """Judges items of one role, concurrently; the results have the order and the number of the items.

    `Out` is a `Verdict`, for grounding a tuple of them (one a sentence). Raises UserError only for what no retry can mend and
    what holds for every item (no key, model not served); one item's failure is its own failed verdict.
    """

    async def judge(self, items: Sequence[Item]) -> list[Out]: ...


@dataclass
class Meter(budget.UsageMeter):
    """What judging took so far, beyond requests, tokens and money.

    `failed` counts calls without a verdict, by reason.
    """

    calls: int = 0
    cached: int = 0
    shared: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """Add one to `calls`, `cached` or `shared`."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def fail(self, reason: str) -> None:
        """Count one failed call under `reason`."""
        with self._lock:
            self.failed[reason] = self.failed.get(reason, 0) + 1

    def to_dict(self) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("calls", "retries", "cached", "shared")}
        more = {"waited_s": round(self.waited_s, 3), "failed": dict(self.failed), "faults": dict(self.faults)}
        return {**own, **super().to_dict(), **more}


def make_meter(config: schema.Judge) -> Meter:
    """The meter of a judge, with its prices and caps. Raises UserError for a cap on money without prices."""
    limits = budget.Budget(config.prompt_price, config.completion_price, config.money_cap, config.token_cap)
    return Meter(name=config.model, budget=limits)


async def _nothing_to_close() -> None:
    return None


@dataclass(frozen=True)
class JudgeSet:
    """The judges of one backend by role. Use `dataclasses.replace` to take one role from another set."""

    consistency: Judge[ConsistencyItem, Verdict]
    grounding: Judge[GroundingItem, tuple[Verdict, ...]]
    extraction: Judge[ExtractionItem, Verdict]
    name: str = ""
    prompt_hashes: dict[str, str] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    close: Callable[[], Awaitable[None]] = _nothing_to_close
    more_meters: tuple[Meter, ...] = ()  # of roles taken from other sets

    @property
    def meters(self) -> tuple[Meter, ...]:
        """The meters of all roles."""
        return (self.meter, *self.more_meters)

    def cost(self) -> str:
        """What models were asked so far, for a progress bar; empty where none is asked."""
        return ", ".join(f"{meter.name}: {meter}" for meter in self.meters if meter.name)


class Backend(Protocol):
    """`BACKEND` of a file of judges/backends: makes the judges from their configuration and the data's root."""

    def __call__(self, config: schema.Judge, data_root: Path) -> JudgeSet: ...


def names() -> list[str]:
    """The backends there are."""
    return sorted(p.stem for p in BACKENDS.glob("*.py") if p.stem != "__init__")


def build(config: schema.Judge, data_root: str | Path, run: str | Path | None = None) -> JudgeSet:
    """The judges that `config` names; `data_root` is where the data (and the oracle's truth) lies.

    Args:
        run: the folder of a run, in which the ledger of its spending lies: a cap holds over all its processes and resumes.

    Raises:
        UserError: no such backend (names the nearest), or what the backend says of its configuration.
    """
    if config.backend not in names():
        raise unknown("judge backend", config.backend, names())
    backend: Backend = importlib.import_module(f"judges.backends.{config.backend}").BACKEND
    judges = backend(config, Path(data_root))
    if run is not None and judges.meter.name:
        judges.meter.keep(Path(run) / budget.LEDGER)
    return judges


def failed_verdict(reason: str, judge: str = "", prompt_hash: str = "") -> Verdict:
    """No verdict could be had, because of `reason`."""
    return Verdict(None, reason, True, judge, prompt_hash)
