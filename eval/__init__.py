"""Evaluation (Appendix B): seven spatial benchmarks and three more, accuracy and faithfulness, the paper's tables, figures and a report.

Generating (`eval.generate`) and scoring (`eval.score`) are separate, so another judge can score stored text again.
Use `from eval.base import ...`; the bare name `eval` is Python's built-in.
"""

import fgrpo as _first  # noqa: F401 - before anything heavy: see there
