"""Synthetic H&E tissue with its ground truth, in NYCU HW3's layout and formats.

For tests, and for a run from training to scores without data, GPU or network; not for
learning about real tissue. The four classes differ in size, shape and stain:

1. epithelial: large oval nuclei, pale, with clumped chromatin and a dark rim, in nests;
2. lymphocyte: small, round, very dark;
3. neutrophil: a few small dark lobes, joined or apart, in pink cytoplasm;
4. macrophage: large pale foamy cells, oval to kidney-shaped, with a nucleus inside.

Images are computed in optical density: each pixel holds an amount of haematoxylin and one
of eosin, and light passes through both by the law of Beer and Lambert, with the stain
vectors of Ruifrok & Johnston (Analytical and Quantitative Cytology and Histology 23(4),
2001, 291-299).
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.stains import EOSIN, HAEMATOXYLIN

Floats = NDArray[np.float32]

EPITHELIAL, LYMPHOCYTE, NEUTROPHIL, MACROPHAGE = range(4)
# Median area in pixels of NYCU HW3's cells, by class.
MEDIAN_AREAS = (780.0, 278.0, 566.0, 2356.0)
# Fraction of each class. In NYCU HW3, neutrophils and macrophages are 2 % each, too few for a
# small set.
MIX = (0.35, 0.35, 0.15, 0.15)
# Chance that a cell is placed next to an earlier one of its class.
_CLUSTERING = (0.6, 0.35, 0.0, 0.2)

# Height, width of the images of a set, in turn.
SIZES = ((160, 192), (192, 160), (144, 208), (176, 176), (208, 128), (128, 224))

MARKER = "synthetic.json"


def draw_tissue(
    height: int,
    width: int,
    rng: np.random.Generator,
    cells_per_megapixel: float = 700,
    scale: float = 0.75,
    mix: Sequence[float] = MIX,
) -> tuple[NDArray[np.uint8], list[NDArray[np.int32]]]:
    """Draw one image of tissue and the ground truth of its cells.

    Parameters
    ----------
    height, width
        Size in pixels, from 1 x 1.
    rng
        Random generator; the same state gives the same image.
    cells_per_megapixel
        Cells per million pixels. Cells that find no room in 40 tries are omitted.
    scale
        Length relative to NYCU HW3's images; below 1, a small image holds many cells.
    mix
        `(4,)` relative frequencies of the classes.

    Returns
    -------
    image
        `(height, width, 3)` uint8 RGB.
    labels
        Four label maps `(height, width)` int32, one per class: 0 is background, each other
        value one cell. Labels continue across the classes. Cells don't overlap; they can be
        cut by the image's edge, have holes, or be in several pieces.

    Raises
    ------
    ValueError
        If a size is below 1, a number is negative or `mix` isn't four weights.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {height} x {width} pixels can't be drawn")
    if not (scale > 0 and cells_per_megapixel >= 0):
        raise ValueError(f"{scale=} must be above 0 and {cells_per_megapixel=} not below 0")
    weights = np.asarray(mix, float)
    if weights.shape != (4,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"{mix=} must be four weights, none below 0 and not all 0")

    tissue = _Tissue(height, width, rng, scale)
    n_cells = int(cells_per_megapixel * height * width / 1e6 + rng.random())
    # The largest first, so that there is room for them.
    classes = rng.choice(4, n_cells, p=weights / weights.sum())
    for class_ in sorted(classes.tolist(), key=lambda class_: -MEDIAN_AREAS[class_]):
        tissue.place(class_)
    return tissue.render(), tissue.label_maps()


def _noise(rng: np.random.Generator, height: int, width: int, size: float) -> Floats:
    """Return `(height, width)` smooth noise, mean 0, deviation near 1, spots of `size` px."""
    # Blurred white noise on a coarse grid, enlarged: much cheaper than a wide blur.
    step = max(1, round(size / 3))
    grid = rng.standard_normal((height // step + 4, width // step + 4), np.float32)
    sigma = max(size / step / 2, 0.5)
    grid = cv2.GaussianBlur(grid, (0, 0), sigma) * np.float32(2 * sigma * np.sqrt(np.pi))
    if step > 1:
        grid = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    begin = step + step // 2
    return np.ascontiguousarray(grid[begin : begin + height, begin : begin + width])


def _ramp(value: Floats, low: float, high: float) -> Floats:
    """Return 0 below `low`, 1 above `high`, linear between."""
    ramp: Floats = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return ramp


class _Tissue:
    """Two stain maps and a map of cells, to which cells are added one by one."""

    def __init__(self, height: int, width: int, rng: np.random.Generator, scale: float) -> None:
        self.rng = rng
        self.scale = scale
        self.size = height, width
        self.cells = np.zeros((height, width), np.int32)
        self.classes: list[int] = []
        # y, x and radius of the cells of each class.
        self.placed: list[list[tuple[float, float, float]]] = [[], [], [], []]

        def noise(size: float) -> Floats:
            return _noise(rng, height, width, size * scale)

        # Where epithelium, stroma and empty glass are, with ragged borders.
        ragged = 0.12 * noise(14)
        self.nest = _ramp(noise(150) + ragged, 0.1, 0.3)
        self.glass = _ramp(noise(110) + ragged, 1.5, 1.7)
        self.chromatin = noise(4)
        self.foam = noise(7)
        mottle = noise(30)
        self.bends = noise(90)
        self.direction = rng.uniform(0, np.pi)
        fibres = self._fibres()
        grain = noise(2.5)

        stroma_eosin = 0.19 + 0.06 * fibres + 0.03 * mottle + 0.03 * grain
        stroma_haematoxylin = 0.1 + 0.03 * fibres + 0.02 * mottle + 0.01 * grain
        nest_eosin = 0.22 + 0.03 * mottle + 0.03 * self.foam + 0.03 * grain
        nest_haematoxylin = 0.15 + 0.02 * mottle + 0.03 * self.foam + 0.02 * grain
        tissue = 1 - self.glass
        self.eosin = tissue * (stroma_eosin + self.nest * (nest_eosin - stroma_eosin))
        self.haematoxylin = tissue * (
            stroma_haematoxylin + self.nest * (nest_haematoxylin - stroma_haematoxylin)
        )
        # Tissue is a little denser where it ends.
        self.eosin += 0.5 * self.glass * tissue

    def _fibres(self) -> Floats:
        """Return `(H, W)` bundles of wavy strands in one direction, deviation near 1."""
        height, width = self.size
        y = np.arange(height, dtype=np.float32)[:, None] / np.float32(self.scale)
        x = np.arange(width, dtype=np.float32)[None] / np.float32(self.scale)
        sine, cosine = np.float32(np.sin(self.direction)), np.float32(np.cos(self.direction))
        across = y * cosine - x * sine + 22 * self.bends
        along = x * cosine + y * sine + 10 * self.bends
        strands = _noise(self.rng, 512, 512, 4) + _noise(self.rng, 512, 512, 9)
        waves: NDArray[np.float32] = cv2.remap(
            strands / np.float32(np.sqrt(2)),
            along / 8,
            across,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        return waves

    def place(self, class_: int) -> None:
        """Add a cell of class `class_` (0…3) if there is room."""
        rng, (height, width) = self.rng, self.size
        area = MEDIAN_AREAS[class_] * self.scale**2 * np.exp(rng.normal(0, 0.25))
        radius = float(np.sqrt(area / np.pi))
        half, depth, core = _shape(class_, radius, rng)
        total = np.count_nonzero(depth > 0)
        for attempt in range(40):
            y = rng.uniform(-radius / 2, height + radius / 2)
            x = rng.uniform(-radius / 2, width + radius / 2)
            neighbours = self.placed[class_]
            # Two adjacent neutrophils look like one with more lobes.
            if class_ == NEUTROPHIL and any(
                math.hypot(y - b, x - a) < 1.6 * (radius + other) for b, a, other in neighbours
            ):
                continue
            if neighbours and rng.random() < _CLUSTERING[class_]:
                y, x, other = neighbours[rng.integers(len(neighbours))]
                angle = rng.uniform(0, 2 * np.pi)
                distance = (radius + other) * rng.uniform(0.92, 1.08)
                y, x = y + distance * np.sin(angle), x + distance * np.cos(angle)
            top, left = round(y) - half, round(x) - half
            box = (
                slice(max(top, 0), min(top + depth.shape[0], height)),
                slice(max(left, 0), min(left + depth.shape[1], width)),
            )
            if box[0].start >= box[0].stop or box[1].start >= box[1].stop:
                continue
            window = (
                slice(box[0].start - top, box[0].stop - top),
                slice(box[1].start - left, box[1].stop - left),
            )
            centre = min(max(round(y), 0), height - 1), min(max(round(x), 0), width - 1)
            # Epithelial cells are mostly in the nests and the others outside; after 25 tries
            # they are placed anywhere.
            in_nest = self.nest[centre] > 0.5
            at_home = in_nest == (class_ == EPITHELIAL) and self.glass[centre] < 0.2
            if not at_home and attempt < 25 and rng.random() < 0.95:
                continue
            inside = depth[window] > 0
            free = inside & (self.cells[box] == 0)
            n_inside, n_free = np.count_nonzero(inside), np.count_nonzero(free)
            if n_inside < 0.12 * total or n_free < 0.88 * n_inside or n_free == 0:
                continue
            self._stain(class_, box, depth[window], core[window])
            self.classes.append(class_)
            self.cells[box][free] = len(self.classes)
            self.placed[class_].append((y, x, radius))
            return

    def _stain(self, class_: int, box: tuple[slice, slice], depth: Floats, core: Floats) -> None:
        """Stain a cell; `depth` and `core` are the distances in px of its pixels from its
        outline and its nucleus (outside: below 0)."""
        rng, unit = self.rng, self.scale
        haematoxylin, eosin = self.haematoxylin[box], self.eosin[box]
        chromatin = self.chromatin[box]
        room = self.cells[box] == 0
        strength = rng.normal(1, 0.08)

        def paint(cover: Floats, h: Any, e: Any) -> None:
            cover = cover * room
            haematoxylin[:] += cover * (h - haematoxylin)
            eosin[:] += cover * (e - eosin)

        body = _ramp(depth, -0.5, 0.5)
        rim = np.exp(-np.square(depth / np.float32(2.2 * unit)))
        if class_ == EPITHELIAL:
            clumps = _ramp(chromatin, 0.5, 1.6)
            h = strength * (0.42 + 0.06 * chromatin + 0.3 * clumps + 0.3 * rim)
            paint(body, h, 0.18)
        elif class_ == LYMPHOCYTE:
            paint(0.5 * _ramp(depth, -3 * unit, 0), 0.12, 0.12)
            paint(body, strength * (1.2 + 0.15 * chromatin), 0.3)
        elif class_ == NEUTROPHIL:
            paint(0.8 * _ramp(depth, -8 * unit, -5 * unit), 0.06, 0.5)
            paint(body, strength * (0.9 + 0.1 * chromatin + 0.1 * rim), 0.5)
        else:
            paint(0.6 * _ramp(depth, -3 * unit, 0), 0.03, 0.04)
            vacuoles = _ramp(self.foam[box], 0.1, 0.8)
            paint(
                body,
                0.2 + 0.03 * chromatin - 0.14 * vacuoles + 0.12 * rim,
                0.17 - 0.12 * vacuoles + 0.06 * rim,
            )
            nucleus = strength * (0.6 + 0.1 * chromatin + 0.15 * np.exp(-np.abs(core) / unit))
            paint(_ramp(core, -0.5, 0.5), nucleus, 0.2)

    def render(self) -> NDArray[np.uint8]:
        """Return the image of the stains: `(H, W, 3)` uint8 RGB."""
        rng = self.rng
        # Slides differ a little in their dyes and staining times.
        stains = np.array([HAEMATOXYLIN, EOSIN]) * rng.normal(1, 0.04, (2, 3))
        stains *= rng.normal(1, 0.08, (2, 1))
        density = np.stack([self.haematoxylin, self.eosin], axis=-1).clip(0) @ stains.astype("f4")
        # The lens blurs, the sensor adds noise.
        density = cv2.GaussianBlur(density, (0, 0), 0.7).reshape(*self.size, 3)
        light: NDArray[np.float32] = 245 * np.exp(-density)
        light += np.float32(1.5) * rng.standard_normal(light.shape, np.float32)
        np.rint(light, out=light)
        return light.clip(0, 255).astype(np.uint8)

    def label_maps(self) -> list[NDArray[np.int32]]:
        """Return a `(H, W)` int32 label map for each class, labels continuing across them."""
        classes = np.array([-1, *self.classes])
        order = np.argsort(classes, kind="stable")[1:]
        labels = np.zeros(len(classes), np.int32)
        labels[order] = np.arange(1, len(classes))
        return [(labels * (classes == k))[self.cells] for k in range(4)]


def _shape(class_: int, radius: float, rng: np.random.Generator) -> tuple[int, Floats, Floats]:
    """Return the shape of a cell with the area of a disc of `radius` px.

    It is the half-width of its box and two `(2 half + 1, 2 half + 1)` maps: about how many
    pixels a point is inside the outline, and inside the nucleus, below 0 outside.
    """
    half = int(np.ceil(2.4 * radius)) + 4
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    y -= np.float32(rng.uniform(-0.5, 0.5))
    x -= np.float32(rng.uniform(-0.5, 0.5))
    # Outlines are never clean curves.
    ragged = _noise(rng, len(y), len(y), 0.9 * radius) * np.float32(0.06 * radius)
    if class_ == NEUTROPHIL:
        depth = _lobes(y, x, radius, rng) + ragged
        return half, depth, depth
    if class_ == EPITHELIAL:
        depth = _oval(y, x, radius, rng.uniform(1.15, 1.8), rng.uniform(0, 0.12), rng)
        if rng.random() < 0.03:
            depth = np.minimum(depth, np.hypot(y, x) - np.float32(0.35 * radius))
        return half, depth + ragged, depth
    if class_ == LYMPHOCYTE:
        depth = _oval(y, x, radius, rng.uniform(1.0, 1.25), 0, rng)
        return half, depth + ragged, depth
    depth = _oval(y, x, radius, rng.uniform(1.1, 1.6), rng.uniform(0, 0.35), rng)
    # The nucleus is off-centre.
    away, angle = radius * rng.uniform(0.1, 0.35), rng.uniform(0, 2 * np.pi)
    y, x = y - np.float32(away * np.sin(angle)), x - np.float32(away * np.cos(angle))
    core = _oval(y, x, 0.45 * radius, rng.uniform(1.1, 1.5), rng.uniform(0, 0.4), rng)
    return half, depth + ragged, np.minimum(core + ragged / 2, depth - np.float32(0.1 * radius))


def _oval(
    y: Floats, x: Floats, radius: float, elongation: float, bend: float, rng: np.random.Generator
) -> Floats:
    """Return the depth map of a randomly oriented oval of that length by width, and bend."""
    angle = rng.uniform(0, 2 * np.pi)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    stretch = np.float32(np.sqrt(elongation))
    u = (x * cosine + y * sine) / stretch
    v = (y * cosine - x * sine) * stretch
    # Shifting each column bends an oval into a kidney and keeps its area.
    v = v - np.float32(bend * elongation) * (np.square(u) - np.float32(radius**2 / 4)) / radius
    return np.float32(radius) - np.hypot(u, v)


def _lobes(y: Floats, x: Floats, radius: float, rng: np.random.Generator) -> Floats:
    """Return the depth map of two to four lobes in a curled chain, some of them apart."""
    n_lobes = int(rng.choice([2, 3, 4], p=[0.3, 0.5, 0.2]))
    lobe = radius / np.sqrt(n_lobes)
    heading, turn = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    centres = [(0.0, 0.0)]
    for _ in range(n_lobes - 1):
        step = lobe * rng.uniform(1.2, 2.1)
        last = centres[-1]
        centres.append((last[0] + step * np.sin(heading), last[1] + step * np.cos(heading)))
        heading += turn * rng.uniform(0.9, 1.5)
    middle = np.mean(centres, axis=0)
    depth = np.full_like(y, -np.inf)
    for cy, cx in np.asarray(centres) - middle:
        size, elongation = lobe * rng.uniform(0.95, 1.15), rng.uniform(1, 1.4)
        part = _oval(y - np.float32(cy), x - np.float32(cx), size, elongation, 0, rng)
        depth = np.maximum(depth, part)
    return depth


def write_dataset(
    folder: str | os.PathLike[str],
    n_train: int = 32,
    n_test: int = 12,
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = SIZES,
    cells_per_megapixel: float = 700,
    scale: float = 0.75,
    n_empty: int = 0,
) -> None:
    """Write a data set in NYCU HW3's layout, and the ground truth of its test images.

    ::

        train/<name>/image.tif          uint8 RGBA, alpha 255, LZW with predictor 2
        train/<name>/class<K>.tif       float64, uncompressed, if class K (1…4) occurs
        test_release/<name>.tif         as image.tif
        test_image_name_to_ids.json     [{"file_name", "id", "height", "width"}, …]
        test_masks/<name>/class<K>.tif  for scoring; not published for NYCU HW3

    The same arguments give the same bytes. Every third training image lacks class 3 or 4, as
    most of NYCU HW3's do. The set is written to a temporary folder that then replaces `folder`.

    Parameters
    ----------
    folder
        A new or empty folder, or a data set of this function, which is replaced.
    n_train, n_test
        Number of training and test images.
    seed
        Random seed, 0 or more.
    sizes
        Heights and widths in pixels, used in turn.
    cells_per_megapixel, scale
        As for `draw_tissue`.
    n_empty
        Number of training images without cells, the last ones.

    Raises
    ------
    InputError
        If `folder` holds something else, is a file, or can't be written.
    """
    arguments = {
        "n_train": n_train,
        "n_test": n_test,
        "seed": seed,
        "sizes": [list(size) for size in sizes],
        "cells_per_megapixel": cells_per_megapixel,
        "scale": scale,
        "n_empty": n_empty,
    }
    listed = []
    parts = [("train", i) for i in range(n_train)] + [("test", i) for i in range(n_test)]
    with _new_folder(Path(folder).absolute()) as new:
        (new / "train").mkdir()
        (new / "test_release").mkdir()
        for part, i in tqdm(parts, desc="drawing tissue", unit="image", disable=None):
            # A separate random stream for each image: more images don't change the first ones.
            rng = np.random.default_rng([seed, part == "test", i])
            name = str(uuid.UUID(bytes=rng.bytes(16), version=4))
            height, width = sizes[i % len(sizes)]
            mix = list(MIX)
            if part == "train" and i % 3 == 2:
                mix[(NEUTROPHIL, MACROPHAGE)[i // 3 % 2]] = 0
            empty = part == "train" and i >= n_train - n_empty
            density = 0 if empty else cells_per_megapixel
            image, labels = draw_tissue(height, width, rng, density, scale, mix)
            masks = new / ("train" if part == "train" else "test_masks") / name
            masks.mkdir(parents=True)
            if part == "train":
                _write_image(masks / "image.tif", image)
            else:
                _write_image(new / "test_release" / f"{name}.tif", image)
                listed.append((f"{name}.tif", height, width))
            for number, label_map in enumerate(labels, 1):
                if label_map.any():
                    tifffile.imwrite(masks / f"class{number}.tif", label_map.astype(np.float64))
        test_list = [
            {"file_name": name, "id": i, "height": height, "width": width}
            for i, (name, height, width) in enumerate(sorted(listed), 1)
        ]
        (new / "test_image_name_to_ids.json").write_text(json.dumps(test_list, indent=1) + "\n")
        (new / MARKER).write_text(json.dumps(arguments, indent=1) + "\n")


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder, which replaces `folder` when the block ends without an error.

    Raises InputError as `write_dataset`.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: a file, expected a folder; choose another or delete it")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise InputError(
                f"{folder}: contains other files than a synthetic data set (no {MARKER}), which "
                "would be lost; choose a new or an empty folder"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(Path(temporary) / "former")
            new.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: the data set can't be written there ({error.strerror or error}); "
            "make room or choose another place"
        ) from error


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    rgba = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    tifffile.imwrite(
        path,
        rgba,
        photometric="rgb",
        extrasamples=["unassalpha"],
        compression="lzw",
        predictor=True,
    )
