"""Files that appear whole or not at all, and stay."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from unetcli.core.errors import UnetcliError

PARTIAL = ".partial"
"""Ending of everything unfinished. Others use it too, so that alone it makes no file ours."""
DRAFT = re.compile(r"(.+)\.[0-9a-f]{16}\.partial", re.DOTALL)
"""Names of our drafts; see :func:`draft_of`."""
ZARR_DRAFT = re.compile(r".+\.[0-9a-f]{32}\.partial", re.DOTALL)
"""Names of drafts that zarr-python writes to its stores."""


Place = Path | str
"""A path, or a URL as text."""


SIGNED_BYTES = 4096
"""Of a file: whose it is stands there."""
REFUSED = {errno.EACCES, errno.EPERM}
"""Lack of permission, to read or to write."""
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, *REFUSED}
"""Errors of writing that the next file would meet too."""
CONTINUES = "continues where it stopped"


@contextmanager
def telling_unwritable(output: Place, then: str = CONTINUES) -> Iterator[None]:
    """Within, a full or read-only disk, or a lack of permission, is a :class:`UnetcliError` that names the output.

    Of a file that must not even be read, an input more often than not, it says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        why = os.strerror(error.errno or 0)
        if error.errno in REFUSED and is_closed(error.filename):
            raise UnetcliError(f"{error.filename}: cannot be read: {why}") from error
        named = error.filename2 or error.filename  # of a rename, where to
        place = f" {named}" if named else ""
        raise UnetcliError(f"{output}: cannot write{place}: {why}; put right, the same command {then}") from error


def is_closed(file: object) -> bool:
    """Whether a file may not be read, or not be reached; one that is not there yet is no such."""
    if not isinstance(file, str | os.PathLike):
        return False
    try:
        os.stat(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return not os.access(file, os.R_OK)


def plain(place: str) -> str:
    """A place without ``file://``, which says nothing.

    >>> plain("file:///data/big.zarr"), plain("s3://bucket/big.zarr")
    ('/data/big.zarr', 's3://bucket/big.zarr')
    """
    return place.removeprefix("file://")


def place_of(text: Place) -> Place:
    """A path, unless it is a URL.

    >>> place_of("s3://bucket/big.zarr"), place_of("file:///data/big.zarr").name
    ('s3://bucket/big.zarr', 'big.zarr')
    """
    name = plain(str(text))
    return name.rstrip("/") if is_remote(name) else Path(name)


def stem(volume: str) -> str:
    """Name of the store or file without its ending, wherever in the store the array is.

    >>> stem("data/big.ome.zarr/raw/0"), stem("big.tif"), stem("s3://bucket/big.zarr")
    ('big', 'big', 'big')
    """
    parts = [part for part in volume.split("/") if part]
    store = next((part for part in parts if part.endswith((".zarr", ".tif", ".tiff"))), parts[-1])
    for ending in (".zarr", ".tif", ".tiff", ".ome"):
        store = store.removesuffix(ending)
    return store


def is_remote(place: Place) -> bool:
    """Whether a place is a URL, as in ``s3://bucket/big.zarr``, not a path."""
    return isinstance(place, str) and "://" in place


def absolute(place: str) -> str:
    """A path that other processes understand; a URL stays as it is."""
    return place if "://" in place else str(Path(place).absolute())


def parent_of(place: Place) -> Place:
    """What a file, folder or object lies in.

    >>> parent_of("s3://bucket/big.zarr/0"), parent_of("big.zarr/0").name
    ('s3://bucket/big.zarr', 'big.zarr')
    """
    return str(place).rstrip("/").rpartition("/")[0] if is_remote(place) else Path(place).parent


def draft_of(path: Path) -> Path:
    """A fresh name beside ``path`` for its unfinished self."""
    import secrets  # 10 ms, and --help needs none

    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft to write to; synced and renamed over ``path`` when the block ends well, deleted otherwise."""
    draft = draft_of(path)
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def publish(path: Path, text: str) -> bool:
    """Create ``path`` whole with that text; False, and nothing changed, where it exists already."""
    draft = draft_of(path)
    try:
        draft.write_text(text)
        sync(draft)
        os.link(draft, path)
    except (FileExistsError, FileNotFoundError):  # not found: swept by who holds the lock we want
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return True


def sync(path: Path) -> None:
    """Have the file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(files: Iterable[Path], root: Path) -> None:
    """Have files, then the folders that lead to them from ``root``, reach the disk.

    A file that does not exist needs nothing, but its folder may just have lost it.
    """
    folders: set[Path] = set()
    for file in files:
        with suppress(FileNotFoundError, NotADirectoryError):
            sync(file)
        folders.update(parent for parent in file.parents if parent == root or root in parent.parents)
    for folder in sorted(folders, reverse=True):  # the deeper first
        with suppress(FileNotFoundError):
            sync(folder)


def is_draft(name: str, *patterns: str) -> bool:
    """Whether ``name`` is that of a draft of a file whose name matches one of the patterns (of ``fnmatch``).

    >>> is_draft("plan.json.0123456789abcdef.partial", "plan.json"), is_draft("film.mkv.partial", "*")
    (True, False)
    """
    found = DRAFT.fullmatch(name)
    return found is not None and any(fnmatchcase(found[1], pattern) for pattern in patterns)


def drafts(folder: Path, *patterns: str) -> list[Path]:
    """Drafts directly in a folder, of files and folders whose names match one of the patterns."""
    try:
        return [path for path in folder.iterdir() if is_draft(path.name, *patterns)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_drafts_of(*paths: Path) -> None:
    """Delete drafts that killed writers of these files and folders left; only if no writer lives."""
    for path in paths:
        for draft in drafts(path.parent, glob.escape(path.name)):
            remove(draft)


def sweep(folder: Path) -> int:
    """Delete drafts that a killed writer left below or beside ``folder``; only if no writer lives.

    The folder has to be ours, like a store that has our marker: below it any draft of ours or of zarr-python goes.
    """
    partial = (path for path in folder.rglob(f"*{PARTIAL}") if path.is_file())
    below = [path for path in partial if DRAFT.fullmatch(path.name) or ZARR_DRAFT.fullmatch(path.name)]
    found = below + drafts(folder.parent, glob.escape(folder.name))
    for path in found:
        remove(path)
    return len(found)


def remove_aside(path: Path) -> None:
    """Delete a file or folder so that nobody ever sees half of it: renamed to a draft first."""
    aside = draft_of(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_replaceable(path: Path, option: str, example: str, signature: bytes) -> None:
    """Raise unless a file can be written there, in place of nothing or of one that began like ours does."""
    if path.is_dir() or not path.parent.is_dir():
        raise UnetcliError(f"{option} {path}: expected a file in a folder that exists, as in {example}")
    if path.exists():
        with path.open("rb") as file:
            head = file.read(SIGNED_BYTES)
        if signature not in head:
            raise UnetcliError(f"{option} {path}: exists, and evaluate did not write it; name another place")


def require_apart(output: Place, inputs: Iterable[Place]) -> None:
    """Refuse an output that is equal to, inside or around an input."""
    for place in inputs:
        if overlaps(output, place):
            raise UnetcliError(f"{output}: equal to, inside or around the input {place}; --output names another place")


def overlaps(one: Place, other: Place) -> bool:
    """Whether two places are the same, or one lies inside the other, links resolved.

    >>> overlaps("s3://bucket/big.zarr", "s3://bucket/big.zarr/0"), overlaps("s3://bucket/big.zarr", "big.zarr")
    (True, False)
    """
    if is_remote(one) != is_remote(other):
        return False
    a, b = (PurePosixPath(place) if is_remote(place) else Path(place).resolve() for place in (one, other))
    return a == b or a in b.parents or b in a.parents
