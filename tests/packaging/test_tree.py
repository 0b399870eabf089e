"""The wheel's tree: all our packages inside `fgrpo`, complete, and apart from packages of the same names."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from eval import base as benchmarks
from eval import models
from fgrpo.code_hash import code_hashes
from fgrpo.installed import PACKAGES
from judges import base as judges
from rewards import base as rewards

ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, sys
import fgrpo
for found in pkgutil.walk_packages(fgrpo.__path__, "fgrpo."):
    if not found.name.endswith("__main__") and "vllm" not in found.name:
        importlib.import_module(found.name)
strangers = {name: getattr(module, "STRANGER", None) for name, module in sys.modules.items() if name in %r}
print(len([name for name in sys.modules if name.startswith("fgrpo.")]), strangers)
"""
BESIDE = """
import multiprocessing, pickle
import judges, rl
import fgrpo.judges.base, fgrpo.rl.dual
from fgrpo.types import Verdict
from fgrpo.rl.dual import Constraint

if __name__ == "__main__":
    assert judges.STRANGER and rl.STRANGER and judges is not fgrpo.judges
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(Constraint, ("brief", 0.5)) == Constraint("brief", 0.5)
    print(pickle.loads(pickle.dumps(Constraint("brief", 0.5))).__class__.__module__)
"""
LIBRARIES = ("tracker", "SHIM_MODULE.removesuffix('.py')")  # arguments that name packages of others
LISTS = """
import json
from fgrpo.eval import base as benchmarks, models
from fgrpo.judges import base as judges
from fgrpo.rewards import base as rewards
print(json.dumps([benchmarks.names(), judges.names(), rewards.names(), models.names()]))
"""


def test_imports_are_rewritten_in_place(wheel_tree: ModuleType) -> None:
    source = (
        "import os, judges\n"
        "import rewards.base as rewards\n"
        "from judges import base  # from judges\n"
        "if True:\n    from rl.dual import (\n        Constraint,\n    )\n"
        "from fgrpo.types import Box\n"
        'text = "from rl.dual import Constraint"\n'
        'message = "run `make eval` or python -m eval.run"\n'
        'late = importlib.import_module("rl.trainer")\n'
    )
    assert wheel_tree.rewritten(source, "x.py") == (
        "import os, fgrpo.judges as judges\n"
        "import fgrpo.rewards.base as rewards\n"
        "from fgrpo.judges import base  # from judges\n"
        "if True:\n    from fgrpo.rl.dual import (\n        Constraint,\n    )\n"
        "from fgrpo.types import Box\n"
        'text = "from rl.dual import Constraint"\n'
        'message = "run `fgrpo eval` or python -m fgrpo.eval.run"\n'
        'late = importlib.import_module("fgrpo.rl.trainer")\n'
    )


@pytest.mark.parametrize("source", ["import rl.train\n", "import os, eval.run\n"])
def test_an_import_that_binds_our_name_is_refused(wheel_tree: ModuleType, source: str) -> None:
    with pytest.raises(wheel_tree.Unrewritable, match=r"x\.py:1"):
        wheel_tree.rewritten(source, "x.py")


def test_nothing_else_is_installed(wheel_tree: ModuleType, tmp_path: Path) -> None:
    home = wheel_tree.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fgrpo"]
    assert {"tests", "scripts", "docs", "perf", "examples"}.isdisjoint(path.name for path in home.iterdir())
    for kept in ("configs/paper.yaml", "eval/prompts/think-open.txt", "rewards/prompts/consistency.txt", "py.typed"):
        assert (home / kept).is_file(), kept
    for path in home.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            named = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            named += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not {str(name).split(".")[0] for name in named} & set(wheel_tree.PACKAGES), path
    assert not list(home.rglob("__pycache__"))


def test_the_code_of_rewards_has_one_hash(wheel_tree: ModuleType, python) -> None:
    """Scores of a checkout are not stale in a wheel."""
    assert wheel_tree.PACKAGES == PACKAGES
    done = python(
        "-c",
        f"import json; from fgrpo.code_hash import code_hashes; print(json.dumps(code_hashes('rewards', {rewards.names()})))",
    )
    assert json.loads(done.stdout) == code_hashes("rewards", rewards.names())


def test_modules_are_looked_up_under_their_name_in_the_wheel() -> None:
    """A name that is not spelled there goes through `importable`; otherwise a stranger's package would be found."""
    for package in ("fgrpo", "eval", "judges", "rewards", "rl", "sft", "mcts", "data_curation", "miniworld", "ops"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
                if name not in ("find_spec", "import_module", "run_module") or "PathFinder" in ast.unparse(node):
                    continue
                looked_up = ast.unparse(node.args[0])
                is_library = looked_up in LIBRARIES or looked_up.startswith(("'", '"', "f'fgrpo.", 'f"fgrpo.'))
                assert is_library or looked_up.startswith("importable("), f"{path}:{node.lineno} looks up {looked_up}"


def test_every_module_imports_and_no_stranger_is_taken_for_ours(wheel_tree: ModuleType, python) -> None:
    done = python("-c", IMPORT_ALL % (wheel_tree.PACKAGES,))
    assert done.returncode == 0, done.stderr[-2000:]
    count, strangers = done.stdout.splitlines()[-1].split(" ", 1)  # libraries print above it
    assert int(count) > 150 and strangers.strip() == "{}"


def test_packages_of_the_same_names_stay_usable(python, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BESIDE)
    done = python("mine.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fgrpo.rl.dual"


def test_plugins_and_configurations_are_found(python) -> None:
    done = python("-c", LISTS)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [
        benchmarks.names(),
        judges.names(),
        rewards.names(),
        models.names(),
    ]


def test_processes_of_a_stage_run_the_wheels_module(python) -> None:
    code = (
        "from fgrpo.config import load\nfrom fgrpo.training import launch\n"
        "cfg = load('paper-7b')\nprint(*launch.command('rl.train', cfg, ['--preset', 'paper-7b']), cfg.sft.deepspeed, sep='\\n')"
    )
    words = python("-c", code).stdout.splitlines()
    assert words[words.index("--module") + 1] == "fgrpo.rl.train"
    for option in ("--config_file", "--deepspeed_config_file"):
        assert Path(words[words.index(option) + 1]).is_file()
    assert Path(words[-1]).is_file()


def test_slurm_scripts_name_the_wheels_modules(python, tmp_path: Path) -> None:
    done = python("-m", "fgrpo.ops.slurm", "--preset", "paper-7b")
    assert done.returncode == 0, done.stderr
    text = "".join(path.read_text() for path in (tmp_path / "runs/paper-7b/slurm").iterdir())
    called = set(re.findall(r"-m ([\w.]+)", text))
    assert called == {
        *("fgrpo.data_curation.run", "fgrpo.mcts.run", "fgrpo.eval.run"),
        *("fgrpo.training.launch", "fgrpo.inference.serve"),
    }
