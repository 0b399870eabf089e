"""The Makefile: phony targets in the right order, and no rule that decides by a file whether a stage runs again."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
from pathlib import Path

import pytest

from fgrpo.config import CONFIGS, load
from perf.run import OF_PRESET, commands

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
STAMPS = {".venv/.stamp", ".venv-vllm/.stamp"}  # set-up alone is decided by files
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


def modules(*words: str) -> list[str]:
    """The modules that `make <words>` would run, in order."""
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    found = re.findall(r"-m (?:fgrpo\.training\.launch )?([\w.]+)", done.stdout)
    return [module for module in found if module != "ops.gpu_memory"]  # `test_training_checks_the_gpus_first`


def test_every_target_is_phony() -> None:
    joined = MAKEFILE.replace("\\\n", " ")
    (line,) = re.findall(r"^\.PHONY: (.*)$", joined, re.M)
    assert "rl-,$(METHODS)" in line and "serve-,$(SERVED)" in line
    phony = set(re.sub(r"\$\(addprefix .*?\)\)", "", line).split())
    targets = set(re.findall(r"^([\w./-]+):(?!=)", joined, re.M)) - {".PHONY"}
    assert {target for target in targets - STAMPS if not target.startswith("serve-")} == phony
    assert "/done" not in MAKEFILE and "FORCE" not in MAKEFILE


def test_a_later_stage_alone_makes_what_comes_before_it() -> None:
    before = ["miniworld.write", "data_curation.run", "mcts.run", "sft.train"]
    assert modules("sft", "PRESET=smoke") == before
    assert modules("rl-fgrpo", "PRESET=smoke") == ["ops.check_method", *before, "rl.train"]
    assert modules("eval", "PRESET=smoke") == ["miniworld.write", "eval.run"]
    assert modules("bench", "PRESET=smoke") == [*before, "perf.run"]
    of_bench = commands(argparse.Namespace(preset="smoke", method="fgrpo", runs="runs", set=[]))
    for name in of_bench:
        needed = before if name in OF_PRESET else []
        assert modules("bench", "PRESET=smoke", f"ONLY=unknown,{name}") == [*needed, "perf.run"], name


def test_a_preset_without_a_world_writes_none() -> None:
    assert modules("sft", "PRESET=paper-7b") == ["data_curation.run", "mcts.run", "sft.train"]


def test_training_checks_the_gpus_first() -> None:
    done = subprocess.run(["make", "-n", "rl-fgrpo"], cwd=ROOT, capture_output=True, text=True, check=True)
    checked = [line for line in done.stdout.splitlines() if "ops.gpu_memory" in line or "training.launch" in line]
    found = [re.search(r"ops\.gpu_memory \w+|launch \w+\.train", line) for line in checked]
    words = [match[0] for match in found if match]
    assert words == ["ops.gpu_memory sft", "launch sft.train", "ops.gpu_memory rl", "launch rl.train"]
    assert checked[2].startswith("if command -v nvidia-smi") and "--method fgrpo" in checked[2]


def test_the_demo() -> None:
    stages = modules("demo", "PRESET=smoke")
    assert stages.count("ops.check_method") == 2  # a wrong method is said before the first stage
    stages = [stage for stage in stages if stage != "ops.check_method"]
    assert stages[:4] == ["miniworld.write", "data_curation.run", "mcts.run", "sft.train"]
    assert stages[4:6] == ["rl.train", "rl.train"] and stages[-4:] == [
        "eval.run",
        "eval.figures",
        "eval.report",
        "eval.tables",
    ]
    done = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "-j2 rl-grpo-t rl-fgrpo" in done.stdout  # in parallel
    assert re.search(r"TQDM_POSITION=1 .*rl\.train .*--method fgrpo", done.stdout)


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["PRESET=smoke", "data"], ""),
        (["data"], ""),
        (["CUDA_VISIBLE_DEVICES=2", "data"], "2"),
        (["PRESET=paper-7b", "data"], "0,1"),
        (["gpu-check"], "0,1"),
    ],
)
def test_the_miniature_runs_on_the_cpu_of_a_machine_with_gpus(words: list[str], seen: str, tmp_path: Path) -> None:
    """What an interpreter that `make` starts sees; `data` of the miniature starts several."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -m ] || echo "visible <${CUDA_VISIBLE_DEVICES-unset}>"\n')
    python.chmod(0o755)
    gpus = {**os.environ, "CUDA_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(
        ["make", *words, f"PYTHON={python}"], cwd=ROOT, capture_output=True, text=True, env=gpus, check=False
    )
    assert set(re.findall(r"visible <.*>", done.stdout)) == {f"visible <{seen}>"}, done.stdout + done.stderr


def test_settings_reach_the_stages() -> None:
    words = ["rl-fgrpo", "PRESET=paper-7b", "OVERLAY=lora,one-node", "SET=rl.kl_coef=0.03 rl.max_steps=5"]
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if "-m" in line]
    wanted = "--preset paper-7b --overlay lora,one-node --set rl.kl_coef=0.03 rl.max_steps=5"
    assert len(lines) == 7 and all(wanted in line for line in lines)  # two of them check the GPUs' memory


@pytest.mark.parametrize("target", ["data", "eval", "tables", "figures", "report", "plan"])
def test_a_method_reaches_every_stage(target: str) -> None:
    """Figure 8 and the comparisons are of the configuration's method; without METHOD it is the default one."""
    done = subprocess.run(["make", "-n", target, "METHOD=grpo-t"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if " -m " in line]
    assert lines and all("--preset mini --method grpo-t" in line for line in lines)
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--method" not in done.stdout


def test_a_target_of_a_method_trains_it_whatever_the_method_is() -> None:
    done = subprocess.run(
        ["make", "-n", "rl-fgrpo", "METHOD=grpo-t"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in done.stdout.splitlines() if "rl.train" in line]
    assert line.endswith("--method fgrpo"), "the last one counts"


def test_a_method_that_starts_anchored_makes_that_stage_after_its_own_check() -> None:
    before = ["miniworld.write", "data_curation.run", "mcts.run", "sft.train"]
    assert modules("anchor", "PRESET=smoke") == [*before, "sft.anchor"]
    anchored = [name for name in METHODS if load("mini", name).rl.start == "anchor"]
    assert "mr1" in anchored and "fgrpo-mr1" in anchored
    for method in METHODS:
        stages = [*before, *(["sft.anchor"] if method in anchored else [])]
        assert modules(f"rl-{method}", "PRESET=smoke") == ["ops.check_method", *stages, "rl.train"], method
    two = modules("-j2", "rl-mr1", "rl-fgrpo-mr1", "PRESET=smoke")
    assert two.count("sft.anchor") == 1 and two.index("sft.anchor") < two.index("rl.train")
    done = subprocess.run(["make", "-n", "rl-mr1"], cwd=ROOT, capture_output=True, text=True, check=True)
    checked = re.findall(r"ops\.gpu_memory \w+|launch \w+\.\w+", done.stdout)
    assert checked == [
        *("ops.gpu_memory sft", "launch sft.train", "ops.gpu_memory anchor", "launch sft.anchor"),
        *("ops.gpu_memory rl", "launch rl.train"),
    ]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_target(method: str) -> None:
    assert modules(f"rl-{method}", "PRESET=mini")[-1] == "rl.train"


def test_a_method_without_a_file_is_named() -> None:
    done = subprocess.run(["make", "rl-fgrpx"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode and "fgrpx" in done.stderr and "fgrpo" in done.stderr


def test_a_name_of_the_environment_is_no_name_of_a_model() -> None:
    """WSL sets NAME to the host; platforms set PORT."""

    def made(*words: str) -> subprocess.CompletedProcess[str]:
        own = {
            key: value for key, value in os.environ.items() if not key.startswith("MAKE")
        }  # of the make that runs us
        env = {**own, "NAME": "host", "PORT": "1", "FLAGS": "--x", "SAMPLES": "y", "IMAGES": "z", "PUBLIC": "1"}
        return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False, env=env)

    def printed(*words: str) -> str:
        return " ".join(made(*words).stdout.split())

    assert "set NAME to a name" in made("external", "SAMPLES=a").stderr
    assert "set MODEL to an evaluated model" in made("maps").stderr
    assert printed("maps", "MODEL=sft", "LIMIT=3").endswith("--preset mini --model sft --limit 3")
    assert "set SAMPLES to the files" in made("external", "NAME=mine").stderr
    assert printed("external", "NAME=mine", "SAMPLES=a").endswith("--name mine --samples a")
    assert printed("serve-teacher").endswith("serve teacher --preset mini")
    assert printed("serve-teacher", "NAME=t", "PORT=2").endswith("--preset mini --port 2 --name t")


def test_help_lists_every_public_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^  make (\S+)", done.stdout, re.M))
    assert {"help", "setup", "demo", "test", "check", "data", "mcts", "sft", "eval", "plan", "doctor"} <= listed
    assert {f"rl-{method}" for method in METHODS} <= listed


@pytest.mark.parametrize("preset", ["mini", "smoke", "paper-7b"])
def test_agreement_asks_about_scenes_only_if_told(preset: str) -> None:
    words = ["make", "-n", "judge-agreement", "RUN=runs/x", "JUDGE=oracle", f"PRESET={preset}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--run runs/x --judge oracle" in done.stdout and "--world" not in done.stdout
    done = subprocess.run([*words, "WORLD=100"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--world 100" in done.stdout


@pytest.mark.parametrize(
    ("given", "threads"), [({}, "2"), ({"OMP_NUM_THREADS": "3"}, "3"), ({"SFT_THREADS": "5"}, "5")]
)
def test_sft_has_both_cores_and_rl_one_each(given: dict[str, str], threads: str) -> None:
    clean = {
        k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "SFT_THREADS") and not k.startswith("MAKE")
    }
    printed = subprocess.run(
        ["make", "-n", "sft"], cwd=ROOT, capture_output=True, text=True, check=True, env={**clean, **given}
    ).stdout
    assert f"OMP_NUM_THREADS={threads} " in printed and "sft.train" in printed
    on_gpus = subprocess.run(
        ["make", "-n", "sft", "PRESET=paper-7b"], cwd=ROOT, capture_output=True, text=True, check=True, env=clean
    )
    assert "OMP_NUM_THREADS" not in on_gpus.stdout


def test_stages_that_can_share_their_work_get_two_processes() -> None:
    printed = subprocess.run(
        ["make", "-n", "eval", "mcts"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for module in ("miniworld.write", "data_curation.run", "mcts.run", "eval.run"):
        assert re.search(rf"-m {re.escape(module)} .*--jobs 2", printed), module
