"""Atomic and durable writing of files; drafts, paths and URLs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from unetcli.core.errors import UnetcliError
from unetcli.core.names import VolumeName, is_wild

PARTIAL = ".partial"
"""Suffix of unfinished files. Other programs use it too, so the suffix alone does not mark a file as unetcli's."""
DRAFT = re.compile(r"(.+)\.[0-9a-f]{16}\.partial", re.DOTALL)
"""File names of unetcli's drafts; see :func:`draft_of`."""
ZARR_DRAFT = re.compile(r".+\.[0-9a-f]{32}\.partial", re.DOTALL)
"""File names of the drafts that zarr-python writes in its stores."""


Place = Path | str
"""A path, or a URL as a string."""


SYNCED_AT_ONCE = 8
"""Files that :func:`sync_all` flushes at once."""
REFUSED = {errno.EACCES, errno.EPERM}
"""Missing permission, to read or to write."""
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, *REFUSED}
"""Write errors that would affect the next file too."""
UNLINKABLE = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""Errors of file systems that have no hard links (exFAT, many SMB and FUSE mounts)."""
CURRENT_FOLDER, RENAME_NOREPLACE, RENAME_EXCL = -100, 1, 4
"""``AT_FDCWD`` and the flags of exclusive renaming in Linux (fcntl.h, linux/fs.h) and in macOS (stdio.h)."""
WRITER = "writer"
"""File in a folder's draft that the writing process locks."""
CONTINUES = "continues where it stopped"


@contextmanager
def explain_write_errors(output: Place, then: str = CONTINUES) -> Iterator[None]:
    """Turn errors of a full or read-only disk, or of missing permission, into :class:`UnetcliError`.

    Parameters
    ----------
    output
        Output that the message names. A file that cannot even be read, usually an input, is named instead.
    then
        What the same command does once the user has fixed the problem.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        why = os.strerror(error.errno or 0)
        if error.errno in REFUSED and is_unreadable(error.filename):
            raise UnetcliError(f"{error.filename}: cannot be read: {why}") from error
        named = error.filename2 or error.filename  # filename2 is the target of a rename
        place = f" {named}" if named else ""
        raise UnetcliError(f"{output}: cannot write{place}: {why}; once fixed, the same command {then}") from error


def is_unreadable(file: object) -> bool:
    """Whether a file exists but cannot be read, or its folder cannot be searched."""
    if not isinstance(file, str | os.PathLike):
        return False
    try:
        os.stat(file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return not os.access(file, os.R_OK)


def strip_scheme(place: str) -> str:
    """Convert a ``file://`` URL to a path; other URLs and paths stay as they are.

    >>> strip_scheme("file:///data/big.zarr"), strip_scheme("s3://bucket/big.zarr")
    ('/data/big.zarr', 's3://bucket/big.zarr')
    """
    return place.removeprefix("file://")


def parse_place(text: Place) -> Place:
    """Convert text to a path, or to a URL without trailing slash; what a name of a volume chooses of it is left out.

    >>> parse_place("s3://bucket/big.zarr"), parse_place("file:///data/big.zarr:level=1").name
    ('s3://bucket/big.zarr', 'big.zarr')
    """
    name = VolumeName.parse(strip_scheme(str(text))).place
    return name.rstrip("/") if is_remote(name) else Path(name)


STORES = (".zarr", ".tif", ".tiff", ".zip", ".ozx", ".h5", ".hdf5")
"""Endings of stores and files that may hold several volumes."""
ENDINGS = (*STORES[3:5], *STORES[:3], ".btf", *STORES[5:], ".png", ".jpg", ".jpeg", ".svs", ".ndpi", ".ome")
"""Endings that the name of a volume's result does not have, in the order in which they are taken off."""


def stem(volume: str) -> str:
    """Name of the store, file, folder or pattern of files that holds a volume, without its extension.

    >>> stem("data/big.ome.zarr/raw/0"), stem("big.tif:series=1"), stem("s3://bucket/big.zarr"), stem("slices/*.png")
    ('big', 'big', 'big', 'slices')
    """
    name = VolumeName.parse(volume)
    parts = [part for part in name.place.split("/") if part not in ("", ".")]
    if name.is_pattern and not Path(name.place).exists():
        parts = parts[: next(place for place, part in enumerate(parts) if is_wild(part))]
    if not parts or parts[-1] == "..":
        parts = [Path(*parts).resolve().name or "volume"]
    store = next((part for part in parts if part.endswith(STORES)), parts[-1])
    for ending in ENDINGS:
        if len(store) > len(ending):
            store = store.removesuffix(ending)
    return store


def is_remote(place: Place) -> bool:
    """Whether a place is a URL such as ``s3://bucket/big.zarr``, rather than a path."""
    return isinstance(place, str) and "://" in place


def absolute(place: str) -> str:
    """Absolute form of a path, or of the name of a volume, valid in any process; a URL stays as it is."""
    name = VolumeName.parse(place)
    if "://" in place or Path(name.place).is_absolute():
        return place
    folder = str(Path.cwd())
    folder = glob.escape(folder) if name.is_pattern and not Path(name.place).exists() else folder
    return str(replace(name, place=str(Path(folder, name.place))))


def parent_of(place: Place) -> Place:
    """Folder, store or bucket that contains a file, folder or object.

    >>> parent_of("s3://bucket/big.zarr/0"), parent_of("big.zarr/0").name
    ('s3://bucket/big.zarr', 'big.zarr')
    """
    return str(place).rstrip("/").rpartition("/")[0] if is_remote(place) else Path(place).parent


def draft_of(path: Path) -> Path:
    """New temporary name beside ``path`` for its unfinished version."""
    import secrets  # takes 10 ms, and --help does not need it

    return path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a draft to write to; it replaces ``path`` if the block succeeds and is deleted otherwise."""
    with _new_draft(path) as draft:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)


@contextmanager
def _new_draft(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Create a draft of a file or folder and lock it; it is deleted at the end, unless it has been renamed."""
    draft, file = _locked_draft(path, folder=folder)
    with file:
        try:
            with naming(path, draft):
                yield draft
        finally:
            _remove_draft(draft)


def _locked_draft(path: Path, *, folder: bool) -> tuple[Path, IO[bytes]]:
    """Create a draft and lock it, so that :func:`remove_abandoned_drafts` leaves it alone while its writer lives.

    Another process may find the draft before it is locked, and delete it as that of a dead writer: then the next one is
    created. Returns the draft and the open file that has the lock: the draft itself, or a file in it.
    """
    while True:
        draft = draft_of(path)
        locked = draft / WRITER if folder else draft
        with naming(path, draft):
            if folder:
                draft.mkdir()
            try:
                file = locked.open("ab")
            except FileNotFoundError:
                if not folder:  # there is no folder to write to
                    raise
                continue
        if _lock(file) and _is_at(file, locked):
            return draft, file
        file.close()
        _remove_draft(draft)


def _remove_draft(draft: Path) -> None:
    """Delete a draft that another process, which takes it for abandoned, may be deleting at the same time."""
    if draft.is_dir() and not draft.is_symlink():
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    """Lock a file; returns False if another process has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where no draft is taken for abandoned either
        return True
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def remove_abandoned_drafts(path: Path) -> None:
    """Delete drafts of :func:`replacing` and :func:`replacing_folder` whose writers were killed.

    Other processes may be writing the same file or folder: a draft that its writer has locked is left alone.
    """
    for draft in drafts(path.parent, glob.escape(path.name)):
        if draft.is_symlink():  # not a draft of unetcli
            continue
        with suppress(OSError), (draft / WRITER if draft.is_dir() else draft).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_draft(draft)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces ``path`` if the block succeeds and is deleted otherwise.

    The draft lies beside ``path`` and also takes the replaced folder, so that a kill leaves nothing but a draft, which
    the next call deletes.
    """
    remove_abandoned_drafts(path)
    with _new_draft(path.absolute(), folder=True) as draft:
        new, old = draft / "new", draft / "old"
        new.mkdir()
        yield new
        sync_all([file for file in new.rglob("*") if file.is_file()], new)
        _exchange(new, path, old)
        sync(path.absolute().parent)


def _exchange(new: Path, path: Path, old: Path) -> None:
    """Rename ``path``, if it exists, to ``old``, and ``new`` to ``path``; undone if the latter fails."""
    with suppress(FileNotFoundError):
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise


@contextmanager
def naming(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Add the path to operating system errors that name no file, or only its draft, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, draft, str(draft)):
            error.filename = str(path)
        raise


def publish(path: Path, text: str) -> bool:
    """Create ``path`` atomically with the given text; returns False, without changes, if it exists."""
    draft = draft_of(path)
    try:
        with naming(path, draft):
            draft.write_text(text)
            sync(draft)
            if not _linked(draft, path):
                return False
    except FileNotFoundError:  # the holder of this lock removed the draft
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)
    return True


def _linked(draft: Path, path: Path) -> bool:
    """Give the draft its final name too; returns False if that name is taken by another file.

    If the reply of an NFS server is lost, the client asks again and receives the answer that the name exists: only the
    number of the draft's names shows that the first request was carried out.
    """
    try:
        os.link(draft, path)
    except FileExistsError:
        return draft.stat().st_nlink > 1
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        return _renamed_exclusively(draft, path)
    return True


def _renamed_exclusively(draft: Path, path: Path) -> bool:
    """Rename the draft unless ``path`` exists, for file systems without hard links; returns whether it was renamed.

    Raises
    ------
    UnetcliError
        The file system offers neither, so that two processes could not be kept apart.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(draft), os.fsencode(path)
    code = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        code = _errno_of(libc.renameat2(CURRENT_FOLDER, names[0], CURRENT_FOLDER, names[1], RENAME_NOREPLACE))
    elif hasattr(libc, "renamex_np"):
        code = _errno_of(libc.renamex_np(*names, RENAME_EXCL))
    if code in (0, errno.EEXIST):
        return not code
    if code in (errno.EINVAL, *UNLINKABLE):
        raise UnetcliError(
            f"{path.parent}: its file system has neither hard links nor exclusive renaming, which locks need; choose a "
            "folder on another file system, for example with --run-folder"
        )
    raise OSError(code, os.strerror(code), str(path))


def _errno_of(result: int) -> int:
    return ctypes.get_errno() if result else 0


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(files: Iterable[Path], root: Path) -> None:
    """Flush files to disk, then all folders between them and ``root``.

    Missing files are skipped, but their folders are flushed: a file may just have been deleted. Many files are
    flushed at once, which most file systems do in hardly more time than one.
    """
    listed = list(files)
    folders = {parent for file in listed for parent in file.parents if parent == root or root in parent.parents}
    if len(listed) < SYNCED_AT_ONCE:
        for file in listed:
            _sync_if_there(file)
    else:
        with ThreadPoolExecutor(SYNCED_AT_ONCE) as pool:
            list(pool.map(_sync_if_there, listed))
    for folder in sorted(folders, reverse=True):  # deepest first
        with suppress(FileNotFoundError):
            sync(folder)


def _sync_if_there(file: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError):
        sync(file)


def is_draft(name: str, *patterns: str) -> bool:
    """Whether ``name`` is the name of a draft of a file that matches one of the ``fnmatch`` patterns.

    >>> is_draft("plan.json.0123456789abcdef.partial", "plan.json"), is_draft("film.mkv.partial", "*")
    (True, False)
    """
    found = DRAFT.fullmatch(name)
    return found is not None and any(fnmatchcase(found[1], pattern) for pattern in patterns)


def drafts(folder: Path, *patterns: str) -> list[Path]:
    """List the drafts directly in a folder whose final names match one of the patterns."""
    try:
        return [path for path in folder.iterdir() if is_draft(path.name, *patterns)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def remove_drafts_of(*paths: Path) -> None:
    """Delete the drafts that killed writers of these files and folders left; call only while no writer is alive."""
    for path in paths:
        for draft in drafts(path.parent, glob.escape(path.name)):
            remove(draft)


def sweep(folder: Path) -> int:
    """Delete drafts that a killed writer left in or beside ``folder``; returns how many.

    Call only while no writer is alive, and only for a folder written by unetcli, such as a store that has its marker:
    every draft of unetcli or zarr-python in it is deleted.
    """
    partial = (path for path in folder.rglob(f"*{PARTIAL}") if path.is_file())
    below = [path for path in partial if DRAFT.fullmatch(path.name) or ZARR_DRAFT.fullmatch(path.name)]
    found = below + drafts(folder.parent, glob.escape(folder.name))
    for path in found:
        remove(path)
    return len(found)


def remove_aside(path: Path) -> None:
    """Delete a file or folder after renaming it to a draft, so that it is never seen half deleted."""
    aside = draft_of(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def require_replaceable(path: Path, option: str, example: str, is_own: Callable[[Path], bool]) -> None:
    """Raise unless ``path`` is free or holds a file that ``is_own`` recognises as unetcli's, which may be replaced.

    Parameters
    ----------
    option, example
        Command-line option that names the file, and an example of its value, for the message.

    Raises
    ------
    UnetcliError
        Its folder does not exist, or another program wrote the file.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UnetcliError(f"{option} {path}: expected a file in a folder that exists, as in {example}")
    if path.exists() and not (path.is_file() and is_own(path)):
        raise UnetcliError(f"{option} {path}: exists and was not written by evaluate; choose another file")


def starts_with(path: Path, head: bytes) -> bool:
    """Whether a file begins with the given bytes; a file that cannot be read does not."""
    return first_bytes(path, len(head)) == head


def first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a file, at most ``count``; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""


def require_apart(output: Place, inputs: Iterable[Place]) -> None:
    """Raise :class:`UnetcliError` if the output is the same as, inside or around an input."""
    for place in inputs:
        if overlaps(output, place):
            raise UnetcliError(f"{output}: equal to, inside or around the input {place}; choose another --output")


def require_folder_for(output: Place) -> None:
    """Raise :class:`UnetcliError` if the folder in which a local output is to be written does not exist."""
    if not is_remote(output) and not (folder := Path(output).absolute().parent).is_dir():
        raise UnetcliError(f"{output}: the folder {folder} does not exist")


def overlaps(one: Place, other: Place) -> bool:
    """Whether two places are the same or one lies inside the other, after resolving links.

    >>> overlaps("s3://bucket/big.zarr", "s3://bucket/big.zarr/0"), overlaps("s3://bucket/big.zarr", "big.zarr")
    (True, False)
    """
    if is_remote(one) != is_remote(other):
        return False
    named = (parse_place(place) for place in (one, other))
    a, b = (PurePosixPath(place) if is_remote(place) else Path(place).resolve() for place in named)
    return a == b or a in b.parents or b in a.parents
