"""The client of a judge model: from calls to verdicts, with a cache. A call without a usable reply is a failed verdict.

Equal calls in flight share one request. Usable replies are stored on disk under a hash of the call's content. No call is sent
without its images. Works under any number of event loops, one after the other or in several threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from fgrpo import schema
from fgrpo.errors import UserError
from fgrpo.files import json_line
from fgrpo.images import file_url, hashed_url
from fgrpo.schema import WIDENED
from fgrpo.types import Verdict
from judges.base import CACHE_OF_RUN, Meter, failed_verdict
from judges.cache import Cache
from judges.client import LONGEST_WAIT_S, CutOff, Transport, Unanswered
from judges.requests import Call, Unusable

Verdicts = tuple[Verdict, ...]
UNUSABLE, NO_IMAGE = "unusable reply", "an image cannot be read"  # kinds of failures besides those of the transport
# how vLLM and OpenAI refuse a limit of tokens that their context has no room for
_NO_ROOM = re.compile(
    r"context[ _]length|max_(?:completion_)?tokens\W.{0,80}too large|at most \d+ completion tokens", re.I
)
CUT_SHORT = "cut off"  # kind of a fault: the call is sent again with a larger limit
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5  # between two lookups of a reply that another process requests


class CachedClient:
    """Calls the model that `config` names, over `transport`.

    Raises:
        UserError: the cache file is unusable.
    """

    def __init__(self, config: schema.Judge, meter: Meter, transport: Transport) -> None:
        self._config, self.meter, self._transport = config, meter, transport
        self._cache = Cache(config.cache) if config.cache and config.cache != CACHE_OF_RUN else None
        self._in_flight: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[Verdicts]]]
        self._in_flight = WeakKeyDictionary()
        self._fatal: str | None = None
        # as long as a call may take with all its attempts; a claim of a dead process ends earlier
        longest = [config.attempts * (config.seconds(widened) + LONGEST_WAIT_S) for widened in range(WIDENED + 1)]
        self._claim_s = sum(longest) + config.patience_s
        model: list[object] = [config.model, config.reasoning_effort]
        # `engine` may name a revision or a quantization, which is another model; a left out temperature samples
        model += [config.engine] if config.engine else []
        model += [{"leave_out": sorted(config.leave_out)}] if config.leave_out else []
        self._key_prefix = json_line(model)

    async def ask_all(self, calls: Sequence[Call]) -> list[Verdicts]:
        """The verdicts of each call, in order. Raises UserError for what holds for every call."""
        results = await asyncio.gather(*(self.ask(call) for call in calls), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if not isinstance(result, BaseException)]

    async def ask(self, call: Call) -> Verdicts:
        """The verdicts of one call: from the cache, from an equal call in flight, or from the model."""
        self.meter.count("calls")
        if self._fatal is not None:
            raise UserError(self._fatal)
        try:
            images = await asyncio.to_thread(self._read_images, call.images) if call.images else []
        except UserError as error:
            return self._failure(call, NO_IMAGE, str(error))
        key = self._key_of(call, [digest for _, digest in images])
        if self._cache is not None and (reply := self._cache.get(key)) is not None:
            self.meter.count("cached")
            return self._verdicts(call, reply)
        in_flight = self._in_flight.setdefault(asyncio.get_running_loop(), {})
        task = in_flight.get(key)
        if task is None:
            task = in_flight[key] = asyncio.create_task(self._ask_model(call, [url for url, _ in images], key))
            task.add_done_callback(lambda _: in_flight.pop(key, None))
        else:
            self.meter.count("shared")
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Close this loop's connections and the cache."""
        await self._transport.close()
        if self._cache is not None:
            self._cache.close()

    def _read_images(self, paths: Sequence[str]) -> list[tuple[str, str]]:
        """(URL to send, sha256 of the image as a data URL) of each."""
        data_urls = [hashed_url(path) for path in paths]
        if self._config.images == "base64":
            return data_urls
        return [(file_url(path) or url, digest) for path, (url, digest) in zip(paths, data_urls, strict=True)]

    def _key_of(self, call: Call, image_digests: Sequence[str]) -> str:
        system = [call.system] if call.system else []
        content = json_line([call.text, call.schema, call.choices, list(image_digests), *system])
        return hashlib.sha256((self._key_prefix + content).encode("utf-8", "backslashreplace")).hexdigest()

    async def _ask_model(self, call: Call, urls: Sequence[str], key: str) -> Verdicts:
        if self._cache is None:
            return (await self._requested(call, urls))[0]
        if (cached := await self._claim(self._cache, key)) is not None:
            self.meter.count("cached")
            return self._verdicts(call, cached)
        usable: str | None = None
        try:
            verdicts, usable = await self._requested(call, urls)
            return verdicts
        finally:
            if usable is not None:
                self._cache.put(key, call.role, self._config.model, usable)
            else:
                self._cache.release(key)

    async def _requested(self, call: Call, urls: Sequence[str]) -> tuple[Verdicts, str | None]:
        """The model's verdicts with their reply (None: not usable).

        After a reply that was cut off the model is asked again with a larger limit (`schema.Judge.room`), after another unusable
        one only if it samples. A server that refuses the larger limit for its context leaves the reply cut off.
        """
        failure = UNUSABLE, ""
        attempts, widened = self._config.attempts if self._config.samples else 1, 0
        while True:
            try:
                reply = await self._transport.ask(call, urls, widened)
                return self._read(call, reply), reply
            except CutOff as error:
                failure = UNUSABLE, str(error)
                if widened == WIDENED:
                    break
                widened += 1
                fault = CUT_SHORT
            except Unusable as error:
                failure, fault = (UNUSABLE, str(error)), UNUSABLE
                attempts -= 1
                if attempts <= 0:
                    break
            except Unanswered as error:
                detail = str(error).removeprefix(f"{error.kind}: ")
                if widened and error.kind == "HTTP 400" and _NO_ROOM.search(detail):
                    failure = UNUSABLE, f"{failure[1]}, and the server has no room for a longer one ({detail})"
                    break
                failure = (
                    error.kind,
                    f"{detail} (with a larger limit, since it was {failure[1]})" if widened else detail,
                )
                break
            except UserError as error:
                self._fatal = str(error)  # later calls fail at once
                raise
            self.meter.fault(fault)
            self.meter.wait(0.0)
        return self._failure(call, *failure), None

    async def _claim(self, cache: Cache, key: str) -> str | None:
        """Wait until no other process requests `key`. Returns its reply, or None once the claim is ours."""
        pause = _SHORTEST_PAUSE_S
        while not cache.claim(key, self._claim_s):
            await asyncio.sleep(pause)
            if (reply := cache.get(key)) is not None:
                return reply
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        if (reply := cache.get(key)) is not None:  # it arrived between our lookup and our claim
            cache.release(key)
        return reply

    def _verdicts(self, call: Call, reply: str) -> Verdicts:
        """The verdicts in a stored reply."""
        try:
            return self._read(call, reply)
        except Unusable as error:
            return self._failure(call, UNUSABLE, str(error))

    def _read(self, call: Call, reply: str) -> Verdicts:
        labels = call.parse(reply)
        self.meter.read(getattr(labels, "forms", ()))
        return tuple(Verdict(label, reason, False, self._config.model, call.prompt_hash) for label, reason in labels)

    def _failure(self, call: Call, kind: str, detail: str) -> Verdicts:
        self.meter.fail(kind)
        return (failed_verdict(f"{kind}: {detail[:300]}", self._config.model, call.prompt_hash),) * call.size
