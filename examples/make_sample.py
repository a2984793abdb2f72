"""Make a small synthetic EM volume with truth to try a segmentation on: ``python examples/make_sample.py OUT_DIR``.

Writes OME-Zarr 0.5 images with axes z, y, x and voxels of 50 x 4 x 4 nm: ``raw.zarr`` and ``labels.zarr`` to train on,
``big.zarr`` and ``truth.zarr`` to predict and score. The two pairs have the same statistics but no cell in common. In
the labels, 0 is membrane and 255 is cell interior.

The images imitate serial-section EM of insect neuropil, as in the ISBI 2012 challenge. They are not a model of that
tissue, and the scores of a network trained on them say nothing about real images. Neurites are discs that drift from
section to section. A pixel belongs to the disc with the nearest rim, in bent coordinates, and membranes lie where the
pixels of two cells meet. Other dark structures lie inside cells and are labelled as interior.
"""

import argparse
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.spatial import cKDTree
from scipy.special import expit

Array = NDArray[np.floating]  # (y, x) of one section unless stated otherwise
Integers = NDArray[np.integer]
RESOLUTION_NM = [50.0, 4.0, 4.0]
REACH = 45  # pixels beyond its rim that may belong to a disc; those that belong to none are one more cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Settings of one volume; they determine its bytes. ``stream`` separates the random numbers of the volumes."""

    seed: int
    stream: int
    sections: int
    size: int
    recipe: int = 1  # increased when the same seed gives other images, so that older samples are replaced

    def rng(self, purpose: str, number: int = 0) -> np.random.Generator:
        """Random generator for one purpose, independent of those for other purposes."""
        return np.random.default_rng([self.seed, self.stream, number, *purpose.encode()])

    def field(self, name: str, z: int, sections: float, pixels: int) -> Array:
        """Section ``z`` of a smooth random field of standard deviation 1; knots are ``sections``, ``pixels`` apart."""
        first = int(z / sections)
        weights = spline_weights(np.array([z - first * sections]), sections, 4)[0]
        across = sparse.csr_array(spline_weights(np.arange(self.size), pixels, self.size // pixels + 4))
        planes = [w * self.rng(name, first + k).normal(size=(across.shape[1],) * 2) for k, w in enumerate(weights)]
        return across @ (across @ np.sum(planes, axis=0)).T / 0.33  # 0.33: deviation of a spline of white noise


def spline_weights(positions: NDArray[np.number], period: float, knots: int) -> Array:
    """Cubic B-spline weight of each knot at each position, (position, knot)."""
    offset = np.abs(positions[:, None] / period + 1 - np.arange(knots))
    return np.where(offset < 1, 2 / 3 - offset**2 + offset**3 / 2, np.clip(2 - offset, 0, None) ** 3 / 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discs:
    """Cross-sections of neurites, (z, disc) or (disc,); lengths in pixels. Discs with equal ``cell`` are one cell."""

    centre: Array  # (z, disc, 2): y, x
    radius: Array
    angle: Array
    stretch: Array  # square root of length over width: a neurite that is cut obliquely is an ellipse
    cell: Integers
    mitochondrion: Array  # half width of the mitochondrion inside; 0 if there is none


def draw_discs(part: Part) -> Discs:
    """Discs that fill the volume, many thin and some thick; each drifts and swells slowly along z."""
    rng = part.rng("discs")
    width = part.size + 2 * REACH
    radius = np.clip(rng.lognormal(np.log(12.0), 0.6, size=width**2 // 200), 6.5, 62)
    radius = radius[np.cumsum(np.pi * radius**2) < 1.02 * width**2]
    count = len(radius)
    swollen = radius * (1 + 0.13 * wander(rng, part.sections, count))
    centre = drift(rng, swollen, rng.uniform(-REACH, part.size + REACH, (count, 2)))
    # Some discs belong to the cell of their neighbour, which gives cells that bulge, bend and branch.
    cell = np.where(rng.random(count) < 0.3, cKDTree(centre[0]).query(centre[0], k=2)[1][:, 1], np.arange(count))
    angle = rng.normal(rng.uniform(0, np.pi), 0.6, count)
    stretch = np.exp(np.abs(rng.normal(0, 0.28, count)))
    widest = np.where(swollen > 13, np.minimum(swollen * rng.uniform(0.3, 0.5, count), 24), 0)
    inside = widest * np.sqrt(np.clip(2 * wander(rng, part.sections, count) - 1.7 + (radius > 24), 0, 1))
    return Discs(centre=centre, radius=swollen, angle=angle, stretch=stretch, cell=cell, mitochondrion=inside)


def wander(rng: np.random.Generator, sections: int, count: int) -> Array:
    """Smooth random walks (z, count) with standard deviation 1 that change direction within about six sections."""
    noise = rng.normal(size=(sections + 24, count))
    return ndimage.gaussian_filter1d(noise, 3.0, axis=0)[12:-12] * 3.3


def drift(rng: np.random.Generator, radius: Array, start: Array) -> Array:
    """Centres (z, disc, 2) of discs that move about two pixels per section without overlapping much."""
    moves = rng.normal(0, 0.8, start.shape) + 1.1 * np.stack([wander(rng, *radius.shape) for _ in "yx"], axis=2)
    centres = [push_apart(start, radius[0], rounds=60)]
    for move, now in zip(moves[1:], radius[1:], strict=True):
        centres.append(push_apart(centres[-1] + move, now, rounds=2))
    return np.array(centres)


def push_apart(centre: Array, radius: Array, rounds: int) -> Array:
    """Centres (disc, 2) after overlapping discs have moved apart."""
    centre = centre.copy()
    for _ in range(rounds):
        pairs = cKDTree(centre).query_pairs(2 * radius.max(), output_type="ndarray").T  # (2, pair)
        away = centre[pairs[0]] - centre[pairs[1]]
        gap = np.hypot(*away.T) + 1e-6
        push = away * (0.2 * np.clip(radius[pairs].sum(axis=0) - gap, 0, None) / gap)[:, None]
        np.add.at(centre, pairs, [push, -push])
    return centre


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Geometry of one section; arrays are (y, x)."""

    part: Part
    z: int
    bent: Array  # (2, y, x): deformed coordinates y and x, in which discs are round and membranes straight
    cell: Integers
    depth: Array  # distance in pixels to the nearest line where two cells meet


def cut(part: Part, discs: Discs, z: int) -> Section:
    """Geometry of section ``z``, with a small random shift as after an imperfect alignment."""
    bent = np.indices((part.size, part.size)) + part.rng("shift", z).normal(0, 0.6, (2, 1, 1))
    for axis in (0, 1):
        bent[axis] += 7 * part.field(f"bend {axis}", z, 6, 38) + 1.2 * part.field(f"ripple {axis}", z, 2, 9)
    cell = np.append(discs.cell, -1)[nearest_disc(discs, z, bent)]
    return Section(part=part, z=z, bent=bent, cell=cell, depth=membrane_distance(cell))


def window_around(centre: Array, angle: float, reach: float, bent: Array) -> tuple[tuple[slice, ...], Array, Array]:
    """Window around a point, and the coordinates of its pixels along and across the direction ``angle``."""
    margin = reach + 25  # bent coordinates differ by up to 25 pixels
    low, high = (np.clip(centre + sign * margin, 0, bent.shape[1]).astype(int) for sign in (-1, 1))
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    y, x = bent[:, *window] - centre[:, None, None]
    return window, x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def nearest_disc(discs: Discs, z: int, bent: Array) -> Integers:
    """Disc with the nearest rim, or the one that the pixel lies deepest in; -1 beyond ``REACH`` of all discs."""
    owner, best = np.full(bent.shape[1:], -1), np.full(bent.shape[1:], float(REACH))
    for i, (centre, radius, stretch) in enumerate(zip(discs.centre[z], discs.radius[z], discs.stretch, strict=True)):
        window, along, across = window_around(centre, discs.angle[i], radius * stretch + 20, bent)
        beyond = np.hypot(along / stretch, across * stretch) - radius
        nearer = beyond < best[window]
        best[window][nearer], owner[window][nearer] = beyond[nearer], i
    return owner


def membrane_distance(cell: Integers) -> Array:
    """Distance in pixels to the line where two cells meet; 0.5 for the pixels next to it."""
    meets = ndimage.morphological_gradient(cell, footprint=ndimage.generate_binary_structure(2, 1)) > 0
    return ndimage.distance_transform_edt(~meets) + 0.5


def draw_truth(section: Section) -> NDArray[np.uint8]:
    """Truth: 0 on a line four pixels wide between any two cells, 255 inside them."""
    return np.where(section.depth < 2.2, 0, 255).astype(np.uint8)


def draw_image(section: Section, discs: Discs) -> NDArray[np.uint8]:
    """Image of a section: cytoplasm, organelles, membranes, and the blur and noise of the microscope."""
    part, z, rng = section.part, section.z, section.part.rng("image", section.z)
    organelles = np.max([mitochondria(section, discs), tubules(section), vesicles(section, rng)], axis=0)
    grey = cytoplasm(section, rng) - organelles * expit((section.depth - 4) / 0.7)
    grey += membranes(section) * (42 - grey)
    smudges = 0.8 * np.clip(part.field("smudge", z, 2.5, 30) - 1, 0, 1)  # as at synapses
    grey += smudges * bump(section.depth, 9.0) * (40 - grey)
    return expose(ndimage.gaussian_filter(grey, 0.7), part.field("light", z, 9, 190), rng)


def bump(distance: Array, width: float) -> Array:
    """Gaussian profile: 1 at distance 0, 1/e at ``width``."""
    return np.exp(-((distance / width) ** 2))


def per_cell(section: Section, purpose: str) -> Array:
    """Normal random number of each pixel's cell, the same on all sections."""
    return section.part.rng(purpose).normal(size=section.part.size**2)[section.cell]


def cytoplasm(section: Section, rng: np.random.Generator) -> Array:
    """Grey values of the cytoplasm: one base per cell, much darker in some, like glia, with a granular texture."""
    base = 167 + 14 * per_cell(section, "grey") - 38 * (per_cell(section, "glia") > 1.3)
    clots, grain = rng.normal(size=(2, *section.cell.shape))
    return base + 95 * ndimage.gaussian_filter(clots, 2.2) + 25 * ndimage.gaussian_filter(grain, 1.0)


def membranes(section: Section) -> Array:
    """Share of membrane in each pixel: sharp where it is cut perpendicularly, wide and faint where cut obliquely."""
    slant = expit((section.part.field("slant", section.z, 3, 34) - 0.85) / 0.25)
    strength = np.clip(0.82 + 0.18 * section.part.field("strength", section.z, 3, 22), 0.35, 1)
    return strength * ((1 - slant) * bump(section.depth, 2.6) + slant * 0.5 * bump(section.depth, 6.5))


def mitochondria(section: Section, discs: Discs) -> Array:
    """Darkness of mitochondria: a dark rim around a grey body with wavy stripes, the cristae."""
    dark, z = np.zeros_like(section.depth), section.z
    waver = 2.0 * section.part.field("crista", z, 2, 14)
    for i in np.flatnonzero(discs.mitochondrion[z] > 3):
        half, length, angle = discs.mitochondrion[z, i], 0.9 + 0.5 * discs.stretch[i], discs.angle[i]
        aside = 0.3 * discs.radius[z, i] * np.array([np.sin(7 * angle), np.cos(7 * angle)])  # any fixed direction
        window, along, across = window_around(discs.centre[z, i] + aside, angle, half * length, section.bent)
        inward = np.minimum(half - np.hypot(along / length, across), section.depth[window] - 5)
        inward[section.cell[window] != discs.cell[i]] = -9
        stripes = np.sin(along * 0.85 + waver[window]) * expit((inward - 3) / 0.8)
        dark[window] += expit(inward / 0.6) * (55 + 24 * stripes) + 40 * bump(inward - 1, 1.5)
    return dark


def tubules(section: Section) -> Array:
    """Darkness of thin winding lines, like smooth reticulum, in some regions: contour lines of a random field."""
    level = section.part.field("tubule", section.z, 1.2, 15)
    distance = level / (np.hypot(*np.gradient(level)) + 0.02)
    return 60 * bump(distance, 1.5) * expit((section.part.field("reticulum", section.z, 4, 45) - 0.8) / 0.15)


def vesicles(section: Section, rng: np.random.Generator) -> Array:
    """Darkness of vesicles (rings) and microtubules (rings of radius 0), which are dense in some cells."""
    size, tries = section.part.size, section.part.size**2 // 60
    at = rng.uniform(0, size, (tries, 2))
    radius = rng.choice([0, 2.2, 3, 4, 5.5], tries, p=[0.35, 0.25, 0.2, 0.15, 0.05])
    pixel = tuple(at.astype(int).T)
    crowded = rng.random(tries) < 0.25 * np.exp(0.8 * per_cell(section, "vesicles")[pixel])
    kept = crowded & (section.depth[pixel] > radius + 3.5)
    at, radius, dark = at[kept], radius[kept, None, None], rng.uniform(20, 75, (kept.sum(), 1, 1))
    rows, columns = at.astype(int).T[:, :, None] + np.arange(17)  # (ring, 17) on a canvas with a margin of 8 pixels
    away = np.hypot((rows - 8 - at[:, :1])[:, :, None], (columns - 8 - at[:, 1:])[:, None, :])
    canvas = np.zeros((size + 16, size + 16))
    np.maximum.at(canvas, (rows[:, :, None], columns[:, None, :]), dark * bump(away - radius, 1.2))
    return canvas[8:-8, 8:-8]


def expose(grey: Array, light: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Expose an image: uneven illumination, random gain and offset, and noise of pixels and of small groups."""
    picture = (grey - 128) * rng.normal(1.0, 0.06) + 128 + rng.normal(0, 7) + 9 * light
    groups, single = rng.normal(size=(2, *grey.shape))
    return np.clip(picture + 30 * ndimage.gaussian_filter(groups, 0.8) + 13 * single, 0, 255).astype(np.uint8)


def create_image(path: Path, part: Part) -> zarr.Array:
    """Create an empty OME-Zarr 0.5 image, uint8, with the shape of the part."""
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": RESOLUTION_NM}]}]
    ome = {"version": "0.5", "multiscales": [{"name": path.stem.lstrip("."), "axes": axes, "datasets": datasets}]}
    group = zarr.create_group(path, zarr_format=3, overwrite=True, attributes={"ome": ome, "make_sample": asdict(part)})
    shape, side = (part.sections, part.size, part.size), min(256, part.size)
    return group.create_array("0", shape=shape, chunks=(1, side, side), dtype="uint8", dimension_names=["z", "y", "x"])


def is_made(path: Path, part: Part) -> bool:
    """Whether ``path`` already holds this part; exits if it holds anything that this script did not write."""
    made = zarr.open(path, mode="r").attrs.get("make_sample") if (path / "zarr.json").exists() else None
    if path.exists() and made is None:
        raise SystemExit(f"{path} exists and was not written by make_sample.py; choose another OUT_DIR or move it away")
    return made == asdict(part)


def make_part(folder: Path, part: Part, names: tuple[str, str]) -> str:
    """Write image and truth of one part as drafts, then rename them; returns a line that says what was done."""
    paths = [folder / f"{name}.zarr" for name in names]
    description = f"{' and '.join(path.name for path in paths)} ({part.sections} x {part.size} x {part.size})"
    made = [is_made(path, part) for path in paths]
    if all(made):
        return f"kept {description}"
    drafts = [folder / f".{name}.draft" for name in names]
    image, truth = (create_image(draft, part) for draft in drafts)
    discs = draw_discs(part)
    for z in range(part.sections):
        section = cut(part, discs, z)
        image[z], truth[z] = draw_image(section, discs), draw_truth(section)
    for draft, path in zip(drafts, paths, strict=True):
        shutil.rmtree(path, ignore_errors=True)
        draft.rename(path)
    return f"made {description}"


def main() -> None:
    """Make the sample as set on the command line."""
    parser = argparse.ArgumentParser(description="Make a small synthetic EM volume with truth, as OME-Zarr.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    for option, default in {"train-sections": 10, "sections": 30, "size": 512, "seed": 2015}.items():
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    if min(options.train_sections, options.sections) < 1 or options.size < 32 or options.seed < 0:
        parser.error("expected --train-sections and --sections >= 1, --size >= 32 and --seed >= 0")
    train = Part(seed=options.seed, stream=0, sections=options.train_sections, size=options.size)
    other = Part(seed=options.seed, stream=1, sections=options.sections, size=options.size)
    done = [make_part(options.out_dir, train, ("raw", "labels")), make_part(options.out_dir, other, ("big", "truth"))]
    print(f"{', '.join(done)} in {options.out_dir}", file=sys.stderr)


if __name__ == "__main__":
    main()
