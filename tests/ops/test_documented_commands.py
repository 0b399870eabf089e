"""Every command that README.md and docs/ show exists: `make -n` accepts it, and its module knows each of its flags."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PLACEHOLDERS = {
    "<method>": "fgrpo",
    "<checkpoint>": "x",
    "<cell>": "x",
    "<name>": "x",
    "…": "x",
    "/path/to/python3.11": sys.executable,
    "/path/to/python": sys.executable,
}
REQUIRED = {
    "card": ["RUN=x"],
    "compare": ["MODELS=a,b"],
    "external": ["NAME=x", "SAMPLES=x"],
    "judge-rescore": ["RUN=x", "JUDGE=x"],
    "maps": ["MODEL=x"],
    "probe": ["MODEL=x"],
}  # what a bare mention leaves out
STAGES = {"sft.train", "sft.anchor", "rl.train"}  # `fgrpo.training.launch` gives them the stages' own flags
# What no test executes, with the reason; `make -n` and the flags are checked all the same.
BY_HAND = {
    "clean-checkpoints": "deletes; tests/ops/test_clean_checkpoints.py runs it on a folder of its own",
    "backbone": "trains for minutes; tests/miniworld trains a few steps",
    "bench": "measures for an hour; the parts are tested",
    "data-download": "needs network; tests/data_curation runs it against a stand-in",
    "demo": "takes 15 minutes; .ci/run runs it as `make smoke`",
    "gpu-check": "needs a GPU; tests/perf/test_gpu_check.py runs its checks at tiny shapes",
    "lab": "runs for hours; tests/ops/test_lab.py runs its parts",
    "rehearsal": "takes five minutes and needs .venv-vllm",
    "rehearsal-paper": "takes minutes and needs network once; tests/rehearsal_paper tests its parts",
    "setup": "needs network; .ci/run runs it",
    "setup-vllm": "needs network",
    "serve-base": "needs vLLM; tests/vllm serves",
    "serve-extractor": "needs vLLM; tests/vllm serves",
    "serve-judge": "needs vLLM; tests/vllm serves",
    "serve-model": "needs vLLM; tests/vllm serves",
    "serve-rollouts": "needs vLLM; tests/vllm serves",
    "serve-teacher": "needs vLLM; tests/vllm serves",
    "test-wheel": "needs network; .ci/run runs it",
    "test-vllm": "needs .venv-vllm; .ci/run runs it",
}
EXECUTED = {
    *(
        "data",
        "mcts",
        "sft",
        "anchor",
        "eval",
        "tables",
        "figures",
        "report",
    ),  # the stages' own tests call what these targets call
    *(
        "card",
        "compare",
        "external",
        "judge-rescore",
        "judge-agreement",
        "maps",
        "probe",
        "lab-report",
        "plan",
        "doctor",
        "slurm",
        "paper",
        "help",
        "check",
        "test",
        "smoke",
    ),
}


def commands(page: Path) -> list[str]:
    """`make …` and `python …` commands in code blocks and in inline code, with placeholders filled in."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"^    (.*)$", text, re.M)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in fenced for line in block.splitlines()] + indented + inline
    found = []
    for line in lines:
        line = re.sub(r"\s+(#|&(\s|$)).*", "", line.strip())  # a comment, or "in the background"
        for old, new in PLACEHOLDERS.items():
            line = line.replace(old, new)
        line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)  # MASTER_ADDR=… before a command
        if re.match(r"(make|fgrpo|(\S*/)?(python3?|pip)) [^=\s]", line):
            found.append(line)
    return found


ALL = sorted({(page.name, command) for page in PAGES for command in commands(page)})


def test_there_are_commands() -> None:
    assert {"make demo", "make test"} <= {command for page, command in ALL if page == "README.md"}


@lru_cache
def help_of(module: str) -> str:
    """What `python -m module --help` prints."""
    argv, out = sys.argv, io.StringIO()
    sys.argv = [module, "--help"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the module may be imported already
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.argv = argv
    return out.getvalue()


def check_python(words: list[str]) -> None:
    """`python -m module --flag …` or `python script.py --flag …`: the module is there and has each flag."""
    if words[:2] == ["-m", "venv"]:
        return
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        return
    module, rest = words[1], words[2:]
    if module.startswith("examples."):  # scripts without options: tests/examples runs them
        assert not rest and module in (ROOT / "tests/examples/test_examples.py").read_text(encoding="utf-8")
        return
    if module == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests"))
        return
    if module == "fgrpo.training.launch":
        assert rest[0] in STAGES
        module = "fgrpo.config"
    elif module in STAGES:  # imports torch; its flags are the stages'
        module = "fgrpo.config"
    rest = rest[: rest.index("--")] if "--" in rest else rest
    known = set(re.findall(r"--[\w-]+", help_of(module)))
    assert known, f"{module} has no --help"
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known


def check_pip(words: list[str]) -> None:
    """`pip install -r FILE`, `-c FILE`, `.` or `.[extra]`: the files and the extras are there."""
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for option, word in itertools.pairwise(words):
        if option in ("-r", "-c"):
            assert (ROOT / word).is_file(), word
        elif word.startswith(".["):
            assert set(word[2:-1].split(",")) <= set(extras), word


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page}: {command}" for page, command in ALL])
def test_a_documented_command_exists(page: str, command: str) -> None:
    words = [word for word in shlex.split(command) if word != "x"]  # "make external … FLAGS=…"
    if words[0].endswith("pip"):
        check_pip(words[1:])
        return
    if words[0] == "fgrpo":  # the same targets
        words[0] = "make"
    if words[0] != "make":
        check_python(words[1:])
        return
    targets = [word for word in words[1:] if "=" not in word]
    for target in targets:
        assert target in BY_HAND or target in EXECUTED or target.startswith("rl-"), f"{target}: say who runs it"
        words += [word for word in REQUIRED.get(target, []) if word.split("=")[0] not in command]
    if "setup" not in targets:  # the environment that a page has just created is not here
        words = [f"PYTHON={sys.executable}" if word.startswith("VENV=") else word for word in words]
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if "python -m" in line:
            check_python(shlex.split(line[line.index("python -m") :])[1:])
