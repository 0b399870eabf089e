"""Where this code runs from: a checkout, or a wheel in which every package is a part of `fgrpo`.

A checkout has the packages `judges`, `rl`, … at its root. PyPI has other packages of these names. So the wheel contains them
as `fgrpo.judges`, `fgrpo.rl`, … (`scripts/wheel_tree.py` rewrites the imports), and their configurations as fgrpo/configs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
IS_WHEEL = (_HERE / "configs").is_dir()
ROOT = _HERE if IS_WHEEL else _HERE.parent  # the folder of configs/ and requirements/
CONFIGS = ROOT / "configs"
OWN_CONFIGS = Path("configs")  # of the working directory, beside a wheel: the user's own models, methods and presets
PACKAGES = (
    "data_curation",
    "eval",
    "judges",
    "mcts",
    "miniworld",
    "ops",
    "rewards",
    "rl",
    "sft",
)  # beside fgrpo in a checkout
_SHIPPED = ("configs/", "miniworld/")
COMMIT_FILE = _HERE / "commit.txt"  # in a wheel that was built from a git checkout


def importable(name: str) -> str:
    """The name under which a module of this repository is imported here: "judges.base", or "fgrpo.judges.base" in a wheel."""
    return f"fgrpo.{name}" if IS_WHEEL and name.partition(".")[0] != "fgrpo" else name


def checkout_name(module: str) -> str:
    """The name of a module in a checkout, the inverse of `importable`."""
    inner = module.removeprefix("fgrpo.")
    return inner if IS_WHEEL and inner.partition(".")[0] in PACKAGES else module


def packaged(value: Any) -> Any:
    """A configuration in which the path of a shipped file, such as "configs/deepspeed/zero3.json", leads into the wheel.

    A file of that name in the working directory comes first. In a checkout nothing changes.
    """
    if not IS_WHEEL:
        return value
    if isinstance(value, dict):
        return {key: packaged(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [packaged(inner) for inner in value]
    is_shipped = isinstance(value, str) and value.startswith(_SHIPPED) and not Path(value).exists()
    return str(ROOT / value) if is_shipped and (ROOT / value).exists() else value


def yaml_files(folder: Path) -> dict[str, Path]:
    """The YAML files of a folder of configs/ by stem, sorted.

    A wheel adds those of the same folder in the working directory's configs/; they replace files of the same name.
    """
    found = {path.stem: path for path in folder.glob("*.yaml")}
    if IS_WHEEL and folder.parent == CONFIGS:
        found |= {path.stem: path for path in (OWN_CONFIGS / folder.name).glob("*.yaml")}
    return dict(sorted(found.items()))
