"""Archives of a data set: zip and tar files, and a tar file that was cut into pieces, unpacked where they lie.

A kill is harmless: a member that is there already with its size is left alone, and the archives go only when all of them is
unpacked. Members that would land outside of the folder are refused.
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
    """Whether a file is one by its name."""
    return name.lower().endswith((*ZIP, *TAR))


def unpack(pieces: Sequence[Path], into: Path) -> int:
    """Unpack one archive (its pieces in order) below `into`; returns how many files it holds.

    Raises:
        UserError: it is damaged, or a member leads out of the folder.
    """
    name = pieces[0].name
    try:
        members = _zip(pieces[0], into) if name.lower().endswith(ZIP) else _tar(pieces, into)
        return sum(1 for _ in members)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own words
        raise UserError(f"{pieces[0]} is a damaged archive ({error}); delete it and run again") from error


def _zip(path: Path, into: Path) -> Iterator[Path]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as data:
                    yield _place(into, member.filename, member.file_size, data, path)


def _tar(pieces: Sequence[Path], into: Path) -> Iterator[Path]:
    with _Joined(pieces) as joined, tarfile.open(fileobj=io.BufferedReader(joined, 1 << 20), mode="r|*") as archive:
        left_out = 0
        for member in archive:
            data = archive.extractfile(member) if member.isfile() else None  # no links, no devices
            left_out += data is None and not member.isdir()
            if data is not None:
                yield _place(into, member.name, member.size, data, pieces[0])
        if left_out:
            print(f"{pieces[0]}: {left_out:,} members are links or devices and were not unpacked")


def _place(into: Path, name: str, size: int, data: IO[bytes], archive: Path) -> Path:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{archive} holds {name!r}, which leads out of its folder; it is not unpacked")
    path = into / parts
    if path.is_file() and path.stat().st_size == size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as out:
        while chunk := data.read(1 << 20):
            out.write(chunk)
    aside.replace(path)
    return path


class _Joined(io.RawIOBase):
    """The bytes of several files one after the other."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._waiting = list(paths)
        self._now: IO[bytes] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._now is None:
                if not self._waiting:
                    return 0
                self._now = self._waiting.pop(0).open("rb")
            data = self._now.read(len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            self._now.close()
            self._now = None

    def close(self) -> None:
        if self._now is not None:
            self._now.close()
        super().close()
