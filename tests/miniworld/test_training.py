"""The backbone's lessons, and resume of its training after a kill."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from fgrpo.errors import UserError
from miniworld import fast, language_phase, oracle, train_backbone, vision_phase
from miniworld import questions as qs
from miniworld.curriculum import NO_LOSS, Lesson, LessonSampler, Pool
from miniworld.recipe import CORE, FAMILIES, REASONED, Recipe, learning_rate
from miniworld.scene import sample_scene

RECIPE = replace(Recipe().quick(), singles=12, pairs=3)


@pytest.fixture(scope="module")
def teacher() -> LessonSampler:
    return LessonSampler(fast.Codec(), Pool(12, 6, "test"))


def learned(teacher: LessonSampler, lesson: Lesson) -> str:
    assert len(lesson.ids) == len(lesson.labels)
    assert all(label in (NO_LOSS, token) for label, token in zip(lesson.labels, lesson.ids, strict=True))
    return teacher.codec.decode([t for t in lesson.labels if t != NO_LOSS])


def test_shares_sum_to_one() -> None:
    for shares in (CORE, FAMILIES, REASONED):
        assert abs(sum(shares.values()) - 1) < 1e-9
        assert set(shares) <= set(qs.FAMILIES)


def test_direct_lessons_are_true_and_look_at_the_named_thing(teacher: LessonSampler) -> None:
    rng = random.Random(0)
    mix = Recipe().direct.mixes[-1][1]
    for _ in range(60):
        lesson = teacher.direct(rng, mix, 3)
        scenes = tuple(teacher.pool.scenes[i] for i in lesson.image_indices)
        assert lesson.ids.count(teacher.codec.image) == fast.IMAGE_TOKENS * len(scenes)
        turns = teacher.codec.tokenizer.decode(lesson.ids, skip_special_tokens=False).split("<|im_start|>user\n")[1:]
        assert len(turns) <= 3
        for turn in turns:
            question, reply = turn.split("<|im_end|>\n<|im_start|>assistant\n")
            if "<bbox>" in reply:
                sentences = reply.removesuffix("\n").removesuffix("<|im_end|>").split("\n")
                for i, sentence in enumerate(sentences):
                    assert oracle.judge_sentence(scenes, question, sentences[:i], sentence)[0] == "CORRECT", (
                        question,
                        sentences,
                    )
        for token, targets in lesson.attention_targets:
            color = teacher.codec.decode([lesson.ids[token]]).strip()
            for target in targets:
                assert lesson.ids[target] == teacher.codec.image
                start = next(i for i in range(target, -1, -1) if lesson.ids[i - 1] != teacher.codec.image)
                row, column = divmod(target - start, 4)
                assert any(t.color == color and t.cell == (row, column) for scene in scenes for t in scene.things)


def test_reasoning_has_loss_on_what_the_text_determines(teacher: LessonSampler) -> None:
    rng = random.Random(1)
    derived = teacher.reasoning(rng, {"hrel": 1.0}, unrelated=True, derive=True)
    word = learned(teacher, derived).split()
    assert len(word) == 1 and word[0] in ("leftleft", "rightright")  # the statement's word and the answer
    assert derived.ids.count(teacher.codec.image) == fast.IMAGE_TOKENS
    form = teacher.reasoning(rng, {"depth": 1.0}, unrelated=False, derive=False)
    assert "<bbox>[,,,]</bbox>" in learned(teacher, form)  # numbers are given
    for family in qs.FAMILIES:
        lesson = teacher.reasoning(rng, {family: 1.0}, unrelated=False, derive=False)
        question, reply = teacher.codec.decode(lesson.ids).split("user\n")[1].split("\nassistant\n")
        think, answer = reply.removeprefix("<think>").removesuffix("</answer>").split("</think><answer>")
        assert oracle.judge_conclusion(question, think, answer, ())[0]  # nothing contradicts itself
    look = teacher.locating(rng, {"vrel": 1.0})
    assert learned(teacher, look).count("<bbox>") == 2 and "</think>" not in learned(teacher, look)


def test_alignment_is_small_where_attention_is_right(teacher: LessonSampler) -> None:
    from miniworld import backbone_model as bm

    model = bm.build(0)
    teacher.pool.compute(model.model.visual)
    lesson = teacher.direct(random.Random(2), Recipe().direct.mixes[0][1], 2)
    batch = fast.Batch(teacher.codec, [lesson.ids], [lesson.labels])
    embeds = fast.embed(model, batch, teacher.pool.features_MKH[list(lesson.image_indices)])
    loss = language_phase.alignment_loss(model, batch, embeds, [lesson])
    everything = [(token, tuple(range(token + 1))) for token, _ in lesson.attention_targets]
    none = language_phase.alignment_loss(model, batch, embeds, [replace(lesson, attention_targets=everything)])
    assert loss > 0.5 and abs(none.item()) < 1e-5


def test_targets_of_the_vision_head() -> None:
    scene = sample_scene(random.Random(3))
    targets = vision_phase.targets([scene]).reshape(4, 4, 7)
    assert int((targets[..., 0] > 0).sum()) == len(scene.things)
    for thing in scene.things:
        row, column = thing.cell
        assert targets[row, column, 2:4].tolist() == [row, column]
        assert targets[row, column, 4:].abs().max() <= 1


def test_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(1.0, step, 100, 10) for step in range(100)]
    assert rates[0] < 0.2 and max(rates) == max(rates[:20]) and rates[-1] < 0.06


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_backbone, "CHECKPOINT_EVERY", 1)

    def go(folder: Path) -> train_backbone.Training:
        folder.mkdir(exist_ok=True)
        training = train_backbone.Training(folder, RECIPE)
        train_backbone.train_vision(training)
        pool = Pool(RECIPE.singles, RECIPE.pairs, "pool")
        pool.compute(training.model.model.visual)
        train_backbone.train_language(training, "follow", RECIPE.follow, LessonSampler(training.codec, pool))
        return training

    reference = go(tmp_path / "whole").model.state_dict()
    real, calls = language_phase.step, 0

    def killed(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(language_phase, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed")
    again = go(tmp_path / "killed").model.state_dict()
    assert calls == 3  # the first step was not run again
    assert all(torch.equal(value, again[name]) for name, value in reference.items())
    with pytest.raises(UserError, match="another recipe"):
        train_backbone.Training(tmp_path / "killed", replace(RECIPE, seed=9))


def test_training_that_diverges_stops_before_the_step(tmp_path: Path) -> None:
    training = train_backbone.Training(tmp_path, RECIPE)
    weight = next(training.head.parameters())
    before = weight.detach().clone()

    def step(number: int, rng: random.Random) -> dict[str, float]:
        weight.grad = torch.full_like(weight, float("nan"))
        return {"loss": 0.0}

    with pytest.raises(UserError, match=r"vision, step 1: the gradient norm is nan; training has diverged"):
        training.run("vision", [weight], step, 4, 1e-3, 1)
    assert torch.equal(weight, before) and not (tmp_path / train_backbone.CHECKPOINT).exists()


def test_other_backbones_differ_from_the_shipped_one_as_asked() -> None:
    shipped = Recipe()
    assert shipped.changed() == shipped
    other = shipped.changed(seed=1, direct_steps=480, follow_steps=0)
    assert (other.seed, other.direct.steps, other.follow.steps) == (1, 480, 0)
    assert replace(other, seed=0, direct=shipped.direct, follow=shipped.follow) == shipped
    with pytest.raises(UserError, match="0 steps of the phase 'direct'"):
        shipped.changed(direct_steps=0)
    with pytest.raises(UserError, match="-1 steps of the phase 'follow'"):
        shipped.changed(follow_steps=-1)
