"""The tokenizer of the mini backbone: byte-level BPE trained on the words of the world, with Qwen's special tokens.

One token each: every word of the world (with its leading blank, and bare where a text can start with it), every coordinate,
every number word, the tags `<think>`, `</think>`, `<answer>`, `</answer>`, `<bbox>[`, `]</bbox>`, and the line break. Other text
falls back to bytes, so decode(encode(x)) == x for every text. Differences from Qwen2.5's own tokenizer: the vocabulary,
numbers as single tokens, and tags as single tokens that may include a preceding blank.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from miniworld import relations as rel
from miniworld.scene import COLORS, PIXELS, SHAPES, UNIT

END, PAD = "<|im_end|>", "<|endoftext|>"
IMAGE, VIDEO, VISION_START, VISION_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = (
    PAD,
    "<|im_start|>",
    END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    VISION_START,
    VISION_END,
    "<|vision_pad|>",
    IMAGE,
    VIDEO,
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<bbox>[", "]</bbox>")
# order matters: tags, words with their blank, complete numbers, single line breaks, then everything else
_SPLIT = r" ?<bbox>\[|\]</bbox>|</?think>|</?answer>|'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+|\n| ?[^\s\p{L}\p{N}]|\s"
_SENTENCE_WORDS = "The In Seen There Is How Did Wait Where So You system user assistant A B C D"
_LOWER_WORDS = (
    "the is at of or than to in picture image seen from behind there are thing nearer move moved many how did was "
    "and on from camera not this seems off let try something else s you a helpful assistant answer please directly "
    "with only letter option correct select following choices given both where so wait it an"
)


def words() -> list[str]:
    """All strings that must be one token, except tags."""
    world = [*COLORS, *SHAPES, *(f"{s}s" for s in (*SHAPES, "thing")), *rel.AXIS_OF, *rel.NUMBERS, *rel.ORDINALS]
    lower = [*world, *_LOWER_WORDS.split()]
    numbers = [str(v) for v in range(0, PIXELS + 1, UNIT)] + [str(v) for v in range(10)]
    bare = [*world, *_SENTENCE_WORDS.split(), *numbers]
    return sorted({"'s", *bare, *(f" {w}" for w in [*lower, *_SENTENCE_WORDS.split(), "Let"])})


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of an existing token.

    Raises:
        KeyError: there is no such token.
    """
    index = tokenizer.token_to_id(token)
    if index is None:
        raise KeyError(token)
    return index


def build(tags: Sequence[str] = TAGS) -> Tokenizer:
    """Train the tokenizer (under a second, deterministic); `tags` are one token each, other tags several."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words(), *tags, " <bbox>[", "\n"], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer | None = None) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json to `folder` for AutoTokenizer. Padding is on the left.

    Args:
        tokenizer: another one than `build()`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 1024,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(SPECIAL),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer
