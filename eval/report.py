"""One self-contained HTML page: headline figures, tables, figures, and examples with boxes and verdicts (Appendix E).

Text of models, judges and data sets is untrusted: the template escapes everything, and a content security policy lets no
script run but the page's own few lines (named by their hash). No file, font or script is loaded from anywhere.

Command: `python -m eval.report --preset mini` writes runs/<preset>/report/index.html.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval import base, examples, freshness, miniworld_truth, models, tables
from eval.layout import Table, percent
from eval.results import CAPTION_FILE, Result, find
from eval.tables import COMPARED
from fgrpo.cli import parser, run
from fgrpo.config import load
from fgrpo.runs import folder
from fgrpo.schema import Config

TEMPLATES = Path(__file__).resolve().parent / "templates"
SIDES = ("grpo-t", "fgrpo")  # the two methods shown side by side, where both were evaluated
EACH = 6  # examples a benchmark
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
const wanted = new URLSearchParams(location.hash.slice(1));  // such as #benchmark=MMVP&verdict=a-flip
for (const id of ['benchmark', 'verdict']) {
  const box = document.getElementById(id);
  if (box && wanted.has(id)) box.value = wanted.get(id);
  box?.addEventListener('change', filter);
}
if (document.getElementById('shown')) filter();
"""
VERDICTS = {
    "inconsistent": "inconsistent",
    "flip": "flipped away from a wrong statement",
    "ungrounded": "with an ungrounded sentence",
    "wrong": "answered wrongly",
    "right": "answered rightly",
}


@dataclass(frozen=True)
class Embedded:
    """A figure as a data URI."""

    uri: str
    caption: str


def render(**context: Any) -> str:
    """The page; every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(
        script=Markup(SCRIPT),  # ours, and named by its hash in the policy
        script_hash=f"sha256-{digest}",
        **context,
    )


def sides(results: dict[str, Result]) -> list[Result]:
    """The one or two reasoning models to show beside each other."""
    both = [results[name] for name in SIDES if name in results]
    reasoning = [r for r in results.values() if r.summary.get("mode") == "think"]
    return both if len(both) == 2 else reasoning[-2:]


def cards(shown: Sequence[Result], kind: str) -> list[dict[str, Any]]:
    """Headline figures of the shown models."""
    out = []
    for metric, name in COMPARED.items():
        found = [(r, r.cell(kind, "average", metric)) for r in shown]
        if metric == "statement" or all(cell is None for _, cell in found):
            continue
        parts = [percent(cell, interval="range").partition(" ") for _, cell in found]
        out.append(
            {
                "name": name + ", %",
                "sides": [
                    {"key": "ab"[n], "title": r.title, "value": value, "interval": bounds}
                    for n, ((r, _), (value, _, bounds)) in enumerate(zip(found, parts, strict=True))
                ],
            }
        )
    return out


def collect(shown: Sequence[Result], config: Config, kind: str, each: int = EACH) -> list[examples.Example]:
    """Examples of the shown models on the same questions."""
    if not shown:
        return []
    book = miniworld_truth.book(config.data.root)
    names = dict.fromkeys(name for r in shown for name in r.summary[kind]["benchmarks"])
    loaded = {name: base.load(name, config) for name in names}
    samples = {s.id: miniworld_truth.with_true_boxes(s, book) for found in loaded.values() for s in found.samples}
    records = [{r.id: r for r in result.records()} for result in shown]
    rollouts = [result.rollouts() for result in shown]
    specs = [models.load(result.name) for result in shown]
    out = []
    for rollout_id in examples.choose(shown, samples, kind, each):
        sample = samples.get(records[0][rollout_id].sample_id)
        if sample is not None:
            columns = [
                (result, spec, mine[rollout_id], texts[rollout_id])
                for result, spec, mine, texts in zip(shown, specs, records, rollouts, strict=True)
            ]
            out.append(examples.build(rollout_id, sample, columns, loaded[sample.source].benchmark.title, config))
    return out


def write(config: Config, root: str | Path = "runs") -> Path:
    """Write the page; returns its path. UserError if nothing was evaluated or the data is gone."""
    results = find(config, root)
    shown = sides(results)
    kind = "sampled" if shown and all("sampled" in r.kinds() for r in shown) else "greedy"
    _, everything, _ = tables.build(config, root)
    found = collect(shown, config, kind)
    page = render(
        title=f"Faithful GRPO: {config.preset}",
        subtitle=_subtitle(config, shown, kind),
        cards=cards(shown, kind),
        world=config.world is not None,
        other_kind=tables.KINDS["greedy" if kind == "sampled" else "sampled"],
        **_split(everything, [r.name for r in shown], kind),
        paper=[t for t in everything if t.name.startswith("table")],
        judges=[t for t in everything if t.name.startswith("judge-")],
        figures=_figures(folder(config, "figures", root)),
        examples=found,
        examples_note=f"{'Sampled answers (temperature 1)' if kind == 'sampled' else 'Greedy answers'}; chosen, not drawn: questions on which the verdicts of the models differ come first, so these are no rates.",
        benchmarks=list(dict.fromkeys(e.benchmark for e in found)),
        filters=[("differ", "verdicts differ")] * (len(shown) > 1)
        + [(f"{'ab'[n]}-{tag}", f"{r.title}: {words}") for n, r in enumerate(shown) for tag, words in VERDICTS.items()],
    )
    out = folder(config, "report", root) / "index.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".part")
    aside.write_text(page, encoding="utf-8")
    aside.replace(out)
    return out


def _subtitle(config: Config, shown: Sequence[Result], kind: str) -> str:
    where = "The miniature world, with exact oracles as judges" if config.world is not None else config.models.base
    words = "sampled answers at temperature 1" if kind == "sampled" else "greedy answers"
    names = " against ".join(r.title for r in shown)
    return f"{where}. Headline: {names}, {words}, mean of the benchmarks with {100 * config.eval.confidence:.0f}% intervals."


def _split(everything: Sequence[Table], shown: Sequence[str], kind: str) -> dict[str, list[Table]]:
    """What stands open (the headline's decoding, the shown models against each other), and what is folded away."""
    results = [t for t in everything if t.name.startswith(("accuracy", "faithfulness"))]
    paired = [t for t in everything if "-vs-" in t.name]
    first = [t for t in paired if t.name == f"{'-vs-'.join(shown)}-{kind}"]
    return {
        "tables": [t for t in results if t.name.endswith(kind)],
        "more_tables": [t for t in results if not t.name.endswith(kind)],
        "comparisons": first or paired,
        "more_comparisons": [t for t in paired if t not in first] if first else [],
    }


def _figures(drawn: Path) -> list[Embedded]:
    """What `eval.figures` wrote, with its captions; nothing before `make figures`."""
    captions = drawn / CAPTION_FILE
    if not captions.is_file():
        return []
    found = json.loads(captions.read_text(encoding="utf-8"))
    return [Embedded(_uri(drawn / f"{n}.png"), c) for n, c in found.items() if (drawn / f"{n}.png").is_file()]


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def main() -> None:
    """Command line."""

    def body(args: argparse.Namespace) -> None:
        config = load(args.preset, args.method, args.set)
        out, made = folder(config, "report", args.runs), freshness.made_from(config, "report", args.runs)
        if args.if_changed and freshness.is_current(out, "index.html", made):
            print(f"report: {out} is current")
            return
        print(f"report: {write(config, args.runs)}")
        freshness.stamp(out, made)

    arguments = parser("one self-contained HTML page: tables, figures, examples with boxes and verdicts")
    arguments.add_argument(
        "--if-changed", action="store_true", help="skip unless an evaluation or a training run changed"
    )
    run(body, arguments)


if __name__ == "__main__":
    main()
