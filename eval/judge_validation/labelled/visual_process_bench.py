"""VisualProcessBench (Wang et al. 2025; OpenGVLab/VisualProcessBench, MIT): 2,866 answers whose 26,950 steps people labelled.

Files: `test.jsonl`, one answer per line: `image` (list of paths; the card's header says string, both are read), `question`,
`answer`, `response` = {`steps`: [text], `process_correctness`: [1 | 0 | -1]}, `policy_model`, `data_source`; and images.zip,
unpacked in the same folder. Keys as on the set's card; how image paths begin is unverified, so they are searched below the folder
and below images/.

Each step is judged after the steps before it. 1 is CORRECT, -1 INCORRECT, 0 (neutral) SKIP; the kind is `data_source`. People
labelled whether a step is right, which takes reasoning and arithmetic too; a judge of the image alone is measured against
more than its own task, so its agreement here is a lower bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.judge_validation.labelled.base import Labelled, Loaded, Reader, find_image, read_lines
from rewards.semantic_grounding import GroundingItem

SOURCE = "VisualProcessBench (OpenGVLab/VisualProcessBench), with images.zip unpacked in the same folder"
_TRUTH = {1: "CORRECT", -1: "INCORRECT", 0: "SKIP"}


def _read(path: Path) -> Loaded:
    return read_lines(path, "test.jsonl", SOURCE, _item)


def _item(row: dict[str, Any], number: int, folder: Path, loaded: Loaded) -> Labelled | None:
    response = row.get("response")
    fields = response if isinstance(response, dict) else {}
    steps, marks = fields.get("steps"), fields.get("process_correctness")
    if not isinstance(steps, list) or not isinstance(marks, list) or not steps:
        loaded.dropped["an answer without steps"] += 1
        return None
    if len(steps) != len(marks):
        loaded.dropped["an answer whose numbers of steps and labels differ"] += 1
        return None
    names = row.get("image")
    paths = [find_image(loaded, folder, n, (".", "images")) for n in (names if isinstance(names, list) else [names])]
    if not paths or None in paths:
        return None
    context: list[str] = []
    judged: list[tuple[str, tuple[str, ...], str]] = []
    for step, mark in zip(steps, marks, strict=True):
        if not isinstance(step, str) or not step.strip():
            loaded.dropped["an empty step"] += 1
            continue
        if not isinstance(mark, int) or isinstance(mark, bool) or mark not in _TRUTH:
            loaded.dropped["a step with a label other than 1, 0, -1"] += 1
        else:
            judged.append((step.strip(), tuple(context), _TRUTH[mark]))
        context.append(step.strip())
    if not judged:
        loaded.dropped["an answer without a usable step"] += 1
        return None
    texts, contexts, truth = zip(*judged, strict=True)
    images = tuple(path for path in paths if path is not None)
    item = GroundingItem(f"visual_process_bench/{number}", images, str(row.get("question") or ""), texts, contexts)
    return Labelled(item, truth, (str(row.get("data_source") or "unknown"),) * len(truth))


LABELLED: Reader = _read
