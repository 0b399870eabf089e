"""What a run folder belongs to: the experiment's configuration and the content of everything the stage reads.

Two identities are equal if their experiment keys (`fgrpo.key_kinds`) and contents are equal. A path is never part of it: a
model folder, a prompt file and an input count by their content, so a moved or linked input is the same input.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fgrpo import prompts
from fgrpo.code_hash import code_hashes
from fgrpo.config import stage_keys
from fgrpo.errors import UserError
from fgrpo.hashing import Hashes
from fgrpo.key_kinds import Kind, flat, kind_of, of_kind
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed

FILE = "config.json"
ABSENT = "(absent)"
_SFT_BATCH = "sft.batch_size x sft.gradient_accumulation"  # x processes: traces per optimizer step


@dataclass(frozen=True)
class Change:
    """One key whose value differs between a folder's identity and the present one."""

    key: str
    old: Any
    new: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.key}: {_short(self.old)} -> {_short(self.new)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"key": self.key, "from": self.old, "to": self.new, "kind": self.kind.value}


@dataclass(frozen=True)
class Identity:
    """The identity of a run folder, and the settings that it may resume with differently.

    Attributes:
        config: experiment keys, nested as in the configuration.
        contents: {key or input: hash} of what the keys name; such a key's own value does not count.
        inputs: {label: hash} of the stage's input files; labels do not count.
        means: keys of kind "means", by dotted key.
        growing: {name: hash} of contents that more may be added to, such as the benchmarks of an evaluation.
        code: {reward: hash} of the code of the rewards that RL trains on (`fgrpo.code_hash`). Unknown code is no change.
        length: training's length by section: {"steps" | "epochs": number, "extendable": bool}.
    """

    config: dict[str, Any]
    contents: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    growing: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    means: dict[str, Any] = field(default_factory=dict)
    length: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: Config,
        stage: str,
        inputs: Mapping[str, Path],
        hashes: Hashes,
        depends_on: Mapping[str, Any] | None = None,
        growing: Mapping[str, Path] | None = None,
    ) -> Self:
        """The identity of `stage` now.

        Args:
            inputs: {label: file or folder}.
            depends_on: what counts instead of the stage's keys.
            growing: {name: folder} of the attribute of that name.

        Raises:
            UserError: an input is missing.
        """
        hashed = {label: hashes.of_input(path) for label, path in inputs.items()}
        if depends_on is not None:
            contents = {name: hashes.of(path) for name, path in (growing or {}).items()}
            return cls(json.loads(json.dumps(dict(depends_on))), inputs=hashed, growing=contents)
        whole = stage_keys(config, stage)
        return cls(
            of_kind(whole, Kind.EXPERIMENT),
            _contents(whole, hashes) | _batch(config, whole),
            hashed,
            code=_code(whole),
            means=flat(of_kind(whole, Kind.MEANS)),
            length={name: _length(whole[name]) for name in ("sft", "rl") if name in whole},
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The identity in a folder's config.json, else that in its manifest; None if neither can be read."""
        for file, pick in ((path / FILE, lambda d: d), (path / "manifest.json", lambda d: d["identity"])):
            try:
                stored = pick(read_sealed(file))
                parts = {name: dict(stored.get(name, {})) for name in cls.__dataclass_fields__}
                parts["length"] = {section: dict(length) for section, length in parts["length"].items()}
                hashes = [*parts["contents"].values(), *parts["inputs"].values(), *parts["growing"].values()]
                hashes += parts["code"].values()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, empty or damaged
                continue
            if "config" in stored and "inputs" in stored and all(isinstance(text, str) for text in hashes):
                return cls(**parts)
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def experiment(self) -> dict[str, Any]:
        """What decides equality, by dotted key."""
        values = {
            key: value for key, value in flat(self.config).items() if key not in self.contents and _counts(key, value)
        }
        named = {key if key == _SFT_BATCH else f"content of {key}": value for key, value in self.contents.items()}
        return values | named

    def same(self, other: Identity) -> bool:
        """Whether both are the same experiment on the same inputs, whatever their length."""
        is_same = self.experiment() == other.experiment() and self._input_hashes() == other._input_hashes()
        return is_same and not self._regrown(other)

    def _regrown(self, new: Identity) -> list[Change]:
        """What differs of the contents and codes that both have."""
        out = []
        for what, old, now in (
            ("content of", self.growing, new.growing),
            ("code of the reward", self.code, new.code),
        ):
            both = {key: (value, now[key]) for key, value in old.items() if key in now}
            out += [Change(f"{what} {k}", *pair, Kind.EXPERIMENT) for k, pair in both.items() if pair[0] != pair[1]]
        return out

    def _input_hashes(self) -> list[str]:
        return sorted(self.inputs.values())

    def changes(self, new: Identity) -> list[Change]:
        """What differs in `new`, experiment first."""
        out = _differences(self.experiment(), new.experiment(), Kind.EXPERIMENT) + self._regrown(new)
        if self._input_hashes() != new._input_hashes():
            known = set(self.inputs.values())
            for label in sorted({*self.inputs, *new.inputs}):
                before, now = self.inputs.get(label, ABSENT), new.inputs.get(label, ABSENT)
                if before != now and now not in known:
                    out.append(Change(f"input {label}", before, now, Kind.EXPERIMENT))
            if not any(change.key.startswith("input ") for change in out):
                out.append(Change("inputs", sorted(self.inputs), sorted(new.inputs), Kind.EXPERIMENT))
        for section in sorted({*self.length, *new.length}):
            out += _length_change(section, self.length.get(section, {}), new.length.get(section, {}))
        return out + _differences(self.means, new.means, Kind.MEANS)


_BEFORE = (  # what a folder means that lacks the key
    ("sft.shared_prefix", "off"),
    ("sft.group_by_length", False),
    ("rl.start", "sft"),
    ("rl.task_reward", "task"),
    ("rl.token_weights", None),
    ("rl.reference", None),
)


def _counts(key: str, value: Any) -> bool:
    """Whether a stored key decides equality: its kind may have changed since, and an older folder lacks newer keys."""
    as_before = (
        (not value and key.endswith(".leave_out"))
        or (key, value) in _BEFORE
        or (value is None and (key.startswith("policy.pixels.") or key.endswith(".indicator")))
    )
    return kind_of(key) in (None, Kind.EXPERIMENT) and not as_before


def labels(inputs: Iterable[str | Path], root: Path) -> dict[str, Path]:
    """{label: path}: the path below the run root, else its last two parts; no two inputs share a label."""
    out: dict[str, Path] = {}
    for given in inputs:
        path = Path(given)
        relative = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(root)))
        label = "/".join(path.parts[-2:]) if relative.parts[:1] == ("..",) else relative.as_posix()
        number = 2
        unique = label
        while unique in out:
            unique, number = f"{label}#{number}", number + 1
        out[unique] = path
    return out


def _contents(whole: Mapping[str, Any], hashes: Hashes) -> dict[str, str]:
    """Hashes of the model folders and prompt files that keys name. A model of the hub or of a server counts by its name."""
    out: dict[str, str] = {}
    for key, value in flat(whole).items():
        if key.startswith("models.") and Path(value).is_dir():
            out[key] = hashes.of_model(Path(value))
        elif key.startswith("prompts."):
            try:
                out[key] = prompts.digest(prompts.read(value))
            except UserError:  # the stage that reads the prompt reports it; here its name counts
                continue
    return out


def _code(whole: Mapping[str, Any]) -> dict[str, str]:
    """The code of the rewards that RL trains on or logs, and of its auxiliary losses."""
    if "rl" not in whole:
        return {}
    rl = whole["rl"]
    rewards = {"task", rl.get("task_reward", "task"), *rl["constraints"], *rl["monitor"]}
    losses = code_hashes("rl.auxiliary", rl.get("auxiliary", ()))
    return code_hashes("rewards", rewards) | {f"auxiliary/{name}": digest for name, digest in losses.items()}


def _batch(config: Config, whole: Mapping[str, Any]) -> dict[str, str]:
    """Traces per optimizer step of SFT, over all processes, which `launch` sets. RL's batches are keys of their own."""
    if "sft" not in whole:
        return {}
    sft, launch = config.sft, config.launch
    return {_SFT_BATCH: str(sft.batch_size * sft.gradient_accumulation * launch.sft_processes * launch.machines)}


def _length(section: Mapping[str, Any]) -> dict[str, Any]:
    """How long training lasts, and whether the schedule lets it be extended: its rates must not depend on the length."""
    steps = section["max_steps"]
    constant = section["scheduler"] == "constant"
    warmed = section["scheduler"] == "constant_with_warmup" and section["warmup_ratio"] == 0
    length = {"steps": steps} if steps > 0 else {"epochs": section["epochs"]}
    return {**length, "extendable": bool(constant or warmed)}


def _length_change(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    for unit, key in (("steps", f"{section}.max_steps"), ("epochs", f"{section}.epochs")):
        before, now = old.get(unit), new.get(unit)
        if before == now:
            continue
        is_extension = before is not None and now is not None and now > before and bool(new.get("extendable"))
        return [Change(key, before, now, Kind.LENGTH if is_extension else Kind.EXPERIMENT)]
    return []


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], kind: Kind) -> list[Change]:
    keys = sorted({*old, *new})
    pairs = ((key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys)
    return [Change(key, before, now, kind) for key, before, now in pairs if before != now]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 32 and value.isalnum()
    return f"{text[:8]}…" if is_hash else text if len(text) <= 60 else f"{text[:57]}…"
