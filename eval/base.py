"""The base of all benchmark loaders: finding files, reading rows, saving images, and options inside the question.

A benchmark is one module of `eval/benchmarks` with one constant `BENCHMARK`. Its `read` yields `Sample`s or `Drop`s from the data
set's own files (schemas: the module's docstring). `load` adds the common checks: every image exists, ids are unique, and at paper
scale the number of scored trials is the published one (`eval.counts`; Appendix B.1: 1438, 1200, 1050, 300, 1533, 765, 300).
Unusable rows are counted by reason, never dropped silently; so is what was left out of a question that stays.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo import recorded
from fgrpo.errors import UserError
from fgrpo.files import files_below, part_of_process, remove_dead_parts
from fgrpo.hashing import Hashes
from fgrpo.image_files import ImageProblem, path_below
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.schema import Config
from fgrpo.types import Sample

NOTED = "noted"  # in a sample's meta: what was left out of it, one reason per thing
LONGEST_FIELD = 2**31 - 1  # of a .tsv file, whose images are base64


@dataclass(frozen=True)
class Drop:
    """A row that cannot be scored, with the reason."""

    reason: str


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: a column of Table 1, or one beside the paper's seven.

    Attributes:
        name: module name and first part of every sample id.
        title: heading in the tables.
        folder: the data set's folder below `<data root>/bench`.
        source: where the data comes from, for error messages.
        read: (data set folder, cache folder for images) -> samples and drops.
        paired: whether `meta["group"]` names pairs; pair accuracy is then reported too (MMVP).
        known_as: what other harnesses call it, for `eval.external`.
        is_downloaded: whether `make data-download` knows it; the user's own are not.
    """

    name: str
    title: str
    folder: str
    source: str
    read: Callable[[Path, Path], Iterable[Sample | Drop]]
    paired: bool = False
    known_as: tuple[str, ...] = ()
    is_downloaded: bool = True


@dataclass
class Loaded:
    """Samples of one benchmark, how many rows were left out, by reason, and what else was left out of rows that stay.

    The latter are the reasons in `meta["noted"]` of the samples.
    """

    benchmark: Benchmark
    samples: list[Sample]
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def noted(self) -> Counter[str]:
        """What was left out of the samples, by reason."""
        return Counter(str(reason) for sample in self.samples for reason in sample.meta.get(NOTED, ()))


def names() -> list[str]:
    """The names of all benchmarks."""
    return plugin_names("eval.benchmarks", "BENCHMARK")


def benchmark(name: str) -> Benchmark:
    """The benchmark called `name`. UserError if there is none (names the nearest)."""
    plugin = load_plugin("eval.benchmarks", name, "BENCHMARK", "benchmark")
    assert isinstance(plugin, Benchmark)
    return plugin


def title_of(name: str) -> str:
    """The heading of a benchmark in tables; its name where there is no such benchmark, as of another harness' data set."""
    return benchmark(name).title if name in names() else name


def is_paired(name: str) -> bool:
    """Whether a benchmark's groups are pairs; False where there is no such benchmark."""
    return name in names() and benchmark(name).paired


def folder_of(name: str, config: Config) -> Path:
    """The folder of a benchmark's files, whether or not it exists."""
    return Path(config.data.root) / "bench" / benchmark(name).folder


def load(name: str, config: Config) -> Loaded:
    """Read and check benchmark `name` below `<config.data.root>/bench`; at most `config.eval.limit` trials.

    Raises:
        UserError: unknown name; folder, file or images missing (lists the first ones); a row that does not fit the schema; a
            duplicate id; a number of trials other than the published one (`eval.counts`).
    """
    bench, root, folder = benchmark(name), Path(config.data.root), folder_of(name, config)
    if not folder.is_dir():
        raise UserError(f"benchmark {name}: {folder} is missing; {how_to_get(bench, config)}")
    below = f"bench/{bench.folder}/"
    recorded.check(root / recorded.LIST, root, Hashes(), lambda name: name.startswith(below), how_to_get(bench, config))
    samples: dict[str, Sample] = {}
    dropped: Counter[str] = Counter()
    images = root / "cache" / "images" / name
    remove_dead_parts(images)
    for item in bench.read(folder, images):
        if isinstance(item, Drop):
            dropped[item.reason] += 1
        elif item.id in samples:
            raise UserError(f"benchmark {name}: the id {item.id} occurs twice in {folder}; {how_to_get(bench, config)}")
        else:
            samples[item.id] = item
    _check_images(bench, samples.values(), config)
    _check_count(bench, len(samples), dropped, config)
    return Loaded(bench, spread(list(samples.values()), config.eval.limit), dropped)


def how_to_get(bench: Benchmark, config: Config) -> str:
    """What to do about missing or broken data, for error messages."""
    folder = Path(config.data.root) / "bench" / bench.folder
    if not bench.is_downloaded:
        return f"put {bench.source} into {folder}"
    if config.world is not None:
        return f"`make data PRESET={config.preset}` writes it"
    sets = "" if bench.name in config.eval.benchmarks else f" SETS={bench.name}"
    return f"`make data-download PRESET={config.preset}{sets}` downloads it, or put {bench.source} into {folder}"


def _check_images(bench: Benchmark, samples: Iterable[Sample], config: Config) -> None:
    paths = {path for sample in samples for path in sample.images}
    missing = sorted(path for path in paths if not Path(path).is_file())
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"benchmark {bench.name}: {len(missing)} of {len(paths)} images are missing ({shown}); {how_to_get(bench, config)}"
        )


def _check_count(bench: Benchmark, count: int, dropped: Counter[str], config: Config) -> None:
    published = (config.eval.counts or {}).get(bench.name)
    drops = "; left out: " + ", ".join(f"{n} × {reason}" for reason, n in dropped.items()) if dropped else ""
    if published is not None and count != published:
        raise UserError(
            f"benchmark {bench.name}: {count} trials instead of the published {published}{drops}; "
            f"{how_to_get(bench, config)}, or accept another copy of the data with --set eval.counts.{bench.name}={count}"
        )
    if count == 0:
        raise UserError(f"benchmark {bench.name} holds no usable question{drops}; {how_to_get(bench, config)}")


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples, spread evenly over the file; trials of one group (pair, question) stay together."""
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
    """The group of a trial. Trials of one group are not independent: a pair of MMVP, a question of SAT in two orders."""
    return str(sample.meta.get("group", sample.id))


# --- files -----------------------------------------------------------------------------------------------------------


def one_file(folder: Path, pattern: str, bench: str) -> Path:
    """The one file below `folder` that matches `pattern`; UserError if there is none or several."""
    files = files_below(folder, pattern)
    if len(files) != 1:
        state = "there is none" if not files else "there are several: " + ", ".join(str(p) for p in files[:4])
        raise UserError(f"benchmark {bench}: expected one file {pattern} below {folder}, {state}")
    return files[0]


def parquet_rows(paths: Sequence[Path], needed: Sequence[str], bench: str) -> Iterator[dict[str, Any]]:
    """Rows of parquet files, in order and in batches. UserError if a column of `needed` is missing or a file is broken."""
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


def tsv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a tab-separated file with a head, by column; an absent cell is "".

    Raises:
        OSError, ValueError, csv.Error: it cannot be read.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", restval="")


def image_paths(folder: Path, names: Any) -> tuple[str, ...]:
    """Paths below `folder` of the images that a row names; `load` reports those that are missing.

    Raises:
        ValueError: `names` is no list of one or more relative paths that stay below the folder; the message is the reason.
    """
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError("no_image")
    try:
        return tuple(str(path_below(folder, name)) for name in names)
    except ImageProblem as problem:
        raise ValueError(problem.reason) from problem


def save_image(data: Any, cache: Path, stem: str) -> str:
    """Write an image that is embedded in a row to `cache` once, byte for byte; returns its path.

    The file name has a hash of the content, so a new copy of the data never uses an old image.

    Args:
        data: the bytes, or the {"bytes", "path"} struct of `datasets`.

    Raises:
        ValueError: there are no bytes.
    """
    raw = data.get("bytes") if isinstance(data, Mapping) else data
    if not isinstance(raw, (bytes, bytearray, memoryview)) or len(raw) == 0:
        raise ValueError("the row holds no image")
    raw = bytes(raw)
    suffix = ".png" if raw.startswith(b"\x89PNG") else ".webp" if raw[8:12] == b"WEBP" else ".jpg"
    path = cache / f"{stem}-{hashlib.sha256(raw).hexdigest()[:12]}{suffix}"
    if not path.is_file() or path.read_bytes() != raw:
        cache.mkdir(parents=True, exist_ok=True)
        part = part_of_process(path)  # models are evaluated in parallel
        part.write_bytes(raw)
        part.replace(path)
    return str(path)


def from_base64(text: str) -> bytes:
    """The bytes of an image that a cell holds.

    Raises:
        ValueError: it holds none; the message is the reason.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the row holds no image") from error


# --- options ---------------------------------------------------------------------------------------------------------

_DIRECT = re.compile(
    r"(?:(?<!\s)\s++)?(?:please\s++)?answer\s++(?:directly\s++)?with\s++(?:only\s++)?(?:the|a|one)\b[^.\n]*(?:\.|$)",
    re.IGNORECASE,
)


def split_direct_sentence(text: str) -> tuple[str, str]:
    """(`text` without its "Please answer directly with …" sentence, that sentence or "")."""
    sentence = _DIRECT.search(text)
    if sentence is None:
        return text.strip(), ""
    return (text[: sentence.start()] + " " + text[sentence.end() :]).strip(), sentence.group(0).strip()


def distinct_choices(values: Any) -> tuple[str, ...]:
    """The option texts of a row.

    Raises:
        ValueError: `values` is no list of at least two distinct texts; the message is the reason.
    """
    texts = tuple(v.strip() for v in values if isinstance(v, str)) if isinstance(values, list | tuple) else ()
    if len(texts) < 2 or len(texts) != len(values) or not all(texts) or len(set(texts)) != len(texts):
        raise ValueError("the choices are no list of distinct texts")
    return texts
