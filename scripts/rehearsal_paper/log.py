"""The log of a rehearsal: a line per stage on the screen, rehearsal.json, and docs/rehearsal.md (`--publish`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

FILE = "rehearsal.json"
PAGE = Path("docs/rehearsal.md")
HEAD = """# The rehearsal of paper-7b, with its counts

Written by `make rehearsal-paper PUBLISH=1` ([cluster.md](cluster.md) says what stands in for what): {stages} commands of the preset in {wall:.1f} minutes of wall clock and {cpu:.1f} of CPU on {cores} cores, {problems} problems. Preparing models and data took {prepared:.0f} s of that.
"""


@dataclass
class StageLog:
    """One stage: wall-clock and CPU seconds of its command, the counts that its check read, and what was wrong."""

    name: str
    seconds: float
    cpu_seconds: float
    counts: Mapping[str, object] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def words(self) -> str:
        """The counts in one line."""
        return ", ".join(f"{name} {_shown(value)}" for name, value in self.counts.items())


@dataclass
class Log:
    """A whole rehearsal. `replied` are the endpoint's replies by "server / kind / style"."""

    short: bool
    cores: int
    prepared: float
    stages: list[StageLog]
    replied: Mapping[str, int]

    def write(self, root: Path) -> None:
        """Store it as rehearsal.json."""
        (root / FILE).write_text(json.dumps(asdict(self), indent=1, default=str) + "\n", encoding="utf-8")

    def page(self) -> str:
        """docs/rehearsal.md."""
        wall = self.prepared + sum(stage.seconds for stage in self.stages)
        cpu = sum(stage.cpu_seconds for stage in self.stages)
        problems = [problem for stage in self.stages for problem in stage.problems]
        head = HEAD.format(
            stages=len(self.stages), wall=wall / 60, cpu=cpu / 60, cores=self.cores, problems=len(problems) or "no",
            prepared=self.prepared,
        )  # fmt: skip
        rows = [
            f"| {stage.name} | {stage.seconds:.0f} | {stage.cpu_seconds:.0f} | {stage.words().replace('|', '/')} |"
            for stage in self.stages
        ]
        asked = [f"| {name.replace(' / ', ' | ')} | {count:,} |" for name, count in sorted(self.replied.items())]
        parts = [
            head,
            "| stage | wall, s | CPU, s | counts |\n|---|---:|---:|---|",
            "\n".join(rows),
            "\n## What the endpoint was asked\n\n| server | kind of request | style of the reply | replies |\n|---|---|---|---:|",
            "\n".join(asked),
        ]
        return "\n".join(parts) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_shown(part)}" for name, part in value.items()) + ")"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return str(value)
