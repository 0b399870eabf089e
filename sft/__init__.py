"""Supervised fine-tuning on the traces that the tree search left."""

import fgrpo as _first  # noqa: F401 - before anything heavy: see there
