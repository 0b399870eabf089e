"""Generation: every question once greedily, and `eval.sampled_rollouts` times at temperature 1 (Appendix B.1: greedy).

Each answer is appended to generations.jsonl when it arrives, so a killed run loses no finished answer and repeats none. At the
end the file is put into the order of the questions, so two runs give the same bytes. An answer truncated at the token limit has
finish "length". A request without text has finish "error" and is in no average. An unfinished run requests it again, and a
finished one too where the reason may have passed (an outage). Past `eval.max_refused_share` of such requests the stage is not
done. An engine that refuses 20 questions in a row, or an endpoint that stops answering, ends the run with an error instead of
receiving every remaining question. Differs from the paper: the sampled set is ours; it is reported separately and never mixed
into the greedy figures.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.models import ModelSpec, temperature, template, token_limit, user_text
from fgrpo import progress
from fgrpo.errors import UserError
from fgrpo.files import Appender, read_items, write_jsonl
from fgrpo.inference.base import Request, Sampler, SamplingError, Unreachable, UnusableImage
from fgrpo.schema import Config
from fgrpo.types import Rollout, Sample

GREEDY, SAMPLED = "greedy", "sampled"
TRANSIENT = "is_transient"  # in the meta of a refused rollout: whether the next run requests it again
REFUSALS_IN_A_ROW = 20  # after so many questions the engine counts as gone


@dataclass(frozen=True)
class Job:
    """One rollout to generate."""

    id: str
    sample: Sample
    kind: str
    request: Request


def jobs(samples: Sequence[Sample], spec: ModelSpec, config: Config) -> list[Job]:
    """The greedy rollout of each sample ("<sample id>"), then its sampled ones ("<sample id>#s0", …), in order."""
    texts = {True: template(spec, config), False: template(spec, config, has_choices=False)}
    greedy = temperature(spec, config)
    out = []
    for sample in samples:
        text = user_text(sample, spec, texts[bool(sample.choices)])
        for n in range(-1, config.eval.sampled_rollouts if spec.mode == "think" else 0):
            kind, rollout_id = (GREEDY, sample.id) if n < 0 else (SAMPLED, f"{sample.id}#s{n}")
            request = Request(
                images=sample.images,
                text=text,
                prefix=spec.prefix,
                max_new_tokens=token_limit(spec, config),
                temperature=greedy if n < 0 else config.eval.sampled_temperature,
                seed=(config.seed + zlib.crc32(rollout_id.encode())) % 2**31,
            )
            out.append(Job(rollout_id, sample, kind, request))
    return out


@dataclass
class _Watch:
    """Whether the engine still serves. Requests that were refused before are expected to fail again and do not count."""

    expected: Set[str]
    served: int = 0
    unanswered: int = 0
    in_a_row: set[str] = field(default_factory=set)  # questions refused since the last answer
    last: str = ""
    given_up: bool = False

    def record(self, job: Job, error: SamplingError | None) -> None:
        """Record how one request ended. After 20 refused questions in a row the engine is given up for good.

        Questions whose image cannot be used do not count: the engine still serves.
        """
        if error is None:
            self.served += 1
            self.in_a_row.clear()
            return
        self.last = str(error)
        if isinstance(error, UnusableImage):
            return
        self.unanswered += isinstance(error, Unreachable)
        if isinstance(error, Unreachable) or job.id not in self.expected:
            self.in_a_row.add(job.sample.id)
        self.given_up = self.given_up or len(self.in_a_row) >= REFUSALS_IN_A_ROW

    @property
    def is_gone(self) -> bool:
        """Whether the engine was given up, or never answered at all."""
        return self.given_up or (self.unanswered > 0 and self.served == 0)


async def generate(
    todo: Sequence[Job],
    sampler: Sampler,
    path: Path,
    *,
    concurrency: int,
    title: str = "",
    refused_before: Set[str] = frozenset(),
) -> Counter[str]:
    """Generate the rollouts of `todo` that `path` lacks; returns counts by finish ("stop", "length", "error").

    Args:
        refused_before: ids that an earlier run was refused, besides those that `path` still holds.

    Raises:
        UserError: 20 questions in a row were refused, no endpoint answered, or nothing of `todo` was served (with the last
            reason). Finished answers stay in the file.
    """
    watch = _Watch(refused_before | forget_refusals(path))
    slots = asyncio.Semaphore(concurrency)
    with Appender(path) as out:
        pending = [job for job in todo if job.id not in out]
        bar = progress.bar(f"generate {title}".strip(), len(pending), "answer")

        async def one(job: Job) -> None:
            async with slots:
                if watch.given_up:
                    return
                rollout, error = await _sample(job, sampler)
            watch.record(job, error)
            out.add(rollout.to_dict())
            bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for job in pending:
                    group.create_task(one(job))
        except* UserError as errors:
            raise errors.exceptions[0] from None
        finally:
            bar.close()
    if watch.is_gone or not held_ids(path) & {job.id for job in todo}:
        how_far = (
            f"the engine served {watch.served} of this run's requests and then no more; the last refusal"
            if watch.served
            else "the engine answered none of this run's requests; the last refusal"
        )
        kept = f"finished answers are kept in {path}; " if held_ids(path) else ""
        raise UserError(f"{how_far}: {watch.last}; {kept}fix the engine, then rerun to resume")
    return settle(path, todo)


async def _sample(job: Job, sampler: Sampler) -> tuple[Rollout, SamplingError | None]:
    meta = {"kind": job.kind}
    try:
        (completion, *_) = await sampler.sample(job.request)
    except SamplingError as error:
        reason = {"error": str(error)[:500], TRANSIENT: error.is_transient}
        return Rollout(job.id, job.sample.id, "", "error", 0, {**meta, **reason}), error
    text = job.request.prefix + completion.text
    return Rollout(job.id, job.sample.id, text, completion.finish, completion.tokens, meta), None


def _stored(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a generations.jsonl. Raises UserError for a line that is no answer."""

    def checked(item: dict[str, Any]) -> dict[str, Any]:
        return {**item, **Rollout.from_dict(item).to_dict()}

    return read_items(path, checked, "answer")


def held_ids(path: Path) -> set[str]:
    """Ids of the answers that `path` holds, without refused ones."""
    return {item["id"] for item in _stored(path) if item["finish"] != "error"} if path.exists() else set()


def transient(path: Path, todo: Sequence[Job]) -> int:
    """Number of rollouts of `todo` that `path` lacks for a reason that may have passed."""
    ids = {job.id for job in todo}
    stored = (item for item in _stored(path) if item["id"] in ids and item["finish"] == "error")
    return sum(bool(item["meta"].get(TRANSIENT)) for item in stored)


def first_refusal(path: Path) -> str:
    """The reason of the first refused request in `path`; "" if there is none."""
    return next((item["meta"].get("error", "") for item in _stored(path) if item["finish"] == "error"), "")


def forget_refusals(path: Path) -> set[str]:
    """Remove refused rollouts from `path`, so that they are retried; returns their ids."""
    stored = list(_stored(path)) if path.exists() else []
    served = [item for item in stored if item["finish"] != "error"]
    if len(served) < len(stored):
        write_jsonl(path, served)
    return {item["id"] for item in stored if item["finish"] == "error"}


def settle(path: Path, todo: Sequence[Job]) -> Counter[str]:
    """Put the file, which holds all of `todo`, into that order, with rollouts of other benchmarks at its end.

    Returns counts by finish.
    """
    stored = {item["id"]: item for item in _stored(path)}
    ids = [job.id for job in todo]
    others = sorted(set(stored) - set(ids))
    write_jsonl(path, [stored[i] for i in [*ids, *others]])
    return Counter(stored[i]["finish"] for i in ids)
