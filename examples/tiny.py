"""A random text model of two layers over twelve words, for the examples; put your own model and tokenizer in its place."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

WORDS = ["[pad]", "[end]", "the", "red", "box", "is", "left", "right", "or", "of", "lamp", ":"]
PROMPTS = {"prompt": ["the red box is", "left or right :"] * 8, "answer": ["left", "right"] * 8}
ON_A_CPU = {"use_cpu": True, "bf16": False, "report_to": "none", "max_completion_length": 8, "learning_rate": 1e-2}


def tiny_model() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """The model and its tokenizer, the same at each call."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[pad]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[pad]", eos_token="[end]")
    set_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config), tokenizer
