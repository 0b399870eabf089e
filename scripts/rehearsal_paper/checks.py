"""What must hold after each stage: counts that fit what went in, files that are there, shapes of the real model."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgrpo.config import load
from fgrpo.files import read_jsonl
from fgrpo.response import parse
from fgrpo.schema import Config
from ops.assumptions import Assumptions
from scripts.rehearsal_paper import lengths
from scripts.rehearsal_paper.endpoint import Endpoint
from scripts.rehearsal_paper.stand_in import Shapes

RUN = "paper-7b"
# what a small machine lacks: the one failure that is right here; the preset's checkpoints are those of the 7B model
NO_ROOM = re.compile(r"fail +\d+ GB free for runs in \S+, \d+ needed")
PARAMETERS = "8,292,166,656 parameters"  # of Qwen2.5-VL-7B


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


def plan(config: Config, root: Path, output: str, endpoint: Endpoint) -> Result:
    """The plan counts what the configuration asks for, stage by stage, at the size of the 7B model, and says which lengths it assumes."""
    rows = dict(re.findall(r"(?m)^([a-z-]+) +([\d,]+) +[\d,]+ +[\d,]+ +[\d.]+ ", output))
    found = {stage: int(rows.get(stage, "0").replace(",", "")) for stage in ("data", "mcts", "sft", "rl")}
    sources, rl = config.data.sources.values(), config.rl
    seeds, questions = sum(source.seed for source in sources), sum(source.rl for source in sources)
    wanted = {
        "data": questions * config.data.difficulty_rollouts,
        "sft": config.sft.max_steps,
        "rl": rl.max_steps * rl.global_batch * rl.group_size,
    }
    assumed = lengths.assumed(output)
    out = Result({"assumes": assumed, "calls": found})
    missing = [name for name in lengths.ASSUMED if name not in assumed]
    out.must(not missing and len(assumed) == len(lengths.ASSUMED), f"the plan does not assume {', '.join(missing)}")
    for stage, count in wanted.items():
        out.must(found[stage] == count, f"the plan has {found[stage]} calls of {stage}, and {count} are configured")
    trees = f"{seeds} trees x {config.mcts.simulations} simulations"
    updates = f"{rl.max_steps} updates x {rl.global_batch} prompts x {rl.group_size} rollouts"
    for words in (trees, updates, PARAMETERS):
        out.must(words in output, f"the plan does not say {words!r}")
    return out


def doctor(root: Path, output: str, endpoint: Endpoint) -> Result:
    """The doctor finds nothing wrong but too small a disk; each model of the endpoint is served."""
    states = [line.split(" ", 1)[0] for line in output.splitlines()]
    out = Result({state: states.count(state) for state in ("ok", "warn", "fail")})
    out.problems += [
        line for line in output.splitlines() if line.startswith("fail ") and not NO_ROOM.fullmatch(line.strip())
    ]
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
    out.must({"image_too_narrow", "turned_by_exif"} <= reasons, f"narrow or turned images are not dropped: {reasons}")
    rows = list(read_jsonl(folder / "difficulty.jsonl"))
    out.counts["rolled out"] = len(rows)
    out.must(all(len(row["correct"]) == 4 for row in rows), "a question has not four rollouts")
    if not out.problems:
        _measure(out, root, questions)
    return out


def _measure(out: Result, root: Path, questions: Sequence[Mapping[str, Any]]) -> None:
    """Lengths of the questions' prompts; their text is as long as the plan assumes."""
    config = load(RUN)
    found = lengths.of_questions(config, lengths.model_folder(root, config), questions)
    out.counts["questions measure"] = found
    planned = Assumptions()["lengths.text"]
    out.must(
        0.8 * planned <= found["lengths.text"] <= 1.25 * planned,
        f"the text of a prompt has {found['lengths.text']:g} tokens, and make plan assumes {planned:g}",
    )


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
    """Each step once; rollouts of full groups; judges asked; multipliers moved for FGRPO alone."""
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
    out.counts["rollouts measure"] = lengths.of_rollouts(rows)
    out.must(bool(rows) and len(rows) % 5 == 0, f"{len(rows)} rollouts are no full groups of 5")
    judged = Counter(str(row["consistency/state"]) for row in rows)  # scored for right rollouts alone
    out.counts["judged for consistency"] = dict(judged)
    out.must(judged["scored"] > 0, f"no judge was asked: no rollout was right ({dict(judged)})")
    _multipliers(out, folder, lines, method != "grpo-t")
    _final(out, folder / "final")
    return out


def _multipliers(out: Result, folder: Path, lines: Sequence[Mapping[str, Any]], constrained: bool) -> None:
    """Each λ of a constraint that a rollout had a score for has left its initial value; without constraints there is none."""
    scored = {
        key.split("/")[1] for line in lines for key, n in line.items() if re.fullmatch(r"constraint/\w+/n", key) and n
    }
    saved = sorted(folder.glob("checkpoints/*/duals.json"), key=lambda file: int(file.parent.name.rpartition("-")[2]))
    out.must(bool(saved), f"{folder} has no checkpoint with multipliers")
    if not constrained:
        names = {key.removeprefix("lambda/") for line in lines for key in line if key.startswith("lambda/")}
        names.update(*(_json(file)["states"] for file in saved))
        out.must(not names, f"multipliers without constraints: {sorted(names)}")
        return
    duals = _json(saved[-1]) if saved else {"constraints": [], "states": {}}
    first = {constraint["reward"]: constraint["lam_init"] for constraint in duals["constraints"]}
    lam = {name: state["lam"] for name, state in duals["states"].items()}
    out.counts["lambda"] = lam
    out.must(bool(scored & set(lam)), f"no constraint of {sorted(lam)} was scored")
    for name in scored & set(lam):
        out.must(lam[name] != first[name], f"λ of {name} has not moved from {first[name]}, though it was scored")


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
