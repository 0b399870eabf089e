"""Selection scores of tree search: PUCT (Eq. 7 of the paper) and UCB1 (used by ViGoRL's published code).

All functions are pure. Eq. 7: argmax_a Q(s,a) + c_puct P(s,a) sqrt(sum_b N(s,b)) / (1 + N(s,a)). The sum runs over the
visits of the children. It excludes visits of the parent from before it had children.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def puct(q: float, prior: float, visits: int, parent_visits: int, c_puct: float) -> float:
    """Eq. 7 for one action.

    Args:
        q: mean value of the action, in [0, 1] here; 0 before its first visit.
        prior: P(s, a), in [0, 1]; the priors of one state sum to 1.
        visits: N(s, a).
        parent_visits: sum over b of N(s, b), the visits of all actions of the state.
        c_puct: exploration weight; 2.0 in Table 7.

    Worked examples: q 0.5, prior 0.2, visits 3, parent_visits 16, c_puct 2 gives 0.5 + 2 * 0.2 * 4 / 4 = 0.9.
    An unvisited action with prior 0.5 and 9 visits to its siblings: 0 + 2 * 0.5 * 3 / 1 = 3.
    Before any visit (parent_visits 0) every score equals q, here 0, and the first action wins.
    """
    return q + c_puct * prior * math.sqrt(parent_visits) / (1 + visits)


def ucb1(q: float, visits: int, parent_visits: int, c: float) -> float:
    """UCB1 (Auer et al. 2002) for one action: q + c sqrt(ln(parent_visits) / visits), infinite for an unvisited action.

    Args:
        q: mean value of the action.
        visits: visits of the action.
        parent_visits: visits of all actions of the state.
        c: exploration weight; sqrt(2) in the original.

    Worked example: q 0.5, visits 4, parent_visits 10, c 2 gives 0.5 + 2 * sqrt(2.302585 / 4) = 0.5 + 2 * 0.758714 = 2.017427.
    """
    if visits == 0:
        return math.inf
    return q + c * math.sqrt(math.log(parent_visits) / visits)


def softmax(values: Sequence[float]) -> list[float]:
    """Softmax of `values`, in the same order; over mean token log-probabilities it gives the prior of Eq. 7.

    Worked example: [0, ln 3] gives [0.25, 0.75].
    """
    if not values:
        return []
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = sum(weights)
    return [weight / total for weight in weights]
