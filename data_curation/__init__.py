"""Curation of the training data (Appendix A.3): sources, seed questions by cluster, and the RL set by difficulty.

Command: `python -m data_curation.run --preset mini`.
"""

import fgrpo as _first  # noqa: F401 - before heavy imports: see fgrpo/__init__.py
