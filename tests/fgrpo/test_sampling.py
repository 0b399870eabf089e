"""The transformers engine on the shipped backbone: equal to the library's generate, whatever is batched with what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgrpo.errors import UserError
from fgrpo.images import open_rgb
from fgrpo.inference.base import Completion, Request, SamplingError, UnusableImage
from fgrpo.inference.decode import _truncate_top_p, invert
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.policy import loading, tokens
from miniworld import questions
from miniworld.render import render

BACKBONE = "miniworld/backbone"
LOGPROB_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def sampler() -> TransformersSampler:
    torch.set_num_threads(1)
    return TransformersSampler.load(BACKBONE, batch_size=64)


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> list[Request]:
    """Greedy requests with one and two pictures, and prompts of several lengths."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(5)
    made = []
    for n, family in enumerate(["hrel", "view", "count", "depth", "nearer", "moved", "vrel", "behind"]):
        question = questions.make(family, rng)
        paths = []
        for k, scene in enumerate(question.scenes):
            render(scene, rng).save(folder / f"{n}-{k}.png")
            paths.append(str(folder / f"{n}-{k}.png"))
        made.append(Request(tuple(paths), question.text, "<think>", max_new_tokens=24, temperature=0.0))
    return made


def ask(sampler: TransformersSampler, asked: Sequence[Request]) -> list[Sequence[Completion]]:
    async def gather() -> list[Sequence[Completion]]:
        return list(await asyncio.gather(*(sampler.sample(request) for request in asked)))

    return asyncio.run(gather())


def test_greedy_equals_the_librarys_generate(sampler: TransformersSampler, requests: list[Request]) -> None:
    pictures = [open_rgb(path) for request in requests for path in request.images]
    rendered = [loading.render_prompt(sampler.processor, r.images, r.text, r.prefix) for r in requests]
    inputs = sampler.processor(text=rendered, images=pictures, padding=True, padding_side="left", return_tensors="pt")
    forbidden = list(sampler.vocabulary.forbidden)
    ids = sampler.model.generate(**inputs, max_new_tokens=24, do_sample=False, suppress_tokens=forbidden)
    for row, (ours,) in zip(ids[:, inputs["input_ids"].shape[1] :].tolist(), ask(sampler, requests), strict=True):
        assert list(ours.token_ids) == row[: len(ours.token_ids)]
        assert len(ours.token_ids) == 24 or ours.token_ids[-1] in sampler.vocabulary.eos


def test_prompt_ids_are_the_processors(sampler: TransformersSampler, requests: list[Request]) -> None:
    for request in requests:
        rendered = loading.render_prompt(sampler.processor, request.images, request.text, request.prefix)
        inputs = sampler.processor(text=[rendered], images=[open_rgb(p) for p in request.images], return_tensors="pt")
        counts = [int(grid.prod()) // 4 for grid in inputs["image_grid_thw"]]
        assert loading.tokenize_prompt(sampler.processor, rendered, counts) == inputs["input_ids"][0].tolist()


def test_a_prompt_without_pictures(sampler: TransformersSampler, requests: list[Request]) -> None:
    bare = replace(requests[0], images=())
    alone = ask(sampler, [bare])[0][0]
    beside_pictures = ask(sampler, [requests[1], bare])[1][0]
    assert alone.token_ids == beside_pictures.token_ids


def test_batching_changes_nothing(sampler: TransformersSampler, requests: list[Request]) -> None:
    hot = [replace(r, temperature=1.0, top_p=0.95 if n % 2 else 1.0, seed=n, n=3) for n, r in enumerate(requests)]
    asked = [*requests, *hot]
    together = ask(sampler, asked)
    for request, answers in zip(asked, together, strict=True):
        (alone,) = ask(sampler, [request])
        assert [c.token_ids for c in alone] == [c.token_ids for c in answers]


def test_seeds(sampler: TransformersSampler, requests: list[Request]) -> None:
    hot = replace(requests[0], temperature=1.5, n=6, seed=1)
    (first,), (again,), (other,) = ask(sampler, [hot]), ask(sampler, [hot]), ask(sampler, [replace(hot, seed=2)])
    texts = [c.text for c in first]
    assert texts == [c.text for c in again]
    assert texts != [c.text for c in other]
    assert len(set(texts)) > 1, "continuations of one request share their random numbers"
    (more,) = ask(sampler, [replace(hot, n=8)])
    assert texts == [c.text for c in more][:6]
    unseeded = replace(hot, seed=None)
    assert [c.text for c in ask(sampler, [unseeded])[0]] != [c.text for c in ask(sampler, [unseeded])[0]]


def test_stop_strings_stay_and_the_text_carries_on_from_there(
    sampler: TransformersSampler, requests: list[Request]
) -> None:
    stopping = [replace(r, stop=("\n", "</think>", "</answer>"), max_new_tokens=60) for r in requests]
    tokenizer = sampler.processor.tokenizer
    for request, (step,) in zip(stopping, ask(sampler, stopping), strict=True):
        assert step.finish == "stop"
        assert step.text.endswith(request.stop)
        assert sum(step.text.count(s) for s in request.stop) == 1
        assert tokenizer.decode(list(step.token_ids)) == step.text
        prompt = tokenizer(request.prefix)["input_ids"]
        assert tokenizer(request.prefix + step.text)["input_ids"] == [*prompt, *step.token_ids]
    whole = [replace(r, stop=("</answer>",), max_new_tokens=80) for r in requests]
    first = [s[0] for s in ask(sampler, stopping)]
    rest = ask(sampler, [replace(w, prefix=w.prefix + s.text) for w, s in zip(whole, first, strict=True)])
    for (full,), step, (tail,) in zip(ask(sampler, whole), first, rest, strict=True):
        assert full.text.startswith(step.text)
        assert full.text == step.text + tail.text or full.finish == "length"


def test_a_full_turn_ends_with_stop_and_no_special_text(sampler: TransformersSampler, requests: list[Request]) -> None:
    (direct,) = ask(sampler, [replace(requests[0], prefix="<answer>")])[0]
    assert direct.finish == "stop"
    assert direct.text.endswith("</answer>")
    assert direct.token_ids[-1] in sampler.vocabulary.eos
    assert len(direct.token_ids) == len(direct.logprobs)


def test_logprobs_equal_a_plain_forward(sampler: TransformersSampler, requests: list[Request]) -> None:
    """Of the model's plain distribution, though sampled at another temperature, cut and restricted."""
    asked = [replace(r, temperature=0.7, top_p=0.9, seed=4, n=2) for r in requests[:4]]
    for request, answers in zip(asked, ask(sampler, asked), strict=True):
        rendered = loading.render_prompt(sampler.processor, request.images, request.text, request.prefix)
        inputs = sampler.processor(text=[rendered], images=[open_rgb(p) for p in request.images], return_tensors="pt")
        start = inputs["input_ids"].shape[1]
        for completion in answers:
            new = torch.tensor([completion.token_ids])
            grown = {
                "input_ids": torch.cat([inputs["input_ids"], new], dim=1),
                "mm_token_type_ids": torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, new.shape[1])),
                "pixel_values": inputs["pixel_values"],
                "image_grid_thw": inputs["image_grid_thw"],
            }
            with torch.no_grad():
                logits = sampler.model(**grown).logits[0, start - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, new[0][:, None])[:, 0]
            difference = (expected - torch.tensor(completion.logprobs)).abs().max().item()
            assert difference < LOGPROB_TOLERANCE


def test_special_tokens_are_never_sampled(sampler: TransformersSampler, requests: list[Request]) -> None:
    forbidden = set(loading.forbidden_token_ids(sampler.processor.tokenizer, len(sampler.vocabulary.pieces)))
    assert sampler.model.config.image_token_id in forbidden
    assert sampler.processor.tokenizer.eos_token_id not in forbidden
    assert forbidden == set(tokens.forbidden_token_ids(BACKBONE))
    hot = replace(requests[0], temperature=50.0, n=64, seed=0, max_new_tokens=40)
    sampled = {token for completion in ask(sampler, [hot])[0] for token in completion.token_ids}
    assert len(sampled) > 300, "the temperature was not high enough to see anything"
    assert not sampled & forbidden


def test_requests_that_cannot_be_served_fail_alone(
    sampler: TransformersSampler, requests: list[Request], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    good = requests[0]
    bad = {
        "missing.png": replace(good, images=(str(tmp_path / "missing.png"),)),
        "broken.png": replace(good, images=(str(broken),)),
        "exceed": replace(good, max_new_tokens=100_000),
        "<|image_pad|>": replace(good, text="What is <|image_pad|>?"),
        "n=0": replace(good, n=0),
        "top_p": replace(good, top_p=0.0),
        "stop string": replace(good, stop=("",)),
    }

    async def gather() -> list[object]:
        return list(await asyncio.gather(*(sampler.sample(r) for r in [*bad.values(), good]), return_exceptions=True))

    *errors, fine = asyncio.run(gather())
    for word, error in zip(bad, errors, strict=True):
        assert isinstance(error, SamplingError), (word, error)
        assert word in str(error)
    assert isinstance(fine, list)


def test_a_changed_picture_is_seen_again(sampler: TransformersSampler, requests: list[Request], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    scene = questions.make("hrel", random.Random(8)).scenes[0]
    render(scene).save(path)
    request = replace(requests[0], images=(str(path),))
    before = ask(sampler, [request])[0][0].logprobs
    open_rgb(path).transpose(0).rotate(90).resize((112, 112)).save(path, compress_level=0)
    assert ask(sampler, [request])[0][0].logprobs != before


def test_inversion_never_gives_a_token_of_probability_zero() -> None:
    probs = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(4, -1)
    uniform = torch.tensor([0.0, 0.4999, 0.5, 1.0], dtype=torch.float64)
    assert invert(probs, uniform).tolist() == [1, 1, 3, 3]


def test_inversion_has_the_right_frequencies() -> None:
    probs = torch.tensor([0.1, 0.2, 0.0, 0.7]).expand(20_000, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))
    counts = invert(probs, uniform).bincount(minlength=4) / 20_000
    assert torch.allclose(counts.double(), torch.tensor([0.1, 0.2, 0.0, 0.7]).double(), atol=0.012)


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    probs = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.5, 0.1, 0.3, 0.1], [0.5, 0.1, 0.3, 0.1]])
    cut = _truncate_top_p(probs, torch.tensor([0.7, 0.01, 1.0]))
    assert torch.equal(cut, torch.tensor([[0.5, 0, 0.3, 0], [0.5, 0, 0, 0], [0.5, 0.1, 0.3, 0.1]]))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "neither a folder with a model"),
        ({}, "no config.json"),
        ({"config.json": "{"}, "not JSON"),
        ({"config.json": '{"model_type": "llama"}'}, "'llama'"),
        ({"config.json": '{"model_type": "qwen2_5_vl"}'}, "does not load"),
    ],
)
def test_what_is_no_policy_is_said_so(content: dict[str, str] | None, word: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=word):
        loading.load_policy(folder)


def test_vision_is_frozen_and_nothing_else() -> None:
    from miniworld.backbone_model import build

    model = build()
    frozen = loading.freeze_vision(model, projector=True)
    assert frozen == sum(p.numel() for p in model.model.visual.parameters())
    assert all(p.requires_grad != name.startswith("model.visual.") for name, p in model.named_parameters())
    with pytest.raises(UserError, match="known model families"):
        loading.freeze_vision(torch.nn.Linear(2, 2), projector=True)


def test_the_projector_may_train_while_the_encoder_is_frozen() -> None:
    from miniworld.backbone_model import build

    model = build()
    tower = model.model.visual
    frozen = loading.freeze_vision(model, projector=False)
    assert frozen == sum(p.numel() for p in tower.parameters()) - sum(p.numel() for p in tower.merger.parameters())
    assert all(p.requires_grad for p in tower.merger.parameters())
    assert not any(p.requires_grad for p in (*tower.patch_embed.parameters(), *tower.blocks.parameters()))


def test_unusable_images_are_refused_and_the_others_of_the_batch_answered(
    sampler: TransformersSampler, requests: list[Request], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the processor refuses an image that the check lets through."""
    Image.new("RGB", (2001, 10)).save(tmp_path / "narrow.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "odd.png")
    (tmp_path / "cut.png").write_bytes(Path(requests[0].images[0]).read_bytes()[:200])
    (tmp_path / "empty.png").touch()
    process = sampler._features._image_processor

    def refusing(images: Any, **more: Any) -> Any:
        if any(image.size == (8, 8) for image in images):
            raise ValueError("odd size")
        return process(images=images, **more)

    monkeypatch.setattr(sampler._features, "_image_processor", refusing)
    names = {
        "narrow.png": "too narrow",
        "odd.png": "odd size",
        "cut.png": "cannot be decoded",
        "empty.png": "cannot be decoded",
    }
    bad = [replace(requests[0], images=(str(tmp_path / name),)) for name in names]
    asked = [requests[0], *bad, requests[1]]

    async def gather() -> list[Any]:
        return list(await asyncio.gather(*(sampler.sample(r) for r in asked), return_exceptions=True))

    first, *refused, last = asyncio.run(gather())
    assert [c.text for c in (first[0], last[0])] == [a[0].text for a in ask(sampler, requests[:2])]
    for (name, why), error in zip(names.items(), refused, strict=True):
        assert isinstance(error, UnusableImage) and name in str(error) and why in str(error)
