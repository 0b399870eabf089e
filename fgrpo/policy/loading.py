"""Loading a policy and its processor, and what every stage must do to it in the same way.

Which tokens may be sampled (`forbidden_token_ids`), which parameters are frozen (`freeze_vision`), and the exact text of
a prompt (`render_prompt`, `tokenize_prompt`: a vLLM server renders the same messages to the same ids, which the vLLM
tests check). Facts about a model family come from `fgrpo.policy.backbone`. This module imports torch; the light parts of
the package must not import it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from fgrpo import box_forms
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.policy import backbone, model_files, plain_tags, tokens, torchvision_shim
from fgrpo.policy.backbone import Backbone
from fgrpo.policy.model_files import backbone_of
from fgrpo.policy.tokens import FORMAT_TAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
}


def ensure_torchvision() -> None:
    """Make `import torchvision` work next to a CPU torch, also where the environment's own hook is not installed."""
    torchvision_shim.install_hook()


ensure_torchvision()


def load_policy(
    path: str | Path, dtype: str = "float32", attention: str = "sdpa", bounds: PixelBounds | None = None
) -> tuple[Any, Any]:
    """The model in evaluation mode, and its processor (which pads on the left).

    Args:
        path: a saved folder, or a hub name.
        dtype: a key of `DTYPES`.
        attention: "sdpa", "eager" or "flash_attention_2" (sdpa replaces it where it is not installed).
        bounds: as `load_processor`.

    Raises:
        UserError: no such model, an unknown family, a broken configuration, or weights that do not fit it.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    family = backbone_of(path)
    attention = attention_here(attention)
    try:
        model, report = family.model_class().from_pretrained(
            str(path), dtype=DTYPES[dtype], attn_implementation=attention, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path} does not load as a {family.title}: {_line(error)}; save or download it again"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the weights that its config.json describes ({missing[0]}, …); "
            "save or download it again"
        )
    return model.eval(), load_processor(path, bounds)


@cache
def attention_here(attention: str) -> str:
    """`attention`, or "sdpa" for a flash attention that is not installed: the same function up to rounding, and slower."""
    from transformers.utils import is_flash_attn_2_available

    if attention != "flash_attention_2" or is_flash_attn_2_available():
        return attention
    print("flash-attn is not installed: using torch's own attention (sdpa)", file=sys.stderr)
    return "sdpa"


def training_dtype(precision: str, deepspeed: str | None, *, adapters: bool) -> str:
    """The dtype of a trained model's weights: a key of `DTYPES`.

    bf16 weights suffice where DeepSpeed's optimizer keeps exact ones, or where they are not trained (peft holds adapters in
    fp32). Otherwise the weights are fp32 and only the products are bf16: bf16 weights would lose a step of 1e-6.
    """
    return "bfloat16" if precision == "bf16" and (deepspeed is not None or adapters) else "float32"


def text_vocabulary(path: str | Path) -> int:
    """Rows of the output layer of the model at `path`, without loading it."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(str(path)).get_text_config().vocab_size)


def load_processor(path: str | Path, bounds: PixelBounds | None = None) -> Any:
    """The processor of a saved model, padding on the left, with the tags of the format as plain text (`plain_tags`).

    Args:
        bounds: of a resized image, in place of its own; a processor that is saved carries them.

    Raises:
        UserError: the folder has none, or a broken one.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no processor that loads: {_line(error)}; copy the base model's processor files there"
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(
            f"{path} has a tokenizer but no image processor; copy the base model's preprocessor_config.json"
        )
    processor.tokenizer.padding_side = "left"
    if bounds is not None:
        extent = {"shortest_edge": bounds.min_pixels, "longest_edge": bounds.max_pixels}
        processor.image_processor.size = type(processor.image_processor.size)(**extent)
    untrained = tokens.untrained_tags(_family(path), str(processor.chat_template or ""))
    plain_tags.make_plain(processor.tokenizer, str(path), untrained)
    return processor


def _family(path: str | Path) -> Backbone:
    """The family of the model at `path`; the default one for a folder with a processor alone."""
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        return backbone.default()
    return backbone.assumed(model_files.config_of(path).get("model_type"))


def check_template(processor: Any, name: str | Path) -> None:
    """Refuse a policy whose chat template begins the assistant's turn with tags of the answer format.

    Templates of thinking models open `<think>` there, or close an empty trace. With the former no reply is well formed; with
    the latter a reply is asked for a second trace.

    Raises:
        UserError: it does (names the tag and what to do).
    """
    turn = render_prompt(processor, (), "?").rpartition("?")[2]
    found = next((tag for tag in sorted(FORMAT_TAGS) if tag in turn), None)
    if found is not None:
        raise UserError(
            f"the chat template of {name} writes {found} at the beginning of the assistant's turn, where the policy writes its own "
            "<think>; start from an Instruct checkpoint, or replace the model's chat_template.jinja by one without it"
        )


def forbidden_token_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: int | None = None, family: Backbone | None = None
) -> list[int]:
    """Ids that sampling must never give: special and vision tokens, and ids without a text.

    The end of a turn and the tags of the format (`tokens.FORMAT_TAGS`) are allowed.

    A sampled image token makes the next forward pass fail ("Image features and image tokens do not match").

    Args:
        vocabulary: rows of the model's output layer. Ids from the tokenizer's size up to it are padding without a text.
        family: whose special tokens; None = the default family.
    """
    shape = re.compile((family or backbone.default()).special_tokens)
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special or shape.fullmatch(token.content)}
    special.update(tokenizer.all_special_ids)
    special -= {i for i, token in added.items() if token.content in FORMAT_TAGS}
    special.discard(tokenizer.eos_token_id)
    return sorted(special | set(range(len(tokenizer), vocabulary or 0)))


def check_format(tokenizer: PreTrainedTokenizerBase, forbidden: Iterable[int], box_tag: str) -> None:
    """Refuse a policy that could not write the tags that its prompt requests.

    Args:
        forbidden: ids that sampling never gives.
        box_tag: `policy.box_tag`.

    Raises:
        UserError: a token of a tag is forbidden (names the tag).
    """
    never = set(forbidden)
    for tag in ("<think>", "</think>", "<answer>", "</answer>", *box_forms.marks(box_tag)):
        if not never.isdisjoint(tokenizer(tag, add_special_tokens=False)["input_ids"]):
            raise UserError(
                f"the prompt requests {tag}, a special token of this tokenizer that must not be sampled; choose another "
                "policy.box_tag, or a tokenizer in which it is text"
            )


def freeze_vision(model: torch.nn.Module, *, projector: bool) -> int:
    """Stop gradients into the vision encoder; returns how many parameters that froze.

    Args:
        projector: whether to freeze the projectors into the language model too, which lie inside the vision tower. The
            paper's SFT trains them (Appendix A.2).

    Raises:
        UserError: an unknown family, or a model without its vision tower.
    """
    family = backbone.of_model(model)
    tower = family.vision_tower(model)
    frozen = [p for name, p in tower.named_parameters() if projector or name.split(".")[0] not in family.projectors]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(getattr(p, "ds_numel", p.numel()) for p in frozen)  # ZeRO-3 leaves 0 elements here


def render_prompt(processor: Any, images: Sequence[object], text: str, prefix: str = "") -> str:
    """The prompt as text: a user turn of the images in order and `text`, and the assistant's turn begun with `prefix`.

    Each image is one image token here. Only the number of `images` matters.
    """
    content: list[dict[str, str]] = [{"type": "image"} for _ in images]
    messages: Any = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + prefix


def tokenize_prompt(
    processor: Any, rendered: str, image_tokens: Iterable[int], family: Backbone | None = None
) -> list[int]:
    """Token ids of a rendered prompt whose images take `image_tokens` tokens each, as the processor itself gives them.

    Args:
        family: whose image token; None = the default family.

    Raises:
        ValueError: the prompt has another number of images.
    """
    token = (family or backbone.default()).image_token
    pieces = rendered.split(token)
    counts = list(image_tokens)
    if len(pieces) != len(counts) + 1:
        raise ValueError(f"the prompt has places for {len(pieces) - 1} images, got {len(counts)} images")
    full = pieces[0] + "".join(token * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
    return list(processor.tokenizer(full)["input_ids"])


def device() -> Literal["cuda", "cpu"]:
    """Where models run by default."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _line(error: BaseException) -> str:
    """The first line of a library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
