"""The RL set by difficulty (Appendix A.3): 4 rollouts of the base model a sample, keep 0 < mean accuracy < 1.

Of the samples that are always or never answered rightly, a share (10%) stays, by a hash of seed and id. Candidates come in
the order of such a hash and are rolled out in waves until enough are kept, so no more is sampled than needed and the choice
does not depend on which rollout comes back first. What the paper does not say: temperature, length, and how many
candidates are read. A rollout that could not be sampled is a failure, not a wrong answer.
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
from fgrpo.inference.base import Request, Sampler, SamplingError
from fgrpo.schema import Policy
from fgrpo.types import Sample

LEAST_WAVE = 8  # candidates a source and wave at least
LEAST_RATE = 0.1  # a lower share of kept candidates is not believed when a wave is sized
PATIENCE = 50  # samples before the share of failures is looked at

Grade = Callable[[str | None, str, Sequence[str]], bool]


@dataclass(frozen=True)
class Settings:
    """How a sample is rolled out and kept; `template` is the prompt, `prefix` begins the assistant's turn, `policy` writes boxes."""

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
    """A number in [0, 1) that depends on seed and name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") / 2**64


def order(seed: int, ids: Sequence[str]) -> list[int]:
    """Indices of `ids` in the order of their hashes."""
    return sorted(range(len(ids)), key=lambda i: fraction(seed, f"order/{ids[i]}"))


def is_kept(mean: float, sample_id: str, keep_trivial: float, seed: int) -> bool:
    """Whether a sample with this mean accuracy belongs to the RL set."""
    return 0 < mean < 1 or fraction(seed, f"trivial/{sample_id}") < keep_trivial


def _parsed(settings: Settings, text: str) -> response.Response:
    policy = settings.policy
    return response.parse(settings.prefix + text, box_tag=policy.box_tag, frame=policy.box_frame)


class Meter:
    """Measures samples through a sampler and remembers them in a resumable jsonl file.

    A line is {"id", "mean", "correct": [bool], "answers": [str | None]}.
    """

    def __init__(
        self, sampler: Sampler, settings: Settings, done: Appender, known: Mapping[str, float], grade: Grade
    ) -> None:
        self.sampler, self.settings, self.grade = sampler, settings, grade
        self.done = done
        self.means = dict(known)
        self.failed: Counter[str] = Counter()
        self._free = asyncio.Semaphore(max(1, settings.concurrency // settings.rollouts))

    async def measure(self, samples: Sequence[Sample], on_done: Callable[[], object]) -> None:
        """Roll out what is not measured yet, all at once as far as `concurrency` allows.

        Raises:
            UserError: too large a share of the samples failed.
        """
        waiting = [s for s in samples if s.id not in self.means]
        for _ in range(len(samples) - len(waiting)):
            on_done()
        tasks = [asyncio.create_task(self._one(sample, on_done)) for sample in waiting]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, sample: Sample, on_done: Callable[[], object]) -> None:
        s = self.settings
        request = Request(
            images=sample.images,
            text=prompts.user_text(sample, s.template),
            prefix=s.prefix,
            n=s.rollouts,
            max_new_tokens=s.max_new_tokens,
            temperature=s.temperature,
            seed=int(fraction(s.seed, f"rollout/{sample.id}") * 2**31),
        )
        async with self._free:
            try:
                completions = await self.sampler.sample(request)
            except SamplingError as error:
                self._fail(sample.id, str(error))
                return
            finally:
                on_done()
        answers = [_parsed(s, c.text).answer for c in completions]
        correct = [self.grade(answer, sample.answer, sample.choices) for answer in answers]
        mean = sum(correct) / len(correct)
        self.done.add({"id": sample.id, "mean": mean, "correct": correct, "answers": answers})
        self.means[sample.id] = mean

    def _fail(self, sample_id: str, reason: str) -> None:
        self.failed[sample_id] += 1
        asked = len(self.failed) + len(self.means)
        if len(self.failed) > self.settings.max_failed_share * max(asked, PATIENCE):
            raise UserError(
                f"{len(self.failed)} of {asked} samples could not be rolled out, the last one {sample_id}: {reason}; "
                "what is measured is kept, so mend the engine and run again"
            )


async def choose(
    pools: Mapping[str, tuple[Pool, Sequence[int], int]], meter: Meter, on_done: Callable[[], object]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Numbers of the samples of the RL set, and of all that were looked at, by source, in the order of the candidates.

    Args:
        pools: for each source its pool, its candidates in order, and how many samples are wanted.
        meter: measures, with settings that say what is kept.
        on_done: called once for each candidate looked at.
    """
    kept: dict[str, list[int]] = {name: [] for name in pools}
    looked = dict.fromkeys(pools, 0)
    while True:
        wave = {
            name: candidates[looked[name] : looked[name] + _wave_size(wanted, len(kept[name]), looked[name])]
            for name, (_, candidates, wanted) in pools.items()
        }
        if not any(wave.values()):
            return kept, {name: list(pools[name][1][:count]) for name, count in looked.items()}
        samples = [sample for name, indices in wave.items() for sample in pools[name][0].samples(list(indices))]
        await meter.measure(samples, on_done)
        for name, indices in wave.items():
            pool, _, wanted = pools[name]
            looked[name] += len(indices)
            for i in indices:
                mean = meter.means.get(pool.ids[i])
                keep = mean is not None and is_kept(mean, pool.ids[i], meter.settings.keep_trivial, meter.settings.seed)
                if keep and len(kept[name]) < wanted:
                    kept[name].append(i)


def _wave_size(wanted: int, kept: int, looked: int) -> int:
    """How many candidates to look at next: as many as are missing, by the share that was kept so far."""
    missing = wanted - kept
    if missing <= 0:
        return 0
    rate = max(LEAST_RATE, kept / looked) if looked else 1.0
    return max(LEAST_WAVE, math.ceil(missing / rate))


def histogram(means: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """Number of samples by mean accuracy, for each source and for all of them."""
    out: dict[str, Counter[str]] = {"all": Counter()}
    for sample_id, mean in means.items():
        for name in ("all", sample_id.split("/", 1)[0]):
            out.setdefault(name, Counter())[f"{mean:.2f}"] += 1
    return {name: dict(sorted(counts.items())) for name, counts in out.items()}
