"""Judges: any `JudgeTask` about any items, answered by a model, by exact truth, or from a recording.

`build(config, data_root)` gives the judges of one backend (a file of judges/backends); `await judges.ask(task, items)` gives
a `Verdict` per item. An item that could not be judged is a verdict with `failed=True`, never a score. Imports no torch.
"""

from judges.base import Answerer, Backend, Judge, JudgeSet, Meter, build, names
from judges.requests import BARE_LABEL, NUMBERED_LABELS, REASONED_LABEL, ReplyFormat, Trusted, fence
from judges.task import JudgeTask, NoAnswer, Truth

__all__ = [
    "BARE_LABEL",
    "NUMBERED_LABELS",
    "REASONED_LABEL",
    "Answerer",
    "Backend",
    "Judge",
    "JudgeSet",
    "JudgeTask",
    "Meter",
    "NoAnswer",
    "ReplyFormat",
    "Trusted",
    "Truth",
    "build",
    "fence",
    "names",
]
