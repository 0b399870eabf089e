"""Summaries of other harnesses' answers that were made under another definition: computed again from the scores.

`make eval` computes the summaries of our own models again where intervals, measures or the benchmarks of the average changed. The
files of another harness are not named there, and need not be: its scores are in the run folder. Scores that a reward made
whose code has changed since stay; only `make external` makes them again, which is said.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from eval import base, run_folder, scored_answers
from eval.external.table import FILE
from eval.results import SCORING, read_records
from fgrpo.errors import UserError
from fgrpo.runs import DONE, MANIFEST, folder, held, record_outputs, verify, write_json
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed

SUMMARY = "summary.json"
HEAD = (
    "model",
    "title",
    "mode",
    "judge",
    "extractor",
    "boxes_other_form",
    "boxes_unread",
)  # of a summary: what its scores say, not their definition


def whole(config: Config) -> Config:
    """`config` without `eval.limit`: of another harness' answers all are scored."""
    return config.model_copy(update={"eval": config.eval.model_copy(update={"limit": None})})


def rebuild(config: Config, root: str | Path = "runs") -> list[Path]:
    """Compute again the summaries of finished evaluations of other harnesses that have another definition; returns their folders.

    A folder on which another process works is left out, and said.

    Raises:
        UserError: a file of such a folder is damaged.
    """
    config, done = whole(config), []
    for path in sorted(place.parent for place in folder(config, "eval", root).glob(f"*/{FILE}")):
        if _is_stale(path, config):
            with ExitStack() as stack:
                try:
                    stack.enter_context(held(path))
                except UserError as error:
                    print(f"{error}: its summary is of an older definition")
                    continue
                if _is_stale(path, config):  # it may be finished since
                    _rebuild(path, config)
                    done.append(path)
    return done


def _is_stale(path: Path, config: Config) -> bool:
    """Whether a finished evaluation's summary has another definition, and its scores are those of today's rewards."""
    scoring = run_folder.stored_scoring(path / SCORING) if (path / DONE).is_file() else None
    if scoring is None or scoring["summary"] == run_folder.definition(config):
        return False
    if run_folder.with_known_code(scoring["judges"]).get("rewards") == run_folder.reward_code():
        return True
    print(f"{path} was scored by rewards that have changed since; run `make external` for its files again")
    return False


def _rebuild(path: Path, config: Config) -> None:
    for name in ("scores.jsonl", SUMMARY):
        verify(path / name, "external")
    records = read_records(path / "scores.jsonl")
    old = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    scoring = run_folder.stored_scoring(path / SCORING)
    assert scoring is not None  # `_is_stale`
    paired = [name for name in dict.fromkeys(r.benchmark for r in records) if base.is_paired(name)]
    head = {key: old[key] for key in HEAD if key in old}
    manifest = read_sealed(path / MANIFEST)
    (path / DONE).unlink()
    write_json(path / SUMMARY, {**head, **scored_answers.defined(records, paired, config)})
    write_sealed(path / SCORING, {"judges": scoring["judges"], "summary": run_folder.definition(config)})
    record_outputs(path, [SUMMARY], manifest)
    print(f"{path / SUMMARY}: computed again from its scores, as the definition has changed")
