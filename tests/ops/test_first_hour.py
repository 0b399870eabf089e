"""docs/first_hour.md: its commands are accepted, its models are those of the preset, and its layout is the one that runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.inference import serve
from ops import slurm
from ops.layout import rl_layout
from ops.paper import __main__ as paper
from ops.paper import steps as chain
from tests.ops.test_documented_commands import commands

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "first_hour.md"
TEXT = PAGE.read_text(encoding="utf-8")
# `source` and `hf` are not ours; `bash` runs what `make slurm` wrote
BLOCKS = [line.strip() for line in re.findall(r"^    ([a-z./].*)$", TEXT, re.M)]
OTHERS = re.compile(r"(hf download|source|bash) ")


def options(line: str) -> tuple[dict[str, str], list[str]]:
    """NAME=value words of a make command, and the targets."""
    words = shlex.split(line)[1:]
    return dict(w.split("=", 1) for w in words if "=" in w), [w for w in words if "=" not in w]


def test_every_line_of_a_block_is_checked() -> None:
    known = {line for line in BLOCKS if OTHERS.match(line)} | set(commands(PAGE))
    assert not [line for line in BLOCKS if line not in known], "a command that no test knows"
    assert sum(line.startswith("make paper") for line in BLOCKS) == 3


@pytest.mark.parametrize("line", [line for line in BLOCKS if line.startswith("make paper")])
def test_make_paper_plans_what_the_page_runs(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The command of `make -n`, run with --plan."""
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = [text for text in done.stdout.splitlines() if "-m ops.paper" in text]
    words = shlex.split(command.split("-m ops.paper", 1)[1])
    monkeypatch.setattr(sys, "argv", ["ops.paper", *words, "--runs", str(tmp_path), "--plan"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paper.main()
    out = capsys.readouterr().out
    assert "[1/13] data-prepare" in out and "[13/13] report" in out
    training = next(text for text in out.splitlines() if "rl.train" in text and "--method fgrpo" in text)
    assert training.startswith("  command CUDA_VISIBLE_DEVICES=0,1,2,3 ")


def test_the_models_to_download_are_those_that_the_chain_loads() -> None:
    config = load("paper-7b", overrides=["@one-node"])
    every = chain.steps(config, lambda method: load("paper-7b", method, ["@one-node"]), ["grpo-t", "fgrpo"], "runs")
    servers = {server for step in every for server in step.servers if server.role != "rollouts"}
    names = {server.model or serve.model_of(config, server.role) for server in servers}
    wanted = {name for name in names if not name.startswith("runs/")} | {config.models.base, config.data.embedder_model}
    assert set(re.findall(r"^    hf download (\S+)$", TEXT, re.M)) == wanted


def test_the_layout_of_the_page_is_the_one_that_runs() -> None:
    layout = rl_layout(load("paper-7b", overrides=["@one-node"]))
    assert (layout["processes"], layout["judge_first"], layout["judge_gpus"]) == (4, 4, 2)
    assert (layout["rollout_first"], layout["rollout_gpus"]) == (6, 2)
    assert "training on 0 to 3, the judge on 4 and 5, rollouts on 6 and 7" in TEXT


@pytest.mark.parametrize("line", [line for line in BLOCKS if line.startswith("make slurm")])
def test_slurm_writes_the_script_that_the_page_submits(line: str, tmp_path: Path) -> None:
    given, _ = options(line)
    settings = [f"@{given['OVERLAY']}", *shlex.split(given.get("SET", ""))]
    config = load(given["PRESET"], overrides=settings)
    assert "submit.sh" in slurm.scripts(config, ["--preset", given["PRESET"]], tmp_path)
    assert f"bash {given.get('RUNS', 'runs')}/{given['PRESET']}/slurm/submit.sh" in BLOCKS


def test_the_small_run_is_small() -> None:
    small, whole = load("paper-7b", overrides=["@first-hour"]), load("paper-7b")
    assert sum(c.seed for c in small.data.sources.values()) * 100 == sum(c.seed for c in whole.data.sources.values())
    assert small.rl.max_steps % (small.rl.rollout_batch // small.rl.global_batch) == 0
    changed = {"data", "sft", "rl", "eval"}
    same = set(type(whole).model_fields) - changed
    assert all(getattr(small, name) == getattr(whole, name) for name in same)
