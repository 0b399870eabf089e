"""What a family's file says is what transformers, the processor and the chat template say; boxes survive the way through a reply."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from fgrpo.boxes import convert, iou, model_size
from fgrpo.config import CONFIGS, load
from fgrpo.errors import UserError
from fgrpo.images import image_tokens
from fgrpo.inference.serve import order
from fgrpo.inference.transformers_engine import vocabulary_of
from fgrpo.policy import backbone, loading, model_files, plain_tags, tokens
from fgrpo.policy.backbone import Backbone
from fgrpo.response import parse
from fgrpo.types import Box
from ops.model_checks import frames
from tests.families.conftest import config_of, written

SIZES = ((640, 480), (4000, 3000), (333, 1024), (97, 31), (1500, 60))
TEXT = "<think>a</think><answer>b</answer>"


def test_every_family_has_a_tiny_model() -> None:
    here = Path(__file__).parent
    missing = [name for name in backbone.names() if not (here / f"{name}.py").is_file()]
    assert not missing, f"write tests/families/<name>.py for {missing} (docs/backbones.md)"


def test_the_familys_file_is_what_transformers_and_the_template_say(family: Backbone, policy: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(policy)
    assert backbone.of_model(SimpleNamespace(config=config)) is family is model_files.backbone_of(policy)
    assert AutoModelForImageTextToText._model_mapping[type(config)] is family.model_class()
    assert type(config) is family.config_class()
    model, processor = loading.load_policy(policy)
    image = processor.image_processor
    assert family.pixels.factor == image.patch_size * image.merge_size
    assert family.patches_per_token(family.vision_tower(model)) == image.merge_size**2
    assert processor.tokenizer.convert_ids_to_tokens(family.image_token_id(config)) == family.image_token
    assert family.image_token_id(processor) == family.image_token_id(config)
    shape = re.compile(family.special_tokens)
    texts = processor.tokenizer.convert_ids_to_tokens(sorted(family.vision_token_ids(config)))
    assert len(texts) == 2 + len(family.marker_attributes) and all(shape.fullmatch(text) for text in texts)
    names = [name for name, _ in model.named_parameters()]
    assert any(f".{family.language}." in name for name in names)
    assert family.vision_tower(model) is dict(model.named_modules())[f"model.{family.vision}"]
    frozen = loading.freeze_vision(model, projector=False)
    left = {name for name, p in model.named_parameters() if family.is_vision(name) and p.requires_grad}
    assert frozen and left == {name for name in names if family.is_projector(name)}
    assert {name.split(f".{family.vision}.")[1].split(".")[0] for name in left} == set(family.projectors)
    prompt = loading.render_prompt(processor, ["an image"], "Where?")
    assert prompt.count(family.image_token) == 1
    bare = loading.render_prompt(processor, [], "Where?")
    around = len(processor.tokenizer(prompt)["input_ids"]) - len(processor.tokenizer(bare)["input_ids"])
    assert around == len(family.marker_attributes) + 1, "the tokens around an image, and the image's placeholder"
    assert family.grid_field in image(images=[Image.new("RGB", (56, 56))])


def test_published_checkpoints_have_the_familys_bounds_and_class(family: Backbone) -> None:
    """Each file of configs/shapes of the family builds its real class (on the meta device)."""
    from ops import memory_estimate

    shapes = [
        p for p in (CONFIGS / "shapes").glob("*.json") if json.loads(p.read_text())["model_type"] == family.model_type
    ]
    assert shapes, "make plan needs the published shapes"
    for path in shapes:
        shape = memory_estimate.shape_of(path.stem)
        billions = float(re.search(r"(\d+)B", path.stem).group(1))  # type: ignore[union-attr]
        assert 0.9 * billions < shape.parameters / 1e9 < 1.35 * billions, path
        assert shape.encoder > shape.projector > 0


@pytest.mark.parametrize("size", SIZES)
def test_a_box_survives_the_way_through_a_reply(
    family: Backbone, policy: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    """From pixels of the file to the policy's frame, as text, parsed, and back; the frames' sizes are the processor's."""
    path = tmp_path / "x.png"
    Image.new("RGB", size).save(path)
    bounds = model_files.pixel_bounds(policy)
    seen = model_size(size, *bounds)
    _, processor = loading.load_policy(policy)
    grid = processor.image_processor(images=[Image.open(path)])[family.grid_field][0]
    side = processor.image_processor.patch_size
    assert (int(grid[2]) * side, int(grid[1]) * side) == seen
    assert image_tokens(str(path), bounds) == int(grid.prod()) // processor.image_processor.merge_size**2
    width, height = size
    truth = Box(0.1234 * width, 0.2345 * height, 0.6789 * width, 0.8765 * height, "original")
    said = f"<think>It is at {written(truth, family.box_frame, size, policy)}.</think><answer>A</answer>"
    (box,) = parse(said, frame=family.box_frame).boxes
    assert box.frame == family.box_frame
    back = convert(box, "original", size, seen)
    step = (1000, 1000) if family.box_frame == "thousand" else seen
    for got, wanted, extent, steps in zip(back, truth, (width, height) * 2, (*step, *step), strict=True):
        assert abs(got - wanted) <= 0.5 * extent / steps + 1e-9
    other = "model" if family.box_frame == "thousand" else "thousand"
    (wrong,) = parse(said, frame=other).boxes
    print(f"{family.model_type} {size}: seen as {seen}, IoU {iou(back, truth):.4f}")
    assert iou(convert(wrong, "original", size, seen), truth) < 0.95 * iou(back, truth), (
        "the other frame is another box"
    )


def test_the_tags_of_the_format_are_tokens_that_the_checkpoint_knows(
    family: Backbone, policy: Path, tmp_path: Path
) -> None:
    """In a loaded processor, in what a stage saves, in what a server is given; and none of them is forbidden."""
    tokenizer = loading.load_processor(policy).tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    rows = config_of(policy)["text_config"]["vocab_size"]
    untrained = tokens.untrained_ids(str(policy))
    raw = {token["content"] for token in json.loads((policy / "tokenizer.json").read_text())["added_tokens"]}
    assert len(untrained) == len(raw & set(family.untrained_tags)) == len(family.untrained_tags)
    forbidden = loading.forbidden_token_ids(tokenizer, rows, family)
    assert forbidden == list(tokens.forbidden_token_ids(str(policy)))
    assert set(untrained) <= set(forbidden) and not set(ids) & set(forbidden)
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT
    vocabulary = vocabulary_of(tokenizer, rows, family)
    assert len(vocabulary.pieces) == rows and b"".join(vocabulary.pieces[i] for i in ids).decode() == TEXT
    loading.check_format(tokenizer, forbidden, "bbox")
    copy = plain_tags.plain_copy(str(policy), tmp_path / "plain")
    assert (copy is None) == (not family.untrained_tags)
    saved = tmp_path / "saved"
    loading.load_processor(policy).save_pretrained(saved)
    for folder in (saved, *([Path(copy)] if copy else [])):
        from transformers import AutoTokenizer

        shutil.copy(policy / "config.json", folder)
        assert AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] == ids  # as a server reads it
        again = loading.load_processor(folder)
        assert again.tokenizer(TEXT)["input_ids"] == ids and tokens.untrained_ids(str(folder)) == ()
        assert list(tokens.forbidden_token_ids(str(folder))) == forbidden
        assert again.chat_template == loading.load_processor(policy).chat_template


@pytest.mark.parametrize("begins", ["<think>\\n", "<think>\\n\\n</think>\\n\\n"])
def test_a_template_that_opens_or_closes_the_trace_is_refused(policy: Path, tmp_path: Path, begins: str) -> None:
    """Thinking checkpoints; their tags are tokens that they know, and stay."""
    folder = tmp_path / "thinking"
    shutil.copytree(policy, folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text() + "{%- if add_generation_prompt %}{{- '" + begins + "' }}{%- endif %}")
    processor = loading.load_processor(folder)
    with pytest.raises(UserError, match=r"chat template of .* writes <(/?)think> .* Instruct checkpoint"):
        loading.check_template(processor, folder)
    assert tokens.untrained_ids(str(folder)) == () or "</think>" not in begins
    loading.check_template(loading.load_processor(policy), policy)


def test_a_server_of_the_base_model_gets_plain_tags(family: Backbone, policy: Path, tmp_path: Path) -> None:
    """`make serve-base`; what our stages save is served as it is."""
    config = load("mini", overrides=[f"models.base={policy}"])
    flags = order(config, "base", [], root=tmp_path).flags
    assert ("--tokenizer" in flags) == bool(family.untrained_tags)
    if family.untrained_tags:
        folder = Path(flags[flags.index("--tokenizer") + 1])
        assert (
            loading.load_processor(folder).tokenizer(TEXT)["input_ids"]
            == loading.load_processor(policy).tokenizer(TEXT)["input_ids"]
        )
    saved = tmp_path / "mini" / "sft" / "final"
    shutil.copytree(policy, saved)
    loading.load_processor(policy).save_pretrained(saved)
    assert "--tokenizer" not in order(config, "rollouts", [], root=tmp_path).flags


def test_the_doctor_compares_the_frames(family: Backbone, policy: Path) -> None:
    for frame in ("model", "thousand"):
        config = load("mini", overrides=[f"models.base={policy}", f"policy.box_frame={frame}"])
        base, _ = frames(config)
        assert (base.state == "ok") == (frame == family.box_frame)
        assert base.state == "ok" or f"policy.box_frame={family.box_frame}" in base.advice
