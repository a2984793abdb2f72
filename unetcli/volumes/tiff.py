"""TIFF stacks as lazily read volumes, through tifffile's Zarr view."""

from __future__ import annotations

import weakref

import tifffile
import zarr

from unetcli.core.errors import UnetcliError
from unetcli.volumes.volume import Volume, axes_from_names, stored_names

SAMPLES, UNKNOWN = "s", "qi"
"""tifffile's letters: interleaved samples of a pixel, and a stack whose pages have no stated meaning."""


def open_tiff(path: str) -> Volume:
    """The one image series of a TIFF file, (c,) (t,) (z,) y, x; pages are read when asked for."""
    try:
        with tifffile.TiffFile(path) as tif:
            _require_one_series(path, tif)
        store = tifffile.imread(path, aszarr=True, level=0)
        array = zarr.open_array(store, mode="r")
        weakref.finalize(array, store.close)  # the file stays open as long as the array lives
    except UnetcliError:
        raise
    except Exception as error:
        raise UnetcliError(f"{path}: not a TIFF file that can be read ({error})") from error
    names = stored_names(array)  # tifffile gives a view of Zarr v2, from 2026.5 on of v3
    assert names is not None, f"tifffile {tifffile.__version__} names no axes"
    axes = axes_from_names(path, _letters(names), array.ndim)
    return Volume(path=path, array=array, stored_axes=axes, assumed=_unsaid(axes, names))


def _require_one_series(path: str, tif: tifffile.TiffFile) -> None:
    if len(tif.series) != 1:
        shapes = ", ".join("x".join(map(str, series.shape)) for series in tif.series[:4])
        raise UnetcliError(f"{path}: {len(tif.series)} images of different kind ({shapes}, ..); expected one stack")


def _unsaid(axes: str, names: list[str]) -> str:
    """Axes whose letters are a guess: pages without stated meaning, and samples that are pages.

    tifffile writes any stack of three or four sections as the samples of one colour image, unless told that it is grey.
    """
    found = "".join(name.lower()[:1] for name in names)
    guessed = UNKNOWN + (SAMPLES if SAMPLES in found.partition("y")[0] else "")
    return "".join(axis for axis, letter in zip(axes, found, strict=True) if letter in guessed)


def _letters(names: list[str]) -> list[str]:
    """Our letters for tifffile's: samples are channels, unlabelled pages are sections, beyond those time."""
    found = [name.lower()[:1] for name in names]
    for place, letter in reversed(list(enumerate(found))):
        if letter == SAMPLES:
            found[place] = "c"
        elif letter in UNKNOWN:
            found[place] = "z" if "z" not in found else "t"
    return found
