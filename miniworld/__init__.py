"""The miniature world: synthetic images with exact ground truth, and the small Qwen2.5-VL that is trained on them."""

import fgrpo as _first  # noqa: F401 - before heavy imports: see fgrpo/__init__.py
