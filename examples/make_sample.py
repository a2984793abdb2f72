"""A small made-up EM volume with truth, to try a segmentation on: ``python examples/make_sample.py OUT_DIR``.

Writes OME-Zarr 0.5 images, axes z, y, x at 50 x 4 x 4 nm: ``raw.zarr`` and ``labels.zarr`` to train on, ``big.zarr``
and ``truth.zarr`` to predict and to check. They share their statistics but no cell. 0 is membrane, 255 cell interior.

The look aimed for is serial-section EM of insect neuropil, as in the ISBI 2012 challenge. It is no model of that
tissue: a network trained here has learnt these pictures, and what it scores says nothing about real ones. Neurites are
discs that wander from section to section; a pixel belongs to the disc whose rim is nearest, in bent coordinates, and
membranes lie where owners meet. All else that is dark lies inside a cell and is labelled as interior.
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

Array = NDArray[np.floating]  # (y, x) of one section unless said otherwise
Integers = NDArray[np.integer]
RESOLUTION_NM = [50.0, 4.0, 4.0]
REACH = 45  # pixels beyond its rim that a disc may own; further out nothing does, and that is a cell too


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One volume of the sample: all that decides its bytes. ``stream`` keeps the volumes' random numbers apart."""

    seed: int
    stream: int
    sections: int
    size: int
    recipe: int = 1  # raised when the same seed gives another picture, so that an older sample is made anew

    def rng(self, purpose: str, number: int = 0) -> np.random.Generator:
        """Random numbers for one purpose, the same whatever was drawn for the others."""
        return np.random.default_rng([self.seed, self.stream, number, *purpose.encode()])

    def field(self, name: str, z: int, sections: float, pixels: int) -> Array:
        """Section ``z`` of a smooth random field of deviation 1; ``sections`` and ``pixels`` lie between its knots."""
        first = int(z / sections)
        weights = spline_weights(np.array([z - first * sections]), sections, 4)[0]
        across = sparse.csr_array(spline_weights(np.arange(self.size), pixels, self.size // pixels + 4))
        planes = [w * self.rng(name, first + k).normal(size=(across.shape[1],) * 2) for k, w in enumerate(weights)]
        return across @ (across @ np.sum(planes, axis=0)).T / 0.33  # the deviation of a cubic spline of white noise


def spline_weights(positions: NDArray[np.number], period: float, knots: int) -> Array:
    """Cubic B-spline weight of each knot at each position, (position, knot)."""
    offset = np.abs(positions[:, None] / period + 1 - np.arange(knots))
    return np.where(offset < 1, 2 / 3 - offset**2 + offset**3 / 2, np.clip(2 - offset, 0, None) ** 3 / 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discs:
    """Cross-sections of neurites, (z, disc) or (disc,), lengths in pixels; discs of equal ``cell`` are one cell."""

    centre: Array  # (z, disc, 2): y, x
    radius: Array
    angle: Array
    stretch: Array  # its square is length over width: a neurite cut at a slant is an ellipse
    cell: Integers
    mitochondrion: Array  # half the width of the one inside, 0 where there is none


def draw_discs(part: Part) -> Discs:
    """Discs that fill the volume, many thin and some thick, each drifting and swelling slowly along z."""
    rng = part.rng("discs")
    width = part.size + 2 * REACH
    radius = np.clip(rng.lognormal(np.log(12.0), 0.6, size=width**2 // 200), 6.5, 62)
    radius = radius[np.cumsum(np.pi * radius**2) < 1.02 * width**2]
    count = len(radius)
    swollen = radius * (1 + 0.13 * wander(rng, part.sections, count))
    centre = drift(rng, swollen, rng.uniform(-REACH, part.size + REACH, (count, 2)))
    # Some join their neighbour, which gives cells that bulge, bend and branch.
    cell = np.where(rng.random(count) < 0.3, cKDTree(centre[0]).query(centre[0], k=2)[1][:, 1], np.arange(count))
    angle = rng.normal(rng.uniform(0, np.pi), 0.6, count)
    stretch = np.exp(np.abs(rng.normal(0, 0.28, count)))
    widest = np.where(swollen > 13, np.minimum(swollen * rng.uniform(0.3, 0.5, count), 24), 0)
    inside = widest * np.sqrt(np.clip(2 * wander(rng, part.sections, count) - 1.7 + (radius > 24), 0, 1))
    return Discs(centre=centre, radius=swollen, angle=angle, stretch=stretch, cell=cell, mitochondrion=inside)


def wander(rng: np.random.Generator, sections: int, count: int) -> Array:
    """Random courses of deviation 1 that turn within about six sections, (z, count)."""
    noise = rng.normal(size=(sections + 24, count))
    return ndimage.gaussian_filter1d(noise, 3.0, axis=0)[12:-12] * 3.3


def drift(rng: np.random.Generator, radius: Array, start: Array) -> Array:
    """Centres of discs that move two pixels or so per section and give way to each other, (z, disc, 2)."""
    moves = rng.normal(0, 0.8, start.shape) + 1.1 * np.stack([wander(rng, *radius.shape) for _ in "yx"], axis=2)
    centres = [push_apart(start, radius[0], rounds=60)]
    for move, now in zip(moves[1:], radius[1:], strict=True):
        centres.append(push_apart(centres[-1] + move, now, rounds=2))
    return np.array(centres)


def push_apart(centre: Array, radius: Array, rounds: int) -> Array:
    """Centres after overlapping discs have moved off each other, (disc, 2)."""
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
    """Where everything is on one section, arrays of (y, x)."""

    part: Part
    z: int
    bent: Array  # (2, y, x): coordinates y and x in which discs are round and membranes straight
    cell: Integers
    depth: Array  # pixels to the nearest line where two cells meet


def cut(part: Part, discs: Discs, z: int) -> Section:
    """Geometry of section ``z``, off by what an alignment leaves."""
    bent = np.indices((part.size, part.size)) + part.rng("shift", z).normal(0, 0.6, (2, 1, 1))
    for axis in (0, 1):
        bent[axis] += 7 * part.field(f"bend {axis}", z, 6, 38) + 1.2 * part.field(f"ripple {axis}", z, 2, 9)
    cell = np.append(discs.cell, -1)[nearest_disc(discs, z, bent)]
    return Section(part=part, z=z, bent=bent, cell=cell, depth=membrane_distance(cell))


def around(centre: Array, angle: float, reach: float, bent: Array) -> tuple[tuple[slice, ...], Array, Array]:
    """Window about a place (bends stray up to 25 pixels), and in it the coordinates along and across a direction."""
    low, high = (np.clip(centre + sign * (reach + 25), 0, bent.shape[1]).astype(int) for sign in (-1, 1))
    here = (slice(low[0], high[0]), slice(low[1], high[1]))
    y, x = bent[:, *here] - centre[:, None, None]
    return here, x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def nearest_disc(discs: Discs, z: int, bent: Array) -> Integers:
    """Number of the disc whose rim is nearest, or within which the pixel lies deepest; -1 beyond reach of all."""
    owner, best = np.full(bent.shape[1:], -1), np.full(bent.shape[1:], float(REACH))
    for i, (centre, radius, stretch) in enumerate(zip(discs.centre[z], discs.radius[z], discs.stretch, strict=True)):
        here, along, across = around(centre, discs.angle[i], radius * stretch + 20, bent)
        beyond = np.hypot(along / stretch, across * stretch) - radius
        nearer = beyond < best[here]
        best[here][nearer], owner[here][nearer] = beyond[nearer], i
    return owner


def membrane_distance(cell: Integers) -> Array:
    """Pixels from the line where two cells meet; 0.5 right beside it, on both sides."""
    meets = ndimage.morphological_gradient(cell, footprint=ndimage.generate_binary_structure(2, 1)) > 0
    return ndimage.distance_transform_edt(~meets) + 0.5


def draw_truth(section: Section) -> NDArray[np.uint8]:
    """0 on a line four pixels wide that parts any two cells, 255 inside them."""
    return np.where(section.depth < 2.2, 0, 255).astype(np.uint8)


def draw_image(section: Section, discs: Discs) -> NDArray[np.uint8]:
    """What the microscope shows: cells, what they hold, their membranes, all seen through its optics."""
    part, z, rng = section.part, section.z, section.part.rng("image", section.z)
    organelles = np.max([mitochondria(section, discs), tubules(section), vesicles(section, rng)], axis=0)
    grey = cytoplasm(section, rng) - organelles * expit((section.depth - 4) / 0.7)
    grey += membranes(section) * (42 - grey)
    smudges = 0.8 * np.clip(part.field("smudge", z, 2.5, 30) - 1, 0, 1)  # as at synapses
    grey += smudges * bump(section.depth, 9.0) * (40 - grey)
    return expose(ndimage.gaussian_filter(grey, 0.7), part.field("light", z, 9, 190), rng)


def bump(distance: Array, width: float) -> Array:
    """1 at distance 0, fading over ``width``."""
    return np.exp(-((distance / width) ** 2))


def of_cells(section: Section, purpose: str) -> Array:
    """A normal random number for each cell, the same on all sections."""
    return section.part.rng(purpose).normal(size=section.part.size**2)[section.cell]


def cytoplasm(section: Section, rng: np.random.Generator) -> Array:
    """Grey of the insides: each cell its own, some much darker as glia is, all of them clotted."""
    base = 167 + 14 * of_cells(section, "grey") - 38 * (of_cells(section, "glia") > 1.3)
    clots, grain = rng.normal(size=(2, *section.cell.shape))
    return base + 95 * ndimage.gaussian_filter(clots, 2.2) + 25 * ndimage.gaussian_filter(grain, 1.0)


def membranes(section: Section) -> Array:
    """Share of membrane in each pixel: sharp where cut across, wide and faint where cut at a slant."""
    slant = expit((section.part.field("slant", section.z, 3, 34) - 0.85) / 0.25)
    strength = np.clip(0.82 + 0.18 * section.part.field("strength", section.z, 3, 22), 0.35, 1)
    return strength * ((1 - slant) * bump(section.depth, 2.6) + slant * 0.5 * bump(section.depth, 6.5))


def mitochondria(section: Section, discs: Discs) -> Array:
    """Darkness of mitochondria: a dark rim about a grey body with wavering stripes, the cristae."""
    dark, z = np.zeros_like(section.depth), section.z
    waver = 2.0 * section.part.field("crista", z, 2, 14)
    for i in np.flatnonzero(discs.mitochondrion[z] > 3):
        half, length, angle = discs.mitochondrion[z, i], 0.9 + 0.5 * discs.stretch[i], discs.angle[i]
        aside = 0.3 * discs.radius[z, i] * np.array([np.sin(7 * angle), np.cos(7 * angle)])  # any fixed direction
        here, along, across = around(discs.centre[z, i] + aside, angle, half * length, section.bent)
        inward = np.minimum(half - np.hypot(along / length, across), section.depth[here] - 5)
        inward[section.cell[here] != discs.cell[i]] = -9
        stripes = np.sin(along * 0.85 + waver[here]) * expit((inward - 3) / 0.8)
        dark[here] += expit(inward / 0.6) * (55 + 24 * stripes) + 40 * bump(inward - 1, 1.5)
    return dark


def tubules(section: Section) -> Array:
    """Darkness of thin winding lines in some places, like smooth reticulum: level lines of a field."""
    level = section.part.field("tubule", section.z, 1.2, 15)
    distance = level / (np.hypot(*np.gradient(level)) + 0.02)
    return 60 * bump(distance, 1.5) * expit((section.part.field("reticulum", section.z, 4, 45) - 0.8) / 0.15)


def vesicles(section: Section, rng: np.random.Generator) -> Array:
    """Darkness of vesicles (rings) and microtubules (dots, rings of radius 0), crowded in some cells."""
    size, tries = section.part.size, section.part.size**2 // 60
    at = rng.uniform(0, size, (tries, 2))
    radius = rng.choice([0, 2.2, 3, 4, 5.5], tries, p=[0.35, 0.25, 0.2, 0.15, 0.05])
    pixel = tuple(at.astype(int).T)
    crowded = rng.random(tries) < 0.25 * np.exp(0.8 * of_cells(section, "vesicles")[pixel])
    kept = crowded & (section.depth[pixel] > radius + 3.5)
    at, radius, dark = at[kept], radius[kept, None, None], rng.uniform(20, 75, (kept.sum(), 1, 1))
    rows, columns = at.astype(int).T[:, :, None] + np.arange(17)  # (ring, 17) on a canvas 8 pixels wider all round
    away = np.hypot((rows - 8 - at[:, :1])[:, :, None], (columns - 8 - at[:, 1:])[:, None, :])
    canvas = np.zeros((size + 16, size + 16))
    np.maximum.at(canvas, (rows[:, :, None], columns[:, None, :]), dark * bump(away - radius, 1.2))
    return canvas[8:-8, 8:-8]


def expose(grey: Array, light: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One exposure: uneven light, a gain and an offset of its own, noise of single pixels and of small groups."""
    picture = (grey - 128) * rng.normal(1.0, 0.06) + 128 + rng.normal(0, 7) + 9 * light
    groups, single = rng.normal(size=(2, *grey.shape))
    return np.clip(picture + 30 * ndimage.gaussian_filter(groups, 0.8) + 13 * single, 0, 255).astype(np.uint8)


def create_image(path: Path, part: Part) -> zarr.Array:
    """Empty OME-Zarr 0.5 image of the part's shape, uint8."""
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": RESOLUTION_NM}]}]
    ome = {"version": "0.5", "multiscales": [{"name": path.stem.lstrip("."), "axes": axes, "datasets": datasets}]}
    group = zarr.create_group(path, zarr_format=3, overwrite=True, attributes={"ome": ome, "make_sample": asdict(part)})
    shape, side = (part.sections, part.size, part.size), min(256, part.size)
    return group.create_array("0", shape=shape, chunks=(1, side, side), dtype="uint8", dimension_names=["z", "y", "x"])


def is_made(path: Path, part: Part) -> bool:
    """Whether ``path`` holds this very part already; what this script did not make it leaves alone, and stops."""
    made = zarr.open(path, mode="r").attrs.get("make_sample") if (path / "zarr.json").exists() else None
    if path.exists() and made is None:
        raise SystemExit(f"{path} exists and is not from this script; name another folder, or move it away")
    return made == asdict(part)


def make_part(folder: Path, part: Part, names: tuple[str, str]) -> str:
    """Image and truth of one part, written as drafts and then renamed; says what was done."""
    paths = [folder / f"{name}.zarr" for name in names]
    what = f"{' and '.join(path.name for path in paths)} ({part.sections} x {part.size} x {part.size})"
    made = [is_made(path, part) for path in paths]
    if all(made):
        return f"kept {what}"
    drafts = [folder / f".{name}.draft" for name in names]
    image, truth = (create_image(draft, part) for draft in drafts)
    discs = draw_discs(part)
    for z in range(part.sections):
        section = cut(part, discs, z)
        image[z], truth[z] = draw_image(section, discs), draw_truth(section)
    for draft, path in zip(drafts, paths, strict=True):
        shutil.rmtree(path, ignore_errors=True)
        draft.rename(path)
    return f"made {what}"


def main() -> None:
    """Make the sample that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make a small EM-like volume with truth, as OME-Zarr.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    for option, default in {"train-sections": 10, "sections": 30, "size": 512, "seed": 2015}.items():
        parser.add_argument(f"--{option}", type=int, default=default, metavar="N", help="default: %(default)s")
    asked = parser.parse_args()
    if min(asked.train_sections, asked.sections) < 1 or asked.size < 32 or asked.seed < 0:
        parser.error("needs at least 1 section, a size of 32 and a seed of 0")
    train = Part(seed=asked.seed, stream=0, sections=asked.train_sections, size=asked.size)
    other = Part(seed=asked.seed, stream=1, sections=asked.sections, size=asked.size)
    done = [make_part(asked.out_dir, train, ("raw", "labels")), make_part(asked.out_dir, other, ("big", "truth"))]
    print(f"{', '.join(done)} in {asked.out_dir}", file=sys.stderr)


if __name__ == "__main__":
    main()
