"""Whether the packages of this environment are the pinned ones and fit its GPUs; torch and vLLM are examined without an import."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fgrpo.hardware import gpus
from fgrpo.installed import IS_WHEEL, ROOT
from fgrpo.policy import torchvision_shim
from fgrpo.schema import Config
from ops.connectivity import Finding

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
VERSIONS = ("core.txt", "rest.txt")
SHIM_MODULE = "fgrpo_torchvision_shim.py"
IMPORT_TIMEOUT_S = 120.0
GPU_PINS = ROOT / "requirements" / "gpu.txt" if IS_WHEEL else "requirements/gpu.txt"
PIP = f"{sys.executable} -m pip install"
_REPAIR = f"{PIP} --force-reinstall torchvision" if IS_WHEEL else f"{sys.executable} scripts/install_shim.py"


def pins(path: Path) -> dict[str, str]:
    """Versions by package name, from a pip constraints file, or for the names in a file next to the two that hold versions."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    held = {plain(name): version.strip() for name, _, version in (line.partition("==") for line in lines) if version}
    names = [plain(line) for line in lines if line and not line.startswith("-") and "==" not in line]
    known = {k: v for file in VERSIONS for k, v in pins(path.with_name(file)).items()} if names else {}
    return held | {name: known[name] for name in names}


def plain(name: str) -> str:
    """A distribution's name as pip compares it."""
    return name.strip().lower().replace("_", "-")


def installed(name: str) -> str | None:
    """The installed version of a distribution without its local part ("+cpu"); None if it is not installed."""
    try:
        return importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(wanted: dict[str, str], source: str) -> Iterator[Finding]:
    """Compare installed versions with the pins: a core package that differs fails, another one is a warning."""
    others = []
    for name, version in wanted.items():
        present = installed(name)
        if name not in CORE:
            if present != version:
                others.append(f"{name} {present or 'missing'} (pinned {version})")
        elif present is None:
            yield Finding("fail", f"{name} is missing", f"{PIP} {name}=={version}")
        elif present != version:
            yield Finding(
                "fail",
                f"{name} {present}, pinned {version} in {source}",
                f"{PIP} {name}=={version}",
            )
    if others:
        yield Finding(
            "warn",
            f"{len(others)} other packages differ from {source}: {', '.join(others[:6])}",
            f"{PIP} -r {source}",
        )
    yield Finding("ok", f"{len(wanted)} pins of {source} compared")


def torch_build() -> str | None:
    """The CUDA version torch was built for, None for a CPU build; read from its files, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda[^=]*= *'([^']+)'", text, re.M)
    return match.group(1) if match else None


def devices() -> Iterator[Finding]:
    """Check whether the torch build can use the GPUs that the driver shows."""
    build = torch_build()
    tool = shutil.which("nvidia-smi")
    listing = subprocess.run([tool], capture_output=True, text=True, check=False).stdout if tool else ""
    driver = re.search(r"CUDA Version: *(\d+)\.(\d+)", listing)
    count = len(gpus())
    if count and build is None:
        advice = f"python3 -m venv .venv-gpu && .venv-gpu/bin/pip install -r {GPU_PINS}  # then make … VENV=.venv-gpu"
        yield Finding("fail", f"{count} GPUs, but torch is a CPU build", advice)
    elif count and driver and build and int(build.split(".")[0]) > int(driver.group(1)):
        yield Finding(
            "fail",
            f"torch was built for CUDA {build}, the driver supports {driver.group(1)}.{driver.group(2)}",
            "# update the NVIDIA driver, or install a torch that was built for it: https://pytorch.org/get-started/locally",
        )
    elif not count and build is not None:
        yield Finding(
            "warn", f"torch was built for CUDA {build} and there is no GPU", "# fine; a CPU build is much smaller"
        )
    else:
        yield Finding("ok", f"torch for {'CUDA ' + build if build else 'CPU'}, {count} GPUs")


def compiler() -> Iterator[Finding]:
    """Compare CUDA's compiler, if there is one, with the CUDA that torch was built for."""
    tool, build = shutil.which("nvcc"), torch_build()
    if tool is None or build is None:
        return
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if match and match.group(1) != build.split(".")[0]:
        words = f"nvcc is CUDA {match.group(1)}.{match.group(2)}, and torch was built for {build}"
        yield Finding("warn", words, f"conda install -c conda-forge cuda-nvcc cuda-version={build}")
    else:
        yield Finding("ok", "nvcc and torch have the same CUDA version")


def torchvision() -> Iterator[Finding]:
    """Whether a fresh interpreter can import torchvision and with it the policy's processor."""
    code = "import torchvision; from transformers import AutoProcessor"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=IMPORT_TIMEOUT_S
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("fail", f"torchvision does not load: {last}", _REPAIR)
        return
    yield Finding("ok", "torchvision loads in a fresh interpreter")
    spec = importlib.util.find_spec(SHIM_MODULE.removesuffix(".py"))
    own = Path(str(torchvision_shim.__file__)).read_text(encoding="utf-8")
    if spec and spec.origin and Path(spec.origin).read_text(encoding="utf-8") != own:
        yield Finding(
            "warn",
            "the installed torchvision shim is older than this repository's",
            _REPAIR,
        )


def vllm(config: Config) -> Iterator[Finding]:
    """Check the version of vLLM, here or in .venv-vllm."""
    wanted = pins(ROOT / "requirements" / "gpu.txt").get("vllm", "")
    needed = config.rl.rollout_engine != "transformers"
    state: Literal["warn", "fail"] = "fail" if needed else "warn"
    present = installed("vllm")
    beside = sorted((ROOT / ".venv-vllm").glob("lib/python3*/site-packages/vllm-*.dist-info"))
    if present is None and beside:
        present = beside[-1].name.removeprefix("vllm-").removesuffix(".dist-info").split("+")[0]
    if present is None:
        advice = f"make setup-vllm  # for tests on a CPU; on a GPU machine: pip install -r {GPU_PINS}"
        yield Finding(
            state, "no vLLM" + (f", and rl.rollout_engine is {config.rl.rollout_engine}" if needed else ""), advice
        )
    elif present != wanted:
        yield Finding(state, f"vLLM {present}, pinned {wanted}", f"{PIP} vllm=={wanted}")
    else:
        yield Finding("ok", f"vLLM {present}")
