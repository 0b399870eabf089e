"""The forward pass of the backbone's training equals the real model's on the real processor's output."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fgrpo.policy import loading  # noqa: E402
from miniworld import backbone_model as bm  # noqa: E402
from miniworld import fast  # noqa: E402
from miniworld import questions as qs  # noqa: E402
from miniworld.render import render  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    bm.save(bm.build(seed=1), folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved: Path) -> tuple[Any, Any]:
    return loading.load_policy(saved)


def prepare(processor: Any, family: str) -> tuple[qs.Question, list[Any], str]:
    rng = random.Random(family)
    q = qs.make(family, rng)
    images = [render(scene, rng) for scene in q.scenes]
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": q.text}]
    message = [{"role": "user", "content": content}]
    return q, images, processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("family", ["hrel", "view"])
def test_loss_equals_the_full_forward(loaded: tuple[Any, Any], family: str) -> None:
    model, processor = loaded
    codec = fast.Codec()
    q, images, text = prepare(processor, family)
    inputs = processor(text=[text + qs.trace(q)], images=images, return_tensors="pt")
    ids = [*codec.prompt(q.text, len(images)), *codec.encode(qs.trace(q))]
    assert inputs["input_ids"][0].tolist() == ids
    pixels = fast.pixel_values(images).flatten(0, 1)
    torch.testing.assert_close(pixels, inputs["pixel_values"], atol=1e-6, rtol=0)
    features = fast.features_of(model.model.visual, images)
    full = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
    torch.testing.assert_close(features.flatten(0, 1), full, atol=1e-5, rtol=1e-5)
    batch = fast.Batch(codec, [ids, ids[:-7]], [ids, ids[:-7]])  # the second row is padded
    real, _ = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])
    assert torch.equal(batch.positions_3BN[:, :1], real)
    loss = fast.language_loss(model, batch, fast.embed(model, batch, features.repeat(2, 1, 1)))
    logits = model(**inputs).logits[0]
    targets = [*ids[1:], *ids[1:-7]]
    expected = torch.nn.functional.cross_entropy(torch.cat([logits[:-1], logits[:-8]]), torch.tensor(targets))
    assert abs(loss.item() - expected.item()) < 1e-5


def test_generation_equals_transformers(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    codec = fast.Codec()
    prepared = [prepare(processor, family) for family in ("hrel", "count")]
    prompts = [codec.prompt(q.text, len(images)) for q, images, _ in prepared]
    features = fast.features_of(model.model.visual, [image for _, images, _ in prepared for image in images])
    generated = fast.generate(model, codec, prompts, features, 6)
    for (_, images, text), new in zip(prepared, generated, strict=True):
        inputs = processor(text=[text], images=images, return_tensors="pt")
        banned = [[t] for t in codec.special if t != codec.end]
        out = model.generate(**inputs, max_new_tokens=6, do_sample=False, bad_words_ids=banned)
        theirs = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert new == [t for t in theirs if t != codec.end]


def test_reloads_bit_for_bit_with_the_template_of_trl(saved: Path, loaded: tuple[Any, Any]) -> None:
    from trl import chat_template_utils

    model, processor = loaded
    assert processor.chat_template == chat_template_utils.qwen2_5_vl_chat_template
    assert processor.tokenizer.padding_side == "left"
    fresh = bm.build(seed=1).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in model.state_dict().items())
    config = model.config
    assert config.vision_config.out_hidden_size == config.text_config.hidden_size
    assert len(processor.tokenizer) == config.text_config.vocab_size
