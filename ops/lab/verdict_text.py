"""The part of a lab's page on its hypotheses: findings, method, verdicts, the effects behind them, and a person's paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eval.layout import DASH
from ops.lab import planned, starts, words
from ops.lab.declaration import Part
from ops.lab.findings import Findings
from ops.lab.statistics import first_rejection
from ops.lab.verdicts import Verdict
from ops.lab.words import table

NO_NOTE = "*What this means for someone who trains a 7B model: not written yet (configs/lab/notes/{name}.yaml).*"
DIFFERENT = "different starts"


def summary(found: Findings, done: int, cells: int) -> str:
    """The findings in one paragraph: how many verdicts of each kind, and which hypotheses are decided."""
    counts = found.counts()
    decided = {
        outcome: [f"{v.hypothesis} in {v.condition}" for v in found.verdicts if v.outcome == outcome]
        for outcome in ("supported", "refuted")
    }
    early = planned.names(found.lab, found.verdicts)
    provisional = (
        f"{len(early)} verdicts are provisional, since seeds of their arms are missing: the next ones may change them. "
        if early
        else ""
    )
    named = [f"{counts[outcome]} {outcome} ({words.listed(names)})" for outcome, names in decided.items() if names]
    named += [f"0 {outcome}" for outcome, names in decided.items() if not names]
    return (
        f"**Findings so far.** {done} of {cells} cells are done. Of {len(found.verdicts)} verdicts ({len(found.lab.hypotheses)} hypotheses, "
        f"each in its conditions): {', '.join(named)}, {counts['undecided']} undecided, {counts['waiting']} wait for cells. "
        f"{provisional}*Undecided* does not mean that there is no effect: see the smallest effects that the tests can find, under Verdicts."
    )


def sections(name: str, found: Findings, notes: Mapping[str, str]) -> list[str]:
    """The method, the tested hypotheses with their effects, those that wait, the tests over conditions, and each hypothesis.

    Args:
        notes: {hypothesis: paragraph}.
    """
    return [
        _method(found),
        _power(found),
        _mended(found),
        *_tables(found),
        _waiting(found.verdicts),
        *_over_conditions(found),
        "### Every hypothesis",
        *_hypotheses(name, found, notes),
    ]


def _method(found: Findings) -> str:
    settings = found.lab.analysis
    return (
        f"Effects are paired by seed and question; each seed counts equally. p is two-sided against the declared margin; *p (Holm)* is corrected over "
        f"the hypotheses of a condition, where a hypothesis that is not tested yet counts with p = 1. Nothing is corrected over the conditions. A "
        f"hypothesis is supported or refuted where p (Holm) is below {settings.alpha:g}, else undecided. Intervals are {100 * settings.confidence:.0f}% and not "
        f"corrected. p values and intervals rest on the spread of the seeds and on {settings.samples:,} bootstrap draws of the questions, which all "
        "seeds share (Behrens and Fisher's test, ops/lab/statistics.py). Metrics with one value per cell (`forced/…`, `saturated/…`, `lambda/…`) have no uncertainty over questions, only "
        "over seeds. Where the seeds have no spread there is no test: three equal values do not show that a fourth would be equal."
    )


def _power(found: Findings) -> str:
    """A line per number of hypotheses in a condition: the smallest observed effect that is a first rejection."""
    lab = found.lab
    sizes: dict[int, tuple[list[str], set[int]]] = {}
    for condition in lab.conditions:
        count = sum(condition in hypothesis.conditions for hypothesis in lab.hypotheses.values())
        if count:
            conditions, seeds = sizes.setdefault(count, ([], set()))
            conditions.append(condition)
            seeds |= _seed_counts(found, condition)
    lines = []
    for count, (conditions, seeds) in sizes.items():
        needed = [f"{first_rejection(count, s, lab.analysis.alpha):.1f} over {s} seeds" for s in sorted(seeds)]
        alone = [f"{first_rejection(1, s, lab.analysis.alpha):.1f}" for s in sorted(seeds)]
        if needed:
            plural = "hypothesis" if count == 1 else "hypotheses"
            lines.append(
                f"- {count} {plural} ({', '.join(conditions)}): {words.listed(needed)} (without the correction {words.listed(alone)})"
            )
    head = (
        "The smallest observed effect that Holm's first rejection needs, in standard deviations of the seeds' effects, where all noise is the "
        "seeds':"
    )
    return "\n".join([head, "", *lines]) if lines else ""


def _seed_counts(found: Findings, condition: str) -> set[int]:
    """The numbers of seeds that the grid declares for a condition's arms, and that its effects have, where they suffice for a test."""
    tested = [v for v in found.verdicts if v.condition == condition and not v.missing]
    counts = {len(s) for s in planned.seeds(found.lab, condition).values()} | {
        e.seeds for v in tested for e in v.effects if e is not None
    }
    return {count for count in counts if count >= found.lab.stopping.min_seeds}


def _mended(found: Findings) -> str:
    if found.mend is None:
        return ""
    return (
        f"**The analysis was mended after results had been seen** (commit `{found.mend.commit}`): {found.mend.text}. The last column of the verdicts is "
        "p (Holm) as the first version would give it on the same cells."
    )


def _tables(found: Findings) -> list[str]:
    tested = [(i, verdict) for i, verdict in enumerate(found.verdicts) if not verdict.missing]
    if not tested:
        return ["Nothing is tested yet."]
    old = () if found.before is None else ("before the mend",)
    headings = ("hypothesis", "condition", "verdict", "remark", "seeds", "p", "p (Holm)", *old)
    rows = []
    for i, verdict in tested:
        seeds = sorted({effect.seeds for effect in verdict.effects if effect is not None})
        before = () if found.before is None else (words.p_value(found.before[i].p_holm),)
        numbers = (" to ".join(map(str, seeds)), words.p_value(verdict.p), words.p_value(verdict.p_holm), *before)
        rows.append((verdict.hypothesis, verdict.condition, verdict.outcome, _remark(found, verdict), *numbers))
    effects = [row for _, verdict in tested for row in _effects(found, verdict)]
    return [
        table("verdicts", headings, rows, left=4),
        "The comparisons behind them, in points (λ and probes: in their own unit), with the effect of every seed:",
        table(
            "effects",
            ("hypothesis", "condition", "comparison", "claim", "by seed", "effect [interval]"),
            effects,
            left=5,
        ),
        *_gaps(found),
        *_further(found),
    ]


def _remark(found: Findings, verdict: Verdict) -> str:
    parts = found.lab.hypotheses[verdict.hypothesis].parts
    remarks = [
        planned.provisional(found.lab, verdict),
        found.added[verdict.hypothesis].words() if verdict.hypothesis in found.added else "",
        DIFFERENT if any(starts.differ(found.lab, verdict.condition, part) for part in parts) else "",
        *(words.untestable(part, effect) for part, effect in zip(parts, verdict.effects, strict=True)),
    ]
    return "; ".join(dict.fromkeys(remark for remark in remarks if remark)) or DASH


def _effects(found: Findings, verdict: Verdict) -> Iterator[tuple[str, ...]]:
    for part, effect in zip(found.lab.hypotheses[verdict.hypothesis].parts, verdict.effects, strict=True):
        marks = [DIFFERENT] if starts.differ(found.lab, verdict.condition, part) else []
        reason = words.untestable(part, effect)
        marks += [f"no test: {reason}"] if reason else []
        marked = f" ({', '.join(marks)})" if marks else ""
        yield (
            verdict.hypothesis,
            verdict.condition,
            f"{words.comparison(part)}{marked}",
            words.claim(part),
            words.by_seed(part, effect),
            words.effect(part, effect),
        )


def _gaps(found: Findings) -> list[str]:
    """Values that a comparison lacks."""
    lines = {
        f"- {verdict.condition}, {words.comparison(part)}: {gap}"
        for verdict in found.verdicts
        for part, effect in zip(found.lab.hypotheses[verdict.hypothesis].parts, verdict.effects, strict=True)
        if effect is not None
        for gap in effect.gaps
    }
    return ["Values that these comparisons lack:\n\n" + "\n".join(sorted(lines))] if lines else []


def _further(found: Findings) -> list[str]:
    """Comparisons that rest on further runs."""
    lines = {
        f"- {verdict.condition}, {words.comparison(part)}: {', '.join(effect.further)}"
        for verdict in found.verdicts
        for part, effect in zip(found.lab.hypotheses[verdict.hypothesis].parts, verdict.effects, strict=True)
        if effect is not None and effect.further
    }
    return ["Further runs that these comparisons rest on:\n\n" + "\n".join(sorted(lines))] if lines else []


def _waiting(verdicts: Sequence[Verdict]) -> str:
    """The hypotheses without a test, by what they wait for."""
    found: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        if verdict.missing:
            found.setdefault((verdict.hypothesis, verdict.missing), []).append(verdict.condition)
    lines = [f"- {key} in {', '.join(conditions)}: {missing}" for (key, missing), conditions in found.items()]
    return "Undecided because cells are missing:\n\n" + "\n".join(lines) if lines else ""


def _over_conditions(found: Findings) -> list[str]:
    """The tests over conditions; nothing for a lab whose hypotheses have one condition each."""
    if not found.combined:
        return []
    seen = "" if found.mend is None else ", thought of after results had been seen"
    text = (
        f"Beside the declared tests: one test per hypothesis over its conditions, **not declared**{seen}, and no verdict rests on it. "
        f"A condition enters once all comparisons of the hypothesis have {found.lab.stopping.min_seeds} seeds. Conditions are fixed and count equally, seeds are nested "
        f"in them, and the questions' part of the error is taken as fully shared. Holm's correction is over these {len(found.combined)} hypotheses."
    )
    rows = list[tuple[str, ...]]()
    for one in found.combined:
        parts = found.lab.hypotheses[one.hypothesis].parts
        if one.estimates:
            effects = "; ".join(
                f"{words.comparison(part)}: {words.effect(part, estimate)}"
                for part, estimate in zip(parts, one.estimates, strict=True)
            )
            numbers = (words.p_value(one.p), words.p_value(one.p_holm))
            rows.append((one.hypothesis, ", ".join(one.conditions), one.outcome, effects, *numbers))
        else:
            rows.append(
                (one.hypothesis, ", ".join(one.conditions) or DASH, f"not tested: {one.untested}", DASH, DASH, DASH)
            )
    headings = ("hypothesis", "conditions", "would be", "mean effects [interval]", "p", "p (Holm)")
    return ["### Over conditions (not declared)", text, table("over-conditions", headings, rows, left=4)]


def _hypotheses(name: str, found: Findings, notes: Mapping[str, str]) -> list[str]:
    out = []
    for key, hypothesis in found.lab.hypotheses.items():
        mine = [verdict for verdict in found.verdicts if verdict.hypothesis == key]
        tested = [f"{verdict.condition}: **{verdict.outcome}**" for verdict in mine if not verdict.missing]
        waiting = [verdict.condition for verdict in mine if verdict.missing]
        state = ", ".join([*tested, *([f"not tested yet in {', '.join(waiting)}"] if waiting else [])])
        tests = "; ".join(f"{words.comparison(p)} {words.claim(p)}" for p in hypothesis.parts)
        note = notes.get(key, "").strip() or NO_NOTE.format(name=name)
        texts = [f"#### {key}. {hypothesis.claim.strip()}", f"Declared test: {tests}.", f"{state}."]
        out.append("\n\n".join([*texts, *_addition(found, key, hypothesis.parts), note]))
    return out


def _addition(found: Findings, key: str, parts: Sequence[Part]) -> list[str]:
    """That a hypothesis was added later, and its effects without the seeds that had been seen."""
    if key not in found.added:
        return []
    addition = found.added[key]
    seeds = ", ".join(map(str, addition.seen))
    seen = f"; seed {seeds} is in its verdict" if seeds else ""
    out = [f"This hypothesis was {addition.words()} (recorded {addition.recorded}){seen}."]
    for (of, condition), effects in found.unseen.items():
        if of == key:
            values = "; ".join(
                f"{words.comparison(part)}: {words.effect(part, effect)} (by seed {words.by_seed(part, effect)})"
                for part, effect in zip(parts, effects, strict=True)
            )
            out.append(f"Without seed {seeds}, in {condition}, and without a verdict: {values}.")
    return out
