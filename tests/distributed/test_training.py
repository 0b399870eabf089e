"""Training in two processes (gloo) under DDP, ZeRO-2 and ZeRO-3 against one process: losses, multipliers, files, resume.

One start of two processes does all of it, since most of a start is imports; the reference runs here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fgrpo import config
from fgrpo.errors import UserError
from fgrpo.files import read_jsonl
from fgrpo.policy import loading
from fgrpo.training import checkpoints
from sft import train as sft_train
from tests.distributed import worker
from tests.distributed.conftest import MEASURED, Small, in_two_processes

pytestmark = pytest.mark.slow
ZERO = {"zero2": "configs/deepspeed/zero2.json", "zero3": "configs/deepspeed/zero3.json"}
LAYOUTS = {"ddp": "null", **ZERO}
REAL = ("ddp", "zero3")  # the trainer that the stage takes: ours with its own decoder, and TRL's generation
RESUMED = ("rl-ddp", "rl-zero3", "rl-ddp-own", "rl-zero3-own", "sft-zero3", "sft-shared-ddp")
UNCHECKED = ("rl-zero2", "rl-zero3", "sft-zero3")  # compared with runs that try nothing out before the first step
SHARED = ("ddp", "zero3")  # compared with rows that share no prompt
# an auxiliary loss with a pass of its own, factors of tokens from a further pass, and a constraint on what is measured on the policy
OWN = (
    *("rl.constraints.evidence_margin.tau=0.9", "rl.dual.lr=0.5", "rl.auxiliary={papo: {weight: -0.2}}"),
    *("rl.token_weights={keep: 0.5, lowest: 0.5}", "rl.max_steps=2", "rl.save_steps=1"),
)
STOP = 3  # in the fourth step; the last checkpoint is of step 2


def jobs(small: Small) -> list[dict[str, Any]]:
    """What the two processes do; DDP first, since DeepSpeed's traces in a process are hard to remove."""
    two = "rl.micro_batch=4"
    made = [{"name": "sft-shared-ddp", "stage": "sft", "set": small.sft("sft.shared_prefix=auto")}]
    apart = ("rl.shared_prefix=off", "rl.max_steps=1", "rl.save_steps=1")
    for name, file in LAYOUTS.items():
        layout = (two, f"rl.deepspeed={file}")
        made.append({"name": f"rl-{name}", "stage": "rl", "set": small.rl(*layout)})
        if name in SHARED:
            made.append({"name": f"rl-{name}-apart", "stage": "rl", "set": small.rl(*layout, *apart)})
            made.append({"name": f"rl-{name}-own", "stage": "rl", "set": small.rl(*layout, *OWN)})
    made += [
        {
            "name": f"rl-{name}-real",
            "stage": "rl",
            "set": small.rl(two, f"rl.deepspeed={LAYOUTS[name]}", "seed=3"),
            "real": True,
        }
        for name in REAL
    ]
    zero3 = f"sft.deepspeed={ZERO['zero3']}"
    made += [
        {"name": "sft-zero3", "stage": "sft", "set": small.sft(zero3)},
        {"name": "sft-shared-zero3", "stage": "sft", "set": small.sft(zero3, "sft.shared_prefix=auto")},
        {"name": "sft-lora", "stage": "sft", "set": small.sft("@lora", "sft.learning_rate=0.01")},
        {"name": "best-zero3", "stage": "best", "set": diverging(small, zero3)},
    ]
    todo = []
    for job in made:
        todo.append(job)
        stop_at = 1 if job["name"].endswith("-own") else STOP
        if job["name"] in UNCHECKED:
            todo.append({**job, "name": f"{job['name']}-unchecked", "unchecked": True})
        if job["name"] in RESUMED:
            todo += [{**job, "name": f"{job['name']}-stopped", "stop_at": stop} for stop in (stop_at, None)]
    return todo


def diverging(small: Small, *more: str) -> list[str]:
    """A learning rate that ruins the model in step 2 (step 1 has rate 0), so that the first validation is the best."""
    return small.sft("sft.learning_rate=0.05", "sft.max_steps=2", "sft.save_steps=1", *more)


@pytest.fixture(scope="module")
def ran(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes have left what each saw, as <name>.<rank>.json."""
    folder = tmp_path_factory.mktemp("two")
    todo = [{**job, "root": str(small.root(job["name"]))} for job in jobs(small)]
    in_two_processes(folder, todo, small.texts)
    return folder


@pytest.fixture(scope="module")
def alone(small: Small) -> list[dict[str, Any]]:
    """One process: SFT with two accumulated batches, RL with one batch of eight rows of their own; returns what RL saw."""
    worker.run(
        {"stage": "sft", "set": small.sft("sft.gradient_accumulation=2"), "root": small.root("sft-alone")}, small.texts
    )
    return worker.run(
        {"stage": "rl", "set": small.rl("rl.micro_batch=8", "rl.shared_prefix=off"), "root": small.root("rl-alone")},
        small.texts,
    )


def lines(small: Small, name: str, stage: str, key: str) -> dict[int, float]:
    """step -> value of `key`, of the lines of metrics.jsonl that have it; no step twice."""
    found = [
        (line["step"], line[key])
        for line in read_jsonl(small.root(name) / "mini" / stage / "metrics.jsonl")
        if key in line
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    """Distance of two sets of weights."""
    assert one.keys() == two.keys()
    return float(sum((one[name] - two[name]).double().pow(2).sum() for name in one)) ** 0.5


def within(base: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `other` says all that `base` does, versions aside; a training adds end and padding tokens, for one."""
    return all(
        within(value, other[key]) if isinstance(value, dict) else other.get(key) == value
        for key, value in base.items()
        if key != "transformers_version"
    )


def seen(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", UNCHECKED)
def test_what_is_tried_out_before_the_first_step_changes_nothing(small: Small, ran: Path, name: str) -> None:
    """A forward and a backward pass through DeepSpeed's engine, whose gradients add nothing to those of the first step."""
    stage = "sft" if name.startswith("sft") else "rl-fgrpo"
    for key in ("loss", "grad_norm"):
        assert lines(small, name, stage, key) == lines(small, f"{name}-unchecked", stage, key), key
    one, two = (weights(small.root(n) / "mini" / stage / "final") for n in (name, f"{name}-unchecked"))
    assert moved(one, two) == 0 < moved(weights(small.folder / "backbone"), one)


def test_the_largest_rows_pass_backward_under_deepspeed_too(ran: Path) -> None:
    said = (ran / "log").read_text()
    for rows in ("longest rows", "largest rows"):
        found = re.findall(rf"{rows}: up to \d+ tokens, (.*) in ", said)
        assert set(found) == {"forward and backward"}, rows


def test_sft_under_zero3_has_the_losses_of_one_process(small: Small, ran: Path, alone: Any) -> None:
    for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
        one, two = lines(small, "sft-alone", "sft", key), lines(small, "sft-zero3", "sft", key)
        assert two == pytest.approx(one, rel=1e-4) and len(one) == (2 if key == "eval_loss" else 4), key


def test_the_consolidated_model_is_whole_and_that_of_one_process(small: Small, ran: Path, alone: Any) -> None:
    folder = small.root("sft-zero3") / "mini" / "sft"
    loading.load_policy(folder / "final")  # no weight missing, and a processor
    base, two = weights(small.folder / "backbone"), weights(folder / "final")
    one = weights(small.root("sft-alone") / "mini" / "sft" / "final")
    assert all(torch.equal(base[name], two[name]) for name in base if "visual." in name)
    assert moved(one, two) < 0.02 * moved(base, one)
    best = json.loads((folder / "final" / "best.json").read_text())
    evals = lines(small, "sft-zero3", "sft", "eval_loss")
    assert best["eval_loss"] == min(evals.values()) == evals[best["step"]]
    assert (folder / "done").exists() and not list(folder.rglob("*.part"))


def test_a_consolidated_folder_has_the_form_of_the_one_that_vllm_serves(small: Small, ran: Path) -> None:
    """The vLLM suite serves the shipped backbone: the same tensors, configuration and processor files load there too."""
    base = small.folder / "backbone"
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in weights(base).items()}
    for name, stage in (("sft-zero3", "sft"), ("sft-lora", "sft"), ("rl-zero2", "rl-fgrpo"), ("rl-zero3", "rl-fgrpo")):
        final = small.root(name) / "mini" / stage / "final"
        assert {key: (tensor.shape, tensor.dtype) for key, tensor in weights(final).items()} == shapes, name
        one, two = (json.loads((folder / "config.json").read_text()) for folder in (base, final))
        assert within(one, two), name
        needed = {"tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"}
        assert {file.name for file in base.iterdir()} & needed <= {file.name for file in final.iterdir()}, name


def test_adapters_trained_in_two_processes_are_merged(small: Small, ran: Path) -> None:
    final = small.root("sft-lora") / "mini" / "sft" / "final"
    loading.load_policy(final)
    base, tuned = weights(small.folder / "backbone"), weights(final)
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed and all(name.endswith("_proj.weight") and "visual." not in name for name in changed)
    assert any((final / "adapter").glob("*.safetensors"))


def test_sft_goes_on_under_zero3_as_if_nothing_had_been(small: Small, ran: Path) -> None:
    for key in ("loss", "eval_loss"):
        whole, parts = lines(small, "sft-zero3", "sft", key), lines(small, "sft-zero3-stopped", "sft", key)
        assert parts == pytest.approx(whole, rel=1e-6), key
    ends = [small.root(n) / "mini" / "sft" / "checkpoints" / "checkpoint-4" for n in ("sft-zero3", "sft-zero3-stopped")]
    assert moved(weights(ends[0]), weights(ends[1])) < 1e-5


def test_another_number_of_processes_is_refused_in_words(small: Small, ran: Path) -> None:
    root = small.root("sft-other-world")
    folder = root / "mini" / "sft"
    shutil.copytree(small.root("sft-zero3-stopped") / "mini" / "sft", folder)
    (folder / "done").unlink()  # as if killed before the last step
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    cfg = config.load("mini", "fgrpo", small.sft(f"sft.deepspeed={ZERO['zero3']}"))
    with pytest.raises(
        UserError, match=r"checkpoint-2 was saved by 2 processes under ZeRO-3, and this run has 1 process without"
    ):
        sft_train.train(cfg, root)


def test_the_best_model_is_really_loaded_under_zero3(small: Small, ran: Path) -> None:
    root = small.root("best-zero3")
    facts = json.loads((root / "best.json").read_text())
    best, last = Path(facts["best"]), Path(facts["last"])
    assert (best.name, last.name) == ("checkpoint-1", "checkpoint-2") and best.is_dir()
    assert moved(weights(root / "loaded"), weights(best)) == 0 < moved(weights(best), weights(last))


def test_the_best_model_is_really_loaded_in_one_process(small: Small) -> None:
    root = small.root("best-alone")
    worker.run({"stage": "best", "set": diverging(small), "root": root}, {})
    facts = json.loads((root / "best.json").read_text())
    best, last = Path(facts["best"]), Path(facts["last"])
    assert (best.name, last.name) == ("checkpoint-1", "checkpoint-2") and best.is_dir()
    assert json.loads((last / checkpoints.STATE).read_text())["best_model_checkpoint"] == str(best)
    assert moved(weights(root / "loaded"), weights(best)) == 0 < moved(weights(best), weights(last))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multipliers_are_the_same_on_all_processes_and_those_of_one(
    small: Small, ran: Path, alone: list[dict[str, Any]], layout: str
) -> None:
    first, second = seen(ran, f"rl-{layout}")
    assert first == second and len(first) == len(alone) == 4
    for mine, reference in zip(first, alone, strict=True):
        assert mine["rows"] == reference["rows"] == 8
        assert mine["weights"] == pytest.approx(reference["weights"], abs=1e-12)
        assert mine["lambda"] == pytest.approx(reference["lambda"], abs=1e-12)
    assert len({json.dumps(step["lambda"]) for step in alone}) == 4, "the multipliers move"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rl_in_two_processes_is_that_of_one(small: Small, ran: Path, alone: Any, layout: str) -> None:
    for key, tolerance in {"loss": 1e-3, "grad_norm": 1e-3, "kl": 1e-2, "reward": 1e-6, "accuracy": 1e-6}.items():
        one, two = (lines(small, f"rl-{name}", "rl-fgrpo", key) for name in ("alone", layout))
        assert two == pytest.approx(one, rel=tolerance, abs=1e-6) and len(one) == 4, key
    base = weights(small.folder / "backbone")
    ends = [weights(small.root(f"rl-{name}") / "mini" / "rl-fgrpo" / "final") for name in ("alone", layout)]
    assert moved(*ends) < 0.05 * moved(base, ends[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_measured_in_two_processes_is_that_of_one(small: Small, ran: Path, alone: Any, layout: str) -> None:
    """Each process has other rollouts with boxes; all make equally many passes."""
    for name in MEASURED:
        for key in (f"monitor/{name}/mean", f"monitor/{name}/n"):
            one, two = (lines(small, f"rl-{which}", "rl-fgrpo", key) for which in ("alone", layout))
            assert two == pytest.approx(one, rel=1e-2, abs=1e-4) and len(one) >= 2, key
    counted = lines(small, "rl-alone", "rl-fgrpo", "monitor/evidence_margin/n")
    assert sum(counted.values()) > 0


@pytest.mark.parametrize("layout", SHARED)
def test_shared_rows_have_the_loss_and_gradients_of_rows_of_their_own(small: Small, ran: Path, layout: str) -> None:
    """In the first step, from the same weights."""
    for key, tolerance in {"loss": 1e-6, "grad_norm": 1e-6, "entropy": 1e-5, "kl": 1e-6}.items():
        shared, apart = (lines(small, f"rl-{name}", "rl-fgrpo", key)[1] for name in (layout, f"{layout}-apart"))
        assert shared == pytest.approx(apart, rel=tolerance, abs=tolerance), key
    assert lines(small, f"rl-{layout}", "rl-fgrpo", "grad_norm")[1] > 0.01


@pytest.mark.parametrize("layout", SHARED)
def test_auxiliary_losses_and_token_weights_are_those_of_one_process(small: Small, ran: Path, layout: str) -> None:
    """The loss is averaged over processes as over micro-batches; factors and multipliers are of the complete batch."""
    name = f"rl-own-alone-{layout}"
    job = {"stage": "rl", "set": small.rl("rl.micro_batch=8", "rl.shared_prefix=off", *OWN), "root": small.root(name)}
    worker.run(job, small.texts)
    keys = {"aux/papo": 1e-3, "tokens/dependence": 1e-3, "tokens/highest_weight": 1e-3, "loss": 1e-3, "grad_norm": 1e-3}
    keys["lambda/evidence_margin"] = 1e-3
    for key, tolerance in keys.items():
        one, two = (lines(small, which, "rl-fgrpo", key) for which in (name, f"rl-{layout}-own"))
        assert two == pytest.approx(one, rel=tolerance, abs=1e-6) and len(one) == 2, key
        whole, parts = (lines(small, f"rl-{layout}-own{end}", "rl-fgrpo", key) for end in ("", "-stopped"))
        assert parts == pytest.approx(whole, rel=1e-6), f"{key} after a stop"
    assert lines(small, name, "rl-fgrpo", "lambda/evidence_margin")[2] != 1.0
    plain = lines(small, f"rl-{layout}", "rl-fgrpo", "grad_norm")
    assert lines(small, name, "rl-fgrpo", "grad_norm")[1] != pytest.approx(plain[1], rel=1e-2)


@pytest.mark.parametrize("layout", SHARED)
def test_sft_on_shared_rows_in_two_processes_is_that_of_one(small: Small, ran: Path, layout: str) -> None:
    root = small.root(f"sft-shared-alone-{layout}")
    worker.run(
        {"stage": "sft", "set": small.sft("sft.shared_prefix=auto", "sft.gradient_accumulation=2"), "root": root}, {}
    )
    for key in ("loss", "eval_loss", "grad_norm"):
        one, two = (lines(small, n, "sft", key) for n in (root.name, f"sft-shared-{layout}"))
        assert two == pytest.approx(one, rel=1e-4) and len(one) == (2 if key == "eval_loss" else 4), key
        if key != "eval_loss":  # before the first update, nothing but the order of summation differs
            assert two[1] == pytest.approx(one[1], rel=1e-6), key
    in_question_order, at_random = (lines(small, n, "sft", "loss") for n in (root.name, "sft-zero3"))
    assert in_question_order != pytest.approx(at_random, rel=1e-3)


def test_sft_on_shared_rows_goes_on_in_the_same_order(small: Small, ran: Path) -> None:
    for key in ("loss", "eval_loss"):
        whole, parts = (lines(small, name, "sft", key) for name in ("sft-shared-ddp", "sft-shared-ddp-stopped"))
        assert parts == pytest.approx(whole, rel=1e-6), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_writes_and_it_writes_everything(small: Small, ran: Path, layout: str) -> None:
    folder = small.root(f"rl-{layout}") / "mini" / "rl-fgrpo"
    assert (folder / "done").exists() and not list(folder.rglob("*.part"))
    files = sorted((folder / "rollouts").glob("*.parquet"))
    assert [int(file.stem) for file in files] == [1, 2, 3, 4]
    for file in files:
        ids = list(pd.read_parquet(file)["id"])
        assert len(ids) == len(set(ids)) == 8 and {name.split("/")[1] for name in ids} == {"0", "1"}
    assert checkpoints.last_checkpoint(folder / "checkpoints") == folder / "checkpoints" / "checkpoint-4"


@pytest.mark.parametrize("name", [name for name in RESUMED if name in ("rl-ddp", "rl-zero3")])
def test_rl_goes_on_with_its_multipliers(small: Small, ran: Path, name: str) -> None:
    whole, parts = seen(ran, name), seen(ran, f"{name}-stopped")
    assert [part[-2:] for part in parts] == [run[-2:] for run in whole]  # steps 3 and 4, after the checkpoint of step 2
    assert len(parts[0]) == 2, "the steps before the checkpoint are not done again"
    for key in ("loss", "grad_norm", "reward"):
        one, two = (lines(small, which, "rl-fgrpo", key) for which in (name, f"{name}-stopped"))
        assert two == pytest.approx(one, rel=1e-6), key


@pytest.mark.parametrize("name", REAL)
def test_two_processes_sample_and_train(small: Small, ran: Path, name: str) -> None:
    """Rollouts of each process' own: sampled differently, judged together, one λ; the policy moves and is saved whole."""
    folder = small.root(f"rl-{name}-real") / "mini" / "rl-fgrpo"
    rows = pd.concat(pd.read_parquet(file) for file in sorted((folder / "rollouts").rglob("*.parquet")))
    assert len(rows) == 4 * 2 * 4 and rows["text"].nunique() > 8
    assert set(lines(small, f"rl-{name}-real", "rl-fgrpo", "lambda/consistency")) == {1, 2, 3, 4}
    base, now = weights(small.folder / "backbone"), weights(folder / "final")
    assert all(torch.equal(base[key], now[key]) for key in base if "visual." in key) and moved(base, now) > 0
    loading.load_policy(folder / "final")
