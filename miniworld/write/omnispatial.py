"""OmniSpatial (qizekun/OmniSpatial): `data.json` with 0-based answers; the image is `<task_type>/<id before "_">.png`.

All questions ask about the scene as seen from behind. They alternate between two task types, so that ids repeat across types as
in the real file.
"""

from __future__ import annotations

import json
from pathlib import Path

from miniworld.write.studio import Studio, Writer, save

TASKS = (("Perspective_Taking", "Hypothetical"), ("Spatial_Interaction", "Localization"))


def _write(folder: Path, count: int, studio: Studio) -> None:
    rows = []
    for n, q, rng in studio.questions(("behind",), count):
        task, sub_task = TASKS[n % len(TASKS)]
        scene = n // len(TASKS)
        save(folder / task / f"{scene}.png", studio.png(q.scenes[0], rng))
        rows.append(
            {
                "id": f"{scene}_0",
                "question": q.text,
                "options": list(q.choices),
                "answer": q.choices.index(q.answer),
                "task_type": task,
                "sub_task_type": sub_task,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


WRITER = Writer("bench/OmniSpatial", "bench", _write)
