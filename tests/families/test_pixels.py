"""`policy.pixels` on every family: the processor, box frames, token counts, checkpoints, servers and evaluation follow it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_curation.run import curate
from eval import models
from eval import run as evaluation
from fgrpo import inference
from fgrpo.boxes import PixelBounds, convert, iou, model_size
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.hashing import Hashes
from fgrpo.identity import Identity
from fgrpo.images import image_tokens
from fgrpo.inference import serve
from fgrpo.inference.base import Request, SamplingError
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.policy import loading, model_files
from fgrpo.policy.backbone import Backbone
from fgrpo.response import parse
from fgrpo.schema import Policy
from fgrpo.schema_base import Pixels
from fgrpo.types import Box
from mcts.run import distil
from miniworld.write.__main__ import write_world
from rl import data
from rl import train as rl_train
from rl.train import make_scorer
from sft import train as sft_train
from sft.box_frame import UNKNOWN_IMAGE, in_policy_frame, scaled
from sft.dataset import Row
from tests.families.conftest import Chain, taught
from tests.families.test_facts import SIZES


@pytest.fixture(scope="module")
def chain(family: Backbone, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return taught(family, policy, tmp_path_factory.mktemp("pixels"))


def limits(family: Backbone) -> Pixels:
    """Bounds of 2 x 2 and 3 x 3 image tokens; the tiny models' images have 4 x 4."""
    cell = family.pixels.factor**2
    return Pixels(min=4 * cell, max=9 * cell)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_and_tokens_follow_the_bounds(
    family: Backbone, policy: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", size).save(path)
    cell = family.pixels.factor**2
    bounds = model_files.pixel_bounds(policy, Pixels(min=30 * cell, max=64 * cell))
    processor = loading.load_processor(policy, bounds)
    grid = processor.image_processor(images=[Image.open(path)])[family.grid_field][0]
    side, seen = processor.image_processor.patch_size, model_size(size, *bounds)
    assert (int(grid[2]) * side, int(grid[1]) * side) == seen != model_size(size, *model_files.pixel_bounds(policy))
    tokens = int(grid.prod()) // processor.image_processor.merge_size**2
    assert image_tokens(str(path), bounds) == tokens
    assert 30 <= tokens <= 64 or min(seen) == family.pixels.factor, "a side of one token leaves no choice"
    truth = Box(0.1234 * size[0], 0.2345 * size[1], 0.6789 * size[0], 0.8765 * size[1], "original")
    numbers = ",".join(str(round(v)) for v in convert(truth, family.box_frame, size, seen))
    (box,) = parse(f"<think><bbox>[{numbers}]</bbox></think><answer>A</answer>", frame=family.box_frame).boxes
    back = convert(box, "original", size, seen)
    step = 1000 if family.box_frame == "thousand" else min(seen)
    assert iou(back, truth) > 1 - 4 / min(step, *seen) or min(seen) == family.pixels.factor


def test_a_saved_processor_carries_the_bounds(family: Backbone, policy: Path, tmp_path: Path) -> None:
    asked = limits(family)
    bounds = model_files.pixel_bounds(policy, asked)
    loading.load_processor(policy, bounds).save_pretrained(tmp_path)
    shutil.copy(policy / "config.json", tmp_path)
    assert model_files.pixel_bounds(tmp_path) == bounds == (asked.min, asked.max, family.pixels.factor)
    assert model_files.carried_bounds(tmp_path, asked) == model_files.carried_bounds(tmp_path, Pixels()) == bounds
    again = loading.load_processor(tmp_path).image_processor.size
    assert (again["shortest_edge"], again["longest_edge"]) == (asked.min, asked.max)
    for other in (Pixels(min=asked.min + 1), Pixels(max=asked.max + 1)):  # type: ignore[operator]
        with pytest.raises(UserError, match=r"policy\.pixels\.m(in|ax) is .* was trained with"):
            model_files.carried_bounds(tmp_path, other)


def test_bad_bounds_are_refused(family: Backbone, policy: Path) -> None:
    with pytest.raises(ValueError, match=r"min \(9 pixels\) is more than max \(8\)"):
        Pixels(min=9, max=8)
    cell = family.pixels.factor**2
    for low in (Pixels(max=cell - 1), Pixels(min=cell - 1)):
        with pytest.raises(UserError, match="less than one image token"):
            model_files.pixel_bounds(policy, low)
    own = model_files.pixel_bounds(policy)
    with pytest.raises(UserError, match=r"least of .* is more than the most of .* set both"):
        model_files.pixel_bounds(policy, Pixels(min=own.max_pixels + 1))


def test_sft_saves_the_bounds_and_later_stages_refuse_others(chain: Chain, policy: Path, tmp_path: Path) -> None:
    """The traces' boxes are in the frame of the teacher's bounds; SFT moves them, and rows take fewer tokens."""
    asked = limits(chain.family)
    keys = (f"policy.pixels.min={asked.min}", f"policy.pixels.max={asked.max}")
    shutil.copytree(chain.teacher.parents[1] / "mcts", tmp_path / "mini" / "mcts")
    shutil.copytree(chain.root / "mini" / "data", tmp_path / "mini" / "data")
    short = ("sft.max_steps=1", f"models.base={policy}", f"models.teacher={chain.teacher}")
    config = chain.config(*keys, *short)
    final = sft_train.train(config, tmp_path) / "final"
    bounds = model_files.pixel_bounds(final)
    assert bounds == (asked.min, asked.max, chain.family.pixels.factor)

    def prompts_of(carried: PixelBounds) -> int:
        samples = data.read_samples(tmp_path / "mini" / "data" / "rl.jsonl", Counter())
        (one,) = [s for s in samples if len(s.images) == 1][:1]
        (path,) = one.images
        return chain.family.prompt_tokens(path, carried)

    assert prompts_of(bounds) == 9 + len(chain.family.marker_attributes)
    assert prompts_of(model_files.pixel_bounds(policy)) == 16 + len(chain.family.marker_attributes)
    context = make_scorer(config, model_files.carried_bounds(final, config.policy.pixels))._context
    assert (context.min_pixels, context.max_pixels) == (asked.min, asked.max)

    with pytest.raises(UserError, match=r"policy\.pixels\.max"):  # another value for a finished folder
        sft_train.train(chain.config(keys[0], *short, "changed.finished=refuse"), tmp_path)
    other = chain.config(f"policy.pixels.max={asked.max + 1}", "rl.max_steps=1", *short)  # type: ignore[operator]
    with pytest.raises(UserError, match="was trained with"):
        rl_train.train(other, tmp_path)
    with pytest.raises(UserError, match="was trained with"):
        serve.order(other, "rollouts", [], root=tmp_path)
    with pytest.raises(UserError, match="was trained with"):
        models.bounds(models.load("sft"), str(final), other)
    assert models.bounds(models.load("sft"), str(final), config) == bounds
    flags = serve.order(config, "rollouts", [], root=tmp_path).flags
    assert json.loads(flags[flags.index("--mm-processor-kwargs") + 1]) == {
        "min_pixels": asked.min,
        "max_pixels": asked.max,
    }


def test_samplers_and_servers_get_the_bounds(chain: Chain, policy: Path) -> None:
    asked = limits(chain.family)
    config = chain.config(f"policy.pixels.min={asked.min}", f"policy.pixels.max={asked.max}", f"models.base={policy}")
    bounds = model_files.pixel_bounds(policy, asked)
    flags = serve.order(config, "base", []).flags
    wanted = {"min_pixels": asked.min, "max_pixels": asked.max}
    assert json.loads(flags[flags.index("--mm-processor-kwargs") + 1]) == wanted
    assert "--mm-processor-kwargs" not in serve.order(config, "teacher", []).flags, "the teacher keeps its own"
    asked_of = {role: serve.order(config, role, [], model=str(policy)).flags for role in ("base", "model", "teacher")}
    trusting = [role for role, given in asked_of.items() if "--trust-request-mm-kwargs" in given]
    assert trusting == ["base", "model"], "vLLM refuses a request with bounds otherwise"
    image = next(read_jsonl(chain.root / "mini" / "data" / "rl.jsonl"))["images"][0]
    request = Request((image,), "Where?")
    engine = OpenAISampler(["http://127.0.0.1:9/v1"], "m", forbidden=(), pixels=bounds)
    assert asyncio.run(engine._body(request, True))["mm_processor_kwargs"] == wanted
    with pytest.raises(SamplingError, match="only a vLLM server can be told"):
        asyncio.run(engine._body(request, False))
    free = OpenAISampler(["http://127.0.0.1:9/v1"], "m", forbidden=())
    assert "mm_processor_kwargs" not in asyncio.run(free._body(request, True))
    local = TransformersSampler.load(policy, pixels=bounds)
    assert local._features.read([image]) == {} and len(local._features[image][0]) == 9


def test_each_stage_builds_its_engine_with_its_bounds(
    chain: Chain, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Difficulty rollouts and evaluation of the base model have the policy's; the search has its teacher's own."""
    asked = limits(chain.family)
    keys = (f"policy.pixels.min={asked.min}", f"policy.pixels.max={asked.max}", f"data.root={tmp_path / 'data'}")
    small = ("world.train_per_source=4", "world.bench_per_benchmark=2")
    config = chain.config(*keys, *small, f"models.base={policy}", f"models.teacher={chain.teacher}")
    write_world(config, tmp_path / "runs")
    seen: list[Any] = []

    def build(cfg: Any, path: str, pixels: PixelBounds | None = None) -> Any:
        seen.append((str(path), pixels))
        raise UserError("no engine here")

    monkeypatch.setattr(inference, "build", build)
    shutil.copytree(chain.root / "mini" / "data", tmp_path / "searched" / "mini" / "data")
    for stage in (
        lambda: curate(config, tmp_path / "runs"),
        lambda: distil(config, tmp_path / "searched"),
        lambda: evaluation.evaluate(config, "backbone-cot", ("mmvp",), tmp_path / "runs"),
    ):
        with pytest.raises(UserError, match="no engine here"):
            stage()
    bounds = (asked.min, asked.max, chain.family.pixels.factor)
    assert set(seen) == {(str(policy), bounds), (str(chain.teacher), None)}
    assert seen[-1] == (str(policy), bounds), "evaluation came last"


def test_evaluated_models_have_the_bounds_of_their_kind(chain: Chain, policy: Path) -> None:
    asked = limits(chain.family)
    config = chain.config(f"policy.pixels.min={asked.min}", f"policy.pixels.max={asked.max}", f"models.base={policy}")
    set_bounds, own = model_files.pixel_bounds(policy, asked), model_files.pixel_bounds(policy)
    base, served = models.load("backbone-cot"), models.load("vision-r1")
    assert models.bounds(base, str(policy), config) == set_bounds
    assert models.bounds(served.model_copy(update={"path": str(policy)}), str(policy), config) == set_bounds, "by name"
    assert models.bounds(served, str(policy), config) == own and not models.asked_pixels(served, config).is_set
    its_own = served.model_copy(update={"pixels": Pixels(max=asked.max)})
    assert models.bounds(its_own, str(policy), config) == (own.min_pixels, asked.max, own.factor)


def test_folders_without_the_key_stay_valid_and_the_search_does_not_depend_on_it(chain: Chain) -> None:
    config, other = chain.config(), chain.config("policy.pixels.max=40000")

    def of(cfg: Any, stage: str) -> Identity:
        return Identity.of(cfg, stage, {}, Hashes())

    for stage in ("data", "sft", "rl-fgrpo"):
        now, changed = of(config, stage), of(other, stage)
        older = json.loads(json.dumps(now.config))
        for section in (older, older.get("policy", {})):
            section.pop("policy.pixels", None), section.pop("pixels", None)
        assert older != now.config and replace(now, config=older).same(now), "a folder of an older version"
        assert [change.key for change in now.changes(changed)] == ["policy.pixels.max"]
    assert of(config, "mcts").same(of(other, "mcts"))


def test_boxes_of_the_search_move_to_the_policys_frame(tmp_path: Path) -> None:
    """Two images of one size have one factor; of several sizes a row with boxes is dropped, one without stays."""
    assert scaled("a <bbox>[10,20,30.5,40]</bbox> [1,2,3,4] b", "bbox", 0.5, 2.0) == (
        "a <bbox>[5,40,15.2,80]</bbox> [1,2,3,4] b"
    )
    paths = []
    for n, size in enumerate(((280, 140), (280, 140), (140, 140))):
        paths.append(str(tmp_path / f"{n}.png"))
        Image.new("RGB", size).save(paths[-1])
    wide, narrow = PixelBounds(784, 280 * 140, 28), PixelBounds(784, 140 * 140, 28)
    box = "<think><bbox>[28,28,140,112]</bbox></think>"
    rows = [
        Row("one", "s", "q", box, (paths[0],)),
        Row("same", "s", "q", box, (paths[0], paths[1])),
        Row("many", "s", "q", box, (paths[0], paths[2])),
        Row("none", "s", "q", "no box", (paths[0], paths[2])),
    ]
    frame, dropped = Policy(box_tag="bbox", box_frame="model"), Counter[str]()
    moved = {row.id: row.completion for row in in_policy_frame(rows, frame, wide, narrow, dropped)}
    seen = model_size((280, 140), *narrow)
    numbers = [
        round(28 * seen[0] / 280),
        round(28 * seen[1] / 140),
        round(140 * seen[0] / 280),
        round(112 * seen[1] / 140),
    ]
    assert moved == {
        "one": f"<think><bbox>{json.dumps(numbers, separators=(',', ':'))}</bbox></think>",
        "same": f"<think><bbox>{json.dumps(numbers, separators=(',', ':'))}</bbox></think>",
        "none": "no box",
    }
    assert dropped == {UNKNOWN_IMAGE: 1}
    thousand = Policy(box_tag="bbox", box_frame="thousand")
    assert (
        in_policy_frame(rows, thousand, wide, narrow, Counter())
        == rows
        == in_policy_frame(rows, frame, wide, wide, Counter())
    )
