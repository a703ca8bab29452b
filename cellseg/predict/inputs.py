"""Read the tiles of images, and resize their views for the networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.memory import too_large_error, unless_out_of_memory
from cellseg.network.limits import Limits, choose_limits
from cellseg.predict.tiles import Tile
from cellseg.predict.unusual import BrightnessCheck
from cellseg.predict.views import plan_views
from cellseg.read.resolution import magnification
from cellseg.read.window import WindowedImage, open_file_or_array
from cellseg.view import View, to_tensor


@dataclass(frozen=True)
class TileJob:
    """A tile to predict.

    Attributes
    ----------
    image
        File, or array as for `cellseg.read.window.from_array`.
    level
        Pyramid level of the file.
    size
        Height and width of the image in pixels.
    tile
        Tile of the image.
    mpp
        Micrometres per pixel of the image, None if unknown.
    """

    image: Path | NDArray[Any]
    level: int
    size: tuple[int, int]
    tile: Tile
    mpp: float | None = None

    def limits(self, cfg: CfgNode) -> Limits:
        """Return the limits for the tile, by its area at the resolution of the run's images."""
        factor = magnification(self.mpp, cfg.DATA.MPP)
        return choose_limits(cfg, math.prod(self.tile.size) * factor**2)


@dataclass(frozen=True)
class NetworkInput:
    """A view of a tile.

    Attributes
    ----------
    view
        The view.
    pixels
        `(3, h, w)` uint8, in the network's channel order.
    limits
        The limits for the tile.
    """

    view: View
    pixels: torch.Tensor
    limits: Limits


# The inputs of each network for a tile, or why there are none.
TileInputs = list[list[NetworkInput]] | InputError


class InputReader:
    """Prepares tiles. Keeps the last image open, or the reason why it can't be opened."""

    def __init__(self, cfgs: Sequence[CfgNode], brightness: BrightnessCheck) -> None:
        """`cfgs` are the configs of the networks; tiles of files are added to `brightness`."""
        self._cfgs = cfgs
        self._image: Path | NDArray[Any] | None = None
        self._level = 0
        self._opened: WindowedImage | InputError | None = None
        self._brightness = brightness

    def prepare(self, job: TileJob) -> TileInputs:
        """Read a tile, and resize its views for each network."""
        tile = self._read(job)
        if isinstance(tile, InputError):
            return tile
        inputs: list[list[NetworkInput]] = []
        for cfg in self._cfgs:
            limits = job.limits(cfg)
            inputs.append([])
            views = plan_views(job.tile, job.size, cfg, job.mpp)
            for _, alike in itertools.groupby(views, attrgetter("window", "size", "sharp")):
                oriented = list(alike)
                resize = partial(_resize, oriented, tile, cfg.INPUT.FORMAT)
                if (pixels := unless_out_of_memory(resize)) is None:
                    return too_large_error(oriented[0].shape, "cpu")
                inputs[-1] += [
                    NetworkInput(*each, limits) for each in zip(oriented, pixels, strict=True)
                ]
        return inputs

    def _read(self, job: TileJob) -> NDArray[np.uint8] | InputError:
        """Return the pixels of a tile, or the error of its image."""
        try:
            if self._opened is None or not self._is_last(job):
                self.close()
                self._image, self._level = job.image, job.level
                self._opened = open_file_or_array(job.image, job.level)
            if isinstance(self._opened, InputError):
                return self._opened
            if self._opened.size != job.size:
                (height, width), expected = self._opened.size, job.size
                return InputError(
                    f"{job.image}: {height} x {width} pixels (height x width), but the list says "
                    f"{expected[0]} x {expected[1]}; use the listed image"
                )
            tile = self._opened.read(job.tile.window)
            if isinstance(job.image, Path):
                self._brightness.add(job.image, tile)
            return tile
        except InputError as error:
            self._opened = self._opened or error
            return error

    def _is_last(self, job: TileJob) -> bool:
        """Return whether a tile is of the last image; the paths of workers' tiles are equal."""
        is_file = isinstance(self._image, Path) and isinstance(job.image, Path)
        same = self._image == job.image if is_file else self._image is job.image
        return bool(same) and self._level == job.level

    def close(self) -> None:
        """Close the last image."""
        if isinstance(self._opened, WindowedImage):
            self._opened.close()
        self._opened = None


def _resize(
    views: Sequence[View], image: NDArray[np.uint8], image_format: str
) -> list[torch.Tensor]:
    """Return the pixels of views that differ in their orientation only."""
    upright = replace(views[0], flip_x=False, flip_y=False, transpose=False)
    pixels = to_tensor(upright.apply_image(image), image_format)
    return [view.orient(pixels) for view in views]
