"""`make doctor` on broken machines: every finding says what to do, and the exit code says whether the preset can run."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from fgrpo import cli, hardware
from fgrpo.config import Config, load
from fgrpo.hardware import Gpu
from fgrpo.inference import addresses
from fgrpo.inference.addresses import Address
from fgrpo.inference.vllm_server import healthy
from fgrpo.policy import model_files
from ops import connectivity, doctor, memory_estimate, packages, storage
from ops.connectivity import Finding

ROOT = Path(__file__).resolve().parents[2]
SMI = """#!/bin/sh
case "$1" in
--query-gpu*) i=0; while [ $i -lt {count} ]; do echo "NVIDIA H100 80GB HBM3, 81559"; i=$((i+1)); done ;;
*) echo "| NVIDIA-SMI 550.54   Driver Version: 550.54   CUDA Version: {cuda} |" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """machine(gpus, cuda): an nvidia-smi that shows so many GPUs."""

    def make(count: int, cuda: str = "13.0") -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(SMI.format(count=count, cuda=cuda))
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    yield make


COMMANDS = ("make", "hf", "git", "conda", "apt", "export", "rm", "python3", sys.executable)


def is_pastable(advice: str) -> bool:
    """Whether a shell can read it, and it is a remark or begins with a known command."""
    read = subprocess.run(["bash", "-n", "-c", advice], capture_output=True, check=False)
    return read.returncode == 0 and (advice.startswith("# ") or advice.split()[0] in COMMANDS)


def failures(findings: Iterator[Finding]) -> list[str]:
    found = list(findings)
    for finding in found:
        assert finding.state == "ok" or is_pastable(finding.advice), finding
    return [str(f) for f in found if f.state == "fail"]


def test_gpus_are_those_of_the_driver_and_of_cuda_visible_devices(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(8)
    assert len(hardware.gpus()) == 8
    assert hardware.gpus()[0] == Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024)
    for value, count in (("0,1", 2), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert len(hardware.gpus()) == count


def test_a_cpu_build_beside_gpus_fails(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(2)
    monkeypatch.setattr(packages, "torch_build", lambda: None)
    (line,) = failures(packages.devices())
    assert "2 GPUs, but torch is a CPU build" in line
    assert "requirements/gpu.txt" in line


def test_an_old_driver_fails(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(1, "12.4")
    monkeypatch.setattr(packages, "torch_build", lambda: "13.0")
    (line,) = failures(packages.devices())
    assert "built for CUDA 13.0, the driver supports 12.4" in line


def test_a_compiler_of_another_cuda_is_said(tmp_path: Path, machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(1)
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    (tmp_path / "nvcc").chmod(0o755)
    for build, states in (("13.0", ["warn"]), ("12.8", ["ok"]), (None, [])):
        monkeypatch.setattr(packages, "torch_build", lambda build=build: build)
        assert [f.state for f in packages.compiler()] == states


def test_too_few_gpus_for_the_preset(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(4)
    lines = failures(doctor.layout(load("paper-7b")))
    assert any("sft runs 8 processes, one per GPU, and this machine has 4" in line for line in lines)
    assert any("SET=launch.rl_processes=4" in line for line in lines)
    machine(0)
    assert all("PRESET=mini" in line for line in failures(doctor.layout(load("paper-7b"))))
    assert failures(doctor.layout(load("mini"))) == []
    monkeypatch.setattr(doctor, "gpus", lambda: [Gpu("H100", 79.6)] * 8)
    assert failures(doctor.layout(load("paper-7b"))) == []
    for version, how in (
        ("2.8.3", "training (flash attention)"),
        (None, "a mask, rows of up to"),
    ):
        monkeypatch.setattr(doctor, "installed", lambda name, version=version: version)
        assert any(how in finding.what for finding in doctor.layout(load("paper-7b")))
    assert not any(
        "share its row" in f.what for f in doctor.layout(load("paper-7b", overrides=["rl.shared_prefix=off"]))
    )


def test_too_small_gpus_for_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", lambda: [Gpu("T4", 15.0)] * 8)
    lines = failures(doctor.layout(load("paper-7b")))
    assert len(lines) == 2
    assert all("a GPU has 15" in line and "OVERLAY=lora" in line for line in lines)


def test_no_vllm_fails_only_where_rollouts_need_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: None)
    pins = tmp_path / "requirements"
    pins.mkdir()
    for name in ("gpu.txt", "core.txt", "rest.txt"):
        (pins / name).write_text((ROOT / "requirements" / name).read_text())
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    (line,) = failures(packages.vllm(load("paper-7b")))
    assert "no vLLM, and rl.rollout_engine is vllm-server" in line
    assert failures(packages.vllm(load("mini"))) == []
    monkeypatch.setattr(packages, "installed", lambda name: "0.22.0")
    (line,) = failures(packages.vllm(load("paper-7b")))
    assert "vLLM 0.22.0, pinned 0." in line


def test_a_full_disk_and_missing_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 1e9})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert any("1 GB free for runs" in line for line in failures(doctor.disk(load("mini"), str(tmp_path))))
    assert any("needed" in line for line in failures(doctor.disk(load("paper-7b"), str(tmp_path))))
    (line,) = failures(doctor.models(load("mini", overrides=[f"models.base={tmp_path}/none"])))[:1]
    assert "no base model in" in line


def test_a_download_that_was_stopped_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache, with config.json and an index that names three files of which one is here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name, parts = "nobody/big", [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    here = tmp_path / "hub" / "models--nobody--big"
    snapshot = here / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (here / "refs").mkdir()
    (here / "refs" / "main").write_text("abc")
    patterns = [f"{key}.endpoints=[{tmp_path}/*.json]" for key in ("engine", "judges.training", "judges.extraction")]
    base = ["models.base=miniworld/backbone", "data.embedder=hashing"]
    config = load("paper-7b", overrides=[*base, *patterns, f"models.teacher={name}", f"judges.training.model={name}"])

    def found(role: str = "teacher", of: Config = config) -> list[Finding]:
        return [finding for finding in doctor.models(of) if finding.what.startswith(role)]

    advice = f"hf download {name}  # resumes what is there"
    assert found() == [Finding("warn", f"teacher model {name} is not downloaded", advice)]
    (snapshot / "config.json").write_text("{}")
    assert "lacks its weights (model.safetensors, or" in found()[0].what
    index = {"weight_map": {"a": parts[0], "b": parts[1], "c": parts[1], "d": parts[2]}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / parts[0]).touch()
    (snapshot / parts[1]).symlink_to(tmp_path / "blob.incomplete")
    what = f"teacher model {name} is not complete: it lacks {parts[1]}, {parts[2]}"
    assert found() == [Finding("warn", what, advice)] and not model_files.is_here(name)
    (extractor,) = found("extractor")
    assert extractor.state == "warn" and extractor.advice.startswith("hf download Qwen/Qwen3-4B-Instruct-2507 ")
    in_folder = load("paper-7b", overrides=[*base, *patterns, f"models.teacher={snapshot}"])
    assert [finding.state for finding in found(of=in_folder)] == ["fail"]
    addresses.write(tmp_path / "teacher.json", Address("teacher", name, "http://127.0.0.1:1/v1", "h", 1))
    assert found() == [], "a server is up, here or elsewhere"
    (tmp_path / "teacher.json").unlink()
    for part in parts[1:]:
        (snapshot / part).unlink(missing_ok=True)
        (snapshot / part).touch()
    assert found() == [Finding("ok", f"teacher model {name} in the hub's cache")] and model_files.is_here(name)
    elsewhere = load("paper-7b", overrides=[*base, "engine.endpoints=[http://127.0.0.1:1/v1]"])
    assert found(of=elsewhere) == [], "somebody else's server"


def test_the_embedder_of_the_paper_presets_is_no_part_of_the_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda name: None)
    here = "models.base=miniworld/backbone"
    (line,) = failures(doctor.models(load("paper-7b", overrides=[here])))
    assert "data.embedder is sentence-transformers" in line and "pip install" in line
    assert failures(doctor.models(load("paper-7b", overrides=[here, "data.embedder=hashing"]))) == []


def test_the_disk_that_is_wanted_is_the_plans_for_what_is_still_to_be_trained(tmp_path: Path) -> None:
    config, shape = load("paper-7b"), memory_estimate.shape_of("Qwen/Qwen2.5-VL-7B-Instruct")
    sft, rl = (storage.checkpoints(config, stage, shape).size / 1e9 for stage in ("sft", "rl"))
    assert doctor.checkpoint_gb(config, tmp_path) == pytest.approx(sft + rl)
    (tmp_path / "paper-7b" / "sft").mkdir(parents=True)
    (tmp_path / "paper-7b" / "sft" / "done").touch()
    assert doctor.checkpoint_gb(config, tmp_path) == pytest.approx(rl)
    (tmp_path / "paper-7b" / "rl-fgrpo").mkdir()
    (tmp_path / "paper-7b" / "rl-fgrpo" / "model").write_bytes(b"0" * 10_000_000)
    assert doctor.checkpoint_gb(config, tmp_path) == pytest.approx(rl - 0.01)


def test_half_a_download_and_missing_annotations_fail(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "SAT"
    folder.mkdir(parents=True)
    (folder / "SAT_train.parquet.part").write_text("half")
    lines = failures(doctor.data(load("paper-7b", overrides=[f"data.root={tmp_path}"])))
    assert "incomplete download" in lines[0]
    assert any("no data in" in line and "SAT" in line for line in lines), "an incomplete file is no annotation file"


def test_data_of_extra_benchmarks_is_looked_for(tmp_path: Path) -> None:
    plain, more = (
        load("paper-7b", overrides=[f"data.root={tmp_path}", f"eval.extra_benchmarks={extra}"])
        for extra in ("[]", "[treebench]")
    )
    said = set(failures(doctor.data(more))) - set(failures(doctor.data(plain)))
    (line,) = said
    assert "TreeBench (HaochenWang/TreeBench)" in line and "make data-download PRESET=paper-7b SETS=treebench" in line
    own = load("paper-7b", overrides=[f"data.root={tmp_path}", "eval.extra_benchmarks=[own]"])
    (line,) = set(failures(doctor.data(own))) - set(failures(doctor.data(plain)))
    assert "your own questions.jsonl" in line and "data-download" not in line
    (tmp_path / "bench" / "TreeBench").mkdir(parents=True)
    (tmp_path / "bench" / "TreeBench" / "TreeBench.tsv").write_text("index")
    assert failures(doctor.data(more)) == failures(doctor.data(plain))


class Models(http.server.BaseHTTPRequestHandler):
    """/v1 serves the model m; /moved redirects to it."""

    keys: ClassVar[list[str | None]] = []  # of the requests to /v1/models

    def do_GET(self) -> None:
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/v1/models")
            self.end_headers()
            return
        if self.path == "/v1/models":
            self.keys.append(self.headers["Authorization"])
        body = json.dumps({"data": [{"id": "m", "owned_by": "vllm"}]}).encode() if self.path == "/v1/models" else b""
        self.send_response(200 if body or self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Models) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_endpoints_by_address_file(tmp_path: Path, server: str) -> None:
    pattern = f"engine.endpoints=[{tmp_path}/*.json]"
    config = load("paper-7b", overrides=[pattern, "models.teacher=m", "judges.evaluation.backend=oracle"])
    waiting = [f for f in connectivity.endpoints(config) if f.what.startswith("teacher")]
    assert [(f.state, f.advice) for f in waiting] == [
        ("warn", "make serve-teacher PRESET=paper-7b  # before its stage")
    ]
    addresses.write(tmp_path / "teacher.json", Address("teacher", "m", f"{server}/v1", "h", 1))
    assert Finding("ok", f"teacher: {server}/v1 serves m") in list(connectivity.endpoints(config))
    other = load("paper-7b", overrides=[f"engine.endpoints=[{server}/v1]", "models.teacher=other"])
    assert any(
        "serves m, not other or Qwen/Qwen2.5-VL-7B-Instruct" in line for line in failures(connectivity.endpoints(other))
    )
    assert list(connectivity.endpoints(load("mini"))) == [], "oracles need no endpoint"


def test_a_key_goes_only_to_the_endpoint_it_is_meant_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge's endpoint gets the key of its own variable, or none; so does an address that both use; a redirect gets none."""
    monkeypatch.setattr(Models, "keys", [])
    monkeypatch.setenv("OPENAI_API_KEY", "engine-key")
    monkeypatch.setenv("JUDGE_KEY", " judge-key\n")
    monkeypatch.delenv("NO_KEY", raising=False)

    def keys(*overrides: str) -> list[str | None]:
        Models.keys.clear()
        found = list(
            connectivity.endpoints(load("paper-7b", overrides=["judges.evaluation.backend=oracle", *overrides]))
        )
        assert [f.state for f in found] == ["ok"] * len(Models.keys), found
        return list(Models.keys)

    def judge(url: str, variable: str) -> list[str]:
        settings = {"backend": "openai", "model": "m", "endpoints": f"[{url}]", "api_key_env": variable}
        return [f"judges.training.{key}={value}" for key, value in settings.items()]

    engine = ["engine.kind=openai", f"engine.endpoints=[{server}/v1]", "models.teacher=m"]
    assert keys(*engine, "judges.extraction.backend=oracle", "judges.training.backend=oracle") == [None], "not OpenAI's"
    engine.append("engine.api_key_env=OPENAI_API_KEY")
    alone = ["engine.kind=vllm", "judges.extraction.backend=oracle"]
    assert keys(*alone, *judge(f"{server}/v1", "JUDGE_KEY")) == ["Bearer judge-key"]
    assert keys(*alone, *judge(f"{server}/v1", "NO_KEY")) == [None]
    assert keys(*alone, *judge(server, "JUDGE_KEY")) == ["Bearer judge-key"], "/v1 is added, as the stages add it"
    assert keys(*alone, *judge(f"{server}/moved", "JUDGE_KEY")) == [None]
    extraction = ["judges.extraction.backend=oracle"]
    assert keys(*engine, *extraction, *judge(f"{server}/v1", "JUDGE_KEY")) == ["Bearer engine-key", "Bearer judge-key"]
    assert keys(*engine, *extraction, *judge(f"{server}/v1", "OPENAI_API_KEY")) == ["Bearer engine-key"] * 2
    secret = connectivity.endpoint(
        f"http://me:secret@{server.removeprefix('http://')}/v1", ("m",), "judge", "JUDGE_KEY"
    )
    assert secret.state == "fail" and "secret" not in str(secret)


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
ODD = {
    "nothing": b"",
    "no status line": b"220 mail.example ESMTP\r\n\r\n",
    "cut off": HEAD + b'Content-Length: 100\r\n\r\n{"data": [',
    "an endless reply": HEAD + b"\r\n" + b" " * (1 << 21),
    "a list of nothing": HEAD + b'\r\n{"data": null}',
    "no JSON": HEAD + b"\r\n<html>",
    "redirects to itself": b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /v1/models\r\n\r\n",
    "a byte at a time": HEAD + b"\r\n",  # and then a byte every 20 ms
    "a header at a time": b"HTTP/1.1 200 OK\r\n",
}


@pytest.fixture
def odd(request: pytest.FixtureRequest) -> Iterator[str]:
    """The root of a server that replies to everything with `ODD[request.param]`."""
    ended = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            with contextlib.suppress(OSError):
                self.request.sendall(ODD[request.param])
                while "at a time" in request.param and not ended.wait(0.02):
                    self.request.sendall(b"x: y\r\n" if "header" in request.param else b" ")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        ended.set()
        running.shutdown()


@pytest.mark.parametrize("odd", ODD, indirect=True)
def test_an_odd_server_is_a_finding_and_is_not_healthy(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "ENDPOINT_TIMEOUT_S", 0.5)
    found = connectivity.endpoint(f"{odd}/v1", ("m",), "judge", None)
    assert found.state == "fail" and "does not answer (" in found.what, found
    assert not healthy(f"{odd}/v1", timeout_s=0.5)
    assert "is in use by something that is not a vLLM server" in connectivity.rollouts(odd, "mini").what


def test_a_port_that_is_none_is_said() -> None:
    found = connectivity.rollouts("http://127.0.0.1:99999", "mini")
    assert found.state == "fail" and "http://127.0.0.1:99999' is not an endpoint" in found.what
    assert cli.port("65535") == 65535
    for text in ("0", "65536", "-1", "http"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a port from 1 to 65535"):
            cli.port(text)


def test_ports_of_rollouts_and_training(server: str, tmp_path: Path) -> None:
    pattern = load("paper-7b", overrides=[f"rl.vllm.server={tmp_path}/rollouts.json"])
    assert [f.state for f in connectivity.ports(pattern)] == ["warn"]
    addresses.write(tmp_path / "rollouts.json", Address("rollouts", "m", f"{server}/v1", "h", 1))
    assert [f.state for f in connectivity.ports(pattern)] == ["ok"]
    up = load("paper-7b", overrides=[f"rl.vllm.server={server}"])
    assert [f.state for f in connectivity.ports(up)] == ["ok"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (line,) = failures(
            connectivity.ports(
                load("paper-7b", overrides=["@multi-node", f"launch.port={port}", f"rl.vllm.server={server}"])
            )
        )
        assert f"port {port} (launch.port) is in use" in line
        (line,) = failures(connectivity.ports(load("paper-7b", overrides=[f"rl.vllm.server=http://127.0.0.1:{port}"])))
        assert "is in use by something that is not a vLLM server" in line
    assert [
        f.state for f in connectivity.ports(load("paper-7b", overrides=[f"rl.vllm.server=http://127.0.0.1:{port}"]))
    ] == ["warn"]


@pytest.mark.parametrize(("states", "code"), [(["ok", "warn"], None), (["ok", "fail", "ok"], 1)])
def test_the_exit_code_says_whether_the_preset_can_run(
    states: list, code: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda config, runs: [Finding(s, f"{s} thing", "do this") for s in states])
    monkeypatch.setattr(sys, "argv", ["doctor", "--preset", "mini"])
    if code is None:
        doctor.main()
    else:
        with pytest.raises(SystemExit) as end:
            doctor.main()
        assert end.value.code == code
    assert capsys.readouterr().out.count("-> do this") == len(states)


def test_a_method_that_starts_anchored_needs_disk_and_room_for_its_token(tmp_path: Path) -> None:
    config, shape = (
        load("paper-7b", overrides=["rl.start=anchor"]),
        memory_estimate.shape_of("Qwen/Qwen2.5-VL-7B-Instruct"),
    )
    every = [storage.checkpoints(config, stage, shape).size / 1e9 for stage in ("sft", "anchor", "rl")]
    assert doctor.checkpoint_gb(config, tmp_path) == pytest.approx(sum(every))
    (tmp_path / "paper-7b" / "anchor").mkdir(parents=True)
    (tmp_path / "paper-7b" / "anchor" / "done").touch()
    assert doctor.checkpoint_gb(config, tmp_path) == pytest.approx(every[0] + every[2])

    def of_token(*overrides: str) -> list[Finding]:
        return list(doctor.anchoring(load("mini", overrides=overrides)))

    assert of_token() == [], "nothing is said where RL starts from SFT"
    (fine,) = of_token("rl.start=anchor")
    assert fine.state == "ok" and "runs between SFT and RL" in fine.what and "is not here" not in fine.what
    (full,) = of_token("rl.start=anchor", "anchor.add_row=false")
    assert full.state == "fail" and "none is left for <|focus|>" in full.what
    assert full.advice == "make anchor PRESET=mini SET=anchor.add_row=true" and is_pastable(full.advice)
    (adapters,) = of_token("rl.start=anchor", "@lora")
    assert adapters.state == "fail" and adapters.advice == "make anchor PRESET=mini SET=sft.lora=null"
    (unknown,) = of_token("rl.start=anchor", "models.base=nobody/none")
    assert unknown.state == "ok" and "nobody/none is not here" in unknown.what
