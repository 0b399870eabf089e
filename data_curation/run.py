"""The data stage: real (or miniature) data sets in, seed questions for MCTS and the RL set out. Appendix A.3.

`runs/<preset>/data/`: pool/ (all usable samples, a file a source), seed.jsonl (representatives of question clusters),
difficulty.jsonl (rollouts of the base model), rl.jsonl (samples of intermediate difficulty), dropped.json, report.md, and
images/ for pictures that lie inside a data set's rows. Seed and RL set share no sample. Each step resumes.
Over many machines: `--prepare` stops before the difficulty rollouts, `--shard 3/8` makes a part of them (fgrpo/shards.py), and
the stage without either takes them over, rolls out the few that are still missing, and finishes.
Command: `python -m data_curation.run --preset mini [--prepare | --shard 3/8]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from data_curation import clustering, difficulty, report, source
from data_curation.pool import Pool, build, written
from fgrpo import inference, prompts, shards
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_jsonl, write_jsonl
from fgrpo.inference.base import Sampler
from fgrpo.runs import Run, folder, is_done, same_identity, write_json
from fgrpo.schema import Config
from fgrpo.shards import Shard
from fgrpo.types import Sample
from rewards.task import matches

DIFFICULTY = "difficulty.jsonl"
SELECTED = "selected.json"
Candidates = dict[str, tuple[Pool, list[int], int]]
OUTPUTS = ("seed.jsonl", "rl.jsonl", DIFFICULTY, "dropped.json", "clusters.json", "report.md")


def curate(
    config: Config, runs: str | Path = "runs", sampler: Sampler | None = None, *, prepare_only: bool = False
) -> Path:
    """Run the stage (or what is left of it) and return its folder.

    Args:
        sampler: the engine for difficulty rollouts; by default the one that the configuration names, over `models.base`.
        prepare_only: stop when pools and seed questions are there.

    Raises:
        UserError: a data set is missing or unreadable, or the engine fails too often.
    """
    sources, train, inputs = _sources(config)
    if is_done(config, "data", runs, inputs):
        return folder(config, "data", runs)
    with Run.open(config, "data", inputs, root=runs) as stage:
        if stage.is_done:
            return stage.path
        pools = {
            name: build(
                s,
                source.Context(
                    train / s.folder, stage.path / "images" / name, config.seed, config.data.choices, source.Tally()
                ),
                stage.path / "pool" / f"{name}.jsonl",
                config.data.sources[name].pool,
            )
            for name, s in sources.items()
        }
        clusters = _all_clusters(config, stage.path / SELECTED, pools)
        seeds = {name: [i for cluster in found for i in cluster.picked] for name, found in clusters.items()}
        write_jsonl(
            stage.path / "seed.jsonl",
            (_prepared(config, s).to_dict() for name, indices in seeds.items() for s in pools[name].samples(indices)),
        )
        if prepare_only:
            return stage.path
        shards.gather(stage, DIFFICULTY)
        candidates = _candidates(config, pools, seeds)
        meter, kept, looked = asyncio.run(_choose(config, stage, candidates, sampler))
        means = _settle(stage.path / DIFFICULTY, [pools[name].ids[i] for name, found in looked.items() for i in found])
        _write_rl(config, stage.path / "rl.jsonl", pools, kept, means)
        shown = {
            name: [{"size": c.size, "examples": [pools[name].questions[i] for i in c.picked[:3]]} for c in found]
            for name, found in clusters.items()
        }
        write_json(stage.path / "clusters.json", shown)
        write_json(stage.path / "dropped.json", {name: pool.tally.to_dict() for name, pool in pools.items()})
        counts = {name: (len(seeds[name]), len(kept[name])) for name in pools}
        spread = difficulty.histogram(means)
        text = report.write(config.data, pools, counts, shown, spread, dict(meter.failed))
        (stage.path / "report.md").write_text(text, encoding="utf-8")
        for name, (seed_count, rl_count) in counts.items():
            stage.counts.update({f"{name}/pool": len(pools[name]), f"{name}/seed": seed_count, f"{name}/rl": rl_count})
        stage.counts.update({"rollouts/scored": len(means), "rollouts/failed": len(meter.failed)})
        stage.finish(OUTPUTS, difficulty=spread, parts_seconds=shards.seconds(stage))
        return stage.path


def measure_part(config: Config, shard: Shard, runs: str | Path = "runs", sampler: Sampler | None = None) -> Path:
    """Difficulty rollouts of one shard of every source's candidates, as many as its share of the RL set takes.

    Raises:
        UserError: `--prepare` was not run with this configuration, or the engine fails too often.
    """
    _, _, inputs = _sources(config)
    with Run.open(config, shards.stage("data", shard), inputs, root=runs) as stage:
        if stage.is_done:
            return stage.path
        whole = folder(config, "data", runs)
        pools = {name: written(whole / "pool" / f"{name}.jsonl") for name in config.data.sources}
        seeds = whole / "seed.jsonl"
        if not same_identity(stage.path, whole) or not seeds.exists() or None in pools.values():
            raise UserError(
                f"{whole} has no pools and seed questions of this configuration; run "
                f"`python -m data_curation.run --preset {config.preset} --prepare` first"
            )
        there = {name: pool for name, pool in pools.items() if pool is not None}
        taken = read_ids(seeds)
        chosen = {name: [i for i, found in enumerate(pool.ids) if found in taken] for name, pool in there.items()}
        candidates = {
            name: (pool, shard.take(order), math.ceil(wanted / shard.count))
            for name, (pool, order, wanted) in _candidates(config, there, chosen).items()
        }
        meter, _, _ = asyncio.run(_choose(config, stage, candidates, sampler))
        stage.counts.update({"rollouts/scored": len(meter.means), "rollouts/failed": len(meter.failed)})
        stage.finish((DIFFICULTY,))
        return stage.path


def _sources(config: Config) -> tuple[dict[str, source.Source], Path, list[Path]]:
    """The data sets, the folder they lie in, and the files that they are read from."""
    sources = {name: source.source(name) for name in config.data.sources}
    train = Path(config.data.root) / "train"
    return sources, train, [path for s in sources.values() for path in _annotations(s, train / s.folder)]


def _all_clusters(config: Config, kept: Path, pools: Mapping[str, Pool]) -> dict[str, list[clustering.Cluster]]:
    """Clusters of every source's questions; kept in a file, since embedding takes hours at the paper's scale."""
    try:
        known = json.loads(kept.read_text(encoding="utf-8"))
        found = {name: [clustering.Cluster(size, tuple(picked)) for size, picked in known[name]] for name in pools}
        if all(sum(c.size for c in found[name]) in (0, len(pool)) for name, pool in pools.items()):
            return found
    except (OSError, ValueError, KeyError, TypeError):  # not there yet, or damaged
        pass
    found = {name: _clusters(config, name, pool) for name, pool in pools.items()}
    write_json(kept, {name: [(c.size, c.picked) for c in clusters] for name, clusters in found.items()})
    return found


def _candidates(config: Config, pools: Mapping[str, Pool], seeds: Mapping[str, list[int]]) -> Candidates:
    """For each source its pool, what is not a seed question in the order of its hash, and how many are wanted."""
    out: Candidates = {}
    for name, pool in pools.items():
        taken = set(seeds[name])
        order = [i for i in difficulty.order(config.seed, pool.ids) if i not in taken]
        out[name] = (pool, order, config.data.sources[name].rl)
    return out


def _settle(path: Path, ids: list[str]) -> dict[str, float]:
    """Put the measured samples into the candidates' order, leave out what need not have been looked at; their means."""
    held = {row["id"]: row for row in read_jsonl(path)}
    rows = [held[i] for i in ids if i in held]
    write_jsonl(path, rows)
    return {row["id"]: row["mean"] for row in rows}


def _annotations(found: source.Source, folder: Path) -> list[Path]:
    files = found.files(folder) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"no annotation files of {found.name} in {folder}; the miniature world's are written by "
            f"`python -m miniworld.write`, the real ones are {found.hub}"
        )
    return files


def _clusters(config: Config, name: str, pool: Pool) -> list[clustering.Cluster]:
    data = config.data
    return clustering.select(
        pool.questions, data.sources[name].seed, data.per_cluster, config.seed, data.embedder, data.embedder_model
    )


def _prepared(config: Config, sample: Sample, **meta: object) -> Sample:
    """A sample as the later stages get it: boxes only where the configuration wants them from its source."""
    boxes = sample.boxes if sample.source in config.data.boxes_from else None
    return Sample(
        sample.id, sample.images, sample.question, sample.choices, sample.answer, boxes, {**sample.meta, **meta}
    )


async def _choose(
    config: Config, stage: Run, candidates: Candidates, sampler: Sampler | None
) -> tuple[difficulty.Meter, dict[str, list[int]], dict[str, list[int]]]:
    """The meter after its work, the samples kept, and those looked at."""
    data = config.data
    settings = difficulty.Settings(
        rollouts=data.difficulty_rollouts,
        temperature=data.difficulty_temperature,
        max_new_tokens=data.difficulty_max_new_tokens,
        template=prompts.read(config.prompts.think),
        prefix=data.difficulty_prefix,
        keep_trivial=data.keep_trivial,
        max_failed_share=data.max_failed_share,
        concurrency=config.engine.concurrency,
        seed=config.seed,
    )
    engine = sampler or inference.build(config, config.models.base)
    past = stage.path / DIFFICULTY
    known: dict[str, float] = {row["id"]: row["mean"] for row in read_jsonl(past)} if past.exists() else {}
    wanted = sum(count for _, _, count in candidates.values())
    try:
        with stage.append(DIFFICULTY) as done, tqdm(total=wanted, desc="difficulty", unit=" samples") as bar:
            meter = difficulty.Meter(engine, settings, done, known, matches)

            def step() -> None:
                bar.total = max(bar.total, bar.n + 1)  # how many candidates it takes is not known before
                bar.update()

            kept, looked = await difficulty.choose(candidates, meter, step)
            return meter, kept, looked
    finally:
        if sampler is None:
            await engine.close()


def _write_rl(
    config: Config, path: Path, pools: Mapping[str, Pool], kept: Mapping[str, list[int]], means: Mapping[str, float]
) -> None:
    """The RL set, sources mixed in the order of their ids' hashes."""
    everything = [(name, i) for name, indices in kept.items() for i in indices]
    ids = [pools[name].ids[i] for name, i in everything]
    ranked = [everything[k] for k in difficulty.order(config.seed + 1, ids)]
    samples = (pools[name].samples([i])[0] for name, i in ranked)
    write_jsonl(path, (_prepared(config, s, difficulty=means[s.id]).to_dict() for s in samples))


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config, shard = load(args.preset, args.method, args.set), shards.of(args)
        if shard is not None:
            print(f"difficulty in {measure_part(config, shard, args.runs)}; a run without --shard merges")
            return
        path = curate(config, args.runs, prepare_only=args.prepare)
        print(f"pools and seed questions in {path}" if args.prepare else f"curated data in {path}; see report.md there")

    arguments = parser("curate the training data: seed questions by cluster, RL set by difficulty")
    arguments.add_argument("--prepare", action="store_true", help="stop before the difficulty rollouts")
    shards.add_option(arguments)
    run(body, arguments)


if __name__ == "__main__":
    main()
