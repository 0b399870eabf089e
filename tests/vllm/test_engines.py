"""The real vLLM server and the transformers engine, behind one interface: the same tokens and log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import open_rgb
from fgrpo.inference.base import Completion, Request, Sampler, SamplingError
from fgrpo.inference.openai_engine import OpenAISampler
from fgrpo.inference.transformers_engine import TransformersSampler
from fgrpo.inference.vllm_server import Server
from fgrpo.policy import loading

BACKBONE = "miniworld/backbone"
LOGPROB_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def local() -> TransformersSampler:
    torch.set_num_threads(1)
    return TransformersSampler.load(BACKBONE)


@pytest.fixture
def remote(server: Server) -> OpenAISampler:
    return OpenAISampler([server.url], BACKBONE, tokenizer=BACKBONE)


def ask(sampler: Sampler, asked: Sequence[Request]) -> list[Sequence[Completion]]:
    async def gather() -> list[Sequence[Completion]]:
        try:
            return list(await asyncio.gather(*(sampler.sample(request) for request in asked)))
        finally:
            if isinstance(sampler, OpenAISampler):
                await sampler.close()

    return asyncio.run(gather())


@pytest.mark.parametrize(
    ("prefix", "stop"),
    [
        ("", ()),
        ("<think>", ("\n", "</think>", "</answer>")),
        ("<answer>", ("</answer>",)),
        ("<think>The red circle is at <bbox>[4,8,20,24]</bbox>.\n", ()),
    ],
    ids=["plain", "step", "direct", "continued"],
)
def test_greedy_float32_token_for_token(
    local: TransformersSampler, remote: OpenAISampler, greedy: list[Request], prefix: str, stop: tuple[str, ...]
) -> None:
    asked = [replace(request, prefix=prefix, stop=stop) for request in greedy]
    worst = 0.0
    for request, (ours,), (theirs,) in zip(asked, ask(local, asked), ask(remote, asked), strict=True):
        assert theirs.token_ids == ours.token_ids, request
        assert theirs.text == ours.text
        assert theirs.finish == ours.finish
        worst = max([worst, *(abs(a - b) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True))])
    assert worst < LOGPROB_TOLERANCE
    print(f"largest difference of log-probabilities: {worst:.1e}")


def test_bounds_of_an_image_reach_the_server(server: Server, greedy: list[Request]) -> None:
    """`policy.pixels` with each request: the tokens of the in-process engine, of fewer prompt tokens than without."""
    bounds = PixelBounds(4 * 28**2, 9 * 28**2, 28)
    asked = [replace(request, prefix="<think>") for request in greedy[:6]]
    own = TransformersSampler.load(BACKBONE, pixels=bounds)
    told = OpenAISampler([server.url], BACKBONE, tokenizer=BACKBONE, pixels=bounds)
    plain = OpenAISampler([server.url], BACKBONE, tokenizer=BACKBONE)
    for request, (ours,), (theirs,), (whole,) in zip(
        asked, ask(own, asked), ask(told, asked), ask(plain, asked), strict=True
    ):
        assert theirs.token_ids == ours.token_ids, request
        assert theirs.prompt_tokens == whole.prompt_tokens - 7 * len(request.images), "16 tokens of an image, and 9"


def test_rollout_logprobs_are_the_trainers(
    local: TransformersSampler, remote: OpenAISampler, greedy: list[Request]
) -> None:
    """Sampled by vLLM, recomputed in one batched forward pass as a trainer does (right-padded completions, pixels)."""
    asked = [replace(request, prefix="<think>", temperature=1.0, seed=n, n=2) for n, request in enumerate(greedy[:8])]
    rows = [(r, c) for r, answers in zip(asked, ask(remote, asked), strict=True) for c in answers]
    processor, model = local.processor, local.model
    rendered = [loading.render_prompt(processor, r.images, r.text, r.prefix) for r, _ in rows]
    pictures = [open_rgb(path) for r, _ in rows for path in r.images]
    inputs = processor(text=rendered, images=pictures, padding=True, padding_side="left", return_tensors="pt")
    longest = max(len(c.token_ids) for _, c in rows)
    new = torch.tensor([[*c.token_ids] + [0] * (longest - len(c.token_ids)) for _, c in rows])
    real = torch.tensor([[1] * len(c.token_ids) + [0] * (longest - len(c.token_ids)) for _, c in rows])
    with torch.no_grad():
        logits = model(
            input_ids=torch.cat([inputs["input_ids"], new], dim=1),
            attention_mask=torch.cat([inputs["attention_mask"], real], dim=1),
            mm_token_type_ids=torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, longest)),
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            logits_to_keep=longest + 1,
        ).logits[:, :-1]
    expected = logits.log_softmax(-1).gather(2, new[..., None])[..., 0]
    worst = max(
        (expected[i, : len(c.token_ids)] - torch.tensor(c.logprobs)).abs().max().item() for i, (_, c) in enumerate(rows)
    )
    assert worst < LOGPROB_TOLERANCE
    print(f"largest difference of log-probabilities: {worst:.1e}")


def test_special_tokens_are_never_sampled(remote: OpenAISampler, greedy: list[Request]) -> None:
    hot = replace(greedy[0], temperature=2.0, n=64, seed=0, max_new_tokens=64, text="? ? .")
    sampled = {token for completion in ask(remote, [hot])[0] for token in completion.token_ids}
    tokenizer = loading.load_processor(BACKBONE).tokenizer
    forbidden = set(loading.forbidden_token_ids(tokenizer))
    assert set(remote._forbidden or ()) == forbidden
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") in forbidden
    assert not sampled & forbidden


def test_what_is_forbidden_is_not_sampled_however_likely(server: Server, greedy: list[Request]) -> None:
    asked = [replace(request, prefix="<think>", max_new_tokens=8) for request in greedy[:4]]
    likely = {t for (c,) in ask(OpenAISampler([server.url], BACKBONE, forbidden=()), asked) for t in c.token_ids}
    now = ask(OpenAISampler([server.url], BACKBONE, forbidden=sorted(likely)), asked)
    assert likely
    assert not likely & {t for (c,) in now for t in c.token_ids}


def test_seeds_repeat(remote: OpenAISampler, greedy: list[Request]) -> None:
    hot = replace(greedy[0], temperature=1.0, n=4, seed=3, prefix="<think>")
    (first,), (again,), (other,) = ask(remote, [hot]), ask(remote, [hot]), ask(remote, [replace(hot, seed=4)])
    assert [c.text for c in first] == [c.text for c in again]
    assert [c.text for c in first] != [c.text for c in other]


def test_many_seeded_requests_do_not_kill_the_engine(remote: OpenAISampler, greedy: list[Request]) -> None:
    """With chunked prefill vLLM's CPU engine dies at the first seeded prompt it cuts ("does not use offset")."""
    asked = [
        replace(r, temperature=1.0, n=8, seed=n, prefix="<think>", max_new_tokens=16) for n, r in enumerate(greedy)
    ]
    assert [len(answers) for answers in ask(remote, asked)] == [8] * len(asked)


def test_refusals_are_clear_and_not_repeated(remote: OpenAISampler, greedy: list[Request]) -> None:
    with pytest.raises(SamplingError, match=r"refused it with 400: .*max_model_len") as refused:
        ask(remote, [replace(greedy[0], max_new_tokens=100_000)])
    assert greedy[0].text in str(refused.value)
    with pytest.raises(SamplingError, match="400"):
        ask(remote, [replace(greedy[0], images=greedy[0].images * 9)])
    (fine,) = ask(remote, [greedy[0]])
    assert fine[0].finish == "stop"


def test_another_model_than_served_is_named(server: Server, greedy: list[Request]) -> None:
    with pytest.raises(UserError, match=r"does not serve 'Qwen/Qwen2.5-VL-72B-Instruct' but miniworld/backbone"):
        ask(OpenAISampler([server.url], "Qwen/Qwen2.5-VL-72B-Instruct", forbidden=()), [greedy[0]])


def test_a_dead_endpoint_beside_a_live_one_loses_nothing(server: Server, greedy: list[Request]) -> None:
    both = OpenAISampler(["http://127.0.0.1:9/v1", server.url], BACKBONE, tokenizer=BACKBONE, longest_wait_s=0.2)
    assert all(answers[0].text for answers in ask(both, greedy[:8]))


def test_two_processes_cannot_take_one_port(server: Server) -> None:
    with pytest.raises(UserError, match="in use"):
        Server(BACKBONE, log=server.log.with_name("second.log"), port=server.port).start()
