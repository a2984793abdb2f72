"""Stores of Zarr hierarchies: local folders, and URLs that fsspec supports (``s3://bucket/big.zarr``).

Zarr takes whatever is not a readable file for a chunk of fill values. :class:`CheckedFolder` and
:class:`CheckedObjects` distinguish an absent chunk from a damaged one, without further requests for a chunk that is
there. Nothing is written through a symbolic link inside a store.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore
from zarr.storage import LocalStore as ZarrFolder

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import Place, draft_of, is_remote, remove_aside, replacing, strip_scheme, sweep, sync, sync_all

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
"""Names of the files with the metadata of arrays and groups."""


class Store(Protocol):
    """Storage of one Zarr hierarchy, whose files are written atomically."""

    @property
    def place(self) -> str:
        """Path or URL, for messages and for :func:`store_at`."""

    def zarr(self) -> ZarrStore:
        """Store object for zarr-python."""

    def is_free(self) -> bool:
        """Whether the place does not exist or is an empty folder."""

    def read_text(self, key: str) -> str | None:
        """Read a small file; None if it does not exist. Raises UnetcliError if it is not UTF-8."""

    def replace_text(self, key: str, text: str) -> None:
        """Write a small file, replacing an existing one."""

    def publish(self, make: Callable[[Store], None]) -> None:
        """Create the content by calling ``make`` with the store to fill; ``make`` writes unetcli's marker first."""

    def remove(self, last: str) -> None:
        """Delete the store; the key ``last``, which has unetcli's marker, is deleted last."""

    def sweep(self) -> int:
        """Delete the drafts of killed writers and return their number. No writer may be running."""

    def files(self, key: str) -> Iterator[Path]:
        """File of a key, if it needs to be synced."""

    def explain_errors(self) -> AbstractContextManager[None]:
        """Turn errors of a remote store into :class:`UnetcliError`; those of a folder are left as they are."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """Store in a local folder."""

    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def zarr(self) -> ZarrStore:
        return CheckedFolder(self.path)

    def is_free(self) -> bool:
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def read_text(self, key: str) -> str | None:
        try:
            return _decoded((self.path / key).read_bytes(), f"{self.path}/{key}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def replace_text(self, key: str, text: str) -> None:
        require_no_links(self.path, key)
        with replacing(self.path / key) as draft:
            draft.write_text(text)

    def publish(self, make: Callable[[Store], None]) -> None:
        """Create a draft and rename it; raises OSError, and leaves no draft, if the folder has files already."""
        draft = draft_of(self.path)
        draft.mkdir()
        try:
            make(LocalStore(draft))
            sync_all([path for path in draft.rglob("*") if path.is_file()], draft)
            os.rename(draft, self.path)  # fails if the target is a folder with files
            sync(self.path.absolute().parent)
        finally:
            remove_aside(draft)

    def remove(self, last: str) -> None:
        remove_aside(self.path)

    def sweep(self) -> int:
        return sweep(self.path)

    def files(self, key: str) -> Iterator[Path]:
        yield self.path / key

    def explain_errors(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """Store of objects below a URL. Each object is written atomically; nothing can be renamed or needs syncing."""

    url: str

    @property
    def place(self) -> str:
        return self.url

    def zarr(self) -> ZarrStore:
        with self.explain_errors():
            return CheckedObjects.from_url(self.url)

    def is_free(self) -> bool:
        with self.explain_errors():
            return not self._files.exists(self._path())

    def read_text(self, key: str) -> str | None:
        with self.explain_errors(), suppress(FileNotFoundError):
            return _decoded(self._files.cat_file(self._path(key)), f"{self.url}/{key}")
        return None

    def replace_text(self, key: str, text: str) -> None:
        with self.explain_errors():
            self._files.pipe_file(self._path(key), text.encode())

    def publish(self, make: Callable[[Store], None]) -> None:
        make(self)

    def remove(self, last: str) -> None:
        with self.explain_errors():
            kept = self._path(last)
            if others := [path for path in self._files.find(self._path()) if path != kept]:
                self._files.rm(others)
            self._files.rm(kept)

    def sweep(self) -> int:
        return 0

    def files(self, key: str) -> Iterator[Path]:
        return iter(())

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Turn all exceptions of the remote store into :class:`UnetcliError`."""
        try:
            yield
        except UnetcliError:
            raise
        except ImportError as error:
            raise missing_package(self.url, error) from error
        except FileNotFoundError as error:  # a missing bucket, or an array that has been deleted
            raise UnetcliError(f"{self.url}: not found: {one_line(error)}") from error
        except Exception as error:  # each protocol has its own classes: botocore's, aiohttp's, OSError..
            raise UnetcliError(f"{self.url}: cannot be reached: {one_line(error)}") from error

    @property
    def _files(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self.url, use_listings_cache=False)[0]

    def _path(self, *key: str) -> str:
        return "/".join([self._files._strip_protocol(self.url), *key])


def store_at(place: str | Path) -> Store:
    """Return the store at a path or URL."""
    name = strip_scheme(str(place))
    return RemoteStore(name.rstrip("/")) if is_remote(name) else LocalStore(Path(name))


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UnetcliError(f"{place}: not UTF-8 at byte {error.start}") from None


def missing_package(place: str, error: ImportError) -> UnetcliError:
    """Error for a URL whose protocol needs a package that is not installed."""
    advice = 'pip install "unetcli[s3]"' if place.startswith(("s3:", "s3a:")) else one_line(error)
    return UnetcliError(f"{place}: a package for this protocol is not installed; {advice}")


class CheckedFolder(ZarrFolder):
    """Folder that raises ValueError for a damaged chunk or shard, which Zarr would read as fill values.

    Damaged is whatever is empty, shorter than the range that is read, or stands in the place of a file without being
    one: a folder, or a link to a file that does not exist.

    Metadata is created without a hard link, because some file systems have none. Nothing is lost: unetcli creates
    arrays in drafts or under a lock, where no other process creates the same file.
    """

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._checked(key, await super().get(key, prototype, byte_range), byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Version of :meth:`get` for Zarr's synchronous pipeline, which can be enabled by configuration."""
        found: Buffer | None = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._checked(key, found, byte_range)

    async def set(self, key: str, value: Buffer) -> None:
        require_no_links(self.root, key)
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        if not await self.exists(key):
            await self.set(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        require_no_links(self.root, key)
        super().set_sync(key, value)

    async def delete(self, key: str) -> None:
        require_no_links(self.root, key)
        await super().delete(key)

    async def delete_dir(self, prefix: str) -> None:
        require_no_links(self.root, prefix)
        await super().delete_dir(prefix)

    def _checked(self, key: str, found: Buffer | None, byte_range: ByteRequest | None) -> Buffer | None:
        if is_metadata(key):
            return found
        if found is None:
            _require_absent(self.root / key)
        return require_whole(str(self.root / key), found, byte_range)


def require_no_links(store: Place, key: str) -> None:
    """Raise :class:`UnetcliError` if a folder between a local store and one of its keys is a symbolic link.

    The key itself may be a link, which is replaced, as files are written by renaming.
    """
    if is_remote(store):
        return
    for folder in [*PurePosixPath(key).parents][:-1]:
        if (path := Path(store, folder)).is_symlink():
            raise UnetcliError(
                f"{path}: a symbolic link to {path.readlink()}; unetcli writes only into {store} itself, so move the "
                "folder there, or choose another output"
            )


class CheckedObjects(FsspecStore):
    """Remote store that raises ValueError for a damaged chunk or shard, as :class:`CheckedFolder` does."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        return found if is_metadata(key) else require_whole(f"{self.path}/{key}", found, byte_range)


def _require_absent(path: Path) -> None:
    """Raise ValueError if there is something at a path that cannot be opened as a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ValueError(f"{path}: there is a file in the place of a folder") from None
    what = "link to a file that does not exist" if stat.S_ISLNK(mode) else "folder in the place of a file"
    raise ValueError(f"{path} is a {what}")


def require_whole(place: str, found: Buffer | None, byte_range: ByteRequest | None) -> Buffer | None:
    """Return what was read of a file; raises ValueError if it is less than was requested."""
    if found is None:
        return None
    size = len(found)
    match byte_range:
        case RangeByteRequest(start=start, end=end) if size < end - start:
            raise ValueError(f"{place} is cut short: it ends before byte {end}, to which its index refers")
        case SuffixByteRequest(suffix=suffix) if size < suffix:
            raise ValueError(
                f"{place} is {'cut short' if size else 'empty'}: {size} bytes, its index alone has {suffix}"
            )
        case None if not size:
            raise ValueError(f"{place} is empty")
    return found


class WriteOnlyStore(WrapperStore[ZarrStore]):
    """Store for writing whole chunks and shards, whose previous content is never read.

    Zarr merges new chunks into an existing shard, and therefore always fails if that shard is damaged. With this store
    a shard is written from scratch and replaces the old one, as a chunk does, through the rename that ends every write
    of the underlying store.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._store.get(key, prototype, byte_range) if is_metadata(key) else None

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Version of :meth:`get` for Zarr's synchronous pipeline, which can be enabled by configuration."""
        if not is_metadata(key):
            return None
        found: Buffer | None = super().get_sync(key, prototype=prototype, byte_range=byte_range)  # type: ignore[misc]
        return found


class MetadataStore(WrapperStore[ZarrStore]):
    """Store of which zarr-python writes only metadata, as :meth:`Store.replace_text` writes files.

    A killed writer then leaves no draft but those that the next one recognises.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.zarr())
        self._files = store

    async def set(self, key: str, value: Buffer) -> None:
        self._files.replace_text(key, value.to_bytes().decode())


def is_metadata(key: str) -> bool:
    return key.rpartition("/")[2] in METADATA
