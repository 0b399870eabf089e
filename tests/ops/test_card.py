"""Cards of checkpoints and data: what they state is what the run's files hold, and the hub's own reader accepts them."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from fgrpo.errors import UserError
from fgrpo.files import write_jsonl
from fgrpo.sealed import sealed
from ops import card, card_model

BACKBONE = Path(__file__).resolve().parents[2] / "miniworld" / "backbone"
RL = {
    "constraints": {"consistency": {"tau": 0.95}, "spatial_grounding": {"tau": 0.6, "lam_init": 2.0}},
    "combine": "decoupled",
    "dual": {"kind": "adaptive", "lr": 0.05, "lam_init": 1.0, "lam_max": 5.0},
    "learning_rate": 1e-6,
}
TRACE = {
    "id": "sat/train/1/direct-0",
    "sample_id": "sat/train/1",
    "kind": "direct",
    "text": "<think>```\nx\n```</think><answer>a</answer>",
    "meta": {},
}


def run_folder(root: Path, stage: str, preset: str = "mini", **stored: Any) -> Path:
    folder = root / preset / stage
    (folder / "final").mkdir(parents=True)
    shutil.copy(BACKBONE / "config.json", folder / "final")
    (folder / "config.json").write_text(json.dumps({"config": {"seed": 0, **stored}, "means": {}}))
    manifest = {
        "preset": preset,
        "method": "fgrpo",
        "seed": 3,
        "commit": "b" * 40,
        "dirty": False,
        "counts": {"questions": 1500},
    }
    manifest |= {
        "final_lambda": {"consistency": 1.25, "spatial_grounding": 2.0},
        "finished": "2026-03-04T05:06:07+00:00",
    }
    manifest |= {"identity": {"length": {"rl": {"steps": 77}}}}
    (folder / "manifest.json").write_text(sealed(manifest))
    (folder / "done").touch()
    return folder


def header(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_a_checkpoint_of_rl(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "rl-fgrpo", rl=RL)
    out = card.write(folder)
    assert out == folder / "final" / "README.md"
    text = out.read_text(encoding="utf-8")
    assert "| consistency | 0.95 | 1.0 | 1.250 |" in text and "| spatial grounding | 0.6 | 2.0 | 2.000 |" in text
    assert "Faithfulness was measured" not in text, "there is no evaluation"
    for stated in (
        "- steps: 77",
        "- seed: 3",
        "commit bbbbbbbbbb",
        "- trained: 2026-03-04",
        "1,500 questions",
        "make eval MODEL=fgrpo",
    ):
        assert stated in text, stated
    assert ModelCard(text).data.pipeline_tag == "image-text-to-text"
    assert "base_model" not in header(text) and "model-index" not in header(text), "a folder is no model of the hub"
    assert not re.search(r"\{\{|\{%|None|Undefined", text)


def test_a_preset_of_the_paper_names_base_and_data(tmp_path: Path) -> None:
    text = card.write(run_folder(tmp_path, "rl-fgrpo", "paper-7b", rl=RL)).read_text(encoding="utf-8")
    assert header(text)["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert "array/SAT" in header(text)["datasets"] and "licence: MIT" in text
    assert "miniature" not in text.lower()
    assert "write your reasoning inside <think>" in text.lower(), "the prompt it was trained with"


def test_what_the_run_stored_comes_before_todays_preset(tmp_path: Path) -> None:
    """A value that the run's config.json states is the run's; of any other the card says that it is the preset's."""
    policy = {"box_tag": "box", "box_frame": "thousand"}
    text = card.write(run_folder(tmp_path, "rl-fgrpo", "paper-7b", rl=RL, policy=policy)).read_text(encoding="utf-8")
    assert "as `<box>[x1,y1,x2,y2]</box>`, in the frame `thousand`." in text
    assert "from an SFT checkpoint of Qwen/Qwen2.5-VL-7B-Instruct (of the preset)." in text
    assert "/array/SAT) (of the preset), licence" in text
    sft = card.write(run_folder(tmp_path, "sft", "paper-7b", **{"models.base": "a/b"})).read_text(encoding="utf-8")
    assert header(sft)["base_model"] == "a/b" and "fine-tuned from a/b on" in sft
    assert "resizes it (of the preset)." in sft

    searched = run_folder(tmp_path, "mcts", "paper-7b", **{"models.teacher": "c/d"})
    text = card.write(searched).read_text(encoding="utf-8")
    assert "search over c/d (Eq. 7" in text and "Those of the preset (the run does not store its own):" in text
    curated = run_folder(tmp_path, "data", "paper-7b", data={"sources": {"sat": {}}})
    text = card.write(curated).read_text(encoding="utf-8")
    assert header(text)["source_datasets"] == ["array/SAT"] and "of the preset" not in text


def test_a_checkpoint_of_a_step_has_its_own_multipliers(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "rl-fgrpo", rl=RL)
    step = folder / "checkpoints" / "checkpoint-100"
    shutil.copytree(folder / "final", step)
    (step / "duals.json").write_text(json.dumps({"states": {"consistency": {"lam": 1.5}}}))
    text = card.write(step).read_text(encoding="utf-8")
    assert (
        "# FGRPO, step 100" in text
        and "| consistency | 0.95 | 1.0 | 1.500 |" in text
        and "| spatial grounding | 0.6 | 2.0 | – |" in text
    )
    assert not (folder / "final" / "README.md").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"states": {"consistency": {}}}', '{"states": {"consistency": 1}}'])
def test_damaged_multipliers_are_named(text: str, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "rl-fgrpo", rl=RL)
    (folder / "final" / "duals.json").write_text(text)
    with pytest.raises(UserError, match=r"duals.json holds no multipliers .* name another checkpoint"):
        card.write(folder)


def test_results_are_those_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.results import Result

    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "benchmarks": 7}
    part = {
        "average": {"accuracy": cell, "inconsistency": {**cell, "value": 0.25}},
        "benchmarks": {},
        "averaged": ["mmvp", "cvb_2d"],
        "counts": {"rollouts": 10},
    }
    summary = {"greedy": part, "limit": 50, "judge": "a-judge"}
    shown = [Result(name, name.upper(), tmp_path, summary) for name in ("sft", "fgrpo")]
    monkeypatch.setattr(card_model, "evaluations", lambda source, name: shown)
    monkeypatch.setattr(card_model, "main_tables", lambda results, config: [])
    text = card.write(run_folder(tmp_path, "rl-fgrpo", rl=RL)).read_text(encoding="utf-8")
    (index,) = header(text)["model-index"]
    metrics = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    assert metrics == {"accuracy": 50.0, "inconsistency": 25.0}
    assert index["results"][0]["dataset"]["name"] == "2 of 7 benchmarks, at most 50 questions of each, greedy answers"
    assert "Judge: a-judge." in text


@pytest.mark.parametrize(
    ("combine", "kind", "words"),
    [
        ("additive", "adaptive", "are added to the task's, without thresholds or multipliers"),
        ("multiplicative", "adaptive", "are multiplied with the task's, without thresholds or multipliers"),
        ("decoupled", "fixed", "a multiplier weighs each and stays as it is"),
        ("decoupled", "adaptive", "a multiplier weighs each and grows"),
    ],
)
def test_a_method_is_described_as_it_trained(tmp_path: Path, combine: str, kind: str, words: str) -> None:
    folder = run_folder(tmp_path, "rl-fgrpo", rl={**RL, "combine": combine, "dual": {**RL["dual"], "kind": kind}})
    text = card.write(folder).read_text(encoding="utf-8")
    assert words in text
    assert ("## Constraints" in text) == (combine == "decoupled")


def test_a_damaged_or_reopened_run_has_no_card(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "rl-fgrpo", rl=RL)
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"steps": 77', '"steps": 76'))
    with pytest.raises(UserError, match="does not have its checksum"):
        card.write(folder)
    manifest.write_text(whole)
    (folder / "done").unlink()
    with pytest.raises(UserError, match="is not finished"):
        card.write(folder)


def test_traces(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "mcts", mcts={"simulations": 8})
    write_jsonl(folder / "traces.jsonl", [TRACE, {**TRACE, "id": "2", "sample_id": "vgr/train/9", "kind": "corrected"}])
    out = card.write(folder)
    text = out.read_text(encoding="utf-8")
    assert out == folder / "README.md"
    assert "2 records: sat, direct 1; vgr, corrected 1." in text and "- simulations: 8" in text
    assert DatasetCard(text).data.pretty_name == "Reasoning traces of a tree search"
    assert header(text)["configs"] == [{"config_name": "traces", "data_files": "traces.jsonl", "default": True}]
    assert "````json" in text or "```" not in json.dumps(TRACE), "text of a trace cannot close its block"


def test_only_the_described_files_are_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run folder of data holds more than the card describes; rows name images by paths of this machine."""
    folder = run_folder(tmp_path / "with blank", "mcts")
    write_jsonl(folder / "traces.jsonl", [TRACE])
    write_jsonl(folder / "trees.jsonl", [TRACE])
    monkeypatch.setattr("sys.argv", ["card", "--run", str(folder)])
    card.main()
    printed = capsys.readouterr().out
    command = f"hf upload --repo-type dataset <you>/<name> '{folder}' . --include README.md --include traces.jsonl\n"
    assert printed.endswith(command) and "paths of images on this machine" in printed


MODEL_FILES = {  # of a checkpoint as transformers and the trainers write it
    "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "adapter_config.json", "adapter_model.safetensors",
}  # fmt: skip
OF_TRAINING = {
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "trainer_state.json",
    "training_args.bin", "duals.json", "checksums.json", "processes.json", "counters.json", "best.json", "provenance.json",
    "latest", "zero_to_fp32.py", "global_step4/mp_rank_00_model_states.pt", "half.part", ".cache/x",
    "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp",
}  # fmt: skip


def test_of_a_checkpoint_only_what_a_user_of_the_model_needs_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed command, read as the hub's client reads it, takes the model and its card and nothing of training."""
    from huggingface_hub.utils import filter_repo_objects

    folder = run_folder(tmp_path / "with blank", "rl-fgrpo", rl=RL)
    step = folder / "checkpoints" / "checkpoint-100"
    for place in (folder / "final", step):
        for name in sorted({*MODEL_FILES, *OF_TRAINING} - {"config.json"}):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text("{}")
        shutil.copy(BACKBONE / "config.json", place)
        (place / "duals.json").write_text(json.dumps({"states": {"consistency": {"lam": 1.5}}}))
        monkeypatch.setattr("sys.argv", ["card", "--run", str(place)])
        card.main()
        words = shlex.split(capsys.readouterr().out.partition("then upload: ")[2])
        assert words[:5] == ["hf", "upload", "<you>/<name>", str(place), "."]
        include = [word for before, word in itertools.pairwise(words) if before == "--include"]
        assert words[5:] == [part for name in include for part in ("--include", name)]
        files = [p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()]
        assert {*filter_repo_objects(files, allow_patterns=include)} == {"README.md", *MODEL_FILES}


def test_what_has_no_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        card.write(tmp_path)
    folder = run_folder(tmp_path, "world")
    with pytest.raises(UserError, match="neither a trained model nor data"):
        card.write(folder)
    unfinished = tmp_path / "mini" / "rl-grpo-t"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not finished"):
        card.write(unfinished)


def test_the_code_of_the_card_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader pastes loads the model and prints a reply."""
    from PIL import Image

    folder = run_folder(tmp_path, "rl-fgrpo", rl=RL)
    shutil.copytree(BACKBONE, folder / "final", dirs_exist_ok=True)
    text = card.write(folder).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (112, 112)).save("photo.jpg")
    code = code.replace("<this repository>", str(folder / "final")).replace(', device_map="auto"', "")
    exec(compile(code, "card", "exec"), {"prompt": "Is the red box left or right of the blue circle?"})
    assert capsys.readouterr().out.strip()


def test_the_anchored_model_and_what_rl_makes_of_it(tmp_path: Path) -> None:
    stored = {"sft": {"learning_rate": 1e-3, "traces": ["direct"], "precision": "fp32"}}
    stored["anchor"] = {"loss": "kl", "weight": 1.0, "layers": "two_thirds", "learning_rate": 5e-4, "max_steps": 60}
    folder = run_folder(tmp_path, "anchor", **stored)
    text = card.write(folder).read_text(encoding="utf-8")
    assert "# SFT, anchored" in text and "fine-tuned from" in text and "trained with reinforcement" not in text
    assert "given the token `<|focus|>`" in text and "do not use another one" in text
    for stated in ("- anchoring loss: kl", "- its weight: 1.0", "- learning rate: 0.0005", "make eval MODEL=anchor"):
        assert stated in text, stated
    assert "make anchor PRESET=mini" in text and "steps: 77" not in text, "those are of another stage"
    assert "sft" in header(text)["tags"] and not re.search(r"\{\{|\{%|None|Undefined", text)
    rl = card.write(run_folder(tmp_path, "rl-fgrpo", rl={**RL, "start": "anchor"})).read_text(encoding="utf-8")
    assert "from an anchored SFT checkpoint" in rl and "given the token `<|focus|>`" in rl
    plain = card.write(run_folder(tmp_path / "plain", "rl-fgrpo", rl=RL)).read_text(encoding="utf-8")
    assert "focus" not in plain and "from an SFT checkpoint" in plain
