"""One GET request with a limit on its whole time and size: what a check learns of a server before any stage calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

MOST_BYTES = 1 << 20
REDIRECTS = 5


@dataclass(frozen=True)
class Reply:
    """A complete HTTP reply."""

    status: int
    body: bytes


def get(url: str, limit_s: float, headers: Mapping[str, str] | None = None) -> Reply:
    """The reply to GET `url`. Redirects are followed without `headers`, which may hold a key.

    Args:
        limit_s: seconds for everything together: a server may send a byte at a time.

    Raises:
        OSError: no complete HTTP reply in that time, one of over `MOST_BYTES`, or no http address.
    """
    import httpx

    try:
        return asyncio.run(_get(url, limit_s, dict(headers or {})))
    except TimeoutError:
        raise OSError(f"no complete reply within {limit_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # the last: a key that no header can hold
        raise OSError(str(error) or type(error).__name__) from error


async def _get(url: str, limit_s: float, headers: dict[str, str]) -> Reply:
    import httpx

    from fgrpo.inference.connection import certificates

    async with asyncio.timeout(limit_s), httpx.AsyncClient(timeout=limit_s, verify=certificates()) as client:
        plain = {"Accept-Encoding": "identity"}  # so that the limit is one of what is read
        request = client.build_request("GET", url, headers={**headers, **plain})
        for _ in range(REDIRECTS):
            reply = await client.send(request, stream=True)
            if reply.next_request is None:
                break
            request = client.build_request("GET", reply.next_request.url, headers=plain)
            await reply.aclose()
        else:
            raise OSError(f"{REDIRECTS} redirects one after the other")
        body = b""
        async for part in reply.aiter_bytes():
            body += part
            if len(body) > MOST_BYTES:
                raise OSError(f"a reply of more than {MOST_BYTES:,} bytes")
        await reply.aclose()
        return Reply(reply.status_code, body)
