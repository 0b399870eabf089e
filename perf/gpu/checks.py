"""The checks, in their order: what each runs, the seconds that it may take, and what it needs."""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers.utils import is_flash_attn_2_available

from fgrpo.config import load
from fgrpo.hardware import gpus
from fgrpo.inference import serve
from fgrpo.inference.vllm_server import Server, free_port
from fgrpo.schema import Config
from perf.gpu import attention, passes, stand_in, training
from perf.gpu.result import NotApplicable, Result
from perf.gpu.setting import Setting

LORA = "@lora"  # of configs/overlay
MEMORY_SHARE = 0.3  # of the card, for vLLM beside a trainer
HEALTHY_S = 240.0
TFLOPS = 100.0  # of a bf16 product: any card that this is for reaches more
# NCCL refuses two processes of one host on one card; with another host id it connects them over sockets. The rendezvous is
# at the address that vLLM finds for this machine, which without a network is none.
ONE_CARD = {"NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
SERVER_HOST = {"NCCL_HOSTID": "fgrpo-rollout-server"}


@dataclass(frozen=True)
class Check:
    """One check: `run` fills a result. `limit_s` on a GPU, after which it is ended; `likely_s` for the time left.

    `through_torchrun`: on a GPU its process is started by torchrun, which DeepSpeed needs.
    """

    name: str
    about: str
    run: Callable[[Setting, Result], None]
    likely_s: int
    limit_s: int
    needs_cuda: bool = False
    through_torchrun: bool = False


def machine(setting: Setting, result: Result) -> None:
    """The card, its speed in bf16, and the packages that matter."""
    if setting.device == "cpu":
        result.finding = f"{platform.machine()}, torch {torch.__version__}; no GPU is asked for"
        return
    properties = torch.cuda.get_device_properties(0)
    size = 8192
    one = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        one @ one
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        one @ one
    torch.cuda.synchronize()
    reached = 20 * 2 * size**3 / (time.perf_counter() - began) / 1e12
    flash = "flash-attn" if is_flash_attn_2_available() else "no flash-attn (sdpa instead)"
    vllm = "vLLM" if importlib.util.find_spec("vllm") else "no vLLM"
    result.must(reached > TFLOPS, f"{reached:.0f} TFLOP/s in bf16 (more than {TFLOPS:.0f})")
    result.finding += (
        f"; {properties.name}, {properties.total_memory / 1e9:.0f} GB, torch {torch.__version__}, {flash}, {vllm}"
    )


def prepare(setting: Setting, result: Result) -> None:
    """Models with random weights, tokenizer, questions and traces."""
    stand_in.data(setting)
    real = [stand_in.has_real_tokenizer(stand_in.model(setting, size)) for size in ("3b", "7b")]
    sizes = [sum(f.stat().st_size for f in setting.model(size).glob("*.safetensors")) / 1e9 for size in ("3b", "7b")]
    result.finding = (
        f"weights of {sizes[0]:.1f} and {sizes[1]:.1f} GB, {'Qwen' if all(real) else 'the miniature world'}'s tokenizer"
    )


def sft(setting: Setting, result: Result) -> None:
    """SFT of all parameters (the preset's ZeRO-3 on a GPU): losses fall, memory as planned."""
    stand_in.data(setting)
    stand_in.model(setting, "3b")
    cfg = training.sft_config(setting)
    losses, speed, peak = training.train_sft(setting, cfg)
    result.must(
        len(losses) == setting.sizes.sft_steps and losses[-1] < losses[0], f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    result.speeds["SFT"] = speed
    if setting.device == "cuda":
        longest = training.longest_trace(cfg, setting.traces)
        training.compare_memory(result, "sft", cfg, peak, longest, longest)


def own_decoder(setting: Setting, result: Result, size: str = "3b", *more: str) -> None:
    """FGRPO with adapters and the rollouts of this process' decoder."""
    stand_in.data(setting)
    stand_in.model(setting, size)
    cfg = training.rl_config(setting, size, LORA, "rl.rollout_engine=transformers", *more)
    training.judge_rl(result, setting, cfg, training.train_rl(setting, f"own-{size}", cfg), engine=False)


def seven_billion(setting: Setting, result: Result) -> None:
    """The same at 7B: forward and backward passes, and updates of adapters."""
    own_decoder(setting, result, "7b")


def colocate(setting: Setting, result: Result) -> None:
    """FGRPO with a vLLM engine in the trainer's process; weights go to it in memory."""
    needs_vllm()
    stand_in.data(setting)
    stand_in.model(setting, "3b")
    engine = ("rl.rollout_engine=vllm-colocate", f"rl.vllm.memory_share={MEMORY_SHARE}")
    cfg = training.rl_config(setting, "3b", LORA, *engine)
    training.judge_rl(result, setting, cfg, training.train_rl(setting, "colocate", cfg), engine=True)


def server(setting: Setting, result: Result) -> None:
    """FGRPO with a vLLM server on the same card; weights go to it over NCCL (by file on a CPU)."""
    needs_vllm()
    stand_in.data(setting)
    stand_in.model(setting, "3b")
    if setting.device == "cuda":
        os.environ.update(ONE_CARD)
    with rollout_server(setting) as url:
        engine = ("rl.rollout_engine=vllm-server", f"rl.vllm.server={url}", f"rl.vllm.sync_port={free_port()}")
        cfg = training.rl_config(setting, "3b", LORA, *engine)
        training.judge_rl(result, setting, cfg, training.train_rl(setting, "server", cfg), engine=True)


def needs_vllm() -> None:
    """Raises NotApplicable without vLLM in this interpreter."""
    if importlib.util.find_spec("vllm") is None:
        raise NotApplicable("vLLM is not installed in this interpreter (requirements/gpu.txt; on a CPU .venv-vllm)")


@contextmanager
def rollout_server(setting: Setting) -> Iterator[str]:
    """A rollout server of the 3B model as `make serve-rollouts` starts it, on a share of the card; its address."""
    cfg: Config = load(
        training.PRESET,
        "fgrpo",
        [
            "serve.rollouts.data_parallel=1",
            f"serve.rollouts.memory_share={MEMORY_SHARE}",
            "serve.rollouts.context=4096",
        ],
    )
    devices = gpus() if setting.device == "cuda" else []
    ordered = serve.order(cfg, "rollouts", devices, str(setting.model("3b")), root=setting.work / "runs")
    environment = {**ordered.environment, **({**ONE_CARD, **SERVER_HOST} if devices else {})}
    log = setting.work / "runs" / "server.log"
    with Server(ordered.model, log=log, flags=ordered.flags, environment=environment, timeout_s=HEALTHY_S) as running:
        yield running.url


CHECKS: tuple[Check, ...] = (
    Check("machine", "the card and its packages", machine, 15, 60),
    Check("prepare", "models of 3B and 7B with random weights", prepare, 90, 240),
    Check("passes", "log-prob passes: shared prompts against padded rows, flash against sdpa", passes.check, 120, 240),
    Check(
        "attention",
        "attention read from the policy: flash and sdpa against eager, and its cost",
        attention.check,
        40,
        120,
    ),
    Check("sft", "SFT of all parameters under ZeRO-3", sft, 120, 240, through_torchrun=True),
    Check("fgrpo", "FGRPO, own decoder", own_decoder, 150, 300),
    Check("fgrpo-server", "FGRPO, vLLM server, NCCL", server, 240, 400),
    Check("fgrpo-colocate", "FGRPO, vLLM in the trainer's process", colocate, 200, 350),
    Check("fgrpo-7b", "FGRPO at 7B with adapters", seven_billion, 180, 300),
)


def named(name: str) -> Check:
    """The check of this name. Raises KeyError without one."""
    return {check.name: check for check in CHECKS}[name]
