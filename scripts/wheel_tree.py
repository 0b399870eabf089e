"""Writes the tree of the wheel: every package of this repository as a part of `fgrpo`, so that no name collides on PyPI.

`from judges.base import Judge` becomes `from fgrpo.judges.base import Judge`; nothing else of a module changes, and line numbers
stay. A form of import that cannot be rewritten in place is an error. Data files (prompts, templates, the mini backbone) come
along, and configs/, requirements/ and the Makefile lie inside `fgrpo`.

Command: `python scripts/wheel_tree.py FOLDER` (`pip wheel .` calls `write` through hatch_build.py).
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = "fgrpo"  # the only name that the wheel installs
PACKAGES = ("data_curation", "eval", "judges", "mcts", "miniworld", "ops", "rewards", "rl", "sft")
CARRIED = ("configs", "requirements", "Makefile")  # read at run time
SKIPPED = ("__pycache__", "*.pyc", ".*")


class Unrewritable(ValueError):
    """An import that binds a package's own name, such as `import rl.train`."""


def rewritten(source: str, where: str) -> str:
    """A module's text with the imports of our packages moved below `fgrpo`.

    Args:
        where: the file, for errors.

    Raises:
        Unrewritable: `import rl.train` without `as` (names file and line).
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_ours(node.module):
            _put(lines, node.lineno - 1, rf"\bfrom(\s+){re.escape(str(node.module))}\b", rf"from\1{HOME}.{node.module}")
        elif isinstance(node, ast.Import):
            for name in node.names:
                if _is_ours(name.name):
                    _put(lines, name.lineno - 1, *_moved(name, f"{where}:{name.lineno}"))
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and _is_ours(str(first.value)):
                _put(lines, first.lineno - 1, re.escape(str(first.value)), f"{HOME}.{first.value}")
    return commands("".join(lines))


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _moved(name: ast.alias, where: str) -> tuple[str, str]:
    """Pattern and replacement of one name of an `import` statement."""
    if name.asname is not None:
        return rf"\b{re.escape(name.name)}(\s+as\s)", rf"{HOME}.{name.name}\1"
    if "." in name.name:
        raise Unrewritable(f"{where} imports {name.name} by its own name; write `from package import module`")
    return rf"(\bimport\s+|,\s*){name.name}\b", rf"\1{HOME}.{name.name} as {name.name}"


def _put(lines: list[str], number: int, pattern: str, replacement: str) -> None:
    lines[number], count = re.subn(pattern, replacement, lines[number], count=1)
    if count != 1:
        raise Unrewritable(f"cannot rewrite the import in {lines[number].strip()!r}")


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in PACKAGES


def commands(text: str) -> str:
    """Commands in messages and in the Makefile: `-m eval.run` is `-m fgrpo.eval.run`, and "`make eval" is "`fgrpo eval"."""
    packages = "|".join(PACKAGES)
    text = re.sub(rf"(?<=-m )(?=(?:{packages})\.)", f"{HOME}.", text)
    return re.sub(r"([`\"'])make (?=[a-z${])", rf"\1{HOME} ", text)


def write(out: Path) -> Path:
    """Write the tree below `out`; returns the folder of the package `fgrpo`."""
    home = out / HOME
    ignore = shutil.ignore_patterns(*SKIPPED)
    shutil.copytree(ROOT / HOME, home, ignore=ignore)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, home / name, ignore=ignore)
    for path in sorted(home.rglob("*.py")):
        where = str(path.relative_to(home))
        path.write_text(rewritten(path.read_text(encoding="utf-8"), where), encoding="utf-8")
    for path in sorted((home / "ops").rglob("*.j2")):
        path.write_text(commands(path.read_text(encoding="utf-8")), encoding="utf-8")
    for name in CARRIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / name, ignore=ignore)
    (home / "Makefile").write_text(commands((ROOT / "Makefile").read_text(encoding="utf-8")), encoding="utf-8")
    (home / "py.typed").touch()
    if (commit := _commit()) is not None:
        (home / "commit.txt").write_text(commit + "\n", encoding="utf-8")
    return home


def _commit() -> str | None:
    """The commit of the checkout, with "+" if files differ from it; None for a source distribution."""
    if not (ROOT / ".git").exists():
        return None
    words = ("git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
