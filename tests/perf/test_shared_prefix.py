"""The measurement of shared prompts: equal log-probabilities, its counts of tokens, no time of imports, and killed processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from perf import shared_prefix
from perf.shared_prefix import CLOSE, FORMS, Shape, batch, in_own_process, measure

SMALL = Shape("small", "mini", 20, 10, 4, 3, 12)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_forms_compute_the_same_from_fewer_tokens() -> None:
    found = {rows: measure(SMALL, rows) for rows in FORMS}
    tokens = {rows: result[2] for rows, result in found.items()}
    ids, mask, _ = batch(SMALL)
    assert tokens["trl"] == ids.numel() >= tokens["by_length"] >= int(mask.sum()) > tokens["shared"]
    for _, _, _, logps in found.values():
        assert abs(logps[0] - found["trl"][3][0]).max() < CLOSE and abs(logps[0]).max() > 1


def test_the_first_look_at_the_model_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It imports libraries: as long as all of the miniature's passes."""
    plain = shared_prefix.Passes._plain

    def slow(self: shared_prefix.Passes, model: object) -> object:
        began = time.process_time()
        while "_plain_models" not in vars(self) and time.process_time() < began + 2:
            pass
        return plain(self, model)

    monkeypatch.setattr(shared_prefix.Passes, "_plain", slow)
    assert measure(SMALL, "shared")[0] < 2


def test_a_process_that_is_killed_ends_the_measurement() -> None:
    with pytest.raises(BrokenProcessPool):
        in_own_process(os._exit, 9)
