"""Supervised fine-tuning on the traces of the tree search."""

import fgrpo as _first  # noqa: F401 - before heavy imports: see fgrpo/__init__.py
