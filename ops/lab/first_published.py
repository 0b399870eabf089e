"""The error as this laboratory computed it when 26 cells of the lab `main` had been published, and what was wrong with it.

It stays so that the page can print the p values of then beside those of now. No verdict uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ops.lab.arms import Floats

if TYPE_CHECKING:
    from ops.lab.statistics import Effect


@dataclass(frozen=True)
class Mend:
    """A change of the analysis after results had been seen: the commit that made it, and what was wrong, in words."""

    commit: str
    text: str


MENDS = {
    "main": Mend(
        commit="26a79284074b5aa2b98c65e7aa6f04f4ac8a009c",
        text=(
            "the results of 26 cells, all of `mini`, had been seen. The first version counted the noise of a question within a seed three "
            "times instead of once: its errors were 1.02 to 1.04 times too large where the seeds differ most, and up to 2.9 times where "
            "questions do. It also gave the questions' part of the error only as many degrees of freedom as the seeds have. Both erred "
            "towards *undecided*. A third fault erred the other way: effects equal in all seeds had an error of 0, so their p was 0 or 1 (no "
            "published verdict rested on that). No hypothesis, margin, metric or level was changed"
        ),
    )
}


def first_published_error(effects_BS: Floats, weights_BS: Floats) -> float:
    """The bootstrap's error as first published: va/S + vc/Q + 3 vd/(S Q) in place of va/S + vc/Q + vd/(S Q)."""
    count = effects_BS.shape[1]
    centre_B = np.nanmean(effects_BS, axis=1)
    deviations_B = np.nansum((weights_BS - 1.0 / count) * (effects_BS - centre_B[:, None]), axis=1)
    return float(np.nanstd(centre_B + np.sqrt(count / (count - 1)) * deviations_B, ddof=1))


def as_first_published(found: Effect | None) -> Effect | None:
    """The effect with the error and the S - 1 degrees of freedom of then."""
    if found is None or found.first_error is None:
        return found
    error = max(found.first_error, 1e-100)  # an error of 0 made p 0 or 1
    return replace(found, error=error, noise=((error**2, found.seeds - 1.0), (0.0, 1.0)), untestable="")
