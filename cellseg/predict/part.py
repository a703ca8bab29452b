"""Choose the part of an image that is predicted: its tissue, or regions that were drawn on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.coarse import CoarseMask
from cellseg.errors import InputError
from cellseg.messages import listed, plural, warn
from cellseg.predict.inputs import TileJob
from cellseg.predict.tiles import TilePlan
from cellseg.predictions import Predictions
from cellseg.read.regions import Regions, read_regions
from cellseg.read.tissue import Tissue, choose_step, find_tissue
from cellseg.read.window import open_file_or_array
from cellseg.rle import centroids, decode

FEW_TILES = 8
"""Images of no more tiles are predicted as a whole, as their background costs little."""


@dataclass(frozen=True)
class ImagePart:
    """The part of an image that is predicted.

    Attributes
    ----------
    image
        File, or array as for `cellseg.read.window.from_array`.
    level
        Level of the file.
    mpp
        Micrometres per pixel of the level, None if unknown.
    plan
        Tiles to predict.
    regions
        Regions that cells have to lie in, None for the whole image.
    tissue
        Tissue of the image, None if it was not needed to choose the tiles.
    """

    image: Path | NDArray[Any]
    level: int
    mpp: float | None
    plan: TilePlan
    regions: Regions | None = None
    tissue: Tissue | None = None

    @property
    def name(self) -> str:
        """Name of the image for messages."""
        return self.image.name if isinstance(self.image, Path) else "array"

    def jobs(self) -> Iterator[TileJob]:
        """Yield the tiles to predict, in the plan's order."""
        for tile in self.plan:
            yield TileJob(self.image, self.level, self.plan.size, tile, self.mpp)

    def keep(self, cells: Predictions) -> Predictions:
        """Return the cells in the regions: those whose mask has its centroid in them."""
        if self.regions is None:
            return cells
        return cells[self.regions.contain(centroids(decode(cells.masks, cells.size)))]

    def tissue_area(self) -> float:
        """Return the area of the tissue, in the regions if there are any, in pixels of the level.

        Warns if the image can't be read; then all of it counts.
        """
        try:
            mask = (self.tissue or find_tissue(self.image, self.level, self.mpp)).mask
        except InputError as error:
            warn(f"{error}; so all of it counts as tissue")
            return float(self.regions.area if self.regions else math.prod(self.plan.size))
        return self.regions.area_in(mask) if self.regions else mask.area


def choose_part(
    whole: ImagePart, margin: int, regions: Path | None = None, all_tiles: bool = False
) -> ImagePart:
    """Choose the tiles of an image to predict.

    Parameters
    ----------
    whole
        The image with all its tiles.
    margin
        Length in pixels that nearly no cell exceeds, by which tissue and regions are widened.
    regions
        Region file: only tiles in its outlines.
    all_tiles
        Also tiles without tissue; otherwise, of more than a few tiles, only those with some.

    Raises
    ------
    InputError
        If the regions can't be read or are those of another image.
    """
    image, level, plan = whole.image, whole.level, whole.plan
    drawn = None
    if regions is not None:
        full = plan.size
        if level:
            with open_file_or_array(image) as opened:
                full = opened.size
        drawn = read_regions(regions, plan.size, full)
    tissue = None
    if len(plan) > FEW_TILES and not all_tiles:
        try:
            tissue = find_tissue(image, level, whole.mpp)
        except InputError as error:  # perhaps of a level that isn't needed
            warn(f"{error}; so all tiles are predicted")
    masks = []
    if tissue and tissue.background:
        masks.append(tissue.mask)
    if drawn:
        if masks:  # of the level in which the tissue was found, with its rounding
            masks.append(drawn.coarse(masks[0].step, masks[0].pixels.shape))
        else:
            step = choose_step(plan.size, whole.mpp)
            masks.append(drawn.coarse((step, step)))
    if masks:
        pixels = np.logical_and.reduce([mask.pixels for mask in masks])
        plan = plan.restricted_to(CoarseMask(plan.size, masks[0].step, pixels), margin)
    return replace(whole, plan=plan, regions=drawn, tissue=tissue)


def describe_parts(parts: Sequence[ImagePart]) -> list[str]:
    """Return lines that say which part of images is predicted, none if that is all of them."""
    lines = []
    if drawn := [(part, part.regions) for part in parts if part.regions]:
        count = sum(regions.count for _, regions in drawn)
        inside = sum(regions.area for _, regions in drawn)
        whole = sum(math.prod(part.plan.size) for part, _ in drawn)
        lines.append(f"regions: {plural(count, 'outline')}, {inside / whole:.2g} of the image")
    if plans := [part.plan for part in parts if part.tissue]:
        kept, whole = sum(plan.area for plan in plans), sum(plan.grid_area for plan in plans)
        n_skipped, n = sum(plan.n_skipped for plan in plans), sum(plan.n_grid for plan in plans)
        lines.append(
            f"tissue: {n_skipped} of {plural(n, 'tile')} skipped and the others trimmed to it, "
            f"{1 - kept / whole:.0%} of their area (--all_tiles predicts everything)"
            if kept < whole
            else f"tissue: in all of {plural(n, 'tile')}, or no background; none is skipped"
        )
    return lines


def warn_of_empty_parts(parts: Iterable[ImagePart]) -> None:
    """Warn of images without tissue, which have no cells."""
    if empty := [part for part in parts if part.tissue and not len(part.plan)]:
        warn(
            f"no tissue in {plural(len(empty), 'image')} or its regions, so no cells: "
            f"{listed([part.name for part in empty])}; --all_tiles predicts everything"
        )
