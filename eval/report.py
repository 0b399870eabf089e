"""One self-contained HTML page: headline figures, tables, figures, and examples with boxes and verdicts (Appendix E).

Text of models, judges and data sets is untrusted: the template escapes everything, and a content security policy allows only the
page's own script (by its hash). The page loads no file, font or script.

Command: `python -m eval.report --preset mini` writes runs/<preset>/report/index.html.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval import base, definitions, examples, facts, freshness, looks, miniworld_truth, models, tables, verdict_classes
from eval.colours import PANELS, as_text, colours
from eval.comparisons import KINDS, main_pair
from eval.external.table import NAME as HARNESSES
from eval.judge_validation.stored import QUESTIONS, questions
from eval.layout import Table
from eval.measures import measures, reward_measures
from eval.results import CAPTION_FILE, Result, find
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.files import write_atomic
from fgrpo.runs import folder
from fgrpo.schema import Config
from fgrpo.types import Sample

EACH = 6  # examples per benchmark
SCRIPT = """
const pick = id => document.getElementById(id).value;
const filter = () => {
  let shown = 0, all = document.querySelectorAll('.example');
  for (const e of all) {
    const ok = (!pick('benchmark') || e.dataset.benchmark === pick('benchmark')) && (!pick('verdict') || e.dataset.tags.split(' ').includes(pick('verdict')));
    e.hidden = !ok; e.style.display = ok ? '' : 'none'; shown += ok;
  }
  document.getElementById('shown').textContent = shown + ' of ' + all.length;
};
for (const box of document.querySelectorAll('[data-model]')) {
  const toggle = () => document.querySelectorAll(`.column.${box.dataset.model}, .of-${box.dataset.model}`).forEach(e => e.style.display = box.checked ? '' : 'none');
  box.addEventListener('change', toggle);
  toggle();
}
const preset = new URLSearchParams(location.hash.slice(1));  // such as #benchmark=MMVP&verdict=a-flip
for (const id of ['benchmark', 'verdict']) {
  const box = document.getElementById(id);
  if (box && preset.has(id)) box.value = preset.get(id);
  box?.addEventListener('change', filter);
}
if (document.getElementById('shown')) filter();
"""


@dataclass(frozen=True)
class Embedded:
    """A figure as a data URI."""

    uri: str
    caption: str


def render(**context: Any) -> str:
    """The page; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(freshness.TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    absent: dict[str, Any] = {
        "rates": None,
        "checks": [],
        "facts": [],
        "definitions": [],
        "reading": "",
        "looking": None,
    }  # a page may do without
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        script=Markup(SCRIPT),  # ours, and named by its hash in the policy
        script_hash=f"sha256-{digest}",
        **(absent | context),
    )


def sides(results: Mapping[str, Result], config: Config) -> list[Result]:
    """The models to show next to each other: the main pair (else the last two reasoning models), then the others.

    At most as many as there are keys of columns.
    """
    pair = main_pair(results, config)
    reasoning = [name for name, r in results.items() if r.summary.get("mode") == "think"]
    first = list(pair) if pair is not None else reasoning[-2:]
    rest = [name for name in (*reasoning, *results) if name not in first]
    return [results[name] for name in dict.fromkeys((*first, *rest))][: len(examples.KEYS)]


def cards(shown: Sequence[Result], kind: str, config: Config) -> list[dict[str, Any]]:
    """Headline figures of the shown models, one card per measure that one of them has."""
    out = []
    for measure in measures():
        cells = [r.cell(kind, "average", measure.metric) for r in shown]
        if not measure.headline or all(cell is None for cell in cells):
            continue
        parts = [r.shown(kind, "average", measure, "range").partition(" [") for r in shown]
        sides = [
            {
                "key": key,
                "title": r.label + tables.partial_mark(r, kind, config),
                "value": value,
                "interval": bracket.strip() + bounds,
            }
            for key, r, (value, bracket, bounds) in zip(examples.KEYS, shown, parts, strict=False)
        ]
        out.append({"name": f"{measure.heading}, %", "sides": sides})
    return out


def collect(
    shown: Sequence[Result],
    config: Config,
    kind: str,
    each: int = EACH,
    least: int = 1,
    ids: Sequence[str] | None = None,
) -> list[examples.Example]:
    """Examples of the shown models on the same questions.

    Args:
        each: per benchmark, where `ids` is None: those on which the models differ come first.
        least: so many of the models have answered each.
        ids: of the rollouts to show.
    """
    if not shown:
        return []
    book = miniworld_truth.book(config.data.root)
    samples = {s.id: miniworld_truth.with_true_boxes(s, book) for s in questions_of(shown, config).values()}
    records = [{r.id: r for r in result.records()} for result in shown]
    rollouts = [result.rollouts() for result in shown]
    specs = [models.of_folder(result.path, config) for result in shown]
    out = []
    for rollout_id in examples.choose(shown, samples, kind, each, least) if ids is None else ids:
        columns = [
            (key, (result, spec, scored[rollout_id], texts[rollout_id]))
            for key, result, spec, scored, texts in zip(examples.KEYS, shown, specs, records, rollouts, strict=False)
            if rollout_id in scored and rollout_id in texts and scored[rollout_id].meta["finish"] != "error"
        ]
        sample = samples.get(columns[0][1][2].sample_id)
        if sample is not None:
            built = [column for _, column in columns]
            keys = [key for key, _ in columns]
            out.append(examples.build(rollout_id, sample, built, base.title_of(sample.source), config, keys))
    return out


def questions_of(shown: Sequence[Result], config: Config) -> dict[str, Sample]:
    """The questions of these evaluations: the benchmarks' own, and those that a folder alone holds (another harness' data)."""
    held: dict[str, Sample] = {}
    for result in shown:
        if (result.path / QUESTIONS).is_file():
            held |= questions(result.path / QUESTIONS)
    names = dict.fromkeys(name for result in shown for name in result.benchmarks())
    known = [name for name in names if name in base.names() and base.folder_of(name, config).is_dir()]
    unheld = [name for name in names if name not in known and not any(s.source == name for s in held.values())]
    loaded = [
        base.load(name, config) for name in (*known, *unheld)
    ]  # of the unheld ones, the error names what is missing
    return {**held, **{s.id: s for part in loaded for s in part.samples}}


def main_kind(shown: Sequence[Result]) -> str:
    """The decoding of the headline: that of the first two models."""
    return tables.headline_kind(shown[:2])


def write(config: Config, root: str | Path = "runs") -> Path:
    """Write the page; returns its path. UserError if nothing was evaluated or the data is missing."""
    shown, kind, ids = drawn_examples(config, root)
    _, everything, _ = tables.build(config, root)
    chosen = collect(shown, config, kind, ids=ids)
    return write_page(shown, everything, chosen, kind, config, root, folder(config, "report", root), drawn=ids)


def drawn_examples(config: Config, root: str | Path = "runs") -> tuple[list[Result], str, list[str]]:
    """The models side by side, their decoding, and the ids of the rollouts drawn as examples. UserError: as `find`."""
    every = sides(find(config, root), config)
    kind = main_kind(every)
    shown = [r for r in every if kind in r.kinds()]
    by_model = [verdict_classes.answered(result, kind) for result in shown]
    return shown, kind, verdict_classes.draw(by_model, config.seed)


def write_page(
    shown: Sequence[Result],
    everything: Sequence[Table],
    chosen: Sequence[examples.Example],
    kind: str,
    config: Config,
    root: str | Path,
    out: Path,
    every_model: bool = False,
    drawn: Sequence[str] | None = None,
) -> Path:
    """Write index.html into the folder `out`.

    Args:
        shown: the models side by side.
        everything: tables; those of names that the page does not know are left out.
        every_model: whether all of `shown` are visible at first; otherwise the first two.
        drawn: ids of the examples, where they were drawn at random; None: they were selected.
    """
    first = len(shown) if every_model else 2
    page = render(
        title=f"Faithful GRPO: {config.preset}",
        subtitle=_subtitle(config, shown[:first], kind),
        cards=cards(shown, kind, config),
        world=config.world is not None,
        other_kind=KINDS["greedy" if kind == "sampled" else "sampled"],
        **_split(everything, [r.name for r in shown[:2]], kind, every_model),
        paper=[t for t in everything if t.name.startswith("table")],
        judges=[t for t in everything if t.name.startswith("judge-")],
        figures=_figures(folder(config, "figures", root)) if not every_model else [],
        examples=chosen,
        examples_note=_examples_note(kind, config, drawn),
        rates=_rates(shown[:first], kind, drawn),
        checks=[m.score_title for m in reward_measures() if m.report.binary],
        looking=looks.section(shown, lambda ids: collect(shown, config, kind, ids=ids)),
        facts=facts.facts(shown, config),
        definitions=definitions.definitions(),
        reading=definitions.reading(config),
        columns=_columns(shown, first),
        benchmarks=list(dict.fromkeys(e.benchmark for e in chosen)),
        filters=[("differ", "verdicts differ")] * (len(shown) > 1)
        + [
            (f"{key}-{tag}", f"{r.title}: {words}")
            for key, r in zip(examples.KEYS, shown, strict=False)
            for tag, words in examples.tag_titles().items()
            if any(f"{key}-{tag}" in e.tags.split() for e in chosen)
        ],
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "index.html", page)
    return out / "index.html"


def _columns(shown: Sequence[Result], first: int) -> list[dict[str, Any]]:
    """The models side by side, each with its colour, as text in both schemes too; the `first` are visible at first."""
    tints = colours([result.name for result in shown])
    return [
        {
            "key": key,
            "title": result.title,
            "visible": n < first,
            "colour": tint,
            **{scheme: as_text(tint, panel) for scheme, panel in PANELS.items()},
        }
        for n, (key, result, tint) in enumerate(zip(examples.KEYS, shown, tints, strict=False))
    ]


def _examples_note(kind: str, config: Config, drawn: Sequence[str] | None) -> str:
    if drawn is None:
        return (
            f"{_capital(KINDS[kind])}. The examples are selected, so they are no rates: questions on which the models' "
            "verdicts differ come first."
        )
    return (
        f"{_capital(KINDS[kind])}. Drawn at random (seed {config.seed}), up to {verdict_classes.EACH} of every class of "
        "verdicts and model. How often each class occurs:"
    )


def _rates(shown: Sequence[Result], kind: str, drawn: Sequence[str] | None) -> dict[str, Any] | None:
    """The rates of the classes beside the number of examples shown, one column per model; None for selected examples."""
    if drawn is None or not shown:
        return None
    by_model = [verdict_classes.answered(result, kind) for result in shown]
    of_each = [{rate.tag: rate for rate in verdict_classes.rates(records, drawn)} for records in by_model]
    occurring = {t: words for t, words in verdict_classes.titles().items() if any(t in rates for rates in of_each)}
    return {
        "models": [{"key": key, "title": r.title} for key, r in zip(examples.KEYS, shown, strict=False)],
        "rows": [{"title": words, "rates": [r.get(tag) for r in of_each]} for tag, words in occurring.items()],
        "differ": verdict_classes.differing(by_model, drawn),
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _subtitle(config: Config, shown: Sequence[Result], kind: str) -> str:
    where = _where(shown, config)
    names = " against ".join(r.title for r in shown)
    intervals = f"{100 * config.eval.confidence:.0f}% intervals"
    averaged = list(dict.fromkeys(name for r in shown for name in r.averaged(kind)))
    of = ", ".join(map(base.title_of, averaged))
    return f"{where}. Headline: {names}; {KINDS[kind]}; means of the benchmarks ({of}) with {intervals} (flip: over all questions)."


def _where(shown: Sequence[Result], config: Config) -> str:
    """What the results are of: the miniature world, the preset's base model where one of its checkpoints is shown, or the data."""
    if config.world is not None:
        return "The miniature world"
    is_own = any(r.name in models.names() and models.load(r.name).is_own for r in shown)
    return f"Trained from {config.models.base}" if is_own else f"Benchmarks in {config.data.root}"


def _split(
    everything: Sequence[Table], shown: Sequence[str], kind: str, every_pair: bool = False
) -> dict[str, list[Table]]:
    """The tables that are open (the headline's decoding, the shown models against each other), and the collapsed ones."""
    results = [t for t in everything if t.name.startswith(("accuracy", "faithfulness"))]
    paired = [t for t in everything if "-vs-" in t.name]
    first = [
        t for t in paired if t.name == f"{'-vs-'.join(shown)}-{kind}" or (every_pair and t.name.endswith(f"-{kind}"))
    ]
    return {
        "tables": [t for t in results if t.name.endswith(kind)] + [t for t in everything if t.name == HARNESSES],
        "more_tables": [t for t in results if not t.name.endswith(kind)],
        "comparisons": first or paired,
        "more_comparisons": [t for t in paired if t not in first] if first else [],
    }


def _figures(drawn: Path) -> list[Embedded]:
    """The files that `eval.figures` wrote, with their captions; none before `make figures`."""
    captions = drawn / CAPTION_FILE
    if not captions.is_file():
        return []
    freshness.check_written(drawn, "figures")
    by_name = json.loads(captions.read_text(encoding="utf-8"))
    return [Embedded(_uri(drawn / f"{n}.png"), c) for n, c in by_name.items() if (drawn / f"{n}.png").is_file()]


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        out, made = folder(config, "report", args.runs), freshness.made_from(config, "report", args.runs)
        if args.if_changed and freshness.is_current(out, made):
            print(f"report: {out} is current")
            return
        page = write(config, args.runs)
        print(f"report: {page}")
        freshness.stamp(out, made, [page])

    arguments = parser("one self-contained HTML page: tables, figures, examples with boxes and verdicts")
    arguments.add_argument("--if-changed", action="store_true", help="skip if nothing that the page shows has changed")
    run(body, arguments)


if __name__ == "__main__":
    main()
