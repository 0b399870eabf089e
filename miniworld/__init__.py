"""The miniature world: drawn pictures with exact ground truth, and the small Qwen2.5-VL that lives in it."""

import fgrpo as _first  # noqa: F401 - before anything heavy: see there
