"""What a set of judges is, what it answers, and how its backend is found by name.

A judge set answers any `JudgeTask` (judges/task.py) about any number of items, concurrently. Results have the order and the
number of the items. A backend is one file of judges/backends with a constant `BACKEND`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fgrpo import schema
from fgrpo.inference import budget
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.resume import JUDGE_REPLIES
from fgrpo.types import Verdict
from judges.task import Item, JudgeTask

PAID = "openai"  # the backend whose every call costs money or a server's time
CACHE_OF_RUN, CACHE = "run", JUDGE_REPLIES  # the value of `cache`, and the file in the run's folder
ItemIn = TypeVar("ItemIn", contravariant=True)


class Judge(Protocol[ItemIn]):
    """Judges items of one task: one verdict per item, in order.

    A failed item is a `Verdict` with `failed=True`, never a score. Raises UserError only for what holds for every item and no
    retry can fix (no key, model not served).
    """

    async def judge(self, items: Sequence[ItemIn]) -> list[Verdict]: ...


class Answerer(Protocol):
    """What a backend implements: the verdicts of any task.

    Returns one tuple per item, in order, with `task.size(item)` verdicts each. Raises UserError as `Judge` does.
    """

    async def answer(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]: ...


@dataclass
class Meter(budget.UsageMeter):
    """What judging has cost so far, beyond requests, tokens and money.

    Attributes:
        calls: calls made.
        cached, shared: calls answered from the cache, and from an equal call in flight.
        failed: calls without a verdict, by reason.
        forms: usable replies that deviate from the requested format, by form (`judges.requests`).
    """

    calls: int = 0
    cached: int = 0
    shared: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """Add one to `calls`, `cached` or `shared`."""
        with self._lock:
            setattr(self, name, getattr(self, name) + 1)

    def fail(self, reason: str) -> None:
        """Count one failed call under `reason`."""
        with self._lock:
            self.failed[reason] = self.failed.get(reason, 0) + 1

    def read(self, forms: Iterable[str]) -> None:
        """Count the forms of one usable reply."""
        with self._lock:
            for form in forms:
                self.forms[form] = self.forms.get(form, 0) + 1

    def to_dict(self) -> dict[str, object]:
        counts = {name: getattr(self, name) for name in ("calls", "retries", "cached", "shared")}
        problems = {
            "waited_s": round(self.waited_s, 3),
            "failed": dict(self.failed),
            "faults": dict(self.faults),
            "forms": dict(self.forms),
        }
        return {**counts, **super().to_dict(), **problems}


def make_meter(config: schema.Judge) -> Meter:
    """The meter of a judge, with its prices and caps. Raises UserError for a money cap without prices."""
    limits = budget.Budget(config.prompt_price, config.completion_price, config.money_cap, config.token_cap)
    return Meter(name=config.model, budget=limits)


async def _nothing_to_close() -> None:
    return None


async def unchecked() -> None:
    """The check of judges that need none."""


@dataclass(frozen=True)
class JudgeSet:
    """The judges of one backend, for all tasks.

    Attributes:
        answerer: the backend.
        name: of the model or the backend; stored with scores.
        has_prompts: whether prompts are sent, so that verdicts depend on them. False for exact and recorded judges.
        meter: what judging has cost so far.
        close: closes connections and caches.
        delegates: by task name, other sets that answer these tasks (`with_task`).
        blind: whether tasks are put in their blind form, where they have one.
        is_none: there is no judge (`judges/backends/none.py`).
        slots: calls that are sent at a time; None: no limit is known.
        check: finds out whether the judge can be called, before it is needed; see `check_all`.
    """

    answerer: Answerer
    name: str = ""
    has_prompts: bool = False
    meter: Meter = field(default_factory=Meter)
    close: Callable[[], Awaitable[None]] = _nothing_to_close
    delegates: Mapping[str, JudgeSet] = field(default_factory=dict)
    blind: bool = False
    is_none: bool = False
    slots: int | None = None
    check: Callable[[], Awaitable[None]] = unchecked

    async def ask(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[Verdict]:
        """One verdict per item, in order. A failed item is a verdict with `failed=True`.

        Raises:
            UserError: for what holds for every item and no retry can fix.
            ValueError: the task has several verdicts per item; use `ask_several`.
        """
        answers = await self.ask_several(task, items)
        if any(len(verdicts) != 1 for verdicts in answers):
            raise ValueError(f"the task {task.name!r} has several verdicts per item; use ask_several")
        return [verdicts[0] for verdicts in answers]

    async def ask_several(self, task: JudgeTask[Item], items: Sequence[Item]) -> list[tuple[Verdict, ...]]:
        """For each item, in order, its `task.size(item)` verdicts. Raises as `ask` does."""
        return await self._set_for(task).answerer.answer(task, items)

    def answers(self, task: JudgeTask[Any]) -> bool:
        """Whether there is a judge for `task`."""
        return not self._set_for(task).is_none

    def answering(self, task: JudgeTask[Any]) -> str:
        """The name of the judges that answer `task`."""
        return self._set_for(task).name

    async def check_all(self) -> None:
        """Check the key, the address and the model of these judges and of those they delegate to; costs no judgement.

        Raises:
            UserError: a judge cannot be called; says which, and what to do.
        """
        for judges in (self, *self.delegates.values()):
            await judges.check()

    def judge(self, task: JudgeTask[Item]) -> Judge[Item]:
        """The judge of one task that has one verdict per item."""
        return _TaskJudge(self, task)

    def with_task(self, task: JudgeTask[Any], other: JudgeSet) -> JudgeSet:
        """These judges, with `task` answered by `other`; closes and meters both."""

        async def close() -> None:
            await self.close()
            await other.close()

        return replace(self, delegates={**self.delegates, task.name: other}, close=close)

    def prompt_hashes(self, tasks: Iterable[JudgeTask[Any]]) -> dict[str, str]:
        """The hash of each task's prompt file by task name, for the tasks (and blind forms) that are answered by prompts."""
        prompted = [(task, self._set_for(task)) for task in tasks]
        used = [task for task, judges in prompted if judges.has_prompts]
        used += [task.blind.task for task, judges in prompted if judges.has_prompts and judges.blind and task.blind]
        return {task.name: task.prompt_hash for task in sorted(used, key=lambda task: task.name)}

    @property
    def meters(self) -> tuple[Meter, ...]:
        """The meters of these judges and of those they delegate to."""
        return (self.meter, *(other.meter for other in self.delegates.values()))

    def usage(self) -> dict[str, dict[str, object]]:
        """What judging has cost so far, by the name of these judges and of those they delegate to (with its task, if it is the same)."""
        out = {self.name: self.meter.to_dict()}
        for task, other in self.delegates.items():
            if other.name in out and not other.meter.name:  # the same exact judge, which costs nothing
                continue
            out[other.name if other.name not in out else f"{other.name} ({task})"] = other.meter.to_dict()
        return out

    def cost(self) -> str:
        """Usage of the models so far, for a progress bar; empty without a model."""
        return ", ".join(f"{meter.name}: {meter}" for meter in self.meters if meter.name)

    def _set_for(self, task: JudgeTask[Any]) -> JudgeSet:
        return self.delegates.get(task.name, self)


@dataclass(frozen=True)
class _TaskJudge:
    judges: JudgeSet
    task: JudgeTask[Any]

    async def judge(self, items: Sequence[Any]) -> list[Verdict]:
        return await self.judges.ask(self.task, items)


class Backend(Protocol):
    """`BACKEND` of a file of judges/backends: builds the judges from their configuration and the root of the data."""

    def __call__(self, config: schema.Judge, data_root: Path) -> JudgeSet: ...


def names() -> list[str]:
    """Names of the backends."""
    return plugin_names("judges.backends", "BACKEND")


def build(config: schema.Judge, data_root: str | Path, run: str | Path | None = None) -> JudgeSet:
    """The judges that `config` names.

    Args:
        data_root: the root of the data, where the oracle finds its truth.
        run: the folder of a run, which keeps the ledger of its spending (a cap holds over all its processes and resumes), and
            the replies of a judge whose `cache` is "run".

    Raises:
        UserError: no such backend (names the nearest), or the backend rejects its configuration.
    """
    backend: Backend = load_plugin("judges.backends", config.backend, "BACKEND", "judge backend")
    if config.cache == CACHE_OF_RUN:
        is_paid = run is not None and config.backend == PAID
        config = config.model_copy(update={"cache": str(Path(str(run)) / CACHE) if is_paid else None})
    judges = backend(config, Path(data_root))
    if run is not None and judges.meter.name:
        judges.meter.keep(Path(run) / budget.LEDGER)
    return judges


def failed_verdict(reason: str, judge: str = "", prompt_hash: str = "") -> Verdict:
    """The verdict on an item that could not be judged because of `reason`."""
    return Verdict(None, reason, True, judge, prompt_hash)
