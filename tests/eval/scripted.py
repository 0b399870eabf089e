"""A sampler that knows the miniature world's truth and errs by a fixed rule: real prompts in, plausible traces out."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from pathlib import Path

from fgrpo.inference.base import Completion, Request, SamplingError
from miniworld.language import parse_question
from miniworld.questions import box_sentence
from miniworld.truth import TruthBook


class Scripted:
    """Writes box sentences and an answer; `inconsistent` and `wrong` are shares of the answers, `refuse` names texts to refuse."""

    def __init__(
        self, book: TruthBook, inconsistent: float = 0.2, wrong: float = 0.2, die_after: int | None = None
    ) -> None:
        self.book, self.inconsistent, self.wrong = book, inconsistent, wrong
        self.asked: list[Request] = []
        self.die_after = die_after
        self.refuse: tuple[str, ...] = ()

    async def sample(self, request: Request) -> Sequence[Completion]:
        if self.die_after is not None and len(self.asked) >= self.die_after:
            raise RuntimeError("killed")
        self.asked.append(request)
        if any(text in request.text for text in self.refuse):
            raise SamplingError("refused")
        return [Completion(self.write(request), "stop", (1, 2, 3))]

    def write(self, request: Request) -> str:
        images = [Path(image).name for image in request.images]  # not their folder, which is another one in each run
        rng = random.Random(zlib.crc32(f"{request.text}{images}{request.temperature}{self.wrong}".encode()))
        scenes = self.book.scenes(request.images)
        asked = parse_question(request.text)
        assert scenes is not None and asked is not None
        picture = asked.image_index if asked.image_index is not None else len(scenes) - 1
        lines = []
        for name in asked.names:
            thing = scenes[picture].by_name(name)
            assert thing is not None
            shift = rng.choice((0, 0, 4, 20))
            box = tuple(min(112, v + shift) for v in thing.box)
            lines.append(box_sentence(name, box, asked.image_index))  # type: ignore[arg-type]
        stated, other = rng.sample(asked.options[:2], 2)
        answer = other if rng.random() < self.inconsistent else stated
        lines.append(f"The answer is {stated}.")
        return "<think>" + "\n".join(lines) + f"</think><answer>{answer}</answer>"

    async def close(self) -> None:
        return None
