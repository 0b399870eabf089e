"""A model family is one file, and every module asks it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fgrpo.boxes import PixelBounds, model_size
from fgrpo.errors import UserError
from fgrpo.images import image_tokens
from fgrpo.policy import adapters, backbone, backbones, loading, model_files, tokens
from fgrpo.schema_base import Lora

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "miniworld" / "backbone"
TOY = """
from fgrpo.boxes import PixelBounds
from fgrpo.policy.backbone import Backbone

BACKBONE = Backbone(
    model_type="toy_vl",
    title="Toy-VL",
    model_class_name="GPT2LMHeadModel",
    config_class_name="GPT2Config",
    pixels=PixelBounds(32**2, 4 * 32**2, 32),
    processor_files=("toy_processor.json",),
    vision="eyes",
    projectors=("bridge",),
    language="words",
    image_token="[IMG]",
    image_token_attribute="picture_id",
    video_token_attribute=None,
    marker_attributes=("picture_end_id",),
    grid_field="patches",
    special_tokens=r"\\[[A-Z]+\\]",
    lora_projections=("c_attn",),
)
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> backbone.Backbone:
    """A second family, by its file alone."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "toy_vl.py").write_text(TOY)
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(folder)])
    return backbone.lookup("toy_vl")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved toy model: small files, no weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy_vl", "vocab_size": 6}))
    (folder / "toy_processor.json").write_text(json.dumps({"min_pixels": 2048, "max_pixels": 4096}))
    added = [
        {"id": n, "content": text, "special": False} for n, text in ((2, "[IMG]"), (3, "<|im_end|>"), (4, "[EOS]"))
    ]
    vocabulary = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[EOS]"}))
    return folder


def test_a_second_family_is_found_by_its_file(toy: backbone.Backbone) -> None:
    assert backbone.names() == ["qwen2_5_vl", "qwen3_vl", "toy_vl"]
    assert backbone.assumed("toy_vl") is toy and backbone.assumed("unheard_of") is backbone.default()


def test_sizes_and_token_counts_of_images_are_the_familys(toy: Any, saved: Path, tmp_path: Path) -> None:
    bounds = model_files.pixel_bounds(saved)
    assert bounds == PixelBounds(2048, 4096, 32)
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 40)).save(path)
    assert model_size((64, 40), *bounds) == (64, 32)
    mini = model_files.pixel_bounds(MINI)
    assert image_tokens(str(path), bounds) == 2 * 1
    assert image_tokens(str(path), mini) == 2 * 1  # 56 x 28 pixels, 28 per token
    assert toy.prompt_tokens(str(path), bounds) == 2 + 1  # one token ends an image
    assert model_files.assumed_family(MINI).prompt_tokens(str(path), mini) == 2 + 2
    assert model_files.assumed_family(saved) is toy and model_files.assumed_family("served") is backbone.default()
    (saved / "toy_processor.json").unlink()
    with pytest.raises(UserError, match=r"has none of toy_processor\.json"):
        model_files.pixel_bounds(saved)


def test_forbidden_and_written_out_tokens_are_the_familys(toy: Any, saved: Path) -> None:
    assert tokens.forbidden_token_ids(str(saved)) == (
        2,
        5,
    )  # [IMG], and a row without a token; <|im_end|> is plain text
    assert tokens.special_token("look at [IMG]") == "[IMG]" and tokens.special_token("a <|im_end|>") == "<|im_end|>"
    added = {
        2: SimpleNamespace(special=False, content="[IMG]"),
        3: SimpleNamespace(special=False, content="<|im_end|>"),
    }

    class Tokenizer:
        added_tokens_decoder, all_special_ids, eos_token_id = added, [4], 4

        def __len__(self) -> int:
            return 5

        def __call__(self, text: str) -> dict[str, str]:
            return {"input_ids": text}

    tokenizer: Any = Tokenizer()
    assert loading.forbidden_token_ids(tokenizer, 6, toy) == [2, 5]
    assert loading.forbidden_token_ids(tokenizer, 6) == [3, 5]
    processor = SimpleNamespace(tokenizer=tokenizer)
    assert "".join(map(str, loading.tokenize_prompt(processor, "a[IMG]b", [3], toy))) == "a[IMG][IMG][IMG]b"
    config = SimpleNamespace(picture_id=2, picture_end_id=7)
    assert toy.placeholder_ids(config) == {2} and toy.vision_token_ids(config) == {2, 7}


def test_classes_vision_tower_and_adapters_are_the_familys(toy: Any, saved: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    assert (toy.model_class(), toy.config_class()) == (GPT2LMHeadModel, GPT2Config)
    assert model_files.backbone_of(saved) is toy

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(model_type="toy_vl")
            self.eyes = torch.nn.ModuleDict({"lens": torch.nn.Linear(2, 2), "bridge": torch.nn.Linear(2, 3)})
            self.words = torch.nn.ModuleDict({"c_attn": torch.nn.Linear(3, 3)})

    model = Model()
    assert loading.freeze_vision(model, projector=False) == 6
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["eyes.lens.weight", "eyes.lens.bias"]
    assert toy.is_projector("eyes.bridge.weight") and not toy.is_vision("words.c_attn.weight")
    pattern = adapters.lora_config(Lora(rank=1, alpha=1, dropout=0.0), toy).target_modules
    assert re.fullmatch(pattern, "model.words.0.c_attn") and not re.fullmatch(pattern, "model.eyes.0.c_attn")
    assert toy.vllm_limits(3) == {"image": 3}


def test_an_unknown_family_is_refused_with_the_names_of_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"is of type 'llama'; known model families: qwen2_5_vl"):
        loading.load_policy(tmp_path)


def test_positions_take_the_grids_under_the_familys_name(toy: Any) -> None:
    given: dict[str, Any] = {}
    rope = SimpleNamespace(get_rope_index=lambda ids, **more: given.update(more) or ("positions", None))
    is_image: Any = SimpleNamespace(int=lambda: 1)
    assert toy.positions(SimpleNamespace(model=rope), None, is_image, "grids", "mask") == "positions"
    assert given["patches"] == "grids"


def test_no_other_module_holds_a_fact_about_a_family() -> None:
    """Prose may name Qwen2.5-VL; class names, token texts and attribute names belong to the family's file."""
    facts = re.compile(
        r"Qwen2_5_VL|Qwen2VL|<\|(?:image_pad|video_pad|vision_start|vision_end)\|>|qwen2_5_vl|['\"]merger|\bmodel\.visual\b"
        r"|get_image_features|get_rope_index|video_token_id|vision_start_token_id|spatial_merge_size"
        r"|image_grid_thw"
    )
    packages = ("data_curation", "eval", "fgrpo", "judges", "mcts", "ops", "perf", "rewards", "rl", "scripts", "sft")
    faults = []
    for path in sorted(p for package in packages for p in (ROOT / package).rglob("*.py")):
        if backbones.__name__.replace(".", "/") in path.as_posix() or path.name == "backbone.py":
            continue
        if (
            "rehearsal_paper" in path.parts or path.name == "stand_in.py"
        ):  # models of the paper's family with random weights
            continue
        faults += [f"{path.relative_to(ROOT)}: {m.group(0)}" for m in facts.finditer(path.read_text(encoding="utf-8"))]
    assert not faults
