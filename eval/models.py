"""Evaluated models: where the weights are, which prompt they get, how they write boxes (Appendix B.1).

A model is a file of configs/models, or a method of configs/method: `fgrpo` is the checkpoint runs/<preset>/rl-fgrpo/final with the
preset's own prompt, and needs no file here. A file with a method's name changes only the keys it states.

The paper evaluates each baseline with its own training prompt. Those prompts were figures, so the shipped files use our texts.
To use a model's published prompt, put it into a .txt file with {question} and {options} and give its path as `prompt`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, ValidationError

from eval import untagged
from fgrpo import prompts
from fgrpo.boxes import PixelBounds
from fgrpo.config import CONFIGS
from fgrpo.errors import UserError, unknown
from fgrpo.installed import yaml_files
from fgrpo.policy import model_files
from fgrpo.prompts import render
from fgrpo.response import COMMON, OWN, Tags, closing
from fgrpo.runs import folder
from fgrpo.schema import Config
from fgrpo.schema_base import EngineKind, Pixels, Positive, Rate, Section, Variable
from fgrpo.training.checkpoints import PREFIX
from fgrpo.types import FRAMES, Frame, Sample

FOLDER = CONFIGS / "models"
METHODS = CONFIGS / "method"
SPEC_FILE = "model.json"  # in the folder of answers that another harness made: how they are read
AT = "@"  # between a model and the step of one of its checkpoints
FINAL = "/final"
OWN_PROMPTS = Path(__file__).resolve().parent / "prompts"
# These change how answers are scored, not the answers.
READING_KEYS = (
    "box_tag",
    "box_frame",
    "grounding",
    "think_tags",
    "answer_tags",
    "tags_case_blind",
    "template_opens_trace",
    "trace",
)


def _checked_tag(tag: str) -> str:
    closing(tag)
    return tag


Tag = Annotated[str, AfterValidator(_checked_tag)]


class EngineOverride(Section):
    """What differs from the preset's `engine` for this model."""

    kind: EngineKind | None = None
    endpoints: tuple[str, ...] | None = None
    api_key_env: Variable | None = None
    model_name: str | None = None
    batch_size: Positive | None = None
    concurrency: Positive | None = None
    leave_out: tuple[str, ...] | None = None


class ModelSpec(Section):
    """One evaluated model.

    Attributes:
        title: row heading in the tables.
        path: checkpoint; "{run}" is runs/<preset>, "{base}" the preset's base model.
        made_by: make target that writes the checkpoint, None for models that are only downloaded or served.
        prompt: prompt file for questions with options; "{think}" and "{direct}" are the preset's. "": another harness prompted.
        prompt_open: prompt file for questions without options (default: the same).
        prefix: text that already begins the assistant's turn.
        mode: whether the reply holds reasoning ("think") or the answer alone ("direct"). Only "think" is scored by rewards.
        box_tag, box_frame: how the model writes boxes: the form (a tag's name, "bbox_2d" or "box_start", see
            `fgrpo.box_forms`), and the frame of its numbers. `configured` takes them from
            `policy` for the preset's own checkpoints.
        think_tags, answer_tags: opening tags of its traces and answers, such as "<think>", "◁think▷" or "<|begin_of_box|>". Where
            `fgrpo.response.closing` does not give the closing tag, both with a blank between: "<scratch> <|done|>".
            `<think>` always counts: reasoning that an endpoint returns in a field of its own is stored in it.
        tags_case_blind: whether `<THINK>` is `<think>`.
        template_opens_trace: its chat template ends a prompt with the opening tag, so replies begin inside the trace.
        trace: where the trace of a reply is: between its think "tags", or, where it writes none, "before_answer": all that
            precedes the answer, or what follows an answer at the beginning (`eval.untagged`).
        grounding: what the prompt asks the model to point with. A reward that compares boxes (Eq. 1) is not applicable to a
            model that writes points or nothing. "boxes" that are not written score 0.
        pixels: bounds of an image after the processor's resize, in place of its own; a vLLM server gets them with each
            request. None: `policy.pixels` for the preset's own models, the processor's own for others.
        max_new_tokens: None = `eval.max_new_tokens`.
        temperature: of the one answer that the tables call greedy, for a model that accepts no other; None =
            `eval.temperature`.
        note: a remark for readers of the file.
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
    think_tags: tuple[Tag, ...] = COMMON.think
    answer_tags: tuple[Tag, ...] = COMMON.answer
    tags_case_blind: bool = True
    template_opens_trace: bool = False
    trace: Literal["tags", "before_answer"] = "tags"
    grounding: Literal["boxes", "points", "none"] = "boxes"
    pixels: Pixels = Pixels()
    max_new_tokens: Positive | None = None
    temperature: Rate | None = None
    engine: EngineOverride = EngineOverride()
    note: str = ""

    @property
    def tags(self) -> Tags:
        """The tags with which its replies are read."""
        think = tuple(dict.fromkeys((*OWN.think, *self.think_tags)))
        split = untagged.split if self.trace == "before_answer" else None
        return Tags(think, self.answer_tags, self.tags_case_blind, self.template_opens_trace, split)

    @property
    def is_own(self) -> bool:
        """Whether the weights are this preset's: its base model, or a checkpoint that one of its stages writes."""
        return self.path.startswith(("{run}", "{base}"))


def names(models: Path = FOLDER, methods: Path = METHODS) -> list[str]:
    """Every model: the files of configs/models and of configs/method."""
    return sorted({*yaml_files(models), *yaml_files(methods)})


def load(name: str, models: Path = FOLDER, methods: Path = METHODS) -> ModelSpec:
    """The model called `name`; "fgrpo@100" is the checkpoint of step 100 of the run that trains `fgrpo` (Figure 4).

    Raises:
        UserError: no such model (names the nearest), an unknown key or a wrong value in its file, or a step of a model that no
            RL run trains.
    """
    name, at, step = name.partition(AT)
    if name not in names(models, methods):
        raise unknown("model", name, names(models, methods))
    file = yaml_files(models).get(name, models / f"{name}.yaml")
    spec = _read(file, _of_method(name) if name in yaml_files(methods) else {})
    if not at:
        return spec
    if not step.isdigit() or spec.made_by is None or not spec.path.endswith(FINAL):
        raise UserError(
            f"{name}{at}{step} is no checkpoint: write it as <model>@<step>, for a model that an RL run trains"
        )
    place = spec.path.removesuffix(FINAL) + f"/checkpoints/{PREFIX}-{int(step)}"
    return spec.model_copy(update={"title": f"{spec.title}, step {int(step)}", "path": place})


def configured(name: str, config: Config) -> ModelSpec:
    """The model `name` under a configuration: the preset's own checkpoints write boxes as `policy` says.

    Keys that the model's file states win. Raises UserError as `load`.
    """
    spec = load(name)
    if not spec.is_own:
        return spec
    keys = {"box_tag", "box_frame"} - spec.model_fields_set
    return spec.model_copy(update={key: getattr(config.policy, key) for key in keys})


def of_folder(folder: Path, config: Config) -> ModelSpec:
    """The model of an evaluation's folder: the one that its `SPEC_FILE` describes, else the one of its name.

    Raises:
        UserError: the file is damaged, or as `configured`.
    """
    return described(folder) or configured(folder.name, config)


def described(folder: Path) -> ModelSpec | None:
    """The model that the `SPEC_FILE` of an evaluation's folder describes; None without one. UserError: it is damaged."""
    file = folder / SPEC_FILE
    if not file.is_file():
        return None
    try:
        return ModelSpec.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} describes no model ({error}); run the command that wrote it again") from error


def _of_method(name: str) -> dict[str, Any]:
    """The keys of a model that is only a method: the end of its RL run, with the preset's prompt."""
    return {
        "title": name.upper(),
        "path": f"{{run}}/rl-{name}{FINAL}",
        "made_by": f"rl-{name}",
        "prompt": "{think}",
        "prompt_open": "think-open",
    }


def _read(path: Path, defaults: dict[str, Any]) -> ModelSpec:
    """The model in a file, over `defaults`; the defaults alone where there is no file."""
    try:
        own = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return ModelSpec.model_validate({**defaults, **(own or {})})
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = min(
            error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"
        )  # a misspelt key is missing too
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            own_keys = (*ModelSpec.model_fields, *(f"engine.{name}" for name in EngineOverride.model_fields))
            raise unknown(f"key of {path}", key, own_keys) from error
        if key.endswith("api_key_env"):  # the value may be the key itself
            raise UserError(f"{path}: {key} is the name of an environment variable, not the key itself") from None
        frames = f" (frames: {', '.join(FRAMES)})" if key == "box_frame" else ""
        raise UserError(f"{path}, key {key!r}: {first['msg']}{frames}") from error


def rl_run(name: str) -> str | None:
    """The RL stage that trains the model `name` ("rl-fgrpo"); None for every other model."""
    if name not in names():
        return None
    made_by = load(name).made_by
    return made_by if made_by is not None and made_by.startswith("rl-") else None


def is_trained(name: str) -> bool:
    """Whether a stage of this preset (SFT or RL) trains the model `name`."""
    return name in names() and load(name).made_by is not None


def steps(name: str, config: Config, root: str | Path = "runs") -> list[int]:
    """Steps of which the run that trains the model `name` has a checkpoint, in order; none for models that no run trains."""
    spec = load(name)
    if spec.made_by is None or not spec.path.endswith(FINAL):
        return []
    run = Path(render(spec.path.removesuffix(FINAL), run=str(folder(config, "", root)), base=config.models.base))
    numbers = (p.name.removeprefix(f"{PREFIX}-") for p in (run / "checkpoints").glob(f"{PREFIX}-*"))
    return sorted(int(step) for step in numbers if step.isdigit())


def location(spec: ModelSpec, config: Config, root: str | Path = "runs") -> str:
    """Hub name or folder of the model's weights, whether they are there or not."""
    return render(spec.path, run=str(folder(config, "", root)), base=config.models.base)


def checkpoint(spec: ModelSpec, config: Config, root: str | Path = "runs") -> str:
    """Hub name or folder of the model's weights.

    Raises:
        UserError: a checkpoint that a stage writes is missing (names the make target).
    """
    path = location(spec, config, root)
    if spec.made_by is not None and not Path(path).is_dir():
        keep_all = (
            "" if "/checkpoints/" not in spec.path else ", with rl.keep_checkpoints=null to keep every checkpoint"
        )
        raise UserError(
            f"the model {spec.title} is missing ({path}); run `make {spec.made_by} PRESET={config.preset}`{keep_all}"
        )
    return path


def engine_config(spec: ModelSpec, config: Config) -> Config:
    """`config` with the engine of evaluation: the keys of `eval` (B.1), then the model's own overrides."""
    values: dict[str, Any] = {
        "kind": config.eval.engine or config.engine.kind,
        "dtype": config.eval.dtype,
        "batch_size": config.eval.batch_size,
        "context_length": config.eval.context_length,
    }
    values |= {key: value for key, value in spec.engine.model_dump().items() if value is not None}
    return config.model_copy(update={"engine": config.engine.model_copy(update=values)})


def asked_pixels(spec: ModelSpec, config: Config) -> Pixels:
    """Which bounds of an image are set for a model: those of its file, else `policy.pixels` for the preset's own models.

    A model whose path is the base model's name counts as the preset's own.
    """
    is_own = spec.is_own or spec.path == config.models.base
    return spec.pixels if spec.pixels.is_set or not is_own else config.policy.pixels


def bounds(spec: ModelSpec, path: str, config: Config) -> PixelBounds:
    """How images are resized for a model in evaluation.

    Args:
        path: of its weights (`checkpoint`).

    Raises:
        UserError: bounds that are no range, or that differ from those that a checkpoint was trained with.
    """
    asked = asked_pixels(spec, config)
    if spec.made_by is not None and spec.is_own and not spec.pixels.is_set:
        return model_files.carried_bounds(path, asked)
    return model_files.pixel_bounds(path, asked)


def token_limit(spec: ModelSpec, config: Config) -> int:
    """The most tokens of one answer."""
    return spec.max_new_tokens or config.eval.max_new_tokens


def temperature(spec: ModelSpec, config: Config) -> float:
    """The temperature of the answer that the tables call greedy."""
    return config.eval.temperature if spec.temperature is None else spec.temperature


def template(spec: ModelSpec, config: Config, *, has_choices: bool = True) -> str:
    """The text of the model's prompt file, which asks for boxes as the model writes them."""
    name = spec.prompt if has_choices or spec.prompt_open is None else spec.prompt_open
    name = render(name, think=config.prompts.think, direct=config.prompts.direct)
    return prompts.with_boxes(prompts.read(name, OWN_PROMPTS, prompts.FOLDER), spec.box_tag, spec.box_frame)


def user_text(sample: Sample, spec: ModelSpec, text: str) -> str:
    """The user's turn: `sample` under the prompt `text`.

    RealWorldQA puts an "answer directly with …" sentence inside a question. It comes back for direct answers to questions
    without options, never where reasoning is requested. A prompt that does not list the options (the miniature world's)
    shows them in the question's own words, so the swapped order of SAT-Real is written into the question.
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
