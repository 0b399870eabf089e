"""`make gpu-check` without a GPU: what each check does at tiny shapes, order, time limits, resuming, the page, the wheels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgrpo.errors import UserError
from ops.doctor import pins
from perf.gpu import __main__ as command_line
from perf.gpu import attention, checks, runner, stand_in, training, worker
from perf.gpu.checks import CHECKS, Check, named
from perf.gpu.page import page
from perf.gpu.result import Result, read
from perf.gpu.runner import Call, run_all
from perf.gpu.setting import SHAPE_FILES, Setting
from perf.gpu.wheels import wheels
from perf.run import merged, sections

torch.set_num_threads(1)
NAMES = [check.name for check in CHECKS]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Tiny models and data on a CPU."""
    return Setting("cpu", "tiny", tmp_path_factory.mktemp("work"))


# --- the checks themselves -------------------------------------------------------------------------------------------
def test_models_have_the_tokenizer_s_ids_and_the_plan_s_parts(tiny: Setting) -> None:
    from fgrpo.policy import loading
    from fgrpo.policy.tokens import forbidden_token_ids

    folder = stand_in.model(tiny, "3b")
    model, processor = loading.load_policy(folder)
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert model.lm_head.weight.shape[0] >= len(processor.tokenizer)
    assert not stand_in.has_real_tokenizer(folder)
    assert max(forbidden_token_ids(str(folder))) == model.lm_head.weight.shape[0] - 1
    built = (folder / "config.json").stat().st_mtime_ns
    assert stand_in.model(tiny, "3b") == folder and (folder / "config.json").stat().st_mtime_ns == built


@pytest.mark.parametrize("size", SHAPE_FILES)
def test_true_shapes_are_the_published_ones(size: str, tmp_path: Path) -> None:
    ids = {token: 151_643 + n for n, token in enumerate(("<|endoftext|>", "<|im_end|>", *stand_in._IDS.values()))}
    described = stand_in.description(Setting("cuda", "true", tmp_path), size, ids)
    published = json.loads(Path(f"configs/shapes/{SHAPE_FILES[size]}.json").read_text())
    for part in ("text_config", "vision_config"):
        wanted = {k: v for k, v in published[part].items() if not k.endswith("_token_id")}
        assert {k: described[part][k] for k in wanted} == wanted
    assert described["image_token_id"] == ids["<|image_pad|>"] and described["text_config"]["eos_token_id"] == 151_644


@pytest.mark.parametrize("name", ["machine", "prepare", "passes", "attention", "sft"])
def test_a_check_passes_on_a_cpu_at_tiny_shapes(name: str, tiny: Setting) -> None:
    result = worker.run(named(name), tiny)
    assert result.state == "passed", result.finding
    if name == "passes":
        assert len(result.speeds) == 6 and all(speed > 0 for speed in result.speeds.values())
        assert "differ by" in result.finding
    if name == "attention":
        assert "sdpa: shares differ from eager by" in result.finding and "times the pass without" in result.finding
    if name == "sft":
        assert result.speeds["SFT"] > 0 and "loss" in result.finding


def test_a_tap_that_reads_other_tokens_fails_the_check(tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attention._eager
    monkeypatch.setattr(attention, "_eager", lambda *given: right(*given).flip(-1))
    result = worker.run(named("attention"), tiny)
    assert result.state == "failed" and "NOT sdpa: shares differ" in result.finding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgrpo", "fgrpo-7b"])
def test_fgrpo_runs_its_steps_and_moves_the_policy(name: str, tiny: Setting) -> None:
    result = worker.run(named(name), tiny)
    assert result.state == "passed", result.finding
    assert "4 of 4 steps" in result.finding and "the policy moved" in result.finding
    assert set(result.speeds) == {"generation", "old and reference passes", "updates"}
    assert result.cpu_seconds > 0


@pytest.mark.parametrize("name", ["fgrpo-server", "fgrpo-colocate"])
def test_without_vllm_its_checks_say_so(name: str, tiny: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    result = worker.run(named(name), tiny)
    assert result.state == "not applicable" and "vLLM is not installed" in result.finding


def test_an_error_in_a_check_is_a_failure_with_its_message(tiny: Setting) -> None:
    def broken(setting: Setting, result: Result) -> None:
        result.must(True, "a first part")
        raise UserError("the card is gone")

    result = worker.run(Check("broken", "", broken, 1, 1), tiny)
    assert (result.state, result.finding) == ("failed", "a first part; NOT the card is gone")


def lines(*, kl: float, difference: float, steps: int = 4) -> list[dict[str, Any]]:
    key = "sampling/sampling_logp_difference/mean"
    parts = {f"seconds/{part}": 1.0 for part in ("generation", "logprobs", "update")}
    return [
        {"step": n, "loss": 0.1, "kl": kl, key: difference, "completions/mean_length": 8.0, **parts}
        for n in range(steps)
    ]


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        ({"kl": 0.02, "difference": 1e-5}, None),
        ({"kl": 0.02, "difference": 0.3}, "in training by 0.3"),
        ({"kl": 0.0, "difference": 0.0}, "the policy moved"),
        ({"kl": 1e-9, "difference": 1e-3}, "new weights reached the engine"),  # old weights would look the same
        ({"kl": 0.02, "difference": 1e-5, "steps": 3}, "3 of 4 steps"),
    ],
)
def test_an_engine_that_samples_from_other_weights_fails(
    more: dict[str, Any], wrong: str | None, tiny: Setting
) -> None:
    stand_in.model(tiny, "3b")
    cfg = training.rl_config(tiny, "3b", "@lora")
    result = Result("fgrpo-server")
    run = training.Run(lines(**more), 1e-6, training.Count(), 0.0, 1)
    training.judge_rl(result, tiny, cfg, run, engine=True)
    assert (result.state == "passed") == (wrong is None), result.finding
    if wrong:
        assert any(part.startswith("NOT") and wrong in part for part in result.finding.split("; ")), result.finding


def test_memory_above_the_plan_fails(tiny: Setting) -> None:
    stand_in.model(tiny, "3b")
    cfg = training.rl_config(tiny, "3b", "@lora")
    for peak, state in ((1e5, "passed"), (1e12, "failed")):
        result = Result("fgrpo")
        training.compare_memory(result, "rl", cfg, peak, 100, 8)
        assert result.state == state and result.memory["rl"][0] == pytest.approx(peak / 1e9)


# --- order, limits, resuming -----------------------------------------------------------------------------------------
def test_only_names_checks_in_their_own_order() -> None:
    assert [check.name for check in command_line.chosen("sft,machine")] == ["machine", "sft"]
    assert [check.name for check in command_line.chosen("")] == NAMES
    with pytest.raises(UserError, match="fgrpo-serve"):
        command_line.chosen("fgrpo-serve")


def test_all_checks_fit_into_the_time() -> None:
    assert sum(check.likely_s for check in CHECKS) <= command_line.TOTAL_S
    assert all(check.likely_s < check.limit_s < 600 for check in CHECKS)  # a lent machine's limit per command
    assert NAMES[:2] == ["machine", "prepare"]


def test_without_a_gpu_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu --shape tiny"):
        command_line.main([])


def test_deepspeed_s_check_starts_through_torchrun_on_a_gpu_alone(tiny: Setting, tmp_path: Path) -> None:
    on_gpu = Setting("cuda", "true", tmp_path, tmp_path / "tokenizer")
    started = {check.name: runner.command(Call(on_gpu, tmp_path, 1.0), check) for check in CHECKS}
    assert [name for name, words in started.items() if "torch.distributed.run" in words] == ["sft"]
    assert "torch.distributed.run" not in runner.command(Call(tiny, tmp_path, 1.0), named("sft"))
    assert started["passes"][-2:] == ["--tokenizer", str(tmp_path / "tokenizer")]


def scripted(monkeypatch: pytest.MonkeyPatch, script: Callable[[Call, Check], str]) -> None:
    """Checks run this Python code in place of theirs."""
    monkeypatch.setattr(runner, "command", lambda call, check: [sys.executable, "-c", script(call, check)])
    monkeypatch.setattr(runner, "PATIENCE_S", 0.5)


def test_one_failing_check_stops_no_other_and_a_later_call_repeats_it_alone(
    tiny: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def script(call: Call, check: Check) -> str:
        ran.append(check.name)
        if check.name == "passes":
            return "print('no kernel image'); raise SystemExit(3)"
        Result(check.name, "passed", "fine").write(call.file(check.name))
        return f"open({str(call.file(check.name))!r}, 'w').write({call.file(check.name).read_text()!r})"

    scripted(monkeypatch, script)
    call = Call(tiny, tmp_path, 1000.0)
    found = {result.name: result for result in run_all(call)}
    assert ran == NAMES and found["passes"].state == "failed" and "no kernel image" in found["passes"].finding
    assert {found[name].state for name in NAMES if name != "passes"} == {"passed"}
    assert all(result.seconds > 0 for result in found.values())
    ran.clear()
    run_all(call)
    assert ran == ["passes"]
    ran.clear()
    run_all(Call(tiny, tmp_path, 1000.0, again=True), CHECKS[:2])
    assert ran == NAMES[:2]
    assert "[1/2] machine" in capsys.readouterr().out


def test_a_check_that_hangs_is_ended_with_its_children(
    tiny: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    scripted(
        monkeypatch,
        lambda *_: (
            "import subprocess, sys, time\n"
            "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"open({str(child)!r}, 'w').write(str(p.pid)); print('waiting for NCCL', flush=True); time.sleep(60)"
        ),
    )
    result = runner.run_one(Call(tiny, tmp_path, 1.0), CHECKS[0], 6.0)
    assert result.state == "timed out" and "waiting for NCCL" in result.finding
    gone = subprocess.run(["ps", "-o", "stat=", "-p", child.read_text()], capture_output=True, text=True).stdout.strip()
    assert not gone or gone.startswith("Z")
    assert read(tmp_path / "machine.json") == result


def test_what_does_not_fit_into_the_call_is_left_for_another(
    tiny: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, lambda *_: "raise SystemExit('started')")
    on_gpu = Setting("cuda", "true", tmp_path)
    assert run_all(Call(on_gpu, tmp_path, 10.0), [named("fgrpo-server")]) == []
    assert "fgrpo-server: left for another call: it takes about 240 s" in capsys.readouterr().out


# --- the page and the wheels -----------------------------------------------------------------------------------------
def test_the_page_has_a_row_for_each_figure_and_keeps_other_sections() -> None:
    results = [
        Result("passes", "passed", "differ by 0.01", {"update pass, shared prompts, sdpa": 12345.6}),
        Result("sft", "failed", "NOT peak 70.0 GB, planned 55.0 GB", {}, {"sft": (70.0, 55.0)}, 99.0),
    ]
    fresh = sections(page(results))
    assert list(fresh) == [f"## On a GPU: {part}" for part in ("checks", "tokens per second", "memory beside the plan")]
    assert "| passes: update pass, shared prompts, sdpa | 12,346 |" in page(results)
    assert "| sft: sft | 70.0 | 55.0 | 1.27 |" in page(results)
    before = "# Performance\n\nHead.\n\n## One\n\nWords.\n\n| a |\n|---|\n| 1 |\n\n## On a GPU: checks\n\nold\n"
    after = merged("# Performance\n\nHead.\n", before, fresh)
    assert list(sections(after)) == ["## One", *fresh] and "| 1 |" in after and "old" not in after


def test_a_summary_can_be_published_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[str] = []
    monkeypatch.setattr(command_line, "publish", published.append)
    result = Result("sft", "passed", "loss 12 to 9", {"SFT": 1000.0}, {"sft": (50.0, 55.0)}, 60.0, 70.0)
    result.write(tmp_path / "sft.json")
    stored = {"results": [json.loads((tmp_path / "sft.json").read_text())]}
    (tmp_path / "gpu-check.json").write_text(json.dumps(stored))
    assert command_line.main(["--publish", str(tmp_path / "gpu-check.json")]) == 0
    assert published == [page([result])]
    (tmp_path / "gpu-check.json").write_text("{}")
    with pytest.raises(UserError, match="is no summary"):
        command_line.main(["--publish", str(tmp_path / "gpu-check.json")])


def test_the_wheels_are_the_gpu_pins() -> None:
    lines, pinned = wheels(), pins(Path("requirements/gpu.txt"))
    for name in ("torch", "vllm", "trl", "transformers", "deepspeed", "peft"):
        assert f"{name}=={pinned[name]}" in lines
    assert lines[-1].startswith("flash-attn") and not any(line.startswith(("pytest", "mypy", "ruff")) for line in lines)
