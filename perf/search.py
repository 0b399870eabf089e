"""The search without a model: how busy it keeps an endpoint over HTTP, the cost of a chain, and the cost of more trees.

The stage runs as `make mcts` runs it, with images, over the real client, against `perf.endpoint` in its own process. Growth
is measured with text written at once in this process, in CPU time, which hardly depends on the machine's other work. Figures
are ratios.

Command: `python -m perf.search` (`--trees 100 1000 10000` for the growth).
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fgrpo.config import load
from fgrpo.files import write_jsonl
from fgrpo.inference.base import Completion, Request, Sampler
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.schema import Config
from fgrpo.types import Sample
from mcts.run import distil
from perf import common
from perf.endpoint import MODEL, in_own_process
from perf.scripted import write

IMAGE_SIZE = (640, 427)
LEAST_BUSY = 0.95


class AtOnce:
    """A `Sampler` that writes in this process, without waiting."""

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` scripted continuations."""
        written = [write(request.prefix, request.stop, request.seed, i) for i in range(request.n)]
        return [Completion(text, "stop", (0,) * len(logprobs), tuple(logprobs)) for text, logprobs in written]

    async def close(self) -> None:
        """Nothing to close."""


def run_trees(config: Config, trees: int, engine: Sampler, *, with_images: bool) -> tuple[float, dict[str, int]]:
    """Run the stage on `trees` questions in a temporary folder: (CPU seconds of this process, counts of the manifest)."""
    with tempfile.TemporaryDirectory() as root:
        image = Path(root) / "image.jpg"
        Image.effect_noise(IMAGE_SIZE, 64).convert("RGB").save(image)
        seeds = Path(root) / config.preset / "data" / "seed.jsonl"
        seeds.parent.mkdir(parents=True)
        images = (str(image),) if with_images else ()
        ids = (f"sat/train/{i}" for i in range(trees))
        write_jsonl(seeds, (Sample(i, images, "Left or right?", ("left", "right"), "left").to_dict() for i in ids))
        started = time.process_time()
        folder = distil(config, root, engine)
        seconds = time.process_time() - started
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return seconds, manifest["counts"]


def over_http(config: Config, trees: int, slots: int, service_ms: float) -> tuple[float, dict[str, int]]:
    """(share of slot time in use as the endpoint saw it, the manifest's counts)."""
    with in_own_process(slots, service_ms / 1000) as (url, statistics):
        engine = OpenAISampler([url], MODEL, forbidden=(), concurrency=config.engine.concurrency)
        _, counts = run_trees(config, trees, engine, with_images=True)
        return statistics()["busy"], counts


def busy_words(config: Config, args: argparse.Namespace) -> str:
    """The figures over HTTP in a sentence, which says so where the endpoint was idle for more than 5% of the time."""
    busy, counts = over_http(config, args.http_trees, args.slots, args.service_ms)
    per_tree, per_chain = counts["requests"] / counts["trees"], counts["requests"] / counts["accepted"]
    return (
        f"Over HTTP, an endpoint in another process with {args.slots} slots and {args.service_ms:g} ms per request, images of "
        f"{IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, {config.mcts.trees_in_flight} trees in flight, {args.http_trees} trees: slots busy "
        f"**{busy:.1%}** of the time{'' if busy >= LEAST_BUSY else f' (**below the required {LEAST_BUSY:.0%}**)'} from the first request to the last reply; {per_tree:.1f} requests "
        f"({counts['completions'] / counts['trees']:.1f} continuations) per tree, {per_chain:.2f} requests per accepted chain."
    )


def main() -> None:
    """Print both benchmarks."""
    arguments = argparse.ArgumentParser(description="measure the tree search without a model")
    arguments.add_argument("--trees", type=int, nargs="*", default=[100, 1000, 10000])
    arguments.add_argument("--http-trees", type=int, default=200, help="0: leave the endpoint out")
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--service-ms", type=float, default=1000.0)
    args = arguments.parse_args()
    config = load("paper-7b")
    words = [busy_words(config, args)] if args.http_trees else []
    rows, first = [], None
    for trees in args.trees:
        seconds, _ = run_trees(config, trees, AtOnce(), with_images=False)
        row = (seconds / trees, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        first = first or row
        rows.append((f"{trees:,}", f"{row[0] / first[0]:.2f}", f"{row[1] / first[1]:.2f}"))
    headings = ("trees", "CPU time per tree over that of the first row", "peak memory over that of the first row")
    words.append("The complete stage over a teacher that answers at once, in one process:")
    common.show("Tree search", "\n\n".join(words), headings, rows)


if __name__ == "__main__":
    main()
