"""`make eval JUDGES=none`: accuracy by rules; judged metrics are not scored, never zero. A judge is checked before the first token."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import run, tables
from eval.results import find, read_records
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.schema import Config
from judges.base import build
from tests.eval.test_chain import checkpoint, engine
from tests.loopback import Replies, serving

NO_JUDGE = ("judges.evaluation.backend=none", "judges.extraction.backend=none")


def changed(config: Config, **keys: Any) -> Config:
    """`config` with other keys of the evaluation judge."""
    judge = config.judges.evaluation.model_copy(update=keys)
    return config.model_copy(
        update={"judges": config.judges.model_copy(update={"evaluation": judge, "extraction": judge})}
    )


def test_accuracy_alone_needs_no_judge(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    alone = changed(world, backend="none")
    folder = run.evaluate(alone, "fgrpo", root=tmp_path, sampler=engine(world))
    records = read_records(folder / "scores.jsonl")
    assert all(r.scores["accuracy"].value in (0.0, 1.0) for r in records)
    for name in ("consistency", "semantic_grounding"):
        assert {(r.scores[name].state, r.scores[name].reason) for r in records} == {
            ("not_applicable", "not scored: no judge")
        }
    assert any(r.scores["spatial_grounding"].value is not None for r in records)  # rules alone
    result = find(alone, tmp_path)["fgrpo"]
    assert result.has_no_judge() and result.cell("greedy", "average", "inconsistency") is None
    (_, faithfulness, *_) = tables.main_tables({"fgrpo": result}, alone)
    row = dict(zip(faithfulness.headings, faithfulness.rows[0], strict=True))
    assert row["inconsistency ↓"] == row["semantic grounding ↑"] == "not scored"
    assert row["accuracy ↑"] != "not scored" and "Judge: none." in faithfulness.note


def test_a_judge_later_scores_the_same_answers_and_the_first_scores_stay(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    sampler = engine(world)
    run.evaluate(changed(world, backend="none"), "fgrpo", root=tmp_path, sampler=sampler)
    asked = len(sampler.asked)
    folder = run.evaluate(world, "fgrpo", root=tmp_path, sampler=sampler)
    assert len(sampler.asked) == asked
    assert find(world, tmp_path)["fgrpo"].cell("greedy", "average", "inconsistency") is not None
    assert len(list((folder / "scored").glob("*/scores.jsonl"))) == 1
    run.evaluate(changed(world, backend="none"), "fgrpo", root=tmp_path, sampler=sampler)  # and back, at no cost
    assert find(world, tmp_path)["fgrpo"].has_no_judge() and len(sampler.asked) == asked


def test_answers_that_rules_cannot_read_stay_unread_without_a_judge(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    sampler = engine(world)
    sampler.write = lambda request: "<think>x</think><answer>either of them</answer>"  # type: ignore[method-assign]
    folder = run.evaluate(changed(world, backend="none"), "fgrpo", ["mmvp"], tmp_path, sampler)
    assert {r.meta["answer_from"] for r in read_records(folder / "scores.jsonl")} == {"unresolved"}


def test_the_command_line_and_its_processes_take_the_backend() -> None:
    assert run.with_judges(["a=1"], None) == ["a=1"]
    config = load("mini", "fgrpo", run.with_judges([], "none"))
    assert (config.judges.evaluation.backend, config.judges.extraction.backend) == ("none", "none")
    with pytest.raises(UserError, match="did you mean 'none'"):
        run.with_judges([], "nonne")


def test_training_without_a_judge_is_refused(tmp_path: Path) -> None:
    from rewards.consistency import CONSISTENCY_TASK

    judges = build(load("mini", "fgrpo", ["judges.training.backend=none"]).judges.training, tmp_path)
    with pytest.raises(UserError, match="consistency needs a judge, but the configured backend is none"):
        asyncio.run(judges.ask(CONSISTENCY_TASK, []))


class Endpoint(Replies):
    """A judge's server: `lists` are its models (None: no list), `serves` the model that it answers for."""

    lists: tuple[str, ...] | None = ("j",)
    serves = "j"
    key = ""
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.reply(401, {"error": {"message": "no such key"}})
        elif self.lists is None:
            self.reply(404, {"error": "no list"})
        else:
            self.reply(200, {"object": "list", "data": [{"id": name} for name in self.lists]})

    def do_POST(self) -> None:
        model = json.loads(self.body())["model"]
        self.asked.append(model)
        if model != self.serves:
            self.reply(404, {"error": {"message": f"no model {model}"}})
        else:
            self.verdict("CONSISTENT")


@pytest.fixture
def served() -> Iterator[tuple[type[Endpoint], str]]:
    kind = type("Fresh", (Endpoint,), {"asked": []})
    with serving(kind) as url:
        yield kind, url


def judged(world: Config, url: str, model: str = "j", **more: Any) -> Config:
    quick = {"backoff_s": 0.01, "attempts": 2, "patience_s": 0.05}
    return changed(world, backend="openai", model=model, endpoints=(url,), **quick, **more)


def refusal(world: Config, tmp_path: Path, url: str, model: str = "j", **more: Any) -> str:
    """What an evaluation says before it generates."""
    checkpoint(world, tmp_path, "rl-fgrpo")
    sampler = engine(world)
    with pytest.raises(UserError) as raised:
        run.evaluate(judged(world, url, model, **more), "fgrpo", ["mmvp"], tmp_path, sampler)
    assert sampler.asked == []  # not one token
    return str(raised.value)


def test_a_wrong_name_is_found_before_the_first_token(
    world: Config, tmp_path: Path, served: tuple[type[Endpoint], str]
) -> None:
    words = refusal(world, tmp_path, served[1], "another")
    assert "does not serve 'another'; it serves: j" in words


def test_a_wrong_key_is_found_before_the_first_token(
    world: Config, tmp_path: Path, served: tuple[type[Endpoint], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served[0].key = "right-key-123456"
    monkeypatch.setenv("OPENAI_API_KEY", "openai-key-123456")
    words = refusal(world, tmp_path, served[1])
    assert "requires a key (HTTP 401)" in words and "in the judge's api_key_env" in words
    monkeypatch.setenv("MY_KEY", "wrong-key-123456")
    words = refusal(world, tmp_path, served[1], api_key_env="MY_KEY")
    assert "refuses the key in MY_KEY (HTTP 401)" in words and "wrong-key" not in words
    assert served[0].asked == []


def test_a_wrong_address_is_found_before_the_first_token(
    world: Config, tmp_path: Path, served: tuple[type[Endpoint], str]
) -> None:
    assert "cannot be reached" in refusal(world, tmp_path, "http://127.0.0.1:9/v1")
    served[0].lists, served[0].serves = None, "x"
    assert "does not answer a first request" in refusal(world, tmp_path / "other", served[1])


@pytest.mark.parametrize(("lists", "requests"), [(("j", "k"), 0), (None, 1), (("base-of-j",), 1)])
def test_a_judge_that_can_be_called_passes(
    lists: tuple[str, ...] | None, requests: int, world: Config, served: tuple[type[Endpoint], str]
) -> None:
    """A list of models costs nothing; where it does not name the model (a deployment has a name of its own), one request tells."""
    served[0].lists = lists
    judges = run.evaluation_judges(judged(world, served[1]))

    async def check() -> None:
        await judges.check_all()
        await judges.close()

    asyncio.run(check())
    assert served[0].asked == ["j"] * requests


def test_stored_answers_are_scored_without_a_check(
    world: Config, tmp_path: Path, served: tuple[type[Endpoint], str]
) -> None:
    """All verdicts may be in the cache, whose judge is gone."""
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(changed(world, backend="none"), "fgrpo", ["mmvp"], tmp_path, engine(world))
    with pytest.raises(UserError, match="judgements of consistency failed"):
        run.evaluate(judged(world, "http://127.0.0.1:9/v1"), "fgrpo", ["mmvp"], tmp_path)


def test_the_extraction_judges_usage_does_not_replace_the_evaluation_judges(
    world: Config, served: tuple[type[Endpoint], str]
) -> None:
    """An oracle has a meter without a name; two judges of one model have one name."""
    paid = judged(world, served[1])
    for extraction, names in (
        (world.judges.extraction, ["j", "oracle"]),
        (paid.judges.evaluation.model_copy(update={"concurrency": 1}), ["j", "j (extraction)"]),
    ):
        both = paid.model_copy(update={"judges": paid.judges.model_copy(update={"extraction": extraction})})
        judges = run.evaluation_judges(both)
        judges.meter.count("calls")
        usage = judges.usage()
        assert list(usage) == names and usage["j"]["calls"] == 1 and usage[names[1]]["calls"] == 0


def test_answers_are_complete_one_by_one(
    world: Config, tmp_path: Path, served: tuple[type[Endpoint], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one call at a time, the first answer has all its verdicts after as many calls as it needs, not after all answers' first."""
    checkpoint(world, tmp_path, "rl-fgrpo")
    moved: list[int] = []

    class Ordered(served[0]):  # type: ignore[misc,valid-type]
        def do_POST(self) -> None:
            asked = json.loads(self.body())
            self.asked.append(asked["model"])
            labels = asked["response_format"]["json_schema"]["schema"]["properties"]

            def filled(form: dict[str, Any]) -> Any:
                return (
                    {k: filled(v) for k, v in form["properties"].items()}
                    if "properties" in form
                    else form.get("enum", ["x"])[0]
                )

            content = json.dumps({name: filled(form) for name, form in labels.items()})
            choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
            self.reply(200, {"id": "x", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice]})

    kind = type("Kind", (Ordered,), {"asked": []})
    with serving(kind) as url:
        config = judged(world, url)
        config = config.model_copy(
            update={"judges": config.judges.model_copy(update={"extraction": world.judges.extraction})}
        )
        config = changed_only(config, concurrency=1)
        monkeypatch.setattr("eval.score.LEAST_IN_FLIGHT", 2)
        monkeypatch.setattr(
            "eval.scored_answers.progress.moving", lambda bar, cost: lambda n: moved.append(len(kind.asked))
        )
        run.evaluate(config, "fgrpo", ["mmvp"], tmp_path, engine(world, inconsistent=0.0, wrong=0.0))
    assert len(moved) == 8 and moved[0] <= 4 < moved[-1] and moved == sorted(moved)


def changed_only(config: Config, **keys: Any) -> Config:
    """`config` with other keys of the evaluation judge, whatever extracts answers."""
    judge = config.judges.evaluation.model_copy(update=keys)
    return config.model_copy(update={"judges": config.judges.model_copy(update={"evaluation": judge})})
