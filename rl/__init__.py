"""The constrained trainer: advantages (Eq. 6), multipliers (Eqs. 4 and 5), the TRL subclass, the stage."""

import fgrpo as _first  # noqa: F401 - before anything heavy: see there
