"""Images of a generation are prepared once: the same tensors, fewer calls, and a processor that is left as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgrpo.policy import loading
from rl.image_memo import prepared_once
from tests.rl.conftest import POLICY

GRIDS = "image_grid_thw"


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in ((112, 112), (84, 140), (56, 56))
    ]


@pytest.fixture
def processor() -> Any:
    return loading.load_processor(POLICY)


def counted(processor: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each batch that the processor itself prepares."""
    batches: list[int] = []
    kind = type(processor.image_processor)
    prepare = kind.preprocess

    def preprocess(self: Any, given: Any, *args: Any, **options: Any) -> Any:
        batches.append(sum(len(row) if isinstance(row, (list, tuple)) else 1 for row in given))
        return prepare(self, given, *args, **options)

    monkeypatch.setattr(kind, "preprocess", preprocess)
    return batches


@pytest.mark.parametrize("form", [None, "pt"])
def test_each_image_is_prepared_once_and_has_the_same_values(
    processor: Any, form: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = images()
    rows = [[one], [one], [two, one], [three]]
    plain = processor.image_processor(images=rows, return_tensors=form)
    batches = counted(processor, monkeypatch)
    with prepared_once(processor, GRIDS):
        first = processor.image_processor(images=rows, return_tensors=form)
        again = processor.image_processor(images=[[three], [two]], return_tensors=form)
    assert batches == [3]
    for key in ("pixel_values", GRIDS):
        assert np.array_equal(np.asarray(plain[key]), np.asarray(first[key]))
    assert np.array_equal(again[GRIDS], np.asarray(first[GRIDS])[[4, 2]])
    patches = np.asarray(plain[GRIDS]).prod(axis=1)
    parts = np.split(np.asarray(plain["pixel_values"]), np.cumsum(patches)[:-1])
    assert np.array_equal(np.asarray(again["pixel_values"]), np.concatenate([parts[4], parts[2]]))


def test_other_options_and_equal_looking_objects_are_prepared_anew(
    processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = images()[0]
    batches = counted(processor, monkeypatch)
    with prepared_once(processor, GRIDS):
        processor.image_processor(images=[one], return_tensors="pt")
        small = processor.image_processor(images=[one], return_tensors="pt", do_normalize=False)
        processor.image_processor(images=[one.copy()], return_tensors="pt")
    assert batches == [1, 1, 1]
    assert float(small["pixel_values"].min()) >= 0.0  # not the normalised values


def test_the_processor_is_left_as_it_was_and_can_be_saved(processor: Any, tmp_path: Path) -> None:
    before = dict(vars(processor.image_processor))
    with pytest.raises(RuntimeError, match="stopped"), prepared_once(processor, GRIDS):
        processor.image_processor(images=images(), return_tensors="pt")
        raise RuntimeError("stopped")
    assert vars(processor.image_processor) == before
    processor.save_pretrained(tmp_path)
    assert "preprocess" not in json.dumps(json.loads((tmp_path / "processor_config.json").read_text()))


def test_a_processor_of_another_form_is_asked_itself(processor: Any) -> None:
    with prepared_once(processor, "another_grid"):
        batch = processor.image_processor(images=images(), return_tensors="pt")
    assert set(batch) == {"pixel_values", GRIDS}


def test_a_tokenizer_without_images_is_no_problem(processor: Any) -> None:
    with prepared_once(processor.tokenizer, GRIDS):
        assert processor.tokenizer("one")["input_ids"]


def test_a_trainer_prepares_the_image_of_a_group_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL asks twice per generation, for every rollout: 16 preparations for two prompts of four rollouts without it."""
    trainer = make(steps=1)
    batches = counted(trainer.processing_class, monkeypatch)
    trainer.train()
    rollouts = trainer.args.generation_batch_size
    assert trainer.num_generations > 1
    assert sum(batches) <= 2 * rollouts // trainer.num_generations, "at most two images per prompt, once"


def test_image_workers_change_no_step(make: Any) -> None:
    """The rollouts of a prompt share their image object after the way through a worker, and the run is the same."""
    logged = []
    for workers in (0, 1):
        trainer = make(steps=2, out=f"workers-{workers}", overrides=(f"launch.rl_image_workers={workers}",))
        trainer.train()
        assert trainer.args.dataloader_num_workers == workers
        logged.append([(entry.get("loss"), entry.get("grad_norm")) for entry in trainer.state.log_history])
    assert logged[0] == logged[1] and len(logged[0]) >= 2
    batch = next(iter(trainer.get_train_dataloader()))
    assert len({id(row["images"][0]) for row in batch}) == len(batch) // trainer.num_generations
