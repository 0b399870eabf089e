"""One evaluated model = one file of configs/models: where it is, how it is asked, what it writes (Appendix B.1).

The paper evaluates each baseline with its own training prompt. Those prompts were figures, so the shipped files name our
own texts; to drop in a model's published prompt, put it into a .txt file with {question} and {options} and give its path as
`prompt` (each file of configs/models says so where it applies).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from fgrpo import prompts
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown
from fgrpo.prompts import render
from fgrpo.runs import folder
from fgrpo.schema import Config, EngineKind, Positive, Rate, Section
from fgrpo.training.checkpoints import PREFIX
from fgrpo.types import FRAMES, Frame, Sample

FOLDER = CONFIGS / "models"
AT = "@"  # between a model and the step of one of its checkpoints
FINAL = "/final"
OWN_PROMPTS = Path(__file__).resolve().parent / "prompts"


class EngineOverride(Section):
    """What differs from the preset's `engine` for this model."""

    kind: EngineKind | None = None
    endpoints: tuple[str, ...] | None = None
    model_name: str | None = None
    batch_size: Positive | None = None
    concurrency: Positive | None = None


class ModelSpec(Section):
    """One evaluated model.

    Attributes:
        title: row heading in the tables.
        path: checkpoint; "{run}" is runs/<preset>, "{base}" the preset's base model.
        made_by: make target that writes the checkpoint, None for models that are only downloaded or served.
        prompt: prompt file for questions with options; "{think}" and "{direct}" are the preset's.
        prompt_open: prompt file for questions without options (default: the same).
        prefix: beginning of the assistant's turn that is already there.
        mode: whether the reply holds reasoning ("think") or the answer alone ("direct"); only "think" is judged for faith.
        box_tag, box_frame: how the model writes boxes: tag name, and the frame of its numbers.
        grounding: what it is asked to point with. Spatial grounding (Eq. 1) compares boxes, so it is not applicable to a model
            that writes points or nothing; "boxes" that are not written score 0.
        max_new_tokens: None = `eval.max_new_tokens`.
        temperature: of the one answer that the tables call greedy, where the model takes no other; None = `eval.temperature`.
        paper_row: row of the paper's Table 1 this is, None if it is none.
    """

    title: str
    path: str
    made_by: str | None = None
    prompt: str
    prompt_open: str | None = None
    prefix: str = ""
    mode: Literal["think", "direct"] = "think"
    box_tag: str = "bbox"
    box_frame: Frame = "model"
    grounding: Literal["boxes", "points", "none"] = "boxes"
    max_new_tokens: Positive | None = None
    temperature: Rate | None = None
    engine: EngineOverride = EngineOverride()
    paper_row: str | None = None
    note: str = ""


def names(models: Path = FOLDER) -> list[str]:
    """Every model there is a file for."""
    return sorted(p.stem for p in models.glob("*.yaml"))


def load(name: str, models: Path = FOLDER) -> ModelSpec:
    """The model called `name`; "fgrpo@100" is the checkpoint of step 100 of the run that makes `fgrpo` (Figure 4).

    Raises:
        UserError: no such file (names the nearest), an unknown key or a wrong value, or a step of a model that no run of ours
            makes.
    """
    name, at, step = name.partition(AT)
    path = models / f"{name}.yaml"
    if not path.is_file():
        raise unknown("model", name, names(models))
    spec = _read(path)
    if not at:
        return spec
    if not step.isdigit() or spec.made_by is None or not spec.path.endswith(FINAL):
        raise UserError(
            f"{name}{at}{step} is no checkpoint: write it as <model>@<step>, for a model that an RL run makes"
        )
    place = spec.path.removesuffix(FINAL) + f"/checkpoints/{PREFIX}-{int(step)}"
    return spec.model_copy(update={"title": f"{spec.title}, step {int(step)}", "path": place, "paper_row": None})


def _read(path: Path) -> ModelSpec:
    try:
        return ModelSpec.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"key of {path}", key, ModelSpec.model_fields) from error
        frames = f" (frames: {', '.join(FRAMES)})" if key == "box_frame" else ""
        raise UserError(f"{path}, key {key!r}: {first['msg']}{frames}") from error


def steps(name: str, config: Config, root: str | Path = "runs") -> list[int]:
    """Steps of which the run that makes the model `name` has a checkpoint, in order; none for models that no run makes."""
    spec = load(name)
    if spec.made_by is None or not spec.path.endswith(FINAL):
        return []
    run = Path(render(spec.path.removesuffix(FINAL), run=str(folder(config, "", root)), base=config.models.base))
    found = (p.name.removeprefix(f"{PREFIX}-") for p in (run / "checkpoints").glob(f"{PREFIX}-*"))
    return sorted(int(step) for step in found if step.isdigit())


def checkpoint(spec: ModelSpec, config: Config, root: str | Path = "runs") -> str:
    """Hub name or folder of the model's weights.

    Raises:
        UserError: the checkpoint is one that a stage of ours writes, and it is not there (says which target writes it).
    """
    path = render(spec.path, run=str(folder(config, "", root)), base=config.models.base)
    if spec.made_by is not None and not Path(path).is_dir():
        kept = "" if "/checkpoints/" not in spec.path else ", with rl.keep_checkpoints=null to keep every checkpoint"
        raise UserError(
            f"the model {spec.title} is missing ({path}); run `make {spec.made_by} PRESET={config.preset}`{kept}"
        )
    return path


def engine_config(spec: ModelSpec, config: Config) -> Config:
    """`config` with the engine as evaluation wants it: that of `eval` (B.1), and the model's own overrides."""
    values: dict[str, Any] = {
        "kind": config.eval.engine or config.engine.kind,
        "dtype": config.eval.dtype,
        "batch_size": config.eval.batch_size,
        "context_length": config.eval.context_length,
    }
    values |= {key: value for key, value in spec.engine.model_dump().items() if value is not None}
    return config.model_copy(update={"engine": config.engine.model_copy(update=values)})


def temperature(spec: ModelSpec, config: Config) -> float:
    """That of the answer which the tables call greedy."""
    return config.eval.temperature if spec.temperature is None else spec.temperature


def template(spec: ModelSpec, config: Config, *, has_choices: bool = True) -> str:
    """The text of the model's prompt file."""
    name = spec.prompt if has_choices or spec.prompt_open is None else spec.prompt_open
    name = render(name, think=config.prompts.think, direct=config.prompts.direct)
    own = OWN_PROMPTS / f"{name}.txt"
    return prompts.read(name, OWN_PROMPTS) if own.is_file() else prompts.read(name)


def user_text(sample: Sample, spec: ModelSpec, text: str) -> str:
    """The user's turn of `sample` under the prompt `text`.

    The "answer directly with …" sentence that RealWorldQA puts inside a question comes back for direct answers to questions
    without options, and never where reasoning is asked for. A prompt that does not list the options (the miniature world's)
    shows them in the question's own words, so there the swapped order of SAT-Real is written into the question.
    """
    question = sample.question
    direct = str(sample.meta.get("direct_sentence", ""))
    if spec.mode == "direct" and direct and not sample.choices:
        question = f"{question} {direct}"
    if "{options}" not in text and "{choices}" not in text and len(sample.choices) == 2:
        first, second = sample.choices
        question = question.replace(f"{second} or {first}", f"{first} or {second}", 1)
    return render(
        text, question=question, options=prompts.options(sample.choices), choices=", ".join(sample.choices)
    ).strip()
