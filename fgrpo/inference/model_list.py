"""The list of models that an endpoint serves: whether it can be reached, whether the model is there, and what a 404 means."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import openai

from fgrpo.errors import UserError
from fgrpo.inference.clock import Clock
from fgrpo.inference.connection import ServedModel, stop_reason
from fgrpo.inference.endpoint import Endpoint, Limits
from fgrpo.inference.failures import ERRORS, Failure, classify
from fgrpo.inference.redaction import redact
from fgrpo.inference.replies import NO_COMPLETION, BadReply, model_owners
from fgrpo.inference.size_limit import allow

_LIST_PATIENCE_S = 10.0  # seconds for which a list of models that cannot be read is read again
_NO_LIST = (400, 404, 405, 406, 410, 415, 422, 501)  # statuses of servers without one
_NAMED = 8  # models that a message lists
_CHECKS = 4  # connections that are tried before an address counts as wrong


class ModelList:
    """Reads the lists of models of the endpoints that should serve one model."""

    def __init__(self, served: ServedModel, limits: Limits, clock: Clock) -> None:
        self._served, self._limits, self._clock = served, limits, clock

    async def owners(self, endpoint: Endpoint) -> dict[str, str]:
        """Owner of each model that the endpoint lists. Raises one of `ERRORS`; `BadReply` if it lists none."""
        allow(0)
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return model_owners(await endpoint.connection.get("/models", cast_to=bytes))
        except openai.APIStatusError as error:
            if error.status_code in _NO_LIST:
                raise BadReply(NO_COMPLETION, f"no list of models: HTTP {error.status_code}") from None
            raise

    async def check(self, endpoint: Endpoint) -> None:
        """List the models of the endpoint, once. A list that stays unreadable is done without.

        Raises:
            UserError: the model is not among them.
            ERRORS: the list cannot be read yet.
        """
        if endpoint.served is not None:
            return
        async with endpoint.model_check:
            if endpoint.served is not None:
                return
            now = self._clock.now()
            try:
                owners = await self.owners(endpoint)
            except BadReply:
                endpoint.unlisted_since = now if endpoint.unlisted_since is None else endpoint.unlisted_since
                if now - endpoint.unlisted_since < _LIST_PATIENCE_S:
                    raise
                owners = {}
            if owners and self._served.model not in owners:
                raise UserError(
                    f"{endpoint.name} does not serve {self._served.model!r} but "
                    f"{', '.join(sorted(owners)[:_NAMED])}; set {self._served.model_setting} to one of these, or serve it"
                )
            endpoint.is_vllm = "vllm" in owners.values()
            endpoint.served, endpoint.has_answered = tuple(sorted(owners)), True

    async def not_found(self, endpoint: Endpoint, failure: Failure) -> Failure:
        """What a 404 means: hopeless if the endpoint lists other models, else a gateway without its server, or a wrong address."""
        served = self._served
        try:
            names = sorted(await self.owners(endpoint))
        except ERRORS:
            names = []
        if not names:
            hint = "its list of models cannot be read either: is the address right?"
            return replace(failure, detail=f"{failure.detail}; {hint}")
        if served.model in names:
            return replace(failure, detail=f"{failure.detail}; its list of models has {served.model!r}")
        detail = (
            f"the {served.role} at {endpoint.name} does not serve {served.model!r}; it serves: "
            f"{', '.join(names[:_NAMED])} (HTTP 404); set {served.model_setting} to one of these, or serve it"
        )
        return replace(failure, action="stop", detail=detail, is_alive=True)

    async def reached(self, endpoint: Endpoint) -> frozenset[str] | Failure:
        """The models that an endpoint lists, none if its list cannot be read; the failure if there is no connection.

        Raises:
            UserError: the endpoint refuses the key.
        """
        for attempt in range(_CHECKS):
            if attempt:
                await self._clock.sleep(min(attempt * self._limits.first_wait_s, self._limits.longest_wait_s))
            try:
                return frozenset(await self.owners(endpoint))
            except ERRORS as error:
                failure = classify(error)
            failure = replace(failure, detail=redact(failure.detail))
            if failure.action == "stop":
                raise UserError(stop_reason(self._served, endpoint.name, endpoint.url, failure))
            if not failure.is_unreachable:
                return frozenset()
        return failure
