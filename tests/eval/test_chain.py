"""Generate, score, resume, tabulate and report, end to end over the miniature world with a scripted engine."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Scripted

from eval import base, figures, generate, miniworld_truth, models, report, rescore, run, score, summary, tables
from eval.judge_validation import run as validation
from eval.results import find
from fgrpo.errors import UserError
from fgrpo.files import read_ids, read_jsonl, write_jsonl
from fgrpo.inference.base import Completion, Request, SamplingError, Unreachable, UnusableImage
from fgrpo.schema import Config
from fgrpo.sealed import read_sealed, write_sealed
from fgrpo.types import Box, EvalRecord, Rollout, Sample
from judges.base import build

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"
FILES = ("generations.jsonl", "scores.jsonl", "verdicts.jsonl", "summary.json")


def checkpoint(config: Config, root: Path, stage: str) -> None:
    folder = root / config.preset / stage / "final"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"stage": stage}))
    shutil.copy(BACKBONE / "processor_config.json", folder)


def engine(config: Config, **settings: float | int) -> Scripted:
    book = miniworld_truth.book(config.data.root)
    assert book is not None
    return Scripted(book, **settings)  # type: ignore[arg-type]


@pytest.fixture
def evaluated(world: Config, tmp_path: Path) -> Path:
    for name, stage, shares in (
        ("sft", "sft", (0.1, 0.3)),
        ("grpo-t", "rl-grpo-t", (0.5, 0.1)),
        ("fgrpo", "rl-fgrpo", (0.0, 0.2)),
    ):
        checkpoint(world, tmp_path, stage)
        run.evaluate(world, name, root=tmp_path, sampler=engine(world, inconsistent=shares[0], wrong=shares[1]))
    return tmp_path


def test_a_killed_run_resumes_to_the_same_bytes(world: Config, tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    for root in (whole, torn):
        checkpoint(world, root, "rl-fgrpo")
    run.evaluate(world, "fgrpo", root=whole, sampler=engine(world))
    with pytest.raises(BaseExceptionGroup):
        run.evaluate(world, "fgrpo", root=torn, sampler=engine(world, die_after=20))
    folder = torn / world.preset / "eval/fgrpo"
    assert not (folder / "done").exists() and len(read_ids(folder / "generations.jsonl")) == 20
    with (folder / "generations.jsonl").open("a") as out:
        out.write('{"id": "cvb_2d/test/0", "torn')
    again = engine(world)
    run.evaluate(world, "fgrpo", root=torn, sampler=again)
    total = len(list(read_jsonl(folder / "generations.jsonl")))
    assert len(again.asked) == total - 20
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / world.preset / "eval/fgrpo" / name).read_bytes(), name


def test_a_torn_score_file_is_completed_without_generating(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", root=tmp_path, sampler=engine(world))
    before = {name: (folder / name).read_bytes() for name in FILES}
    (folder / "done").unlink()
    (folder / "scores.jsonl").write_bytes(before["scores.jsonl"][: len(before["scores.jsonl"]) // 2])
    silent = engine(world, die_after=0)
    run.evaluate(world, "fgrpo", root=tmp_path, sampler=silent)
    assert {name: (folder / name).read_bytes() for name in FILES} == before and not silent.asked


def test_done_means_nothing_is_done_again_and_benchmarks_can_be_added(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    idle = engine(world)
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, idle)
    assert not idle.asked
    more = engine(world)
    folder = run.evaluate(world, "fgrpo", ["sat_real"], tmp_path, more)
    assert more.asked and not any("mmvp" in str(r.images) for r in more.asked)
    assert {r["benchmark"] for r in read_jsonl(folder / "scores.jsonl")} == {"mmvp", "sat_real"}


def test_other_judges_keep_the_generations(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    judge = world.judges.evaluation.model_copy(update={"model": "another name"})
    other = world.model_copy(update={"judges": world.judges.model_copy(update={"evaluation": judge})})
    silent = engine(world)
    folder = run.evaluate(other, "fgrpo", ["mmvp"], tmp_path, silent)
    assert not silent.asked and (folder / "done").exists()


def test_a_new_checkpoint_starts_afresh(world: Config, tmp_path: Path) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, engine(world))
    (tmp_path / world.preset / "rl-fgrpo/final/config.json").write_text('{"trained": "again"}')
    fresh = engine(world)
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, fresh)
    assert fresh.asked
    weights = tmp_path / world.preset / "rl-fgrpo/final/model-00001-of-00001.safetensors"
    for content in (b"of one run", b"of another"):  # large ones are told apart by their ends
        with weights.open("wb") as out:
            out.write(content)
            out.truncate(300 * 2**20)
        fresh = engine(world)
        run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, fresh)
        assert fresh.asked


def test_refused_requests_are_recorded_and_asked_again(world: Config, tmp_path: Path) -> None:
    samples = base.load("mmvp", world).samples
    todo = generate.jobs(samples, models.load("fgrpo"), world)
    picky = engine(world)
    picky.refuse = (samples[0].question,)
    path = tmp_path / "generations.jsonl"
    counts = asyncio.run(generate.generate(todo, picky, path, concurrency=4))
    assert counts["error"] >= 2 and counts["error"] + counts["stop"] == len(todo)
    picky.refuse = ()
    assert asyncio.run(generate.generate(todo, picky, path, concurrency=4)) == {"stop": len(todo)}


def test_an_engine_that_refuses_everything_stops_early(world: Config, tmp_path: Path) -> None:
    samples = [
        s for name in ("mmvp", "cvb_2d", "cvb_3d", "mindcube", "sat_real") for s in base.load(name, world).samples
    ]
    todo = generate.jobs(samples, models.load("fgrpo"), world)
    broken = engine(world)
    broken.refuse = ("",)
    with pytest.raises(UserError, match=r"answered none of .*: refused; fix the engine"):
        asyncio.run(generate.generate(todo, broken, tmp_path / "generations.jsonl", concurrency=1))
    assert {job.sample.id for job in todo[: len(broken.asked)]} == {s.id for s in samples[: generate.REFUSALS_IN_A_ROW]}
    assert len(broken.asked) < len(todo)


class Json(Scripted):
    """Writes its boxes as Qwen's JSON."""

    def write(self, request: Request) -> str:
        return re.sub(r"<bbox>(\[.*?\])</bbox>", r'{"bbox_2d": \1}', super().write(request))


def test_boxes_in_another_form_are_reported(world: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(world, tmp_path, "rl-fgrpo")
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, Json(engine(world).book))
    scores = list(read_jsonl(folder / "scores.jsonl"))
    total = sum(row["meta"]["boxes_other_form"]["bbox_2d"] for row in scores)
    assert f"fgrpo writes boxes in other forms ({total} × bbox_2d) than 'bbox'" in capsys.readouterr().out
    policy = world.policy.model_copy(update={"box_tag": "bbox_2d"})
    folder = run.evaluate(
        world.model_copy(update={"policy": policy}), "fgrpo", ["mmvp"], tmp_path, Json(engine(world).book)
    )
    assert "boxes_other_form" not in (folder / "scores.jsonl").read_text() and "forms" not in capsys.readouterr().out


class BadImages(Scripted):
    """An engine that can use the images of one question only."""

    good = ""

    async def sample(self, request: Request) -> Sequence[Completion]:
        if self.good not in request.images:
            self.asked.append(request)
            raise UnusableImage("the image is too narrow")
        return await super().sample(request)


def test_any_number_of_unusable_images_in_a_row_does_not_end_an_evaluation(world: Config, tmp_path: Path) -> None:
    names = ("mmvp", "cvb_2d", "cvb_3d", "mindcube", "sat_real", "realworldqa")
    samples = [s for name in names for s in base.load(name, world).samples]
    todo = [job for job in generate.jobs(samples, models.load("fgrpo"), world) if job.kind == "greedy"]
    bad = BadImages(engine(world).book)
    bad.good = todo[-1].request.images[0]
    counts = asyncio.run(generate.generate(todo, bad, tmp_path / "generations.jsonl", concurrency=1))
    assert counts == {"error": len(todo) - 1, "stop": 1} and counts["error"] > generate.REFUSALS_IN_A_ROW
    assert "too narrow" in generate.first_refusal(tmp_path / "generations.jsonl")


class Dying(Scripted):
    """An endpoint that is gone after `serves` answers (for good), and is asked in vain from then on."""

    serves = 0

    async def sample(self, request: Request) -> Sequence[Completion]:
        if len(self.asked) >= self.serves:
            self.asked.append(request)
            raise Unreachable("no answer from http://gone/v1 in 6 attempts")
        return await super().sample(request)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_endpoint_that_dies_is_not_asked_for_all_that_is_left(
    world: Config, tmp_path: Path, concurrency: int
) -> None:
    names = ("cvb_2d", "cvb_3d", "mindcube", "mmvp", "omnispatial", "realworldqa", "sat_real")
    samples = [s for name in names for s in base.load(name, world).samples]
    todo = [job for job in generate.jobs(samples, models.load("fgrpo"), world) if job.kind == "greedy"]
    path = tmp_path / "generations.jsonl"
    dying = Dying(engine(world).book)
    dying.serves = 5
    with pytest.raises(UserError, match=r"served 5 of .* and then no more; .* no answer from .* rerun to resume"):
        asyncio.run(generate.generate(todo, dying, path, concurrency=concurrency))
    assert len(generate.held_ids(path)) == 5 and len(dying.asked) < 5 + generate.REFUSALS_IN_A_ROW + concurrency
    dying.asked, dying.serves = [], 0  # still gone, and fewer than 20 questions left: not 4 refusals and a finished run
    asyncio.run(generate.generate(todo[:-4], engine(world), path, concurrency=4))
    with pytest.raises(UserError, match=r"answered none of this run's requests.*finished answers are kept in"):
        asyncio.run(generate.generate(todo, dying, path, concurrency=concurrency))
    assert len(dying.asked) == 4
    assert asyncio.run(generate.generate(todo, engine(world), path, concurrency=4)) == {"stop": len(todo)}


def test_a_question_that_is_always_refused_does_not_block_what_follows(world: Config, tmp_path: Path) -> None:
    """A killed or failed run resumes, although all that is left is refused again."""
    checkpoint(world, tmp_path, "rl-fgrpo")
    picky = engine(world)
    picky.refuse = (base.load("mmvp", world).samples[0].question,)
    with pytest.raises(UserError, match=r"4 of 8 requests have no answer .* more than eval\.max_refused_share=0\.02"):
        run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, picky)
    world = world.model_copy(update={"eval": world.eval.model_copy(update={"max_refused_share": 0.5})})
    folder = run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, picky)
    before = {name: (folder / name).read_bytes() for name in FILES}
    (folder / "done").unlink()
    run.evaluate(world, "fgrpo", ["mmvp"], tmp_path, picky)
    assert (folder / "done").exists() and {name: (folder / name).read_bytes() for name in FILES} == before


def test_refusals_in_one_batch_and_a_late_answer(world: Config, tmp_path: Path) -> None:
    """The engine is given up while an answer is on its way: that answer stays, and the rest is left for the next run."""

    class Late(Scripted):
        async def sample(self, request: Request) -> Sequence[Completion]:
            self.asked.append(request)
            if len(self.asked) > 1:
                raise SamplingError("refused")
            await asyncio.sleep(0.2)
            return [Completion(self.write(request), "stop", (1,))]

    names = ("cvb_2d", "cvb_3d", "mindcube", "mmvp", "omnispatial", "realworldqa", "sat_real")
    samples = [s for name in names for s in base.load(name, world).samples]
    todo = [job for job in generate.jobs(samples, models.load("fgrpo"), world) if job.kind == "greedy"]
    path = tmp_path / "generations.jsonl"
    with pytest.raises(UserError, match="served 1 of"):
        asyncio.run(generate.generate(todo, Late(engine(world).book), path, concurrency=22))
    assert len(generate.held_ids(path)) == 1


def one_score(world: Config, text: str, finish: str = "stop") -> tuple[Sample, EvalRecord]:
    sample = next(s for s in base.load("cvb_2d", world).samples if "left" in s.choices or "above" in s.choices)
    scorer = score.Scorer(
        models.load("fgrpo"),
        "fgrpo",
        build(world.judges.evaluation, world.data.root),
        miniworld_truth.book(world.data.root),
    )
    rollout = Rollout(sample.id, sample.id, text.format(gold=sample.answer), finish)  # type: ignore[arg-type]
    return sample, asyncio.run(scorer.score([(sample, rollout)]))[0]


def test_scores_of_one_answer(world: Config) -> None:
    sample = next(s for s in base.load("cvb_2d", world).samples if len(s.choices) == 2)
    other = next(c for c in sample.choices if c != sample.answer)
    scorer = score.Scorer(
        models.load("fgrpo"),
        "fgrpo",
        build(world.judges.evaluation, world.data.root),
        miniworld_truth.book(world.data.root),
    )
    text = f"<think>The answer is {other}.\nThe answer is {other}.</think><answer>{sample.answer}</answer>"
    record = asyncio.run(scorer.score([(sample, Rollout("x", sample.id, text))]))[0]
    values = {name: s.value for name, s in record.scores.items()}
    assert values["accuracy"] == 1.0 and values["consistency"] == 0.0
    assert values["statement"] == 0.0 and values["flip"] == 1.0 and values["format"] == 1.0
    assert values["spatial_grounding"] == 0.0  # boxes are known, none was written
    assert EvalRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_no_answer_and_a_refusal_are_told_apart(world: Config) -> None:
    _, cut = one_score(world, "<think>The answer is", "length")
    assert cut.scores["accuracy"].value == 0.0 and cut.meta["answer_from"] == "none"
    _, refused = one_score(world, "", "error")
    assert {name: s.state for name, s in refused.scores.items()} == dict.fromkeys(cut.scores, "failed")


def test_refusals_are_in_no_average(world: Config) -> None:
    """A judge is not asked about them, and they are neither wrong nor inconsistent."""
    judges = build(world.judges.evaluation, world.data.root)
    scorer = score.Scorer(models.load("fgrpo"), "fgrpo", judges, miniworld_truth.book(world.data.root))
    sample = next(s for s in base.load("cvb_2d", world).samples if len(s.choices) == 2)
    right = Rollout("a", sample.id, f"<think>The answer is {sample.answer}.</think><answer>{sample.answer}</answer>")
    gone = Rollout("b", sample.id, "", "error")
    records = asyncio.run(scorer.score([(sample, gone), (sample, right)]))
    assert [r.id for r in records] == ["b", "a"]
    cells = summary.summarise(records, (), world.eval)["greedy"]["benchmarks"]["cvb_2d"]
    assert (cells["accuracy"]["value"], cells["accuracy"]["n"], cells["inconsistency"]["n"]) == (1.0, 1, 1)
    assert cells["refused"]["value"] == 0.5 and judges.meter.calls == 2  # consistency and grounding of the other one


def test_evaluation_sees_pictures_as_the_processor_does(world: Config, tmp_path: Path) -> None:
    """A box of the picture as the model sees it: the bounds are those of the evaluated model's processor."""
    from PIL import Image

    picture = tmp_path / "p.png"
    Image.new("RGB", (112, 112)).save(picture)
    sample = Sample("x/y/0", (str(picture),), "q", ("a", "b"), "a", (Box(0, 0, 56, 112, "original"),))
    text = "<think><bbox>[0,0,28,56]</bbox></think><answer>a</answer>"
    spec, judges = models.load("fgrpo"), build(world.judges.evaluation, world.data.root)
    for pixels, value in (((784, 56 * 56, 28), 1.0), ((784, 12544, 28), 0.25)):
        scorer = score.Scorer(spec, "fgrpo", judges, pixels=pixels)
        record = asyncio.run(scorer.score([(sample, Rollout("r", sample.id, text))]))[0]
        found = record.scores["spatial_grounding"].value
        assert found == 1.0 if value == 1.0 else found is not None and found < 0.3


def test_an_unresolved_answer_is_no_guess(world: Config) -> None:
    _, record = one_score(world, "<think>x</think><answer>hard to say</answer>")
    assert record.scores["accuracy"].value == 0.0
    assert record.meta["answer_from"] == "unresolved"


def test_direct_answers_are_not_judged_for_faith(world: Config) -> None:
    spec = models.load("backbone-direct")
    (job, *rest) = generate.jobs(base.load("mmvp", world).samples[:1], spec, world)
    assert job.request.prefix == "<answer>" and not rest  # no sampled set for direct answers
    scorer = score.Scorer(spec, "x", build(world.judges.evaluation, world.data.root))
    rollout = Rollout(job.id, job.sample.id, f"<answer>{job.sample.answer}</answer>")
    record = asyncio.run(scorer.score([(job.sample, rollout)]))[0]
    assert set(record.scores) == {"accuracy"} and record.scores["accuracy"].value == 1.0


def test_tables_show_ours_the_papers_and_dashes(evaluated: Path, world: Config) -> None:
    shown, everything, out = tables.build(world, evaluated)
    text = "\n".join(t.text() for t in shown)
    assert "FGRPO" in text and "±" in text and "McNemar p" in text
    table1 = (out / "table1.md").read_text()
    assert "– / 78.2" in table1  # GPT-4o was not evaluated
    assert next(t for t in everything if t.name == "table3").rows[0][0] == "GRPO-T"
    data = json.loads((out / "tables.json").read_text())
    found = data["comparisons"]["grpo-t-vs-fgrpo-greedy"]["inconsistency"]
    assert found["b"] < found["a"] and found["mcnemar"]["only_b"] <= found["mcnemar"]["only_a"]
    assert len(found["flipped"]) == found["mcnemar"]["only_a"] + found["mcnemar"]["only_b"]


def test_the_overview_names_what_it_leaves_out(evaluated: Path, world: Config) -> None:
    assert tables.not_shown(world, evaluated) == []
    top = evaluated / world.preset / "eval"
    shutil.copytree(top / "fgrpo", top / "theirs")  # an evaluation that no stage here trained
    shutil.copytree(top / "fgrpo", top / "begun")
    (top / "begun" / "done").unlink()
    other, begun = tables.not_shown(world, evaluated)
    assert other.startswith("Also evaluated") and other.endswith(": FGRPO.")
    assert begun.startswith("Not finished, so in no table: begun.") and f"PRESET={world.preset}" in begun


def test_an_evaluation_ends_with_its_figures(evaluated: Path, world: Config) -> None:
    folder = evaluated / world.preset / "eval" / "fgrpo"
    average = json.loads((folder / "summary.json").read_text())["sampled"]["average"]
    line = run.headline(folder)
    for title in ("accuracy", "inconsistency", "semantic_grounding"):
        assert f"{title.replace('_', ' ')} {100 * average[title]['value']:.1f}" in line
    assert "sampled answers" in line


def test_a_run_compared_with_itself_has_no_flips(evaluated: Path, world: Config) -> None:
    result = find(world, evaluated)["fgrpo"]
    for entry in tables.compare(result, result, "greedy", world).values():
        assert entry["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert entry.get("mcnemar", {"p": 1.0})["p"] == 1.0 and not entry.get("flipped")


def test_the_same_rescore_agrees_and_generates_nothing(
    evaluated: Path, world: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluated / world.preset / "eval/grpo-t"
    out = rescore.rescore(world, folder, "oracle")
    assert (out / "scores.jsonl").read_bytes() == (folder / "scores.jsonl").read_bytes()
    old = [EvalRecord.from_dict(r) for r in read_jsonl(folder / "scores.jsonl")]
    found = rescore.agreements(old, old, world.eval)["consistency"]
    asked = [r for r in old if r.scores["consistency"].detail.get("cause") == "judge"]
    assert found.kappa == 1.0 and found.n == len(asked)
    again = Path(shutil.copytree(out, out.with_name("before")))
    monkeypatch.setattr(base, "load", lambda *_: pytest.fail("the folder keeps its own questions"))
    settled = read_sealed(out / "judge.json")
    write_sealed(out / "judge.json", {**settled, "prompts": {"consistency": "of another day"}})
    (out / "done").unlink()  # else the change itself is refused
    (out / "scores.jsonl").write_text((out / "scores.jsonl").read_text().replace('"CORRECT"', '"INCORRECT"'))
    assert (out / "scores.jsonl").read_bytes() != (again / "scores.jsonl").read_bytes()
    rescore.rescore(world, folder, "oracle")
    assert (out / "scores.jsonl").read_bytes() == (again / "scores.jsonl").read_bytes()  # nothing stale was kept
    with pytest.raises(UserError, match="unknown judge"):
        rescore.rescore(world, folder, "oracel")


def test_a_judge_is_checked_on_an_evaluated_folder(evaluated: Path, world: Config) -> None:
    """The folder keeps its questions, so another judge (here the same one) is asked the same again, and swapped answers."""
    *_, again, swapped = validation.check_run(world, evaluated / world.preset / "eval/fgrpo", "oracle", None, None)
    assert all(a["agreement"] == 1.0 and a["n"] > 0 for a in again["agreements"] if a["role"] != "extraction")
    (errors,) = swapped["errors"]["consistency"]
    assert errors["n"] > 0 and errors["wrong"] == errors["failed"] == 0


def test_figures_and_report(evaluated: Path, world: Config) -> None:
    for method in ("grpo-t", "fgrpo", "fgrpo-fixed"):
        rows = (
            {
                "step": n,
                "accuracy": 0.5,
                "inconsistency": 0.1,
                "constraint/consistency/mean": 0.9,
                "constraint/brevity/mean": 0.5,  # somebody's own
                **({} if method == "grpo-t" else {"lambda/consistency": 1.0, "lambda/brevity": 1.0}),
            }
            for n in range(9)
        )
        (evaluated / world.preset / f"rl-{method}").mkdir(exist_ok=True)
        write_jsonl(evaluated / world.preset / f"rl-{method}/metrics.jsonl", rows)
    drawn = figures.draw(world, evaluated)
    assert [p.with_suffix(".svg").name for p in drawn if p.suffix == ".png"] == [
        p.name for p in drawn if p.suffix == ".svg"
    ]
    assert [p.name for p in drawn if p.suffix == ".png"] == [
        *("figure3.png", "figure4.png", "figure8.png", "figure8-fgrpo-fixed.png")
    ]
    page = report.write(world, evaluated).read_text()
    assert page.count("<article") >= 7 and "data:image/png;base64" in page and "<rect" in page
    assert 'class="line grounded"' in page and 'class="line inconsistent"' in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page


def test_the_report_escapes_what_models_write(evaluated: Path, world: Config) -> None:
    attack = '<script>alert(1)</script> <img src=x onerror="alert(2)">'
    folder = evaluated / world.preset / "eval/fgrpo"
    rows = []
    for item in read_jsonl(folder / "scores.jsonl"):
        record = EvalRecord.from_dict(item)
        detail = {"sentences": [{"text": attack, "visual": True, "label": "INCORRECT", "reason": attack}]}
        scores = {
            **record.scores,
            "semantic_grounding": replace(record.scores["semantic_grounding"], detail=detail),
            "consistency": replace(record.scores["consistency"], reason=attack),
        }
        rows.append(replace(record, scores=scores).to_dict())
    write_jsonl(folder / "scores.jsonl", rows)
    (folder / "manifest.json").write_text(json.dumps({"outputs": {}}))  # else the change itself is refused
    page = report.write(world, evaluated).read_text()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page
    assert page.count("<script>") == 1


def test_nothing_evaluated_says_so(world: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no evaluated model below"):
        tables.build(world, tmp_path)


def test_unknown_models_and_missing_checkpoints(world: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'fgrpo'"):
        models.load("fgrop")
    with pytest.raises(UserError, match=r"FGRPO is missing .*make rl-fgrpo"):
        run.evaluate(world, "fgrpo", root=tmp_path)
    with pytest.raises(UserError, match="unknown benchmark"):
        run.evaluate(world, "fgrpo", ["mvmp"], tmp_path)


@pytest.mark.parametrize("name", models.names())
def test_every_model_file_loads_and_its_prompt_renders(name: str, world: Config) -> None:
    spec = models.load(name)
    sample = base.load("mmvp", world).samples[0]
    assert sample.question in models.user_text(sample, spec, models.template(spec, world))
