"""Everything that a lab's page says about its hypotheses, computed once: verdicts, the tests beside them, and later additions.

`to_dict` is the content of verdicts.json, which lies beside the lab's results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ops.lab.additions import Addition, additions
from ops.lab.analysis import Results
from ops.lab.declaration import Lab
from ops.lab.first_published import MENDS, Mend
from ops.lab.over_conditions import Combined, combine
from ops.lab.statistics import Effect
from ops.lab.verdicts import Verdict

FILE = "verdicts.json"


@dataclass(frozen=True)
class Findings:
    """What is known about a lab's hypotheses.

    Attributes:
        verdicts: in order of hypotheses and conditions.
        before: the same with the errors as first published; None for a lab that has only been analysed since.
        mend: what was changed then.
        combined: the tests over conditions.
        added: hypotheses that a recorded change added.
        unseen: {(hypothesis, condition): effects without the seeds that had been seen}.
    """

    lab: Lab
    verdicts: tuple[Verdict, ...]
    before: tuple[Verdict, ...] | None
    mend: Mend | None
    combined: tuple[Combined, ...]
    added: Mapping[str, Addition]
    unseen: Mapping[tuple[str, str], tuple[Effect | None, ...]]

    def counts(self) -> Counter[str]:
        """Verdicts by outcome; "waiting" for those without a test because cells are missing."""
        return Counter("waiting" if v.missing else v.outcome for v in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        before = self.before or (None,) * len(self.verdicts)
        return {
            "verdicts": [
                {**v.to_dict(), "first_published": None if old is None else {"p": old.p, "p_holm": old.p_holm}}
                for v, old in zip(self.verdicts, before, strict=True)
            ],
            "over_conditions": [combined.to_dict() for combined in self.combined],
            "added": [asdict(addition) for addition in self.added.values()],
        }


def of(name: str, results: Results, seal: Mapping[str, Any] | None) -> Findings:
    """The findings of the lab `name`.

    Args:
        seal: what `ops.lab.declaration.seal` stored; None if no cell has started.
    """
    lab, mend = results.lab, MENDS.get(name)
    verdicts = tuple(results.verdicts())
    added = additions(lab, seal, results.cells)
    unseen = {
        (key, condition): tuple(
            results.compare(condition, part.metric, part.kind, part.a, part.b, addition.seen)
            for part in lab.hypotheses[key].parts
        )
        for key, addition in added.items()
        for condition in lab.hypotheses[key].conditions
        if addition.seen
    }
    before = None if mend is None else tuple(results.first_published())
    return Findings(lab, verdicts, before, mend, tuple(combine(lab, verdicts)), added, unseen)
