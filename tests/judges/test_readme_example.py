"""The reward, the prompt and the backend of judges/README.md work as they stand there."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from fgrpo.config import load
from fgrpo.response import parse
from fgrpo.types import Sample, Score, Verdict
from judges.base import JudgeSet
from rewards.base import RewardContext, RewardItem

ROOT = Path(__file__).resolve().parents[2]
SECTION = re.compile(r"^## A question and a backend of your own$(.*?)^## ", re.M | re.S)
FILES = re.compile(r"^`((?:rewards|judges)/[\w./]+)`.*?^```\w*\n(.*?)^```$", re.M | re.S)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """The files of the section, written out below `tmp_path`."""
    section = SECTION.search((ROOT / "judges/README.md").read_text(encoding="utf-8"))
    assert section is not None
    out = {}
    for name, text in FILES.findall(section.group(1)):
        out[name] = tmp_path / name
        out[name].parent.mkdir(parents=True, exist_ok=True)
        out[name].write_text(text, encoding="utf-8")
    assert list(out) == ["rewards/plain.py", "rewards/prompts/plain.txt", "judges/backends/keywords.py"]
    return out


def module(path: Path) -> ModuleType:
    """The module in a file of the section."""
    spec = importlib.util.spec_from_file_location(f"readme_example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look it up
    try:
        spec.loader.exec_module(made)
    finally:
        del sys.modules[spec.name]
    return made


class Scripted:
    """Answers with the given verdicts, in order, and keeps what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts, self.calls = verdicts, list[str]()

    async def answer(self, task, items):  # type: ignore[no-untyped-def]
        self.calls = [task.call(item).text for item in items]
        return [(verdict,) for verdict in self.verdicts[: len(items)]]


def rollout(n: int, think: str, answer: str) -> RewardItem:
    sample = Sample("a/b/1", (), "Is the ball left or right?", ("left", "right"), "left")
    return RewardItem(f"r{n}", sample, parse(f"<think>{think}</think><answer>{answer}</answer>"))


def test_the_reward_asks_and_scores(files: dict[str, Path]) -> None:
    reward = module(files["rewards/plain.py"]).REWARD
    items = [rollout(1, "maybe left", "left"), rollout(2, "left", "right"), rollout(3, "it is left", "left")]
    judge = Scripted(Verdict("HEDGED"), Verdict(None, "no reply", failed=True))
    context = RewardContext(JudgeSet(judge, "scripted"), mask="correct")
    scores = asyncio.run(reward(items, context))
    assert scores == [Score.of(0.0), Score.not_applicable("the answer is wrong"), Score.failure("no reply")]
    assert len(judge.calls) == 2 and '"maybe left"' in judge.calls[0] and '"it is left"' in judge.calls[1]
    judge.verdicts = (Verdict("PLAIN"),) * 3
    assert asyncio.run(reward(items, replace(context, mask="all"))) == [Score.of(1.0)] * 3


def test_the_oracle_of_the_example(files: dict[str, Path]) -> None:
    plain = module(files["rewards/plain.py"])
    labels = [plain.TASK.oracle(plain.Trace("1", "q", trace), None)[0][0] for trace in ("maybe left", "left")]
    assert labels == ["HEDGED", "PLAIN"]


def test_what_is_there_is_found(files: dict[str, Path]) -> None:
    """Discovery reads the source for the constant (`fgrpo.plugins`)."""
    for name, constant in (("rewards/plain.py", "REWARD"), ("judges/backends/keywords.py", "BACKEND")):
        assert re.search(rf"^{constant} = ", files[name].read_text(encoding="utf-8"), re.M)


def test_the_backend_answers(files: dict[str, Path]) -> None:
    plain, keywords = module(files["rewards/plain.py"]), module(files["judges/backends/keywords.py"])
    judges = keywords.BACKEND(load("smoke").judges.training, Path("data"))
    (verdict,) = asyncio.run(judges.ask(plain.TASK, [plain.Trace("1", "q", "maybe")]))
    assert verdict.label == "PLAIN" and verdict.judge == "keywords" and not verdict.failed
