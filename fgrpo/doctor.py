"""Says, before hours are spent, whether this machine can run a preset: versions, builds, tools, disk, data, endpoints.

Each line is ok, warn (a part of the project will not work) or fail (this preset will not), with what to do. Versions are
compared with constraints/*.txt; torch and vLLM are looked at without being imported. Exit code 1 if anything fails.

Command: `make doctor PRESET=paper-7b` (`python -m fgrpo.doctor --preset paper-7b`).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fgrpo import torchvision_shim
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.schema import Config, Judge
from fgrpo.toolchain import check_deepspeed, how_to_install, missing_tools

ROOT = Path(__file__).resolve().parent.parent
CORE = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "accelerate",
    "deepspeed",
    "peft",
    "datasets",
    "tokenizers",
    "openai",
)
SHIM_MODULE = "fgrpo_torchvision_shim.py"
MINI_DISK_GB, PAPER_DISK_GB = (
    2,
    500,
)  # ours: environments and a mini run; data, two checkpoints with optimizer, rollouts
ENDPOINT_TIMEOUT_S = 5.0
IMPORT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Finding:
    """One line: how it stands, what was looked at, and the way out where it is not ok."""

    state: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.what}" + (f"\n      -> {self.advice}" if self.advice else "")


def pins(path: Path) -> dict[str, str]:
    """Versions by package name of a constraints file."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = (line.split("==", 1) for line in lines if "==" in line)
    return {name.strip().lower().replace("_", "-"): version.strip() for name, version in found}


def installed(name: str) -> str | None:
    """The installed version of a distribution, without its local part ("+cpu"); None if it is not there."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(wanted: dict[str, str], source: str) -> Iterator[Finding]:
    """Installed versions against the pins: a core package that differs is a failure, another a warning."""
    others = []
    for name, version in wanted.items():
        found = installed(name)
        if name not in CORE:
            if found != version:
                others.append(f"{name} {found or 'missing'} (pinned {version})")
        elif found is None:
            yield Finding("fail", f"{name} is missing", "run `make setup`")
        elif found != version:
            yield Finding(
                "fail",
                f"{name} {found}, pinned {version} in {source}",
                f"pip install {name}=={version}, or `make setup`",
            )
    if others:
        yield Finding(
            "warn", f"{len(others)} other packages differ from {source}: {', '.join(others[:6])}", "run `make setup`"
        )
    yield Finding("ok", f"{len(wanted)} pins of {source} looked at")


def torch_build() -> str | None:
    """The CUDA version torch was built for, None for a CPU build; read from its files, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda[^=]*= *'([^']+)'", text, re.M)
    return found.group(1) if found else None


def devices() -> Iterator[Finding]:
    """GPUs that the driver shows, and whether the torch build can use them."""
    build = torch_build()
    tool = shutil.which("nvidia-smi")
    listing = subprocess.run([tool], capture_output=True, text=True, check=False).stdout if tool else ""
    driver = re.search(r"CUDA Version: *(\d+)\.(\d+)", listing)
    gpus = 0
    if tool:
        gpus = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")
    if gpus and build is None:
        advice = "make the environment from constraints/gpu.txt (pip install torch from PyPI)"
        yield Finding("fail", f"{gpus} GPUs, but torch is a CPU build", advice)
    elif gpus and driver and build and int(build.split(".")[0]) > int(driver.group(1)):
        yield Finding(
            "fail",
            f"torch was built for CUDA {build}, the driver knows {driver.group(1)}.{driver.group(2)}",
            "update the driver",
        )
    elif not gpus and build is not None:
        yield Finding(
            "warn", f"torch was built for CUDA {build} and there is no GPU", "fine; a CPU build is much smaller"
        )
    else:
        yield Finding("ok", f"torch for {'CUDA ' + build if build else 'CPU'}, {gpus} GPUs")


def torchvision() -> Iterator[Finding]:
    """Whether a fresh interpreter can import torchvision and with it Qwen2.5-VL's processor."""
    code = "import torchvision; from transformers import AutoProcessor"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=IMPORT_TIMEOUT_S
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("fail", f"torchvision does not load: {last}", f"{sys.executable} scripts/install_shim.py")
        return
    yield Finding("ok", "torchvision loads in a fresh interpreter")
    spec = importlib.util.find_spec(SHIM_MODULE.removesuffix(".py"))
    own = Path(str(torchvision_shim.__file__)).read_text(encoding="utf-8")
    if spec and spec.origin and Path(spec.origin).read_text(encoding="utf-8") != own:
        yield Finding(
            "warn",
            "the installed torchvision shim is older than this repository's",
            f"{sys.executable} scripts/install_shim.py",
        )


def vllm(config: Config) -> Iterator[Finding]:
    """vLLM here or in .venv-vllm, and its version."""
    wanted = pins(ROOT / "constraints" / "gpu.txt").get("vllm", "")
    needed = config.rl.rollout_engine != "transformers"
    state: Literal["warn", "fail"] = "fail" if needed else "warn"
    found = installed("vllm")
    beside = sorted((ROOT / ".venv-vllm").glob("lib/python3*/site-packages/vllm-*.dist-info"))
    if found is None and beside:
        found = beside[-1].name.removeprefix("vllm-").removesuffix(".dist-info").split("+")[0]
    if found is None:
        advice = "make the environment from constraints/gpu.txt (GPU), or `make setup-vllm` (CPU, for tests)"
        yield Finding(
            state, "no vLLM" + (f", and rl.rollout_engine is {config.rl.rollout_engine}" if needed else ""), advice
        )
    elif found != wanted:
        yield Finding(state, f"vLLM {found}, pinned {wanted}", f"pip install vllm=={wanted}")
    else:
        yield Finding("ok", f"vLLM {found}")


def tools(config: Config) -> Iterator[Finding]:
    """The DeepSpeed files of the preset, and the compiler and ninja for one that moves the optimizer's states to the CPU."""
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
        words = f"{' and '.join(missing)} not found (only DeepSpeed with offload_optimizer builds anything)"
        yield Finding("warn", words, how_to_install(missing))
    else:
        yield Finding("ok", "g++ and ninja")


def disk(config: Config, runs: str) -> Iterator[Finding]:
    """Free space where runs and data go."""
    wanted = PAPER_DISK_GB if config.world is None else MINI_DISK_GB
    for name, folder in (("runs", Path(runs)), ("data", Path(config.data.root))):
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free / 1e9
        if free < wanted:
            yield Finding(
                "fail" if config.world else "warn",
                f"{free:.0f} GB free for {name} in {folder}, {wanted} wanted",
                "free some, or choose another disk",
            )
        else:
            yield Finding("ok", f"{free:.0f} GB free for {name}")


def data(config: Config) -> Iterator[Finding]:
    """Each training source and benchmark that the preset names: its folder is there and holds files."""
    root = Path(config.data.root)
    asked = [(f"data_curation.sources.{name}", "SOURCE", "train", "hub") for name in config.data.sources]
    asked += [(f"eval.benchmarks.{name}", "BENCHMARK", "bench", "source") for name in config.eval.benchmarks]
    missing = []
    for module, constant, part, origin in asked:  # by name at run time: these packages stand above this one
        item = getattr(importlib.import_module(module), constant)
        folder = root / part / item.folder
        if not folder.is_dir() or not any(folder.iterdir()):
            missing.append(f"{folder} ({getattr(item, origin)})")
    if not missing:
        yield Finding("ok", f"data of {len(asked)} sources and benchmarks in {root}")
    elif config.world is not None:
        yield Finding("ok", f"{root} is written by `make data`")
    for entry in missing if config.world is None else ():
        yield Finding(
            "fail", f"no data in {entry}", f"`make data-download PRESET={config.preset}`, or by hand: docs/data.md"
        )


def models(config: Config) -> Iterator[Finding]:
    """Base and teacher: a folder with a model, or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    wanted = {config.models.base: "base"}
    if config.engine.kind == "transformers":
        wanted.setdefault(config.models.teacher, "teacher")
    for name, role in wanted.items():
        if (Path(name) / "config.json").is_file():
            yield Finding("ok", f"{role} model {name}")
            continue
        try:
            cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
        except HFValidationError:
            cached = False
        if cached:
            yield Finding("ok", f"{role} model {name} in the hub's cache")
        elif config.world is not None:
            yield Finding(
                "fail", f"no {role} model in {name}", "run `make backbone`, or get the shipped one back from git"
            )
        else:
            yield Finding("warn", f"{role} model {name} is not downloaded", f"hf download {name}")


def endpoints(config: Config) -> Iterator[Finding]:
    """Every endpoint of the engine and the judges: it answers, and serves the model that will be asked for."""
    asked: dict[tuple[str, str | None], list[str]] = {}
    if config.engine.kind == "openai":
        if not config.engine.endpoints:
            yield Finding(
                "fail",
                'engine.kind is "openai" and engine.endpoints is empty',
                "SET='engine.endpoints=[\"http://host:8000/v1\"]'",
            )
        for url in config.engine.endpoints:
            asked.setdefault((url, config.engine.model_name or config.models.teacher), []).append("engine")
    for role in ("training", "evaluation", "extraction"):
        judge: Judge = getattr(config.judges, role)
        for url in judge.endpoints:
            asked.setdefault((url, judge.model), []).append(f"{role} judge")
        if judge.backend == "openai" and not judge.endpoints and not os.environ.get(judge.api_key_env):
            advice = f"set {judge.api_key_env}, or judges.{role}.endpoints to a server of yours"
            yield Finding("fail", f"the {role} judge {judge.model} has no endpoint and no key", advice)
    for (url, model), roles in asked.items():
        yield endpoint(url, model, ", ".join(roles))


def endpoint(url: str, model: str | None, role: str) -> Finding:
    """Ask one endpoint which models it serves."""
    base = url.rstrip("/")
    key = os.environ.get("OPENAI_API_KEY", "none")
    try:
        asked = urllib.request.Request(f"{base}/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=ENDPOINT_TIMEOUT_S) as reply:
            body: Any = json.load(reply)
        served = [str(entry["id"]) for entry in body["data"]]
    except urllib.error.HTTPError as error:
        return Finding("fail", f"{role}: {url} answers {error.code}", "is the address right (…/v1), and the key?")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Finding("fail", f"{role}: {url} does not answer ({error})", "start its server, or mend the address")
    if model and model not in served:
        return Finding(
            "fail", f"{role}: {url} serves {', '.join(served[:4])}, not {model}", "set the model's name, or serve it"
        )
    return Finding("ok", f"{role}: {url} serves {model or served}")


def examine(config: Config, runs: str = "runs") -> Iterable[Finding]:
    """All findings for a configuration, in order."""
    file = "gpu.txt" if torch_build() else "cpu.txt"
    wanted = pins(ROOT / "constraints" / file)
    wanted.pop("vllm", None)  # looked at on its own
    yield from versions(wanted, f"constraints/{file}")
    yield from devices()
    yield from torchvision()
    yield from vllm(config)
    yield from tools(config)
    yield from disk(config, runs)
    yield from models(config)
    yield from data(config)
    yield from endpoints(config)


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

    run(body, parser("what this machine lacks for a preset, and what to do about it"))


if __name__ == "__main__":
    main()
