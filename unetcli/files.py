"""Files that appear whole or not at all, and stay."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""Ending of everything unfinished; safe to delete when its writer is gone. Zarr's own drafts end so too."""


def draft_of(path: Path) -> Path:
    """A fresh name beside ``path`` for its unfinished self."""
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
    except FileExistsError:
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


def sweep(folder: Path) -> int:
    """Delete drafts that a killed writer left below ``folder``; only for who knows that no writer lives."""
    found = [path for path in folder.rglob(f"*{PARTIAL}") if path.is_file()]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


def remove_aside(path: Path) -> None:
    """Delete a file or folder so that nobody ever sees half of it: renamed to a draft first."""
    aside = draft_of(path)
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()


def overlaps(one: Path, other: Path) -> bool:
    """Whether two paths are the same, or one lies inside the other, links resolved."""
    a, b = one.resolve(), other.resolve()
    return a == b or a in b.parents or b in a.parents
