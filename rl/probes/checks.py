"""Whether the questions allow the rewards' probes, checked before the model is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fgrpo.errors import UserError
from fgrpo.policy import cells
from fgrpo.types import Sample
from rewards.base import Reward, RewardContext, needs_of
from rewards.probes import Absent
from rl.probes.evidence import evidence

OF_BOXES = frozenset({"evidence", "controls", "attention"})
TRIED = 200  # questions of which at least one must have a control region


def check_questions(
    rewards: Sequence[Reward], samples: Sequence[Sample], context: RewardContext, counts: Counter[str]
) -> None:
    """Check that the questions have the annotated regions that the rewards need.

    Args:
        counts: receives the number of questions without one, by cause. Their rollouts have no score, which is "not applicable".

    Raises:
        UserError: no question has one, no control region fits, or fewer controls are configured than a reward compares.
    """
    for reward in rewards:
        least = getattr(reward, "least_controls", 1)
        if "controls" in needs_of(reward) and context.probing.controls < least:
            raise UserError(
                f"{reward.name} compares control regions, so rl.probes.controls must be at least {least}; it is {context.probing.controls}"
            )
    asking = [reward.name for reward in rewards if OF_BOXES & set(needs_of(reward))]
    if not asking:
        return
    regions = [evidence(sample, context) for sample in samples]
    absent = Counter(region.cause for region in regions if isinstance(region, Absent))
    known = [(s.id, region) for s, region in zip(samples, regions, strict=True) if not isinstance(region, Absent)]
    if not known:
        causes = ", ".join(f"{cause}: {count}" for cause, count in absent.most_common())
        raise UserError(
            f"{', '.join(asking)} need annotated boxes, and none of the {len(samples)} questions has any that count ({causes}); "
            "add a source with boxes to data.sources and data.boxes_from, or leave these rewards out"
        )
    counts.update({f"questions without an annotated region ({cause})": count for cause, count in absent.items()})
    needs_controls = any("controls" in needs_of(reward) for reward in rewards)
    if needs_controls and not any(cells.controls(region, 1, name) for name, region in known[:TRIED]):
        raise UserError(
            f"no control region fits beside the annotated boxes in any of {len(known[:TRIED])} questions: the boxes cover too much "
            "of their images; lower rl.probes.dilation, or leave out the rewards that compare with controls"
        )
