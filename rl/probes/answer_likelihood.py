"""How likely the reference model finds a response's answer after its trace: mean log-probability of the answer's tokens.

GRPO-CARE (arXiv 2506.16141) rewards answers that a slow copy of the policy finds likely, given the trace. The numbers come from
TRL's reference pass, so they cost nothing. The reference is the one of the KL penalty: the initial policy, or with
`rl.reference` an average that follows the trained one.
"""

from __future__ import annotations

from typing import Any

from fgrpo.errors import UserError
from rewards.base import RewardContext
from rewards.probes import NO_TOKENS, Absent
from rl.passes import LogprobPasses
from rl.probes.base import Batch, Probe, answers
from rl.probes.passes import Passes

NOT_FINITE = Absent("not_finite", "the reference model's log-probabilities are not finite", True)


class AnswerLikelihood:
    """The probe of this module."""

    gives = ("answer_likelihood",)

    def check(self, trainer: LogprobPasses, context: RewardContext) -> None:
        """As `Probe.check`: there must be a reference model."""
        if trainer.beta == 0.0:
            raise UserError(
                "the likelihood of an answer is measured under the reference model, which rl.kl_coef = 0 leaves out; set "
                "rl.kl_coef above 0, or leave out the rewards that need it"
            )

    def measure(self, needs: frozenset[str], batch: Batch, passes: Passes) -> list[dict[str, Any]]:
        """As `Probe.measure`; without a pass of its own."""
        assert batch.reference_BT is not None
        found: list[dict[str, Any]] = []
        for row, answer in enumerate(answers(batch.rollouts, passes.tokenizer)):
            value: float | Absent = answer if isinstance(answer, Absent) else NO_TOKENS
            if isinstance(answer, tuple):
                logps_T = batch.reference_BT[row, slice(*answer)]
                value = float(logps_T.mean()) if bool(logps_T.isfinite().all()) else NOT_FINITE
            found.append({"answer_likelihood": value, "answer": answer})
        return found


PROBE: Probe = AnswerLikelihood()
