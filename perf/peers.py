"""Other evaluation harnesses, and ours, as commands over one endpoint and the same questions: what they read, run and write.

lmms-eval and VLMEvalKit are found in the environments that the variable PEERS names (virtual environments, with ":" between them).
Each gets its own means of resuming (a response cache; `--reuse`) and stores its answers, so that lost ones can be counted. The data
are the miniature world's CVB-2D; nothing is loaded from a hub.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import string
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.types import Sample
from perf.endpoint import MODEL

VARIABLE = "PEERS"
TASK_NAME = "same_questions"
IN_FLIGHT, TIMEOUT_S = 32, 120
MAX_TOKENS = 96
LMMS_FAILED, VLM_FAILED = "[LMMS_EVAL_REQUEST_FAILED", "Failed to obtain answer"
TASK = """task: same_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function same_questions.visual
doc_to_text: !function same_questions.text
doc_to_target: answer
process_results: !function same_questions.results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
generation_kwargs: {{max_new_tokens: 96, temperature: 0}}
"""
FUNCTIONS = """from PIL import Image
def visual(doc): return [Image.open(path).convert("RGB") for path in doc["images"]]
def text(doc, kwargs=None): return doc["question"]
def results(doc, result): return {"right": float(doc["answer"] in result[0])}
"""


@dataclass(frozen=True)
class Harness:
    """One harness.

    Attributes:
        name: as in the table.
        module: what its environment can import.
        install: the command that installs it; "" for ours.
        prepare: (folder, questions) -> writes what the command reads into the folder.
        command: (interpreter, address, folder) -> the command; run again in the same folder it resumes.
        answered: (folder) -> questions that have an answer there, of those that a finished run stored.
    """

    name: str
    module: str
    install: str
    prepare: Callable[[Path, Sequence[Sample]], None]
    command: Callable[[str, str, Path], list[str]]
    answered: Callable[[Path], int]


def environment(folder: Path) -> dict[str, str]:
    """The variables of a harness' process: offline, its caches and data in the folder."""
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OPENAI_API_KEY": "none"}
    return {**os.environ, **own, "LMUData": str(folder), "PRED_FORMAT": "tsv", "WANDB_MODE": "offline"}


def interpreter(harness: Harness, environments: Sequence[str]) -> str | None:
    """The interpreter of the first environment that has the harness; None: no environment has it.

    Raises:
        UserError: an environment without an interpreter.
    """
    for folder in environments:
        python = Path(folder, "bin", "python")
        if not python.exists():
            raise UserError(f"{VARIABLE} names {folder}, but there is no {python}; name virtual environments")
        find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({harness.module!r}) is None)"
        if subprocess.run([python, "-c", find], check=False).returncode == 0:
            return str(python)
    return None


def named_environments(text: str | None) -> list[str]:
    """The folders of `text`, or of $PEERS."""
    return [part for part in (text or os.environ.get(VARIABLE, "")).split(":") if part]


def _nothing(folder: Path, samples: Sequence[Sample]) -> None:
    """Our harness reads the data root itself."""


def ours(overrides: Sequence[str], preset: str) -> Harness:
    """`make eval` of one benchmark without judges, as its own process."""

    def command(python: str, url: str, folder: Path) -> list[str]:
        out = [python, "-m", "eval.run", "--preset", preset, "--model", "backbone-cot", "--benchmarks", "cvb_2d"]
        engine = [f"engine.endpoints=[{url}]", "engine.kind=openai", f"engine.model_name={MODEL}"]
        limits = [f"engine.concurrency={IN_FLIGHT}", "eval.sampled_rollouts=0", "eval.max_refused_share=1.0"]
        return [*out, "--judges", "none", "--runs", str(folder), "--set", *overrides, *engine, *limits]

    def answered(folder: Path) -> int:
        (path,) = folder.glob("*/eval/backbone-cot/generations.jsonl")
        return len({row["id"] for row in read_jsonl(path) if row["finish"] != "error"})

    return Harness("this harness", "eval", "", _nothing, command, answered)


def write_lmms(folder: Path, samples: Sequence[Sample]) -> None:
    """A task of lmms-eval: its YAML, its functions, and the rows."""
    rows = folder / "rows.json"
    found = [
        {"question": s.question, "answer": s.answer, "images": [str(Path(i).resolve()) for i in s.images]}
        for s in samples
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    (folder / f"{TASK_NAME}.yaml").write_text(TASK.format(rows=rows), encoding="utf-8")
    (folder / f"{TASK_NAME}.py").write_text(FUNCTIONS, encoding="utf-8")


def lmms_command(python: str, url: str, folder: Path) -> list[str]:
    """lmms-eval with its response cache and its samples stored."""
    settings = f"model_version={MODEL},base_url={url},api_key=none,num_concurrent={IN_FLIGHT},timeout={TIMEOUT_S}"
    out = [python, "-m", "lmms_eval", "--model", "openai", "--model_args", settings, "--batch_size", "1"]
    out += ["--tasks", TASK_NAME, "--include_path", str(folder), "--use_cache", str(folder / "answers")]
    return [*out, "--log_samples", "--output_path", str(folder / "out")]


def lmms_answered(folder: Path) -> int:
    """Samples of the newest file whose reply is not lmms-eval's note of a failure."""
    path = max((folder / "out").rglob("*_samples_*.jsonl"), key=lambda p: p.stat().st_mtime)
    replies = (json.dumps(row["resps"]) for row in read_jsonl(path))
    return sum(LMMS_FAILED not in reply for reply in replies)


def write_vlm(folder: Path, samples: Sequence[Sample]) -> None:
    """VLMEvalKit's table of a multiple-choice data set, images in base64."""
    letters = string.ascii_uppercase[: max(len(s.choices) for s in samples)]
    with (folder / f"{TASK_NAME}.tsv").open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out, delimiter="\t")
        table.writerow(["index", "image", "question", *letters, "answer"])
        for n, s in enumerate(samples):
            image = base64.b64encode(Path(s.images[0]).read_bytes()).decode()
            padded = [*s.choices, *[""] * (len(letters) - len(s.choices))]
            table.writerow([n, image, s.question, *padded, letters[s.choices.index(s.answer)]])


def vlm_command(python: str, url: str, folder: Path) -> list[str]:
    """VLMEvalKit with `--reuse`, its own matching of option letters as the judge."""
    out = [python, "-m", "vlmeval.run", "--data", TASK_NAME, "--model", MODEL, "--base-url", url, "--key", "none"]
    out += ["--api-nproc", str(IN_FLIGHT), "--timeout", str(TIMEOUT_S), "--max-tokens", str(MAX_TOKENS), "--reuse"]
    return [*out, "--judge", "exact_matching", "--work-dir", str(folder / "out")]


def vlm_answered(folder: Path) -> int:
    """Rows of the newest prediction file whose reply is not VLMEvalKit's note of a failure."""
    found = [p for p in (folder / "out").rglob(f"{MODEL}_{TASK_NAME}.tsv") if not p.is_symlink()]
    with max(found, key=lambda p: p.stat().st_mtime).open(encoding="utf-8", newline="") as table:
        rows: list[Mapping[str, str]] = list(csv.DictReader(table, delimiter="\t"))
    return sum(bool(row["prediction"]) and VLM_FAILED not in row["prediction"] for row in rows)


LMMS = Harness(
    "lmms-eval", "lmms_eval", "pip install lmms-eval==0.7.3", write_lmms, lmms_command, lmms_answered
)  # fmt: skip
VLM = Harness("VLMEvalKit", "vlmeval", "pip install ms-vlmeval==0.0.20", write_vlm, vlm_command, vlm_answered)
PEERS = (LMMS, VLM)
