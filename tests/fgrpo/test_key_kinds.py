"""Every configuration key has exactly one kind, and stages see keys by kind."""

from __future__ import annotations

from collections import Counter

import pytest

from fgrpo.config import STAGE_KEYS, known_keys, load, stage_keys, stage_slice
from fgrpo.key_kinds import KINDS, Kind, flat, kind_of, of_kind


def leaves() -> list[str]:
    """The dotted keys of the schema that hold a value; <name> becomes a name."""
    keys = [key.replace("<name>", "some") for key in known_keys()]
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def test_every_key_of_the_schema_has_a_kind() -> None:
    without = [key for key in leaves() if kind_of(key) is None]
    assert not without, f"add {without} to fgrpo.key_kinds.KINDS"


def test_no_key_has_two_kinds_and_none_is_left_over() -> None:
    known = {key.replace("<name>", "some") for key in known_keys()}
    for section, kinds in KINDS.items():
        if section == "judges.*.engine":  # arguments of vllm.LLM, which the schema does not list
            continue
        names = Counter(name for text in kinds.values() for name in text.split())
        assert not [name for name, count in names.items() if count > 1], section
        prefixes = (
            [section]
            if "*" not in section
            else [section.replace("*", word) for word in ("some", "rollouts", "training")]
        )
        for name in names:
            assert any((f"{prefix}.{name}" if prefix else name) in known for prefix in prefixes), f"{section}.{name}"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("rl.save_steps", Kind.NO_EFFECT),
        ("rl.report_to", Kind.NO_EFFECT),
        ("rl.keep_checkpoints", Kind.NO_EFFECT),
        ("sft.logging_steps", Kind.NO_EFFECT),
        ("judges.training.endpoints", Kind.NO_EFFECT),
        ("rl.micro_batch", Kind.MEANS),
        ("rl.attention", Kind.MEANS),
        ("rl.gradient_checkpointing", Kind.MEANS),
        ("rl.monitor", Kind.MEANS),
        ("rl.max_failed_share", Kind.MEANS),
        ("rl.max_steps", Kind.LENGTH),
        ("rl.kl_coef", Kind.EXPERIMENT),
        ("rl.constraints.consistency.tau", Kind.EXPERIMENT),
        ("data.sources.sat.rl", Kind.EXPERIMENT),
        ("no.such.key", None),
    ],
)
def test_kinds_of_keys(key: str, kind: Kind | None) -> None:
    assert kind_of(key) is kind


def test_a_stage_depends_on_its_experiment_keys_and_sees_all() -> None:
    config = load("mini")
    for stage in STAGE_KEYS:
        whole, experiment = flat(stage_keys(config, stage)), flat(stage_slice(config, stage))
        assert experiment.items() <= whole.items()
        assert all(kind_of(key) in (None, Kind.EXPERIMENT) for key in experiment)
    means = flat(of_kind(stage_keys(config, "rl"), Kind.MEANS))
    assert means["rl.micro_batch"] == config.rl.micro_batch and "rl.kl_coef" not in means
