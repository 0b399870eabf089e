"""Lets torchvision's CUDA build be imported beside a CPU build of torch.

torchvision from PyPI is built for CUDA. Beside a CPU torch its native library cannot load, the operators
`torchvision::nms` and `torchvision::qnms` stay undeclared, and `import torchvision` dies with "operator torchvision::nms
does not exist"; transformers' processors and TRL die with it. Declaring the two schemas first is enough: what we use of
torchvision (resizing, tensors) is plain Python over torch.

`install_hook` declares them at the moment somebody imports torchvision, and does nothing where torchvision's own library
loads (a CUDA torch, or a matching CPU build). This file uses the standard library alone and imports torch only when
torchvision is wanted, because `scripts/install_shim.py` copies it into site-packages, where a `.pth` file runs it at the
start of every interpreter of that environment, vLLM's and accelerate's workers included.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept: list[object] = []  # torch forgets declarations whose library object is collected


def declare(package: Path) -> bool:
    """Declare the missing operators; `package` is torchvision's folder. Returns False where there is nothing to do."""
    import torch

    if _kept or torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return False
    for native in sorted(package.glob("_C*")):
        try:
            torch.ops.load_library(str(native))
        except OSError:
            continue
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _kept.append(library)
    return True


class _Loader(importlib.abc.Loader):
    """torchvision's own loader, with the declaration in front."""

    def __init__(self, inner: importlib.abc.Loader, package: Path) -> None:
        self._inner, self._package = inner, package

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        declare(self._package)
        self._inner.exec_module(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)  # resource readers, get_source, …


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Finds torchvision as the other finders do and wraps its loader; finds nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = _Loader(spec.loader, Path(spec.origin).parent)
        return spec


def install_hook() -> None:
    """Put the hook in front of the other finders, once an interpreter (whichever copy of this file came first)."""
    if not any(type(finder).__name__ == TorchvisionFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())
