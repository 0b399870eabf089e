"""The data stage: real or miniature data sets in, seed questions for MCTS and the RL set out. Appendix A.3.

Writes `runs/<preset>/data/`: pool/ (all usable samples, one file per source), seed.jsonl (representatives of question
clusters), difficulty.jsonl (rollouts of the base model), rl.jsonl (samples of intermediate difficulty), dropped.json, report.md,
and images/ for images that are stored inside rows. Seed and RL set share no sample. Each step resumes.

On several machines: `--prepare` stops before the difficulty rollouts, and `--shard 3/8` measures one shard of the candidates
(fgrpo/shards.py). The stage without either option merges the shards, rolls out the remaining candidates, and finishes.
`--jobs 2` does all of this with two processes on this machine. How many there are does not change the outputs.

Command: `python -m data_curation.run --preset mini [--prepare | --shard 3/8 | --jobs 2]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_curation import clustering, difficulty, report, shortcuts, source
from data_curation.moved import check_images
from data_curation.pool import Pool, build, written
from fgrpo import inference, parallel, prompts, recorded, shards
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_items, read_jsonl, write_jsonl
from fgrpo.hashing import Hashes
from fgrpo.inference.base import Sampler
from fgrpo.inference.lazy import LazySampler
from fgrpo.pending import COUNT, pending
from fgrpo.policy import model_files
from fgrpo.runs import DONE, Run, folder, is_done, same_identity, write_json
from fgrpo.schema import Config
from fgrpo.shards import Shard
from fgrpo.types import Sample
from rewards.task import matches

DIFFICULTY = "difficulty.jsonl"
SELECTED = "selected.json"
Candidates = dict[str, tuple[Pool, list[int], int]]
OUTPUTS = ("seed.jsonl", "rl.jsonl", recorded.IMAGES, DIFFICULTY, "dropped.json", "clusters.json", "report.md")


def curate(
    config: Config, runs: str | Path = "runs", sampler: Sampler | None = None, *, prepare_only: bool = False
) -> Path:
    """Run or resume the stage and return its folder.

    Args:
        sampler: the engine of the difficulty rollouts; by default the configured one over `models.base`.
        prepare_only: stop after pools and seed questions are written.

    Raises:
        UserError: a data set is missing or unreadable, or too many rollouts fail.
    """
    sources, train, inputs = _sources(config)
    if is_curated(config, runs):
        check_images(folder(config, "data", runs), config.data.root)
        return folder(config, "data", runs)
    with Run.open(config, "data", inputs, root=runs) as stage:
        check_images(stage.path, config.data.root)
        if stage.is_done and not pending(stage.path):
            return stage.path
        stage.reopen()
        _check_sources(config, sources, stage.path)
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
        seeds = {name: [i for cluster in group for i in cluster.picked] for name, group in clusters.items()}
        write_jsonl(
            stage.path / "seed.jsonl",
            (_prepared(config, s).to_dict() for name, indices in seeds.items() for s in pools[name].samples(indices)),
        )
        if prepare_only:
            return stage.path
        shards.gather(stage, DIFFICULTY)
        candidates = _candidates(config, pools, seeds)
        meter, selected, examined = asyncio.run(_choose(config, stage, candidates, sampler))
        examined_ids = [pools[name].ids[i] for name, indices in examined.items() for i in indices]
        means = _settle(stage.path / DIFFICULTY, examined_ids)
        _write_rl(config, stage.path / "rl.jsonl", pools, selected, means)
        _write_images(stage.path)
        examples = {
            name: [{"size": c.size, "examples": [pools[name].questions[i] for i in c.picked[:3]]} for c in group]
            for name, group in clusters.items()
        }
        write_json(stage.path / "clusters.json", examples)
        write_json(stage.path / "dropped.json", {name: pool.tally.to_dict() for name, pool in pools.items()})
        counts = {name: (len(seeds[name]), len(selected[name])) for name in pools}
        histograms = difficulty.histogram(means)
        found = {name: shortcuts.measure(pool) for name, pool in pools.items()}
        text = report.write(config.data, pools, counts, examples, histograms, dict(meter.failed), found)
        (stage.path / "report.md").write_text(text, encoding="utf-8")
        for name, (seed_count, rl_count) in counts.items():
            stage.counts.update({f"{name}/pool": len(pools[name]), f"{name}/seed": seed_count, f"{name}/rl": rl_count})
        stage.counts.update({"rollouts/scored": len(means), "rollouts/failed": len(meter.failed)})
        if meter.outages:
            stage.counts[COUNT] = len(meter.outages)
            print(f"{len(meter.outages)} samples have no difficulty because of their endpoint; rerun to measure them")
        stage.finish(OUTPUTS, difficulty=histograms, parts_seconds=shards.seconds(stage))
        return stage.path


def measure_shard(config: Config, shard: Shard, runs: str | Path = "runs", sampler: Sampler | None = None) -> Path:
    """Run the difficulty rollouts for one shard of every source's candidates, up to its share of the RL set.

    Raises:
        UserError: `--prepare` has not been run with this configuration, or too many rollouts fail.
    """
    _, _, inputs = _sources(config)
    with Run.open(config, shards.stage("data", shard), inputs, root=runs) as stage:
        if stage.is_done:
            return stage.path
        stage_folder = folder(config, "data", runs)
        check_images(stage_folder, config.data.root)
        pools = {name: written(stage_folder / "pool" / f"{name}.jsonl") for name in config.data.sources}
        seeds = stage_folder / "seed.jsonl"
        if not same_identity(stage.path, stage_folder) or not seeds.exists() or None in pools.values():
            raise UserError(
                f"{stage_folder} has no pools and seed questions of this configuration. First run "
                f"`python -m data_curation.run --preset {config.preset} --prepare`"
            )
        built_pools = {name: pool for name, pool in pools.items() if pool is not None}
        seed_ids = read_ids(seeds)
        seed_indices = {
            name: [i for i, sample_id in enumerate(pool.ids) if sample_id in seed_ids]
            for name, pool in built_pools.items()
        }
        candidates = {
            name: (pool, shard.take(order), math.ceil(target / shard.count))
            for name, (pool, order, target) in _candidates(config, built_pools, seed_indices).items()
        }
        known = _read_means(stage_folder / DIFFICULTY)
        meter, _, _ = asyncio.run(_choose(config, stage, candidates, sampler, known))
        stage.counts.update({"rollouts/scored": len(meter.means), "rollouts/failed": len(meter.failed)})
        stage.finish((DIFFICULTY,))
        return stage.path


def is_curated(config: Config, runs: str | Path = "runs") -> bool:
    """Whether the stage is done, and has no sample that another attempt may roll out. Raises UserError: a data set is missing."""
    path = folder(config, "data", runs)
    return (path / DONE).exists() and is_done(config, "data", runs, _sources(config)[2]) and not pending(path)


def measure_shards(config: Config, args: argparse.Namespace) -> None:
    """Run the difficulty rollouts in `args.jobs` parallel processes, one shard each; `curate` then merges them.

    Raises:
        UserError: see `curate`; or a shard failed.
    """
    _, _, inputs = _sources(config)
    if not is_done(config, "data", args.runs, inputs):
        curate(config, args.runs, prepare_only=True)
        parallel.run_shards("data_curation.run", args, "difficulty rollouts")


def _sources(config: Config) -> tuple[dict[str, source.Source], Path, list[Path]]:
    """The data sets, the folder that contains them, and their annotation files."""
    sources = {name: source.source(name) for name in config.data.sources}
    train = Path(config.data.root) / "train"
    return sources, train, [path for s in sources.values() for path in _annotations(s, train / s.folder, config)]


def _check_sources(config: Config, sources: Mapping[str, source.Source], folder: Path) -> None:
    """UserError if a file of the miniature world is not what its stage wrote. Real data sets were checked when downloaded."""
    root, hashes = Path(config.data.root), Hashes(folder.parent)
    below = tuple(f"train/{s.folder}/" for s in sources.values())
    remedy = "`make data` writes it again"
    recorded.check(root / recorded.LIST, root, hashes, lambda name: name.startswith(below), remedy)
    hashes.save()


def _write_images(folder: Path) -> None:
    """The list of the images of both sets, which later stages compare with the files."""
    rows = (row for name in ("seed.jsonl", "rl.jsonl") for row in read_jsonl(folder / name))
    names = sorted({path for row in rows for path in row["images"]})
    hashes = Hashes(folder.parent)
    recorded.write(folder / recorded.IMAGES, Path(), names, hashes)
    hashes.save()


def _all_clusters(config: Config, cache: Path, pools: Mapping[str, Pool]) -> dict[str, list[clustering.Cluster]]:
    """Clusters of every source's questions, cached in a file, because embedding takes hours at the paper's scale."""
    try:
        stored = json.loads(cache.read_text(encoding="utf-8"))
        clusters = {name: [clustering.Cluster(size, tuple(picked)) for size, picked in stored[name]] for name in pools}
        if all(sum(c.size for c in clusters[name]) in (0, len(pool)) for name, pool in pools.items()):
            return clusters
    except (OSError, ValueError, KeyError, TypeError):  # missing or damaged
        pass
    clusters = {name: _clusters(config, name, pool) for name, pool in pools.items()}
    write_json(cache, {name: [(c.size, c.picked) for c in group] for name, group in clusters.items()})
    return clusters


def _candidates(config: Config, pools: Mapping[str, Pool], seeds: Mapping[str, list[int]]) -> Candidates:
    """Per source: its pool, all samples but the seed questions in hash order, and the target number of samples."""
    out: Candidates = {}
    for name, pool in pools.items():
        seed_ids = set(seeds[name])
        order = [i for i in difficulty.order(config.seed, pool.ids) if i not in seed_ids]
        out[name] = (pool, order, config.data.sources[name].rl)
    return out


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the difficulty file. Raises as `read_items` expects for any other."""
    if not isinstance(row["id"], str):
        raise TypeError("its id is no text")
    float(row["mean"])
    return row


def _read_means(path: Path) -> dict[str, float]:
    """Mean accuracy by sample id in a difficulty file; empty if there is none."""
    if not path.exists():
        return {}
    return {row["id"]: row["mean"] for row in read_items(path, _measured, "measured sample")}


def _settle(path: Path, ids: list[str]) -> dict[str, float]:
    """Sort the measured samples by candidate, drop those that were not needed, and return mean accuracy by id."""
    rows_by_id = {row["id"]: row for row in read_items(path, _measured, "measured sample")}
    rows = [rows_by_id[i] for i in ids if i in rows_by_id]
    write_jsonl(path, rows)
    return {row["id"]: row["mean"] for row in rows}


def _annotations(data_set: source.Source, folder: Path, config: Config) -> list[Path]:
    files = data_set.files(folder) if folder.is_dir() else []
    if not files:
        raise UserError(
            f"no annotation files of {data_set.name} in {folder}; "
            + (
                f"`make world PRESET={config.preset}` writes the miniature ones"
                if config.world is not None
                else f"`make data-download PRESET={config.preset}` downloads {data_set.hub}"
            )
        )
    return files


def _clusters(config: Config, name: str, pool: Pool) -> list[clustering.Cluster]:
    data = config.data
    return clustering.select(
        pool.questions, data.sources[name].seed, data.per_cluster, config.seed, data.embedder, data.embedder_model
    )


def _prepared(config: Config, sample: Sample, **meta: object) -> Sample:
    """A sample for the later stages: boxes only if `data.boxes_from` includes its source."""
    boxes = sample.boxes if sample.source in config.data.boxes_from else None
    return Sample(
        sample.id, sample.images, sample.question, sample.choices, sample.answer, boxes, {**sample.meta, **meta}
    )


async def _choose(
    config: Config,
    stage: Run,
    candidates: Candidates,
    sampler: Sampler | None,
    known: Mapping[str, float] | None = None,
) -> tuple[difficulty.DifficultyMeter, dict[str, list[int]], dict[str, list[int]]]:
    """The meter after measuring, the selected samples, and the examined samples; `known` means are not measured again."""
    data = config.data
    settings = difficulty.Settings(
        rollouts=data.difficulty_rollouts,
        temperature=data.difficulty_temperature,
        max_new_tokens=data.difficulty_max_new_tokens,
        template=prompts.read_for(config.policy, config.prompts.think),
        prefix=data.difficulty_prefix,
        keep_trivial=data.keep_trivial,
        max_failed_share=data.max_failed_share,
        concurrency=config.engine.concurrency,
        seed=config.seed,
        policy=config.policy,
    )
    base = config.models.base
    engine = sampler or LazySampler(
        lambda: inference.build(config, base, model_files.asked_bounds(base, config.policy.pixels))
    )
    measured = {**(known or {}), **_read_means(stage.path / DIFFICULTY)}
    target = sum(count for _, _, count in candidates.values())
    try:
        with stage.append(DIFFICULTY) as done, tqdm(total=target, desc="difficulty", unit=" kept") as bar:
            meter = difficulty.DifficultyMeter(engine, settings, done, measured, matches)
            selected, examined = await difficulty.choose(candidates, meter, bar.update)
            bar.total = bar.n  # fewer than wanted where a source has no more candidates
            bar.refresh()
            return meter, selected, examined
    finally:
        if sampler is None:
            await engine.close()


def _write_rl(
    config: Config, path: Path, pools: Mapping[str, Pool], selected: Mapping[str, list[int]], means: Mapping[str, float]
) -> None:
    """Write the RL set with sources mixed, in the order of a hash of the ids."""
    pairs = [(name, i) for name, indices in selected.items() for i in indices]
    ids = [pools[name].ids[i] for name, i in pairs]
    ranked = [pairs[k] for k in difficulty.order(config.seed + 1, ids)]
    samples = (pools[name].samples([i])[0] for name, i in ranked)
    write_jsonl(path, (_prepared(config, s, difficulty=means[s.id]).to_dict() for s in samples))


def main() -> None:
    """Entry point."""

    def body(args: argparse.Namespace) -> None:
        config, shard = load(args.preset, args.method, args.set), shards.of(args)
        if shard is not None:
            print(f"difficulty in {measure_shard(config, shard, args.runs)}; run without --shard to merge")
            return
        if args.jobs > 1 and not args.prepare:
            measure_shards(config, args)
        path = curate(config, args.runs, prepare_only=args.prepare)
        print(
            f"pools and seed questions in {path}" if args.prepare else f"curated data in {path}; open report.md there"
        )

    arguments = parser("curate the training data: seed questions by cluster, RL set by difficulty")
    arguments.add_argument("--prepare", action="store_true", help="stop before the difficulty rollouts")
    shards.add_option(arguments)
    arguments.add_argument(
        "--jobs", type=int, default=1, help="number of processes that share the rollouts, for an in-process engine"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
