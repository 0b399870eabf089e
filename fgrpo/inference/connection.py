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
from fgrpo.inference.failures import CERTIFICATE, Failure
from fgrpo.inference.redaction import remember, remember_query
from fgrpo.inference.size_limit import stop_at_limit

OPENAI_KEY = "OPENAI_API_KEY"
OPENAI_URL = "https://api.openai.com/v1"


@dataclass(frozen=True)
class ServedModel:
    """The model that a client calls, as its messages name it.

    Attributes:
        role: "judge" in "the judge at http://...".
        model: the served model's name; `model_setting` is the setting that holds it.
        leave_out_setting: the setting that lists parameters to leave out.
        key_setting: the setting that holds `key_variable`.
        key_variable: environment variable of the API key, which goes to every endpoint of this model. None: `OPENAI_KEY`,
            for OpenAI's own endpoint alone.
    """

    role: str
    model: str
    model_setting: str
    leave_out_setting: str
    key_setting: str
    key_variable: str | None = None


def variable_for(url: str | None, named: str | None) -> str | None:
    """The environment variable whose key goes to an endpoint; None: it gets no key.

    Args:
        url: the endpoint's address; None is OpenAI's own.
        named: the variable that the configuration names for the model (`api_key_env`). It is meant for all of the model's
            endpoints. Without one, `OPENAI_KEY` goes to OpenAI's own endpoint, over https.
    """
    if named is not None:
        return named
    return OPENAI_KEY if _is_openai(url) else None


def _is_openai(url: str | None) -> bool:
    own, parts = urlsplit(OPENAI_URL), urlsplit(url or OPENAI_URL)
    return (parts.scheme, parts.hostname) == (own.scheme, own.hostname)


def key_in(variable: str | None) -> str:
    """The key that an environment variable holds, without surrounding blanks; "" without one."""
    return os.environ.get(variable, "").strip() if variable else ""


def key_of(served: ServedModel, url: str | None) -> str:
    """The API key for one endpoint of a model; "" if it gets none.

    Raises:
        UserError: there is no key for OpenAI's own endpoint, which is used where none is named; or no header can hold the key.
    """
    variable = variable_for(url, served.key_variable)
    key = key_in(variable)
    if not key and _is_openai(url):
        raise UserError(f"no API key for the {served.role} {served.model}: set the environment variable {variable}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"the key in {variable} has characters that no key has (a blank, a line break, a letter outside ASCII); "
            "set it again"
        )
    remember(key)
    return key


def stop_reason(served: ServedModel, name: str, url: str | None, failure: Failure) -> str:
    """Why no further request is sent to an endpoint, and what to do.

    Args:
        name, url: of the endpoint; the name is its address as messages show it.
        failure: what it answered (`fgrpo.inference.failures`).
    """
    place = f"the {served.role} at {name}"
    if failure.kind == CERTIFICATE:
        return (
            f"no secure connection to {place}: {failure.detail}; name the certificate authority in SSL_CERT_FILE, or "
            "write http:// if the server speaks it"
        )
    if failure.status in (401, 403):
        return f"{place} {_refused_key(served, url, failure.status)}"
    if failure.status == 402:
        return f"{place} requires a payment (HTTP 402: {failure.detail}); pay, then rerun to resume"
    if failure.status == 404:
        return failure.detail
    variable = variable_for(url, served.key_variable)
    quota = f"the quota of the key in {variable}" if variable else "the quota of requests without a key"
    return f"{quota} at {name} is used up; raise it, then rerun to resume"


def _refused_key(served: ServedModel, url: str | None, status: int) -> str:
    variable = variable_for(url, served.key_variable)
    if variable is None:
        return (
            f"requires a key (HTTP {status}), and none is meant for it ({OPENAI_KEY} goes to {urlsplit(OPENAI_URL).hostname} alone); name the "
            f"environment variable of its key in {served.key_setting}"
        )
    if not key_in(variable):
        return f"requires a key (HTTP {status}), and the environment variable {variable} is not set; set it"
    return f"refuses the key in {variable} (HTTP {status}); set a valid one"


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
            timeout=timeout_s, event_hooks={"response": [stop_at_limit]}, verify=certificates()
        ),
    )


@cache
def certificates() -> ssl.SSLContext:
    """The certificate authorities, read once: this takes longer than many a request."""
    return httpx.create_ssl_context()
