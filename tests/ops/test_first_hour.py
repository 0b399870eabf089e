"""docs/first_hour.md: its commands are accepted, its models are those of the preset, and its layout is the one that runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import Config, load
from fgrpo.inference import serve
from ops import slurm
from ops.assumptions import Assumptions
from ops.layout import rl_layout
from ops.memory_estimate import GB, peak, shape_of
from ops.paper import __main__ as paper
from ops.paper import checks
from ops.paper import steps as chain
from ops.storage import checkpoints
from ops.training_memory import likely_memory
from ops.training_stages import saves, stages
from ops.workload import sft_batch
from tests.ops.test_documented_commands import commands

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "first_hour.md"
TEXT = PAGE.read_text(encoding="utf-8")
# `source` and `hf` are not ours; `bash` runs what `make slurm` wrote
BLOCKS = [line.strip() for line in re.findall(r"^    ([a-z./].*)$", TEXT, re.M)]
PAPER = sorted({line for line in commands(PAGE) if line.startswith("make paper PRESET=") and "PLAN=1" not in line})
OTHERS = re.compile(r"(hf download|source|bash) ")


def options(line: str) -> tuple[dict[str, str], list[str]]:
    """NAME=value words of a make command, and the targets."""
    words = shlex.split(line)[1:]
    return dict(w.split("=", 1) for w in words if "=" in w), [w for w in words if "=" not in w]


def test_every_line_of_a_block_is_checked() -> None:
    known = {line for line in BLOCKS if OTHERS.match(line)} | set(commands(PAGE))
    assert not [line for line in BLOCKS if line not in known], "a command that no test knows"
    assert sum(line.startswith("make paper") for line in BLOCKS) == 3 and len(PAPER) == 6, (
        "two of them, and four in the table"
    )


@pytest.mark.parametrize("line", PAPER)
def test_make_paper_plans_what_the_page_runs(line: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The command of `make -n`, run with --plan: it fits the GPUs' memory, and its batches are the paper's."""
    done = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = [text for text in done.stdout.splitlines() if "-m ops.paper" in text]
    words = shlex.split(command.split("-m ops.paper", 1)[1])
    seen: list[Config] = []
    likely = paper.likely_hours
    monkeypatch.setattr(paper, "likely_hours", lambda configs: seen.extend(configs) or likely(configs))
    monkeypatch.setattr(sys, "argv", ["ops.paper", *words, "--runs", str(tmp_path), "--plan"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paper.main()
    out = capsys.readouterr().out
    steps = 11 + len(seen)
    assert f"[1/{steps}] data-prepare" in out and f"[{steps}/{steps}] report" in out
    training = next(text for text in out.splitlines() if "rl.train" in text and "--method fgrpo" in text)
    gpus = "0" if "cluster.gpus=4" in line else "0,1,2,3"
    assert training.startswith(f"  command CUDA_VISIBLE_DEVICES={gpus} ")
    whole, assume = load("paper-7b"), Assumptions()
    for config in seen:
        assert sft_batch(config) == sft_batch(whole) == 64
        assert (config.rl.global_batch, config.rl.rollout_batch) == (whole.rl.global_batch, whole.rl.rollout_batch)
        for stage in stages(config):
            parts = likely_memory(config, stage, shape_of(config.models.base), assume)
            assert peak(parts) <= 0.9 * assume["gpu.memory_gb"] * GB, (config.method, stage)


def test_the_time_of_the_readme_is_the_one_that_make_paper_prints(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ops.paper", "--preset", "paper-7b", "--plan"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paper.main()
    days, held = re.search(
        r"\(([\d.]+) days\), (\d+) GPU hours held", capsys.readouterr().out.splitlines()[-1]
    ).groups()
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| paper-7b"))
    assert f"about {days} days, {round(int(held), -1)} GPU hours held" in row and "PLAN=1" in row


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


def needed_gb(root: Path, *settings: str) -> float:
    """What `make paper` asks of the disk before it starts."""
    configs = [load("paper-7b", method, ["@one-node", *settings]) for method in ("grpo-t", "fgrpo")]
    (found,) = checks.disk(configs, root)
    return float(re.search(r"(\d+) needed", found.what)[1])


def test_the_disk_of_the_page_is_what_make_paper_asks_for(tmp_path: Path) -> None:
    whole, small = needed_gb(tmp_path), needed_gb(tmp_path, "@first-hour")
    row = re.search(r"^\| ([\d.]+) TB of disk \| data \(([\d.]+) TB\), models \(([\d.]+) TB\), (.*) \|$", TEXT, re.M)
    assert row[4].startswith(f"checkpoints of SFT and two methods ({whole / 1000:.1f} TB)")
    assert f"the small run of step 4 needs {small / 1000:.1f} TB before it is cleaned" in row[4]
    data, models, wanted = (1000 * float(row[n]) for n in (2, 3, 1))
    assert data == checks.doctor.DATA_DISK_GB
    left = 4 * 2 * shape_of("Qwen/Qwen2.5-VL-7B-Instruct").parameters / 1e9  # of the small run, once it is cleaned
    assert "four models of 17 GB stay" in TEXT and round(left / 4) == 17
    assert data + models + whole + left <= wanted <= 1.1 * (data + models + whole + left)
    assert "make clean-checkpoints PRESET=paper-7b RUNS=runs/first-hour" in BLOCKS


def test_a_short_run_writes_fewer_checkpoints_than_a_stage_keeps() -> None:
    shape = shape_of("Qwen/Qwen2.5-VL-7B-Instruct")
    small = load("paper-7b", overrides=["@first-hour"])
    for stage in ("sft", "rl"):
        assert saves(small, stage) == 2 and checkpoints(small, stage, shape).formula.startswith("2 checkpoints x")
    odd = load("paper-7b", overrides=["@first-hour", "rl.save_steps=3", "sft.max_steps=5"])
    assert (saves(odd, "rl"), saves(odd, "sft")) == (1, 3), "RL saves after whole generations; the last update is saved"
