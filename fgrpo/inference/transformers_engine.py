"""Sampling from a local model: requests that arrive together are decoded in one batch.

`sample` queues a request. A pump takes the oldest request and those most like it, up to `batch_size` rows, and decodes them in
a worker thread, so that the event loop stays responsive. Requests may differ in every parameter. An image goes through the
vision tower once and its features are cached (`FEATURE_BYTES`), which is correct as long as the model is not being trained.

A request with a seed gives the same text in any batch: each continuation has its own random numbers, keyed by seed, prompt
and index. (Except for float arithmetic, whose last digits depend on the batch's shape.) The numbers differ from those that a
vLLM server would draw for the seed.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fgrpo.boxes import PixelBounds
from fgrpo.errors import UserError
from fgrpo.images import open_for_model
from fgrpo.inference.base import Completion, Request, SamplingError, UnusableImage, check, describe
from fgrpo.inference.decode import Prompt, Row, Vocabulary, decode
from fgrpo.policy import backbone, loading
from fgrpo.policy.backbone import Backbone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEATURE_BYTES = 512 * 2**20
SETTLE_TURNS = 3  # turns of the event loop for which the pump waits for requests of other coroutines


@dataclass
class _Queued:
    request: Request
    future: asyncio.Future[list[Completion]]
    order: int
    size: int  # characters of text and prefix, which stand for the prompt's length


class TransformersSampler:
    """A `Sampler` over a model in this process."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 160,
        *,
        context_length: int | None = None,
    ) -> None:
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size
        text_config: Any = model.config.text_config
        self._family = backbone.of_model(model)
        self.vocabulary = vocabulary_of(processor.tokenizer, text_config.vocab_size, self._family)
        limit = int(text_config.max_position_embeddings)
        self._context = min(limit, context_length or limit)
        self._features = FeatureCache(model, processor)
        self._waiting: list[_Queued] = []
        self._order = 0
        self._pump: asyncio.Task[None] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decode")

    @classmethod
    def load(
        cls,
        path: str | Path,
        dtype: str = "float32",
        batch_size: int = 160,
        *,
        context_length: int | None = None,
        pixels: PixelBounds | None = None,
    ) -> TransformersSampler:
        """A sampler over the model saved at `path`, on a GPU if there is one.

        Args:
            context_length: as in `schema.Engine`.
            pixels: as in `fgrpo.policy.loading.load_processor`.
        """
        model, processor = loading.load_policy(path, dtype, bounds=pixels)
        model.to(device=torch.device(loading.device()))
        return cls(model, processor, batch_size, context_length=context_length)

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`request.n` continuations.

        Raises:
            SamplingError: the request cannot be served: a bad parameter, an unreadable image, a prompt beyond the context.
        """
        check(request)
        loop = asyncio.get_running_loop()
        queued = _Queued(request, loop.create_future(), self._order, len(request.text) + len(request.prefix))
        self._order += 1
        self._waiting.append(queued)
        if self._pump is None or self._pump.done() or self._pump.get_loop() is not loop:
            self._pump = loop.create_task(self._serve())
        return await queued.future

    async def close(self) -> None:
        """Finish the current batch and end the thread."""
        self._pool.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(SETTLE_TURNS):
                await asyncio.sleep(0)
            self._waiting = [a for a in self._waiting if not a.future.done() and a.future.get_loop() is loop]
            if not self._waiting:
                return
            batch = self._take()
            try:
                results = await loop.run_in_executor(self._pool, self.complete, [a.request for a in batch])
            except Exception as error:  # noqa: BLE001 - passed on to the requests of this batch
                results = [_memory_error(error, sum(a.request.n for a in batch)) or error] * len(batch)
            for queued, result in zip(batch, results, strict=True):
                if queued.future.done():
                    continue
                if isinstance(result, Exception):
                    queued.future.set_exception(result)
                else:
                    queued.future.set_result(result)

    def _take(self) -> list[_Queued]:
        """The oldest request and those closest to it in token limit and length, at most `batch_size` continuations."""
        oldest = min(self._waiting, key=lambda a: a.order)
        limit = oldest.request.max_new_tokens

        def distance(queued: _Queued) -> tuple[bool, bool, int, int]:
            return (
                queued is not oldest,
                queued.request.max_new_tokens != limit,
                abs(queued.size - oldest.size),
                queued.order,
            )

        batch: list[_Queued] = []
        rows = 0
        for queued in sorted(self._waiting, key=distance):
            if batch and rows + queued.request.n > self.batch_size:
                break
            batch.append(queued)
            rows += queued.request.n
        taken = {a.order for a in batch}
        self._waiting = [a for a in self._waiting if a.order not in taken]
        return batch

    def complete(self, requests: Sequence[Request]) -> list[list[Completion] | Exception]:
        """Serve `requests` now, in this thread; returns the completions or the error of each, in order."""
        problems = self._features.read(sorted({path for request in requests for path in request.images}))
        prompts: dict[tuple[tuple[str, ...], str, str], int] = {}
        built: list[Prompt] = []
        rows: list[Row] = []
        answers: list[list[Row] | Exception] = []
        for request in requests:
            unreadable = [problems[path] for path in request.images if path in problems]
            key = (request.images, request.text, request.prefix)
            try:
                if unreadable:
                    raise UnusableImage(f"{describe(request)}: {unreadable[0]}")
                if key not in prompts:
                    built.append(self._prompt(request))
                    prompts[key] = len(built) - 1
                self._check_length(request, len(built[prompts[key]].ids))
            except SamplingError as error:
                answers.append(error)
                continue
            request_rows = [_row(request, prompts[key], index) for index in range(request.n)]
            rows += request_rows
            answers.append(request_rows)
        for start in range(0, len(rows), self.batch_size):
            self._decode(built, rows[start : start + self.batch_size])
        return [a if isinstance(a, Exception) else [_completion(row) for row in a] for a in answers]

    def _decode(self, prompts: Sequence[Prompt], rows: Sequence[Row]) -> None:
        used = sorted({row.prompt for row in rows})
        index_of = {prompt: i for i, prompt in enumerate(used)}
        for row in rows:
            row.prompt = index_of[row.prompt]
        decode(self.model, [prompts[i] for i in used], rows, self.vocabulary)

    def _prompt(self, request: Request) -> Prompt:
        images = [self._features[path] for path in request.images]
        rendered = loading.render_prompt(self.processor, request.images, request.text, request.prefix)
        ids = loading.tokenize_prompt(self.processor, rendered, [len(features) for features, _ in images], self._family)
        if not images:
            return Prompt(tuple(ids))
        return Prompt(tuple(ids), torch.cat([f for f, _ in images]), torch.stack([grid for _, grid in images]))

    def _check_length(self, request: Request, length: int) -> None:
        if length + request.max_new_tokens > self._context:
            raise SamplingError(
                f"{describe(request)}: {length} prompt tokens and {request.max_new_tokens} new ones exceed the "
                f"context of {self._context}"
            )


class FeatureCache:
    """Vision features of image files, computed in batches. Past `FEATURE_BYTES` the least recently used are dropped."""

    def __init__(self, model: Any, processor: Any) -> None:
        self._model, self._image_processor = model, processor.image_processor
        self._cached: OrderedDict[tuple[str, int, int], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._current: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._bytes = 0

    def __getitem__(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (image tokens, F) and grid (3) of an image of the last `read`."""
        return self._current[path]

    @torch.inference_mode()
    def read(self, paths: Sequence[str]) -> dict[str, str]:
        """Make the features of `paths` available; returns the problem of each image that cannot be read."""
        problems: dict[str, str] = {}
        missing: dict[str, tuple[tuple[str, int, int], object]] = {}
        self._current = {}
        for path in paths:
            try:
                stat = Path(path).stat()
                key = (path, stat.st_mtime_ns, stat.st_size)
                if key in self._cached:
                    self._cached.move_to_end(key)
                    self._current[path] = self._cached[key]
                else:
                    missing[path] = (key, open_for_model(path))
            except OSError as error:
                problems[path] = f"the image {path} cannot be read ({error.strerror})"
            except UserError as error:
                problems[path] = str(error)
        if missing:
            problems |= self._compute_each(missing)
        return problems

    def _compute_each(self, missing: dict[str, tuple[tuple[str, int, int], object]]) -> dict[str, str]:
        """`_compute` in one batch; if the processor refuses it, image by image. Returns the problem of each refused image."""
        try:
            self._compute(missing)
            return {}
        except ValueError:
            problems: dict[str, str] = {}
            for path, image in missing.items():
                try:
                    self._compute({path: image})
                except ValueError as error:
                    problems[path] = f"the processor refuses the image {path} ({error})"
            return problems

    def _compute(self, missing: dict[str, tuple[tuple[str, int, int], object]]) -> None:
        model = self._model
        pixels = self._image_processor(images=[image for _, image in missing.values()], return_tensors="pt")
        family = backbone.of_model(model)
        grids = pixels[family.grid_field].to(model.device)
        features = family.image_features(model, pixels["pixel_values"].to(model.device), grids)
        for (path, (key, _)), feature, grid in zip(missing.items(), features, grids, strict=True):
            self._cached[key] = self._current[path] = (
                feature.clone(),
                grid,
            )  # a clone, or one image keeps the batch alive
            self._bytes += feature.numel() * feature.element_size()
        while self._bytes > FEATURE_BYTES and len(self._cached) > 1:
            _, (oldest, _) = self._cached.popitem(last=False)
            self._bytes -= oldest.numel() * oldest.element_size()


def _memory_error(error: Exception, rows: int) -> UserError | None:
    """A UserError with advice if `error` means that memory ran out, on a GPU or on the CPU; otherwise None."""
    message = str(error)
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "not enough memory" not in message:
        return None
    user_error = UserError(
        f"out of memory while {rows} continuations were decoded together ({(message.splitlines() or ['MemoryError'])[0]}); lower "
        "the batch size (eval.batch_size in evaluation, engine.batch_size elsewhere), then rerun to resume"
    )
    user_error.__cause__ = error
    return user_error


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, size: int, family: Backbone | None = None) -> Vocabulary:
    """The vocabulary of a byte-level BPE tokenizer such as Qwen's: bytes, ends of turn, forbidden tokens.

    Raises:
        UserError: the tokenizer is of another kind.
    """
    printable = [
        *range(33, 127),
        *range(161, 173),
        *range(174, 256),
    ]  # GPT-2's byte alphabet: the other bytes follow from 256
    others = [byte for byte in range(256) if byte not in set(printable)]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    added = tokenizer.added_tokens_decoder
    pieces = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if i in added:
            pieces.append(b"" if added[i].special else added[i].content.encode())
            continue
        try:
            pieces.append(bytes(byte_of[c] for c in token))
        except KeyError:
            raise UserError(
                f"token {token!r} is not byte-level; the transformers engine needs a byte-level BPE tokenizer"
            ) from None
    pieces += [b""] * (size - len(pieces))
    forbidden = loading.forbidden_token_ids(tokenizer, size, family)
    return Vocabulary(tuple(pieces), frozenset({tokenizer.eos_token_id}), tuple(forbidden), tokenizer.pad_token_id)


def _row(request: Request, prompt: int, index: int) -> Row:
    uniforms = None
    if request.temperature > 0:
        key = None
        if request.seed is not None:
            text = f"{request.seed}\n{index}\n{request.text}\n{request.prefix}"
            key = list(np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint32))
        uniforms = torch.from_numpy(np.random.default_rng(key).random(request.max_new_tokens))
    stop = tuple(s.encode() for s in request.stop)
    return Row(prompt, request.max_new_tokens, request.temperature, request.top_p, stop, uniforms)


def _completion(row: Row) -> Completion:
    assert row.finish is not None
    return Completion(row.text.decode("utf-8", errors="replace"), row.finish, tuple(row.ids), tuple(row.logprobs))
