"""What must hold after each stage: counts that fit what went in, files that are there, shapes of the real model."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo.files import read_jsonl
from fgrpo.response import parse
from scripts.rehearsal_paper.endpoint import Endpoint
from scripts.rehearsal_paper.photographs import FORMS
from scripts.rehearsal_paper.stand_in import Shapes

RUN = "paper-7b"
CPU_FAILURES = ("gpu", "cuda", "vllm", "flash", "sentence-transformers", "gb free", "deepspeed", "pins", "g++", "ninja")


@dataclass
class Result:
    """Counts for the log, and problems found."""

    counts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def must(self, holds: bool, problem: str) -> None:
        """Note a problem unless `holds`."""
        if not holds:
            self.problems.append(problem)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _finished(out: Result, folder: Path, *files: str) -> None:
    for name in ("done", "manifest.json", "config.json", *files):
        out.must((folder / name).exists(), f"{folder / name} is missing")


def plan(root: Path, output: str, endpoint: Endpoint) -> Result:
    """The plan speaks of every stage."""
    out = Result({"lines": len(output.splitlines())})
    for word in ("data", "mcts", "sft", "rl", "eval"):
        out.must(word in output.lower(), f"the plan says nothing of {word}")
    return out


def doctor(root: Path, output: str, endpoint: Endpoint) -> Result:
    """The doctor finds what a CPU lacks, and nothing wrong with data, models and endpoints."""
    states = [line.split(" ", 1)[0] for line in output.splitlines()]
    out = Result({state: states.count(state) for state in ("ok", "warn", "fail")})
    for line in output.splitlines():
        if line.startswith("fail ") and not any(word in line.lower() for word in CPU_FAILURES):
            out.problems.append(line)
    for model in (*endpoint.models["vllm"][:4], *endpoint.models["openai"]):
        out.must(f"serves {model}" in output, f"the doctor does not say that {model} is served")
    return out


def data(root: Path, output: str, endpoint: Endpoint) -> Result:
    """Every record is kept or dropped under a reason; the odd images are dropped for what they are."""
    folder = root / RUN / "data"
    out = Result()
    _finished(out, folder, "seed.jsonl", "rl.jsonl", "difficulty.jsonl", "report.md")
    reasons: set[str] = set()
    for name, tally in _json(folder / "dropped.json").items():
        dropped = sum(tally["dropped"].values())
        out.counts[name] = f"{tally['kept']}/{tally['records']}"
        out.must(tally["records"] == tally["kept"] + dropped, f"{name} lost records: {tally}")
        out.must(tally["kept"] >= tally["records"] // 2, f"{name} keeps {tally['kept']} of {tally['records']}: {tally}")
        reasons |= set(tally["dropped"])
    seeds, questions = list(read_jsonl(folder / "seed.jsonl")), list(read_jsonl(folder / "rl.jsonl"))
    out.counts |= {"seeds": len(seeds), "rl": len(questions), "dropped for": " ".join(sorted(reasons)) or "nothing"}
    out.must(not {row["id"] for row in seeds} & {row["id"] for row in questions}, "seeds and RL set overlap")
    out.must(bool(seeds and questions), "a set is empty")
    for row in [*seeds, *questions]:
        out.must(row["answer"] in row["choices"], f"{row['id']}: its answer is not among its options")
        out.must(all(Path(path).is_file() for path in row["images"]), f"{row['id']}: an image is missing")
        may_have = row["id"].split("/")[0] in ("vgr", "treevgr")
        out.must(may_have or not row.get("boxes"), f"{row['id']} has boxes of a source without them")
    out.must(any(row.get("boxes") for row in questions), "no RL question has boxes")
    out.must(any(len(row["images"]) > 1 for row in [*seeds, *questions]), "no question has two images")
    if any(form.endswith("jpeg") for form in FORMS):
        out.must(
            {"image_too_narrow", "turned_by_exif"} <= reasons, f"narrow or turned images are not dropped: {reasons}"
        )
    rows = list(read_jsonl(folder / "difficulty.jsonl"))
    out.counts["rolled out"] = len(rows)
    out.must(all(len(row["correct"]) == 4 for row in rows), "a question has not four rollouts")
    return out


def mcts(root: Path, output: str, endpoint: Endpoint) -> Result:
    """A tree per seed question; every trace is well formed, and SFT records name images that are there."""
    folder = root / RUN / "mcts"
    out = Result()
    _finished(out, folder, "trees.jsonl", "traces.jsonl", "sft.jsonl", "report.md", "viewer.html")
    seeds = list(read_jsonl(root / RUN / "data" / "seed.jsonl"))
    trees, traces = list(read_jsonl(folder / "trees.jsonl")), list(read_jsonl(folder / "traces.jsonl"))
    records = list(read_jsonl(folder / "sft.jsonl"))
    failed = list(read_jsonl(folder / "failed.jsonl")) if (folder / "failed.jsonl").exists() else []
    rejected: dict[str, int] = {}
    for tree in trees:
        for name, count in tree.get("counts", {}).items():
            rejected[name] = rejected.get(name, 0) + count
    out.counts |= {"trees": len(trees), "traces": len(traces), "records": len(records), "steps": rejected}
    out.must(
        len(trees) + len(failed) == len(seeds), f"{len(seeds)} seeds gave {len(trees)} trees, {len(failed)} failed"
    )
    out.must(bool(traces) and len(records) == len(traces), f"{len(traces)} traces gave {len(records)} records")
    for record in records:
        reply = record["messages"][-1]["content"]
        out.must(parse(reply).well_formed, f"a record is not well formed: {reply[:200]!r}")
        marks = record["messages"][-2]["content"].count("<image>")
        out.must(marks in (0, len(record["images"])), f"{marks} image marks for {len(record['images'])} images")
    return out


def _weights(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return shapes


def _final(out: Result, folder: Path) -> None:
    """The checkpoint has the shapes of the model it came from, an untied head, and the files to load it."""
    shape = Shapes()
    weights = _weights(folder)
    head = (shape.vocabulary, shape.hidden)
    tables = {name: size for name, size in weights.items() if name.endswith(("lm_head.weight", "embed_tokens.weight"))}
    out.must(sorted(tables.values()) == [head, head], f"{folder}: embeddings and head are {tables}, not two of {head}")
    config = _json(folder / "config.json")
    out.must(config.get("tie_word_embeddings") is False, f"{folder}: the head is tied in config.json")
    out.must((folder / "tokenizer.json").is_file(), f"{folder} has no tokenizer")
    names = ("preprocessor_config.json", "processor_config.json")
    out.must(any((folder / name).is_file() for name in names), f"{folder} has no processor")


def sft(root: Path, output: str, endpoint: Endpoint) -> Result:
    """Every trace is trained on or counted; the loss is finite; the final model loads as the base does."""
    folder = root / RUN / "sft"
    out = Result()
    _finished(out, folder, "metrics.jsonl", "final")
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    losses = [line["loss"] for line in lines if "loss" in line]
    out.counts |= {"steps": max((line.get("step", 0) for line in lines), default=0), "losses": losses}
    out.must(bool(losses) and all(map(math.isfinite, losses)), f"losses are {losses}")
    out.counts |= _json(folder / "manifest.json").get("counts", {})
    _final(out, folder / "final")
    return out


def rl(method: str, root: Path, output: str, endpoint: Endpoint) -> Result:
    """Each step once; rollouts of full groups; judges asked; multipliers stepped for FGRPO alone."""
    import pyarrow.parquet as pq

    folder = root / RUN / f"rl-{method}"
    out = Result()
    _finished(out, folder, "metrics.jsonl", "rollouts", "final")
    lines = list(read_jsonl(folder / "metrics.jsonl"))
    steps = [line["step"] for line in lines]
    out.must(steps == list(range(1, len(steps) + 1)), f"metrics.jsonl has steps {steps}")
    rows = [row for file in sorted((folder / "rollouts").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    out.counts |= {"steps": len(steps), "rollouts": len(rows)}
    out.counts |= _json(folder / "manifest.json").get("counts", {})
    out.must(bool(rows) and len(rows) % 5 == 0, f"{len(rows)} rollouts are no full groups of 5")
    judged = Counter(str(row["consistency/state"]) for row in rows)  # scored for right rollouts alone
    out.counts["judged for consistency"] = dict(judged)
    out.must(judged["scored"] > 0, f"no judge was asked: no rollout was right ({dict(judged)})")
    last = lines[-1] if lines else {}
    multipliers = {key: value for key, value in last.items() if key.startswith("lambda/")}
    out.counts |= {"lambda": multipliers}
    out.must(bool(multipliers) == (method != "grpo-t"), f"multipliers of {method}: {multipliers}")
    _final(out, folder / "final")
    return out


def evaluation(name: str, root: Path, output: str, endpoint: Endpoint) -> Result:
    """Every question is answered, refused or left out under a reason; every scored answer has its verdicts."""
    folder = root / RUN / "eval" / name
    out = Result()
    _finished(out, folder, "generations.jsonl", "verdicts.jsonl", "scores.jsonl", "summary.json")
    generations, scores = list(read_jsonl(folder / "generations.jsonl")), list(read_jsonl(folder / "scores.jsonl"))
    out.counts |= {"answers": len(generations), "scored": len(scores)}
    out.counts["verdicts"] = sum(1 for _ in read_jsonl(folder / "verdicts.jsonl"))
    counts = _json(folder / "manifest.json").get("counts", {})
    out.counts |= {
        key: value for key, value in counts.items() if "left out" in key or "refused" in key or "failed" in key
    }
    out.must(bool(scores) and len(scores) == len(generations), f"{len(generations)} answers have {len(scores)} scores")
    return out


def _outputs(folder: Path, endings: tuple[str, ...]) -> Result:
    out = Result()
    for ending in endings:
        files = list(folder.glob(f"*{ending}"))
        out.counts[ending] = len(files)
        out.must(bool(files) and all(file.stat().st_size > 0 for file in files), f"{folder} has no {ending} files")
    return out


def tables(root: Path, output: str, endpoint: Endpoint) -> Result:
    """Tables as text and as data."""
    return _outputs(root / RUN / "tables", (".md", ".json"))


def figures(root: Path, output: str, endpoint: Endpoint) -> Result:
    """Figures as pictures."""
    return _outputs(root / RUN / "figures", (".png",))


def report(root: Path, output: str, endpoint: Endpoint) -> Result:
    """One page."""
    return _outputs(root / RUN / "report", (".html",))


def judge_agreement(root: Path, output: str, endpoint: Endpoint) -> Result:
    """A page and its data."""
    return _outputs(root / RUN / "judge_validation", (".md", ".json"))


def slurm(root: Path, output: str, endpoint: Endpoint) -> Result:
    """Scripts of every stage."""
    return _outputs(root / RUN / "slurm", (".sbatch", ".sh"))
