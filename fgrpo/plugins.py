"""Discovery by file: a module of a package is a plugin if it defines the package's constant at its top level.

Rewards (`REWARD`), judge backends (`BACKEND`), data sources (`SOURCE`), benchmarks (`BENCHMARK`), labelled sets (`LABELLED`),
files of other harnesses (`FORMAT`), probes of the policy (`PROBE`) and writers of the miniature world (`WRITER`) are found this
way. No registry and no list of names exists elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

from fgrpo.errors import UserError, unknown
from fgrpo.installed import importable


def plugin_names(package: str, constant: str) -> list[str]:
    """Names of the plugins in a package, sorted.

    Reads source files instead of importing them, so that listing names loads no plugin and none of its dependencies.

    Args:
        package: dotted name, such as "judges.backends".
        constant: what a plugin assigns at its top level, such as "BACKEND". A module without it is a helper.
    """
    assigns = re.compile(rf"^{re.escape(constant)}\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
    files = sorted(_folder(package).glob("*.py"))
    return [file.stem for file in files if assigns.search(file.read_text(encoding="utf-8"))]


def load_plugin(package: str, name: str, constant: str, kind: str) -> Any:
    """The constant of one plugin.

    Args:
        package: dotted name of the package.
        name: the plugin's module.
        constant: see `plugin_names`.
        kind: what a plugin is, for messages, such as "judge backend".

    Raises:
        UserError: no module has this name (names the nearest plugin), or the module lacks the constant (names the file).
    """
    file = _folder(package) / f"{name}.py"
    if not name.isidentifier() or not file.is_file():
        raise unknown(kind, name, plugin_names(package, constant))
    module = importlib.import_module(importable(f"{package}.{name}"))
    if not hasattr(module, constant):
        known = ", ".join(plugin_names(package, constant))
        raise UserError(f"{file} defines no {constant}, so it is no {kind}; define it there, or name one of: {known}")
    return getattr(module, constant)


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(importable(package))
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is no package")
    return Path(next(iter(spec.submodule_search_locations)))
