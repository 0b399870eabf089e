"""Unpacks the archives of a data set in place: zip and tar files, and tar files split into parts.

A kill is harmless: a member that already exists with its full size is skipped, and archives are deleted only after all members
are unpacked. Members that would be written outside the folder are refused.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from fgrpo.errors import UserError

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz")


def is_archive(name: str) -> bool:
    """Whether a file name has an archive's extension."""
    return name.lower().endswith((*ZIP, *TAR))


def unpack(pieces: Sequence[Path], into: Path) -> int:
    """Unpack one archive below `into` and return its number of files.

    Args:
        pieces: the parts of the archive, in order.

    Raises:
        UserError: the archive is damaged, or a member points outside the folder.
    """
    name = pieces[0].name
    try:
        members = _zip(pieces[0], into) if name.lower().endswith(ZIP) else _tar(pieces, into)
        return sum(1 for _ in members)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the archive
        raise UserError(
            f"{pieces[0]} is a damaged archive ({error}). Delete it, then rerun to download it again"
        ) from error


def _zip(path: Path, into: Path) -> Iterator[Path]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as data:
                    yield _place(into, member.filename, member.file_size, data, path)


def _tar(pieces: Sequence[Path], into: Path) -> Iterator[Path]:
    with _Joined(pieces) as joined, tarfile.open(fileobj=io.BufferedReader(joined, 1 << 20), mode="r|*") as archive:
        n_skipped = 0
        for member in archive:
            data = archive.extractfile(member) if member.isfile() else None  # links and devices are skipped
            n_skipped += data is None and not member.isdir()
            if data is not None:
                yield _place(into, member.name, member.size, data, pieces[0])
        if n_skipped:
            print(f"{pieces[0]}: {n_skipped:,} members are links or devices and were skipped")


def _place(into: Path, name: str, size: int, data: IO[bytes], archive: Path) -> Path:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{archive}: member {name!r} points outside the folder; the archive is not unpacked")
    path = into / parts
    if path.is_file() and path.stat().st_size == size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as out:
        while chunk := data.read(1 << 20):
            out.write(chunk)
    partial.replace(path)
    return path


class _Joined(io.RawIOBase):
    """The bytes of several files, concatenated."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._remaining = list(paths)
        self._current: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._current is None:
                if not self._remaining:
                    return 0
                self._current = self._remaining.pop(0).open("rb")
            data = self._current.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._current.close()
            self._current = None

    def close(self) -> None:
        if self._current is not None:
            self._current.close()
        super().close()
