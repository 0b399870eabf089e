"""The command that runs all measurements: each name is a module that exists, and sections replace those of their heading."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from perf.run import commands, sections


def test_every_measurement_is_a_module() -> None:
    found = commands(argparse.Namespace(preset="mini", method="fgrpo", runs="runs", set=["rl.max_steps=2"]))
    assert {"peers_search", "peers_harness", "judging_ordinary", "constraints_cost"} <= set(found)
    assert [name for name, (module, *_) in found.items() if find_spec(module) is None] == []
    assert found["peers_harness"][-2:] == found["constraints_cost"][-2:] == ["--set", "rl.max_steps=2"]


def test_a_section_ends_with_its_table() -> None:
    page = "noise\n## One\n\nWords.\n\n| a |\n|---|\n| 1 |\nmore noise\n## Two\n\nWords.\n"
    assert sections(page) == {"## One": "## One\n\nWords.\n\n| a |\n|---|\n| 1 |\n", "## Two": "## Two\n\nWords.\n"}
