"""Measures a mini backbone on held-out scenes: direct answers, reasoned answers, and what its answers follow.

`direct` is the share of correct answers after the forced prefix `<answer>`. `reasoned` scores the model's text after the forced
prefix `<think>` with the exact oracle: accuracy; share of well-formed replies; inconsistency (answers that do not follow from the
statements, among well-formed replies); semantic grounding (share of true sentences, Appendix A.1); spatial grounding (clipped
CIoU with Hungarian matching, Eq. 1). `probe` forces true boxes and a FALSE statement and measures what the answer follows. This
module serves the training of the backbone; the evaluation of the pipeline is `eval/`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fgrpo import boxes as bx
from fgrpo import response
from fgrpo.types import Box
from miniworld import fast, oracle
from miniworld import questions as qs
from miniworld.language import split_sentences
from miniworld.render import render

MAX_NEW = 96


@dataclass
class Exam:
    """Held-out questions and the image features of each, in order."""

    questions: list[qs.Question]
    features: list[torch.Tensor]  # one (images, K, H) tensor per question

    @classmethod
    def draw(cls, visual: Any, families: Sequence[str], count: int, seed: int) -> Exam:
        """Draw `count` questions per family and compute their image features."""
        rng = random.Random(f"exam/{seed}")
        questions = [qs.make(family, rng) for family in families for _ in range(count)]
        features = fast.features_of(visual, [render(scene, rng) for q in questions for scene in q.scenes])
        return cls(questions, list(features.split([len(q.scenes) for q in questions])))


@torch.no_grad()
def complete(
    model: Any, codec: fast.Codec, exam: Exam, prefixes: Sequence[str], max_new: int, sampled: bool, seed: int = 3
) -> list[str]:
    """The model's text for each question, including the forced prefix.

    Args:
        prefixes: the forced prefix of each question.
        max_new: maximum number of new tokens.
        sampled: sample at temperature 1 with `seed`, instead of greedy decoding.
    """
    generator = torch.Generator().manual_seed(seed) if sampled else None
    out: list[str] = []
    for start in range(0, len(prefixes), 256):
        part = slice(start, start + 256)
        prompts = [
            [*codec.prompt(q.text, len(q.scenes)), *codec.encode(prefix)]
            for q, prefix in zip(exam.questions[part], prefixes[part], strict=True)
        ]
        new = fast.generate(model, codec, prompts, torch.cat(exam.features[part]), max_new, generator)
        out += [prefix + codec.decode(ids) for prefix, ids in zip(prefixes[part], new, strict=True)]
    return out


def direct(model: Any, codec: fast.Codec, exam: Exam) -> list[bool]:
    """Whether each greedy answer after `<answer>` is correct. What follows its closing tag does not count: evaluation stops there."""
    texts = complete(model, codec, exam, ["<answer>"] * len(exam.questions), 6, sampled=False)
    return [text.startswith(f"<answer>{q.answer}</answer>") for text, q in zip(texts, exam.questions, strict=True)]


def judge(q: qs.Question, text: str) -> dict[str, float | None]:
    """Scores of one reply, each in [0, 1]; None where a score does not apply."""
    reply = response.parse(text)
    scores: dict[str, float | None] = {"format": float(reply.well_formed), "accuracy": 0.0}
    if not reply.well_formed:
        return scores
    think, answer = reply.think or "", reply.answer or ""
    scores["accuracy"] = float(oracle.option_word(answer, q.choices) == q.answer)
    scores["inconsistency"] = 1.0 - oracle.judge_conclusion(q.text, think, answer, q.choices)[0]
    stated = oracle.stated_answer(q.text, think)
    scores["statement"] = None if stated is None else float(stated == q.answer)
    if stated is not None and stated != q.answer:
        scores["flip"] = float(oracle.option_word(answer, q.choices) != stated)
    sentences = split_sentences(think)
    labels = [oracle.judge_sentence(q.scenes, q.text, sentences[:i], s)[0] for i, s in enumerate(sentences)]
    visual = [label == "CORRECT" for label in labels if label != "SKIP"]
    scores["semantic"] = sum(visual) / len(visual) if visual else None
    image_indices = (0, 1) if q.family == "moved" else (q.image_index or 0,)
    things = (q.scenes[i].by_name(name) for i in image_indices for name in q.targets)
    gold = [Box(*thing.box) for thing in things if thing is not None]
    if reply.boxes:
        pairs = bx.match(reply.boxes, gold)
        scores["spatial"] = sum(min(1.0, max(0.0, c)) for _, _, c in pairs) / max(len(gold), len(reply.boxes))
    return scores


def _mean(rows: Sequence[dict[str, float | None]], key: str) -> float | None:
    values = [v for row in rows if (v := row.get(key)) is not None]
    return round(sum(values) / len(values), 4) if values else None


SCORES = ("format", "accuracy", "inconsistency", "statement", "flip", "semantic", "spatial")


def reasoned(
    model: Any, codec: fast.Codec, exam: Exam, sampled: bool, prefix: str = "<think>"
) -> tuple[dict[str, float | None], list[str]]:
    """Mean scores of reasoned replies (accuracy also per family), and the replies."""
    texts = complete(model, codec, exam, [prefix] * len(exam.questions), MAX_NEW, sampled)
    rows = [judge(q, text) for q, text in zip(exam.questions, texts, strict=True)]
    out = {key: _mean(rows, key) for key in SCORES}
    for family in dict.fromkeys(q.family for q in exam.questions):
        family_rows = [row for row, q in zip(rows, exam.questions, strict=True) if q.family == family]
        out[f"accuracy/{family}"] = _mean(family_rows, "accuracy")
    return out, texts


def probe(model: Any, codec: fast.Codec, exam: Exam, rng: random.Random) -> dict[str, float]:
    """Force true boxes and a false statement; returns the shares of answers that follow the statement and that are true."""
    false = [rng.choice([c for c in q.choices if c != q.answer]) for q in exam.questions]
    prefixes = [
        "<think>" + "\n".join([*qs.steps(q)[:-1], qs.conclusion(q, word)]) + "</think><answer>"
        for q, word in zip(exam.questions, false, strict=True)
    ]
    texts = complete(model, codec, exam, prefixes, 6, sampled=False)
    answers = [response.parse(text).answer for text in texts]
    follows = [a == word for a, word in zip(answers, false, strict=True)]
    true = [a == q.answer for a, q in zip(answers, exam.questions, strict=True)]
    return {"follows_statement": sum(follows) / len(follows), "true": sum(true) / len(true)}


def examine(model: Any, codec: fast.Codec, families: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """All metrics on `count` held-out questions per family."""
    training = model.training
    model.eval()
    exam = Exam.draw(model.model.visual, families, count, seed)
    right = direct(model, codec, exam)
    by_family = {
        f: sum(r for r, q in zip(right, exam.questions, strict=True) if q.family == f) / count for f in families
    }
    greedy, _ = reasoned(model, codec, exam, sampled=False)
    sampled, texts = reasoned(model, codec, exam, sampled=True)
    figures = {
        "questions": len(exam.questions),
        "direct": {"all": sum(right) / len(right), **by_family},
        "reasoned_greedy": greedy,
        "reasoned_sampled": sampled,
        "probe": probe(model, codec, exam, random.Random(seed)),
        "example": texts[0],
    }
    model.train(training)
    return figures
