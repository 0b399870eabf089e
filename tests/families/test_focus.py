"""The token of every family: its row, the prompts of training, evaluation and servers that carry it, and who may not write it."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.base import Request, SamplingError, check
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.policy import focus, loading, tokens
from fgrpo.policy.backbone import Backbone
from fgrpo.policy.tokens import FOCUS
from rl import data
from tests.rl.conftest import build_trainer


@pytest.fixture(scope="session")
def anchored(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family's tiny model with the token."""
    folder = tmp_path_factory.mktemp("focus") / "model"
    focus.add(policy, folder, add_row=True)
    return folder


def embedding(folder: Path) -> torch.Tensor:
    (name,) = (n for n in load_file(folder / "model.safetensors") if n.endswith("embed_tokens.weight"))
    return load_file(folder / "model.safetensors")[name]


def test_the_row_is_the_mean_of_the_others(policy: Path, anchored: Path) -> None:
    before, after = embedding(policy), embedding(anchored)
    tokenizer = loading.load_processor(anchored).tokenizer
    index = focus.focus_id(tokenizer)
    assert index == len(loading.load_processor(policy).tokenizer) == len(tokenizer) - 1
    assert len(after) == max(len(before), index + 1)
    others = [n for n in range(len(before)) if n != index]
    assert torch.equal(before[others], after[others])
    assert torch.allclose(after[index], before[:index].mean(dim=0), atol=1e-6)
    assert loading.text_vocabulary(anchored) == len(after)
    assert (tokens.has_focus(str(policy)), tokens.has_focus(str(anchored))) == (False, True)


def test_a_model_without_a_free_row(policy: Path, tmp_path: Path) -> None:
    if len(loading.load_processor(policy).tokenizer) < len(embedding(policy)):
        focus.add(policy, tmp_path / "made")
        assert embedding(tmp_path / "made").shape == embedding(policy).shape
    else:
        with pytest.raises(
            UserError, match=r"602 rows for 602 tokens, so none is left for <\|focus\|>; set anchor.add_row"
        ):
            focus.add(policy, tmp_path / "made")
        assert not (tmp_path / "made").exists()


def test_a_model_that_has_it_keeps_its_row(anchored: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(anchored, changed)
    model, processor = loading.load_policy(anchored)
    index = focus.focus_id(processor.tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[index] += 1
    model.save_pretrained(changed)
    assert focus.add(changed, tmp_path / "again") == index
    assert torch.equal(embedding(tmp_path / "again"), embedding(changed))
    assert loading.load_processor(tmp_path / "again").chat_template == processor.chat_template


def test_each_user_turn_ends_with_it(policy: Path, anchored: Path) -> None:
    """Whatever the form of its content; other turns and the rest of the template stay as they are."""
    plain, marked = loading.load_processor(policy), loading.load_processor(anchored)
    image = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    for content in ("Where?", image, [*image, {"type": "text", "text": " Say it."}]):
        turns: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": content}]
        for more in ([], [{"role": "assistant", "content": "Left."}, {"role": "user", "content": "Sure?"}]):
            for opened in (True, False):
                given = {"tokenize": False, "add_generation_prompt": opened}
                before = plain.apply_chat_template([*turns, *more], **given)
                after = marked.apply_chat_template([*turns, *more], **given)
                head, *ends = before.split("<|im_start|>user")
                wanted = head + "".join(
                    "<|im_start|>user" + end.replace("<|im_end|>", f"{FOCUS}<|im_end|>", 1) for end in ends
                )
                assert after == wanted and after.count(FOCUS) == len(ends)


def test_it_is_one_token_that_is_never_sampled(anchored: Path, family: Backbone) -> None:
    tokenizer = loading.load_processor(anchored).tokenizer
    index = focus.focus_id(tokenizer)
    assert tokenizer(f"Where?{FOCUS}")["input_ids"][-1] == index
    assert index in loading.forbidden_token_ids(tokenizer, loading.text_vocabulary(anchored), family)
    assert index in tokens.forbidden_token_ids(str(anchored)), "by a server's client"
    assert index in TransformersSampler.load(anchored).vocabulary.forbidden
    assert FOCUS not in tokenizer.decode([index], skip_special_tokens=True)


def test_data_that_writes_it_is_refused(world: Path, tmp_path: Path) -> None:
    rows = list(read_jsonl(world / "rl.jsonl"))
    rows[0]["question"] += FOCUS
    write_jsonl(tmp_path / "rl.jsonl", rows)
    dropped: Counter[str] = Counter()
    assert len(data.read_samples(tmp_path / "rl.jsonl", dropped)) == len(rows) - 1
    assert dropped == {"special token written out in the question": 1}
    with pytest.raises(SamplingError, match="focus"):
        check(Request((), f"Where?{FOCUS}"))


def test_prompts_of_rl_evaluation_and_servers_carry_it(
    anchored: Path, family: Backbone, world: Path, tmp_path: Path
) -> None:
    """TRL's ids, those of the engine in process, and those of the template in the checkpoint, which a server renders, are one."""
    trainer = build_trainer(world, anchored, tmp_path / "out", steps=1)
    processor = loading.load_processor(anchored)
    index = focus.focus_id(processor.tokenizer)
    assert index in trainer.forbidden_ids()
    served = json.loads((anchored / "tokenizer.json").read_text())
    assert any(token["content"] == FOCUS and token["id"] == index for token in served["added_tokens"])
    template = (anchored / "chat_template.jinja").read_text()
    for count in (1, 2):
        row = next(row for row in trainer.train_dataset if len(row["images"]) == count)
        given = trainer._generate_and_score_completions([row] * 4) if count == 1 else None
        text = row["prompt"][0]["content"]
        rendered = loading.render_prompt(processor, row["images"], text)
        assert rendered == processor.apply_chat_template(
            [{"role": "user", "content": [*({"type": "image"} for _ in range(count)), {"type": "text", "text": text}]}],
            tokenize=False, add_generation_prompt=True, chat_template=template,
        )  # fmt: skip
        ids = processor(text=[rendered], images=row["images"], return_tensors="pt")["input_ids"][0].tolist()
        assert ids.count(index) == 1
        user_end = len(ids) - 1 - ids[::-1].index(index)
        assert processor.tokenizer.decode(ids[user_end + 1 :]) == "<|im_end|>\n<|im_start|>assistant\n"
        if given is not None:
            mask = given["prompt_mask"][0].bool()
            assert given["prompt_ids"][0][mask].tolist() == ids


def test_swapped_policies_show(policy: Path, anchored: Path) -> None:
    """The token comes from the checkpoint alone: without it no prompt has one."""
    rng = random.Random(1)
    for folder, count in ((policy, 0), (anchored, 1)):
        processor = loading.load_processor(folder)
        assert loading.render_prompt(processor, range(rng.randrange(3)), "Where?").count(FOCUS) == count
