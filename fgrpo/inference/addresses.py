"""Addresses of servers: the address files that `fgrpo.inference.serve` writes, and how a stage reads its list of endpoints.

An endpoint is an http address, or the path (or pattern) of address files such as `runs/paper-7b/serve/*.json`. Of the files
that match a pattern, those of servers of the required model count, so one pattern serves every role. A stage reads them when it
starts: a server that moved to another port needs no change of the configuration.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fgrpo.errors import UserError
from fgrpo.runs import write_json
from fgrpo.schema import Config

SUFFIX = ".json"
HTTP = ("http://", "https://")
_USER = re.compile(r"//[^/@]*@")
_METHOD = re.compile(r"/(chat/completions|completions|models)$")


@dataclass(frozen=True)
class Address:
    """One running server: its role, the served name of its model, its /v1 address, its host and process id."""

    role: str
    model: str
    url: str
    host: str
    pid: int


def write(path: Path, address: Address) -> None:
    """Write an address file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(address))


def read(path: Path) -> Address:
    """The address in a file.

    Raises:
        UserError: the file is missing, or is no address file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Address(**{field.name: content[field.name] for field in fields(Address)})
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: its server has stopped; start it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no address file ({error}); `make serve-…` writes them; delete this one") from error


def is_pattern(entry: str) -> bool:
    """Whether an endpoint names address files."""
    return entry.endswith(SUFFIX) and not entry.startswith(HTTP)


def matching(entry: str) -> Iterator[Address]:
    """The addresses in the files that match `entry`, sorted by file name. Raises UserError as `read` does."""
    for name in sorted(glob.glob(entry)):
        yield read(Path(name))


def resolve(entries: Sequence[str], model: str, key: str = "the endpoints") -> tuple[str, ...]:
    """The http addresses of `entries` that serve `model`, without duplicates; an empty list stays empty.

    Args:
        entries: http addresses, and paths or patterns of address files.
        model: the served model's name; address files of other models are skipped.
        key: the configuration key, for the error.

    Raises:
        UserError: no address file is one of a server of `model`, and no http address is there (says what is served).
    """
    urls: list[str] = []
    other_models: list[str] = []
    for entry in entries:
        if not is_pattern(entry):
            urls.append(entry)
            continue
        for address in matching(entry):
            if address.model == model:
                urls.append(address.url)
            else:
                other_models.append(address.model)
    if entries and not urls:
        state = (
            f"servers are up for {', '.join(sorted(set(other_models)))} only"
            if other_models
            else "no server has written one"
        )
        raise UserError(
            f"{key} {', '.join(entries)}: no address of a server of {model} ({state}); start one "
            "(`make serve-teacher`, `serve-judge`, `serve-extractor`, `serve-base`, or `serve-model MODEL=…`), "
            'or give addresses such as ["http://host:8000/v1"]'
        )
    return tuple(dict.fromkeys(urls))


def shown(endpoint: str) -> str:
    """An address as messages and records name it: without query, user and password, which may hold a key."""
    return _USER.sub("//", endpoint.partition("?")[0].partition("#")[0])


def without_keys(config: Config) -> dict[str, Any]:
    """A configuration as plain JSON whose addresses hold no key, for records that leave this machine."""

    def shown_in(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: shown_in(inside, name) for name, inside in value.items()}
        return [shown(str(entry)) for entry in value] if key == "endpoints" and value else value

    plain: dict[str, Any] = shown_in(config.model_dump(mode="json"))
    return plain


def normal_url(endpoint: str) -> str:
    """The address of an endpoint's API root; "/v1" is added where there is no path.

    A query stays ("?api-version=…"). The full path of a method ("/v1/chat/completions") is cut back to the root.

    Raises:
        UserError: not an http address, or one with a password, which would appear in logs and manifests.
    """
    try:
        parts = urlsplit(endpoint.strip())
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        raise UserError(f"{shown(endpoint)!r} is not an endpoint; write it as http://host:port/v1") from None
    if "@" in parts.netloc:
        raise UserError(
            f"the endpoint at {parts.hostname} has a user or password in its address; remove it and put the key into "
            "the environment variable that api_key_env names"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
        raise UserError(f"{shown(endpoint)!r} is not an endpoint; write it as http://host:port/v1")
    path, is_method = _METHOD.subn("", parts.path.rstrip("/"))
    return urlunsplit((parts.scheme, parts.netloc, path or ("" if is_method else "/v1"), parts.query, ""))
