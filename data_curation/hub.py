"""What a data set's repository on the hub holds, and its files: listed with size and checksum, fetched, checked.

huggingface_hub does the transport. Its own `hf_hub_download` throws half a file away when it fails or is killed (since
1.3x); so its `http_get` writes into a file of ours, which the next call goes on with. What else is here: which files are
wanted, their checksums after the last byte (SHA-256 of large files, git's blob hash of small ones, both as the hub states
them), and every failure in words that name the repository. Nothing is trusted because its size is right.
"""

from __future__ import annotations

import fnmatch
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

from fgrpo.errors import UserError

ATTEMPTS = 6  # of one file; each goes on where the one before broke off
LONGEST_WAIT_S = 60.0
SMALL = 50_000_000  # bytes: smaller files get no bar of their own
_PASSING = (httpx.TransportError, HfHubHTTPError, OSError)
_FINAL = (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    EntryNotFoundError,
)  # gated ones included


@dataclass(frozen=True)
class Remote:
    """A file of a repository: `path` in it, `size` in bytes, `digest` as "sha256:…" or "git:…" ("" if the hub gives none)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, and those of its files that were asked for."""

    repo: str
    commit: str
    files: tuple[Remote, ...]


class Unreachable(UserError):
    """No connection to the hub at all: what follows would fail in the same way."""


def listing(repo: str, patterns: Sequence[str], revision: str, endpoint: str | None) -> Listing:
    """The files of data set `repo` whose path fits one of `patterns` (`*` also matches "/").

    Raises:
        Unreachable: no connection, or the hub is switched off (HF_HUB_OFFLINE).
        UserError: no such repository or revision, no permission, or none of its files fits.
    """
    try:
        info = HfApi(endpoint=endpoint).dataset_info(repo, revision=revision, files_metadata=True)
    except (OfflineModeIsEnabled, *_PASSING) as error:
        raise _explained(repo, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{repo}: what answers is no hub ({type(error).__name__}: {error}); is there a proxy, or a wrong HF_ENDPOINT?"
        ) from error
    siblings = info.siblings or []
    found = tuple(
        _remote(item) for item in siblings if any(fnmatch.fnmatchcase(item.rfilename, pattern) for pattern in patterns)
    )
    if not found:
        has = ", ".join(sorted(item.rfilename for item in siblings)[:8]) or "nothing"
        raise UserError(f"{repo} holds no file {' or '.join(patterns)} (it has {has}); mend configs/datasets.yaml")
    return Listing(repo, str(info.sha), found)


def _remote(item: Any) -> Remote:
    lfs = getattr(item, "lfs", None)
    digest = f"sha256:{lfs.sha256}" if lfs is not None else f"git:{item.blob_id}" if item.blob_id else ""
    return Remote(item.rfilename, int((lfs.size if lfs is not None else item.size) or 0), digest)


def fetch(
    found: Listing, remote: Remote, folder: Path, endpoint: str | None, wait: Callable[[float], None] = time.sleep
) -> Path:
    """`remote` below `folder`, complete and with the checksum that the hub states; goes on with half a file.

    Raises:
        Unreachable: the connection is gone and does not come back in `ATTEMPTS` attempts; what has arrived is kept.
        UserError: the hub refuses, or the checksum is wrong twice (the file is deleted).
    """
    path = folder / remote.path
    part = path.with_name(f"{path.name}.{remote.digest[-8:]}.part")
    for attempt in range(ATTEMPTS):
        try:
            _append(found, remote, part, endpoint)
        except (*_PASSING, *_FINAL) as error:
            if attempt + 1 == ATTEMPTS or not _may_pass(error):
                raise _explained(found.repo, error, remote.path) from error
            wait(min(LONGEST_WAIT_S, 2.0**attempt))
            continue
        if fits(part, remote):
            part.replace(path)
            return path
        part.unlink()
        if attempt:
            break
    raise UserError(
        f"{found.repo}, {remote.path}: what arrives has not the checksum {remote.digest} that the hub states; it was "
        "deleted; try again later, or another mirror (HF_ENDPOINT)"
    )


def _append(found: Listing, remote: Remote, part: Path, endpoint: str | None) -> None:
    """Write what is missing of a file behind what is there."""
    part.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(found.repo, remote.path, repo_type="dataset", revision=found.commit, endpoint=endpoint)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # ranges are those of the file itself
    with part.open("ab") as out:
        if out.tell() > remote.size:
            out.truncate(0)
        http_get(
            url,
            out,
            resume_size=out.tell(),
            headers=headers,
            expected_size=remote.size,
            displayed_filename=remote.path,
            tqdm_class=_Bar,
        )


def fits(path: Path, remote: Remote) -> bool:
    """Whether the file has the size and the checksum that the hub states."""
    if path.stat().st_size != remote.size:
        return False
    kind, _, expected = remote.digest.partition(":")
    return not kind or digest_of(path, kind) == expected


def digest_of(path: Path, kind: str) -> str:
    """SHA-256 of a file ("sha256"), or the SHA-1 that git gives its content ("git")."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as data:
        while chunk := data.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Bar(tqdm):
    """A bar for large files only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["disable"] = (options.get("total") or 0) < SMALL
        super().__init__(*args, **options)


def _may_pass(error: Exception) -> bool:
    is_disk = isinstance(error, OSError) and error.errno is not None
    return not is_disk and not isinstance(error, _FINAL)


def _explained(repo: str, error: Exception, path: str = "") -> UserError:
    what = f"{repo}, {path}" if path else repo
    if isinstance(error, OfflineModeIsEnabled):
        return Unreachable("HF_HUB_OFFLINE is set, so nothing can be downloaded; unset it")
    if isinstance(error, GatedRepoError):
        return UserError(f"{what}: access has to be asked for on the hub first; then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{what}: no such revision on the hub")
    if isinstance(error, EntryNotFoundError):
        return UserError(f"{what}: the hub no longer has this file; run again to list the repository anew")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{what}: no such data set on the hub (moved, private, or a wrong HF_TOKEN)")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return UserError(f"{what}: the hub answers {error.response.status_code}; try again later")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return UserError(f"{what}: {error.filename} cannot be written ({error.strerror})")
    return Unreachable(f"no connection to the hub for {what} ({type(error).__name__}: {error})")
