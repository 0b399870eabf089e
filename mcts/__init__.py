"""Reasoning traces by tree search over a teacher (Appendix A.4): tree, puct, search, teacher, linearize, and the stage."""

import fgrpo as _first  # noqa: F401 - before heavy imports: see fgrpo/__init__.py
