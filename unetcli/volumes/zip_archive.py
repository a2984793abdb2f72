"""Zarr hierarchies in ZIP files (``a.zarr.zip``, ``a.ozx``), which are read in place."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ZipStore

from unetcli.core.errors import UnetcliError, one_line
from unetcli.volumes.store import is_metadata, require_whole


class CheckedZip(ZipStore):
    """ZIP file that raises for a damaged chunk; the checksum of each entry is compared when it is read."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        return found if is_metadata(key) else require_whole(f"{self.path}/{key}", found, byte_range)


@dataclass(frozen=True, slots=True)
class ZipArchive:
    """ZIP file with one Zarr hierarchy."""

    path: Path
    root: str
    """Folder of the hierarchy inside the file; empty if it is at the top."""

    @classmethod
    def open(cls, path: Path) -> ZipArchive:
        """Find the hierarchy in a ZIP file; raises :class:`UnetcliError` if there is none, or several."""
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise UnetcliError(
                f"{path}: not a whole ZIP file ({one_line(error)}); expected an undamaged copy"
            ) from error
        folders = {str(PurePosixPath(name).parent) for name in names if is_metadata(name)}
        shortest = min((len(PurePosixPath(folder).parts) for folder in folders), default=0)
        tops = sorted(folder for folder in folders if len(PurePosixPath(folder).parts) == shortest)
        if len(tops) != 1:
            found = f"several Zarr hierarchies ({', '.join(tops[:4])})" if tops else "no Zarr array or group"
            raise UnetcliError(f"{path}: a ZIP file with {found}; expected the content of one .zarr folder")
        return cls(path, "" if tops[0] == "." else tops[0])

    @property
    def place(self) -> str:
        return str(self.path)

    def zarr(self) -> ZarrStore:
        return CheckedZip(self.path, mode="r")


def archive_of(path: Path) -> tuple[Path, str] | None:
    """ZIP file in a path such as ``a.zarr.zip/raw/0``, and the rest of the path; None if there is none."""
    for folder in path.parents:
        if folder.is_file():
            return (folder, str(path.relative_to(folder))) if zipfile.is_zipfile(folder) else None
    return None
