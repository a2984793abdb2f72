"""Formats that are not read or not written: named as what they are, with what would work."""

from __future__ import annotations

from pathlib import Path

from unetcli.core.errors import UnetcliError
from unetcli.core.files import ENDINGS, Place

BIOFORMATS = "bioformats2raw writes it as OME-Zarr, Fiji as TIFF"
PYTHON = "read it in Python with {0} and write a TIFF file with tifffile.imwrite"
FORMATS = {
    "czi": ("a Zeiss CZI file", BIOFORMATS),
    "nd2": ("a Nikon ND2 file", BIOFORMATS),
    "lif": ("a Leica LIF file", BIOFORMATS),
    "lof": ("a Leica LOF file", BIOFORMATS),
    "xlef": ("a Leica XLEF file", BIOFORMATS),
    "oib": ("an Olympus OIB file", BIOFORMATS),
    "oif": ("an Olympus OIF file", BIOFORMATS),
    "oir": ("an Olympus OIR file", BIOFORMATS),
    "vsi": ("an Olympus VSI file", BIOFORMATS),
    "dv": ("a DeltaVision file", BIOFORMATS),
    "mrxs": ("a MIRAX slide", BIOFORMATS),
    "dm3": ("a Gatan DM3 file", BIOFORMATS),
    "dm4": ("a Gatan DM4 file", BIOFORMATS),
    "ser": ("a TIA SER file", BIOFORMATS),
    "mrc": ("an MRC file", PYTHON.format("the package mrcfile")),
    "map": ("an MRC file", PYTHON.format("the package mrcfile")),
    "rec": ("an MRC file", PYTHON.format("the package mrcfile")),
    "nii": ("a NIfTI file", PYTHON.format("the package nibabel")),
    "nii.gz": ("a NIfTI file", PYTHON.format("the package nibabel")),
    "nrrd": ("an NRRD file", PYTHON.format("the package pynrrd")),
    "mha": ("a MetaImage file", PYTHON.format("the package SimpleITK")),
    "mhd": ("a MetaImage file", PYTHON.format("the package SimpleITK")),
    "dcm": ("a DICOM file", BIOFORMATS),
    "npy": ("a NumPy array", PYTHON.format("numpy.load")),
    "npz": ("a NumPy archive", PYTHON.format("numpy.load")),
    "mat": ("a MATLAB file", PYTHON.format("scipy.io.loadmat")),
    "bmp": ("a BMP picture", "an image viewer or Fiji saves it as PNG or TIFF"),
    "gif": ("a GIF picture", "an image viewer or Fiji saves it as PNG or TIFF"),
    "webp": ("a WebP picture", "an image viewer saves it as PNG"),
    "jp2": ("a JPEG 2000 picture", "Fiji or bioformats2raw writes it as TIFF or OME-Zarr"),
    "pgm": ("a PGM picture", "Fiji saves it as TIFF"),
    "csv": ("a table", "expected an image"),
}
"""Name of the format, and what turns it into one that is read, by the ending of the file's name."""
MAGIC = {
    b"ZISRAWFILE": "czi",
    b"\xda\xce\xbe\x0a": "nd2",
    b"\x93NUMPY": "npy",
    b"\x70\x00\x00\x00": "lif",
    b"BM": "bmp",
    b"GIF8": "gif",
    b"\0\0\0\x0cjP  ": "jp2",
}
"""First bytes of the files of some formats, whatever their name."""
NOT_WRITTEN = {".n5", ".tf8", *(f".{key}" for key in FORMATS), *ENDINGS} - {".zarr", ".ome"}
"""Endings of names that are those of files, or of folders, of other formats."""
N5 = "convert it to OME-Zarr, with the Fiji plugins n5-zarr or BigStitcher"


def require_readable_file(path: Path, head: bytes) -> None:
    """Raise :class:`UnetcliError` if a file has a known format that is not read, or is no image at all.

    ``head`` are its first bytes.
    """
    lower = path.name.lower()
    by_content = next((key for magic, key in MAGIC.items() if head.startswith(magic)), None)
    by_name = next((key for key in sorted(FORMATS, key=len, reverse=True) if lower.endswith(f".{key}")), None)
    if key := by_content or by_name:
        what, way = FORMATS[key]
        raise UnetcliError(f"{path}: {what}, which unetcli does not read; {way}")
    if lower.endswith((".png", ".jpg", ".jpeg", ".h5", ".hdf5", ".zip", ".ozx")):
        raise UnetcliError(
            f"{path}: its content is not what its name says ({path.stat().st_size:,} bytes); expected an undamaged copy"
        )


def require_readable_folder(path: Path) -> None:
    """Raise :class:`UnetcliError` if a folder is an N5 container, or a dataset in one."""
    if path.suffix.lower() == ".n5" or (path / "attributes.json").is_file():
        raise UnetcliError(f"{path}: an N5 container, which unetcli does not read; {N5}")


def require_zarr_name(output: Place) -> None:
    """Raise :class:`UnetcliError` if the name of an OME-Zarr to write is that of a file of another format.

    Other programs choose how to read a path by its ending.

    >>> require_zarr_name("s3://bucket/out.zarr")
    >>> require_zarr_name("s3://bucket/out.ome.tif")
    Traceback (most recent call last):
    unetcli.core.errors.UnetcliError: --output s3://bucket/out.ome.tif: the output is an OME-Zarr folder, not a .tif \
file; a name that works: s3://bucket/out.ome.zarr
    """
    lower = str(output).lower()
    taken = next((ending for ending in sorted(NOT_WRITTEN, key=len, reverse=True) if lower.endswith(ending)), None)
    if taken is not None:
        name = f"{str(output)[: -len(taken)].removesuffix('.zarr')}.zarr"
        raise UnetcliError(
            f"--output {output}: the output is an OME-Zarr folder, not a {taken} file; a name that works: {name}"
        )
