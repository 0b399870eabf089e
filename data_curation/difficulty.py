"""The RL set by difficulty (Appendix A.3): 4 rollouts of the base model per sample; keep 0 < mean accuracy < 1.

A share (10%) of the samples that are always or never answered correctly also stays, chosen by a hash of seed and id. Candidates
are ordered by such a hash and rolled out in waves until enough are selected. So no more is sampled than necessary, and the
selection does not depend on the order in which rollouts finish. The paper does not state temperature, length, or the number
of candidates. A rollout that could not be sampled is a failure, not a wrong answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_curation.pool import Pool
from fgrpo import prompts, response
from fgrpo.errors import UserError
from fgrpo.files import Appender
from fgrpo.inference.base import NoText, Request, Sampler, SamplingError, TransientError
from fgrpo.schema import Policy
from fgrpo.types import Sample

MIN_WAVE = 8  # minimum number of candidates per source and wave
MIN_KEEP_RATE = 0.1  # lower bound of the estimated share of selected candidates, to limit the size of a wave
MIN_SAMPLES = 50  # the share of failures is taken of at least this many samples

Grade = Callable[[str | None, str, Sequence[str]], bool]


@dataclass(frozen=True)
class Settings:
    """Rollout and selection settings; `template` is the prompt, `prefix` starts the assistant turn, `policy` writes boxes."""

    rollouts: int
    temperature: float
    max_new_tokens: int
    template: str
    prefix: str
    keep_trivial: float
    max_failed_share: float
    concurrency: int
    seed: int
    policy: Policy


def fraction(seed: int, name: str) -> float:
    """A pseudo-random number in [0, 1) that depends on `seed` and `name` only."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64


def order(seed: int, ids: Sequence[str]) -> list[int]:
    """Indices of `ids`, sorted by a hash of seed and id."""
    return sorted(range(len(ids)), key=lambda i: fraction(seed, f"order/{ids[i]}"))


def is_kept(mean: float, sample_id: str, keep_trivial: float, seed: int) -> bool:
    """Whether a sample with this mean accuracy belongs to the RL set.

    Args:
        keep_trivial: share in [0, 1] of the samples with mean 0 or 1 that stay.
    """
    return 0 < mean < 1 or fraction(seed, f"trivial/{sample_id}") < keep_trivial


def _parsed(settings: Settings, text: str) -> response.Response:
    policy = settings.policy
    return response.parse(settings.prefix + text, box_tag=policy.box_tag, frame=policy.box_frame)


class DifficultyMeter:
    """Measures the mean accuracy of samples and stores it in a resumable jsonl file.

    A line is {"id", "mean", "correct": [bool], "answers": [str | None]}.

    Args:
        sampler: the engine.
        settings: see `Settings`.
        done: the open jsonl file.
        known: mean accuracy by sample id, from earlier runs.
        grade: (answer, gold answer, choices) -> whether the answer is correct.
    """

    def __init__(
        self, sampler: Sampler, settings: Settings, done: Appender, known: Mapping[str, float], grade: Grade
    ) -> None:
        self.sampler, self.settings, self.grade = sampler, settings, grade
        self.done = done
        self.means = dict(known)
        self.failed: Counter[str] = Counter()
        self.outages: set[str] = set()  # failed samples whose endpoint was down
        self._free = asyncio.Semaphore(max(1, settings.concurrency // settings.rollouts))

    async def measure(self, samples: Sequence[Sample], on_done: Callable[[str], object]) -> None:
        """Roll out the samples that are not measured yet, concurrently within `concurrency`.

        Args:
            on_done: called once per sample, with its id, when its mean is known or it failed.

        Raises:
            UserError: the share of failed samples exceeds `max_failed_share`.
        """
        unmeasured = [sample for sample in samples if sample.id not in self.means]
        for sample in samples:
            if sample.id in self.means:
                on_done(sample.id)
        tasks = [asyncio.create_task(self._measure_one(sample, on_done)) for sample in unmeasured]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _measure_one(self, sample: Sample, on_done: Callable[[str], object]) -> None:
        settings = self.settings
        request = Request(
            images=sample.images,
            text=prompts.user_text(sample, settings.template),
            prefix=settings.prefix,
            n=settings.rollouts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=int(fraction(settings.seed, f"rollout/{sample.id}") * 2**31),
        )
        async with self._free:
            try:
                completions = await self.sampler.sample(request)
            except SamplingError as error:
                if isinstance(error, TransientError) and not isinstance(error, NoText):
                    self.outages.add(sample.id)
                on_done(sample.id)
                self._fail(sample.id, str(error))
                return
        answers = [_parsed(settings, c.text).answer for c in completions]
        correct = [self.grade(answer, sample.answer, sample.choices) for answer in answers]
        mean = sum(correct) / len(correct)
        self.done.add({"id": sample.id, "mean": mean, "correct": correct, "answers": answers})
        self.means[sample.id] = mean
        on_done(sample.id)

    def _fail(self, sample_id: str, reason: str) -> None:
        self.failed[sample_id] += 1
        attempted = len(self.failed) + len(self.means)
        if len(self.failed) > self.settings.max_failed_share * max(attempted, MIN_SAMPLES):
            raise UserError(
                f"{len(self.failed)} of {attempted} samples could not be rolled out; last failure: {sample_id}: {reason}. "
                "Measured samples are kept. Fix the engine, then rerun to resume"
            )


async def choose(
    pools: Mapping[str, tuple[Pool, Sequence[int], int]], meter: DifficultyMeter, on_kept: Callable[[], object]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Select the samples of the RL set.

    Args:
        pools: by source: its pool, its candidates in order, and the target number of samples.
        meter: measures the candidates; its settings decide which are selected.
        on_kept: called once per sample of the RL set, as soon as its mean is known.

    Returns:
        Indices of the selected samples, and of all examined ones, by source and in the order of the candidates.

    Raises:
        UserError: see `DifficultyMeter.measure`.
    """
    selected: dict[str, list[int]] = {name: [] for name in pools}
    examined = dict.fromkeys(pools, 0)
    kept = dict.fromkeys(pools, 0)

    def is_selected(sample_id: str) -> bool:
        mean, settings = meter.means.get(sample_id), meter.settings
        return mean is not None and is_kept(mean, sample_id, settings.keep_trivial, settings.seed)

    while True:
        wave = {
            name: candidates[examined[name] : examined[name] + _wave_size(target, len(selected[name]), examined[name])]
            for name, (_, candidates, target) in pools.items()
        }
        if not any(wave.values()):
            return selected, {name: list(pools[name][1][:count]) for name, count in examined.items()}
        samples = {name: pools[name][0].samples(list(indices)) for name, indices in wave.items()}
        source_of = {sample.id: name for name, some in samples.items() for sample in some}

        def measured(sample_id: str, source_of: Mapping[str, str] = source_of) -> None:
            name = source_of[sample_id]
            if kept[name] < pools[name][2] and is_selected(sample_id):
                kept[name] += 1
                on_kept()

        await meter.measure([sample for some in samples.values() for sample in some], measured)
        for name, indices in wave.items():
            pool, _, target = pools[name]
            examined[name] += len(indices)
            for i in indices:
                if is_selected(pool.ids[i]) and len(selected[name]) < target:
                    selected[name].append(i)


def _wave_size(target: int, selected: int, examined: int) -> int:
    """Number of candidates of the next wave: the remaining samples divided by the selection rate so far."""
    remaining = target - selected
    if remaining <= 0:
        return 0
    rate = max(MIN_KEEP_RATE, selected / examined) if examined else 1.0
    return max(MIN_WAVE, math.ceil(remaining / rate))


def histogram(means: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Number of samples by mean accuracy, per source and for "all"."""
    out: dict[str, Counter[str]] = {"all": Counter()}
    for sample_id, mean in means.items():
        for name in ("all", sample_id.split("/", 1)[0]):
            out.setdefault(name, Counter())[f"{mean:.2f}"] += 1
    return {name: dict(sorted(counts.items())) for name, counts in out.items()}
