"""M-HalDetect (Gunjal et al. 2024; hendryx-scale/mhal-detect): spans of image descriptions that people marked.

Files: `val_raw.json` (or train_raw.json), a list of `{"question": "<image>\\n…", "response": "…", "image":
"COCO_val2014_000000292123.jpg", "annotations": [{"start": 0, "end": 101, "text": "…", "label": "ACCURATE"}]}`. The set's own page
describes these fields in prose; their names and the labels' spelling come from code that reads the file, not from the file.
Images are COCO 2014's validation part, in the same folder: flat, in images/, or in val2014/.

Each span is judged after the spans before it. ACCURATE is CORRECT, INACCURATE INCORRECT, ANALYSIS (opinion, inference) SKIP;
UNSURE has no truth: such spans are context only, and counted. The kind is the label.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.judge_validation.labelled.base import Labelled, Loaded, Reader, find_image, labels_file
from fgrpo.errors import UserError
from rewards.semantic_grounding import GroundingItem

SOURCE = "M-HalDetect (hendryx-scale/mhal-detect); its images are COCO 2014's validation part"
_TRUTH = {"ACCURATE": "CORRECT", "INACCURATE": "INCORRECT", "ANALYSIS": "SKIP"}


def _read(path: Path) -> Loaded:
    file = labels_file(path, "val_raw.json", SOURCE)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); it is part of {SOURCE}") from error
    if not isinstance(data, list):
        raise UserError(f"{file} holds a {type(data).__name__}, not a list of descriptions; it is part of {SOURCE}")
    loaded = Loaded()
    for number, row in enumerate(data):
        if not isinstance(row, dict):
            loaded.dropped["a row that is no object"] += 1
        elif (labelled := _item(row, number, file.parent, loaded)) is not None:
            loaded.items.append(labelled)
    return loaded


def _item(row: dict[str, Any], number: int, folder: Path, loaded: Loaded) -> Labelled | None:
    path = find_image(loaded, folder, row.get("image"), (".", "images", "val2014"))
    if path is None:
        return None
    response = row.get("response")
    context: list[str] = []
    judged: list[tuple[str, tuple[str, ...], str, str]] = []
    for _, text, label in _spans(row.get("annotations"), response, loaded):
        if label in _TRUTH:
            judged.append((text, tuple(context), _TRUTH[label], label))
        else:
            loaded.dropped["a span marked UNSURE" if label == "UNSURE" else "a span with an unknown label"] += 1
        context.append(text)
    if not judged:
        loaded.dropped["a description without a usable span"] += 1
        return None
    texts, contexts, truth, kinds = zip(*judged, strict=True)
    question = str(row.get("question") or "").replace("<image>", "").strip()
    return Labelled(GroundingItem(f"m_haldetect/{number}", (path,), question, texts, contexts), truth, kinds)


def _spans(annotations: object, response: object, loaded: Loaded) -> list[tuple[int, str, str]]:
    """(start, text, label) of each span whose text matches its offsets, in the order of the text."""
    spans = []
    for one in annotations if isinstance(annotations, list) else []:
        try:
            start, end, text, label = int(one["start"]), int(one["end"]), str(one["text"]), str(one["label"])
        except (KeyError, TypeError, ValueError):
            loaded.dropped["a span without start, end, text or label"] += 1
            continue
        if not isinstance(response, str) or response[start:end].strip() != text.strip() or not text.strip():
            loaded.dropped["a span whose text is not at its offsets"] += 1
            continue
        spans.append((start, text.strip(), label.strip().upper()))
    return sorted(spans)


LABELLED: Reader = _read
