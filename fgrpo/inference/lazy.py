"""An engine that is built at its first request, so that a stage with nothing to sample loads no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fgrpo.inference.base import Completion, Request, Sampler


class LazySampler:
    """A `Sampler` that calls `build` once, at the first request."""

    def __init__(self, build: Callable[[], Sampler]) -> None:
        self._build = build
        self._engine: Sampler | None = None

    async def sample(self, request: Request) -> Sequence[Completion]:
        """`Sampler.sample` of the engine. Raises what `build` raises, too."""
        if self._engine is None:
            self._engine = self._build()
        return await self._engine.sample(request)

    async def close(self) -> None:
        """Close the engine, if there is one."""
        if self._engine is not None:
            await self._engine.close()
