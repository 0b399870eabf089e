"""Starting a stage: the arguments for accelerate, what is refused early, and how a run ends when one process fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgrpo import INTERRUPTED, cli, config, hardware
from fgrpo.errors import UserError
from fgrpo.training import launch
from fgrpo.training.checkpoints import last_checkpoint
from tests.distributed.conftest import GENEROUS, ROOT, Small

STARTER = """
import sys
from fgrpo import config
from fgrpo.training import launch
launch.STAGES["tests.distributed.fails"] = "sft"
launch.start("tests.distributed.fails", config.load("mini", "fgrpo", ["launch.sft_processes=2"]), [])
"""
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def flags(words: list[str]) -> dict[str, str]:
    return {word: words[i + 1] for i, word in enumerate(words) if word.startswith("--") and word != "--module"}


def test_the_paper_preset_goes_through_accelerate_and_deepspeed() -> None:
    cfg = config.load("paper-7b")
    words = launch.command("sft.train", cfg, ["--preset", "paper-7b"])
    assert words[-4:] == ["--module", "sft.train", "--preset", "paper-7b"]
    arguments = flags(words[:-4])
    assert (arguments["--num_processes"], arguments["--num_machines"], arguments["--main_process_port"]) == (
        "8",
        "1",
        "0",
    )
    assert Path(arguments["--config_file"]).name == "deepspeed.yaml" and Path(arguments["--config_file"]).is_file()
    assert arguments["--deepspeed_config_file"] == "configs/deepspeed/zero3.json"
    assert not launch.layout(cfg, "sft").is_plain and launch.layout(config.load("mini"), "rl").is_plain
    ddp = launch.command("rl.train", config.load("mini", overrides=["launch.rl_processes=2"]), [])
    assert Path(flags(ddp)["--config_file"]).name == "ddp.yaml" and "--deepspeed_config_file" not in ddp


def test_several_machines_know_the_first_and_their_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config.load("paper-7b", overrides=["@multi-node"])
    for name in ("MASTER_ADDR", "MASTER_PORT", *launch.MACHINE_RANKS):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"2 machines.*MASTER_ADDR is not set.*start the same command on each"):
        launch.command("sft.train", cfg, [])
    monkeypatch.setenv("MASTER_ADDR", "first")
    with pytest.raises(UserError, match="MACHINE_RANK is not set"):
        launch.command("sft.train", cfg, [])
    monkeypatch.setenv("SLURM_NODEID", "1")
    arguments = flags(launch.command("sft.train", cfg, []))
    assert (arguments["--num_processes"], arguments["--machine_rank"], arguments["--main_process_ip"]) == (
        "16",
        "1",
        "first",
    )
    assert arguments["--main_process_port"] == str(cfg.launch.port)


@pytest.mark.parametrize(
    ("overrides", "gpus", "words"),
    [
        ([], 0, r"paper-7b trains in bf16 on 8 GPUs per machine, and this machine has none"),
        (
            [],
            4,
            r"launch\.sft_processes is 8 \(one process per GPU\), and this machine has 4; set launch\.sft_processes=4",
        ),
        (["sft.deepspeed=gone.json"], 8, r"sft\.deepspeed: gone\.json is missing"),
    ],
)
def test_what_cannot_start_is_refused_early(overrides: list[str], gpus: int, words: str) -> None:
    cfg = config.load("paper-7b", overrides=overrides)
    with pytest.raises(UserError, match=words):
        launch.check(launch.layout(cfg, "sft"), "paper-7b", gpus)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "is not a DeepSpeed configuration"),
        ("{", "is not a DeepSpeed configuration"),
        (
            '{"zero_optimization": {"stage": 3}}',
            "lacks zero_optimization.stage3_gather_16bit_weights_on_model_save=true",
        ),
        ('{"train_batch_size": 8}', "sets train_batch_size, which follows from the preset"),
        (
            '{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}',
            r"compiles its own Adam with g\+\+.*apt install",
        ),
    ],
)
def test_deepspeed_files_that_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, words: str
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(content)
    monkeypatch.setattr(hardware, "missing_tools", lambda: ["g++"])
    with pytest.raises(UserError, match=words):
        hardware.check_deepspeed(str(file), "sft.deepspeed")
    for shipped in (ROOT / "configs" / "deepspeed").glob("*.json"):
        hardware.check_deepspeed(str(shipped), "sft.deepspeed")


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_reports_once(
    sign: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes leave the message to the launcher, which torch ends by an exception."""
    from accelerate.commands import launch as accelerates
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def interrupted(_: object) -> None:
        raise SignalException("got a signal", sigval=sign)

    monkeypatch.setattr(accelerates, "launch_command", interrupted)
    for name in (cli.SIDE_BY_SIDE, "OMP_NUM_THREADS", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))  # put back afterwards
    with pytest.raises(SystemExit) as end:
        launch.start("sft.train", config.load("mini", overrides=["launch.sft_processes=2"]), [])
    assert end.value.code == code
    assert capsys.readouterr().err == INTERRUPTED + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "code", "words"),
    [
        ("main", 2, "error: the input x is missing; run `make mcts`"),
        ("disk", 2, "error: no space left on the disk (checkpoints/x)"),
        ("killed", 1, "error: process 1 was ended by SIGKILL (out of memory?)"),
    ],
)
def test_one_process_that_fails_ends_the_run_with_one_line(fails: str, code: int, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTER],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "FAILS": fails},
        cwd=ROOT,
        timeout=GENEROUS,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == code and len(errors) == 1 and errors[0].startswith(words), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_disconnect_before_the_interpreter_ends() -> None:
    """Gloo's threads abort an interpreter that ends under them, now and then: a finished run then counts as failed."""
    environment = {**os.environ, **ENVIRONMENT, "FAILS": "never"}
    done = subprocess.run(
        [sys.executable, "-c", STARTER], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=GENEROUS, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    left = [line for line in done.stdout.splitlines() if "ends with threads" in line]
    assert len(left) == 2 and not any("gloo" in line for line in left), left


@pytest.mark.slow
def test_a_killed_process_leaves_a_complete_checkpoint_and_no_process(small: Small, tmp_path: Path) -> None:
    """The real command under ZeRO-3; process 1 dies after the checkpoint of step 2."""
    root = small.root("sft-killed")
    overrides = small.sft("launch.sft_processes=2", "sft.deepspeed=configs/deepspeed/zero3.json", "sft.max_steps=4000")
    words = [sys.executable, "-m", "fgrpo.training.launch", "sft.train", "--runs", str(root), "--set", *overrides]
    log = tmp_path / "log"  # a file, since an unread pipe blocks the run once it is full
    with log.open("w") as out:
        started = subprocess.Popen(words, stderr=out, env={**os.environ, **ENVIRONMENT}, cwd=ROOT)
    folder = root / "mini" / "sft" / "checkpoints"
    try:
        while last_checkpoint(folder) is None and started.poll() is None:
            time.sleep(0.1)
        workers = _children(started.pid)
        os.kill(workers[1], signal.SIGKILL)
        started.wait(timeout=GENEROUS)
    finally:
        started.kill()
        started.wait()
    output = log.read_text()
    assert started.returncode == 1 and "error: process 1 was ended by SIGKILL" in output, output[-3000:]
    assert "Warning" not in output, output[:3000]
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None and json.loads((checkpoint / "processes.json").read_text()) == {
        "processes": 2,
        "zero": 3,
    }
    assert len(list(checkpoint.glob("global_step*/*optim_states.pt"))) == 2


def _children(pid: int) -> list[int]:
    """The processes that `pid` has started and that run Python, the first rank first (Linux)."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranked = {}
    for child in map(int, listed):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        number = next((int(v.split(b"=")[1]) for v in variables if v.startswith(b"RANK=")), None)
        if number is not None:
            ranked[number] = child
    return [ranked[number] for number in sorted(ranked)]
