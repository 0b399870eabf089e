"""Rollouts by vLLM through TRL, behind its own server or inside the trainer's process, with guards that keep them on policy.

TRL's `VLLMGeneration` and `VLLMClient` do the work; `GuardedGeneration` and `RolloutClient` add, around `super()`, what TRL
1.16 with vLLM 0.31 lacks. The effect of every guard is checked, so another version that undoes one is an error:
- colocated, TRL passes vLLM prompts whose image tokens are already expanded, and vLLM expands them again. Runs of them are
  collapsed before generation, and the prompt that vLLM read must equal the trainer's token for token. With a server TRL places
  the images itself, and the number of tokens that the server counted for each must equal the trainer's.
- after new weights, image features and prompt keys computed with the old ones are dropped (TRL drops the keys only).
- on a CPU vLLM computes with packed copies of its linear layers, and new weights do not reach all of these. They are left plain
  (`fgrpo.inference.vllm_worker`), and a server gets the weights as a file (TRL uses NCCL), which it must be able to read.
- vLLM seeds its process by rank alone: the run's seed is set again once the engine is built.
- adapters are merged into the tensors that are sent, not into the policy and out again, which would round its weights.
Anything else shows in the tokens' log-probabilities, which are compared, engine and trainer, on every token of every generation
(`sampling/…` in metrics.jsonl). Beyond a bound (`rl.preflight.TOLERANCE`, or rl.vllm.max_logprob_diff) the run stops before it
trains on them.
Needs an environment with vLLM: on CPU `.venv-vllm/bin/python -m rl.train … --set rl.rollout_engine=vllm-server`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import requests
import torch
from accelerate.utils import is_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import set_seed
from trl.generation import vllm_generation
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from fgrpo.errors import UserError
from fgrpo.inference import addresses, vllm_worker
from fgrpo.inference.vllm_server import CPU_ENVIRONMENT
from fgrpo.policy import backbone
from fgrpo.policy.adapters import merged
from fgrpo.schema_rl import Vllm
from rl.preflight import TOLERANCE
from rl.trainer import FaithfulGRPOTrainer

DIFFERENCE = "sampling/sampling_logp_difference/mean"
WEIGHTS = "model.safetensors"
RESETS = ("reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache")


class RolloutFault(UserError):
    """The rollout engine is unreachable, fails, or does not sample from the policy that is trained."""


def collapse(ids: Sequence[int], image_token: int) -> list[int]:
    """Token ids in which each run of `image_token` is one token, as vLLM expects them with the images."""
    return [token for i, token in enumerate(ids) if token != image_token or i == 0 or ids[i - 1] != image_token]


class RolloutClient(VLLMClient):
    """TRL's client. Weights travel over NCCL from a GPU (as in TRL), by file from a CPU; old features are dropped.

    Args:
        reply_s: seconds that one reply of the server may take.
    """

    def __init__(self, *args: Any, reply_s: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self.session.request = partial(self.session.request, timeout=reply_s)  # type: ignore[method-assign]
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def init_communicator(self, device: Any = 0) -> None:
        """Join the server's weight transfer; on a CPU only check that the server accepts weights by file."""
        if not isinstance(device, int) and torch.device(device).type == "cpu":
            self.get_server_info()
            self._check_plain()
            self._folder = tempfile.TemporaryDirectory(prefix="fgrpo-rollout-weights-")
        else:
            super().init_communicator(device)

    def update_named_params(self, metadata: Any, named_params: Iterator[tuple[str, Tensor]]) -> None:
        """Send the server new weights; then drop everything that it computed with the old ones."""
        if self._folder is None:
            super().update_named_params(metadata, named_params)
        else:
            weights = {name: tensor.detach().clone().contiguous() for name, tensor in named_params}
            part = Path(self._folder.name) / "part"
            save_file(weights, part)
            part.replace(part.with_name(WEIGHTS))
            self.post("pause?mode=wait")
            self.post("collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": self._folder.name}})
        for reset in RESETS:
            self.post(reset)
        if self._folder is not None:
            self.post("resume")

    def _check_plain(self) -> None:
        """The server runs our worker extension, and new weights reach all of its layers."""
        response = self.session.post(f"{self.base_url}/collective_rpc", json={"method": "packed_layers"})
        packed = response.json()["results"][0]["packed"] if response.ok else ["all"]
        if packed:
            raise RolloutFault(
                f"the rollout server {self.base_url} computes on a CPU with packed layers ({packed[0]}), which new weights would not "
                f"reach; start it with `make serve-rollouts`, or with --worker-extension-cls {vllm_worker.EXTENSION}"
            )

    def post(self, command: str, body: Mapping[str, Any] | None = None) -> requests.Response:
        """Post to one of the server's development endpoints.

        Raises:
            RolloutFault: it did not succeed.
        """
        response = self.session.post(f"{self.base_url}/{command}", json=body)
        failed = response.ok and response.content and response.json() == {"success": False}
        if not response.ok or failed:
            raise RolloutFault(
                f"the rollout server {self.base_url} did not do {command!r} ({response.status_code} {response.text[:300]}); see its log"
            )
        return response


class GuardedGeneration(VLLMGeneration):
    """TRL's vLLM generation with the guards described in the module's docstring.

    Args:
        rollouts: the configuration's rl.vllm.
        dtype: of the colocated engine, "float32" or "bfloat16".

    Raises:
        UserError: vLLM is not installed, no server runs, or a guard cannot be installed.
    """

    def __init__(self, *args: Any, rollouts: Vllm, dtype: str, **more: Any) -> None:
        self.rollouts, self.dtype, self.sync_seconds = rollouts, dtype, 0.0
        super().__init__(*args, **more)

    def _init_vllm(self) -> None:
        require_vllm()
        with ExitStack() as stack:
            if self.mode == "server":
                self.server_base_url = _address(str(self.server_base_url)) if self.accelerator.is_main_process else None
                client = partial(RolloutClient, reply_s=self.rollouts.reply_s)
                stack.enter_context(_replaced(vllm_generation, "VLLMClient", client))
                stack.enter_context(self._connection_errors_explained())
            else:
                stack.enter_context(self._colocated())
            super()._init_vllm()
        if self.mode == "server" and self.accelerator.is_main_process:
            self._check_server()
        packed = vllm_worker.packed(self.engine_model()) if self.mode == "colocate" else ()
        if packed:
            raise RolloutFault(
                f"this vLLM packs its linear layers ({packed[0]}, …) despite the guard, so new weights would not reach them; install "
                "the pinned vLLM, or use rl.rollout_engine=vllm-server"
            )

    def _check_server(self) -> None:
        """The server reports the log-probabilities that are compared, in the trainer's precision, and has room for a rollout."""
        served = self.vllm_client.get_server_info()["model_config"]
        required = {"dtype": f"torch.{self.dtype}", "logprobs_mode": "processed_logprobs"}
        wrong = [f"{key} {served[key]} (required: {value})" for key, value in required.items() if served[key] != value]
        if served["max_model_len"] < (self.max_model_length or 0):
            wrong.append(
                f"max_model_len {served['max_model_len']} (required: {self.max_model_length}, prompt and response)"
            )
        if wrong:
            raise RolloutFault(
                f"the rollout server {self.server_base_url} was started with {', '.join(wrong)}; start it with `make serve-rollouts` "
                "and this preset, or lower rl.max_prompt_length and rl.max_response_length"
            )

    @contextmanager
    def _colocated(self) -> Iterator[None]:
        """While the engine is built: our arguments added to TRL's, and on a CPU linear layers that stay plain."""
        arguments: dict[str, Any] = {
            "dtype": self.dtype,
            "limit_mm_per_prompt": backbone.assumed(self.model.config.model_type).vllm_limits(),
        }
        with ExitStack() as stack:
            if self.accelerator.device.type == "cpu":
                arguments["enforce_eager"] = True
                for key, value in CPU_ENVIRONMENT.items():
                    os.environ.setdefault(key, value)
                stack.enter_context(vllm_worker.plain_linears())
            stack.enter_context(_replaced(vllm_generation, "LLM", partial(vllm_generation.LLM, **arguments)))
            yield

    @contextmanager
    def _connection_errors_explained(self) -> Iterator[None]:
        """Turns failures to reach the server into a `RolloutFault`."""
        try:
            yield
        except (requests.RequestException, ConnectionError) as error:
            where = self.server_base_url or f"{self.server_host}:{self.server_port}"
            reason = str(getattr(error.args[0] if error.args else None, "reason", error)).split(": ", 1)[-1]
            raise RolloutFault(
                f"the rollout server {where} (rl.vllm.server) does not answer: {(reason.splitlines() or ['?'])[0]:.200}. Start it again "
                "with the same model, then rerun to resume from the last checkpoint"
            ) from error

    def engine_model(self) -> nn.Module:
        """The colocated engine's own model."""
        model: nn.Module = self.llm.llm_engine.model_executor.driver_worker.model_runner.model
        return model

    def sync_weights(self) -> None:
        """Send vLLM the trainer's weights, and drop everything computed with the old ones.

        Raises:
            RolloutFault: the server is unreachable or fails, or the engine still holds blocks.
        """
        began = time.perf_counter()
        with self._connection_errors_explained():
            super().sync_weights()
        if self.mode == "colocate":
            self.llm.reset_mm_cache()
            self.llm.llm_engine.reset_encoder_cache()
            if not self.llm.reset_prefix_cache():
                raise RolloutFault("vLLM still holds cached prompts of the old weights after a weight sync")
        self.sync_seconds += time.perf_counter() - began

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any = None) -> Any:
        """TRL's `generate`; checks that vLLM read exactly `prompts`, token for token.

        Raises:
            RolloutFault: the server is unreachable, or the engine counted more or fewer image tokens than the trainer.
        """
        if self.mode == "server":
            with self._connection_errors_explained():
                return super().generate(prompts, images, num_generations, profiler)
        processor: Any = self.processing_class
        token = backbone.assumed(self.model.config.model_type).image_token_id(processor)
        result = super().generate([collapse(p, token) for p in prompts], images, num_generations, profiler)
        for sent, read in zip(prompts, result[0], strict=True):
            if list(sent) != list(read):
                raise RolloutFault(
                    f"vLLM read a prompt of {len(read)} tokens ({read.count(token)} for images) where the trainer has {len(sent)} "
                    f"({list(sent).count(token)}); do their processors agree, and is vLLM the pinned version?"
                )
        return result

    def _place_features(self, features: Any, prompt_ids: list[int]) -> Any:
        placed = super()._place_features(features, prompt_ids)
        if features is not None and placed is not None:
            pairs = zip(features["mm_placeholders"]["image"], placed["mm_placeholders"]["image"], strict=True)
            for counted, own in pairs:
                if counted["length"] != own["length"]:
                    raise RolloutFault(
                        f"the rollout server makes {counted['length']} tokens of an image of which the trainer makes "
                        f"{own['length']}; serve the policy's own folder, with its processor"
                    )
        return placed

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors for vLLM. With adapters these are W + BA, and the policy's own W stays bit for bit as it is."""
        if not is_peft_model(self.model) or self._dist.is_fsdp:
            yield from super()._iter_named_params()
            return
        with self._dist.gather_params(list(self.model.parameters())), torch.no_grad():
            yield from merged(self.model)


class VLLMTrainer(FaithfulGRPOTrainer):
    """FaithfulGRPOTrainer whose rollouts come from vLLM (`args.use_vllm`), as `args.vllm_mode` says.

    Args:
        rollouts: the configuration's rl.vllm.

    Raises:
        UserError: vLLM is not installed, no server runs, or a guard cannot be installed.
    """

    def __init__(self, *args: Any, rollouts: Vllm, **more: Any) -> None:
        self.rollouts = rollouts
        config = more.get("args") or args[2]
        dtype = "bfloat16" if config.bf16 else "float32"
        self.bound = rollouts.max_logprob_diff or TOLERANCE["bf16" if config.bf16 else "fp32"]
        guarded = partial(GuardedGeneration, rollouts=rollouts, dtype=dtype)
        with _replaced(grpo_trainer, "VLLMGeneration", guarded):
            super().__init__(*args, **more)
        if not isinstance(self.generation, GuardedGeneration):
            raise RolloutFault("TRL built its vLLM engine without the guards; install the pinned TRL")
        set_seed(self.args.seed + self.accelerator.process_index // rollouts.tensor_parallel)

    @property
    def generation(self) -> GuardedGeneration:
        """The engine."""
        generation: Any = self.vllm_generation
        return generation

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.check_difference(self._metrics["train" if self._is_training else "eval"][DIFFERENCE][-1])
        return output

    def check_difference(self, difference: float) -> None:
        """Stop where the rollouts do not come from the policy.

        Args:
            difference: mean over tokens of |log p(trainer) - log p(engine)|.

        Raises:
            RolloutFault: it exceeds the bound, or is not a number.
        """
        if not difference <= self.bound:
            raise RolloutFault(
                f"step {self.state.global_step + 1}: the engine's log-probabilities differ by {difference:.3g} per token from the "
                f"trainer's (allowed: {self.bound:g}, rl.vllm.max_logprob_diff), so the rollouts do not come from the policy; nothing was "
                "trained on them. Check that no other run uses the server, and that its precision and processor are the trainer's"
            )

    def take_seconds(self) -> dict[str, float]:
        """As in the base class, with the weight sync (`sync`) separate from `generation`."""
        spent, sync = super().take_seconds(), self.generation.sync_seconds
        self.generation.sync_seconds = 0.0
        return {**spent, "generation": max(spent["generation"] - sync, 0.0), "sync": sync}


def _address(server: str) -> str:
    """The root of the server's URL, from a URL or an address file."""
    urls = [a.url for a in addresses.matching(server)] if addresses.is_pattern(server) else [server]
    if not urls:
        raise UserError(
            f"rl.vllm.server is {server}, which does not exist: no rollout server runs; start one with `make serve-rollouts`"
        )
    return urls[0].rstrip("/").removesuffix("/v1")


def require_vllm() -> None:
    """Check that vLLM is installed.

    Raises:
        UserError: it is not; names the interpreter to use.
    """
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise UserError(
            f"rl.rollout_engine requires vLLM, which {sys.executable} does not have; on a CPU run `make setup-vllm` and start the stage "
            "with .venv-vllm/bin/python, on a GPU install requirements/gpu.txt, or set rl.rollout_engine=transformers"
        )


@contextmanager
def _replaced(module: Any, name: str, by: Any) -> Iterator[None]:
    """Replace `module.name` by `by` within the block.

    Raises:
        UserError: there is no such name, as in another version, where the guard would have no effect.
    """
    if not hasattr(module, name):
        raise UserError(
            f"{module.__name__} has no {name}, which a guard of vLLM rollouts replaces; install the pinned TRL and vLLM, or set "
            "rl.rollout_engine=transformers"
        )
    original = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, original)
