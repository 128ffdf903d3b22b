"""Archives read in place, as if they were folders: nothing is unpacked, and a member is read when it is asked for.

Members are looked up by their full names, so a name that would leave the folder it is unpacked to leads nowhere.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from mrcnn_tf.data.coco_records import DataError

MAX_MEMBER_BYTES = 2**31
"""Of a member when unpacked; the largest there is, LVIS' JSON, has half of it. More is taken for a bomb."""


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A file or folder in an archive, there or not.

    Attributes:
        archive: path of a .zip, or of a .tar that is not compressed.
        name: full name within it, "" for all of it.
    """

    archive: Path
    name: str = ""

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}" if self.name else str(self.archive)

    def __truediv__(self, name: str) -> ArchiveMember:
        return ArchiveMember(self.archive, str(PurePosixPath(self.name, name)))

    def is_file(self) -> bool:
        """Whether the archive has such a file."""
        return self.name in _contents(self.archive).files

    def is_dir(self) -> bool:
        """Whether the archive has files below this name."""
        return not self.name or self.name in _contents(self.archive).folders

    def open(self, mode: Literal["rb"] = "rb") -> IO[bytes]:
        """The content, read whole; see `read_bytes` for the errors."""
        return io.BytesIO(self.read_bytes())

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it is damaged, or larger than any file of a data set is.
            DataError: the archive is damaged.
        """
        contents = _contents(self.archive)
        if self.name not in contents.files:
            raise FileNotFoundError(2, "the archive has no such file", str(self))
        return contents.read(self.name)

    def names(self) -> Iterator[str]:
        """The names of all files below this one, from here on."""
        start = f"{self.name}/" if self.name else ""
        return (name.removeprefix(start) for name in sorted(_contents(self.archive).files) if name.startswith(start))


def locate(source: Path, name: str, *archives: str) -> Path | ArchiveMember:
    """A file or folder of a data set, unpacked or in an archive, whichever is there.

    Args:
        source: the folder that the user has filled.
        name: of the file or folder, in `source` and within the archives.
        archives: names of files in `source` that have it.

    Raises:
        FileNotFoundError: neither is there; says what is looked for.
        DataError: the archive is damaged or lacks it.
    """
    if (source / name).exists():
        return source / name
    found = next((source / archive for archive in archives if (source / archive).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{source}: expected {name} there, or {' or '.join(archives)}")
    member = ArchiveMember(found, name)
    if not (member.is_dir() or member.is_file()):
        raise DataError(f"{found}: the archive has no {name}", "broken file")
    return member


@dataclass(frozen=True)
class _Contents:
    files: frozenset[str]
    read: Callable[[str], bytes]
    folders: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        parents = {str(parent) for name in self.files for parent in PurePosixPath(name).parents}
        object.__setattr__(self, "folders", frozenset(parents))


@lru_cache(maxsize=8)
def _contents(archive: Path) -> _Contents:
    """What is in an archive; listed once in a process.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is damaged, or of a kind that has no member readable by itself.
    """
    try:
        return _zip_contents(archive) if zipfile.is_zipfile(archive) else _tar_contents(archive)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError) as error:
        hint = "incomplete or damaged; only .zip and .tar that is not compressed can be read in place, unpack others"
        raise DataError(f"{archive}: not a readable archive: {error} ({hint})", "broken file") from error


def _zip_contents(archive: Path) -> _Contents:
    opened = zipfile.ZipFile(archive)

    def read(name: str) -> bytes:
        _check_size(archive, name, opened.getinfo(name).file_size)
        try:
            return opened.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(f"damaged in the archive: {error}") from error

    return _Contents(frozenset(info.filename for info in opened.infolist() if not info.is_dir()), read)


def _tar_contents(archive: Path) -> _Contents:
    with tarfile.open(archive, "r:") as opened:
        members = {m.name.removeprefix("./"): (m.offset_data, m.size) for m in opened if m.isreg()}
    length = archive.stat().st_size
    cut = next((name for name, (start, size) in members.items() if start + size > length), None)
    if cut is not None:
        raise ValueError(f"it ends within {cut}")

    def read(name: str) -> bytes:
        start, size = members[name]
        _check_size(archive, name, size)
        with archive.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return _Contents(frozenset(members), read)


def _check_size(archive: Path, name: str, size: int) -> None:
    if size > MAX_MEMBER_BYTES:
        raise OSError(f"{archive}: {name} would have {size} bytes unpacked, more than any file of a data set has")
