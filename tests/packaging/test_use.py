"""An installed wheel is used outside the repository: the command `fgrpo`, own configurations, a model behind an endpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback import Replies, serving

ROOT = Path(__file__).resolve().parents[2]
TEXT = "<think>The box is left of the ball.</think><answer>A</answer>"
SMALL = ("world.train_per_source=1", "world.bench_per_benchmark=4", "data.root=data", "eval.sampled_rollouts=0")


class Model(Replies):
    """Answers every chat with one trace, and lists one model."""

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "mine", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        message = {"role": "assistant", "content": TEXT}
        choices = [{"index": n, "message": message, "finish_reason": "stop"} for n in range(asked.get("n") or 1)]
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": "mine"}
        self.reply(200, {**head, "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 9}})


def own_model(folder: Path, address: str) -> None:
    """configs/models/mine.yaml in the user's folder."""
    file = folder / "configs" / "models" / "mine.yaml"
    file.parent.mkdir(parents=True)
    engine = f'{{kind: openai, endpoints: ["{address}"], model_name: mine}}'
    file.write_text(f"title: Mine\npath: mine\nprompt: plain-think\nengine: {engine}\ngrounding: none\n")


def evaluate(call: list[str]) -> list[str]:
    """The words of `fgrpo eval` for the model `mine` on one small benchmark."""
    return [*call, "eval", "PRESET=smoke", "MODEL=mine", "BENCHMARKS=mmvp", "SET=" + " ".join(SMALL)]


def test_own_model_behind_an_endpoint(python, tmp_path: Path) -> None:
    with serving(Model) as address:
        own_model(tmp_path, address)
        done = python(*evaluate(["-m", "fgrpo"]))
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((tmp_path / "runs/smoke/eval/mine/summary.json").read_text())
    assert summary["greedy"]["counts"]["rollouts"] == 4
    scored_with = json.loads((tmp_path / "runs/smoke/eval/mine/scoring.json").read_text())["judges"]["rewards"]
    assert scored_with and all(scored_with.values()), "the hashes are of our rewards, not of the package of that name"
    manifest = json.loads((tmp_path / "runs/smoke/eval/mine/manifest.json").read_text())
    assert "mine" in str(manifest) and len(str(manifest["commit"] or "")) in (0, 40)


def test_the_command_lists_targets_and_names_those_of_a_checkout(python) -> None:
    listed = python("-m", "fgrpo")
    assert listed.returncode == 0, listed.stderr
    assert "  fgrpo eval " in listed.stdout and "  fgrpo rl-fgrpo " in listed.stdout
    refused = python("-m", "fgrpo", "test")
    assert refused.returncode == 1 and "checkout" in refused.stderr


def test_in_a_checkout_there_is_make() -> None:
    done = subprocess.run([sys.executable, "-m", "fgrpo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "use `make`" in done.stderr


def test_messages_name_commands_that_exist(python) -> None:
    done = python("-m", "fgrpo.rl.train", "--preset", "smoke")
    assert done.returncode == 2 and "`fgrpo data" in done.stderr, done.stderr


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after"])
def test_installed_by_pip_beside_pypis_judges(tmp_path: Path, order: str) -> None:
    """A new environment with the pinned libraries: trains the example, evaluates, and type-checks a user's script."""
    folder = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python3*/site-packages")
    libraries = Path(pytest.__file__).parents[1]
    (site / "libraries.pth").write_text(f"import site; site.addsitedir({str(libraries)!r})\n")
    ours = [str(ROOT)]
    for packages in [["judges", "mcts"], ours] if order == "before" else [ours, ["judges", "mcts"]]:
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--no-deps", "--retries", "10", *packages], check=True, cwd=tmp_path
        )
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return done.stdout

    where = "from importlib.util import find_spec; print(*(find_spec(n).origin for n in ('judges', 'mcts', 'fgrpo')), sep=chr(10))"
    places = [Path(line).relative_to(site).as_posix() for line in run(python, "-c", where).splitlines()]
    assert places == ["judges/__init__.py", "mcts.py", "fgrpo/__init__.py"]
    assert "after 10 steps the multiplier" in run(python, "-m", "examples.drop_in")
    with serving(Model) as address:
        own_model(tmp_path, address)
        run(*evaluate([str(folder / "bin" / "fgrpo")]))
    assert (tmp_path / "runs/smoke/eval/mine/summary.json").is_file()
    script = "from fgrpo import Constraint\nfrom fgrpo.boxes import iou\nreveal_type(Constraint)\nreveal_type(iou((0, 0, 1, 1), (0, 0, 1, 1)))\n"
    (tmp_path / "mine.py").write_text(script)
    said = run(python, "-m", "mypy", "--ignore-missing-imports", "mine.py")
    assert "fgrpo.rl.dual.Constraint" in said and '"float"' in said
