"""`make paper`: order, GPUs, servers, and what stays behind, with stand-ins for the stages and for `fgrpo.inference.serve`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from fgrpo.config import Config, load
from fgrpo.errors import UserError
from ops import gpu_memory, layout
from ops.connectivity import Finding
from ops.paper import __main__ as paper
from ops.paper import checks
from ops.paper import steps as chain
from ops.paper.runner import PROCESSES, STEPS, Runner
from ops.paper.steps import Server, Step, check_pool

ROOT = Path(__file__).resolve().parents[2]
# Stands for Python: writes down what it is called with and on which GPUs. As a server it writes its address and runs until it is
# stopped; as a stage it marks itself done. FAULT: "<kind> <name>", what goes wrong.
PYTHON = """#!{python}
import json, os, signal, sys, time
words, folder = sys.argv[1:], os.environ["SEEN"]
kind, _, victim = os.environ.get("FAULT", "").partition(" ")
is_server = words[1] == "fgrpo.inference.serve"
name = words[words.index("--name") + 1] if is_server else os.environ.get("STEP") or words[1]
def note(event):
    with open(os.path.join(folder, "events.jsonl"), "a") as out:
        out.write(json.dumps({{"event": event, "name": name, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "words": words, "pid": os.getpid(), "at": time.time()}}) + "\\n")
def end(*_):
    note("end"); os._exit(0)
signal.signal(signal.SIGTERM, end)
note("begin")
if is_server:
    print("loading", name, flush=True)
    if (kind, victim) == ("hang", name): time.sleep(600)
    if (kind, victim) == ("early", name):
        print("error: port 8000 of 127.0.0.1 is in use", flush=True); note("end"); os._exit(2)
    address = os.path.join(folder, name + ".json"); open(address, "w").close()
    if (kind, victim) == ("die", name):
        time.sleep(0.3); print("CUDA error: out of memory", flush=True); os.remove(address); note("end"); os._exit(3)
    time.sleep(600)
if kind == "slow" and victim in words: time.sleep(600)
if kind == "fail" and victim in words: note("end"); os._exit(7)
time.sleep(0.6 if kind == "die" else 0.02)
open(os.path.join(folder, "done-" + "-".join(w for w in words if not w.startswith("-") and "/" not in w)[:80]), "w").close()
note("end")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python that only writes down; returns the folder of what it saw."""
    python, seen = tmp_path / "python", tmp_path / "seen"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    seen.mkdir()
    monkeypatch.setattr(chain, "PYTHON", str(python))
    monkeypatch.setenv("SEEN", str(seen))
    return seen


def events(seen: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (seen / "events.jsonl").read_text().splitlines()]


def runner(tmp_path: Path, seen: Path, lines: list[str] | None = None, **more: Any) -> Runner:
    said = [] if lines is None else lines
    given = {"healthy_s": 20.0, "stop_s": 5.0, "poll_s": 0.01, "tell": said.append, **more}
    return Runner(("--preset", "x"), list("abcdefgh"), tmp_path / "logs", lambda n: seen / f"{n}.json", **given)


def small(seen: Path) -> list[Step]:
    """Three steps: two share a server, the last has another beside its own GPUs."""

    def done(name: str) -> Callable[[], bool]:
        return lambda: any(seen.glob(f"done-{name}*"))

    one, two = Server("paper-one", "teacher", (0, 1), 1), Server("paper-two", "judge", (2,), 1)
    return [
        Step("first", ("first",), (), (), (one,), is_done=done("first")),
        Step("second", ("second",), (), (4,), (one, two), is_done=done("second")),
        Step("third", ("third",), (), (0, 1, 4), (two,), is_done=done("third")),
    ]


def alive(seen: Path) -> list[int]:
    """Stand-ins that still run."""
    pids = {event["pid"] for event in events(seen)} if (seen / "events.jsonl").exists() else set()
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(seen: Path, seconds: float = 120.0) -> bool:
    limit = time.monotonic() + seconds
    while alive(seen) and time.monotonic() < limit:
        time.sleep(0.05)
    return not alive(seen)


def overlaps(seen: Path) -> Iterator[tuple[str, str]]:
    """Pairs of processes that had a GPU in common at one time."""
    running: dict[int, tuple[str, set[str]]] = {}
    for event in events(seen):
        if event["event"] == "end":
            running.pop(event["pid"], None)
            continue
        gpus = {gpu for gpu in event["gpus"].split(",") if gpu}
        yield from ((event["name"], name) for name, held in running.values() if held & gpus)
        running[event["pid"]] = (event["name"], gpus)


# --- the chain's layout ---------------------------------------------------------------------------------------------------


def paper_steps(root: Path, *more: str) -> tuple[list[Step], Config]:
    configs = {method: load("paper-7b", method, ["@one-node", *more]) for method in ("grpo-t", "fgrpo")}
    return chain.steps(configs["grpo-t"], configs.__getitem__, list(configs), root), configs["fgrpo"]


def test_the_chain_of_the_paper_on_one_machine(tmp_path: Path) -> None:
    every, config = paper_steps(tmp_path)
    check_pool(every)
    assert [step.name for step in every] == [
        *("data-prepare", "data", "mcts", "sft", "rl-grpo-t", "rl-fgrpo"),
        *(f"eval-{name}" for name in config.eval.models),
        *("tables", "figures", "report"),
    ]
    by_name = {step.name: step for step in every}
    (base,), (teacher,) = by_name["data"].servers, by_name["mcts"].servers
    assert (base.role, base.copies, len(base.gpus)) == ("base", 8, 8)
    assert (teacher.role, teacher.copies, len(teacher.gpus)) == ("teacher", 2, 8)
    assert by_name["sft"].gpus == tuple(range(8)) and not by_name["sft"].servers
    rl, wanted = by_name["rl-fgrpo"], layout.rl_layout(config)
    judge, rollouts = rl.servers
    assert rl.gpus == tuple(range(config.launch.rl_processes)) == (0, 1, 2, 3)
    assert judge.gpus == (wanted["judge_first"], wanted["judge_first"] + 1) == (4, 5)
    assert rollouts.gpus == (6, 7) and rollouts.copies == wanted["rollout_copies"] == 2
    assert rl.settings == (
        f'judges.training.endpoints=["{tmp_path}/paper-7b/serve/paper-judge.json"]',
        f"rl.vllm.server={tmp_path}/paper-7b/serve/paper-rollouts-fgrpo.json",
    )
    judge_of, rollouts_of = by_name["rl-grpo-t"].servers
    assert judge_of == judge and rollouts_of != rollouts, "rollout servers are started anew for each method"
    evaluated = [step for step in every if step.name.startswith("eval-")]
    assert all(step.servers[0] == evaluated[0].servers[0] and step.servers[0].role == "extractor" for step in evaluated)
    model = by_name["eval-fgrpo"].servers[1]
    assert (
        model.model == f"{tmp_path}/paper-7b/rl-fgrpo/final" and model.gpus == tuple(range(1, 8)) and model.copies == 7
    )
    assert by_name["eval-qwen2.5-vl-7b-cot"].servers == by_name["eval-qwen2.5-vl-7b-direct"].servers
    words = rollouts.command(["--preset", "paper-7b"], 8001, 60)
    assert words[3:] == [
        *("rollouts", "--preset", "paper-7b", "--method", "fgrpo"),  # whose start is served
        *("--name", "paper-rollouts-fgrpo", "--timeout", "60", "--port", "8001"),
        *("--set", "serve.rollouts.data_parallel=2"),
    ]


def test_the_layout_follows_the_configuration_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    every, _ = paper_steps(tmp_path, "serve.teacher.tensor_parallel=8", "launch.rl_processes=2")
    by_name = {step.name: step for step in every}
    assert by_name["mcts"].servers[0].copies == 1 and by_name["rl-fgrpo"].servers[1].copies == 4
    with pytest.raises(UserError, match=r"launch\.sft_processes is 9"):
        paper_steps(tmp_path, "launch.sft_processes=9")
    with pytest.raises(UserError, match=r"RL of grpo-t takes 2 machines.*one-node"):
        configs = load("paper-7b", "grpo-t")
        chain.steps(configs, lambda method: load("paper-7b", method), ["grpo-t"], tmp_path)
    assert paper.with_one_machine("paper-7b", ["fgrpo"], []) == ["@one-node"]
    assert paper.with_one_machine("paper-7b", ["fgrpo"], ["@one-node"]) == ["@one-node"]
    assert paper.with_one_machine("mini", ["fgrpo"], []) == []
    with pytest.raises(UserError, match="GPU 1 of step x would be shared by x, paper-a"):
        check_pool([Step("x", ("x",), gpus=(0, 1), servers=(Server("paper-a", "judge", (1, 2), 1),))])


def test_the_miniature_needs_neither_servers_nor_gpus(tmp_path: Path) -> None:
    config = load("mini")
    every = chain.steps(config, lambda method: load("mini", method), ["grpo-t", "fgrpo"], tmp_path)
    assert every[0].name == "world" and not any(step.servers or step.gpus for step in every)
    assert paper.gpu_names(config, every) == []


def test_curated_data_are_seen_as_done_until_an_annotation_changes(tmp_path: Path) -> None:
    """The data sets lie outside the run folders; a teacher of 72B is not loaded to find out that nothing is missing."""
    from data_curation.run import _sources
    from fgrpo.runs import Run
    from miniworld.write.__main__ import write_world

    small = ["world.train_per_source=4", "world.bench_per_benchmark=2", f"data.root={tmp_path / 'data'}"]
    config = load("mini", overrides=small)
    write_world(config, tmp_path / "runs")
    (step,) = [s for s in chain.steps(config, lambda method: config, ["fgrpo"], tmp_path / "runs") if s.name == "data"]
    assert not step.is_done()
    inputs = _sources(config)[2]
    with Run.open(config, "data", inputs, tmp_path / "runs") as run:
        (run.path / "seed.jsonl").write_text("{}")
        run.finish(["seed.jsonl"])
    assert step.is_done()
    file = next(path for path in inputs if path.suffix == ".jsonl")
    file.write_text(file.read_text() + "\n")
    assert not step.is_done()


def test_the_plan_prints_every_command_with_its_gpus(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["paper", "--preset", "paper-7b", "--runs", str(tmp_path), "--plan"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "8,9,10,11,12,13,14,15")
    paper.main()
    out = capsys.readouterr().out.splitlines()
    assert "  command CUDA_VISIBLE_DEVICES=8,9,10,11 " in "\n".join(out) and "[1/13] data-prepare" in out[0]
    rollouts = next(line for line in out if "paper-rollouts-fgrpo --timeout" in line)
    assert rollouts.startswith("  server  CUDA_VISIBLE_DEVICES=14,15 ")
    assert any("CUDA_VISIBLE_DEVICES= " in line and "eval.run" in line for line in out), "a client sees no GPU"
    likely = re.match(r"likely hours of wall clock \(make plan\): (.*); in all ([\d.]+) \(", out[-1])
    hours = dict(part.rsplit(" ", 1) for part in likely[1].split(", "))
    assert list(hours) == ["data", "mcts", "sft", "rl-grpo-t", "rl-fgrpo", "eval"], "RL of each method"
    assert sum(map(float, hours.values())) == pytest.approx(float(likely[2]), abs=0.35)
    assert float(hours["rl-fgrpo"]) > float(hours["rl-grpo-t"]), "it has one judge more"
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize(
    ("visible", "problem"),
    [
        ("0,1", "allows 2 GPUs, and the layout is for 8"),
        ("0,1,-1,3,4,5,6,7", "allows 2 GPUs"),
        ("0,1,,3,4,5,6,7,8", "allows 2 GPUs"),
        ("0,1,2,3,", "allows 4 GPUs"),
        ("", "allows no GPU"),
        ("-1", "allows no GPU"),
        ("0,1,2,3,0,5,6,7", "names 0 twice"),
        ("0,00,2,3,4,5,6,7", "names 0 twice"),
        ("GPU-a, GPU-a,2,3,4,5,6,7,8", "names GPU-a twice"),
    ],
)
def test_the_gpus_are_those_that_cuda_takes_from_its_variable(
    visible: str, problem: str, tmp_path: Path, monkeypatch
) -> None:
    every, config = paper_steps(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=problem):
        paper.gpu_names(config, every)


@pytest.mark.parametrize("role", ["training", "evaluation", "extraction"])
def test_a_judge_in_a_stages_own_process_is_refused(role: str, tmp_path: Path) -> None:
    """It would load on the trainers' GPUs, or in a process without one."""
    with pytest.raises(UserError, match=rf"judges\.{role}\.backend=vllm loads .* serve it instead"):
        paper_steps(tmp_path, f"judges.{role}.backend=vllm", f"judges.{role}.reasoning_effort=null")


@pytest.mark.parametrize(
    ("methods", "message"), [(",", "names no method"), ("fgrpo,grpo-t,fgrpo", "names fgrpo twice")]
)
def test_methods_that_cannot_be_trained_are_refused(methods: str, message: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["paper", "--preset", "paper-7b", "--plan", "--methods", methods])
    with pytest.raises(SystemExit):
        paper.main()
    assert message in capsys.readouterr().err


# --- running ---------------------------------------------------------------------------------------------------------------


def test_the_whole_chain_runs_in_order_and_no_gpu_is_shared(tmp_path: Path, stand_in: Path, monkeypatch) -> None:
    every, _ = paper_steps(tmp_path)
    monkeypatch.setattr(chain._World, "is_done", lambda self, stage: False)
    monkeypatch.setattr(chain._World, "is_evaluated", lambda self, name: False)
    runner(tmp_path, stand_in).run(every)
    seen = events(stand_in)
    stages = [event for event in seen if event["event"] == "begin" and not event["name"].startswith("paper-")]
    assert len(stages) == len(every)
    for step, event in zip(every, stages, strict=True):
        assert event["words"][1:] == step.command(("--preset", "x"))[2:]
        assert event["gpus"] == ",".join("abcdefgh"[gpu] for gpu in step.gpus)
    assert not list(overlaps(stand_in))
    started = [event["name"] for event in seen if event["event"] == "begin" and event["name"].startswith("paper-")]
    assert started[:2] == ["paper-base", "paper-teacher"] and started.count("paper-extractor") == 1
    assert started.count("paper-judge") == 1, "kept for the second method"
    assert gone(stand_in) and not (tmp_path / "logs" / PROCESSES).exists()
    times = [json.loads(line)["step"] for line in (tmp_path / "logs" / STEPS).read_text().splitlines()]
    assert times == [step.name for step in every]


def test_a_finished_step_is_skipped_and_its_servers_do_not_start(tmp_path: Path, stand_in: Path) -> None:
    lines: list[str] = []
    (stand_in / "done-first").touch()
    runner(tmp_path, stand_in, lines, port=9000).run(small(stand_in))
    assert lines[0] == "[1/3] first: done already"
    begun = [event for event in events(stand_in) if event["event"] == "begin"]
    ports = {e["name"]: e["words"][e["words"].index("--port") + 1] for e in begun if "--port" in e["words"]}
    assert ports == {"paper-one": "9000", "paper-two": "9001"} and not list(overlaps(stand_in))
    assert [event["name"] for event in begun if not event["name"].startswith("paper")] == ["second", "third"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("die paper-one", r"(?s)server paper-one ended with 3 during first; .*CUDA error: out of memory"),
        ("early paper-two", r"(?s)server paper-two ended with 2 during second; .*port 8000 of 127.0.0.1 is in use"),
        (
            "hang paper-one",
            r"(?s)server paper-one of first was not up after \d s \(--health-timeout\); .*loading paper-one",
        ),
        ("fail second", "second ended with 7"),
    ],
)
def test_a_fault_is_named_and_nothing_stays_behind(
    tmp_path: Path, stand_in: Path, monkeypatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("FAULT", fault)
    with pytest.raises(UserError, match=message):
        runner(tmp_path, stand_in, healthy_s=1.0 if fault.startswith("hang") else 20.0).run(small(stand_in))
    assert gone(stand_in) and not (tmp_path / "logs" / PROCESSES).exists()
    monkeypatch.delenv("FAULT")
    runner(tmp_path, stand_in).run(small(stand_in))  # goes on from there
    assert all(step.is_done() for step in small(stand_in))


SCRIPT = """
import sys
from pathlib import Path
from fgrpo import cli
from ops.paper import steps as chain
from tests.ops.test_paper import runner, small
chain.PYTHON = {python!r}
seen = Path({seen!r})
try:
    runner(Path({root!r}), seen).run(small(seen))
except KeyboardInterrupt:
    sys.exit(cli.INTERRUPTED_CODE)
"""


def started(tmp_path: Path, seen: Path) -> subprocess.Popen[bytes]:
    """A runner in another process, in the middle of its second step."""
    text = SCRIPT.format(python=str(tmp_path / "python"), seen=str(seen), root=str(tmp_path))
    environment = {**os.environ, "FAULT": "slow second", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        env=environment,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    limit = time.monotonic() + 300
    while not ((seen / "events.jsonl").exists() and any(e["name"] == "second" for e in events(seen))):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_or_killed_chain_leaves_no_process_and_goes_on(tmp_path: Path, stand_in: Path, number: int) -> None:
    process = started(tmp_path, stand_in)
    assert len(alive(stand_in)) == 3
    process.send_signal(number)
    code = process.wait(timeout=300)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    if number != signal.SIGKILL:
        assert not alive(stand_in)
    runner(tmp_path, stand_in, stop_s=20.0).run(small(stand_in))  # ends what the guard did not know
    assert all(step.is_done() for step in small(stand_in)) and not list(overlaps(stand_in))
    assert sum(event["name"] == "first" and event["event"] == "begin" for event in events(stand_in)) == 1
    assert gone(stand_in)


def test_training_waits_until_the_memory_of_stopped_servers_is_free(tmp_path: Path, stand_in: Path) -> None:
    tries: list[int] = []

    def check() -> None:
        tries.append(len(alive(stand_in)))
        if len(tries) < 3:
            raise UserError("GPU 0 has 12")

    first, second, third = small(stand_in)
    runner(tmp_path, stand_in).run([first, replace(third, servers=(), check=check)])
    assert tries == [0, 0, 0], "the server of the step before has ended"

    def never() -> None:
        raise UserError("GPU 0 has 12")

    with pytest.raises(UserError, match="GPU 0 has 12"):
        runner(tmp_path, stand_in, stop_s=0.1).run([replace(second, check=never)])
    assert gone(stand_in)


def test_processes_of_an_earlier_call_are_ended_and_no_others(tmp_path: Path, stand_in: Path, monkeypatch) -> None:
    with (
        subprocess.Popen(["sleep", "60"], start_new_session=True) as left,
        subprocess.Popen(["sleep", "60"], start_new_session=True) as other,
    ):
        since = psutil.Process(left.pid).create_time()
        entries = [
            {"name": "paper-one", "pid": left.pid, "since": since},
            {"name": "x", "pid": other.pid, "since": since - 9},
        ]
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / PROCESSES).write_text(json.dumps(entries))
        assert runner(tmp_path, stand_in).end_earlier(), "a call was killed"
        runner(tmp_path, stand_in).run(small(stand_in))
        assert not runner(tmp_path, stand_in).end_earlier(), "none since"
        assert left.poll() == -signal.SIGTERM and other.poll() is None, "an id that was given to another process"
        other.kill()
    monkeypatch.setattr("ops.paper.runner._is_alive", lambda entry: True)
    monkeypatch.setattr("ops.paper.runner.os.killpg", lambda pid, number: None)
    (tmp_path / "logs" / PROCESSES).write_text(json.dumps(entries[:1]))
    with pytest.raises(UserError, match=rf"still there: paper-one \(process {left.pid}\)"):
        runner(tmp_path, stand_in, stop_s=0.1).run(small(stand_in))


# --- checks before anything starts -------------------------------------------------------------------------------------------


def test_what_is_missing_is_found_before_anything_starts(tmp_path: Path, stand_in: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        checks.doctor,
        "examine",
        lambda config, root: [
            Finding("ok", "fine"),
            Finding("warn", "teacher: no server is up", "make serve-teacher PRESET=paper-7b  # before its stage"),
            Finding("fail", "no data in data/paper/train/sat", "make data-download"),
        ],
    )
    monkeypatch.setattr(checks.doctor, "checkpoint_gb", lambda config, root: 1e9)
    monkeypatch.setattr(checks.model_files, "lacks", lambda name: "is not downloaded" if "Qwen3-4B" in name else "")
    monkeypatch.setattr(checks.gpu_memory, "free_memory", lambda kind="memory.free": {"0": 70.0, "1": 0.1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    monkeypatch.setattr(sys, "argv", ["paper", "--preset", "paper-7b", "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit):
        paper.main()
    out = capsys.readouterr()
    assert "fail  no data in data/paper/train/sat" in out.out and "serve-teacher" not in out.out
    assert "fail  the model of the extractor server, Qwen/Qwen3-4B-Instruct-2507, is not downloaded" in out.out
    assert "free for the checkpoints of SFT and 2 methods" in out.out
    assert "fail  other processes use 70 GiB of GPU 0" in out.out
    assert "servers start with" in out.out or "there is no vllm command" in out.out
    assert "things are missing (above); nothing was started" in out.err
    assert not (stand_in / "events.jsonl").exists()


@pytest.mark.parametrize(("killed", "states"), [(True, ["ok"]), (False, ["fail"])])
def test_servers_of_a_killed_call_may_take_a_while_to_free_their_memory(
    killed: bool, states: list[str], tmp_path: Path, monkeypatch
) -> None:
    """vLLM has a session of its own, and ends some seconds after the call that started it was killed."""
    seen: list[float] = []

    def memory(kind: str = "memory.free") -> dict[str, float]:
        if kind == "memory.used":
            seen.append(70.0 if len(seen) < 3 else 0.1)
        return {"0": seen[-1] if kind == "memory.used" else 9.0}

    class Checked(Exception):
        pass

    def examine(configs: Any, left: Any, names: Any, root: Any, patience_s: float) -> Any:
        raise Checked([found.state for found in gpu_memory.unoccupied(["0"], patience_s)])

    monkeypatch.setattr(gpu_memory, "free_memory", memory)
    monkeypatch.setattr(gpu_memory, "POLL_S", 0.01)
    monkeypatch.setattr(paper, "findings", examine)
    monkeypatch.setattr(sys, "argv", ["paper", "--preset", "mini", "--runs", str(tmp_path)])
    if killed:
        (tmp_path / "mini" / "paper").mkdir(parents=True)
        (tmp_path / "mini" / "paper" / PROCESSES).write_text("[]")
    with pytest.raises(Checked, match=re.escape(str(states))):
        paper.main()
    assert len(seen) == (4 if killed else 1)


def test_free_memory_is_compared_with_the_plan(monkeypatch) -> None:
    config = load("paper-7b")
    monkeypatch.setattr(gpu_memory, "training_gib", lambda config, stage: 60.0)
    monkeypatch.setattr(gpu_memory, "free_memory", dict)
    gpu_memory.check(config, "sft")  # a machine without GPUs
    monkeypatch.setattr(gpu_memory, "free_memory", lambda: {str(n): 12.0 if n == 3 else 79.0 for n in range(8)})
    with pytest.raises(UserError, match=r"sft likely needs 60 GiB .* each of 8 GPUs .*, and GPU 3 has 12;"):
        gpu_memory.check(config, "sft")
    monkeypatch.setattr(gpu_memory, "free_memory", lambda: {str(n): 79.0 if n < 8 else 0.0 for n in range(9)})
    gpu_memory.check(config, "sft")  # the ninth is not used


def test_the_drivers_table_is_read(tmp_path: Path, monkeypatch) -> None:
    from fgrpo import hardware

    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0, GPU-a, 1024\\n1, GPU-b, 2048\\n2, GPU-c, [N/A]\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.free_memory() == {"0": 1.0, "1": 2.0}
    for visible, wanted in (("1", {"1": 2.0}), ("GPU-b,0", {"GPU-b": 2.0, "0": 1.0}), ("", {}), ("-1", {})):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert hardware.free_memory() == wanted


# --- methods that start from the anchor stage ---------------------------------------------------------------------------------


def test_the_anchor_stage_runs_once_before_the_methods_that_start_from_it(tmp_path: Path, monkeypatch, capsys) -> None:
    configs = {"fgrpo": load("paper-7b", "fgrpo", ["@one-node"])}
    configs |= {name: load("paper-7b", "fgrpo", ["@one-node", "rl.start=anchor"]) for name in ("one", "two")}
    every = chain.steps(configs["fgrpo"], configs.__getitem__, list(configs), tmp_path)
    check_pool(every)
    names = [step.name for step in every]
    assert names[3:8] == ["sft", "anchor", "rl-fgrpo", "rl-one", "rl-two"] and names.count("anchor") == 1
    step = every[4]
    assert step.gpus == tuple(range(8)) and not step.servers
    assert step.command(["--preset", "paper-7b"])[2:] == ["fgrpo.training.launch", "sft.anchor", "--preset", "paper-7b"]
    plain = chain.steps(configs["fgrpo"], configs.__getitem__, ["fgrpo"], tmp_path)
    assert "anchor" not in [step.name for step in plain]
    with pytest.raises(UserError, match=r"launch\.sft_processes is 9"):
        wide = load("paper-7b", "fgrpo", ["@one-node", "rl.start=anchor", "launch.sft_processes=9"])
        chain.steps(configs["fgrpo"], lambda method: wide, ["one"], tmp_path)
    assert checks.widest(list(configs.values())) is configs["one"]
    assert checks.widest([configs["fgrpo"]]) is configs["fgrpo"]
    monkeypatch.setattr(
        sys, "argv", ["paper", "--preset", "mini", "--runs", str(tmp_path), "--plan", "--methods", "fgrpo,mr1"]
    )
    paper.main()
    out = capsys.readouterr().out
    assert " anchor\n" in out and "sft.anchor --preset mini" in out and ", anchor " in out.splitlines()[-1]


def test_the_disk_of_the_anchor_stage_is_counted_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        checks.doctor, "checkpoint_gb", lambda config, root: 1000.0 if config.rl.start == "anchor" else 9e9
    )
    monkeypatch.setattr(checks, "checkpoints", lambda config, stage, shape: type("Part", (), {"size": 1e9}))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e15}))
    configs = [load("paper-7b", "fgrpo"), load("paper-7b", "grpo-t", ["rl.start=anchor"])]
    (found,) = checks.disk(configs, tmp_path)
    assert "checkpoints of SFT and the anchor stage, 2 methods" in found.what and "1001 needed" in found.what
