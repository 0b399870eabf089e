"""How many questions are solvable without the image, by what their options give away: word overlap, length, position.

Each rule gets its expected accuracy: where it leaves several options, one of them is drawn at random. Chance is the accuracy of
drawing from all options. A rule far above chance means that a model can earn reward without looking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from data_curation.answer_part import WORD, overlap
from fgrpo.types import Sample

Rule = Callable[[str, Sequence[str]], list[int]]  # (question, options) -> one number per option; the largest is chosen
RULES: dict[str, Rule] = {
    "most words of the question": lambda question, options: [overlap(question, o) for o in options],
    "fewest words of the question": lambda question, options: [-overlap(question, o) for o in options],
    "longest": lambda _, options: [len(o) for o in options],
    "shortest": lambda _, options: [-len(o) for o in options],
    "most words of the other options": lambda _, options: [_shared(o, options) for o in options],
    "fewest words of the other options": lambda _, options: [-_shared(o, options) for o in options],
}
NAMES = {
    "word overlap": ("most words of the question", "fewest words of the question"),
    "words shared between options": ("most words of the other options", "fewest words of the other options"),
    "length": ("longest", "shortest"),
}


def _shared(option: str, options: Sequence[str]) -> int:
    own = {w.lower() for w in WORD.findall(option)}
    return sum(len(own & {w.lower() for w in WORD.findall(other)}) for other in options if other is not option)


@dataclass
class Shortcuts:
    """Expected accuracies over the multiple-choice questions of one source."""

    questions: int = 0
    chance: float = 0.0
    by_rule: dict[str, float] = field(default_factory=dict)
    by_position: Counter[int] = field(default_factory=Counter)

    @property
    def rates(self) -> dict[str, float]:
        """Rate of chance, of the better rule of each kind, and of the best fixed position; {} without questions."""
        if not self.questions:
            return {}
        best = {name: max(self.by_rule[rule] for rule in rules) for name, rules in NAMES.items()}
        best["position"] = float(max(self.by_position.values()))
        return {"chance": self.chance / self.questions, **{k: v / self.questions for k, v in best.items()}}


def measure(samples: Iterable[Sample]) -> Shortcuts:
    """The shortcuts of `samples`; questions without options do not count."""
    found = Shortcuts(by_rule=dict.fromkeys(RULES, 0.0))
    for sample in samples:
        if sample.answer not in sample.choices:
            continue
        gold = sample.choices.index(sample.answer)
        found.questions += 1
        found.chance += 1 / len(sample.choices)
        found.by_position[gold] += 1
        for name, rule in RULES.items():
            values = rule(sample.question, sample.choices)
            if values[gold] == max(values):
                found.by_rule[name] += 1 / values.count(values[gold])
    return found


def line(name: str, found: Shortcuts) -> str:
    """One line of the report."""
    rates = found.rates
    if not rates:
        return f"- {name}: no multiple-choice questions"
    by = ", ".join(f"by {rule} {rate:.0%}" for rule, rate in rates.items() if rule != "chance")
    return f"- {name}: {by} (chance {rates['chance']:.0%}, {found.questions} questions)"
