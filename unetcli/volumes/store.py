"""Where a Zarr hierarchy lies: a folder here, or a place that fsspec reaches (``s3://bucket/big.zarr``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore
from zarr.storage import LocalStore as ZarrFolder

from unetcli.core.errors import UnetcliError, one_line
from unetcli.core.files import draft_of, is_remote, remove_aside, replacing, strip_scheme, sweep, sync, sync_all


class Store(Protocol):
    """A place of one Zarr hierarchy; its files appear whole or not at all."""

    @property
    def place(self) -> str:
        """For people, and to open it again."""

    def zarr(self) -> ZarrStore:
        """As Zarr sees it."""

    def is_free(self) -> bool:
        """Whether nothing is there, or an empty folder."""

    def read_text(self, key: str) -> str | None:
        """A small file, or None where there is none."""

    def replace_text(self, key: str, text: str) -> None:
        """Write a small file, in place of an earlier one."""

    def publish(self, make: Callable[[Store], None]) -> None:
        """Make everything with ``make``, given the store to fill, which writes first what says whose it is."""

    def remove(self, last: str) -> None:
        """Delete all of it; what ``last`` names, which says whose it is, goes last."""

    def sweep(self) -> int:
        """Delete drafts that a killed writer left; only for who knows that no writer lives."""

    def files(self, key: str) -> Iterator[Path]:
        """The file of a key, where it has to be synced to stay."""

    def reaching(self) -> AbstractContextManager[None]:
        """Turns whatever goes wrong on the way there into one line; of a folder errors are the system's own."""


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder."""

    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def zarr(self) -> ZarrStore:
        return ZarrFolder(self.path)

    def is_free(self) -> bool:
        return not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir()))

    def read_text(self, key: str) -> str | None:
        try:
            return (self.path / key).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def replace_text(self, key: str, text: str) -> None:
        with replacing(self.path / key) as draft:
            draft.write_text(text)

    def publish(self, make: Callable[[Store], None]) -> None:
        """Under a draft's name first; raises OSError, and leaves no draft, where something is there already."""
        draft = draft_of(self.path)
        draft.mkdir()
        try:
            make(LocalStore(draft))
            sync_all([path for path in draft.rglob("*") if path.is_file()], draft)
            os.rename(draft, self.path)  # fails on a folder that holds something
            sync(self.path.absolute().parent)
        finally:
            remove_aside(draft)

    def remove(self, last: str) -> None:
        remove_aside(self.path)

    def sweep(self) -> int:
        return sweep(self.path)

    def files(self, key: str) -> Iterator[Path]:
        yield self.path / key

    def reaching(self) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """Objects below a URL. Each is stored whole or not at all; there is no rename, and nothing to sync."""

    url: str

    @property
    def place(self) -> str:
        return self.url

    def zarr(self) -> ZarrStore:
        with self.reaching():
            return FsspecStore.from_url(self.url)

    def is_free(self) -> bool:
        with self.reaching():
            return not self._files.exists(self._path())

    def read_text(self, key: str) -> str | None:
        with self.reaching(), suppress(FileNotFoundError):
            return str(self._files.cat_file(self._path(key)).decode())
        return None

    def replace_text(self, key: str, text: str) -> None:
        with self.reaching():
            self._files.pipe_file(self._path(key), text.encode())

    def publish(self, make: Callable[[Store], None]) -> None:
        make(self)

    def remove(self, last: str) -> None:
        with self.reaching():
            kept = self._path(last)
            if others := [path for path in self._files.find(self._path()) if path != kept]:
                self._files.rm(others)
            self._files.rm(kept)

    def sweep(self) -> int:
        return 0

    def files(self, key: str) -> Iterator[Path]:
        return iter(())

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turns whatever is raised on the way to the remote place into one line."""
        try:
            yield
        except UnetcliError:
            raise
        except ImportError as error:
            raise missing_package(self.url, error) from error
        except FileNotFoundError as error:  # a bucket, or an array that was there before
            raise UnetcliError(f"{self.url}: not found: {one_line(error)}") from error
        except Exception as error:  # every protocol has classes of its own: botocore's, aiohttp's, OSError..
            raise UnetcliError(f"{self.url}: cannot be reached: {one_line(error)}") from error

    @property
    def _files(self) -> Any:
        from fsspec.core import url_to_fs

        return url_to_fs(self.url, use_listings_cache=False)[0]

    def _path(self, *key: str) -> str:
        return "/".join([self._files._strip_protocol(self.url), *key])


def store_at(place: str | Path) -> Store:
    """The store at a path or URL."""
    name = strip_scheme(str(place))
    return RemoteStore(name.rstrip("/")) if is_remote(name) else LocalStore(Path(name))


def missing_package(place: str, error: ImportError) -> UnetcliError:
    """For a place whose protocol needs a package that is not installed."""
    way = 'pip install "unetcli[s3]" brings it' if place.startswith(("s3:", "s3a:")) else one_line(error)
    return UnetcliError(f"{place}: a package that reaches it is missing; {way}")


class Unread(WrapperStore[ZarrStore]):
    """A store to write whole chunks and shards to: what they held before is never read.

    Zarr merges new chunks into an old shard, and so fails for ever on a damaged one. Here a shard is made anew and
    put in the place of the old one, like a chunk, by the rename that the store below ends every write with.
    """

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._store.get(key, prototype, byte_range) if _is_metadata(key) else None

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The same for Zarr's synchronous pipeline, which is asked for by configuration."""
        if not _is_metadata(key):
            return None
        found: Buffer | None = super().get_sync(key, prototype=prototype, byte_range=byte_range)  # type: ignore[misc]
        return found


def _is_metadata(key: str) -> bool:
    return key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zattrs", ".zgroup")
