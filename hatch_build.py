"""Build hook: the wheel holds the tree that scripts/wheel_tree.py writes."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))

from wheel_tree import HOME, write


class WheelTree(BuildHookInterface):  # type: ignore[misc]
    """Adds the rewritten tree to a wheel. An editable install points at the checkout instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is "standard" or "editable"."""
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()
        build_data["force_include"][str(write(Path(self._folder.name)))] = HOME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling after the wheel is written."""
        if version != "editable":
            self._folder.cleanup()
