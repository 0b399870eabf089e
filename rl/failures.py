"""The limit on failed judgements of one step. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rl.scored_batch import Gathered


class FailedJudgements(RuntimeError):
    """More judgements failed in one step than the run allows. A checkpoint has been saved where one was possible."""


def over_the_limit(gathered: Gathered, names: Sequence[str], max_failed_share: float) -> str | None:
    """What is wrong if a reward's failures exceed its allowed share, else None.

    Each reward has its own share of its own judgements (failed or scored; what does not apply is not judged). One failure is
    always allowed, unless the share is 0.

    Args:
        gathered: scores and failures of the step.
        names: reward names in column order.
        max_failed_share: share of one reward's judgements that may fail.
    """
    failed_NK = gathered.failed_NK
    judged_K, failures_K = (failed_NK | ~gathered.scores_NK.isnan()).sum(dim=0), failed_NK.sum(dim=0)
    allowed_K = (max_failed_share * judged_K).clamp(min=1.0 if max_failed_share else 0.0)
    worst = int((failures_K - allowed_K).argmax())
    if failures_K[worst] <= allowed_K[worst]:
        return None
    ((reason, _),) = Counter(row[worst] for row in gathered.reasons_NK if row[worst] is not None).most_common(1)
    return (
        f"{int(failures_K[worst])} of {int(judged_K[worst])} judgements of {names[worst]!r} failed "
        f"(allowed: {max_failed_share:.1%}): {reason}"
    )
