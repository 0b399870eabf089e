"""What a plugin computes, as one hash of its code: an edited reward makes what it scored stale (docs/runs.md).

Of the module and the helpers that it imports from its package, statements count; comments, docstrings and layout do not. Data
files of the package that the code names (word lists, prompts) count by their content. Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from fgrpo.installed import checkout_name, importable

DATA = (".yaml", ".yml", ".json", ".txt", ".csv")
_LENGTH = 32


def code_hashes(package: str, names: Iterable[str]) -> dict[str, str]:
    """{name: hash} of the modules called `names` of a package such as "rewards"; names without a module are left out."""
    spec = importlib.util.find_spec(importable(package))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is no package")
    folder = Path(next(iter(spec.submodule_search_locations)))
    return {name: code_hash(folder, name) for name in sorted(set(names)) if (folder / f"{name}.py").is_file()}


def code_hash(folder: Path, name: str) -> str:
    """The hash of the module `name` of a package's folder, with its helpers and data files there.

    The package's interface, base.py, is left out: what it changes shows in the modules.
    """
    total = hashlib.sha256()
    for path in sorted(_files(folder, name)):
        content = _statements(path.read_text(encoding="utf-8")) if path.suffix == ".py" else path.read_bytes()
        total.update(f"{path.name}\0".encode() + content + b"\0")
    return total.hexdigest()[:_LENGTH]


def _files(folder: Path, name: str) -> set[Path]:
    """The module's file, and what it uses in this folder, directly and through its helpers."""
    found: set[Path] = set()
    waiting = [folder / f"{name}.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(_parsed(path.read_text(encoding="utf-8"))):
            waiting += [folder / f"{module}.py" for module in _imported(node, folder.name) if module != "base"]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(DATA):
                found |= {file for file in (folder / node.value, folder / "prompts" / node.value) if file.is_file()}
    return found


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    """Modules of the package that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith(f"{package}."))
    elif isinstance(node, ast.ImportFrom):
        module = "" if node.module in (None, package) else str(node.module).removeprefix(f"{package}.")
        if node.level or str(node.module).split(".")[0] == package:
            yield from ([module.split(".")[0]] if module else [alias.name for alias in node.names])


def _parsed(text: str) -> ast.Module:
    """The syntax tree; an empty one for a broken module, which its stage reports."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ast.Module([], [])
    for node in ast.walk(tree):  # one hash in a checkout and in a wheel
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            node.module = checkout_name(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                alias.name = checkout_name(alias.name)
    return tree


@lru_cache(maxsize=256)
def _statements(text: str) -> bytes:
    """The code of a module without comments, docstrings and layout."""
    tree = _parsed(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            if is_text and isinstance(first.value.value, str):  # type: ignore[attr-defined]
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).encode("utf-8", "backslashreplace")
