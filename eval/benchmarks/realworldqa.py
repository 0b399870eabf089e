"""RealWorldQA (xai-org/RealworldQA): 765 questions about driving and everyday scenes; column RealWorldQA of Table 1.

Parquet files with image, question, answer. The question contains the options and a sentence "Please answer directly with only the
letter …". Both are removed: options become `choices`, and the sentence goes to `meta["direct_sentence"]`, since it forbids the
reasoning that the prompt requests. Some answers are words or numbers: those stay free-form questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from eval.base import Benchmark, Drop, parquet_rows, save_image, split_direct_sentence
from fgrpo.errors import UserError
from fgrpo.files import files_below
from fgrpo.options import UnclearOptions, letter_index, split_options
from fgrpo.types import Sample


def _read(folder: Path, cache: Path) -> Iterator[Sample | Drop]:
    paths = files_below(folder, "*.parquet")
    if not paths:
        raise UserError(
            f"benchmark realworldqa: there is no parquet file below {folder}; download xai-org/RealworldQA into it"
        )
    for n, row in enumerate(parquet_rows(paths, ["image", "question", "answer"], "realworldqa")):
        text, direct = split_direct_sentence(str(row["question"]))
        try:
            question, choices = split_options(text)
        except UnclearOptions as error:
            yield Drop(str(error))
            continue
        answer = str(row["answer"]).strip().rstrip(".")
        gold = letter_index(answer, choices)
        if not answer:
            yield Drop("no answer")
            continue
        if choices and gold is None:  # a word: the option it names, else a free-form question
            gold = next((i for i, c in enumerate(choices) if c.lower() == answer.lower()), None)
            if gold is None:
                question, choices = text, ()
        try:
            image = save_image(row["image"], cache, f"{n:05d}")
        except ValueError as error:
            yield Drop(str(error))
            continue
        meta = {"direct_sentence": direct}
        yield Sample(
            f"realworldqa/test/{n}", (image,), question, choices, answer if gold is None else choices[gold], meta=meta
        )


BENCHMARK = Benchmark("realworldqa", "RealWorldQA", "RealworldQA", "xai-org/RealworldQA", _read)
