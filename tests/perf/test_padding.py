"""The counter of tokens behind `make bench ONLY=padding`: what it counts by hand, and that its trainers stay below the limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perf import padding
from perf.gpu import stand_in
from perf.padding import CASES, LIMIT, Case, mix
from perf.token_count import Tokens
from tests.perf.small_padding import SMALL

ROOT = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(padding, name, value)


def test_the_mix_has_the_paper_s_ends_and_mean() -> None:
    lengths = mix(64, 0)
    assert (min(lengths), max(lengths)) == (374, 3974) and lengths != sorted(lengths)
    assert 1400 < sum(lengths) / 64 < 1650


def test_a_ratio_is_computed_over_real_and_padding_over_needed() -> None:
    tokens = Tokens(real=100, needed=40, computed=50)
    assert (tokens.ratio, tokens.padding) == (0.5, 1.25)
    found = {
        "logprobs": {"real": 100, "needed": 100, "computed": 120},
        "update": {"real": 50, "needed": 25, "computed": 30},
    }
    cells, worst = padding.row(Case("own", "by_length", 5), found)
    assert cells == ("RL, our decoder", "by length", "5", "1", "1.20", "0.60", "1.20") and worst == pytest.approx(1.2)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.processes == 1 and c.micro_batch < 10], ids=str)
def test_every_trainer_computes_about_as_many_tokens_as_there_are(case: Case, small: None, tmp_path: Path) -> None:
    padding.report(case, tmp_path)
    found = json.loads((tmp_path / "0.json").read_text())
    _, worst = padding.row(case, found)
    if case.trainer != "sft":
        assert found["logprobs"]["real"] == 2 * found["update"]["real"] > 0  # old and reference policy
    if case.rows in ("trl", "random"):
        assert worst > LIMIT  # else the mix would show nothing
    else:
        assert worst < LIMIT


@pytest.mark.slow
def test_two_processes_make_as_many_passes_and_compute_about_as_many_tokens_as_there_are(tmp_path: Path) -> None:
    """A process with more passes than the other one would wait for ever where gradients are exchanged."""
    case = Case("trl", "by_length", 5, 2)
    stand_in.model(padding.small(tmp_path), "3b")  # of two processes only the first would write it
    stand_in.data(padding.small(tmp_path))
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *starter, "-m", "tests.perf.small_padding", str(CASES.index(case)), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"passes-{rank}.json").read_text()) for rank in range(2))
    assert len(first) == len(second) > 0 and first != second, "each has rollouts of its own"
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    found = {part: {key: sum(rank[part][key] for rank in ranks) for key in ranks[0][part]} for part in ranks[0]}
    _, worst = padding.row(case, found)
    assert worst <= LIMIT


def test_passes_of_the_vllm_trainer_are_the_counted_ones() -> None:
    from rl.trainer import FaithfulGRPOTrainer
    from rl.vllm_rollouts import VLLMTrainer

    for name in ("_get_per_token_logps_and_entropies", "_prepare_inputs", "_passes"):
        assert getattr(VLLMTrainer, name) is getattr(FaithfulGRPOTrainer, name)
