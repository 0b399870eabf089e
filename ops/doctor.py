"""Checks, before hours are spent, whether this machine can run a preset: versions, builds, tools, disk, data, endpoints.

Each line is ok, warn (a part of the project will not work) or fail (this preset will not work). Below it is a command to paste,
or a remark after "#". Versions are compared with requirements/*.txt; torch and vLLM are examined without an import. Exit code 1 if anything fails.

Command: `make doctor PRESET=paper-7b` (`python -m ops.doctor --preset paper-7b`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_curation import source as sources
from eval import base as benchmarks
from fgrpo import runs
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.hardware import check_deepspeed, gpus, how_to_install, missing_tools
from fgrpo.inference import addresses
from fgrpo.installed import ROOT
from fgrpo.policy import model_files
from fgrpo.schema import Config, Judge, Serving
from ops import gpu_memory
from ops.connectivity import Finding, endpoints, ports
from ops.memory_estimate import GB
from ops.model_checks import anchoring, frames
from ops.packages import PIP, compiler, devices, installed, pins, torch_build, torchvision, versions, vllm
from ops.storage import checkpoints
from ops.training_stages import folder_of, stages

MINI_DISK_GB = 2  # ours: environments and a mini run
DATA_DISK_GB = 500  # ours: archives and images, also while unpacking; `make data-download PLAN=1` has the exact figure


def tools(config: Config) -> Iterator[Finding]:
    """Check the preset's DeepSpeed files, and the compiler and ninja that offloading the optimizer needs."""
    for stage in ("sft", "rl"):
        file = getattr(config, stage).deepspeed
        try:
            check_deepspeed(file, f"{stage}.deepspeed")
        except UserError as error:
            yield Finding("fail", str(error))
        else:
            if file is not None:
                yield Finding("ok", f"{stage}.deepspeed: {file}")
    if missing := missing_tools():
        words = f"{' and '.join(missing)} not found (needed only by DeepSpeed with offload_optimizer)"
        yield Finding("warn", words, how_to_install(missing))
    else:
        yield Finding("ok", "g++ and ninja")


def disk(config: Config, runs_root: str) -> Iterator[Finding]:
    """Check free space for runs and data. For runs, that is what the untrained stages write at most."""
    mini, root = config.world is not None, Path(runs_root)
    wanted = {"data": DATA_DISK_GB, "runs": 0.0 if mini else checkpoint_gb(config, root)}
    for name, folder in (("runs", root), ("data", Path(config.data.root))):
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free, needed = shutil.disk_usage(existing).free / 1e9, MINI_DISK_GB if mini else wanted[name]
        if free >= needed:
            yield Finding("ok", f"{free:.0f} GB free for {name}")
            continue
        words = f"{free:.0f} GB free for {name} in {folder}, {needed:.0f} needed"
        setting = "RUNS=<folder>" if name == "runs" else "SET=data.root=<folder>"
        advice = f"make plan PRESET={config.preset}  # has the formula; another disk: {setting}"
        yield Finding("fail" if mini or name == "runs" else "warn", words, advice)


def checkpoint_gb(config: Config, root: Path) -> float:
    """GB that the training stages of this method have yet to write, by the plan's formulas."""
    from ops.memory_estimate import shape_of

    shape, total = shape_of(config.models.base), 0.0
    for stage in stages(config):
        folder = runs.folder(config, folder_of(config, stage), root)
        if not (folder / "done").exists():
            written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            total += max(checkpoints(config, stage, shape).size - written, 0) / GB
    return total


def data(config: Config) -> Iterator[Finding]:
    """Check that each training source and benchmark of the preset has a folder with files."""
    root = Path(config.data.root)
    needed: list[tuple[str, Any, str]] = []
    for source in map(sources.source, config.data.sources):
        needed.append(("train", source, source.hub))
    for benchmark in map(benchmarks.benchmark, config.eval.every_benchmark):
        needed.append(("bench", benchmark, benchmark.source))
    halves = sorted(root.rglob("*.part"))[:3] if root.is_dir() else []
    if halves:
        names = ", ".join(str(path) for path in halves)
        yield Finding(
            "fail", f"incomplete download: {names}", f"make data-download PRESET={config.preset}  # resumes it"
        )
    missing: dict[str, tuple[str, str]] = {}  # what is missing, and the command that gets it
    for part, item, origin in needed:
        folder = root / part / item.folder
        files = getattr(item, "files", lambda place: list(place.iterdir()))
        if not folder.is_dir() or not files(folder):
            is_extra = part == "bench" and item.name not in config.eval.benchmarks
            command = (
                f"make data-download PRESET={config.preset}{f' SETS={item.name}' if is_extra else ''}  # or by hand:"
            )
            if part == "bench" and not item.is_downloaded:
                command = "# put your questions.jsonl there (its keys: eval/benchmarks/own.py), or see"
            missing.setdefault(str(folder), (f"{folder} ({origin})", f"{command} docs/data.md"))
    if not missing:
        yield Finding("ok", f"data of {len(needed)} sources and benchmarks in {root}")
    elif config.world is not None:
        yield Finding("ok", f"{root} is written by `make data PRESET={config.preset}`")
    for entry, advice in missing.values() if config.world is None else ():
        yield Finding("fail", f"no data in {entry}", advice)


def models(config: Config) -> Iterator[Finding]:
    """Check the package of the question embedder, and the weights of base, teacher and judges: folders, or in the hub's cache.

    Those of a model that is served are looked for while none of its servers is up, since it may be started here.
    """
    if config.data.embedder == "sentence-transformers" and installed("sentence-transformers") is None:
        advice = f"{PIP} sentence-transformers  # or SET=data.embedder=hashing"
        yield Finding("fail", "data.embedder is sentence-transformers, which is not installed", advice)
    for name, role in _loaded(config).items():
        what, is_folder = f"{role} model {name}", Path(name).is_dir()
        lack = model_files.lacks(name)
        if not lack:
            yield Finding("ok", what if is_folder else f"{what} in the hub's cache")
        elif config.world is not None:
            advice = "git checkout miniworld/backbone  # or train one: make backbone"
            yield Finding("fail", f"no {role} model in {name}", advice)
        elif is_folder:
            yield Finding("fail", f"{what} {lack}", f"# copy the rest to {name}, or name another model")
        else:
            yield Finding("warn", f"{what} {lack}", f"hf download {name}  # resumes what is there")


def _loaded(config: Config) -> dict[str, str]:
    """Models whose weights this machine loads, with their roles; those behind the address of somebody else's server are not."""
    out = {config.models.base: "base"}
    if config.engine.kind == "transformers" or _served_here(config.engine.endpoints, config.models.teacher):
        out.setdefault(config.models.teacher, "teacher")
    for key, role in (("training", "judge"), ("evaluation", "judge"), ("extraction", "extractor")):
        judge: Judge = getattr(config.judges, key)
        if judge.backend == "openai" and _served_here(judge.endpoints, judge.model):
            out.setdefault(judge.model, role)
    return out


def _served_here(entries: tuple[str, ...], model: str) -> bool:
    """Whether only `make serve-…` can serve this model: address files alone, and none of a server that is up."""
    if not entries or not all(map(addresses.is_pattern, entries)):
        return False
    try:
        return not addresses.resolve(entries, model)
    except UserError:  # none is up
        return True


def layout(config: Config) -> Iterator[Finding]:
    """Check that this machine has enough GPUs, and GPU memory, to train and serve the preset."""
    devices = gpus()
    trained = {stage: getattr(config, stage).precision == "bf16" for stage in ("sft", "rl")}
    for stage, needs in trained.items():
        wanted = getattr(config.launch, f"{stage}_processes")
        if needs and wanted > len(devices):
            advice = (
                f"make {stage if stage == 'sft' else f'rl-{config.method}'} PRESET={config.preset} SET=launch.{stage}_processes={len(devices)}"
                if devices
                else "make demo PRESET=mini  # runs on a CPU; this preset trains on a GPU machine"
            )
            yield Finding(
                "fail", f"{stage} runs {wanted} processes, one per GPU, and this machine has {len(devices)}", advice
            )
        elif needs:
            yield Finding("ok", f"{wanted} GPUs for {stage}")
    if (
        devices
        and "flash_attention_2" in (config.sft.attention, config.rl.attention)
        and installed("flash-attn") is None
    ):
        advice = f"{PIP} flash-attn --no-build-isolation  # without it torch's own attention runs, which is slower"
        yield Finding("warn", "the preset asks for flash attention, and flash-attn is not installed", advice)
    if devices and config.rl.shared_prefix == "auto":
        is_flash = config.rl.attention == "flash_attention_2" and installed("flash-attn") is not None
        how = "flash attention" if is_flash else "a mask, rows of up to 4,096 tokens"
        yield Finding("ok", f"rollouts of a prompt share its row in training ({how})")
    if devices and any(trained.values()):
        yield from _memory(config, min(gpu.gib for gpu in devices))
    if config.engine.kind == "openai" and devices:
        for role in ("teacher", "judge"):
            serving: Serving = getattr(config.serve, role)
            wanted = serving.tensor_parallel * serving.data_parallel
            if wanted > len(devices):
                advice = f"make serve-{role} PRESET={config.preset} SET=serve.{role}.tensor_parallel={len(devices)}  # or on another machine"
                yield Finding(
                    "warn", f"serving the {role} takes {wanted} GPUs, and this machine has {len(devices)}", advice
                )


def _memory(config: Config, gib: float) -> Iterator[Finding]:
    """Compare the memory that `make plan` expects with that of the smallest GPU, and with what is free now."""
    for stage in stages(config):
        wanted = gpu_memory.training_gib(config, stage)
        if wanted > gib:
            advice = (
                f"make plan PRESET={config.preset} OVERLAY=lora  # shows the parts; or more GPUs, a smaller micro-batch"
            )
            yield Finding("fail", f"{stage} likely needs {wanted:.0f} GiB per GPU, and a GPU has {gib:.0f}", advice)
            continue
        yield Finding("ok", f"{stage} likely needs {wanted:.0f} of {gib:.0f} GiB per GPU")
        try:
            gpu_memory.check(config, stage)
        except UserError as error:
            advice = f"make {folder_of(config, stage)} PRESET={config.preset}  # refuses to start"
            yield Finding("warn", str(error), advice)


def examine(config: Config, root: str = "runs") -> Iterable[Finding]:
    """All findings for a configuration, in order."""
    file = "gpu.txt" if torch_build() else "cpu.txt"
    wanted = pins(ROOT / "requirements" / file)
    wanted.pop("vllm", None)  # see `vllm`
    yield from versions(wanted, f"requirements/{file}")
    yield from devices()
    yield from compiler()
    yield from torchvision()
    yield from vllm(config)
    yield from tools(config)
    yield from layout(config)
    yield from disk(config, root)
    yield from (*models(config), *frames(config), *anchoring(config))
    yield from data(config)
    yield from endpoints(config)
    yield from ports(config)


def main() -> None:
    """Print the findings; exit code 1 if one of them is a failure."""
    from fgrpo.cli import parser, run

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        failed = 0
        for finding in examine(config, args.runs):
            print(finding, flush=True)
            failed += finding.state == "fail"
        if failed:
            sys.exit(1)

    run(body, parser("check what this machine lacks for a preset, and what to do"))


if __name__ == "__main__":
    main()
