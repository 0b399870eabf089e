"""Are the images still where the rows of a data folder say? A data set may have been moved since.

The rows name images by path, for other tools too, so these paths stay as they were written; `data.root` itself counts by the
content of its annotations.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

from fgrpo.errors import UserError

ROWS = ("seed.jsonl", "rl.jsonl", "pool/*.jsonl")


def check_images(stage: Path, data_root: str | Path) -> None:
    """Look for the first image that each file of rows in the folder `stage` names.

    Raises:
        UserError: it is missing (says how to link the old place to `data_root`).
    """
    for file in (found for pattern in ROWS for found in sorted(stage.glob(pattern))):
        image = _first_image(file)
        if image is None or os.path.exists(image):
            continue
        raise UserError(
            f"{file} names the image {image}, which is missing. {_advice(Path(image), Path(data_root))}, or move {stage} away to "
            "make its rows anew (its difficulties are measured again)"
        )


def _first_image(file: Path) -> str | None:
    with file.open("rb") as lines:
        for line in lines:
            try:
                images = json.loads(line)["images"]
            except (ValueError, KeyError, TypeError):  # the stage that reads the file reports it
                return None
            if images:
                return str(images[0])
    return None


def _advice(image: Path, data_root: Path) -> str:
    """The link that makes `image` exist, if the same file lies below `data_root`."""
    for at in range(1, len(image.parts)):
        if (data_root / Path(*image.parts[at:])).exists():
            return f"If the data was moved, link its old place to the new one: {_link(Path(*image.parts[:at]), data_root.absolute())}"
    return "Restore the data there"


def _link(old: Path, new: Path) -> str:
    """The command that makes `old` a link to `new`; what lies at `old` is moved aside, since `ln` would write into a folder."""
    source, place = shlex.quote(str(new)), shlex.quote(str(old))
    if old.is_symlink():
        return f"ln -sfn {source} {place}"
    aside = f"mv {place} {shlex.quote(f'{old}.old')} && " if old.exists() else ""
    return f"{aside}ln -s {source} {place}"
