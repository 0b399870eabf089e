"""Loading a Qwen2.5-VL policy and its processor, and the few facts about it that every stage must agree on.

Which tokens may be sampled (`forbidden_token_ids`), which parameters stay as they are (`freeze_vision`), and the exact
text a prompt becomes (`render_prompt`, `tokenize_prompt`: a vLLM server renders the same messages to the same ids, which
the vLLM tests check). This module imports torch; the light parts of the package must not import it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from fgrpo import torchvision_shim
from fgrpo.errors import UserError
from fgrpo.policy.model_files import check_policy
from fgrpo.policy.tokens import SPECIAL_SHAPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
}
IMAGE_TOKEN = "<|image_pad|>"
PROJECTOR = "merger."  # Qwen2.5-VL's, inside `visual`


def ensure_torchvision() -> None:
    """Make `import torchvision` work beside a CPU torch, also where the environment's own hook is not installed."""
    torchvision_shim.install_hook()


ensure_torchvision()


def load_policy(
    path: str | Path, dtype: str = "float32", attention: str = "sdpa"
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """The model in evaluation mode, and its processor (which pads on the left).

    Args:
        path: a saved folder, or a hub name.
        dtype: a key of `DTYPES`.
        attention: "sdpa", "eager" or "flash_attention_2" (which is sdpa where it is not installed).

    Raises:
        UserError: nothing there, not a Qwen2.5-VL, a broken configuration or weights that do not fit it.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    check_policy(path)
    attention = attention_here(attention)
    try:
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            str(path), dtype=DTYPES[dtype], attn_implementation=attention, output_loading_info=True
        )
        model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} does not load as a Qwen2.5-VL: {_line(error)}; save or download it again") from error
    lost = sorted(report["missing_keys"])
    if lost:
        raise UserError(
            f"{path} lacks {len(lost)} of the weights its config.json speaks of ({lost[0]}, …); save or download it again"
        )
    return model.eval(), load_processor(path)


@cache
def attention_here(wanted: str) -> str:
    """`wanted`, or "sdpa" for a flash attention that is not installed: the same function to rounding, and slower."""
    from transformers.utils import is_flash_attn_2_available

    if wanted != "flash_attention_2" or is_flash_attn_2_available():
        return wanted
    print("flash-attn is not installed: attention is torch's own (sdpa)", file=sys.stderr)
    return "sdpa"


def training_dtype(precision: str, deepspeed: str | None, *, adapters: bool) -> str:
    """The kind of number in which a model that is trained is held: a key of `DTYPES`.

    bf16 weights are enough where something else keeps the exact ones (DeepSpeed's optimizer) or they are not trained
    (adapters, which peft holds in fp32). Else they are fp32, and only the products are bf16: a step of 1e-6 would be lost.
    """
    return "bfloat16" if precision == "bf16" and (deepspeed is not None or adapters) else "float32"


def text_vocabulary(path: str | Path) -> int:
    """Rows of the output layer of the model at `path`, without loading it."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(str(path)).get_text_config().vocab_size)


def load_processor(path: str | Path) -> Qwen2_5_VLProcessor:
    """The processor of a saved model, padding on the left.

    Raises:
        UserError: the folder has none, or a broken one.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has no processor that loads: {_line(error)}; copy the base model's beside it"
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise UserError(
            f"{path} has a tokenizer but no image processor; copy the base model's preprocessor_config.json"
        )
    processor.tokenizer.padding_side = "left"
    return processor


def forbidden_token_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int | None = None) -> list[int]:
    """Ids that sampling must never give: special and vision tokens except the end of a turn, and ids without a text.

    A sampled `<|image_pad|>` makes the next forward pass die ("Image features and image tokens do not match").

    Args:
        vocabulary: rows of the model's output layer; ids from the tokenizer's size up to it are padding without a text.
    """
    added = tokenizer.added_tokens_decoder
    special = {i for i, token in added.items() if token.special or SPECIAL_SHAPE.fullmatch(token.content)}
    special.update(tokenizer.all_special_ids)
    special.discard(tokenizer.eos_token_id)
    return sorted(special | set(range(len(tokenizer), vocabulary or 0)))


def freeze_vision(model: torch.nn.Module, *, projector: bool) -> int:
    """Stop gradients into the vision encoder; returns how many parameters that froze.

    Args:
        projector: whether the projector into the language model (`visual.merger`), which transformers keeps inside the vision
            module, is frozen too. The paper's SFT trains it (Appendix A.2).

    Raises:
        UserError: the model has no vision tower called `visual`.
    """
    towers = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] == "visual"]
    if not towers:
        raise UserError(
            f"a {type(model).__name__} has no vision tower called `visual`; freeze_vision needs a Qwen2.5-VL"
        )
    frozen = [p for name, p in towers[0].named_parameters() if projector or not name.startswith(PROJECTOR)]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return sum(
        getattr(parameter, "ds_numel", parameter.numel()) for parameter in frozen
    )  # ZeRO-3 leaves 0 elements here


def render_prompt(processor: Qwen2_5_VLProcessor, images: Sequence[object], text: str, prefix: str = "") -> str:
    """The prompt as text: a user turn of the pictures in order and `text`, and the assistant's turn begun with `prefix`.

    Each picture is one `<|image_pad|>` here. Only the number of `images` matters.
    """
    content: list[dict[str, str]] = [{"type": "image"} for _ in images]
    messages: Any = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + prefix


def tokenize_prompt(processor: Qwen2_5_VLProcessor, rendered: str, image_tokens: Iterable[int]) -> list[int]:
    """Token ids of a rendered prompt whose pictures take `image_tokens` tokens each, as the processor itself gives them."""
    pieces = rendered.split(IMAGE_TOKEN)
    counts = list(image_tokens)
    if len(pieces) != len(counts) + 1:
        raise ValueError(f"the prompt has {len(pieces) - 1} places for pictures, and {len(counts)} pictures came")
    full = pieces[0] + "".join(IMAGE_TOKEN * n + piece for n, piece in zip(counts, pieces[1:], strict=True))
    return list(processor.tokenizer(full)["input_ids"])


def device() -> Literal["cuda", "cpu"]:
    """Where models run when nobody says otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _line(error: BaseException) -> str:
    """The first line of a library's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
