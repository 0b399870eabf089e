"""Eq. 6 by hand, its properties, and parity with the formulas of the stacks that people would otherwise use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.advantage import combine, couple, shares, varying_groups

NAN = math.nan


def scores(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_one_group_one_signal_by_hand() -> None:
    """[2, 1, 1, 0]: mean 1, squared deviations 1 + 0 + 0 + 1 = 2, std sqrt(2/3) = 0.81650; so [1.2247, 0, 0, -1.2247]."""
    adv = combine(scores([[2], [1], [1], [0]]), torch.ones(1), 4, whiten="none")
    assert adv.tolist() == pytest.approx([1 / 0.8165966, 0, 0, -1 / 0.8165966], abs=1e-5)


def test_masked_rollouts_stay_out_of_the_group_statistics() -> None:
    """[1, 0, -, -] (right, right, wrong, wrong): mean .5, std sqrt((.25 + .25) / 1) = .70711, so [.7071, -.7071, 0, 0]."""
    task = [1.0, 1.0, 1.0, 1.0]
    adv = combine(
        scores([[t, c] for t, c in zip(task, [1, 0, NAN, NAN], strict=True)]), torch.ones(2), 4, whiten="none"
    )
    assert adv.tolist() == pytest.approx([0.7070068, -0.7070068, 0, 0], abs=1e-6)  # .5 / (.7071068 + .0001)


def test_masked_as_zero() -> None:
    """[1, 0, -, -] read as [1, 0, 0, 0]: mean .25, std sqrt((.5625 + 3 * .0625) / 3) = .5, so [1.5, -.5, -.5, -.5]."""
    rows = [[1.0, c] for c in (1, 0, NAN, NAN)]
    adv = combine(scores(rows), torch.ones(2), 4, masked="zero", whiten="none")
    assert adv.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-3)


def test_what_failed_is_no_zero_even_where_masked_is() -> None:
    """[1, 0, -, failed] with masked = zero is [1, 0, 0] over three: mean 1/3, std sqrt((4/9 + 1/9 + 1/9) / 2) = .57735,
    so [1.1547, -.57735, -.57735], and the failed one gets 0."""
    rows = scores([[1.0, c] for c in (1, 0, NAN, NAN)])
    failed = torch.tensor([[False, False]] * 3 + [[False, True]])
    adv = combine(rows, torch.ones(2), 4, masked="zero", whiten="none", failed_NK=failed)
    assert adv.tolist() == pytest.approx([1.154701, -0.57735, -0.57735, 0], abs=1e-3)


def test_weighted_sum_and_whitening_by_hand() -> None:
    """Two groups of two, task [2, 0 | 1, 1], constraint [0, 1 | 1, 0], λ = 2 (eps = 0).

    Task: group 1 has mean 1, std sqrt(2): [.7071, -.7071]; group 2 is constant: [0, 0].
    Constraint: [-.7071, .7071 | .7071, -.7071].
    Sum: [.7071 - 1.4142, -.7071 + 1.4142, 1.4142, -1.4142] = [-.7071, .7071, 1.4142, -1.4142], mean 0.
    Whitening: squares .5 + .5 + 2 + 2 = 5, std sqrt(5 / 3) = 1.29099: [-.5477, .5477, 1.0954, -1.0954].
    """
    adv = combine(scores([[2, 0], [0, 1], [1, 1], [1, 0]]), torch.tensor([1.0, 2.0]), 2, eps=0.0)
    assert adv.tolist() == pytest.approx([-0.547723, 0.547723, 1.095445, -1.095445], abs=1e-6)


def test_batch_baseline_speaks_where_a_group_is_constant() -> None:
    """Constraint [1, 1 | 0, 1]: group 1 does not vary. Batch mean .75, std sqrt((3 * .0625 + .5625) / 3) = .5: +.5 each;
    group 2 keeps its own: mean .5, std .7071: [-.7071, .7071]. With the group baseline group 1 gets 0."""
    rows = scores([[1, 1], [1, 1], [1, 0], [1, 1]])
    batch = combine(rows, torch.ones(2), 2, baseline="batch", whiten="none", eps=0.0)
    assert batch.tolist() == pytest.approx([0.5, 0.5, -0.707107, 0.707107], abs=1e-6)
    group = combine(rows, torch.ones(2), 2, whiten="none", eps=0.0)
    assert group.tolist() == pytest.approx([0, 0, -0.707107, 0.707107], abs=1e-6)


def test_token_whitening_counts_tokens() -> None:
    """Sums [.7071, -.7071] with 3 and 1 tokens: mean .35355, squared deviations 3 * .125 + 1.125 = 1.5, / (4 - 1) = .5,
    std .70711: [.5, -1.5]."""
    adv = combine(scores([[1], [0]]), torch.ones(1), 2, whiten="token", lengths_N=torch.tensor([3, 1]), eps=0.0)
    assert adv.tolist() == pytest.approx([0.5, -1.5], abs=1e-6)


def test_unscorable_rows_get_zero_and_do_not_move_the_others() -> None:
    rows = [[2, 1], [0, 0], [1, NAN], [1, 1]]
    with_lost = combine(scores([*rows, [NAN, NAN], [NAN, NAN]]), torch.ones(2), 2)
    assert with_lost[:4].tolist() == pytest.approx(combine(scores(rows), torch.ones(2), 2).tolist())
    assert with_lost[4:].tolist() == [0.0, 0.0]
    assert combine(scores([[NAN]] * 4), torch.ones(1), 2).tolist() == [0.0] * 4


def test_one_applicable_member_contributes_nothing() -> None:
    adv = combine(scores([[1, 0.3], [1, NAN], [1, NAN]]), torch.ones(2), 3, whiten="none")
    assert adv.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [0.1, 2 / 3, 0.95, 1e-3, 123.456])
def test_round_off_in_constant_groups_is_not_signal(value: float) -> None:
    nearly = torch.tensor([[value], [value], [value * (1 + 6e-8)], [value], [value]], dtype=torch.float32)
    assert combine(nearly, torch.ones(1), 5, whiten="none", eps=1e-9).abs().max() == 0.0


def test_coupled_rewards() -> None:
    """Additive: 2 + 1 + .5 = 3.5; 1 with both not applicable stays 1. Multiplicative: 2 * 1 * .5 = 1; 2 * 0 = 0; 1."""
    rows = scores([[2, 1, 0.5], [1, NAN, NAN], [2, 0, 1.0]])
    assert couple(rows, "additive").squeeze(1).tolist() == [3.5, 1.0, 3.0]
    assert couple(rows, "multiplicative").squeeze(1).tolist() == [1.0, 1.0, 0.0]
    failed = torch.tensor([[False] * 3, [False, True, False], [False] * 3])
    assert couple(rows, "additive", failed).isnan().squeeze(1).tolist() == [False, True, False]


def test_varying_groups_and_shares() -> None:
    assert varying_groups(torch.tensor([1, 0, 1, 1, NAN, 1.0]), 2) == (1, 3)
    rows = scores([[1, 1, 0], [0, 0, 0]])
    assert shares(rows, torch.tensor([1.0, 2.0, 3.0]), 2).tolist() == pytest.approx([0.2, 0.8, 0.0], abs=1e-6)
    assert shares(scores([[1], [1]]), torch.ones(1), 2).tolist() == [0.0]


def test_shares_are_those_of_the_configured_advantage() -> None:
    """Column 2, [1, 1 | 0, 0], varies in no group: 0 by the group's baseline; by the batch's (mean .5, std .57735) it has
    +-.86603, variance .75, and column 1, [1, 0 | 0, 1] with +-.70711, has .5: shares .4 and .6.
    Column 2, [1, - | 1, -], varies once the masked are zeros: +-.70711 as well, so shares .5 and .5."""
    rows = scores([[1, 1], [0, 1], [0, 0], [1, 0]])
    assert shares(rows, torch.ones(2), 2).tolist() == [1.0, 0.0]
    assert shares(rows, torch.ones(2), 2, baseline="batch").tolist() == pytest.approx([0.4, 0.6], abs=1e-3)
    rows = scores([[1, 1], [0, NAN], [0, 1], [1, NAN]])
    assert shares(rows, torch.ones(2), 2).tolist() == [1.0, 0.0]
    assert shares(rows, torch.ones(2), 2, masked="zero").tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    failed = torch.tensor([[False, True]]).expand(4, 2) & rows.isnan()
    assert shares(rows, torch.ones(2), 2, masked="zero", failed_NK=failed).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("scale", [1.0, 123.456, 98765.4, 3e-6])
def test_constant_groups_of_every_unit_give_nothing(scale: float) -> None:
    """TRL divides by (deviation + 1e-4) without a guard, and makes advantages of the round-off of a mean in float32."""
    values = scale * torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    table = values.repeat_interleave(5, dim=0)
    assert combine(table, torch.ones(1), 5, whiten="none").abs().max() == 0.0
    cells = table.view(-1, 5)
    trl = (cells - cells.nanmean(1, keepdim=True)) / (cells.std(1, keepdim=True) + 1e-4)
    assert scale < 1e4 or trl.abs().max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 1}, "at least 2"),
        ({"group_size": 3}, "do not divide"),
        ({"weights_K": torch.ones(3)}, "weights"),
        ({"scores_NK": torch.tensor([[1.0, math.inf]] * 4)}, "infinite"),
        ({"whiten": "token"}, "lengths_N"),
        ({"whiten": "words"}, "whiten is"),
        ({"masked": "maybe"}, "masked is"),
        ({"baseline": "world"}, "baseline is"),
    ],
)
def test_wrong_input_is_named(change: dict, message: str) -> None:
    given_ = {"scores_NK": torch.ones(4, 2), "weights_K": torch.ones(2), "group_size": 2, **change}
    with pytest.raises(ValueError, match=message):
        combine(given_.pop("scores_NK"), given_.pop("weights_K"), given_.pop("group_size"), **given_)


# -- properties ----------------------------------------------------------------------------------------------------------

_cell = st.one_of(st.just(NAN), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(0, 65536).map(lambda n: n / 65536))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    group = draw(st.integers(2, 5))
    groups, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rows = draw(
        st.lists(st.lists(_cell, min_size=columns, max_size=columns), min_size=group * groups, max_size=group * groups)
    )
    table = torch.tensor(rows, dtype=torch.float64)
    table[:, 0] = torch.nan_to_num(table[:, 0])
    lam = draw(st.lists(st.floats(0, 5), min_size=columns - 1, max_size=columns - 1))
    return table, torch.tensor([1.0, *lam]), group


OPTIONS = st.fixed_dictionaries(
    {
        "masked": st.sampled_from(["exclude", "zero"]),
        "baseline": st.sampled_from(["group", "batch"]),
        "whiten": st.sampled_from(["sequence", "none"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(batches(), OPTIONS, st.randoms(use_true_random=False))
def test_permuting_a_group_permutes_its_advantages(batch, options, random) -> None:
    table, weights, group = batch
    order = list(range(len(table)))
    head = order[:group]
    random.shuffle(head)
    order[:group] = head
    assert torch.allclose(
        combine(table, weights, group, **options)[order], combine(table[order], weights, group, **options), atol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(batches(), OPTIONS, st.floats(0.5, 20))
def test_scaling_a_signal_changes_nothing(batch, options, factor) -> None:
    """Exactly so without epsilon: a signal's unit does not matter, only its order and spacing inside a group."""
    table, weights, group = batch
    scaled = table.clone()
    scaled[:, -1] *= factor
    one, two = (combine(t, weights, group, eps=1e-15, **options) for t in (table, scaled))
    assert torch.allclose(one, two, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(batches(), OPTIONS, st.floats(0, 5))
def test_a_signal_masked_everywhere_is_as_if_absent(batch, options, lam) -> None:
    table, weights, group = batch
    more = torch.cat([table, torch.full((len(table), 1), NAN, dtype=table.dtype)], dim=1)
    wider = torch.cat([weights, torch.tensor([lam])])
    assert torch.allclose(combine(table, weights, group, **options), combine(more, wider, group, **options), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(batches())
def test_whitened_advantages_are_finite_and_centred(batch) -> None:
    table, weights, group = batch
    adv = combine(table, weights, group)
    assert torch.isfinite(adv).all() and abs(float(adv.mean())) < 1e-8


# -- parity with formulas written independently, from their sources' definitions, in numpy -----------------------------------


def _random_scores(seed: int, nan_share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table = np.column_stack([rng.integers(0, 3, 40), rng.integers(0, 2, 40), rng.random(40)]).astype(np.float64)
    table[:, 1:][rng.random((40, 2)) < nan_share] = np.nan
    return table


LAM = np.array([1.0, 0.7, 2.5])


def ms_swift(table: np.ndarray, weights: np.ndarray, group: int, eps: float = 1e-8) -> np.ndarray:
    """ms-swift, GDPO estimator: nanmean/nanstd a group and signal, + 1e-8, nansum, batch whitening + 1e-8."""
    total = np.zeros(len(table))
    for k in range(table.shape[1]):
        for begin in range(0, len(table), group):
            cell = table[begin : begin + group, k]
            known = ~np.isnan(cell)
            if known.sum() >= 2 and cell[known].std() > 0:
                total[begin : begin + group][known] += (
                    weights[k] * (cell[known] - cell[known].mean()) / (cell[known].std(ddof=1) + eps)
                )
    return (total - total.mean()) / (total.std(ddof=1) + eps)


def gdpo(table: np.ndarray, weights: np.ndarray, group: int, eps: float = 1e-4) -> np.ndarray:
    """NVIDIA's GDPO (TRL fork): NaN becomes 0 before the statistics."""
    cells = np.nan_to_num(table).reshape(-1, group, table.shape[1])
    normal = (cells - cells.mean(1, keepdims=True)) / (cells.std(1, ddof=1, keepdims=True) + eps)
    total = (normal.reshape(table.shape) * weights).sum(1)
    return (total - total.mean()) / (total.std(ddof=1) + eps)


def verl(table: np.ndarray, weights: np.ndarray, group: int, lengths: np.ndarray) -> np.ndarray:
    """verl, GDPO: group normalisation with 1e-6, then masked_whiten over tokens with rsqrt(var + 1e-8); no NaN."""
    cells = table.reshape(-1, group, table.shape[1])
    normal = (cells - cells.mean(1, keepdims=True)) / (cells.std(1, ddof=1, keepdims=True) + 1e-6)
    tokens = np.repeat((normal.reshape(table.shape) * weights).sum(1), lengths)
    variance = ((tokens - tokens.mean()) ** 2).sum() / (len(tokens) - 1)
    white = (tokens - tokens.mean()) / np.sqrt(variance + 1e-8)
    return white[np.cumsum(lengths) - 1]


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_peers(seed: int) -> None:
    masked, full = _random_scores(seed, 0.4), _random_scores(seed, 0.0)
    lam = torch.tensor(LAM)
    ours = combine(torch.tensor(masked), lam, 5, eps=1e-8)
    assert np.allclose(ours, ms_swift(masked, LAM, 5), atol=1e-6)
    ours = combine(torch.tensor(masked), lam, 5, masked="zero")
    assert np.allclose(ours, gdpo(masked, LAM, 5), atol=1e-6)
    lengths = np.random.default_rng(seed).integers(1, 60, 40)
    tokens = {"whiten": "token", "lengths_N": torch.tensor(lengths)}
    ours = combine(torch.tensor(full), lam, 5, **tokens, eps=1e-6, whiten_eps=1e-8)
    assert np.allclose(ours, verl(full, LAM, 5, lengths), atol=1e-6)
