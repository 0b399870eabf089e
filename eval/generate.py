"""Generation: every question once greedily, and `eval.sampled_rollouts` times at temperature 1 (Appendix B.1: greedy).

Each answer is appended to generations.jsonl as it comes, so a killed run loses nothing that was finished and repeats
nothing; at the end the file is put into the order of the questions, so that two runs give the same bytes. What was cut off
by the token limit has finish "length"; what the engine refused has finish "error", an empty text, and is asked again by the
next run. Differs from the paper: the sampled set is ours; it is reported apart and never mixed into the greedy figures.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.models import ModelSpec, template, user_text
from fgrpo import jsonl, progress
from fgrpo.errors import UserError
from fgrpo.sampling.base import Request, Sampler, SamplingError
from fgrpo.schema import Config
from fgrpo.types import Rollout, Sample

GREEDY, SAMPLED = "greedy", "sampled"
REFUSALS_IN_A_ROW = 20  # an endpoint that only refuses is not asked for every question of seven benchmarks


@dataclass(frozen=True)
class Job:
    """One rollout to make."""

    id: str
    sample: Sample
    kind: str
    request: Request


def jobs(samples: Sequence[Sample], spec: ModelSpec, config: Config) -> list[Job]:
    """The greedy rollout of each sample ("<sample id>"), then its sampled ones ("<sample id>#s0", …), in order."""
    texts = {True: template(spec, config), False: template(spec, config, has_choices=False)}
    out = []
    for sample in samples:
        text = user_text(sample, spec, texts[bool(sample.choices)])
        for n in range(-1, config.eval.sampled_rollouts if spec.mode == "think" else 0):
            kind, rollout_id = (GREEDY, sample.id) if n < 0 else (SAMPLED, f"{sample.id}#s{n}")
            request = Request(
                images=sample.images,
                text=text,
                prefix=spec.prefix,
                max_new_tokens=spec.max_new_tokens or config.eval.max_new_tokens,
                temperature=config.eval.temperature if n < 0 else config.eval.sampled_temperature,
                seed=(config.seed + zlib.crc32(rollout_id.encode())) % 2**31,
            )
            out.append(Job(rollout_id, sample, kind, request))
    return out


async def generate(
    todo: Sequence[Job], sampler: Sampler, path: Path, *, concurrency: int, title: str = ""
) -> Counter[str]:
    """Make the rollouts of `todo` that `path` does not hold yet; returns how many ended how ("stop", "length", "error").

    Raises:
        UserError: the first 20 requests were all refused (the last reason is given); what was made stays in the file.
    """
    forget_refusals(path)
    waiting = asyncio.Semaphore(concurrency)
    refused = 0
    succeeded = False
    with jsonl.Appender(path) as out:
        pending = [job for job in todo if job.id not in out]
        bar = progress.bar(f"generate {title}".strip(), len(pending), "answer")

        async def one(job: Job) -> None:
            nonlocal refused, succeeded
            async with waiting:
                if refused >= REFUSALS_IN_A_ROW and not succeeded:
                    return
                rollout = await _ask(job, sampler)
            out.add(rollout.to_dict())
            refused += rollout.finish == "error"
            succeeded = succeeded or rollout.finish != "error"
            bar.update()

        try:
            async with asyncio.TaskGroup() as group:
                for job in pending:
                    group.create_task(one(job))
        except* UserError as errors:
            raise errors.exceptions[0] from None
        finally:
            bar.close()
    return settle(path, todo, succeeded or not pending)


async def _ask(job: Job, sampler: Sampler) -> Rollout:
    meta = {"kind": job.kind}
    try:
        (completion, *_) = await sampler.sample(job.request)
    except SamplingError as error:
        return Rollout(job.id, job.sample.id, "", "error", 0, {**meta, "error": str(error)[:500]})
    text = job.request.prefix + completion.text
    return Rollout(job.id, job.sample.id, text, completion.finish, len(completion.token_ids), meta)


def held_ids(path: Path) -> set[str]:
    """Ids of the answers that `path` holds, refused ones aside."""
    return {item["id"] for item in jsonl.read(path) if item["finish"] != "error"} if path.exists() else set()


def first_refusal(path: Path) -> str:
    """Why the first refused request of `path` was refused; "" if none was."""
    return next((item["meta"].get("error", "") for item in jsonl.read(path) if item["finish"] == "error"), "")


def forget_refusals(path: Path) -> None:
    """Take refused rollouts out of `path`, so that they are asked again."""
    if path.exists():
        held = list(jsonl.read(path))
        kept = [item for item in held if item["finish"] != "error"]
        if len(kept) < len(held):
            jsonl.write(path, kept)


def settle(path: Path, todo: Sequence[Job], answered: bool) -> Counter[str]:
    """Put the file into the order of `todo` (rollouts of other benchmarks behind it), and count."""
    held = {item["id"]: item for item in jsonl.read(path)}
    wanted = [job.id for job in todo]
    asked = set(wanted)
    finishes = Counter(held[i]["finish"] for i in wanted if i in held)
    if not answered:
        raise UserError(
            f"the engine refused the first {finishes['error']} requests and served none: {first_refusal(path) or 'no answer'}; "
            f"what {path} held before is kept"
        )
    others = sorted(i for i in held if i not in asked)
    jsonl.write(path, [held[i] for i in [*wanted, *others]])
    return finishes
