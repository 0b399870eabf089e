"""Imports by name go downward only: what import-linter cannot see.

`importlib.import_module(f"rewards.{name}")` is plug-in discovery. The module that calls it must be in the layer of its
target or above, as for a plain import.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import fgrpo

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
PACKAGES = PROJECT["importlinter"]["root_packages"]
DISCOVERY = "fgrpo/plugins.py"  # imports for its callers; the package that each caller names is checked where it calls
LAUNCHER = "fgrpo/training/launch.py"  # runs a stage as `python -m` does: a start in the stage's own process
BY_NAME = {"import_module", "__import__", "run_module", "resolve_name"}
BY_PLUGIN = {"load_plugin", "plugin_names"}
EXPORTS = (
    "fgrpo/__init__.py"  # the names of a user's script, loaded on first use; no module of the repository uses them
)
FAMILIES = "fgrpo/policy/backbone.py"  # model families: an unknown one names all that exist
VOCABULARY = "fgrpo"


def layers() -> list[list[str]]:
    """The layers of the first import contract, the lowest first; the vocabulary is below all of them."""
    rows = PROJECT["importlinter"]["contracts"][0]["layers"]
    return [[VOCABULARY], *([name.strip() for name in row.split("|")] for row in reversed(rows))]


def layer(module: str) -> tuple[int, str]:
    """(height, package) of a dotted module; the longest matching name counts, so fgrpo.policy is not fgrpo."""
    candidates = [(len(name), height, name) for height, row in enumerate(layers()) for name in row]
    matching = [entry for entry in candidates if module == entry[2] or module.startswith(entry[2] + ".")]
    if not matching:
        raise LookupError(f"{module} is in no layer")
    _, height, name = max(matching)
    return height, name


def test_layers() -> None:
    heights = [
        layer(name)[0] for name in ("fgrpo.runs", "fgrpo.policy.loading", "fgrpo.training.launch", "miniworld.oracle")
    ]
    assert heights == [0, 1, 2, 3]
    heights = [layer(name)[0] for name in ("judges", "rewards.task", "rl.train", "eval.run", "ops.plan")]
    assert heights == [4, 5, 6, 6, 7]
    assert all(layer(package) for package in PACKAGES)


def targets(tree: ast.Module, calls: set[str]) -> Iterator[tuple[int, str | None]]:
    """(line, module) of each call of `calls`; the module is None where the file does not spell its first part."""
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if name in calls:
            first = node.args[0] if node.args else None
            yield node.lineno, written(constants.get(first.id) if isinstance(first, ast.Name) else first)


def written(node: ast.expr | None) -> str | None:
    """The literal beginning of a string or f-string ("rewards." of f"rewards.{name}")."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def upward(path: str, source: str) -> list[str]:
    """What is wrong with the imports by name in one file."""
    here = ".".join(Path(path).with_suffix("").parts)
    height, package = layer(here)
    wrong = []
    for line, target in targets(ast.parse(source), BY_NAME | BY_PLUGIN):
        if target is None:
            if (
                path not in (DISCOVERY, LAUNCHER, EXPORTS) and height < len(layers()) - 1
            ):  # nothing is above the top layer
                wrong.append(f"{path}:{line} imports a module by a name that is not written there")
            continue
        if target.split(".")[0] not in PACKAGES:  # a library
            continue
        there, other = layer(target.rstrip("."))
        if there > height or (there == height and other != package):
            wrong.append(f"{path}:{line} imports {target} by name, which is not below {package}")
    return wrong


def files() -> list[Path]:
    """Every module of the packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_no_import_by_name_goes_upward() -> None:
    wrong = [w for path in files() for w in upward(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_only_discovery_imports_by_name() -> None:
    callers = {
        str(path.relative_to(ROOT))
        for path in files()
        for _, target in targets(ast.parse(path.read_text(encoding="utf-8")), BY_NAME)
        if target is None or target.split(".")[0] in PACKAGES
    }
    assert callers <= {DISCOVERY, LAUNCHER, EXPORTS, FAMILIES}


def test_no_module_uses_the_exports() -> None:
    """`from fgrpo import Constraint` in a module would be an upward import that import-linter cannot see."""
    users = [
        str(path.relative_to(ROOT))
        for path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module == VOCABULARY
        and {a.name for a in node.names} & set(fgrpo.EXPORTS)
    ]
    assert fgrpo.EXPORTS and not users


@pytest.mark.parametrize(
    ("path", "source", "count"),
    [
        ("fgrpo/runs.py", 'importlib.import_module("eval.models")', 1),
        ("fgrpo/inference/serve.py", '__import__("rl.train")', 1),
        ("judges/base.py", 'importlib.import_module(f"rewards.{name}")', 1),
        ("rl/train.py", 'import_module(f"eval.{name}")', 1),
        ("rl/train.py", "import_module(name)", 1),
        ("fgrpo/policy/loading.py", 'importlib.import_module("fgrpo.training.launch")', 1),
        ("judges/base.py", 'load_plugin("rewards", name, "REWARD", "reward")', 1),
        ("judges/base.py", 'PACKAGE = "rewards"\nplugin_names(PACKAGE, "REWARD")', 1),
        ("rewards/base.py", 'PACKAGE = "rewards"\nplugin_names(PACKAGE, "REWARD")', 0),
        ("rewards/base.py", 'importlib.import_module(f"rewards.{name}")', 0),
        ("eval/base.py", 'importlib.import_module(f"rewards.{name}")', 0),
        ("ops/plan.py", 'importlib.import_module("eval.models")', 0),
        ("fgrpo/policy/loading.py", 'importlib.import_module("transformers")', 0),
    ],
)
def test_an_upward_import_is_seen(path: str, source: str, count: int) -> None:
    assert len(upward(path, source)) == count
