"""Tokenizers that declare the tags of the format as special tokens: the tags are text for training, sampling and decoding."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from fgrpo.errors import UserError
from fgrpo.inference.base import Request
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.transformers_engine import TransformersSampler, vocabulary_of
from fgrpo.policy import loading, plain_tags, tokens

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TEXT = "<think>a</think><answer>b</answer>"


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """The shipped backbone, with the tags of the format as special tokens."""
    folder = tmp_path / "tagged"
    shutil.copytree(BACKBONE, folder, copy_function=os.link)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        data = json.loads((folder / name).read_text())
        if name == "tokenizer.json":
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            ids = data["model"]["vocab"]
            data["added_tokens"] += [{"id": ids[tag], "content": tag, **flags, "special": True} for tag in TAGS]
            data["added_tokens"].sort(key=lambda token: token["id"])
        else:
            data["extra_special_tokens"] += TAGS
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(data))
    return folder


def test_the_tags_are_text_in_a_loaded_processor(tagged: Path, tmp_path: Path) -> None:
    plain = loading.load_processor(BACKBONE).tokenizer
    processor = loading.load_processor(tagged)
    ids = plain(TEXT)["input_ids"]
    for saved in (tagged, tmp_path / "saved"):
        tokenizer = loading.load_processor(saved).tokenizer if saved.exists() else None
        if tokenizer is None:  # as a stage saves it
            processor.save_pretrained(saved)
            shutil.copy(BACKBONE / "config.json", saved)
            tokenizer = loading.load_processor(saved).tokenizer
        assert tokenizer(TEXT)["input_ids"] == ids and tokenizer.decode(ids, skip_special_tokens=True) == TEXT
        assert not set(ids) & set(tokenizer.all_special_ids)
        assert loading.forbidden_token_ids(tokenizer, 602) == loading.forbidden_token_ids(plain, 602)
        assert tokens.forbidden_token_ids(str(saved)) == tokens.forbidden_token_ids(str(BACKBONE))
        vocabulary = vocabulary_of(tokenizer, 602)
        assert b"".join(vocabulary.pieces[i] for i in ids).decode() == TEXT
        assert not set(ids) & set(vocabulary.forbidden)
    tokens.check_served_tags(str(tmp_path / "saved"))


def test_the_transformers_engine_gives_the_same_text(tagged: Path) -> None:
    texts = []
    for folder in (BACKBONE, tagged):
        sampler = TransformersSampler.load(folder)
        (completion,) = asyncio.run(sampler.sample(Request((), "Is it red?", max_new_tokens=60, temperature=0.0)))
        texts.append(completion.text)
    assert texts[0] == texts[1] and "</think><answer>" in texts[0]


def test_a_server_that_would_drop_the_tags_is_refused_at_the_start(tagged: Path) -> None:
    for check in (
        tokens.check_served_tags,
        lambda name: OpenAISampler(["http://x"], "m", tokenizer=name)._read_forbidden(),
    ):
        with pytest.raises(UserError, match=r"<answer>.* are special tokens .*plain_tags .*tagged"):
            check(str(tagged))
    tokens.check_served_tags(str(BACKBONE))


def test_the_command_rewrites_a_models_files(tagged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain_tags._main(argparse.Namespace(folder=[str(tagged)]))
    assert "are plain text" in capsys.readouterr().out
    tokens.check_served_tags(str(tagged))
    assert tokens.forbidden_token_ids(str(tagged)) == tokens.forbidden_token_ids(str(BACKBONE))


@pytest.mark.parametrize("role", ["eos_token", "pad_token"])
def test_a_tag_that_must_be_special_is_refused(tagged: Path, role: str) -> None:
    path = tagged / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), role: "</answer>"}))
    with pytest.raises(UserError, match=f"uses the tag '</answer>' .* as its {role}"):
        loading.load_processor(tagged)


def test_other_tokenizers_stay_as_they_are() -> None:
    tokenizer = loading.load_processor(BACKBONE).tokenizer
    before = tokenizer._tokenizer
    assert plain_tags.make_plain(tokenizer, "x") == () and tokenizer._tokenizer is before


def test_a_format_that_cannot_be_sampled_is_refused(tagged: Path) -> None:
    """As RL checks it before it trains: other tags may be special tokens too."""
    for folder in (BACKBONE, tagged):
        tokenizer = loading.load_processor(folder).tokenizer
        forbidden = loading.forbidden_token_ids(tokenizer, 602)
        for form in ("bbox", "box", "bbox_2d"):
            loading.check_format(tokenizer, forbidden, form)
        with pytest.raises(UserError, match=r"requests <\|box_start\|>"):
            loading.check_format(tokenizer, forbidden, "box_start")
        with pytest.raises(UserError, match="requests <think>"):
            loading.check_format(tokenizer, [*forbidden, *tokenizer("<think>")["input_ids"]], "bbox")
