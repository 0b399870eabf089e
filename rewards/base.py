"""What a reward is: a name and an asynchronous function that gives each rollout of a batch a score (Sections 3.2 and 3.3).

A reward is one module of this folder with a constant `REWARD`; a module without it is a helper. Nothing is registered. The file
also holds the reward's question to a judge (`judge_task`), if it has one, and how evaluation reports it (`report`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from fgrpo import boxes
from fgrpo.errors import UserError, unknown
from fgrpo.images import IMAGE_ERRORS, image_size
from fgrpo.plugins import load_plugin, plugin_names
from fgrpo.policy import backbone
from fgrpo.response import Response
from fgrpo.schema import Config
from fgrpo.schema_rl import Probing
from fgrpo.types import Frame, Sample, Score
from judges.base import JudgeSet
from judges.task import JudgeTask
from rewards.probes import Probes


@dataclass(frozen=True)
class RewardItem:
    """One rollout to score.

    Attributes:
        sample: its question.
        response: its parsed text.
        tokens: its length, the end token included; None if the engine does not report it.
        finish: "stop", or "length" if it was cut off at the token limit (`RewardContext.token_limit`).
        group: rollouts of one prompt have one group: a GRPO group in training, a question in evaluation.
        probes: what was measured on the policy for rewards with `needs`; None where nothing was.
    """

    rollout_id: str
    sample: Sample
    response: Response
    tokens: int | None = None
    finish: Literal["stop", "length", "error"] = "stop"
    group: str = ""
    probes: Probes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RewardContext:
    """What rewards need besides the rollouts.

    Attributes:
        judges: the judges, for `await context.judges.ask(TASK, items)`.
        mask: "correct" in training: consistency and semantic grounding apply to correct answers only (Table 6,
            m_C = m_G = 1[R_acc = 1]), and no judge is called for the others. "all" in evaluation.
        boxes_from: sources (first part of a sample's id) whose boxes spatial grounding uses; None = all that have boxes.
        box_normaliser: divisor of the sum of CIoU (Eq. 1): "max", "gt" or "matched".
        min_pixels, max_pixels: the processor's bounds on the image that the model sees.
        box_tag, box_frame: how the policy writes boxes.
        every_form: boxes in other forms than `box_tag` count too (evaluation); training rewards the policy's own form alone.
        patch_factor: pixels per image token side.
        unscorable: what a right answer without a claim about the image gets from semantic grounding: "not_applicable" (the
            paper, and evaluation) or "zero" (training under its constraint, so that an empty trace does not escape it).
        grounding_mean: semantic grounding is the mean over "sentences" (the paper) or over distinct "claims".
        token_limit: the most tokens that a rollout may have; None if it is not known.
        probing: how the policy is measured, and how rewards read it (`rl.probes`).
    """

    judges: JudgeSet
    mask: Literal["correct", "all"] = "all"
    boxes_from: tuple[str, ...] | None = None
    box_normaliser: Literal["max", "gt", "matched"] = "max"
    min_pixels: int = backbone.default().pixels.min_pixels
    max_pixels: int = backbone.default().pixels.max_pixels
    box_tag: str = "bbox"
    box_frame: Frame = "model"
    patch_factor: int = backbone.default().pixels.factor
    unscorable: Literal["not_applicable", "zero"] = "not_applicable"
    grounding_mean: Literal["sentences", "claims"] = "sentences"
    token_limit: int | None = None
    every_form: bool = False
    probing: Probing = field(default_factory=Probing)


@dataclass(frozen=True)
class Report:
    """How a reward appears in evaluation: summaries, tables, figures and the report iterate over these.

    Attributes:
        metric: the metric's key in summary.json, for example "inconsistency".
        title: its heading in tables and axes, without the arrow, for example "semantic grounding".
        higher_is_better: direction; gives the arrow, and the words "better" and "worse" in comparisons.
        inverted: the metric is 1 - score (inconsistency is the complement of consistency).
        pooled: averaged over all questions together; otherwise the mean of the benchmarks (Table 1).
        binary: each score is 0 or 1, so McNemar's test applies.
        symbol: a letter or two for the progress line of training, for example "C".
        colour: of its curve in figures, "#RRGGBB"; None: the next free one of the palette.
        needs_boxes: not applicable to a model that writes points or no boxes (`grounding` in configs/models).
        order: place among the rewards' columns and panels; rewards of one place are sorted by name.
        definition: what the metric is, in a sentence, for the report and the model card.
    """

    metric: str
    title: str
    higher_is_better: bool = True
    inverted: bool = False
    pooled: bool = False
    binary: bool = False
    symbol: str = ""
    colour: str | None = None
    needs_boxes: bool = False
    order: int = 100
    definition: str = field(default="", compare=False)


class Reward(Protocol):
    """A reward: `await reward(items, context)` has one score per item, in order. `fgrpo.types.Score` has three states.

    Five further attributes are optional; read them with `report_of`, `judge_task_of`, `needs_group`, `needs_trace` and `needs_of`:

    - `report: Report | None`: how evaluation reports the reward; None keeps it out of tables and figures.
    - `judge_task: JudgeTask | None`: its question to a judge.
    - `needs_group: bool`: a score depends on the other rollouts of its `RewardItem.group`, which must be complete in `items`. In
      training each process then holds complete groups.
    - `needs_trace: bool`: not applicable, in evaluation, to a reply that shows no trace at all. Such replies are counted
      ("no trace visible"). In training the policy has to show a trace.
    - `needs: tuple[str, ...]`: what has to be measured on the policy (`rewards.probes`). The reward is then scored after the
      log-prob passes, and is not applicable if nothing was measured.
    """

    @property
    def name(self) -> str: ...

    async def __call__(self, items: Sequence[RewardItem], context: RewardContext) -> list[Score]: ...


TASK = "task"  # the reward that is no constraint


def names() -> list[str]:
    """Names of the rewards, sorted. Imports none of them."""
    return plugin_names("rewards", "REWARD")


def check_configured(config: Config) -> None:
    """Check that the method's task reward, constraints and monitors are rewards; imports none of them.

    Raises:
        UserError: one is not (names the nearest).
    """
    known = names()
    constrained = [f"rl.constraints.{name}" for name in known if name != TASK]
    for name in config.rl.constraints:
        if f"rl.constraints.{name}" not in constrained:
            raise unknown("configuration key", f"rl.constraints.{name}", constrained)
    for name in (config.rl.task_reward, *config.rl.monitor):
        if name not in known:
            raise unknown("reward", name, known)
    if config.rl.task_reward in config.rl.constraints:
        raise UserError(f"rl.task_reward is {config.rl.task_reward!r}, which is a constraint too; name another reward")


def load(name: str) -> Reward:
    """The `REWARD` of rewards/<name>.py.

    Raises:
        UserError: there is no such file (names the nearest reward), or it has no `REWARD`.
    """
    reward: Reward = load_plugin("rewards", name, "REWARD", "reward")
    return reward


def report_of(reward: Reward) -> Report | None:
    """How evaluation reports a reward: its `report`, or a default under its own name if it has no such attribute.

    None: the reward has no column of its own (the task reward, which evaluation reports as accuracy and format).
    """
    default = Report(reward.name, reward.name.replace("_", " "))
    report: Report | None = getattr(reward, "report", default)
    return report


def reported_names() -> list[str]:
    """Names of the rewards that evaluation reports, sorted: a rival method's own reward is not among them."""
    return [name for name in names() if report_of(load(name)) is not None]


def judge_task_of(reward: Reward) -> JudgeTask[Any] | None:
    """A reward's question to a judge; None if rules alone decide."""
    task: JudgeTask[Any] | None = getattr(reward, "judge_task", None)
    return task


def needs_group(reward: Reward) -> bool:
    """Whether a score depends on the other rollouts of its group; False for a reward without such an attribute."""
    return bool(getattr(reward, "needs_group", False))


def by_group(items: Sequence[RewardItem]) -> dict[str, list[int]]:
    """{group: places of its items}, in order.

    Raises:
        ValueError: an item belongs to no group.
    """
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if not item.group:
            raise ValueError(f"rollout {item.rollout_id} belongs to no group, and its score depends on one")
        groups.setdefault(item.group, []).append(place)
    return groups


def needs_trace(reward: Reward) -> bool:
    """Whether evaluation leaves out replies that show no trace at all; False for a reward without such an attribute."""
    return bool(getattr(reward, "needs_trace", False))


def needs_of(reward: Reward) -> tuple[str, ...]:
    """What a reward needs measured on the policy; () for a reward without such an attribute."""
    return tuple(getattr(reward, "needs", ()))


def judge_tasks(reward_names: Iterable[str] | None = None) -> list[JudgeTask[Any]]:
    """The judge tasks of the named rewards, or of those that evaluation reports, in order; rewards without a task are left out."""
    chosen = reported_names() if reward_names is None else reward_names
    tasks = [judge_task_of(load(name)) for name in chosen]
    return [task for task in tasks if task is not None]


def model_sizes(images: Sequence[str], context: RewardContext) -> tuple[tuple[int, int], ...]:
    """(width, height) in pixels of each image as the model sees it. Raises one of `fgrpo.images.IMAGE_ERRORS`."""
    bounds = boxes.PixelBounds(context.min_pixels, context.max_pixels, context.patch_factor)
    return tuple(boxes.model_size(image_size(path), *bounds) for path in images)


def pixel_sizes(images: Sequence[str], context: RewardContext) -> tuple[tuple[int, int], ...]:
    """(width, height) of each image: of the file where the policy's boxes are `original`, else as the model sees it; () if unreadable."""
    try:
        is_original = context.box_frame == "original"
        return tuple(map(image_size, images)) if is_original else model_sizes(images, context)
    except IMAGE_ERRORS:
        return ()
