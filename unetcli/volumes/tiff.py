"""TIFF stacks, whose pages are read on demand, and what a file promises compared with what it holds.

tifffile reads as much as it can: a page that is missing or cut short, or a file of a multi-file OME-TIFF that is not
there, becomes zeros and a line in its log. Here the number of images in the file's own description (OME-XML, ImageJ or
that of tifffile) and the place of each page's data are compared with the files. A volume that is not whole is refused,
or, on request, opened such that reading its missing parts is an error.
"""

from __future__ import annotations

import logging
import math
import re
import struct
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from unetcli.core.errors import UnetcliError, counted, one_line, warn
from unetcli.core.files import absolute
from unetcli.volumes.volume import LONGEST, Volume, axes_from_names, stored_names

SAMPLES, UNKNOWN = "s", "qi"
"""Axis letters of tifffile for the interleaved samples of a pixel, and for pages without stated meaning."""
CUT = "the data end beyond the end of the file, as in a copy that was cut off; copy it again"
COUNTED = ("OME series failed to read", "OME series contains index out of range", "OME series is missing")
"""Parts of tifffile's messages about missing images, which :class:`Missing` lists."""
PLAIN = ("generic", "uniform")
"""Kinds of series that tifffile makes of pages without using a description."""
STANDARD_TAGS = 32768
"""Codes of private tags, which describe no pixels, begin here."""
XML_HEAD = 2000
"""Characters of a description within which OME-XML begins, even if it is cut off and hence no XML."""
MAX_IMAGES = 10**7
TAG_MESSAGE = re.compile(r"<tifffile\.TiffTag (\d+) @\d+> (.*?)(?:['\"]\))?$")
HARMLESS = re.compile(
    r"GDAL_NODATA|invalid self\.subfiletype|estimating ByteCounts|uic1tag|OME series expected|<tifffile\.read_(?!tags)"
)
"""Parts of tifffile's messages about values that are not used here, and about pages beyond those described."""


def open_tiff(path: str, *, parts: bool = False) -> Volume:
    """Open the only image series of a TIFF file, (c,) (t,) (z,) y, x, whose pages are read on demand.

    Parameters
    ----------
    parts
        Open a file although some of its images are missing; a warning is printed, and reading them is an error.

    Raises
    ------
    UnetcliError
        The file is not a TIFF file, has several series, or is not whole.
    """
    tif, series, missing = _opened(path)
    if missing and not parts:
        tif.close()
        raise UnetcliError(f"{path}: {missing}")
    if missing:
        warn(f"{absolute(path)}: {missing}")
    with _reading(path):
        store = series.aszarr(level=0)
        array = zarr.open_array(store, mode="r")
    weakref.finalize(array, _close, store, tif)  # the file stays open as long as the array lives
    names = stored_names(array)  # tifffile presents the file as Zarr v2, since 2026.5 as v3
    assert names is not None, f"tifffile {tifffile.__version__} names no axes"
    axes = axes_from_names(path, _axis_letters(names), array.ndim)
    readable = _WithoutMissing(array, missing) if missing else array
    return Volume(path=path, array=readable, stored_axes=axes, assumed=_guessed_axes(axes, names))


def read_tiff(path: str) -> NDArray[Any]:
    """Read the only image series of a TIFF file into memory, without axes of length 1.

    Raises
    ------
    UnetcliError
        As in :func:`open_tiff`.
    """
    tif, series, missing = _opened(path)
    with tif:
        if missing:
            raise UnetcliError(f"{path}: {missing}")
        with _reading(path):
            return np.asarray(series.asarray())


def software_of(path: str) -> str | None:
    """Program that wrote a TIFF file, as the file states it; None if it states none or cannot be read."""
    try:
        with _reading(path), tifffile.TiffFile(path) as tif:
            found = tif.pages.first.tags.valueof("Software")
            return None if found is None else str(found)
    except UnetcliError:
        return None


def _opened(path: str) -> tuple[Any, Any, Missing | None]:
    """Open file, its only series, and the images of the series that are missing."""
    with ExitStack() as opened:
        with _reading(path) as logged:
            tif = opened.enter_context(tifffile.TiffFile(path))
            _require_no_circle(tif)
            series = _only_series(path, tif)
            _require_followed(path, tif, series)
            if missing := _missing(tif, series):
                logged[:] = [text for text in logged if not any(part in text for part in COUNTED)]
        opened.pop_all()  # the file stays open
        return tif, series, missing


def _close(store: Any, tif: Any) -> None:
    store.close()
    tif.close()


def _require_no_circle(tif: Any) -> None:
    """Raise ValueError if the list of pages leads back to an earlier page, as tifffile would follow it for ever."""
    file, form = tif.filehandle, tif.tiff
    offset, seen = tif.pages.first.offset, set[int]()
    while 0 < offset < file.size:
        if offset in seen:
            raise ValueError(f"its list of pages leads back to byte {offset} after {counted(len(seen), 'page')}")
        seen.add(offset)
        file.seek(offset)
        tags = file.read(form.tagnosize)
        if len(tags) < form.tagnosize:
            return
        file.seek(offset + form.tagnosize + struct.unpack(form.tagnoformat, tags)[0] * form.tagsize)
        following = file.read(form.offsetsize)
        if len(following) < form.offsetsize:
            return
        offset = struct.unpack(form.offsetformat, following)[0]


def _only_series(path: str, tif: Any) -> Any:
    if len(tif.series) != 1:
        shapes = ["x".join(map(str, series.shape)) for series in tif.series]
        listed = ", ".join(shapes[:4]) + (", .." if len(shapes) > 4 else "")
        found = f"of different shapes ({listed})" if len(set(shapes)) > 1 else f"of {shapes[0]}, such as positions"
        raise UnetcliError(f"{path}: {len(shapes)} images {found}; expected one stack")
    return tif.series[0]


class _Capture(logging.Filter):
    """Filter that keeps the messages of tifffile from its log while this thread captures them."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        captured: list[str] | None = getattr(self.thread, "captured", None)
        if captured is None or record.levelno < logging.WARNING:
            return True
        captured.append(record.getMessage())
        return False


_capture = _Capture()
logging.getLogger("tifffile").addFilter(_capture)


@contextmanager
def _reading(path: str) -> Iterator[list[str]]:
    """Raise :class:`UnetcliError` for exceptions of tifffile, which are of any class, and for what it logs instead.

    A logged message about the structure of the file means that tifffile goes on with less than the file should have. A
    harmless one is printed as a warning.
    """
    _capture.thread.captured = captured = list[str]()
    failure = None
    try:
        yield captured
    except (UnetcliError, MemoryError):
        raise
    except Exception as error:
        failure = error
    finally:
        _capture.thread.captured = None
    messages = list(dict.fromkeys(_short(text) for text in captured))
    harmless = [text for text in messages if _is_harmless(text)]
    if serious := [text for text in messages if text not in harmless]:
        size, why = Path(path).stat().st_size, "; ".join(serious[:3])[:LONGEST]
        raise UnetcliError(
            f"{path}: not a whole TIFF file ({size:,} bytes): {why}; expected an undamaged copy"
        ) from failure
    if failure is not None:
        raise UnetcliError(f"{path}: not a readable TIFF file ({one_line(failure)[:LONGEST]})") from failure
    for text in harmless:
        warn(f"{absolute(path)}: {text[:LONGEST]}")


def _short(text: str) -> str:
    """Message of tifffile without the objects that log it.

    >>> _short("<tifffile.TiffPages @8> invalid page offset 37072")
    'its list of pages continues at byte 37072, beyond its end'
    >>> _short("<TiffTag.fromfile> raised TiffFileError('<tifffile.TiffTag 270 @70> invalid')")
    'tag 270: invalid'
    """
    if found := TAG_MESSAGE.search(text):
        return f"tag {found[1]}: {found[2]}"
    text = re.sub(r"^<tifffile\.Tiff(File|Pages|Page)\b[^>]*> ", "", text)
    text = re.sub(r"^invalid page offset (\d+)$", r"its list of pages continues at byte \1, beyond its end", text)
    return " ".join(text.split())


def _is_harmless(text: str) -> bool:
    """Whether a message is about a value that is not used here.

    >>> _is_harmless("tag 51123: invalid value offset 70"), _is_harmless("tag 270: invalid value offset 70")
    (True, False)
    """
    tag = re.match(r"tag (\d+):", text)
    return bool((tag and int(tag[1]) >= STANDARD_TAGS) or HARMLESS.search(text))


def _require_followed(path: str, tif: Any, series: Any) -> None:
    """Raise :class:`UnetcliError` if the pages were put together without the description that the file has."""
    if tif.is_ome:
        _require_ome_root(path, tif)
    pages, count = counted(len(tif.pages), "page"), math.prod(series.shape) // math.prod(series.keyframe.shape)
    if tif.is_imagej and (promised := _promised_by_imagej(tif)) > count:
        raise UnetcliError(
            f"{path}: not whole: its ImageJ description promises {counted(promised, 'image')}, the file has {count}; "
            "expected an undamaged copy"
        )
    if tif.is_imagej and len(tif.pages) > count * series.keyframe.samplesperpixel:
        warn(f"{absolute(path)}: its ImageJ description is of {counted(count, 'image')}; the other pages are not read")
    described = {
        "OME-XML": tif.is_ome or "<OME " in tif.pages.first.description[:XML_HEAD],
        "ImageJ": tif.is_imagej,
        "shape": tif.is_shaped,
    }
    if series.kind in PLAIN and (names := [name for name, has in described.items() if has]):
        raise UnetcliError(
            f"{path}: its {names[0]} description does not fit its {pages}: cut short, or changed by another program; "
            "expected an undamaged copy"
        )


def _promised_by_imagej(tif: Any) -> int:
    """Number of images in ImageJ's description, where some programs count the samples of a pixel."""
    stated = tif.imagej_metadata or {}
    sizes = [stated.get(name, 1) for name in ("channels", "slices", "frames")]
    promised = [size if isinstance(size, int) else 0 for size in (stated.get("images", 1), *sizes)]
    return max(promised[0], math.prod(promised[1:])) // int(tif.pages.first.samplesperpixel)


def _require_ome_root(path: str, tif: Any) -> None:
    """Raise :class:`UnetcliError` if the OME-XML of the file is elsewhere, or describes images without data."""
    root = ElementTree.fromstring(tif.ome_metadata)
    for element in root.iter():
        if element.tag.endswith("BinaryOnly"):
            other = element.get("MetadataFile", "another file")
            raise UnetcliError(
                f"{path}: one of the files of a set that {other} describes; open that file if it is a TIFF file, or "
                "convert the set to OME-Zarr"
            )
    described = sum(element.tag.endswith("}Pixels") for element in root.iter())
    if described > len(tif.series):
        raise UnetcliError(
            f"{path}: its OME-XML describes {counted(described, 'image')}, of which {len(tif.series)} can be read; "
            f"{_absent_files(tif) or 'expected an undamaged copy'}"
        )


@dataclass(frozen=True, eq=False)
class Missing:
    """Images of a series that cannot be read; an image is a page, or as large a part of data stored without pages."""

    planes: NDArray[np.bool_]
    """Whether each image is missing, in the order of the file."""
    reason: str

    def __str__(self) -> str:
        found = np.flatnonzero(self.planes)
        which = f"image {found[0]}" if len(found) == 1 else f"images {found[0]} to {found[-1]}"
        between = "" if len(found) == found[-1] - found[0] + 1 else ", with gaps"
        return f"not whole: {len(found)} of {len(self.planes)} images are missing ({which}{between}): {self.reason}"

    def __len__(self) -> int:
        return int(self.planes.sum())


def _missing(tif: Any, series: Any) -> Missing | None:
    """Images that the description promises and the files do not hold; None if there are none."""
    keyframe = series.keyframe
    count = math.prod(series.shape) // math.prod(keyframe.shape)
    if count > MAX_IMAGES:
        raise ValueError(f"{count} images; expected at most {MAX_IMAGES}")
    if len(series.pages) == 1 and series.dataoffset is not None:
        ends = series.dataoffset + np.arange(1, count + 1, dtype=np.int64) * keyframe.nbytes
        faults = [CUT if end > keyframe.parent.filehandle.size else "" for end in ends.tolist()]
    else:
        faults = [_fault(series.pages[i], keyframe) for i in range(len(series.pages))]
        faults += ["the file has fewer pages"] * (count - len(faults))
    reason = _absent_files(tif) or next(filter(None, faults), "")
    return Missing(np.array([bool(fault) for fault in faults]), reason) if any(faults) else None


def _fault(page: Any, keyframe: Any) -> str:
    """Why a page cannot be read as part of a series; empty if it can."""
    if page is None or page.keyframe is None:
        return "there is no such page"
    own = page.keyframe
    if own is not keyframe and (own.shape, own.dtype) != (keyframe.shape, keyframe.dtype):
        return f"{page.parent.filename} has another size or data type than the first file of the set"
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if len(offsets) != len(counts) or not len(offsets):
        return "the page does not say where its data are"
    if ((offsets == 0) != (counts == 0)).any():  # both are 0 for a tile that a sparse file does not store
        return "the page does not say where all of its data are"
    return CUT if (offsets + counts).max() > page.parent.filehandle.size else ""


def _absent_files(tif: Any) -> str:
    """Sentence about files that the OME-XML of an OME-TIFF names and that are not there; empty if there are none."""
    if not tif.is_ome:
        return ""
    root, folder = ElementTree.fromstring(tif.ome_metadata), Path(tif.filehandle.dirname)
    names = dict.fromkeys(name for element in root.iter() if (name := element.get("FileName")))
    absent = [name for name in names if not (folder / name).is_file()]
    if not absent:
        return ""
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return f"its OME-XML names {absent[0]}{more}, not found in {folder}; put all files of the set into one folder"


class _WithoutMissing:
    """Array of a series some of whose images are missing; reading them raises ValueError."""

    def __init__(self, array: Any, missing: Missing) -> None:
        self._array, self._missing = array, missing
        self.shape, self.dtype, self.chunks, self.size = array.shape, array.dtype, array.chunks, array.size
        sizes = [math.prod(self.shape[:axis]) for axis in range(len(self.shape) + 1)]
        self._leading = sizes.index(len(missing.planes))
        self._planes = missing.planes.reshape(self.shape[: self._leading])

    def __getitem__(self, selection: tuple[slice, ...]) -> NDArray[Any]:
        if self._planes[selection[: self._leading]].any():
            raise ValueError(str(self._missing))
        return np.asarray(self._array[selection])


def _guessed_axes(axes: str, names: list[str]) -> str:
    """Axes whose meaning the file does not state: pages without a name, and samples stored as pages.

    Without the option ``photometric``, tifffile writes a stack of three or four sections as one colour image.
    """
    found = "".join(name.lower()[:1] for name in names)
    guessed = UNKNOWN + (SAMPLES if SAMPLES in found.partition("y")[0] else "")
    return "".join(axis for axis, letter in zip(axes, found, strict=True) if letter in guessed)


def _axis_letters(names: list[str]) -> list[str]:
    """Convert tifffile's axis letters: samples are channels, unnamed pages are sections, a second such axis is time."""
    found = [name.lower()[:1] for name in names]
    for place, letter in reversed(list(enumerate(found))):
        if letter == SAMPLES:
            found[place] = "c"
        elif letter in UNKNOWN:
            found[place] = "z" if "z" not in found else "t"
    return found
