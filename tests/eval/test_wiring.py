"""Hand-overs of evaluation: configuration, model file and processor -> judges and rewards -> records and verdicts."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from known import evaluate, record, setting
from PIL import Image
from scripted import Scripted

from eval import base, miniworld_truth, models, run, score, scored_answers, summary
from eval.extraction import EXTRACTION_TASK, ExtractionItem
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.inference.base import Completion, Request
from fgrpo.schema import Config
from fgrpo.types import Box, EvalRecord, Rollout, Sample, Score, Verdict
from judges.backends import replay
from judges.base import JudgeSet, Meter
from judges.task import JudgeTask
from miniworld.language import parse_question
from rewards.consistency import CONSISTENCY_TASK, ConsistencyItem
from rewards.semantic_grounding import GROUNDING_TASK, GroundingItem

REWARDS = ("consistency", "semantic_grounding", "spatial_grounding")


def scorer_of(model: str, judges: JudgeSet, *changes: Any, **options: Any) -> Any:
    """A scorer of the model file, with keys of it changed."""
    spec = models.load(model).model_copy(update=dict(changes))
    return score.Scorer(spec, model, judges, **options)


class Judges:
    """Keeps the items of each task; answers by that task's function of the item."""

    def __init__(self, answers: Mapping[str, Callable[[Any], Any]]) -> None:
        self.answers = answers
        self.items: dict[str, list[Any]] = {task: [] for task in answers}

    async def answer(self, task: JudgeTask[Any], items: Sequence[Any]) -> list[tuple[Verdict, ...]]:
        self.items[task.name].extend(items)
        answers = [self.answers[task.name](item) for item in items]
        return [answer if isinstance(answer, tuple) else (answer,) for answer in answers]


def judges_that(consistency: Any = None, grounding: Any = None, extraction: Any = None) -> JudgeSet:
    """A set of judges; by default each approves."""
    answers = {
        "consistency": consistency or (lambda _: Verdict("CONSISTENT")),
        "grounding": grounding or (lambda item: tuple(Verdict("CORRECT") for _ in item.sentences)),
        "extraction": extraction or (lambda _: Verdict("B")),
    }
    return JudgeSet(Judges(answers), "tester")


def items_of(judges: JudgeSet, task: str) -> list[Any]:
    """The items of this task that the judges received."""
    assert isinstance(judges.answerer, Judges)
    return judges.answerer.items[task]


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    """A question with an annotated box: the right half of an image of 200 x 100 pixels."""
    Image.new("RGB", (200, 100)).save(tmp_path / "image.png")
    boxes = (Box(100, 0, 200, 100, "original"),)
    return Sample(
        "cvb_2d/test/7",
        (str(tmp_path / "image.png"),),
        "Where is it?",
        ("left", "right"),
        "right",
        boxes,
        {"group": "g"},
    )


def scored(scorer: Any, *pairs: tuple[Sample, Rollout]) -> list[EvalRecord]:
    return asyncio.run(scorer.score(list(pairs)))  # type: ignore[no-any-return]


TEXT = "<think>The red thing is at <bbox>[70,0,140,56]</bbox>.</think><answer>{}</answer>"


def test_right_and_wrong_answers_are_judged_alike(sample: Sample) -> None:
    judges = judges_that(consistency=lambda item: Verdict("INCONSISTENT" if item.id == "wrong" else "CONSISTENT"))
    pairs = [
        (sample, Rollout(answer, sample.id, TEXT.format(word)))
        for answer, word in (("wrong", "left"), ("good", "right"))
    ]
    wrong, good = scored(scorer_of("fgrpo", judges, pixels=PixelBounds(784, 12544, 28)), *pairs)
    assert [(r.id, r.scores["accuracy"].value, r.scores["consistency"].value) for r in (wrong, good)] == [
        ("wrong", 0.0, 0.0), ("good", 1.0, 1.0),
    ]  # fmt: skip
    assert [item.id for item in items_of(judges, "consistency")] == ["wrong", "good"]
    assert [item.id for item in items_of(judges, "grounding")] == ["wrong", "good"]
    assert wrong.scores["semantic_grounding"].value == good.scores["semantic_grounding"].value == 1.0
    assert wrong.scores["spatial_grounding"].value == pytest.approx(
        1.0
    )  # whatever its source: no list of sources in evaluation


def test_each_score_of_a_record_is_that_of_its_own_reward(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = {}
    for n, name in enumerate(REWARDS, start=1):

        async def reward(items: Any, context: Any, n: int = n, name: str = name) -> list[Score]:
            contexts[name] = context
            return [Score.of(n / 10 + k / 100) for k in range(len(items))]

        module = importlib.import_module(f"rewards.{name}")
        reward.report = module.REWARD.report  # type: ignore[attr-defined]
        reward.name = name  # type: ignore[attr-defined]
        monkeypatch.setattr(module, "REWARD", reward)
    judges = judges_that()
    options = {"pixels": PixelBounds(1568, 12544, 14), "box_normaliser": "gt"}
    changes = (("box_tag", "box"), ("box_frame", "thousand"))
    pairs = [(sample, Rollout(f"r{k}", sample.id, TEXT.format("right"))) for k in range(2)]
    records = scored(scorer_of("fgrpo", judges, *changes, **options), *pairs)
    for k, record_k in enumerate(records):
        values = {name: record_k.scores[name].value for name in REWARDS}
        assert values == {name: pytest.approx(n / 10 + k / 100) for n, name in enumerate(REWARDS, start=1)}
    for context in contexts.values():
        assert context.judges is judges
        assert (context.mask, context.boxes_from, context.box_normaliser) == ("all", None, "gt")
        assert (context.min_pixels, context.max_pixels, context.patch_factor) == (1568, 12544, 14)
        assert (context.box_tag, context.box_frame) == ("box", "thousand")
    assert set(contexts) == set(REWARDS)


def test_boxes_are_read_as_the_model_file_says(sample: Sample) -> None:
    """The same answer, with another tag and frame: the right half in thousandths."""
    text = "<think>The red thing is at <box>[500,0,1000,1000]</box>.</think><answer>right</answer>"
    judges = judges_that()
    changed = scorer_of(
        "fgrpo", judges, ("box_tag", "box"), ("box_frame", "thousand"), pixels=PixelBounds(784, 12544, 28)
    )
    plain = scorer_of("fgrpo", judges, pixels=PixelBounds(784, 12544, 28))
    values = [
        scored(s, (sample, Rollout("r", sample.id, text)))[0].scores["spatial_grounding"].value
        for s in (changed, plain)
    ]
    assert values == [pytest.approx(1.0), 0.0]
    (asked, _) = items_of(judges, "grounding")
    assert (asked.box_tag, asked.box_frame, asked.image_sizes) == ("box", "thousand", ((140, 56),))


@pytest.mark.parametrize(
    ("written", "form"),
    [
        ('{"bbox_2d": [500, 0, 1000, 1000]}', "bbox_2d"),
        ("[500, 0, 1000, 1000]", "bare"),
        ("(500, 0, 1000, 1000)", "bare"),
        ("<box>500 0 1000 1000</box>", "box"),
        ("<|box_start|>(500,0),(1000,1000)<|box_end|>", "box_start"),
        ("<bbox>[500,0,1000,1000]</bbox>", None),
    ],
)
def test_boxes_of_every_form_reach_eq_1_in_the_frame_of_the_model_file(
    written: str, form: str | None, sample: Sample
) -> None:
    """The right half, in thousandths: the same score however it is written, for our policy and for a baseline."""
    text = f"<think>The red thing is at {written}.</think><answer>right</answer>"
    pixels = PixelBounds(784, 12544, 28)
    for name in ("fgrpo", "treevgr"):
        scorer = scorer_of(name, judges_that(), ("box_frame", "thousand"), ("box_tag", "bbox"), pixels=pixels)
        (record,) = scored(scorer, (sample, Rollout("r", sample.id, text)))
        assert record.scores["spatial_grounding"].value == pytest.approx(1.0)
        assert record.meta.get("boxes_other_form") == ({form: 1} if form else None)


def test_points_are_no_boxes_and_location_tokens_are_counted(sample: Sample) -> None:
    text = '<think>At {"point_2d": [500, 0]} and <loc_1><loc_2><loc_3><loc_4>.</think><answer>right</answer>'
    (record,) = scored(scorer_of("fgrpo", judges_that()), (sample, Rollout("r", sample.id, text)))
    assert record.scores["spatial_grounding"].value == 0.0
    assert record.meta["boxes_unread"] == {"loc": 1} and "boxes_other_form" not in record.meta


def test_the_extraction_judge_reads_options_and_answer_span_and_its_letter_is_the_option(sample: Sample) -> None:
    judges = judges_that(extraction=lambda item: {"a": Verdict("A"), "b": Verdict("b", "because"), "0": Verdict("0"),
                                                  "f": Verdict("B", "gone", failed=True), "c": Verdict("C")}[item.id])  # fmt: skip
    unclear = "<think>It is red and left.</think><answer>hard to say</answer>"
    pairs = [(sample, Rollout(name, sample.id, unclear)) for name in "ab0fc"]
    clear = (sample, Rollout("x", sample.id, unclear.replace("hard to say", "right")))
    records = {r.id: r for r in scored(scorer_of("fgrpo", judges), pairs[0], clear, *pairs[1:])}
    asked = items_of(judges, "extraction")
    assert [dataclasses.asdict(item) for item in asked] == [
        {"id": name, "choices": ("left", "right"), "answer_span": "hard to say"} for name in "ab0fc"
    ]
    found = {name: (r.scores["accuracy"].value, r.meta["answer"], r.meta["answer_from"]) for name, r in records.items()}
    assert found == {
        "a": (0.0, "left", "judge"), "b": (1.0, "right", "judge"), "x": (1.0, "right", "rules"),
        "0": (0.0, "hard to say", "unresolved"), "c": (0.0, "hard to say", "unresolved"),
        "f": (None, "hard to say", "failed"),
    }  # fmt: skip
    assert records["f"].scores["accuracy"].state == "failed" and "gone" in records["f"].scores["accuracy"].reason
    assert records["b"].scores["accuracy"].reason == "because"


def test_a_record_says_whose_answer_it_is(sample: Sample) -> None:
    rollout = Rollout("r#1", sample.id, TEXT.format("right"), "length", 9, {"kind": "sampled"})
    (found,) = scored(scorer_of("fgrpo", judges_that()), (sample, rollout))
    assert (found.id, found.benchmark, found.model, found.sample_id) == ("r#1", "cvb_2d", "fgrpo", "cvb_2d/test/7")
    assert found.meta == {
        "kind": "sampled", "group": "g", "finish": "length", "answer": "right", "answer_from": "rules", "judge": "tester",
    }  # fmt: skip
    (found,) = scored(scorer_of("fgrpo", judges_that()), (sample, Rollout("r", sample.id, "nothing")))
    assert (found.meta["kind"], found.scores["format"].value) == ("greedy", 0.0)


def test_an_open_answer_that_the_rules_do_not_decide_is_unresolved(sample: Sample) -> None:
    question = dataclasses.replace(sample, choices=(), answer="1000")
    read = {}
    for text in ("1,000", "900", "1e3"):
        rollout = Rollout("r", question.id, f"<think>x</think><answer>{text}</answer>")
        (record,) = scored(scorer_of("fgrpo", judges_that()), (question, rollout))
        read[text] = (record.scores["accuracy"].value, record.scores["accuracy"].reason, record.meta["answer_from"])
    assert read == {"1,000": (1.0, "", "rules"), "900": (0.0, "", "rules"), "1e3": (0.0, "unresolved", "unresolved")}


def test_verdicts_are_filed_under_their_own_names_and_failed_scores_are_scored_again(
    sample: Sample, tmp_path: Path
) -> None:
    rollouts = [Rollout(name, sample.id, TEXT.format("right")) for name in ("r0", "r1")]
    others = [Rollout("elsewhere", "mmvp/test/0", TEXT.format("right"))]  # of a benchmark that is not requested
    write_jsonl(tmp_path / "generations.jsonl", (r.to_dict() for r in [*others, *rollouts]))
    judges = judges_that(
        consistency=lambda item: Verdict("INCONSISTENT", f"of {item.id}"),
        grounding=lambda item: (
            Verdict(None, "gone", failed=item.id == "r1") if item.id == "r1" else Verdict("CORRECT"),
        ),
    )
    done: list[int] = []
    samples = {sample.id: sample}
    asyncio.run(
        score.score_file(scorer_of("fgrpo", judges), samples, tmp_path / "generations.jsonl", tmp_path, done.append)
    )
    lines = list(read_jsonl(tmp_path / "verdicts.jsonl"))
    assert [(x["id"], x["answer"], x["answer_from"]) for x in lines] == [
        ("r0", "right", "rules"),
        ("r1", "right", "rules"),
    ]
    assert [(x["consistency"]["reason"], x["consistency"]["value"]) for x in lines] == [("of r0", 0.0), ("of r1", 0.0)]
    assert [x["semantic_grounding"]["value"] for x in lines] == [1.0, None] and lines[1]["semantic_grounding"]["failed"]
    assert sum(done) == 2
    again = judges_that()
    found = asyncio.run(score.score_file(scorer_of("fgrpo", again), samples, tmp_path / "generations.jsonl", tmp_path))
    assert [item.id for item in items_of(again, "consistency")] == ["r1"]
    assert [r.id for r in found] == ["r0", "r1"] and [r["id"] for r in read_jsonl(tmp_path / "scores.jsonl")] == [
        "r0",
        "r1",
    ]
    assert [r.scores["consistency"].value for r in found] == [0.0, 1.0]


def test_the_allowed_share_of_failures_is_of_what_was_judged() -> None:
    """Two failures of ten judgements are allowed; what is not applicable or refused is not judged."""
    metric, config = "consistency", setting("rl.max_failed_share=0.2")

    def records(failures: int, judged: int) -> list[EvalRecord]:
        states = [Score.failure("gone")] * failures + [Score.of(1.0)] * (judged - failures)
        others = dict.fromkeys({"accuracy", "consistency", "semantic_grounding"} - {metric}, Score.of(1.0))
        plain = record("fgrpo", "mmvp", 0, "greedy", {})
        found = [dataclasses.replace(plain, scores={**others, metric: state}) for state in states]
        found += [dataclasses.replace(plain, scores={**others, metric: Score.not_applicable("x")})] * 8
        refused = dataclasses.replace(
            plain, scores={metric: Score.failure("refused")}, meta={**plain.meta, "finish": "error"}
        )
        return [*found, *[refused] * 8]

    scored_answers.check_failures(records(2, 10), config)
    with pytest.raises(UserError, match=rf"3 of 10 judgements of {metric} failed.*'gone'"):
        scored_answers.check_failures(records(3, 10), config)


def recorded(path: Path, items: Sequence[tuple[JudgeTask[Any], Any, tuple[Verdict, ...]]]) -> Path:
    """A file of verdicts for the backend `replay`."""
    rows = ({"id": replay.item_key(task, i), "verdicts": [v.to_dict() for v in vs]} for task, i, vs in items)
    write_jsonl(path, rows)
    return path


def test_the_evaluation_judge_judges_and_the_extraction_judge_extracts(tmp_path: Path) -> None:
    items = (
        (CONSISTENCY_TASK, ConsistencyItem("c", "q", ("a", "b"), "It is a.", "a")),
        (GROUNDING_TASK, GroundingItem("g", (), "q", ("It is a.",), ((),))),
        (EXTRACTION_TASK, ExtractionItem("e", ("a", "b"), "it is")),
    )
    files = {
        role: recorded(tmp_path / f"{role}.jsonl", [(*item, (Verdict("X", role, judge=role),)) for item in items])
        for role in ("training", "evaluation", "extraction")
    }
    config = setting(*(f"judges.{role}={{backend: replay, model: {path}}}" for role, path in files.items()))
    judges = run.evaluation_judges(config)

    async def work() -> list[str]:
        (one,) = await judges.ask(items[0][0], [items[0][1]])
        ((two,),) = await judges.ask_several(items[1][0], [items[1][1]])
        (three,) = await judges.ask(items[2][0], [items[2][1]])
        return [one.reason, two.reason, three.reason]

    assert asyncio.run(work()) == ["evaluation", "evaluation", "extraction"]


class OneBox(Scripted):
    """Writes the first true box alone, in pixels of an image that the model sees at `scale` of its size."""

    scale = 1.0

    def write(self, request: Request) -> str:
        scenes, asked = self.book.scenes(request.images), parse_question(request.text)
        assert scenes is not None and asked is not None
        named = asked.names or (scenes[0].things[0].name,)
        thing = scenes[asked.image_index or 0].by_name(named[0])
        assert thing is not None
        box = ",".join(f"{self.scale * v:g}" for v in thing.box)
        return f"<think>The thing is at <bbox>[{box}]</bbox>.</think><answer>{asked.options[0]}</answer>"


class HalfBox(OneBox):
    scale = 0.5


@pytest.mark.parametrize(
    ("engine", "pixels", "normaliser", "value"),
    [
        (OneBox, 12544, "max", 0.5),
        (OneBox, 12544, "matched", 1.0),
        (HalfBox, 3136, "matched", 1.0),
        (OneBox, 3136, "matched", None),
    ],
)
def test_configuration_and_processor_reach_spatial_grounding(
    world: Config, tmp_path: Path, engine: type[Scripted], pixels: int, normaliser: str, value: float | None
) -> None:
    """Two boxes are true in questions of this benchmark, and one is written, in pixels of the image that the processor makes."""
    rl = world.rl.model_copy(update={"box_normaliser": normaliser})
    config = world.model_copy(update={"rl": rl})
    folder = evaluate(
        config, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, engine=engine, max_pixels=pixels, benchmarks=["cvb_2d"]
    )
    book = miniworld_truth.book(world.data.root)
    samples = base.load("cvb_2d", world).samples
    two = {s.id for s in samples if len(miniworld_truth.with_true_boxes(s, book).boxes or ()) == 2}
    records = [EvalRecord.from_dict(item) for item in read_jsonl(folder / "scores.jsonl")]
    values = [r.scores["spatial_grounding"].value for r in records if r.sample_id in two]
    assert values and None not in values
    if value is None:
        assert max(values) < 0.9  # read in pixels of a larger image than the model sees
    else:
        assert values == pytest.approx([value] * len(values), abs=1e-3)


def test_an_evaluation_whose_judge_fails_is_not_finished(world: Config, tmp_path: Path) -> None:
    (tmp_path / "verdicts.jsonl").touch()  # nothing was recorded, so every verdict is missing
    judge = world.judges.evaluation.model_copy(update={"backend": "replay", "model": str(tmp_path / "verdicts.jsonl")})
    config = world.model_copy(update={"judges": world.judges.model_copy(update={"evaluation": judge})})
    with pytest.raises(UserError, match=r"judgements of consistency failed, such as: 'not recorded'"):
        evaluate(config, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    folder = tmp_path / config.preset / "eval" / "fgrpo"
    assert not (folder / "done").exists() and not (folder / "summary.json").exists()
    assert (folder / "generations.jsonl").stat().st_size > 0


def test_an_evaluation_past_its_cap_is_not_finished(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "stopped", property(lambda _: "the cap is reached", lambda *_: None))
    with pytest.raises(UserError, match=r"the cap is reached; .*money_cap or token_cap"):
        evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"])
    assert not (tmp_path / world.preset / "eval" / "fgrpo" / "done").exists()


def test_what_a_benchmark_left_out_is_in_the_manifest(
    world: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = base.load

    def load_with_drops(name: str, config: Config) -> Any:
        loaded = real(name, config)
        loaded.dropped["no image"] += 2 if name == "mmvp" else 3
        return loaded

    monkeypatch.setattr(base, "load", load_with_drops)
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp", "cvb_2d"])
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert {name: n for name, n in counts.items() if "no image" in name} == {
        "mmvp/left out: no image": 2, "cvb_2d/left out: no image": 3,
    }  # fmt: skip
    states = [
        f"{m}/{s.state}" for r in read_jsonl(folder / "scores.jsonl") for m, s in EvalRecord.from_dict(r).scores.items()
    ]
    assert {name: n for name, n in counts.items() if name.startswith("accuracy/")} == {
        name: states.count(name) for name in set(states) if name.startswith("accuracy/")
    }


def test_a_part_of_the_answers_takes_more_benchmarks_later(world: Config, tmp_path: Path) -> None:
    from fgrpo.shards import Shard

    book = miniworld_truth.book(world.data.root)
    assert book is not None
    evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, benchmarks=["mmvp"])
    requests = []
    for benchmarks in (["cvb_2d"], ["cvb_2d"], ["cvb_2d", "sat_real"]):
        engine = Scripted(book)
        folder = run.evaluate(world, "fgrpo", benchmarks, tmp_path, engine, Shard(1, 2))
        requests.append(len(engine.asked))
    assert requests[0] > 0 and requests[1] == 0 and requests[2] > 0
    answers = [item["sample_id"].split("/")[0] for item in read_jsonl(folder / "generations.jsonl")]
    assert set(answers) == {"cvb_2d", "sat_real"} and len(answers) == requests[0] + requests[2]
    assert not (folder / "scores.jsonl").exists()


def test_the_command_line_reaches_the_evaluation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    def evaluation(*args: Any, **more: Any) -> Path:
        seen.append((args, more))
        return tmp_path

    monkeypatch.setattr(run, "evaluate", evaluation)
    shown: list[Path] = []
    monkeypatch.setattr(run, "headline", lambda path: shown.append(path) or "accuracy 50.0")
    given = [
        "--model",
        "gpt-4o,gpt-5-nano",
        "--benchmarks",
        "mmvp,cvb_2d",
        "--runs",
        str(tmp_path),
        "--set",
        "eval.limit=3",
    ]
    monkeypatch.setattr("sys.argv", ["eval.run", "--preset", "paper-7b", "--method", "grpo-t", *given])
    run.main()
    for (args, more), name in zip(seen, ("gpt-4o", "gpt-5-nano"), strict=True):
        config, *others = args
        assert (config.preset, config.method, config.eval.limit) == ("paper-7b", "grpo-t", 3)
        assert others == [name, ("mmvp", "cvb_2d"), str(tmp_path)] and more == {"shard": None}
    assert shown == [tmp_path, tmp_path]


def test_the_summary_of_an_evaluation_is_that_of_its_own_scores(world: Config, tmp_path: Path) -> None:
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.3, 0.3, benchmarks=["mmvp", "cvb_2d"])
    found = json.loads((folder / "summary.json").read_text())
    records = [EvalRecord.from_dict(item) for item in read_jsonl(folder / "scores.jsonl")]
    again = summary.summarise(records, ["mmvp"], world.eval)
    assert {key: value for key, value in found.items() if key in again} == json.loads(json.dumps(again))
    assert (found["model"], found["title"], found["mode"]) == ("fgrpo", "FGRPO", "think")
    assert "pair_accuracy" in found["greedy"]["benchmarks"]["mmvp"]
    assert "pair_accuracy" not in found["greedy"]["benchmarks"]["cvb_2d"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["benchmarks"], manifest["model"]) == (["mmvp", "cvb_2d"], "fgrpo")


class Echo(Scripted):
    """Answers with the text of the request, and keeps the requests."""

    requests: list[Request] = []  # noqa: RUF012  # of all engines, as a run makes its own

    async def sample(self, request: Request) -> Any:
        Echo.requests.append(request)
        finish = "length" if request.temperature else "stop"
        return [Completion(f"{request.temperature} {request.text}", finish, (1,) * (3 if request.temperature else 5))]


def test_each_request_carries_its_question_and_decoding_and_its_answer_comes_back(
    world: Config, tmp_path: Path
) -> None:
    config = load_again(load_again(world, "eval.sampled_temperature", "0.7"), "eval.max_new_tokens", "77")
    Echo.requests.clear()
    folder = evaluate(config, tmp_path, "fgrpo", "rl-fgrpo", 0, 0, benchmarks=["mmvp", "cvb_2d"], engine=Echo)
    samples = {s.id: s for name in ("mmvp", "cvb_2d") for s in base.load(name, config).samples}
    rollouts = [Rollout.from_dict(item) for item in read_jsonl(folder / "generations.jsonl")]
    by_text = {(r.text, r.images, r.temperature): r for r in Echo.requests}
    assert len(rollouts) == len(Echo.requests) == 2 * len(samples)
    for rollout in rollouts:
        sample = samples[rollout.sample_id]
        sampled = rollout.id != rollout.sample_id
        temperature = 0.7 if sampled else 0.0
        text = rollout.text.removeprefix(f"{temperature} ")
        request = by_text[text, sample.images, temperature]
        assert sample.question in text and request.max_new_tokens == 77
        assert (rollout.meta["kind"], rollout.finish) == (("sampled", "length") if sampled else ("greedy", "stop"))
        assert rollout.tokens == (3 if sampled else 5)
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert (counts["finish/stop"], counts["finish/length"]) == (len(samples), len(samples))


class Counting(Scripted):
    """Counts the requests over all evaluations of a test."""

    total = 0

    async def sample(self, request: Request) -> Any:
        Counting.total += 1
        return await super().sample(request)


@pytest.mark.parametrize(
    ("override", "generates", "scores"),
    [
        ("eval.temperature=0.5", True, True),
        ("eval.max_new_tokens=95", True, True),
        ("eval.context_length=511", True, True),
        ("eval.sampled_rollouts=2", True, True),
        ("eval.sampled_temperature=0.9", True, True),
        ("eval.dtype=bfloat16", True, True),
        ("seed=3", True, True),
        ("prompts.think=think", True, True),
        ("rl.box_normaliser=gt", False, True),
        ("judges.evaluation.model=another", False, True),
        ("judges.extraction.model=another", False, True),
        ("eval.bootstrap_samples=60", False, False),
        ("eval.confidence=0.9", False, False),
        ("eval.batch_size=7", None, None),
        ("judges.training.model=another", None, None),
        ("rl.learning_rate=1", None, None),
    ],
)
def test_what_a_change_of_the_configuration_redoes(
    world: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    override: str,
    generates: bool | None,
    scores: bool | None,
) -> None:
    """None: nothing at all. Answers depend on the decoding, scores on the judges and boxes, the summary on the intervals."""
    key, value = override.split("=")
    changed = load_again(world, key, value)
    folder = evaluate(world, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"], engine=Counting)
    before, requests = (folder / "summary.json").stat().st_mtime_ns, Counting.total
    done: list[int] = []
    real = score.Scorer.score

    async def counted(self: Any, pairs: Any) -> Any:
        done.append(len(pairs))
        return await real(self, pairs)

    monkeypatch.setattr(score.Scorer, "score", counted)
    folder = evaluate(changed, tmp_path, "fgrpo", "rl-fgrpo", 0.2, 0.2, benchmarks=["mmvp"], engine=Counting)
    assert (Counting.total > requests) == bool(generates)
    assert bool(sum(done)) == bool(scores)
    assert ((folder / "summary.json").stat().st_mtime_ns > before) == (scores is not None)


def load_again(config: Config, key: str, value: str) -> Config:
    """`config` with one key changed."""
    import yaml

    plain = config.model_dump(mode="json")
    *sections, last = key.split(".")
    place = plain
    for section in sections:
        place = place[section]
    place[last] = yaml.safe_load(value)
    return Config.model_validate(plain)
