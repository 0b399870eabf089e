"""Finds the question and the images of each row of another harness.

Three sources, in this order: the data set's own file (VLMEvalKit's .tsv, by index), a benchmark of this repository, and the
images that the row itself holds. A row of a benchmark is found by its number where the questions of all rows agree with those
numbers, else by its text where only one image of the benchmark has it. Numbers that do not agree are never used, nor does a
gold answer choose between images, since a wrong image would be judged as if the model had seen it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval import base
from eval.external.current import whole
from eval.external.rows import Row
from fgrpo.errors import UserError
from fgrpo.image_files import ImageProblem, existing_below
from fgrpo.images import open_rgb
from fgrpo.options import UnclearOptions, letter_index, split_options
from fgrpo.schema import Config
from fgrpo.types import Sample

NO_IMAGE, NO_QUESTION, OTHER_OPTIONS, NO_GOLD, REPEATED = (
    "no image found",
    "no question found",
    "its options are not those of the question",
    "no gold answer",
    "the question occurs twice in the file",
)
OFFSETS = (0, -1)  # of a harness' row numbers from ours: counted from 0, or from 1
_SENTENCE_ENDS = ".?!:。？！："
_BEFORE = r"(?:^[^\w\n]*(?:\w+[^\S\n]*[:.)：][^\w\n]*)?|[.?!。？！>][^\w\n]*)"  # what may stand before a question
Pictures = Mapping[str, tuple[bytes | str, ...]]


@dataclass(frozen=True)
class Found:
    """The question of a row.

    Attributes:
        sample: with the options in the order in which the row's letters name them.
        by: how it was found: "row number", "question", "file".
        other_gold: the file's gold answer, where it is another one than the sample's.
        is_reordered: whether the row has the options in another order.
    """

    sample: Sample
    by: str
    other_gold: str = ""
    is_reordered: bool = False


@dataclass(frozen=True)
class Table:
    """A benchmark's questions by row: several samples where a row is asked several times, none where it cannot be used."""

    name: str
    rows: tuple[tuple[Sample, ...], ...]

    @classmethod
    def of(cls, name: str, config: Config) -> Table:
        """Benchmark `name` as its files hold it. Raises UserError as `eval.base.load`."""
        config = whole(config)
        usable = {sample.id for sample in base.load(name, config).samples}
        bench, folder = base.benchmark(name), base.folder_of(name, config)
        rows: list[list[Sample]] = []
        last = None
        for item in bench.read(folder, Path(config.data.root) / "cache" / "images" / name):
            is_new = isinstance(item, base.Drop) or "order" not in item.meta or base.group_of(item) != last
            if is_new:
                rows.append([])
            if isinstance(item, Sample):
                last = base.group_of(item)
                if item.id in usable:
                    rows[-1].append(item)
        return cls(name, tuple(map(tuple, rows)))

    def find(self, rows: Sequence[Row]) -> list[Found | str]:
        """For each row its question, or the reason why there is none."""
        offset = self._offset(rows)
        by_text: dict[str, list[Sample]] = {}
        for sample in (s for row in self.rows for s in row):
            by_text.setdefault(_plain(sample.question), []).append(sample)
        return [self._one(row, offset, by_text) for row in rows]

    def _offset(self, rows: Sequence[Row]) -> int | None:
        """The offset with which every row's number names a question that the row asks; None if there is none, or no numbers.

        Where both offsets do, as if all rows ask the same, the gold answers decide.
        """
        agreeing = {}
        for offset in OFFSETS:
            found = [self._at(row.number + offset, row) if row.number is not None else [] for row in rows]
            if all(found):
                same = (_chosen(row, samples, "row number") for row, samples in zip(rows, found, strict=True))
                agreeing[offset] = sum(isinstance(each, Found) and not each.other_gold for each in same)
        best = [offset for offset, golds in agreeing.items() if golds == max(agreeing.values())]
        return best[0] if len(best) == 1 else None

    def _at(self, number: int, row: Row) -> list[Sample]:
        """The samples of a row number that `row` asks."""
        held = self.rows[number] if 0 <= number < len(self.rows) else ()
        return [sample for sample in held if _asks(row, sample)]

    def _one(self, row: Row, offset: int | None, by_text: Mapping[str, list[Sample]]) -> Found | str:
        if offset is not None and row.number is not None:
            return _chosen(row, self._at(row.number + offset, row), "row number")
        if row.question:
            same = by_text.get(_plain(row.question), [])
        else:
            asked = _plain(row.prompt)
            held = [text for text in by_text if text in asked and _is_asked(text, row.prompt)]
            longest = [text for text in held if not any(text != other and text in other for other in held)]
            same = [sample for text in longest for sample in by_text[text]]
        return _chosen(row, same, "question")


def of_file(row: Row, source: str, pictures: Pictures, folder: Path, cache: Path) -> Found | str:
    """The question that the row's own file holds, with the images that `pictures` or the row give.

    Args:
        source: the data set's name, the first part of the sample's id.
        pictures: images by index.
        folder: where names of images are looked up.
        cache: where embedded images are written.
    """
    question, choices = row.question, row.choices
    if not question:
        try:
            question, choices = split_options(row.prompt)
        except UnclearOptions:
            return OTHER_OPTIONS
    if not question:
        return NO_QUESTION
    gold = _gold(row.target, choices)
    if gold is None:
        return NO_GOLD
    images = _images(row, pictures, folder, cache)
    if not images:
        return NO_IMAGE
    meta = {"group": f"{source}/{row.group}"} if row.group else {}
    return Found(Sample(f"{source}/external/{row.key}", images, question, choices, gold, meta=meta), "file")


def _chosen(row: Row, candidates: Iterable[Sample], by: str) -> Found | str:
    """The one candidate whose options fit the row; of several with the same images, the one whose gold answer and order fit."""
    fitting = [found for sample in candidates if (found := _with_options(row, sample, by)) is not None]
    if not fitting:
        return OTHER_OPTIONS if list(candidates) else NO_QUESTION
    if len({found.sample.images for found in fitting}) > 1:
        return NO_IMAGE  # a gold answer does not tell which: files correct them
    same_gold = [found for found in fitting if not found.other_gold] or fitting
    same_order = [found for found in same_gold if not found.is_reordered] or same_gold
    return same_order[0] if len(same_order) == 1 else NO_IMAGE


def _with_options(row: Row, sample: Sample, by: str) -> Found | None:
    """The sample with its options in the row's order; None if the row has other options."""
    shown, given = row.choices or _shown_options(row.prompt, sample.choices), sample.choices
    if shown and sample.choices:
        by_text = {_plain(choice): choice for choice in sample.choices}
        if {_plain(choice) for choice in shown} != set(by_text):
            return None
        sample = replace(sample, choices=tuple(by_text[_plain(choice)] for choice in shown))
    gold = _gold(row.target, sample.choices) if row.target else sample.answer
    other_gold = "" if gold is None or _plain(gold) == _plain(sample.answer) else gold
    return Found(sample, by, other_gold, sample.choices != given)


def _shown_options(prompt: str, choices: Sequence[str]) -> tuple[str, ...]:
    """`choices` in the order of the letters before them in a prompt; () if the prompt does not letter them all."""
    lettered: dict[str, str] = {}
    for choice in choices:
        marks = re.findall(rf"(?<![A-Za-z])\(?([A-Z])[.):]\s*{re.escape(choice)}(?![\w])", prompt)
        if len(set(marks)) != 1 or marks[0] in lettered:
            return ()
        lettered[marks[0]] = choice
    letters = sorted(lettered)
    return tuple(lettered[mark] for mark in letters) if letters == [chr(65 + n) for n in range(len(choices))] else ()


def _gold(target: str, choices: Sequence[str]) -> str | None:
    """The text of a gold answer: an option's letter or text; free-form without choices. None if it is neither."""
    if not choices:
        return target or None
    index = letter_index(target, choices)
    if index is not None:
        return choices[index]
    return next((choice for choice in choices if _plain(choice) == _plain(target)), None)


def _asks(row: Row, sample: Sample) -> bool:
    """Whether the row's question is the sample's."""
    question = _plain(sample.question)
    return question == _plain(row.question) if row.question else _is_asked(question, row.prompt)


def _is_asked(question: str, prompt: str) -> bool:
    """Whether a prompt holds a question (as `_plain` writes it) as a whole, not as the end or the beginning of another one.

    It begins a line, after a label such as "Question:" too, or follows the end of a sentence or a tag. What follows a question
    without a mark of its own is the line's end or no word.
    """
    if not question or question not in _plain(prompt):
        return False
    words = r"\s+".join(map(re.escape, question.split()))
    after = "" if question[-1] in _SENTENCE_ENDS else r"(?=[^\S\n]*(?:[^\w\s]|\n|\Z))"
    return re.search(f"{_BEFORE}{words}{after}", prompt.casefold(), re.MULTILINE) is not None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _images(row: Row, pictures: Pictures, folder: Path, cache: Path) -> tuple[str, ...]:
    """Paths of the row's images, each of which can be read; () if one is missing or broken."""
    given: tuple[bytes | str, ...] = pictures.get(row.key, ())
    if not given:
        given = tuple(data for url in row.images if (data := _data(url)))
        given = given if len(given) == len(row.images) else ()
    paths = []
    for number, image in enumerate(given):
        try:
            stem = f"{re.sub(r'[^A-Za-z0-9-]', '_', row.key)[:60]}-{number}"
            is_file = isinstance(image, str)
            path = str(existing_below(folder, image)) if is_file else base.save_image(image, cache, stem)
            open_rgb(path)
        except (ImageProblem, UserError):
            return ()
        paths.append(path)
    return tuple(paths)


def _data(url: str) -> bytes | None:
    """The bytes of a data URL; None if it is broken."""
    head, _, body = url.partition(",")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else None
    except (binascii.Error, ValueError):
        return None


def unique(found: Sequence[Found | str]) -> list[Found | str]:
    """`found`, where a second row of one sample is a reason: two answers to one question would count as one."""
    counts: Counter[str] = Counter()
    out: list[Found | str] = []
    for each in found:
        if isinstance(each, Found):
            counts[each.sample.id] += 1
            each = REPEATED if counts[each.sample.id] > 1 else each
        out.append(each)
    return out


def benchmark_of(task: str) -> str | None:
    """The benchmark of this repository that a harness calls `task`, or whose name a file's name ends with; None if none fits."""
    wanted = f"_{_identifier(task)}_"
    fits = [
        (len(alias), name)
        for name in base.names()
        for alias in (name, *base.benchmark(name).known_as)
        if f"_{_identifier(alias)}_" in wanted and base.benchmark(name).folder != "own"
    ]
    return max(fits)[1] if fits else None


def _identifier(name: str) -> str:
    return re.sub(r"\W+", "_", name).casefold()
