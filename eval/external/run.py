"""Score the generations that another harness stored (lmms-eval, VLMEvalKit): no token is generated.

The answers become an evaluation of their own, runs/<preset>/eval/<name>, scored by the code that scores ours: rules read each
answer, the judges of `judges.evaluation` and `judges.extraction` are asked for the rest. Tables, figures, report and `make
compare` show it like any model. The harness' own score of each answer stays beside ours. Rows without a question or images are
counted by reason and are in no figure.

Command: `python -m eval.external --name their-model --samples <file> [<file> …]` (docs/other_harnesses.md).
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import base, miniworld_truth, models, run_folder, score, scored_answers
from eval.external import current, matching
from eval.external.formats.vlmevalkit import read_images
from eval.external.rows import Format, Row, format_of
from eval.external.table import FILE
from eval.generate import GREEDY
from eval.judge_validation.stored import QUESTIONS
from eval.metrics import mean
from eval.run import OUTPUTS, evaluation_judges, judges_option, with_judges
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.policy.model_files import pixel_bounds
from fgrpo.response import parse
from fgrpo.runs import Run, write_json
from fgrpo.schema import Config
from fgrpo.types import EvalRecord, Rollout, Sample

IMAGES = "images"  # those that the files hold
MADE_BY = "external"


@dataclass(frozen=True)
class Source:
    """What to read and how.

    Attributes:
        files: sample files of one model, one per task.
        name: of the model in this repository's tables.
        title: row heading; "" = the name.
        benchmark: the benchmark whose questions all files hold; None = as the files' names tell, else the files' own questions.
        format: a module of eval/external/formats; None = as the files' names tell.
        images: the data set's own file with its images (VLMEvalKit's LMUData/<dataset>.tsv).
        like: a model of configs/models that writes boxes and tags as this one does; None = the usual tags, no boxes.
        metric: the harness' metric to compare with; None = its first.
        is_untagged: whether a reply without tags is a trace with its last line as the answer.
    """

    files: tuple[Path, ...]
    name: str
    title: str = ""
    benchmark: str | None = None
    format: str | None = None
    images: Path | None = None
    like: str | None = None
    metric: str | None = None
    is_untagged: bool = False


@dataclass(frozen=True)
class Taken:
    """The rows of all files that can be scored, and how many cannot, by reason."""

    answers: tuple[tuple[Row, matching.Found], ...]
    left_out: Counter[str]
    rows: int


def score_external(source: Source, config: Config, root: str | Path = "runs") -> Path:
    """Score another harness' files; returns the folder of the evaluation. Does nothing if they are scored already.

    Raises:
        UserError: a name that is taken or no folder's name, a file that cannot be read, no row with question and images, missing
            benchmark data, a judge that cannot be called or that fails too often (finished scores are kept; rerun to resume).
    """
    config = current.whole(config)
    spec = _spec(source, config)
    formats = [format_of(path, source.format) for path in source.files]
    chosen = [_benchmark(source, form, path, config) for form, path in zip(formats, source.files, strict=True)]
    inputs = [*source.files, *([source.images] if source.images else [])]
    settings = {
        "benchmarks": chosen,
        "metric": source.metric,
        "is_untagged": source.is_untagged,
        "title": spec.title,
    }
    places = {name: base.folder_of(name, config) for name in chosen if name is not None}
    growing = {name: place for name, place in places.items() if place.is_dir()}
    with Run.open(config, f"eval/{source.name}", inputs, root, {"external": settings}, growing) as folder:
        judge_set = evaluation_judges(config, folder.path)
        run_folder.settle_scoring(folder, judge_set, config, spec.path, spec)
        if folder.is_done:
            print(f"{folder.path}: already scored")
            return folder.path
        folder.reopen()
        taken = _take(source, formats, chosen, config, folder.path)
        write_json(folder.path / models.SPEC_FILE, spec.model_dump(mode="json"))
        samples = {found.sample.id: found.sample for _, found in taken.answers}
        write_jsonl(folder.path / QUESTIONS, (sample.to_dict() for sample in samples.values()))
        rollouts = [_rollout(row, found, source) for row, found in taken.answers]
        write_jsonl(folder.path / "generations.jsonl", (rollout.to_dict() for rollout in rollouts))
        records = asyncio.run(_score(folder, spec, source, config, samples, judge_set, len(rollouts)))
        write_json(folder.path / FILE, _account(taken, records, source))
        folder.counts.update({f"left out: {reason}": n for reason, n in taken.left_out.items()})
        outputs = (*OUTPUTS, models.SPEC_FILE, FILE)
        benchmarks = list(dict.fromkeys(sample.source for sample in samples.values()))
        identity = run_folder.judge_identity(judge_set, config)
        folder.finish(outputs, benchmarks=benchmarks, model=source.name, judges=identity, judging=judge_set.usage())
        return folder.path


def _benchmark(source: Source, form: Format, path: Path, config: Config) -> str | None:
    """The benchmark whose questions a file holds: the one that is named, else the one of its name whose data is there."""
    guess = source.benchmark or (None if source.images else matching.benchmark_of(form.task(path) or path.stem))
    is_there = guess is not None and (guess == source.benchmark or base.folder_of(guess, config).is_dir())
    return guess if is_there else None


def _spec(source: Source, config: Config) -> models.ModelSpec:
    """How the replies are read. UserError: the name is one of our models or no folder's name."""
    if (
        not source.name
        or source.name != Path(source.name).name
        or source.name.startswith(".")
        or models.AT in source.name
    ):
        raise UserError(f"--name {source.name!r} is no name of a folder; choose one such as qwen2.5-vl-7b-lmms-eval")
    if source.name in models.names():
        raise UserError(
            f"--name {source.name} is a model of configs/; its evaluation would be overwritten: choose another name"
        )
    title = source.title or source.name
    if source.like is None:
        return models.ModelSpec(title=title, path=MADE_BY, prompt="", grounding="none")
    like = models.configured(source.like, config)
    return like.model_copy(update={"title": title, "path": MADE_BY, "made_by": None, "prompt": "", "mode": "think"})


def _take(
    source: Source, formats: Sequence[Format], chosen: Sequence[str | None], config: Config, folder: Path
) -> Taken:
    """Read the files and find the rows' questions. UserError: none is found (says why)."""
    pictures = read_images(source.images) if source.images else {}
    beside = source.images.parent / "images" / source.images.stem if source.images else folder
    rows: list[Row] = []
    found: list[matching.Found | str] = []
    for path, form, name in zip(source.files, formats, chosen, strict=True):
        read = list(form.read(path, source.metric))
        rows += read
        if name is not None and not pictures:
            found += matching.Table.of(name, config).find(read)
        else:
            stem = source.images.stem if source.images else path.stem
            data_set = name or _data_set(form.task(path) or stem)
            found += [matching.of_file(row, data_set, pictures, beside, folder / IMAGES) for row in read]
    found = matching.unique(found)
    left_out = Counter(each for each in found if isinstance(each, str))
    answers = tuple((row, each) for row, each in zip(rows, found, strict=True) if isinstance(each, matching.Found))
    if not answers:
        reasons = ", ".join(f"{n} × {reason}" for reason, n in left_out.items()) or "the files hold no row"
        raise UserError(
            f"none of {len(rows)} rows can be scored ({reasons}); name the benchmark whose questions these are (--benchmark), or "
            "the data set's file with its images (--images); see docs/other_harnesses.md"
        )
    return Taken(answers, left_out, len(rows))


def _data_set(stem: str) -> str:
    """A name for a data set that is no benchmark here."""
    return "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in stem)


def _rollout(row: Row, found: matching.Found, source: Source) -> Rollout:
    text = untagged(row.text) if source.is_untagged else row.text
    meta: dict[str, Any] = {"kind": GREEDY, "key": row.key, "found_by": found.by, "theirs": row.theirs}
    if found.other_gold:
        meta["other_gold"] = found.other_gold
    if row.finish == "error":
        meta["error"] = "the harness got no reply"
    if row.finish is None:
        meta["finish_known"] = False
    return Rollout(found.sample.id, found.sample.id, text, row.finish or "stop", row.tokens, meta)


def untagged(text: str) -> str:
    """A reply that shows no trace, with one: all lines but the last are the trace, and the last is the answer.

    A reply with a trace, or of one line, stays as it is.
    """
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if len(lines) < 2 or parse(text, tags=models.COMMON).has_trace:
        return text
    return f"<think>{chr(10).join(lines[:-1])}</think>{lines[-1]}"


async def _score(
    folder: Run,
    spec: models.ModelSpec,
    source: Source,
    config: Config,
    samples: dict[str, Sample],
    judge_set: Any,
    total: int,
) -> list[EvalRecord]:
    book = miniworld_truth.book(config.data.root)
    scorer = score.Scorer(
        spec, source.name, judge_set, book, config.rl.box_normaliser, pixel_bounds(spec.path, spec.pixels)
    )
    paired = [name for name in dict.fromkeys(s.source for s in samples.values()) if base.is_paired(name)]
    await judge_set.check_all()
    return await scored_answers.score(folder, scorer, samples, paired, config, total)


def _account(taken: Taken, records: Sequence[EvalRecord], source: Source) -> dict[str, Any]:
    """What was read, and our accuracy beside theirs on the rows that both score."""
    by_id = {record.id: record for record in records}
    both = []
    for row, found in taken.answers:
        ours = by_id[found.sample.id].scores["accuracy"].value
        if ours is not None and row.theirs is not None:
            both.append((found.sample.id, ours, row.theirs))
    cut = sum(row.finish == "length" for row, _ in taken.answers)
    return {
        "files": [path.name for path in source.files],
        "rows": taken.rows,
        "scored": len(taken.answers),
        "left_out": dict(sorted(taken.left_out.items())),
        "found_by": dict(sorted(Counter(found.by for _, found in taken.answers).items())),
        "no_reply": sum(row.finish == "error" for row, _ in taken.answers),
        "cut_off": None if any(row.finish is None for row, _ in taken.answers) else cut,
        "known_cut_off": cut,
        "other_gold": [found.sample.id for _, found in taken.answers if found.other_gold],
        "accuracy": {
            "n": len(both),
            "ours": mean(ours for _, ours, _ in both),
            "theirs": mean(theirs for *_, theirs in both),
            "differ": [i for i, ours, theirs in both if ours != theirs],
        },
    }


def described(account: dict[str, Any]) -> str:
    """The account in lines."""
    lines = [f"{account['scored']} of {account['rows']} rows have a question and images"]
    lines += [f"  left out: {n} × {reason}" for reason, n in account["left_out"].items()]
    if account["no_reply"]:
        lines.append(
            f"  {account['no_reply']} of them have no reply: the harness' requests failed; they are in no average"
        )
    if account["known_cut_off"]:
        lines.append(f"  {account['known_cut_off']} of them were cut off by the file's format")
    if account["other_gold"]:
        lines.append(f"  {len(account['other_gold'])} have another gold answer in the file; ours counts ({FILE})")
    accuracy = account["accuracy"]
    if accuracy["n"]:
        lines.append(
            f"accuracy on the {accuracy['n']} rows that both score: {100 * accuracy['ours']:.1f} by our rules, "
            f"{100 * accuracy['theirs']:.1f} by theirs; they differ on {len(accuracy['differ'])}"
        )
    else:
        lines.append(
            "no comparison with their accuracy: the files hold no score between 0 and 1 of the answers that we scored "
            "(--metric names another metric or column)"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, with_judges(args.set, args.judges))
        source = Source(
            tuple(map(Path, args.samples)),
            args.name,
            args.title or "",
            args.benchmark,
            args.format,
            Path(args.images) if args.images else None,
            args.like,
            args.metric,
            args.untagged_trace,
        )
        current.rebuild(config, args.runs)
        path = score_external(source, config, args.runs)
        report(path)

    arguments = parser("score the generations that lmms-eval or VLMEvalKit stored")
    arguments.add_argument("--samples", required=True, nargs="+", metavar="FILE", help="their files of one model")
    arguments.add_argument("--name", required=True, help="the model's name here: its folder below runs/<preset>/eval")
    arguments.add_argument("--title", help="its row heading in tables (default: the name)")
    arguments.add_argument("--benchmark", metavar="NAME", help="a benchmark of ours that holds these questions")
    arguments.add_argument(
        "--format", metavar="NAME", help="lmms_eval or vlmevalkit (default: as the file's name tells)"
    )
    arguments.add_argument("--images", metavar="FILE", help="the data set's own file: LMUData/<dataset>.tsv")
    arguments.add_argument("--like", metavar="MODEL", help="a model of configs/models with the same tags and boxes")
    arguments.add_argument(
        "--metric", metavar="NAME", help="their metric or column to compare with (default: the first)"
    )
    arguments.add_argument(
        "--untagged-trace", action="store_true", help="a reply without tags is a trace, and its last line the answer"
    )
    judges_option(arguments)
    run(body, arguments)


def report(folder: Path) -> None:
    """Print what the evaluation in `folder` found."""
    import json

    from eval.measures import reward_measures

    print(described(json.loads((folder / FILE).read_text(encoding="utf-8"))))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[GREEDY]
    for measure in reward_measures():
        for name, cells in summary["benchmarks"].items():
            cell = cells.get(measure.metric)
            value = (
                "not scored"
                if cell is None
                else f"{100 * cell['value']:.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}], n = {cell['n']}"
            )
            print(f"{measure.report.title}, {base.title_of(name)}: {value}")
    hidden = summary["counts"]["no_trace"]
    if hidden:
        print(
            f"{hidden} replies show no trace, so inconsistency does not apply to them; if they reason without tags, "
            "--untagged-trace takes all lines but the last as the trace"
        )
    print(f"scores: {folder}")


if __name__ == "__main__":
    main()
