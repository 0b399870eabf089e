"""Writes the card (README.md with YAML metadata) of a checkpoint or a data set, ready to upload to the hub.

For a trained model: what it was trained on, the constraints with their thresholds and final multipliers, its results beside those
of the models before it, how to prompt it, and its limits. For the traces of the tree search and for the RL set: what a record is,
where it comes from, counts, and what is not included. Everything comes from the files of the run; what these do not state is left out.

Command: `make card RUN=runs/mini/rl-fgrpo` (`python -m ops.card --run runs/mini/rl-fgrpo`; runs/<preset>/sft, …/anchor, …/mcts,
…/data, or a checkpoint of a run, work alike).
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import write_atomic
from fgrpo.hashing import is_of_model
from fgrpo.runs import DONE
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed

TEMPLATES = Path(__file__).resolve().parent / "card_templates"
CARD = "README.md"
DATA_STAGES = ("mcts", "data")
SUPERVISED = ("sft", "anchor")  # stages that train on traces
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, configuration, tokenizer, processor
TORCH_WEIGHTS = "pytorch_model*.bin"  # weights that an older version saved
ABSENT = object()


@dataclass(frozen=True)
class Source:
    """A finished run folder for which a card is written.

    Attributes:
        path: runs/<preset>/<stage>.
        weights: folder of the model below it; None for data.
        stored: the configuration that decided the run (`config` of config.json), by section.
        means: how it was computed (`means` of config.json).
        manifest: what the stage recorded at its end.
        config: the preset's configuration, for what the run does not store.
    """

    path: Path
    weights: Path | None
    stored: dict[str, Any]
    means: dict[str, Any]
    manifest: dict[str, Any]
    config: Config

    @property
    def stage(self) -> str:
        """Such as "rl-fgrpo", "sft" or "mcts"."""
        return self.path.name

    @property
    def runs(self) -> Path:
        """The root of the run folders."""
        return self.path.parent.parent

    def value(self, key: str) -> Any:
        """The value of a dotted key: as the run stored it, else as the preset has it today (`is_stored` tells which)."""
        stored = _inside(self.stored, key)
        return _inside(self.config.model_dump(mode="json"), key) if stored is ABSENT else stored

    def is_stored(self, key: str) -> bool:
        """Whether the run's own configuration states a dotted key."""
        return _inside(self.stored, key) is not ABSENT

    def note(self, key: str) -> str:
        """What follows a stated value: " (of the preset)" where the run does not store it; else ""."""
        return "" if self.is_stored(key) else " (of the preset)"

    @property
    def target(self) -> Path:
        """Where the card belongs: beside the weights, or in the run folder of data."""
        return (self.weights or self.path) / CARD


def _inside(values: Any, key: str) -> Any:
    """The value of a dotted key, whose first parts may together be one key ("models.base"); `ABSENT` if there is none."""
    if not isinstance(values, dict):
        return ABSENT
    if key in values:
        return values[key]
    parts = key.split(".")
    for at in range(len(parts) - 1, 0, -1):
        if (first := ".".join(parts[:at])) in values:
            return _inside(values[first], ".".join(parts[at:]))
    return ABSENT


def find(place: Path, overrides: Sequence[str] = ()) -> Source:
    """The run that `place` is or lies in.

    Args:
        place: a run folder, its `final`, or one of its checkpoints.
        overrides: of the preset's configuration.

    Raises:
        UserError: no run folder, an unfinished one, or one of a stage that has no card.
    """
    folder = next((p for p in (place, *place.parents) if (p / "manifest.json").is_file()), None)
    if folder is None or not (folder / DONE).is_file():  # a stage that is taken up again keeps its manifest
        state = "is not finished" if (place / "config.json").is_file() else "is no run folder"
        raise UserError(f"{place} {state}; name a finished one: RUN=runs/<preset>/rl-<method>, sft, mcts or data")
    manifest, identity = _read(folder / "manifest.json"), _read(folder / "config.json")
    is_model = folder.name in SUPERVISED or folder.name.startswith("rl-")
    if not is_model and folder.name not in DATA_STAGES:
        raise UserError(
            f"{folder} is neither a trained model nor data; cards are of rl-<method>, sft, anchor, mcts and data"
        )
    weights = (
        (place if (place / "config.json").is_file() and place != folder else folder / "final") if is_model else None
    )
    if weights is not None and not weights.is_dir():
        raise UserError(f"{weights} is missing; run the stage {folder.name} again, or name a checkpoint of it")
    config = load(str(manifest["preset"]), str(manifest["method"]), overrides)
    return Source(folder, weights, identity.get("config", {}), identity.get("means", {}), manifest, config)


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); rerun its stage") from error


def render(template: str, **values: Any) -> str:
    """A card from its template; a value that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["fenced"] = fenced
    return environment.get_template(template).render(**values)


def fenced(text: str, language: str = "text") -> str:
    """Text as a code block that nothing inside it can close."""
    longest = max((len(part) for part in _runs_of_backticks(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return [part for part in "".join(c if c == "`" else " " for c in text).split() if part]


def write(place: Path, overrides: Sequence[str] = ()) -> Path:
    """Write the card of a run; returns its path. UserError as `find`."""
    from ops import card_data, card_model

    source = find(place, overrides)
    text = card_model.text(source) if source.weights is not None else card_data.text(source)
    write_atomic(source.target, text)
    return source.target


def uploaded(card: Path) -> list[str]:
    """The files beside a card that a user needs, by name: the model and its processor, or the data that the card describes.

    A checkpoint also holds what training resumes from (optimizer, random states, multipliers), and a run folder of data more
    than its card describes.
    """
    from ops.card_data import FILES

    if card.parent.name in DATA_STAGES:
        return [name for name in FILES[card.parent.name] if (card.parent / name).is_file()]
    files = sorted(path for path in card.parent.iterdir() if path.is_file() and is_of_model(Path(path.name)))
    return [path.name for path in files if path.suffix in MODEL_SUFFIXES or path.match(TORCH_WEIGHTS)]


def upload_advice(card: Path) -> str:
    """How to upload what a card describes, and nothing else."""
    folder = shlex.quote(str(card.parent))
    included = " ".join(f"--include {shlex.quote(name)}" for name in (CARD, *uploaded(card)))
    if card.parent.name not in DATA_STAGES:
        return f"read it, then upload: hf upload <you>/<name> {folder} . {included}"
    return (
        "rows hold the paths of images on this machine, and so does the record that the card shows: read both and replace "
        f"the paths, then upload: hf upload --repo-type dataset <you>/<name> {folder} . {included}"
    )


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        card = write(Path(args.run), args.set)
        print(f"card: {card}\n{upload_advice(card)}")

    arguments = parser("write the card of a checkpoint or a data set")
    arguments.add_argument(
        "--run", required=True, metavar="FOLDER", help="runs/<preset>/rl-<method>, sft, anchor, mcts or data"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
