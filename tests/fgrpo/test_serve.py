"""Serving helpers: flags by role, what is refused before anything starts, address files, and that only our own is stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgrpo.config import load, stage_slice
from fgrpo.errors import UserError
from fgrpo.hardware import Gpu
from fgrpo.inference import addresses, serve
from fgrpo.inference.addresses import Address
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.vllm_server import Server, free_port
from fgrpo.schema import Config
from judges.base import Meter
from judges.client import OpenAITransport

ROOT = Path(__file__).resolve().parents[2]
H100 = [Gpu("H100", 80.0)] * 8
JUDGED = ["judges.training.backend=openai", "judges.training.model=miniworld/backbone"]
# Stands for `vllm`: healthy at once, with a worker of its own as vLLM has; dies when FAKE_DIES says so.
FAKE = """#!{python}
import http.server, os, subprocess, sys
if os.environ.get("FAKE_DIES"):
    sys.exit("out of memory, said the fake")
worker = subprocess.Popen(["sleep", "600"])
open(os.environ["FAKE_WORKER"], "w").write(str(worker.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
    def log_message(self, *words): pass
words = sys.argv
http.server.HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


def model_folder(path: Path, **config: object) -> str:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `vllm` that is found before the real one; returns the file with its worker's process id."""
    script = tmp_path / "bin" / "vllm"
    script.parent.mkdir()
    script.write_text(FAKE.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr("fgrpo.inference.vllm_server.executable", lambda: script)
    monkeypatch.setenv("FAKE_WORKER", str(tmp_path / "worker"))
    return tmp_path / "worker"


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def paper(tmp_path: Path) -> Config:
    """The paper's preset over models that are here as configurations."""
    teacher = model_folder(
        tmp_path / "teacher", model_type="qwen2_5_vl", vision_config={}, max_position_embeddings=9000
    )
    judge = model_folder(tmp_path / "judge", model_type="qwen3_vl_moe", vision_config={}, text_config={})
    reader = model_folder(tmp_path / "reader", model_type="qwen3", max_position_embeddings=40960)
    return load(
        "paper-7b",
        overrides=[
            f"models.teacher={teacher}",
            f"judges.training.model={judge}",
            f"judges.extraction.model={reader}",
        ],
    )


def test_flags_follow_the_role_and_the_preset(tmp_path: Path) -> None:
    config = paper(tmp_path)
    teacher = " ".join(serve.order(config, "teacher", H100).flags)
    assert "--dtype bfloat16 --max-model-len 9000" in teacher, "no further than the model's positions reach"
    assert '--limit-mm-per-prompt {"image": 4, "video": 0} --tensor-parallel-size 4' in teacher
    judge = " ".join(serve.order(config, "judge", H100).flags)
    assert "--max-model-len 16384" in judge
    assert "--tensor-parallel-size 2" in judge
    assert "--structured-outputs-config" in judge and '"disable_any_whitespace": true' in judge
    assert "--allowed-local-media-path" not in judge, "nobody's files are open unless pictures go by their names"
    by_name = config.model_copy(
        deep=True,
        update={
            "judges": config.judges.model_copy(
                update={"training": config.judges.training.model_copy(update={"images": "file"})}
            )
        },
    )
    for devices in (H100, []):
        flags = serve.order(by_name, "judge", devices).flags
        place = flags.index("--allowed-local-media-path")
        assert flags[place + 1] == str(Path(config.data.root).resolve()) and serve.COMPACT_JSON[0] in flags
    reader = " ".join(serve.order(config, "extractor", H100).flags)
    assert "--limit-mm" not in reader, "a text model knows no pictures"
    model = serve.order(config, "model", H100, config.models.teacher, ["--max-model-len", "2048"])
    assert model.flags.count("--max-model-len") == 1
    assert model.flags[:2] == ("--dtype", "float16")


def test_rollouts_are_served_from_where_the_method_starts(tmp_path: Path) -> None:
    for stage in ("sft", "anchor"):
        model_folder(tmp_path / f"model-{stage}")
        (tmp_path / "mini" / stage).mkdir(parents=True)
        (tmp_path / "mini" / stage / "final").symlink_to(tmp_path / f"model-{stage}")
    for method, stage in (("fgrpo", "sft"), ("mr1", "anchor")):
        found = serve.model_of(load("mini", method), "rollouts", root=tmp_path)
        assert found == str(tmp_path / "mini" / stage / "final")
    (tmp_path / "mini" / "anchor" / "final").unlink()
    with pytest.raises(UserError, match="run `make anchor`"):
        serve.model_of(load("mini", "mr1"), "rollouts", root=tmp_path)


def test_without_gpus_the_flags_are_the_cpus() -> None:
    made = serve.order(load("mini"), "teacher", [])
    assert "--enforce-eager" in made.flags
    assert "--tensor-parallel-size" not in made.flags
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert made.model == "miniworld/backbone"


def test_what_cannot_work_is_said_before_it_starts(tmp_path: Path) -> None:
    config = paper(tmp_path)
    with pytest.raises(UserError, match=r"type 'qwen3'; known model families: qwen2_5_vl"):
        serve.order(config, "teacher", H100, config.judges.extraction.model)
    with pytest.raises(UserError, match="takes no images"):
        serve.order(config, "judge", H100, config.judges.extraction.model)
    with pytest.raises(UserError, match=r"takes 4 GPUs .* and 2 are here"):
        serve.order(config, "teacher", H100[:2])
    with pytest.raises(UserError, match=r"config\.json"):
        serve.order(config, "model", H100, str(tmp_path))
    with pytest.raises(UserError, match="MODEL="):
        serve.order(config, "model", H100)
    with pytest.raises(UserError, match="'oracle', so there is nothing to serve"):
        serve.order(load("mini"), "judge", [])


def test_a_port_in_use_is_said(tmp_path: Path, fake: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"):
            Server("m", log=tmp_path / "log", port=port).start()
    assert not fake.exists(), "nothing was started"


def test_it_serves_while_a_command_runs(tmp_path: Path, fake: Path) -> None:
    config, path = load("mini", overrides=JUDGED), tmp_path / "serve" / "judge.json"
    seen = tmp_path / "seen"
    script = f"import shutil, sys; shutil.copy({str(path)!r}, {str(seen)!r}); sys.exit(int(sys.argv[1][-4] == '/') + 3)"
    ordered = serve.order(config, "judge", [])
    where = {"host": "127.0.0.1", "shown_as": "127.0.0.1", "port": None, "timeout_s": 120.0}
    code = serve.serve(ordered, path, command=[sys.executable, "-c", script, "{url}/x/"], **where)  # type: ignore[arg-type]
    assert code == 3, "the command's own exit code"
    there = addresses.read(seen)
    assert (there.role, there.model) == ("judge", "miniworld/backbone")
    assert there.url.startswith("http://127.0.0.1:")
    assert not path.exists()
    assert not is_running(there.pid)
    assert not is_running(int(fake.read_text()))


def test_a_server_that_dies_leaves_no_address(tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DIES", "1")
    path = tmp_path / "serve" / "teacher.json"
    ordered = serve.order(load("mini"), "teacher", [])
    with pytest.raises(UserError, match="out of memory, said the fake"):
        serve.serve(ordered, path, host="127.0.0.1", shown_as="x", port=None, timeout_s=120, command=())
    assert not path.exists()


def heed_signals() -> None:
    """A shell's background jobs ignore ctrl-C, and what nohup starts ignores a closed terminal; so would their children."""
    for sign in (signal.SIGINT, signal.SIGHUP):
        signal.signal(sign, signal.SIG_DFL)


def started(tmp_path: Path) -> tuple[subprocess.Popen[str], Path]:
    """`python -m fgrpo.inference.serve teacher` over the fake, up, and its address file."""
    code = "import sys, fgrpo.inference.vllm_server as s, fgrpo.inference.serve as m; x = sys.argv.pop(); s.executable = lambda: x; m.main()"
    words = ["teacher", "--runs", str(tmp_path), "--cpu", str(tmp_path / "bin" / "vllm")]
    running = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_signals,
    )  # fmt: skip
    path = tmp_path / "mini" / "serve" / "teacher.json"
    deadline = time.monotonic() + 600
    while not path.exists() and time.monotonic() < deadline and running.poll() is None:
        time.sleep(0.05)
    return running, path


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_server_and_nothing_else(tmp_path: Path, fake: Path, sign: signal.Signals) -> None:
    other = subprocess.Popen(["sleep", "600"])  # like the worker, and not ours
    running, path = started(tmp_path)
    try:
        there = addresses.read(path)
        with pytest.raises(UserError, match=r"is served at .* already"):
            serve.check_free(path)
        running.send_signal(sign)
        output, _ = running.communicate(timeout=600)
        assert running.returncode == 0, output
        assert "stopping the server" in output
        assert not path.exists()
        assert not is_running(there.pid)
        assert not is_running(int(fake.read_text()))
        assert is_running(other.pid)
    finally:
        for process in (running, other):
            process.kill()
            process.wait()


def test_a_killed_helper_leaves_no_server(tmp_path: Path, fake: Path) -> None:
    running, path = started(tmp_path)
    there, worker = addresses.read(path), int(fake.read_text())
    time.sleep(2)  # the guard looks every second
    running.kill()
    running.wait()
    deadline = time.monotonic() + 600
    while (is_running(there.pid) or is_running(worker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(there.pid) and not is_running(worker)
    serve.check_free(path)  # the address that stayed is nobody's


def test_endpoints_are_addresses_or_files(tmp_path: Path) -> None:
    for n, model in enumerate(["m", "m", "other"]):
        addresses.write(tmp_path / f"{n}.json", Address("teacher", model, f"http://h:{n}/v1", "h", 1))
    pattern = f"{tmp_path}/*.json"
    assert addresses.resolve([pattern, "http://k/v1", pattern], "m") == (
        "http://h:0/v1",
        "http://h:1/v1",
        "http://k/v1",
    )
    assert addresses.resolve([], "m") == ()
    with pytest.raises(UserError, match="servers are up for m, other only"):
        addresses.resolve([pattern], "third")
    with pytest.raises(UserError, match="no server has written one"):
        addresses.resolve([f"{tmp_path}/no/*.json"], "m")
    (tmp_path / "9.json").write_text("{}")
    with pytest.raises(UserError, match=r"9\.json is no address file"):
        addresses.resolve([pattern], "m")


def test_sampler_and_judge_read_address_files(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    addresses.write(tmp_path / "teacher.json", Address("teacher", "m", url, "h", os.getpid()))
    pattern = str(tmp_path / "*.json")
    assert OpenAISampler([pattern], "m", forbidden=()).urls == [url]
    judge = load("paper-7b").judges.training.model_copy(update={"endpoints": (pattern,), "model": "m"})
    assert OpenAITransport(judge, Meter())._urls == (url,)
    with pytest.raises(UserError, match=r"no address of a server of n"):
        OpenAITransport(judge.model_copy(update={"model": "n"}), Meter())


def test_where_a_server_answers_does_not_change_what_a_run_is() -> None:
    here, there = (
        load(
            "paper-7b", overrides=[f"judges.training.endpoints=[http://{h}:1/v1]", f"engine.endpoints=[http://{h}/v1]"]
        )
        for h in ("a", "b")
    )
    for stage in ("data", "mcts", "rl-fgrpo", "eval"):
        assert stage_slice(here, stage) == stage_slice(there, stage)
    assert load("paper-7b").engine.endpoints == ("runs/paper-7b/serve/*.json",)
