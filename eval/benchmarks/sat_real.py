"""SAT-Real (array/SAT, test split): 150 questions on one or two real images; column SAT-Real of Table 1.

Parquet `*test*`: image_bytes (1 or 2 images), question, answers (2), correct_answer (text), question_type. Each question comes in
both option orders, so there are 300 trials and the score is their mean; the order is never random. The two trials of a question
share `meta["group"]`; `meta["order"]` is 0 as stored, 1 swapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, one_file, parquet_rows, save_image
from fgrpo.types import Sample

COLUMNS = ("image_bytes", "question", "answers", "correct_answer")


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    path = one_file(folder, "*test*.parquet", "sat_real")
    for n, row in enumerate(parquet_rows([path], COLUMNS, "sat_real")):
        answers = tuple(str(a).strip() for a in row["answers"] or ())
        answer = str(row["correct_answer"]).strip()
        if len(answers) != 2 or answer not in answers:
            yield Drop("not two answers with the correct one among them")
            continue
        try:
            images = tuple(save_image(data, cache, f"{n:05d}-{k}") for k, data in enumerate(row["image_bytes"] or ()))
        except ValueError as error:
            yield Drop(str(error))
            continue
        if not images:
            yield Drop("the row holds no image")
            continue
        for order, choices in enumerate((answers, answers[::-1])):
            meta = {"group": f"sat_real/question/{n}", "order": order, "type": row.get("question_type")}
            yield Sample(f"sat_real/test/{n}.{order}", images, str(row["question"]).strip(), choices, answer, meta=meta)


BENCHMARK = Benchmark("sat_real", "SAT-Real", "SAT", "array/SAT (test split)", _read)
