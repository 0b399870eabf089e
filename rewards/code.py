"""What a reward's scores depend on besides its inputs: its code, as one hash.

Of the reward's module and the helpers of this folder that it imports, statements count; comments, docstrings and layout do
not. Data files of this folder that the code names count by their content. Prompts have hashes of their own (`judges.task`).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from rewards.base import judge_task_of, load

FOLDER = Path(__file__).resolve().parent
PACKAGE = FOLDER.name
NO_RULES = ("base", "code")  # interfaces; a change of theirs that matters shows in the rewards
DATA = (".yaml", ".yml", ".json", ".txt", ".csv")


def code_hashes(rewards: Iterable[str]) -> dict[str, str]:
    """{reward: hash of its code and its judge's prompts} of the rewards called `rewards`. UserError: there is no such reward."""
    return {name: _with_prompts(name) for name in sorted(set(rewards))}


def _with_prompts(name: str) -> str:
    task = judge_task_of(load(name))
    return hashlib.sha256(f"{code_hash(name)}{'' if task is None else task.prompt_hash}".encode()).hexdigest()[:32]


def code_hash(name: str, folder: Path = FOLDER) -> str:
    """The hash of the code of the module `name` of `folder`, its helpers and its data files."""
    total = hashlib.sha256()
    for path in sorted(_files(name, folder)):
        total.update(f"{path.name}\0".encode())
        total.update(_statements(path).encode() if path.suffix == ".py" else path.read_bytes())
    return total.hexdigest()[:32]


def _files(name: str, folder: Path) -> set[Path]:
    """The module's file, and what it uses in this folder, directly and through its helpers."""
    found: set[Path] = set()
    waiting = [folder / f"{name}.py"]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            waiting += [folder / f"{module}.py" for module in _imported(node) if module not in NO_RULES]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(DATA):
                found |= {file for file in [folder / Path(node.value).name] if file.is_file()}
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    """Modules of this package that an import statement names."""
    if isinstance(node, ast.Import):
        yield from (a.name.split(".")[1] for a in node.names if a.name.startswith(f"{PACKAGE}."))
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level or module == PACKAGE:
            yield from ((module,) if module and module != PACKAGE else (a.name for a in node.names))
        elif module.startswith(f"{PACKAGE}."):
            yield module.split(".")[1]


@cache
def _parsed(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _statements(path: Path) -> str:
    """The code of a module without comments, docstrings and layout."""
    return _parsed(path.read_text(encoding="utf-8"))
