"""The card of a trained model: metadata, data, constraints with λ and τ, results, how to prompt it, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from eval import facts, models, results
from eval.comparisons import KINDS
from eval.definitions import definitions, reading
from eval.measures import ACCURACY, reward_measures
from eval.results import Result
from eval.tables import headline_kind, main_tables, partial_mark
from fgrpo import prompts
from fgrpo.errors import UserError
from fgrpo.policy.model_files import backbone_of
from fgrpo.policy.tokens import FOCUS
from fgrpo.sealed import read_sealed
from fgrpo.training.checkpoints import PREFIX
from ops.card import SUPERVISED, Source, render
from ops.card_data import entries

MINIATURE = "the miniature world of this repository (generated scenes with exact truth)"


def text(source: Source) -> str:
    """The whole card."""
    name, step = evaluated_as(source)
    shown = evaluations(source, name)
    config = source.config
    constraints = _constraints(source)
    return render(
        "model.md.j2",
        metadata=metadata(source, name, shown).to_yaml(),
        title=_title(source, step),
        is_rl=source.stage not in SUPERVISED,
        is_anchored=source.stage == "anchor" or source.stored.get("rl", {}).get("start") == "anchor",
        focus=FOCUS,
        method=config.method,
        miniature=config.world is not None,
        base=f"{base_model(source)}{source.note('models.base')}",
        constraints=constraints,
        coupling=_coupling(source),
        settings=_settings(source),
        data=_data(source),
        tables=[t.markdown() for t in main_tables({r.name: r for r in shown}, config)],
        name=name,
        compared=[r.title for r in shown if r.name != name],
        definitions=definitions(),
        reading=reading(config),
        prompt=prompts.with_boxes(
            prompts.read(str(source.value("prompts.think"))),
            source.value("policy.box_tag"),
            source.value("policy.box_frame"),
        ),
        prompt_note=source.note("prompts.think"),
        max_new_tokens=config.eval.max_new_tokens,
        model_class=backbone_of(source.weights or source.path).model_class_name,
        box_tag=source.value("policy.box_tag"),
        box_frame=source.value("policy.box_frame"),
        box_note=source.note("policy.box_tag"),
        facts=[("command", f"make {source.stage} PRESET={config.preset}"), *_facts(source)],
        judges=_judges(source),
        measured_by=results.judges_of([r for r in shown if r.name == name and not r.has_no_judge()]),
    )


def evaluated_as(source: Source) -> tuple[str, int | None]:
    """(name among the evaluations, step): ("fgrpo", None), or ("fgrpo@100", 100) for a checkpoint."""
    name = source.stage.removeprefix("rl-")
    folder = source.weights.name if source.weights is not None else ""
    if folder.startswith(f"{PREFIX}-") and (number := folder.removeprefix(f"{PREFIX}-")).isdigit():
        return f"{name}{models.AT}{int(number)}", int(number)
    return name, None


def evaluations(source: Source, name: str) -> list[Result]:
    """Finished evaluations to show: the models before it (base, SFT, the task reward alone), then the model itself."""
    top = source.path.parent / "eval"
    names = [n for n in ("backbone-cot", "sft", "grpo-t") if n != name]
    present = [n for n in (*names, name) if (top / n / "done").is_file()]
    if name not in present:
        return []
    return [results.one(n, source.config, source.runs) for n in present]


def metadata(source: Source, name: str, shown: list[Result]) -> ModelCardData:
    """The YAML header, with this model's averages as evaluation results."""
    own = next((r for r in shown if r.name == name), None)
    kind = headline_kind([own]) if own is not None else ""
    found = []
    for measure in (ACCURACY, *reward_measures()) if own is not None else ():
        cell = own.cell(kind, "average", measure.metric) if own is not None else None
        if cell is not None:
            found.append(
                EvalResult(
                    task_type="image-text-to-text",
                    dataset_type="miniature-world" if source.config.world is not None else "spatial-reasoning",
                    dataset_name=_benchmarks(own, kind, source),
                    metric_type=measure.metric,
                    metric_name=measure.heading,
                    metric_value=round(100 * float(cell["value"]), 1),
                )
            )
    origin = base_model(source)
    return ModelCardData(
        language="en",
        license="other",
        license_name="as-the-base-model-and-the-data",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        base_model=origin if "/" in origin and not Path(origin).exists() else None,
        datasets=sorted({entry.repo for entry in entries(source)}) or None,
        tags=[
            "trl",
            "grpo",
            "faithful-grpo",
            "spatial-reasoning",
            "visual-grounding",
            *(["sft"] if source.stage in SUPERVISED else []),
        ],
        model_name=name if own is not None else None,
        eval_results=found or None,
    )


def _benchmarks(own: Result | None, kind: str, source: Source) -> str:
    """What the averages are over, such as "7 benchmarks, greedy answers"."""
    assert own is not None
    part = partial_mark(own, kind, source.config) or f" ({len(own.averaged(kind))} benchmarks)"
    limit = "" if own.limit is None else f", at most {own.limit} questions of each"
    return f"{part.strip(' ()')}{limit}, {KINDS[kind]}"


def base_model(source: Source) -> str:
    """Hub name or folder of the model from which the chain started."""
    return str(source.value("models.base"))


def _title(source: Source, step: int | None) -> str:
    name = "SFT" if source.stage == "sft" else models.load(source.stage.removeprefix("rl-")).title
    after = "" if step is None else f", step {step}"
    where = "the miniature world" if source.config.world is not None else base_model(source).rsplit("/", 1)[-1]
    return f"{name}{after}: {where}"


def _coupling(source: Source) -> str:
    """How the rewards enter: "adaptive", "fixed" or "pid" multipliers; "additive" or "multiplicative" without any; "none"."""
    rl = source.stored.get("rl", {})
    combine = str(rl.get("combine", "decoupled"))
    if not rl.get("constraints"):
        return "none"
    return str((rl.get("dual") or {}).get("kind", "adaptive")) if combine == "decoupled" else combine


def _constraints(source: Source) -> list[dict[str, Any]]:
    """Each constraint with its threshold and its multiplier at the start and the end; empty for a method without multipliers."""
    rl = source.stored.get("rl", {})
    if _coupling(source) in ("none", "additive", "multiplicative"):
        return []
    first = (rl.get("dual") or {}).get("lam_init")
    lam = _multipliers(source)
    rows = []
    for name, constraint in (rl.get("constraints") or {}).items():
        measure = next((m for m in reward_measures() if m.score == name), None)
        rows.append(
            {
                "name": name,
                "title": measure.score_title if measure is not None else name.replace("_", " "),
                "tau": constraint.get("tau"),
                "lam_init": first if constraint.get("lam_init") is None else constraint["lam_init"],
                "lam": lam.get(name),
            }
        )
    return rows


def _multipliers(source: Source) -> dict[str, float]:
    """The multipliers of the checkpoint itself, else those at the end of the run; none before any dual step.

    Raises:
        UserError: the checkpoint's `duals.json` is damaged.
    """
    duals = (source.weights / "duals.json") if source.weights is not None else None
    if duals is not None and duals.is_file():
        try:
            return {str(name): float(state["lam"]) for name, state in read_sealed(duals)["states"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{duals} holds no multipliers ({error!r}); restore it from a copy, or name another checkpoint"
            ) from error
    return {str(k): float(v) for k, v in (source.manifest.get("final_lambda") or {}).items()}


RL_SETTINGS = (
    ("combine", "how the rewards enter"),
    ("learning_rate", "learning rate"),
    ("kl_coef", "KL coefficient"),
    ("group_size", "rollouts per question"),
    ("global_batch", "questions per update"),
    ("max_response_length", "tokens per rollout, at most"),
    ("temperature", "sampling temperature"),
    ("precision", "precision"),
)
SFT_SETTINGS = (
    ("learning_rate", "learning rate"),
    ("scheduler", "scheduler"),
    ("traces", "kinds of traces"),
    ("max_length", "tokens per trace, at most"),
    ("precision", "precision"),
)
ANCHOR_SETTINGS = (
    ("loss", "anchoring loss"),
    ("weight", "its weight"),
    ("layers", "layers whose attention is anchored"),
)


def _settings(source: Source) -> list[tuple[str, Any]]:
    """What was trained with, as (words, value)."""
    section, keys = ("sft", SFT_SETTINGS) if source.stage in SUPERVISED else ("rl", RL_SETTINGS)
    stored = source.stored.get(section, {})
    length = _length(source).get(section, {})
    if source.stage == "anchor":
        stored, keys, length = {**stored, **source.stored.get("anchor", {})}, (*ANCHOR_SETTINGS, *SFT_SETTINGS), {}
    rows = [(words, stored[key]) for key, words in keys if stored.get(key) is not None]
    if dual := stored.get("dual") if section == "rl" and stored.get("constraints") else None:
        rows.append(
            ("dual ascent", f"{dual.get('kind')}, learning rate {dual.get('lr')}, at most {dual.get('lam_max')}")
        )
    rows += [("steps", length["steps"])] if "steps" in length else []
    return [(words, ", ".join(map(str, value)) if isinstance(value, list) else value) for words, value in rows]


def _length(source: Source) -> dict[str, Any]:
    return dict(source.manifest.get("identity", {}).get("length", {}))


def _data(source: Source) -> list[str]:
    """One line per source of training data, and the number of questions or traces that the run used."""
    counts = source.manifest.get("counts", {})
    used = next(((f"{counts[key]:,} {key}") for key in ("questions", "traces", "training rows") if key in counts), "")
    lines = [f"{used} were used"] if used else []
    if source.config.world is not None:
        return [*lines, f"all from {MINIATURE}"]
    return [
        *lines,
        *(
            f"[{e.repo}](https://huggingface.co/datasets/{e.repo}){source.note('data.sources')}, licence: {e.licence}"
            for e in entries(source)
        ),
    ]


def _facts(source: Source) -> list[tuple[str, str]]:
    trained = Result(source.stage, source.stage, source.path, {})
    named = dict(facts.facts([trained], source.config))
    named["trained"] = named.pop("evaluated", "")
    return [(what, value) for what, value in named.items() if value]


def _judges(source: Source) -> dict[str, str]:
    """The judge of training."""
    training = source.stored.get("judges.training", {})
    return {"training": str(training.get("model", "")) if training else ""}
