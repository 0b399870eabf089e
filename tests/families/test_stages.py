"""Every stage on every family, with its own frame of boxes: SFT, search with the result as teacher, SFT on that, FGRPO, evaluation.

The tiny model learns a few questions of the miniature world by heart, so that its replies are well formed and its boxes right.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from eval import run as evaluation
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import loading, model_files, tokens
from fgrpo.policy.backbone import Backbone
from fgrpo.response import parse
from fgrpo.runs import Run
from fgrpo.types import Sample
from mcts.run import distil
from miniworld.write.__main__ import write_world
from rewards.base import RewardItem
from rewards.base import load as load_reward
from rl import train as rl_train
from rl.train import make_scorer
from sft import shared_prefix
from sft import train as sft_train
from tests.families.conftest import Chain, taught
from tests.sft.test_shared_prefix import passed


@pytest.fixture(scope="module")
def chain(family: Backbone, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The family's tiny model, which has learned a few questions in the family's frame."""
    return taught(family, policy, tmp_path_factory.mktemp("chain"))


def lines(folder: Path, key: str) -> list[float]:
    """One number of each line of a stage's metrics that has it."""
    return [line[key] for line in read_jsonl(folder / "metrics.jsonl") if key in line]


def test_sft_trains_the_language_model_and_the_projectors(chain: Chain, policy: Path) -> None:
    losses = lines(chain.teacher.parent, "loss")
    before, after = (dict(loading.load_policy(path)[0].named_parameters()) for path in (policy, chain.teacher))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    print(f"{chain.family.model_type}: SFT loss {losses[0]:.2f} -> {losses[-1]:.3f}")
    assert losses[-1] < losses[0] / 1.5
    inside = {name for name in moved if chain.family.is_vision(name)}
    assert inside and all(chain.family.is_projector(name) for name in inside) and len(moved) > len(inside)
    assert tokens.untrained_ids(str(chain.teacher)) == (), "what SFT saves can be served as it is"


def test_training_refuses_a_template_that_begins_the_trace(chain: Chain, tmp_path: Path) -> None:
    """Both stages, before the model is loaded: rollouts could not be well formed."""
    shutil.copytree(chain.root, tmp_path / "runs")
    thinking = tmp_path / "runs" / "mini" / "sft" / "final"
    shutil.copytree(chain.teacher, thinking, dirs_exist_ok=True)
    file = thinking / "chat_template.jinja"
    file.write_text(file.read_text() + "{%- if add_generation_prompt %}{{- '<think>\\n' }}{%- endif %}")
    elsewhere = shutil.copytree(thinking, tmp_path / "thinking")
    shutil.copytree(chain.teacher.parents[1] / "mcts", tmp_path / "other" / "mini" / "mcts")
    with pytest.raises(UserError, match=r"chat template of .*thinking writes <think>"):
        sft_train.train(chain.config(f"models.base={elsewhere}"), tmp_path / "other")
    with pytest.raises(UserError, match=r"chat template of .*final writes <think>"):
        rl_train.train(chain.config("data.boxes_from=[vgr]"), tmp_path / "runs")


def test_traces_that_share_a_row_have_the_loss_and_gradients_of_padded_ones(chain: Chain, tmp_path: Path) -> None:
    """SFT on three traces of each question, the question and its images computed once (`sft.shared_prefix`)."""
    rows = []
    for record in read_jsonl(chain.teacher.parents[1] / "mcts" / "sft.jsonl"):
        user, assistant = record["messages"]
        words = assistant["content"].split(" ")
        texts = [" ".join(words[: len(words) - 2 * n]) for n in range(3)]
        turns = [[user, {**assistant, "content": text}] for text in texts]
        rows += [{**record, "id": f"{record['id']}-{n}", "messages": turn} for n, turn in enumerate(turns)]
    file = tmp_path / "sft.jsonl"
    write_jsonl(file, rows)
    config = chain.config(f"models.base={chain.teacher}", "sft.max_steps=1", "sft.shared_prefix=auto")
    with Run.open(config, "sft", [file], tmp_path) as run:
        trainer, log = sft_train.build_trainer(config, run, file)
        log.close()
    shared = passed(trainer, list(range(6)))
    collate = trainer.data_collator
    trainer.data_collator = lambda given: {k: v for k, v in collate(given).items() if k != shared_prefix.COUNTS}
    padded = passed(trainer, list(range(6)))
    print(
        f"{chain.family.model_type}: SFT loss {shared[0]:.6f} shared, {padded[0]:.6f} padded; tokens {shared[2]}, {padded[2]}"
    )
    assert sum(shared[2]) < sum(padded[2]) and shared[0] == pytest.approx(padded[0], rel=1e-5)
    norm = max(1.0, float(torch.stack([part.norm() for part in padded[1]]).norm()))
    assert len(shared[1]) == len(padded[1]) > 30
    assert all((a - b).abs().max() / norm < 1e-5 for a, b in zip(shared[1], padded[1], strict=True))


@pytest.fixture(scope="module")
def searched(chain: Chain) -> Path:
    """The search's folder."""
    return distil(
        chain.config(
            f"models.teacher={chain.teacher}",
            "mcts.simulations=3",
            "mcts.step_max_new_tokens=60",
            "mcts.rollout_max_new_tokens=120",
        ),
        chain.root,
    )


def test_traces_of_the_search_have_the_policys_frame(chain: Chain, searched: Path) -> None:
    rows = list(read_jsonl(searched / "sft.jsonl"))
    known = {
        sample["id"]: Sample.from_dict(sample) for sample in read_jsonl(chain.root / "mini" / "data" / "seed.jsonl")
    }
    assert rows and "absolute pixel" not in json.dumps(rows)
    largest = 0.0
    for row in rows:
        boxes = parse(row["messages"][1]["content"], frame=chain.family.box_frame).boxes
        assert boxes and row["sample_id"] in known
        largest = max(largest, *(max(box) for box in boxes))
    assert (largest > 200) == (chain.family.box_frame == "thousand"), "pixels of a small image, or thousandths"


@pytest.fixture(scope="module")
def trained(chain: Chain, searched: Path) -> Path:
    """FGRPO on the model after SFT on the search's traces, with rollouts in process."""
    config = chain.config(
        f"models.base={chain.teacher}", "sft.max_steps=4", "sft.learning_rate=1.0e-5", "data.boxes_from=[vgr]",
        "rl.rollout_batch=3", "rl.global_batch=3", "rl.group_size=4", "rl.micro_batch=12", "rl.max_response_length=120",
        "rl.save_steps=3", "rl.max_steps=3", "rl.dual.min_applicable=1", "rl.learning_rate=1.0e-4",
    )  # fmt: skip
    sft_train.train(config, chain.root)
    return rl_train.train(config, chain.root)


def test_fgrpo_scores_boxes_in_the_familys_frame(chain: Chain, trained: Path) -> None:
    rows = pd.concat(pd.read_parquet(file) for file in sorted((trained / "rollouts").glob("*.parquet")))
    assert len(rows) == 36
    formed = [parse(text, frame=chain.family.box_frame).well_formed for text in rows["text"]]
    boxes = lines(trained, "constraint/spatial_grounding/mean")
    print(
        f"{chain.family.model_type}: {sum(formed)} of {len(formed)} rollouts well formed, spatial grounding {boxes}, "
        f"semantic {lines(trained, 'constraint/semantic_grounding/mean')}, reward {lines(trained, 'reward')}"
    )
    assert sum(formed) > len(formed) / 2 and len(boxes) == 3 and boxes[0] > 0
    assert all(value == 0 for value in lines(trained, "failed"))
    one, two = (
        dict(loading.load_policy(chain.root / "mini" / n / "final")[0].named_parameters()) for n in ("sft", "rl-fgrpo")
    )
    moved = [name for name in one if not torch.equal(one[name], two[name])]
    assert moved and not any(map(chain.family.is_vision, moved))


def grounding(chain: Chain, frame: str, texts: Sequence[tuple[str, str]]) -> float:
    """Mean spatial grounding of (sample id, reply), read and scored as RL does with this `policy.box_frame`."""
    known = {s["id"]: Sample.from_dict(s) for s in read_jsonl(chain.root / "mini" / "data" / "rl.jsonl")}
    config = chain.config(f"policy.box_frame={frame}", "data.boxes_from=[vgr]")
    context = make_scorer(config, model_files.pixel_bounds(chain.teacher))._context
    items = [
        RewardItem(str(n), known[name], parse(text, frame=context.box_frame)) for n, (name, text) in enumerate(texts)
    ]
    found: Any = asyncio.run(load_reward("spatial_grounding")(items, context))
    values = [score.value for score in found if score.value is not None]
    assert len(values) == len(texts)
    return float(sum(values) / len(values))


def test_boxes_are_scored_in_the_familys_frame_and_in_no_other(chain: Chain, trained: Path) -> None:
    """True traces in the policy's frame have a full score where one picture has all the boxes; the wire carries the frame."""
    own = chain.family.box_frame
    other = "model" if own == "thousand" else "thousand"
    file = chain.teacher.parents[1] / "mcts" / "sft.jsonl"
    rows = [row for row in read_jsonl(file) if len(row["images"]) == 1]
    true = [(row["sample_id"], row["messages"][1]["content"]) for row in rows]
    first = pd.read_parquet(trained / "rollouts" / "000001.parquet").to_dict("records")
    sampled = [(row["sample_id"], row["text"]) for row in first]
    figures = {
        name: (grounding(chain, own, texts), grounding(chain, other, texts))
        for name, texts in (("true traces", true), ("rollouts", sampled))
    }
    for name, (mine, theirs) in figures.items():
        print(
            f"{chain.family.model_type}: spatial grounding of {name}, read as {own} {mine:.2f}, as {other} {theirs:.2f}"
        )
    assert figures["true traces"][0] > 0.9 > 3 * figures["true traces"][1]
    assert figures["rollouts"][0] > 2 * figures["rollouts"][1]


def test_evaluation(chain: Chain, trained: Path) -> None:
    """The trained policy on benchmarks of the miniature world, which it has not seen."""
    config = chain.config(
        "world.train_per_source=1", "world.bench_per_benchmark=4", f"data.root={chain.root / 'world'}",
        "eval.max_new_tokens=120", "eval.sampled_rollouts=0", "eval.bootstrap_samples=20",
    )  # fmt: skip
    write_world(config, chain.root)
    folder = evaluation.evaluate(config, "fgrpo", ("cvb_2d", "mmvp"), chain.root)
    rows = list(read_jsonl(folder / "scores.jsonl"))
    texts = [line["text"] for line in read_jsonl(folder / "generations.jsonl")]
    formed = sum(parse(text, frame=chain.family.box_frame).well_formed for text in texts)
    right = sum(row["scores"]["accuracy"]["value"] == 1.0 for row in rows)
    print(f"{chain.family.model_type}: {len(rows)} answers, {formed} well formed, {right} right")
    assert len(rows) == len(texts) == 8 and formed > 4
    assert all(row["scores"]["accuracy"]["value"] is not None for row in rows)
