"""The token `<|focus|>` at the end of the user's turn, whose attention on the image can be trained and read (docs/mr1.md).

Faithful-MR1 calls it `<Focus>`; its place, its id and its first embedding are ours:

- Its id is the first one that the tokenizer leaves free, in an unused row of the embedding, so no shape changes and servers need
  nothing. A model without such a row is refused, or gets one more (`add_row`: the miniature, whose vocabulary is full).
- Its row begins as the mean of the tokenizer's rows.
- The checkpoint's own chat template writes it at the end of each user turn. So every later prompt of that policy has it: of RL, of
  evaluation, of a vLLM server, of an endpoint, and of another harness. A checkpoint has the token if its tokenizer does.
- It has the form of a special token, so it is never sampled (`fgrpo.policy.tokens.forbidden_token_ids`), and questions
  that spell it out are left out, as with every other one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgrpo.errors import UserError
from fgrpo.policy import loading, model_files
from fgrpo.policy.tokens import FOCUS

_REWRITE = """{%- set with_focus = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- if turn['role'] != 'user' -%}
{%- set with_focus.turns = with_focus.turns + [turn] -%}
{%- elif turn['content'] is string -%}
{%- set with_focus.turns = with_focus.turns + [dict(turn, content=turn['content'] + 'FOCUS')] -%}
{%- else -%}
{%- set with_focus.turns = with_focus.turns + [dict(turn, content=turn['content'] + [{'type': 'text', 'text': 'FOCUS'}])] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = with_focus.turns %}""".replace("FOCUS", FOCUS)


def with_focus(template: str) -> str:
    """A chat template that writes the token at the end of each user turn, whatever the rest of it does; unchanged if it does."""
    return template if FOCUS in template else _REWRITE + template


def focus_id(tokenizer: Any) -> int | None:
    """The token's id; None if the tokenizer has none."""
    index = tokenizer.get_vocab().get(FOCUS)
    return None if index is None else int(index)


def add(source: str | Path, target: Path, *, add_row: bool = False) -> int:
    """Write the model of `source`, with the token, to the folder `target`; returns the token's id.

    Args:
        source: a saved folder of a known family. If it has the token already, its embedding stays as it is.
        add_row: give a model without an unused row one more.

    Raises:
        UserError: `source` does not load, has no chat template, or has no unused row.
    """
    config = model_files.config_of(source)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    processor = loading.load_processor(source)
    template = processor.chat_template
    if not isinstance(template, str) or not template:
        raise UserError(
            f"{source} has no chat template, which would write {FOCUS}; copy the base model's chat_template.jinja there"
        )
    model, _ = loading.load_policy(source, stored if stored in loading.DTYPES else "float32")
    if focus_id(processor.tokenizer) is None:
        _fill_row(model, len(processor.tokenizer), str(source), add_row)
        add_to_processor(processor)
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(target))
    processor.save_pretrained(str(target))
    index = focus_id(processor.tokenizer)
    assert index is not None
    return index


def add_to_processor(processor: Any) -> None:
    """Give a processor the token and the template that writes it, in place."""
    from transformers import AddedToken

    processor.tokenizer.add_tokens([AddedToken(FOCUS, special=True, normalized=False)], special_tokens=True)
    processor.chat_template = with_focus(processor.chat_template)
    processor.tokenizer.chat_template = processor.chat_template


def _fill_row(model: Any, index: int, name: str, add_row: bool) -> None:
    """Set the embedding's row `index`, the first beyond the tokenizer's, to the mean of those before it."""
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    if index >= rows:
        if not add_row:
            raise UserError(
                f"{name} has an embedding of {rows} rows for {index} tokens, so none is left for {FOCUS}; set anchor.add_row=true to "
                "add one (its shape then differs from the base model's), or anchor another model"
            )
        model.resize_token_embeddings(index + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            if layer is not None:
                layer.weight[index] = layer.weight[:index].float().mean(dim=0).to(layer.weight.dtype)
