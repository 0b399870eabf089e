"""The anchor stage: its loss, what it trains, resume, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fgrpo import config, runs
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl, write_jsonl
from fgrpo.policy import focus, loading, model_files
from fgrpo.policy.tokens import FOCUS
from fgrpo.training.anchoring import Anchored, loss_of
from fgrpo.types import Box, Sample
from sft import anchor
from sft import train as sft_train
from tests.sft.conftest import mini, train_to_step_3

BOXES = (Box(0, 0, 28, 28, "original"), Box(28, 28, 70, 56, "original"))


@pytest.fixture(scope="module")
def chain(world: Path) -> Path:
    """The runs root of `world` with seed questions, of which two in three have boxes, and the policy as SFT's result."""
    preset = world / "runs" / "mini"
    samples, seen = [], set()
    for n, row in enumerate(read_jsonl(preset / "mcts" / "sft.jsonl")):
        if row["sample_id"] not in seen:
            seen.add(row["sample_id"])
            boxes = BOXES if n % 3 else None
            meta = {"box_images": [0, len(row["images"]) - 1]}
            samples.append(Sample(row["sample_id"], tuple(row["images"]), "q", ("a", "b"), "a", boxes, meta).to_dict())
    (preset / "data").mkdir()
    write_jsonl(preset / "data" / "seed.jsonl", samples)
    (preset / "sft").mkdir()
    (preset / "sft" / "final").symlink_to(world / "backbone")
    return world / "runs"


def own_root(chain: Path, folder: Path) -> Path:
    shutil.copytree(chain, folder / "runs", symlinks=True)
    return folder / "runs"


def anchored(world: Path, *more: str) -> config.Config:
    return mini(world, "anchor.max_steps=4", "anchor.learning_rate=1e-3", *more)


def lines(root: Path, key: str) -> list[float]:
    return [line[key] for line in read_jsonl(root / "mini" / "anchor" / "metrics.jsonl") if key in line]


def trainer_of(cfg: Any, root: Path) -> Any:
    """The stage's trainer before its first step."""
    preset = root / "mini"
    start = preset / "anchor" / "start"
    samples = {sample.id: sample for sample in anchor.read_questions(preset / "data" / "seed.jsonl")}
    counts: Counter[str] = Counter()
    with runs.Run.open(cfg, "anchor", [preset / "mcts" / "sft.jsonl"], root) as run:
        anchor.prepare(preset / "sft" / "final", start, cfg.anchor)
        own = anchor.stage_config(cfg, start)

        def columns(rows: Any) -> Any:
            return anchor.columns_of(rows, samples, model_files.pixel_bounds(start), counts)

        def kind(*args: Any, **given: Any) -> Any:
            return anchor.AnchorTrainer(*args, anchor=cfg.anchor, **given)

        trainer, _ = sft_train.build_trainer(own, run, preset / "mcts" / "sft.jsonl", kind, columns)
    return trainer


@pytest.mark.parametrize("shared", ["off", "auto"])
def test_the_loss_is_sfts_plus_the_weighted_anchoring_loss(
    chain: Path, world: Path, tmp_path: Path, shared: str
) -> None:
    root = own_root(chain, tmp_path)
    cfg = anchored(
        world, "anchor.weight=0.7", "anchor.layers=[1, 2]", f"sft.shared_prefix={shared}", "sft.batch_size=8"
    )
    trainer = trainer_of(cfg, root)
    rows = [trainer.train_dataset[n] for n in range(8)]
    texts = [row[anchor.SHARES] for row in rows]
    assert "[]" in texts and len(set(texts)) > 1
    batch = trainer._prepare_inputs(trainer.data_collator([dict(row) for row in rows]))
    kept = dict(batch)
    with trainer.anchoring.tap:
        whole = trainer.compute_loss(trainer.model, batch)
    plain = {k: v for k, v in kept.items() if k not in (anchor.SHARES, anchor.QUESTION, anchor.IMAGES)}
    alone = sft_train.Trainer.compute_loss(trainer, trainer.model, plain)

    # by eager attention, prompt by prompt
    model, processor = loading.load_policy(root / "mini" / "anchor" / "start", attention="eager")
    losses = []
    for row in rows:
        shares = json.loads(row[anchor.SHARES])
        if not shares:
            continue
        text = loading.render_prompt(processor, row["images"], row["prompt"][0]["content"])
        given = processor(text=[text], images=row["images"], return_tensors="pt")
        ids = given["input_ids"][0]
        with torch.no_grad():
            attentions = model(**given, output_attentions=True).attentions
        query = int((ids == focus.focus_id(processor.tokenizer)).nonzero())
        columns = (ids == processor.image_token_id).nonzero().flatten().split([len(part) for part in shares])
        of_boxes = torch.cat([part for part, w in zip(columns, shares, strict=True) if any(w)])
        p_HC = torch.cat([attentions[layer][0, :, query][:, of_boxes] for layer in (1, 2)])
        p = (p_HC / p_HC.sum(dim=1, keepdim=True)).mean(dim=0)
        w = torch.tensor([share for part in shares if any(part) for share in part])
        losses.append(loss_of(p.log(), w, cfg.anchor))
    assert 0 < len(losses) < len(rows)
    wanted = float(alone.detach()) + 0.7 * float(torch.stack(losses).sum()) / len(rows)
    assert float(whole) == pytest.approx(wanted, abs=1e-5)
    assert trainer._metrics["eval"]["anchor/loss"] == [pytest.approx(float(torch.stack(losses).sum()), abs=1e-4)]


def test_logged_figures_are_means_over_the_rows_with_boxes(chain: Path, world: Path, tmp_path: Path) -> None:
    """Not means of the means of micro-batches, which have different numbers of them."""
    trainer = trainer_of(anchored(world, "sft.batch_size=8"), own_root(chain, tmp_path))
    nothing = torch.zeros(())
    for mode in ("train", "eval"):
        trainer.model.train(mode == "train")
        for count, loss, inside in ((3, 1.0, 0.2), (1, 5.0, 0.6), (0, 0.0, None)):
            trainer._log_anchored(mode, Anchored(nothing + loss, count, inside))
        trainer.log({"eval_loss": 1.0} if mode == "eval" else {"loss": 1.0})
        line, prefix = trainer.state.log_history[-1], "eval_" if mode == "eval" else ""
        assert line[f"{prefix}anchor/loss"] == pytest.approx(8 / 4) and line[f"{prefix}anchor/inside"] == pytest.approx(
            1.2 / 4
        )
        assert not any("rows" in key for key in line) and not trainer._metrics[mode]


def test_the_stage_pulls_attention_into_the_boxes(chain: Path, world: Path, tmp_path: Path) -> None:
    root = own_root(chain, tmp_path)
    cfg = anchored(world, "anchor.max_steps=12", "sft.batch_size=8", "sft.save_steps=6")
    folder = anchor.train(cfg, root)
    losses, inside = lines(root, "anchor/loss"), lines(root, "anchor/inside")
    assert losses[-1] < 0.8 * losses[0] and inside[-1] > inside[0]
    assert lines(root, "eval_anchor/inside")
    final, start = (load_file(folder / name / "model.safetensors") for name in ("final", "start"))
    index = focus.focus_id(loading.load_processor(folder / "final").tokenizer)
    (name,) = (n for n in final if n.endswith("embed_tokens.weight"))
    assert final[name].shape == start[name].shape and not torch.equal(final[name][index], start[name][index])
    visual = [n for n in final if "visual" in n]
    assert visual and all(torch.equal(final[n], start[n]) for n in visual), "the vision tower stays frozen"
    assert FOCUS in (folder / "final" / "chat_template.jinja").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["traces with boxes"] and manifest["counts"]["traces without boxes"]
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    anchor.train(cfg, root)
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before, "it is done"


def test_a_killed_stage_resumes_as_if_nothing_had_happened(
    chain: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = anchored(world)
    whole = anchor.train(cfg, own_root(chain, tmp_path / "whole"))
    root = own_root(chain, tmp_path / "killed")
    train_to_step_3(cfg, root, monkeypatch, anchor.train)
    killed = anchor.train(cfg, root)
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, killed))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_gradient_checkpointing_changes_nothing(chain: Path, world: Path, tmp_path: Path) -> None:
    found = []
    for n, checkpointing in enumerate((False, True)):
        trainer = trainer_of(anchored(world), own_root(chain, tmp_path / str(n)))
        if checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.train()
        batch = trainer._prepare_inputs(trainer.data_collator([dict(trainer.train_dataset[k]) for k in range(4)]))
        with trainer.anchoring.tap:
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in trainer.model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 30
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


def test_what_the_stage_refuses(chain: Path, world: Path, tmp_path: Path) -> None:
    root = own_root(chain, tmp_path / "a")
    with pytest.raises(UserError, match=r"adapters leave as it is; set sft\.lora=null"):
        anchor.train(anchored(world, "@lora"), root)
    with pytest.raises(UserError, match="none is left"):
        anchor.train(anchored(world, "anchor.add_row=false"), root)
    with pytest.raises(UserError, match="layers 0 to 3"):
        anchor.train(anchored(world, "anchor.layers=[7]"), own_root(chain, tmp_path / "b"))
    without = own_root(chain, tmp_path / "c")
    seed = without / "mini" / "data" / "seed.jsonl"
    write_jsonl(seed, [{**row, "boxes": None} for row in read_jsonl(seed)])
    with pytest.raises(UserError, match="nothing to anchor to"):
        anchor.train(anchored(world), without)
    write_jsonl(seed, [{"id": "x"}])
    with pytest.raises(UserError, match="line 1 is no question"):
        anchor.train(anchored(world), without)
    shutil.rmtree(without / "mini" / "sft")
    with pytest.raises(UserError, match="run `make sft`"):
        anchor.train(anchored(world), without)


def test_boxes_that_cannot_be_used_are_counted(chain: Path, world: Path) -> None:
    rows = sft_train.dataset.read_rows(chain / "mini" / "mcts" / "sft.jsonl", Counter())
    samples = {s.id: s for s in anchor.read_questions(chain / "mini" / "data" / "seed.jsonl")}
    first = next(row.sample_id for row in rows if samples[row.sample_id].boxes)
    from dataclasses import replace

    samples[first] = replace(samples[first], meta={"box_image": 9})
    missing = next(name for name in samples if name != first)
    del samples[missing]
    counts: Counter[str] = Counter()
    anchor.columns_of(rows, samples, model_files.pixel_bounds(world / "backbone"), counts)
    assert counts["questions whose boxes are in no image"] == 1
    assert counts["questions that are not in seed.jsonl"] == 1
    assert counts["traces with boxes"] + counts["traces without boxes"] == len(rows)
