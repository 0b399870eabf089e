"""Files of a data set's repository on the hub: listed with size and checksum, downloaded with resume, verified.

huggingface_hub does the transport. Its own `hf_hub_download` (checked in 1.33) downloads to a process-unique temporary file and
deletes it on failure, so an interrupted download of 5 GB starts from zero. Its `http_get` therefore writes to a file of ours,
which the next call continues. This module adds the selection of files, checksums of the complete file (SHA-256 of large files,
git's blob hash of small ones, as stated by the hub), and errors that name the repository. A correct size alone is not trusted.
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

ATTEMPTS = 6  # per file; each continues where the previous one stopped
MAX_WAIT_S = 60.0
SMALL_FILE = 50_000_000  # bytes; smaller files have no progress bar of their own
_TRANSIENT = (httpx.TransportError, HfHubHTTPError, OSError)
_PERMANENT = (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    EntryNotFoundError,
)  # includes gated repositories


@dataclass(frozen=True)
class Remote:
    """A file of a repository: `path`, `size` in bytes, `digest` as "sha256:…" or "git:…" ("" if the hub states none)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit, and its matching files."""

    repo: str
    commit: str
    files: tuple[Remote, ...]


class Unreachable(UserError):
    """The hub is unreachable: further requests would fail in the same way."""


def listing(repo: str, patterns: Sequence[str], revision: str, endpoint: str | None) -> Listing:
    """The files of data set `repo` whose path matches one of `patterns` (`*` also matches "/").

    Raises:
        Unreachable: there is no connection, or the hub is disabled (HF_HUB_OFFLINE).
        UserError: the repository or revision does not exist, access is denied, or no file matches.
    """
    try:
        info = HfApi(endpoint=endpoint).dataset_info(repo, revision=revision, files_metadata=True)
    except (OfflineModeIsEnabled, *_TRANSIENT) as error:
        raise _user_error(repo, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{repo}: the server's reply is not a hub's ({type(error).__name__}: {error}). Check the proxy and HF_ENDPOINT"
        ) from error
    siblings = info.siblings or []
    listed = tuple(
        _remote(item) for item in siblings if any(fnmatch.fnmatchcase(item.rfilename, pattern) for pattern in patterns)
    )
    if not listed:
        available = ", ".join(sorted(item.rfilename for item in siblings)[:8]) or "none"
        raise UserError(
            f"{repo} has no file {' or '.join(patterns)} (its files: {available}). Fix configs/datasets.yaml"
        )
    return Listing(repo, str(info.sha), listed)


def _remote(item: Any) -> Remote:
    lfs = getattr(item, "lfs", None)
    digest = f"sha256:{lfs.sha256}" if lfs is not None else f"git:{item.blob_id}" if item.blob_id else ""
    return Remote(item.rfilename, int((lfs.size if lfs is not None else item.size) or 0), digest)


def fetch(
    listed: Listing, remote: Remote, folder: Path, endpoint: str | None, wait: Callable[[float], None] = time.sleep
) -> Path:
    """Download `remote` to `folder` and verify it against the hub's checksum; resumes a partial file.

    Args:
        wait: called with the seconds before a retry.

    Raises:
        Unreachable: there is no connection after `ATTEMPTS` attempts; the partial file is kept.
        UserError: the hub refuses, or the checksum is wrong twice (the file is deleted).
    """
    path = folder / remote.path
    part = path.with_name(f"{path.name}.{remote.digest[-8:]}.part")
    for attempt in range(ATTEMPTS):
        try:
            _append(listed, remote, part, endpoint)
        except (*_TRANSIENT, *_PERMANENT) as error:
            if attempt + 1 == ATTEMPTS or not _is_transient(error):
                raise _user_error(listed.repo, error, remote.path) from error
            wait(min(MAX_WAIT_S, 2.0**attempt))
            continue
        if is_intact(part, remote):
            part.replace(path)
            return path
        part.unlink()
        if attempt:
            break
    raise UserError(
        f"{listed.repo}, {remote.path}: the downloaded file does not match the hub's checksum {remote.digest} and was "
        "deleted. Retry later, or use another mirror (HF_ENDPOINT)"
    )


def _append(listed: Listing, remote: Remote, part: Path, endpoint: str | None) -> None:
    """Append the missing bytes of a file to its partial file."""
    part.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(listed.repo, remote.path, repo_type="dataset", revision=listed.commit, endpoint=endpoint)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # byte ranges refer to the uncompressed file
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


def is_intact(path: Path, remote: Remote) -> bool:
    """Whether the file has the size and the checksum that the hub states."""
    if path.stat().st_size != remote.size:
        return False
    kind, _, expected = remote.digest.partition(":")
    return not kind or digest_of(path, kind) == expected


def digest_of(path: Path, kind: str) -> str:
    """Checksum of a file in hex: SHA-256 for "sha256", or git's SHA-1 blob hash for "git"."""
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as data:
        while chunk := data.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Bar(tqdm):
    """A progress bar for large files only."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["disable"] = (options.get("total") or 0) < SMALL_FILE
        super().__init__(*args, **options)


def _is_transient(error: Exception) -> bool:
    is_disk = isinstance(error, OSError) and error.errno is not None
    return not is_disk and not isinstance(error, _PERMANENT)


def _user_error(repo: str, error: Exception, path: str = "") -> UserError:
    target = f"{repo}, {path}" if path else repo
    if isinstance(error, OfflineModeIsEnabled):
        return Unreachable("HF_HUB_OFFLINE is set, so downloads are disabled. Unset it, then rerun")
    if isinstance(error, GatedRepoError):
        return UserError(f"{target}: access is gated. Request access on the hub, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{target}: no such revision on the hub")
    if isinstance(error, EntryNotFoundError):
        return UserError(f"{target}: the hub no longer has this file. Rerun to list the repository again")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(f"{target}: no such data set on the hub (moved, private, or a wrong HF_TOKEN)")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return UserError(f"{target}: the hub returned status {error.response.status_code}. Retry later")
    if isinstance(error, OSError) and error.errno is not None and error.filename:
        return UserError(f"{target}: cannot write {error.filename} ({error.strerror})")
    return Unreachable(f"no connection to the hub for {target} ({type(error).__name__}: {error})")
