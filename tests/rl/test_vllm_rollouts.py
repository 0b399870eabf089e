"""The guards of vLLM rollouts, as far as they can be seen without vLLM (with it: tests/vllm/test_rollouts.py)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch

from fgrpo import config
from fgrpo.errors import UserError
from fgrpo.inference import addresses
from fgrpo.schema_rl import Vllm
from rl import arguments, vllm_rollouts
from rl.vllm_rollouts import GuardedGeneration, RolloutClient, RolloutFault, VLLMTrainer, collapse

PAD = 9


class Session:
    """What `requests` would answer: status and JSON (or None: the connection fails) for each path."""

    def __init__(self, **answers: tuple[int, Any]) -> None:
        self.answers, self.asked = answers, list[tuple[str, Any]]()

    def post(self, url: str, json: Any = None) -> Any:
        path = url.removeprefix("http://there/").split("?")[0]
        self.asked.append((path, json))
        status, body = self.answers.get(path, (200, None))
        content = b"" if body is None else b"{}"
        return SimpleNamespace(ok=status == 200, status_code=status, text=str(body), content=content, json=lambda: body)


def client(**answers: tuple[int, Any]) -> tuple[RolloutClient, Session]:
    made, session = RolloutClient.__new__(RolloutClient), Session(**answers)
    made.base_url, made.session, made._folder = "http://there", session, None
    return made, session


def generation(mode: str = "server") -> GuardedGeneration:
    made = GuardedGeneration.__new__(GuardedGeneration)
    made.mode, made.server_base_url, made.processing_class = mode, "http://there", SimpleNamespace(image_token_id=PAD)
    made.model = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_5_vl"))
    return made


def test_runs_of_image_tokens_become_one_token_each() -> None:
    assert collapse([1, PAD, PAD, PAD, 2, 2, PAD, 3, PAD, PAD], PAD) == [1, PAD, 2, 2, PAD, 3, PAD]
    assert collapse(collapse([PAD, PAD, 1], PAD), PAD) == [PAD, 1]
    assert collapse([], PAD) == []


def test_weights_go_through_a_file_that_the_server_reads_between_pause_and_resume(tmp_path: Path) -> None:
    sender, session = client(collective_rpc=(200, {"results": [{"packed": []}]}))
    sender.get_server_info = dict
    sender.init_communicator(torch.device("cpu"))
    session.asked.clear()
    weights = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    sender.update_named_params([], iter([("a", weights)]))
    assert [path for path, _ in session.asked] == [
        *("pause", "collective_rpc", "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache", "resume")
    ]
    asked = session.asked[1][1]
    assert asked["method"] == "reload_weights"
    from safetensors.torch import load_file

    written = load_file(Path(asked["kwargs"]["weights_path"]) / vllm_rollouts.WEIGHTS)
    assert torch.equal(written["a"], weights)


@pytest.mark.parametrize(
    "answer",
    [(404, None), (200, {"results": [{"packed": ["language_model.lm_head"]}]})],
    ids=["no extension", "packed"],
)
def test_a_cpu_server_whose_layers_are_packed_is_refused(answer: tuple[int, Any]) -> None:
    sender, _ = client(collective_rpc=answer)
    sender.get_server_info = dict
    with pytest.raises(RolloutFault, match=r"packed layers.*make serve-rollouts"):
        sender.init_communicator(torch.device("cpu"))


@pytest.mark.parametrize("answer", [(500, "boom"), (200, {"success": False})], ids=["error", "blocks are held"])
def test_a_server_that_does_not_forget_is_an_error(answer: tuple[int, Any]) -> None:
    sender, _ = client(reset_prefix_cache=answer)
    sender._folder = None
    with pytest.raises(RolloutFault, match="did not do 'reset_prefix_cache'"):
        sender.post("reset_prefix_cache")


def test_a_server_that_is_gone_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        requests.Session().post("http://127.0.0.1:9/")

    monkeypatch.setattr(vllm_rollouts.VLLMGeneration, "generate", gone)
    with pytest.raises(RolloutFault, match=r"does not answer: Failed to .*[Cc]onnection refused\. Start it") as raised:
        generation().generate([[1]], None, 1)
    assert "\n" not in str(raised.value)


def test_other_image_tokens_than_the_trainers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vllm_rollouts.VLLMGeneration, "generate", lambda *_, **__: ([[1, PAD, PAD, PAD, 2]], [[5]], [[0.0]], None)
    )
    with pytest.raises(RolloutFault, match=r"5 tokens \(3 for images\) where the trainer has 4 \(2\)"):
        generation("colocate").generate([[1, PAD, PAD, 2]], None, 1)
    features = {"mm_placeholders": {"image": [{"offset": 0, "length": 3}]}}
    with pytest.raises(RolloutFault, match="makes 3 tokens of an image of which the trainer makes 2"):
        generation()._place_features(features, [1, PAD, PAD, 2])
    right = {"mm_placeholders": {"image": [{"offset": 0, "length": 2}]}}
    assert generation()._place_features(right, [1, PAD, PAD, 2])["mm_placeholders"]["image"][0]["offset"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "torch.bfloat16"}, r"dtype torch\.bfloat16 \(required: torch\.float32\)"),
        ({"logprobs_mode": "raw_logprobs"}, "logprobs_mode raw_logprobs"),
        ({"max_model_len": 511}, r"max_model_len 511 \(required: 512"),
        ({}, None),
    ],
)
def test_a_server_of_other_precision_or_too_little_room_is_refused(given: dict[str, Any], said: str | None) -> None:
    made = generation()
    made.dtype, made.max_model_length = "float32", 512
    fine = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "max_model_len": 512}
    made.vllm_client = SimpleNamespace(get_server_info=lambda: {"model_config": {**fine, **given}})
    if said is None:
        made._check_server()
        return
    with pytest.raises(RolloutFault, match=said):
        made._check_server()


@pytest.mark.parametrize("difference", [0.2, float("nan")])
def test_rollouts_that_are_not_the_policys_are_not_trained_on(difference: float) -> None:
    trainer = VLLMTrainer.__new__(VLLMTrainer)
    trainer.bound, trainer.state = 1e-3, SimpleNamespace(global_step=4)
    trainer.check_difference(9e-4)
    with pytest.raises(RolloutFault, match=r"step 5: .*allowed: 0.001, rl.vllm.max_logprob_diff"):
        trainer.check_difference(difference)


def test_a_guard_that_cannot_be_installed_is_an_error() -> None:
    with pytest.raises(UserError, match="has no not_there"), vllm_rollouts._replaced(vllm_rollouts, "not_there", None):
        pass
    with vllm_rollouts._replaced(vllm_rollouts, "WEIGHTS", "other"):
        assert vllm_rollouts.WEIGHTS == "other"
    assert vllm_rollouts.WEIGHTS == "model.safetensors"


def test_the_server_is_found_by_its_address_file(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.json"
    with pytest.raises(UserError, match="make serve-rollouts"):
        vllm_rollouts._address(str(path))
    addresses.write(path, addresses.Address("rollouts", "m", "http://there:1/v1", "there", 1))
    assert vllm_rollouts._address(str(path)) == "http://there:1"
    assert vllm_rollouts._address("http://here:2/v1/") == "http://here:2"
    cfg = config.load("paper-7b")
    assert cfg.rl.vllm == Vllm()
    assert arguments._engine(cfg, [])["vllm_server_base_url"] == "runs/paper-7b/serve/rollouts.json"


def test_without_vllm_the_interpreter_that_has_it_is_named() -> None:
    with pytest.raises(UserError, match=r"\.venv-vllm/bin/python"):
        vllm_rollouts.require_vllm()


def test_a_folder_of_that_name_is_not_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="requires vLLM"):
        vllm_rollouts.require_vllm()
