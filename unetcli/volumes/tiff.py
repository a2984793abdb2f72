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

from unetcli.core.errors import UnetcliError, counted, format_shape, listed, note, one_line, warn
from unetcli.core.files import absolute
from unetcli.core.names import VolumeName
from unetcli.volumes.axes import axes_from_names, stored_names
from unetcli.volumes.tiff_metadata import TiffMetadata, read_metadata
from unetcli.volumes.tiff_missing import Missing, WithoutMissing, absent_files, find_missing
from unetcli.volumes.views import Inverted, Rearranged
from unetcli.volumes.volume import LONGEST, Volume

SAMPLES, UNKNOWN = "s", "qi"
"""Axis letters of tifffile for the interleaved samples of a pixel, and for pages without stated meaning."""
COUNTED = ("OME series failed to read", "OME series contains index out of range", "OME series is missing")
"""Parts of tifffile's messages about missing images, which :class:`Missing` lists."""
PLAIN = ("generic", "uniform")
"""Kinds of series that tifffile makes of pages without using a description."""
STANDARD_TAGS = 32768
"""Codes of private tags, which describe no pixels, begin here."""
WHITE_IS_ZERO, REDUCED = 0, 1
"""Values of the tags PhotometricInterpretation and NewSubfileType."""
ALPHA = (1, 2)
"""Values of the tag ExtraSamples: associated and unassociated alpha."""
THUMBNAILS = ("thumbnail", "label", "macro", "overview", "map")
BY_TIFFFILE = re.compile(r"ImageJ=1\.11a\n(?:.*\n)*mode=grayscale")
XML_HEAD = 2000
"""Characters of a description within which OME-XML begins, even if it is cut off and hence no XML."""
TAG_MESSAGE = re.compile(r"<tifffile\.TiffTag (\d+) @\d+> (.*?)(?:['\"]\))?$")
HARMLESS = re.compile(
    r"GDAL_NODATA|invalid self\.subfiletype|estimating ByteCounts|uic1tag|OME series expected|<tifffile\.read_(?!tags)"
)
"""Parts of tifffile's messages about values that are not used here, and about pages beyond those described."""


def open_tiff(name: VolumeName, *, parts: bool = False) -> Volume:
    """Open an image series of a TIFF file, (c,) (t,) (z,) y, x, whose pages are read on demand.

    Parameters
    ----------
    name
        Path of the file, and which of its series and levels is meant; by default, the only image that is not a
        thumbnail, or the only pyramid.
    parts
        Open a file although some of its images are missing; a warning is printed, and reading them is an error.

    Raises
    ------
    UnetcliError
        The file is not a TIFF file, has several series, or is not whole.
    """
    path = name.place
    opened = _opened(name)
    if opened.missing and not parts:
        opened.tif.close()
        raise UnetcliError(f"{path}: {opened.missing}")
    if opened.missing:
        warn(f"{absolute(path)}: {opened.missing}")
    with _reading(path):
        store = opened.series.aszarr(level=0)
        array = zarr.open_array(store, mode="r")
        metadata = opened.metadata()
    weakref.finalize(array, _close, store, opened.tif)  # the file stays open as long as the array lives
    names = stored_names(array)  # tifffile presents the file as Zarr v2, since 2026.5 as v3
    assert names is not None, f"tifffile {tifffile.__version__} names no axes"
    readable = WithoutMissing(array, opened.missing) if opened.missing else array
    return _as_volume(name, opened, readable, names, metadata)


def _as_volume(name: VolumeName, opened: Opened, array: Any, names: list[str], metadata: TiffMetadata) -> Volume:
    """Volume of an array with tifffile's names of axes: grey values grow with brightness, and there is no alpha."""
    letters = _axis_letters(names)
    if (largest := opened.white_is_zero()) is not None:
        note(f"{absolute(name.place)}: WhiteIsZero in the file, so grey values are inverted: {largest} is read as 0")
        array = Inverted(array, largest)
    planar = SAMPLES in "".join(names).lower().partition("y")[0]
    stack = planar and opened.tif.is_shaped
    if not stack and (colours := opened.colours()) and "c" in letters:
        note(f"{absolute(name.place)}: the alpha channel is left out")
        place = letters.index("c")
        kept = (
            [slice(None)] * place + [0 if colours == 1 else slice(colours)] + [slice(None)] * (len(names) - place - 1)
        )
        array = Rearranged(array, kept)
        names, letters = (names, letters) if colours > 1 else (_without(names, place), _without(letters, place))
    axes = axes_from_names(name.place, letters, array.shape, name.axes)
    assumed = "" if name.axes else _guessed_axes(axes, names, opened)
    volume = Volume(
        path=str(name),
        array=array,
        stored_axes=axes,
        assumed=assumed,
        voxel_size={axis: size for axis, size in metadata.voxel_size.items() if axis in axes},
        units={axis: unit for axis, unit in metadata.units.items() if axis in axes},
        channel_names=metadata.channel_names if "c" in axes else (),
    )
    if not stack or name.axes:
        return volume
    note(
        f"{absolute(name.place)}: its {array.shape[letters.index('c')]} planes are read as sections, as stacks are "
        f"written; --axes {''.join(letters)} reads them as channels"
    )
    return volume.channels_as_sections()


def _without(names: list[str], place: int) -> list[str]:
    return names[:place] + names[place + 1 :]


def read_tiff(path: str) -> NDArray[Any]:
    """Read the only image series of a TIFF file into memory, without axes of length 1.

    Raises
    ------
    UnetcliError
        As in :func:`open_tiff`.
    """
    opened = _opened(VolumeName(place=path))
    with opened.tif:
        if opened.missing:
            raise UnetcliError(f"{path}: {opened.missing}")
        with _reading(path):
            values = np.asarray(opened.series.asarray())
        largest = opened.white_is_zero()
        return values if largest is None else Inverted(values, largest)[(slice(None),) * values.ndim]


def software_of(path: str) -> str | None:
    """Program that wrote a TIFF file, as the file states it; None if it states none or cannot be read."""
    try:
        with _reading(path), tifffile.TiffFile(path) as tif:
            found = tif.pages.first.tags.valueof("Software")
            return None if found is None else str(found)
    except UnetcliError:
        return None


@dataclass(frozen=True, eq=False)
class Opened:
    """An open file, and the series and level of it that is read."""

    tif: Any
    number: int
    series: Any
    """The series at the level that is read."""
    missing: Missing | None

    def metadata(self) -> TiffMetadata:
        """Voxel size and names; those of a level follow from the full resolution, as its pages do not state them."""
        full = self.tif.series[self.number]
        sizes = zip(full.axes.lower(), full.shape, self.series.shape, strict=True)
        return read_metadata(self.tif, self.number).coarser({axis: n / m for axis, n, m in sizes})

    def white_is_zero(self) -> int | None:
        """Value of black, if 0 is white; None for other images, and for floats and signed integers.

        ImageJ keeps the values of an image with an inverted lookup table: its masks have 255 in the foreground.
        """
        page = self.series.keyframe
        if page.photometric != WHITE_IS_ZERO or page.dtype.kind not in "bu" or page.parent.is_imagej:
            return None
        return int(2 ** int(page.bitspersample) - 1)

    def colours(self) -> int:
        """Number of samples before an alpha channel, which is the last one; 0 without alpha."""
        page = self.series.keyframe
        extra = [int(each) for each in page.extrasamples or ()]
        return int(page.samplesperpixel) - 1 if extra and extra[-1] in ALPHA else 0


def _opened(name: VolumeName) -> Opened:
    """Open the file of a name, choose the series and level, and compare what the file promises with what it holds."""
    path = name.place
    with ExitStack() as opened:
        with _reading(path) as logged:
            tif = opened.enter_context(tifffile.TiffFile(path))
            _require_no_circle(tif)
            number = choose_series(name, tif)
            series = _level(name, tif.series[number])
            _require_followed(path, tif, tif.series[number])
            if missing := find_missing(tif, series):
                logged[:] = [text for text in logged if not any(part in text for part in COUNTED)]
        opened.pop_all()  # the file stays open
        return Opened(tif, number, series, missing)


def _level(name: VolumeName, series: Any) -> Any:
    level = name.level or 0
    if level >= len(series.levels):
        only = "; a TIFF file without pyramid has only level 0" if len(series.levels) == 1 else ""
        raise UnetcliError(f"{name.place}: no level {level}; expected 0 <= level < {len(series.levels)}{only}")
    return series.levels[level]


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


def choose_series(name: VolumeName, tif: Any) -> int:
    """Number of the series that a name means: the one it states, the only one that is no thumbnail, the only pyramid.

    Raises
    ------
    UnetcliError
        There are several, or not as many as the name says; the message lists them.
    """
    every = list(range(len(tif.series)))
    if name.series is not None:
        if name.series not in every:
            raise UnetcliError(f"{name.place}: no series {name.series}; expected 0 <= series < {len(every)}")
        return name.series
    if len(every) == 1:
        return 0
    images = [number for number in every if not _is_thumbnail(tif.series[number])]
    pyramids = [number for number in images if len(tif.series[number].levels) > 1]
    for found, what in ((images, "image that is no thumbnail"), (pyramids, "pyramid")):
        if len(found) == 1:
            chosen = _described(name.place, tif, found[0])
            note(f"{absolute(name.place)}: of {len(every)} images, {chosen} is read, the only {what}")
            return found[0]
    few = listed([_described(name.place, tif, number) for number in every], "images")
    raise UnetcliError(f"{name.place}: holds {len(every)} images; choose one as part of the name: {few}")


def _is_thumbnail(series: Any) -> bool:
    """Whether a series is a smaller copy of another one, or a picture of the slide's label or outline."""
    return bool(int(series.keyframe.subfiletype or 0) & REDUCED) or str(series.name).lower() in THUMBNAILS


def _described(path: str, tif: Any, number: int) -> str:
    series = tif.series[number]
    named = f", {str(series.name)!r}" if series.name else ""
    return f"{path}:series={number} ({series.axes.lower()} {format_shape(series.shape)}{named})"


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
            f"{absent_files(tif) or 'expected an undamaged copy'}"
        )


def _guessed_axes(axes: str, names: list[str], opened: Opened) -> str:
    """Axes whose meaning the file does not state: pages without a name, and samples stored as pages.

    Without the option ``photometric``, tifffile writes a stack of three or four sections as one colour image. In the
    description of ImageJ it calls the sections of every stack channels, unless it is told otherwise.
    """
    if opened.tif.is_imagej and set(axes) == set("cyx") and BY_TIFFFILE.match(opened.tif.pages.first.description):
        return "c"
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
