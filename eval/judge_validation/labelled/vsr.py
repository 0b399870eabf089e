"""VSR, visual spatial reasoning (Liu et al. 2023; cambridgeltl/vsr_zeroshot, CC-BY-4.0): is a caption true of its photograph?

Files: `test.jsonl` (zero-shot or random split), one caption per line:
`{"image": "000000017697.jpg", "image_link": "http://…/train2017/000000017697.jpg", "caption": "The car is behind the suitcase.",
"label": 1, "relation": "behind", "subj", "obj", "annotator_id", "vote_true_validator_id": "[18, 2]", "vote_false_validator_id"}`.
Images are COCO 2017's, in the same folder: flat, in images/, or in train2017/ and val2017/. Schema read off the data itself.

Each caption is one sentence without context; label 1 is CORRECT, 0 INCORRECT, the kind is the relation. Captions on which
validators disagreed stay in, as in the set. Left and right are often meant from the thing's own side: expect disagreement.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.judge_validation.labelled.base import Labelled, Loaded, Reader, find_image, read_lines
from rewards.semantic_grounding import GroundingItem

SOURCE = "VSR (cambridgeltl/vsr_zeroshot); its images are COCO 2017's"
QUESTION = "What does the picture show?"
_TRUTH = {1: "CORRECT", 0: "INCORRECT"}


def _read(path: Path) -> Loaded:
    return read_lines(path, "test.jsonl", SOURCE, _item)


def _item(row: dict[str, Any], number: int, folder: Path, loaded: Loaded) -> Labelled | None:
    caption, label = row.get("caption"), row.get("label")
    if not isinstance(caption, str) or not caption.strip():
        loaded.dropped["no caption"] += 1
        return None
    if not isinstance(label, int) or isinstance(label, bool) or label not in _TRUTH:
        loaded.dropped["a label other than 0 and 1"] += 1
        return None
    path = find_image(loaded, folder, row.get("image"), (".", "images", "train2017", "val2017"))
    if path is None:
        return None
    item = GroundingItem(f"vsr/{number}", (path,), QUESTION, (caption.strip(),), ((),))
    return Labelled(item, (_TRUTH[label],), (str(row.get("relation") or "unknown"),))


LABELLED: Reader = _read
