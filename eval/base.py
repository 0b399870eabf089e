"""What every benchmark loader shares: finding files, reading rows, pictures, and options that stand inside the question.

A benchmark is one module of `eval/benchmarks` with one constant `BENCHMARK`. Its `read` yields `Sample`s or `Drop`s from
the data set's own files (schemas: the module's docstring); `load` adds the checks that hold for all of them: every picture
is there, ids are unique, and at paper scale the published number of scored trials (Appendix B.1: 1438, 1200, 1050, 300,
1533, 765, 300) is met. Rows that cannot be used are counted under a reason, never dropped silently.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.schema import Config
from fgrpo.types import Sample


@dataclass(frozen=True)
class Drop:
    """A row that cannot be scored, and why."""

    reason: str


@dataclass(frozen=True)
class Benchmark:
    """One column of Table 1.

    Attributes:
        name: module name and first part of every sample id.
        title: heading in the tables.
        folder: the data set's folder below `<data root>/bench`.
        source: where the data comes from, for error messages.
        read: (data set folder, cache folder for pictures) -> samples and drops.
        paired: whether `meta["group"]` names pairs, so that pair accuracy is reported too (MMVP).
    """

    name: str
    title: str
    folder: str
    source: str
    read: Callable[[Path, Path], Iterable[Sample | Drop]]
    paired: bool = False


@dataclass
class Loaded:
    """Samples of one benchmark, and the rows left out by reason."""

    benchmark: Benchmark
    samples: list[Sample]
    dropped: Counter[str] = field(default_factory=Counter)


def names() -> list[str]:
    """Every benchmark there is."""
    return plugin_names("eval.benchmarks", "BENCHMARK")


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`. UserError if there is none (names the nearest)."""
    found = load_plugin("eval.benchmarks", name, "BENCHMARK", "benchmark")
    assert isinstance(found, Benchmark)
    return found


def load(name: str, config: Config) -> Loaded:
    """Read benchmark `name` from `<config.data.root>/bench`, checked, cut to `config.eval.limit` trials at most.

    Raises:
        UserError: unknown name; folder, file or pictures missing (lists the first ones); a row that does not fit the
            schema; an id twice; a number of trials other than the published one (`eval.counts`).
    """
    bench = benchmark(name)
    root = Path(config.data.root)
    folder = root / "bench" / bench.folder
    if not folder.is_dir():
        raise UserError(f"benchmark {name}: {folder} is missing; {how_to_get(bench, config)}")
    samples: dict[str, Sample] = {}
    dropped: Counter[str] = Counter()
    for item in bench.read(folder, root / "cache" / "images" / name):
        if isinstance(item, Drop):
            dropped[item.reason] += 1
        elif item.id in samples:
            raise UserError(f"benchmark {name}: the id {item.id} occurs twice in {folder}; {how_to_get(bench, config)}")
        else:
            samples[item.id] = item
    _check_pictures(bench, samples.values(), config)
    _check_count(bench, len(samples), dropped, config)
    return Loaded(bench, spread(list(samples.values()), config.eval.limit), dropped)


def how_to_get(bench: Benchmark, config: Config) -> str:
    """The way out for missing or broken data."""
    if config.world is not None:
        return f"`make data PRESET={config.preset}` writes it"
    return f"download {bench.source} into {Path(config.data.root) / 'bench' / bench.folder}"


def _check_pictures(bench: Benchmark, samples: Iterable[Sample], config: Config) -> None:
    wanted = {path for sample in samples for path in sample.images}
    missing = sorted(path for path in wanted if not Path(path).is_file())
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"benchmark {bench.name}: {len(missing)} of {len(wanted)} pictures are missing ({shown}); {how_to_get(bench, config)}"
        )


def _check_count(bench: Benchmark, found: int, dropped: Counter[str], config: Config) -> None:
    wanted = (config.eval.counts or {}).get(bench.name)
    why = "; left out: " + ", ".join(f"{n} × {reason}" for reason, n in dropped.items()) if dropped else ""
    if wanted is not None and found != wanted:
        raise UserError(
            f"benchmark {bench.name}: {found} trials instead of the published {wanted}{why}; {how_to_get(bench, config)}, "
            f"or accept another copy of the data with --set eval.counts.{bench.name}={found}"
        )
    if found == 0:
        raise UserError(f"benchmark {bench.name} holds no usable question{why}; {how_to_get(bench, config)}")


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, evenly spread over the file; trials of one group (pair, question) stay together."""
    if limit is None or limit >= len(samples):
        return list(samples)
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(group_of(sample), []).append(sample)
    members = list(groups.values())
    size = max(len(m) for m in members)
    count = max(1, limit // size)
    return [s for i in range(count) for s in members[i * len(members) // count]]


def group_of(sample: Sample) -> str:
    """Trials with the same group are not independent: a pair of MMVP, one question of SAT in two orders."""
    return str(sample.meta.get("group", sample.id))


# --- files -----------------------------------------------------------------------------------------------------------


def one_file(folder: Path, pattern: str, bench: str) -> Path:
    """The one file below `folder` that matches `pattern`; UserError if there is none or several."""
    found = sorted(p for p in folder.rglob(pattern) if p.is_file())
    if len(found) != 1:
        state = "there is none" if not found else "there are several: " + ", ".join(str(p) for p in found[:4])
        raise UserError(f"benchmark {bench}: expected one file {pattern} below {folder}, {state}")
    return found[0]


def parquet_rows(paths: Sequence[Path], needed: Sequence[str], bench: str) -> Iterator[dict[str, Any]]:
    """Rows of parquet files in order, a few at a time. UserError if a column of `needed` is missing or a file is broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in paths:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"benchmark {bench}: {path} cannot be read as parquet ({error}); download it again"
            ) from error
        missing = [name for name in needed if name not in file.schema_arrow.names]
        if missing:
            raise UserError(f"benchmark {bench}: {path} has no column {', '.join(missing)}; is this the right file?")
        for batch in file.iter_batches(batch_size=64):
            yield from batch.to_pylist()


def keep_picture(data: Any, cache: Path, stem: str) -> str:
    """Write a picture that is embedded in a row to `cache` once, byte for byte; returns its path.

    `data` is the bytes, or the {"bytes", "path"} struct of `datasets`. The name holds a hash of the content, so a new copy
    of the data never meets an old picture.

    Raises:
        ValueError: no bytes there.
    """
    raw = data.get("bytes") if isinstance(data, Mapping) else data
    if not isinstance(raw, (bytes, bytearray, memoryview)) or len(raw) == 0:
        raise ValueError("the row holds no picture")
    raw = bytes(raw)
    suffix = ".png" if raw.startswith(b"\x89PNG") else ".webp" if raw[8:12] == b"WEBP" else ".jpg"
    path = cache / f"{stem}-{hashlib.sha256(raw).hexdigest()[:12]}{suffix}"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        aside.write_bytes(raw)
        aside.replace(path)
    return str(path)


# --- options ---------------------------------------------------------------------------------------------------------

_DIRECT = re.compile(
    r"\s*(?:please\s+)?answer\s+(?:directly\s+)?with\s+(?:only\s+)?(?:the|a|one)\b[^.\n]*(?:\.|$)", re.IGNORECASE
)


def split_direct_sentence(text: str) -> tuple[str, str]:
    """(`text` without its "Please answer directly with …" sentence, that sentence or "")."""
    found = _DIRECT.search(text)
    if found is None:
        return text.strip(), ""
    return (text[: found.start()] + " " + text[found.end() :]).strip(), found.group(0).strip()
