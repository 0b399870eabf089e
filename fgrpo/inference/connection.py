"""A connection to an endpoint: its key, its address, its certificates, and the limit on the size of its replies."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from functools import cache
from urllib.parse import parse_qsl, urlsplit

import httpx
import openai

from fgrpo.errors import UserError
from fgrpo.inference.redaction import remember, remember_query
from fgrpo.inference.size_limit import stop_at_limit


@dataclass(frozen=True)
class ServedModel:
    """The model that a client calls, as its messages name it.

    Attributes:
        role: "judge" in "the judge at http://...".
        model: the served model's name; `model_setting` is the setting that holds it.
        leave_out_setting: the setting that lists parameters to leave out.
        key_variable: environment variable of the API key.
    """

    role: str
    model: str
    model_setting: str
    leave_out_setting: str
    key_variable: str = "OPENAI_API_KEY"


def key_of(served: ServedModel, *, is_required: bool) -> str:
    """The API key. Raises UserError if it is missing and required, or no header can hold it."""
    key = os.environ.get(served.key_variable, "").strip()
    if not key and is_required:
        raise UserError(
            f"no API key for the {served.role} {served.model}: set the environment variable {served.key_variable}"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"the key in {served.key_variable} has characters that no key has (a blank, a line break, a letter outside ASCII); "
            "set it again"
        )
    remember(key)
    return key


def connect(url: str | None, key: str, timeout_s: float) -> openai.AsyncOpenAI:
    """A connection to an API root, which may have a query ("?api-version=…"); None means OpenAI's own.

    It has a transport of its own: the library's closes itself in whatever event loop runs when it is collected.
    """
    query = dict(parse_qsl(urlsplit(url).query)) if url else {}
    remember_query(query)
    return openai.AsyncOpenAI(
        api_key=key or "none",
        base_url=url.partition("?")[0] if url else None,
        default_query=query or None,
        default_headers={"Accept-Encoding": "identity"},  # so that the limit is one of what is read
        timeout=timeout_s,
        max_retries=0,
        http_client=openai.DefaultAsyncHttpxClient(
            timeout=timeout_s, event_hooks={"response": [stop_at_limit]}, verify=_certificates()
        ),
    )


@cache
def _certificates() -> ssl.SSLContext:
    """The certificate authorities, read once: this takes longer than many a request."""
    return httpx.create_ssl_context()
