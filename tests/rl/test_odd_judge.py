"""RL behind a judge of which three replies in ten are odd trains the same weights; a dead one stops the step, and a rerun resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from rl import train
from tests.clock import hurry
from tests.odd_server import KEY, MODEL, OddServer, running
from tests.rl.conftest import earlier_stages, mini

STEPS = (
    "rl.max_steps=2",
    "rl.max_response_length=60",
    "rl.constraints.consistency.tau=0.9",
    "rl.dual.min_applicable=1",
)


def trained(server: OddServer, name: str, world: Path, root: Path, *more: str) -> dict[str, Any]:
    """What an RL run leaves whose judge is the server's behaviour `name`."""
    judge = ("backend=openai", f"model={MODEL}", f'endpoints=["{server.url(name)}"]', "max_completion_tokens=64")
    judge += ("api_key_env=OPENAI_API_KEY",)
    cfg = mini(world, *STEPS, *(f"judges.training.{key}" for key in judge), *more)
    folder = train.train(cfg, root)
    metrics = [
        {k: v for k, v in row.items() if not k.startswith(("seconds/", "judges/", "judge"))}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]
    return {
        "weights": (folder / "final" / "model.safetensors").read_bytes(),
        "metrics": metrics,
        "rollouts": {path.name: pq.read_table(path) for path in sorted((folder / "rollouts").iterdir())},
    }


def test_odd_replies_of_the_judge_change_no_weight(
    world: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with running() as server:
        plain = trained(server, "right", world, earlier_stages(tmp_path / "plain", world, policy))
        calls = sum(server.good.values())
        assert calls >= 4 and not server.faults
        odd = trained(server, "mixed", world, earlier_stages(tmp_path / "odd", world, policy))
        faults = sum(server.faults.values())
        print(f"rl: {calls} judge calls, {faults} faults of {len(server.faults)} kinds")
        assert faults > 0.2 * calls
        assert odd == plain
        server.for_good.add("x")
        root = earlier_stages(tmp_path / "dead", world, policy)
        with pytest.raises(UserError, match=r"judgements of .* failed .*HTTP 502"):
            trained(server, "status-502", world, root, "judges.training.patience_s=1")
        assert not list(root.rglob("done"))
        assert len(trained(server, "right", world, root)["metrics"]) == len(plain["metrics"])
