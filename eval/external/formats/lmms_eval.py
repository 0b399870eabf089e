"""lmms-eval: `<date>_samples_<task>.jsonl`, written with `--log_samples --output_path`; read as version 0.7.3 writes it.

One line per document: doc_id (the row's number in the task's split), target, input (the prompt), filtered_resps (what it
scores), resps (the reply before filters took its reasoning away; only where it differs), token_counts, input_media (images of up
to 300 kB, at most four, where the task's rows hold them as bytes), and one key per metric. Neither the row itself nor how a reply ended is in
the file.
A task with several filters writes each document once per filter; the first line counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.external.rows import Format, Row, plain, share
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl

_NAME = re.compile(r"(?:^|_)samples_(?P<task>.+)\.jsonl$")
FAILED = "[LMMS_EVAL_REQUEST_FAILED"  # how a reply begins that no attempt gave
_NO_METRICS = frozenset(
    [
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "token_counts",
        "doc_hash",
        "prompt_hash",
        "target_hash",
        "input",
        "input_media",
    ]
)
_MOST_MEDIA = 4  # of input_media; with as many, some may be missing


def _read(path: Path, metric: str | None) -> Iterator[Row]:
    seen: set[str] = set()
    for number, line in enumerate(read_jsonl(path, torn_tail_ok=False), 1):
        missing = [key for key in ("doc_id", "filtered_resps", "input") if key not in line]
        if missing:
            raise UserError(
                f"{path}, line {number} has no {', '.join(missing)}: is it a file of `lmms_eval --log_samples`?"
            )
        key = plain(line["doc_id"])
        if key in seen:
            continue
        seen.add(key)
        text = _text(line.get("resps", line["filtered_resps"]))
        tokens = line.get("token_counts")
        yield Row(
            key,
            "" if text is None or text.startswith(FAILED) else text,
            prompt=line["input"] if isinstance(line["input"], str) else "",
            target=plain(line.get("target")),
            theirs=_score(line, metric, path),
            finish="error" if text is None or text.startswith(FAILED) else None,
            tokens=_tokens(tokens),
            images=_images(line.get("input_media")),
        )


def _text(reply: Any) -> str | None:
    """The reply; the first one of several (repeats); None if the line holds no text."""
    while isinstance(reply, list) and reply:
        reply = reply[0]
    return reply if isinstance(reply, str) else None


def _tokens(counts: Any) -> int:
    first = counts[0] if isinstance(counts, list) and counts else None
    number = first.get("output_tokens") if isinstance(first, Mapping) else None
    return number if isinstance(number, int) and not isinstance(number, bool) and number > 0 else 0


def _score(line: Mapping[str, Any], metric: str | None, path: Path) -> float | None:
    if metric is not None:
        if metric not in line:
            found = ", ".join(key for key in line if key not in _NO_METRICS)
            raise UserError(f"{path} has no metric {metric!r}; it has: {found}")
        return share(line[metric])
    scores = (share(value) for key, value in line.items() if key not in _NO_METRICS)
    return next((score for score in scores if score is not None), None)


def _images(media: Any) -> tuple[str, ...]:
    """The images in the line, () where some may be missing: a path without its bytes, or the most that lmms-eval lists."""
    entries = [entry for entry in media if isinstance(entry, str)] if isinstance(media, list) else []
    held = [entry for entry in entries if entry.startswith("data:image/")]
    named = len(entries) - len(held)
    return tuple(held) if len(entries) < _MOST_MEDIA and named in (0, len(held)) else ()


def _task(path: Path) -> str:
    name = _NAME.search(path.name)
    return name["task"] if name else ""


FORMAT = Format("lmms-eval", lambda path: _NAME.search(path.name) is not None, _read, _task)
