"""The attention tap on a GPU: its shares beside eager attention's own matrices, and what reading costs."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from PIL import Image

from fgrpo.policy import backbone, loading
from fgrpo.policy.attention_layers import chosen_layers
from fgrpo.policy.attention_tap import AttentionTap, Rows
from perf.gpu import stand_in
from perf.gpu.passes import attentions
from perf.gpu.result import Result
from perf.gpu.setting import Setting

ALLOWED = {"fp32": 1e-5, "bf16": 0.05}  # of a share in [0, 1]; in bf16 the layers below already differ
REPEATS = 5
QUESTION = "Is the mug left or right of the lamp?"


def check(setting: Setting, result: Result) -> None:
    """A prompt with an image: the evidence shares of its last tokens in the layer that rewards read, under each attention."""
    folder = stand_in.model(setting, "3b")
    stand_in.data(setting)
    image = Image.open(setting.questions.parent / f"{len(setting.sizes.images) - 1}.jpg")
    wanted = _eager(setting, folder, image)
    for attention in attentions(setting):
        model, inputs = _prepared(setting, folder, image, attention)
        layers, rows = chosen_layers(model.config.get_text_config(), "two_thirds"), [_rows(model, inputs)]
        plain, read = [], []
        with torch.no_grad(), AttentionTap(model, layers) as tap:
            for _ in range(REPEATS):
                plain.append(_timed(setting, model, inputs))
                with tap.read(rows) as reading:
                    read.append(_timed(setting, model, inputs))
        found = torch.stack([sums[0].evidence_share for sums in reading.passes[0].values()])
        worst, allowed = float((found.cpu() - wanted).abs().max()), ALLOWED[setting.precision]
        result.must(worst <= allowed, f"{attention}: shares differ from eager by {worst:.2g} (allowed {allowed:g})")
        cost = statistics.median(read) / statistics.median(plain)
        result.finding += f", reading takes {cost:.2f} times the pass without"


def _prepared(setting: Setting, folder: Any, image: Image.Image, attention: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """(the model in evaluation mode, the inputs of the prompt) on the setting's device."""
    model, processor = loading.load_policy(folder, setting.precision, attention)
    prompt = loading.render_prompt(processor, [image], QUESTION)
    inputs = processor(text=[prompt], images=[image], return_tensors="pt")
    return model.to(setting.device).eval(), {name: value.to(setting.device) for name, value in inputs.items()}


def _rows(model: Any, inputs: dict[str, torch.Tensor]) -> Rows:
    """The tokens after the image; every second image token is evidence."""
    columns = (inputs["input_ids"][0] == backbone.of_model(model).image_token_id(model.config)).nonzero()[:, 0]
    after = torch.arange(int(columns[-1]) + 1, inputs["input_ids"].shape[1], device=columns.device)
    return Rows(after, columns, columns[::2])


def _eager(setting: Setting, folder: Any, image: Image.Image) -> torch.Tensor:
    """(layers, heads, queries) shares from the matrices that eager attention returns."""
    model, inputs = _prepared(setting, folder, image, "eager")
    rows = _rows(model, inputs)
    with torch.no_grad():
        matrices = model(**inputs, output_attentions=True).attentions
    shares = []
    for layer in chosen_layers(model.config.get_text_config(), "two_thirds"):
        of_tokens_HQL = matrices[layer][0][:, rows.queries].float()
        shares.append(of_tokens_HQL[..., rows.evidence].sum(-1) / of_tokens_HQL[..., rows.image].sum(-1))
    return torch.stack(shares).cpu()


def _timed(setting: Setting, model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Seconds of one pass."""
    if setting.device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    model(**inputs)
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
