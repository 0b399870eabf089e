"""Hand-overs of the checks before the first step, without a model: what each check is given, and what a dry run puts back."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image
from trl import GRPOTrainer

from fgrpo import config
from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.types import Sample
from rl import preflight
from rl.dry_run import DryRun
from rl.passes import LogprobPasses
from rl.preflight import CHECKED, Preflight, check_boxes, check_engine, preflight_rows
from rl.trainer import FaithfulGRPOTrainer

PIXELS = PixelBounds(784, 12544, 28)


@pytest.fixture
def image(tmp_path: Path) -> str:
    """224 x 112 pixels, which the model sees as 140 x 56 within 12544 pixels."""
    Image.new("RGB", (224, 112)).save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def questions(path: Path, *rows: Mapping[str, Any]) -> Path:
    write_jsonl(path / "rl.jsonl", [{"id": f"vgr/train/{n}", **row} for n, row in enumerate(rows)])
    return path / "rl.jsonl"


FITTING = {
    "original": [([0, 0, 226, 113], True), ([0, 0, 227, 9], False), ([0, 0, 9, 114], False), ([-2, 0, 9, 9], True),
                 ([-3, 0, 9, 9], False), ([0, -3, 9, 9], False)],
    "model": [([0, 0, 141, 56], True), ([0, 0, 142, 9], False), ([0, 0, 9, 57], False), ([-1, -1, 9, 9], True),
              ([0, -2, 9, 9], False)],
    "thousand": [([0, 0, 1010, 1010], True), ([0, 0, 1011, 9], False), ([-10, 0, 9, 9], True), ([-11, 0, 9, 9], False)],
    "unit": [([0, 0, 1.01, 1.01], True), ([0, 0, 1.02, 0.5], False), ([-0.02, 0, 0.5, 0.5], False)],
}  # fmt: skip


@pytest.mark.parametrize("frame", FITTING)
def test_a_box_is_held_to_its_image_in_its_own_frame(frame: str, tmp_path: Path, image: str) -> None:
    for box, fits in FITTING[frame]:
        path = questions(tmp_path, {"images": [image], "boxes": [{"xyxy": box, "frame": frame}]})
        if fits:
            check_boxes(path, PIXELS, ("vgr",))
        else:
            with pytest.raises(UserError, match="does not fit an image of"):
                check_boxes(path, PIXELS, ("vgr",))


def test_wrong_boxes_are_counted_by_sample_and_the_first_is_named(tmp_path: Path, image: str) -> None:
    good = {"xyxy": [0, 0, 9, 9], "frame": "model"}
    bad = {"xyxy": [0, 0, 9, 900], "frame": "model"}
    path = questions(
        tmp_path,
        {"images": [image], "boxes": [good]},
        {"images": [image], "boxes": [good, bad]},  # any of several boxes
        {"images": [image], "boxes": None},
        {"images": [image], "boxes": []},
        {"images": [image], "boxes": [bad, bad]},
        {"images": ["gone.png"], "boxes": [bad]},  # dropped and counted elsewhere
        {"id": "sat/train/9", "images": [image], "boxes": [bad]},
        {"images": [image], "boxes": ["a box"]},
    )
    with pytest.raises(UserError) as error:
        check_boxes(path, PIXELS, ("vgr", "treevgr"))
    message = str(error.value)
    assert f"{path}: the boxes of 3 samples are wrong" in message and "First: vgr/train/1: " in message
    assert "does not fit an image of 140 x 56 (model frame)" in message
    with pytest.raises(UserError, match="First: sat/train/9"):
        check_boxes(path, PIXELS, ("sat",))
    check_boxes(path, PIXELS, ())


def test_the_checked_rows_are_the_first_and_the_longest_of_those_with_most_images() -> None:
    shapes = [(1, 5), (1, 50), (2, 5), (1, 40), (2, 9), (1, 1), (1, 60), (3, 1), (1, 30), (1, 20), (1, 2)]
    samples = [
        Sample(f"vgr/train/{n}", ("x.png",) * images, "q" * length, ("a",), "a")
        for n, (images, length) in enumerate(shapes)
    ]
    dataset = Dataset.from_list([{"sample": json.dumps(s.to_dict())} for s in samples])
    ids = [json.loads(row["sample"])["id"].split("/")[-1] for row in preflight_rows(dataset)]
    assert ids == ["0", "7", "4", "2", "6", "1", "3", "8"] and len(ids) == CHECKED
    assert len(preflight_rows(dataset.select([3]))) == 1


def test_each_check_is_given_its_own_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, tuple[Any, ...]] = {}
    for name, result in (
        ("check_boxes", None),
        ("check_sampling", None),
        ("check_prompts", None),
        ("check_engine", 0.004),
        ("check_peak", "largest rows"),
    ):
        monkeypatch.setattr(preflight, name, lambda *args, n=name, r=result: seen.setdefault(n, args) and r)
    monkeypatch.setattr(preflight, "preflight_rows", lambda dataset: [f"{dataset} {n}" for n in range(3)])
    asked = lambda dataset, pixels, count: [f"largest {dataset} {pixels == PIXELS} {count}"]  # noqa: E731
    monkeypatch.setattr(preflight, "largest_rows", asked)
    cfg = config.load("mini", "fgrpo", ["data.boxes_from=[sat]", "rl.max_prompt_length=77", "rl.precision=bf16"])
    check = Preflight(Path("rl.jsonl"), PIXELS, [5, 6], cfg)
    state = SimpleNamespace(global_step=0, max_steps=4)
    check.on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert not seen and check.difference is None  # no trainer yet
    parts: list[Any] = []
    loss, factors = (SimpleNamespace(check=lambda *args, n=n: parts.append((n, *args))) for n in ("loss", "factors"))
    trainer = check.trainer = SimpleNamespace(train_dataset="rows", auxiliary=[loss], token_weights=factors)  # type: ignore[assignment]
    check.on_train_begin(None, state, None)  # type: ignore[arg-type]
    assert seen == {
        "check_boxes": (Path("rl.jsonl"), PIXELS, ("sat",)),
        "check_sampling": (trainer, (5, 6)),
        "check_prompts": (trainer, ["rows 0", "rows 1", "rows 2", "largest rows True 16"], 77, PIXELS),
        "check_engine": (trainer, ["rows 0"], (5, 6), preflight.TOLERANCE["bf16"]),
        "check_peak": (trainer, ["largest rows True 16"], cfg.rl.max_response_length),
    }
    assert list(seen) == ["check_boxes", "check_sampling", "check_prompts", "check_engine", "check_peak"]
    assert parts == [("loss", trainer), ("factors", trainer)] and check.difference == 0.004
    trainer.auxiliary, trainer.token_weights = [], None
    said = "preflight passed: boxes, prompts, image tokens, forbidden tokens"
    assert capsys.readouterr().out == f"largest rows\n{said}; log-probabilities of engine and trainer differ by 0.004\n"
    seen.clear()
    check.on_train_begin(None, SimpleNamespace(global_step=4, max_steps=4), None)  # type: ignore[arg-type]
    assert not seen  # nothing is left to train
    check.cfg = config.load("mini", "fgrpo", ["rl.vllm.max_logprob_diff=0.3"])
    monkeypatch.setattr(preflight, "check_engine", lambda *args: seen.update(engine=args))
    check.on_train_begin(None, SimpleNamespace(global_step=3, max_steps=4), None)  # type: ignore[arg-type]
    assert seen["engine"][3] == 0.3 and check.difference is None
    assert capsys.readouterr().out == f"largest rows\n{said}\n"


# --- prompts and sampling -------------------------------------------------------------------------------------------------

IMAGE_TOKEN = 50


@pytest.fixture
def prompted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trainer whose processor makes two prompts of one image each, six and eight tokens long, with two image tokens each."""
    made = SimpleNamespace(
        plain_model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=20)), device="cpu"),
        ids=[[1, IMAGE_TOKEN, IMAGE_TOKEN, 2, 3, 4], [1, IMAGE_TOKEN, IMAGE_TOKEN, 2, 3, 4, 5, 6]], features=[2, 2], images=True,
        max_completion_length=12, asked=[],
    )  # fmt: skip

    def tokenize(messages: Any) -> Any:
        made.asked.append(messages)
        fields = {"grid_of_patches": [[1, 2, 4]] * len(made.features), "pixel_values": [[0.0]]}
        return made.ids, made.images, fields

    made._tokenize_prompts = tokenize
    of_model = SimpleNamespace(
        image_token_id=lambda _: IMAGE_TOKEN, image_features=lambda *_: [[0] * n for n in made.features],
        vision_token_ids=lambda _: frozenset({IMAGE_TOKEN, 51}), grid_field="grid_of_patches",
    )  # fmt: skip
    monkeypatch.setattr(preflight.backbone, "of_model", lambda _: of_model)
    monkeypatch.setattr(preflight, "image_tokens", lambda path, pixels: 2 if pixels is PIXELS else 5)
    return made


def prompt_rows(*images: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": f"Question {n}?"}], "images": list(paths),
         "sample": json.dumps(Sample(f"vgr/train/{n}", paths, f"Question {n}?", ("a",), "a").to_dict())}
        for n, paths in enumerate(images)
    ]  # fmt: skip


def test_prompts_are_held_to_limit_context_and_features(prompted: Any) -> None:
    rows = prompt_rows(("x.png",), ("y.png",))
    preflight.check_prompts(prompted, rows, 8, PIXELS)
    ((first, second),) = prompted.asked
    assert "Question 0?" in str(first) and "Question 1?" in str(second) and "x.png" in str(first)
    with pytest.raises(UserError, match=r"the prompt of vgr/train/1 has 8 tokens, and rl\.max_prompt_length is 7"):
        preflight.check_prompts(prompted, rows, 7, PIXELS)
    prompted.max_completion_length = 13
    with pytest.raises(UserError, match=r"vgr/train/1 has 8 tokens; with rl\.max_response_length = 13 .*context of 20"):
        preflight.check_prompts(prompted, rows, 8, PIXELS)
    prompted.max_completion_length = None
    with pytest.raises(UserError, match=r"take \[2\] tokens, but \[5\] were estimated"):
        preflight.check_prompts(prompted, rows, 8, PixelBounds(1, 2, 3))
    prompted.features = [2, 3]
    with pytest.raises(UserError, match="vgr/train/1 has 2 image tokens, and its images give 3 features"):
        preflight.check_prompts(prompted, rows, 8, PIXELS)
    prompted.images = None  # text alone has no features
    preflight.check_prompts(prompted, rows, 8, PIXELS)


def test_features_belong_to_the_samples_in_order(prompted: Any) -> None:
    prompted.ids = [[IMAGE_TOKEN] * 4, [IMAGE_TOKEN] * 2]
    prompted.features = [2, 2, 2]
    preflight.check_prompts(prompted, prompt_rows(("x.png", "z.png"), ("y.png",)), 8, PIXELS)
    with pytest.raises(UserError, match="vgr/train/0 has 4 image tokens, and its images give 2 features"):
        preflight.check_prompts(prompted, prompt_rows(("x.png",), ("y.png", "z.png")), 8, PIXELS)


@pytest.mark.parametrize(("is_vllm", "key"), [(True, "logit_bias"), (False, "suppress_tokens")])
def test_what_may_be_sampled_is_named_with_the_key_that_forbids_it(prompted: Any, is_vllm: bool, key: str) -> None:
    prompted._tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda n: f"<{n}>")
    prompted.use_vllm, prompted.forbidden_ids = is_vllm, lambda: [7, 8, IMAGE_TOKEN, 51]
    preflight.check_sampling(prompted, [7, 8])
    preflight.check_sampling(prompted, [])
    with pytest.raises(UserError, match=rf"may sample <3> and 1 more tokens.*generation_kwargs={{'{key}': …}}"):
        preflight.check_sampling(prompted, [7, 9, 3])
    prompted.forbidden_ids = lambda: [7, 8, 51]
    with pytest.raises(UserError, match="may sample <50> and 0 more"):  # image tokens, whatever the caller forbids
        preflight.check_sampling(prompted, [7, 8])


# --- the dry run ----------------------------------------------------------------------------------------------------------


class FakeDryRun:
    """A batch of two rollouts: three and two tokens of four count, and one has no log-probability of the engine."""

    engine: Any = torch.tensor([[-1.0, -2.0, -3.0, 9.0], [-1.0, torch.nan, 9.0, 9.0]])
    trainer_says = torch.tensor([[-1.1, -2.0, -3.3, 0.0], [-1.0, -5.0, 0.0, 0.0]])

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def rollout(self, rows: Any) -> Any:
        assert rows == ["row"]
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
        ids = torch.tensor([[10, 11, 12, 99], [13, 14, 99, 99]])
        return {"completion_mask": mask, "completion_ids": ids}, self.engine

    def logprobs(self, batch: Any) -> Any:
        return self.trainer_says


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(preflight, "DryRun", FakeDryRun)
    return SimpleNamespace(_tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda ids: [f"<{n}>" for n in ids]))


def test_the_difference_is_over_the_tokens_that_both_know(faked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1, 0, 0.3 and 0 of four tokens; padding and the token without a log-probability do not count."""
    assert check_engine(faked, ["row"], [], 0.11) == pytest.approx(0.1)
    with pytest.raises(
        UserError, match=r"differ by 0\.1 per token in the log-probabilities of 4 sampled tokens \(allowed: 0\.09\)"
    ):
        check_engine(faked, ["row"], [], 0.09)
    exact = float((FakeDryRun.trainer_says - FakeDryRun.engine)[:1, :3].abs().sum() / 4)
    assert check_engine(faked, ["row"], [], exact + 1e-6) == pytest.approx(exact)
    monkeypatch.setattr(FakeDryRun, "trainer_says", FakeDryRun.engine)
    assert check_engine(faked, ["row"], [], 0.0) == 0.0  # as much as is allowed
    monkeypatch.setattr(FakeDryRun, "trainer_says", torch.full((2, 4), torch.nan))
    with pytest.raises(UserError, match="differ by nan"):
        check_engine(faked, ["row"], [], 100.0)
    monkeypatch.setattr(FakeDryRun, "engine", None)
    assert check_engine(faked, ["row"], [], 0.0) is None


def test_forbidden_tokens_count_where_they_were_sampled(faked: Any) -> None:
    assert check_engine(faked, ["row"], [99, 98], 1.0) is not None  # padding
    with pytest.raises(UserError, match="sampled <12>, <13> although they are forbidden"):
        check_engine(faked, ["row"], [13, 12, 99], 1.0)


class FakeTrainer(SimpleNamespace):
    """What a dry run needs of a trainer."""

    logps_of = LogprobPasses.logps_of

    def known_family(self) -> Any:
        return SimpleNamespace(grid_field="grid_of_patches")

    def take_seconds(self) -> None:
        self.taken += 1

    def engine_logprobs(self, batch: Any) -> Any:
        return ("of", batch)

    def _get_per_token_logps_and_entropies(self, *args: Any, **more: Any) -> Any:
        self.asked = (args, more, torch.is_grad_enabled())
        return (torch.tensor([[7.0]]), None)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    model = torch.nn.Linear(1, 1)
    logs = {name: deque([1, 2]) for name in ("prompt", "completion", "advantages")}
    made = FakeTrainer(
        num_generations_eval=None, num_generations=3, scorer="judges", reward_funcs=["a", "b"], model=model, taken=0,
        accelerator=SimpleNamespace(device=torch.device("cpu")), _metrics={"eval": defaultdict(list, x=[1]), "train": {"y": [2]}},
        _logs={**logs, "rewards": {"a": deque([1]), "b": deque([2])}}, args=SimpleNamespace(per_device_train_batch_size=5),
    )  # fmt: skip

    def generate(self: Any, inputs: Any) -> Any:
        self.during = (self.scorer, list(self.reward_funcs), self.model.training)
        torch.rand(3)
        if inputs[0].get("fails"):
            raise RuntimeError("the engine died")
        return inputs

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", generate)
    return made


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_dry_run_puts_everything_back(trainer: Any, fails: bool, training: bool) -> None:
    trainer.model.train(training)
    before = torch.random.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError, match="the engine died"):
            DryRun(trainer).rollout([{"fails": True}])
    else:
        batch, engine = DryRun(trainer).rollout([{"n": 0}, {"n": 1}])
        assert [row["n"] for row in batch] == [0, 0, 0, 1, 1, 1]  # a group per row
        assert engine == ("of", batch)
    scorer, functions, was_training = trainer.during
    assert scorer is None and len(functions) == 2 and not was_training
    assert functions[0](prompts=[1, 2]) == [0.0, 0.0]
    assert (trainer.scorer, trainer.reward_funcs, trainer.model.training) == ("judges", ["a", "b"], training)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not trainer._metrics["eval"] and trainer._metrics["train"] == {"y": [2]}
    assert not any(len(column) for name, column in trainer._logs.items() if name != "rewards")
    assert not any(len(column) for column in trainer._logs["rewards"].values())
    assert trainer.taken == 1


def test_the_groups_of_a_dry_run_are_those_of_evaluation(trainer: Any) -> None:
    trainer.num_generations_eval = 2
    assert len(DryRun(trainer).rollout([{"n": 0}])[0]) == 2
    trainer.num_generations_eval = trainer.num_generations = None
    assert len(DryRun(trainer).rollout([{"n": 0}])[0]) == 1


@pytest.mark.parametrize(("device", "kept"), [("cuda:1", [torch.device("cuda:1")]), ("cpu", [])])
def test_the_random_state_of_the_trainers_device_is_kept(
    trainer: Any, device: str, kept: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def fork(devices: Any) -> Any:
        seen.append(devices)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    trainer.accelerator.device = torch.device(device)
    DryRun(trainer).rollout([{"n": 0}])
    assert seen == [kept]


def test_a_dry_run_asks_for_log_probabilities_of_the_completion(trainer: Any) -> None:
    part = {
        "prompt_ids": torch.tensor([[1, 2]]), "completion_ids": torch.tensor([[3, 4, 5]]),
        "prompt_mask": torch.tensor([[0, 1]]), "completion_mask": torch.tensor([[1, 1, 0]]),
    }  # fmt: skip
    fields = {
        "pixel_values": "pixels",
        "grid_of_patches": "grid",
        "num_images": [1],
        "token_type_ids": 2,
        "mm_token_type_ids": 3,
    }
    assert DryRun(trainer).logprobs({**part, **fields, "advantages": 0}).tolist() == [[7.0]]
    (model, ids, mask, kept), more, has_grad = trainer.asked
    assert model is trainer.model and kept == 3 and not has_grad
    assert ids.tolist() == [[1, 2, 3, 4, 5]] and mask.tolist() == [[0, 1, 1, 1, 0]]
    assert more == {"batch_size": 5, **fields}


# --- what others read of the trainer --------------------------------------------------------------------------------------


def test_the_seconds_of_a_step_are_taken_once() -> None:
    holder = SimpleNamespace(seconds={"generation": 2.0, "judging": 3.0, "rollout": 9.0})
    assert FaithfulGRPOTrainer.take_seconds(holder) == {"generation": 2.0, "judging": 3.0, "logprobs": 4.0}  # type: ignore[arg-type]
    assert holder.seconds == {"generation": 0.0, "judging": 0.0, "rollout": 0.0}
    holder.seconds = {"generation": 2.0, "judging": 3.0, "rollout": 4.0}
    assert FaithfulGRPOTrainer.take_seconds(holder)["logprobs"] == 0.0  # type: ignore[arg-type]


def test_forbidden_tokens_are_read_from_the_engines_own_options() -> None:
    def read(**keys: Any) -> list[int]:
        return list(FaithfulGRPOTrainer.forbidden_ids(SimpleNamespace(**keys)))  # type: ignore[arg-type]

    bias = {"7": -100.0, 8: -150, 9: -99.0}
    assert read(use_vllm=True, args=SimpleNamespace(generation_kwargs={"logit_bias": bias})) == [7, 8]
    for nothing in (None, {}, {"logit_bias": None}):
        assert read(use_vllm=True, args=SimpleNamespace(generation_kwargs=nothing)) == []
    assert read(use_vllm=False, generation_config=SimpleNamespace(suppress_tokens=[3, 4])) == [3, 4]
    assert read(use_vllm=False, generation_config=SimpleNamespace(suppress_tokens=None)) == []
