"""Augmentation of training samples: the view of the image, and the colours.

All random numbers come from the generator that is passed in, so that a sample is a pure
function of the generator's seed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.stains import scale_stains
from cellseg.view import View, resize_shortest_edge

Image = NDArray[np.uint8]
Size = tuple[int, int]  # height and width in pixels
Point = tuple[float, float]  # x and y in pixels of the image
Generator = np.random.Generator


class Crop(ABC):
    """Chooses the part of the image in a sample, and its scale."""

    @abstractmethod
    def sample_view(
        self, size: Size, rng: Generator, centre: Point | None = None, factor: float = 1.0
    ) -> View:
        """Draw a view of an image of some size, without flips and rotations.

        `centre` is a point that the middle half of the window contains, at a random place, or
        the rest of the window near the image's border. Without it, all positions of the window
        are equally likely. `factor` multiplies a fixed scale, to bring the image to the resolution
        of others.
        """


class FlipOrRotation(ABC):
    """Flips or rotates a view."""

    @abstractmethod
    def sample_view(self, view: View, rng: Generator) -> View:
        """Draw a view of the same window."""


class Colour(ABC):
    """Changes colours only."""

    @abstractmethod
    def apply_colours(self, image: Image, rng: Generator) -> Image:
        """Return a randomly changed copy of an `(h, w, 3)` uint8 RGB image."""


@dataclass(frozen=True)
class ShortestEdgeCrop(Crop):
    """Crop that is resized until its short side has a given length.

    The sizes are those of Detectron2's `RandomCrop` followed by `ResizeShortestEdge`, with a
    minimum of one pixel.

    Attributes
    ----------
    crop_type
        How the crop is measured, limited to the image:

        - "relative": `crop_size` times the image;
        - "relative_range": drawn from `crop_size` times the image to the whole image;
        - "absolute": `crop_size` in pixels;
        - "absolute_range": each side drawn from `crop_size[0]` to `crop_size[1]` pixels;
        - None: the whole image.
    crop_size
        Height and width, except for "absolute_range".
    short_sides
        Lengths in network pixels; 0 does not resize.
    sampling
        "choice" draws one of `short_sides`, "range" a number from the first to the second.
    longest
        Maximum length of the long side in network pixels.
    """

    crop_type: str | None
    crop_size: tuple[float, float]
    short_sides: Sequence[int]
    sampling: str
    longest: int

    def sample_view(
        self,
        size: Size,
        rng: Generator,
        centre: Point | None = None,
        factor: float = 1.0,  # noqa: ARG002 (there is no fixed scale)
    ) -> View:
        crop = self._sample_crop_size(size, rng)
        if self.sampling == "range":
            shortest = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        else:
            shortest = int(rng.choice(self.short_sides))
        window = _sample_window(crop, size, rng, centre)
        return View(window, resize_shortest_edge(crop, shortest, self.longest))

    def _sample_crop_size(self, size: Size, rng: Generator) -> Size:
        if self.crop_type is None:
            return size
        first, second = self.crop_size
        height, width = size
        if self.crop_type == "absolute":
            return min(int(first), height), min(int(second), width)
        if self.crop_type == "absolute_range":
            low, high = np.minimum(size, int(first)), np.minimum(size, int(second))
            height, width = rng.integers(low, high + 1).tolist()
            return height, width
        if self.crop_type == "relative_range":
            first, second = rng.uniform(self.crop_size, 1).tolist()
        return max(1, int(height * first + 0.5)), max(1, int(width * second + 0.5))


@dataclass(frozen=True)
class FixedScaleCrop(Crop):
    """Square window at one scale for all images of a resolution; smaller in smaller images.

    Attributes
    ----------
    scale
        Network pixels per image pixel.
    jitter
        The scale is drawn from `scale / (1 + jitter)` to `scale * (1 + jitter)`, uniformly in
        its logarithm.
    window
        Side of the square in network pixels.
    """

    scale: float
    jitter: float
    window: int

    def sample_view(
        self, size: Size, rng: Generator, centre: Point | None = None, factor: float = 1.0
    ) -> View:
        spread = math.log1p(self.jitter)
        scale = self.scale * factor * math.exp(rng.uniform(-spread, spread))
        side = max(1, round(self.window / scale))
        height, width = size
        output_height, output_width = (
            self.window if length >= side else max(1, round(length * scale)) for length in size
        )
        window = _sample_window((min(side, height), min(side, width)), size, rng, centre)
        return View(window, (output_height, output_width), sharp=factor > 1)  # as in prediction


def _sample_window(
    crop: Size, size: Size, rng: Generator, centre: Point | None
) -> tuple[int, int, int, int]:
    """Draw the XYXY window of a crop in whole pixels, see `Crop.sample_view`."""
    free = np.subtract(size, crop)
    if centre is None:
        corner = rng.integers(free + 1)
    else:
        corner = np.rint(centre[::-1] - rng.uniform(0.25, 0.75, 2) * crop)
        corner = corner.astype(np.int64).clip(0, free)
    top, left = corner.tolist()
    return left, top, left + crop[1], top + crop[0]


@dataclass(frozen=True)
class Flip(FlipOrRotation):
    """Flips half of the views left to right, top to bottom, or both independently."""

    horizontal: bool
    vertical: bool

    def sample_view(self, view: View, rng: Generator) -> View:
        flip_x, flip_y = (rng.random(2) < 0.5).tolist()
        return replace(view, flip_x=self.horizontal and flip_x, flip_y=self.vertical and flip_y)


class QuarterTurn(FlipOrRotation):
    """Rotates a view by 0, 90, 180 or 270 degrees.

    After a flip in one direction or both, all eight orientations are equally likely.
    """

    def sample_view(self, view: View, rng: Generator) -> View:
        turns = int(rng.integers(4))
        # A quarter turn is a flip, then a transpose; half a turn is both flips.
        return replace(
            view,
            flip_x=view.flip_x != (turns in (2, 3)),
            flip_y=view.flip_y != (turns in (1, 2)),
            transpose=turns in (1, 3),
        )


@dataclass(frozen=True)
class StainJitter(Colour):
    """Multiplies the densities of haematoxylin and eosin by factors from 1 ± `amount`.

    Those in red, green and blue also by factors of their own from 1 ± `colour`.
    """

    amount: float
    colour: float = 0.0

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        factors = rng.uniform(1 - self.amount, 1 + self.amount, (2, 1))
        if self.colour:
            factors = factors * rng.uniform(1 - self.colour, 1 + self.colour, (2, 3))
        return scale_stains(image, *factors)


@dataclass(frozen=True)
class LightJitter(Colour):
    """Multiplies red, green and blue by factors of their own from 1 - `amount` to 1."""

    amount: float

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        factors = rng.uniform(1 - self.amount, 1, 3)
        table = np.rint(np.arange(256)[:, None] * factors).astype(np.uint8)
        return np.asarray(cv2.LUT(image, table[None]))


@dataclass(frozen=True)
class Blur(Colour):
    """Blurs with a Gaussian whose sigma is drawn from 0 to `sigma_max` pixels."""

    sigma_max: float

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        # 1 - [0, 1) is never 0, for which OpenCV would choose a sigma.
        sigma = self.sigma_max * (1 - rng.random())
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


@dataclass(frozen=True)
class Brightness(Colour):
    """Multiplies an image by a factor from `low` to `high`, as Detectron2's `RandomBrightness`."""

    low: float
    high: float

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        return _blend(image, 0.0, rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Contrast(Colour):
    """Multiplies the differences from the image's mean, as Detectron2's `RandomContrast`."""

    low: float
    high: float

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        return _blend(image, image.mean(), rng.uniform(self.low, self.high))


def _blend(image: Image, grey: float, weight: float) -> Image:
    """Return `weight` times the image plus `1 - weight` times a grey level, clipped, truncated."""
    mixed = (1 - weight) * grey + weight * np.arange(256, dtype=np.float32)
    return np.asarray(cv2.LUT(image, mixed.clip(0, 255).astype(np.uint8)))


@dataclass(frozen=True)
class Augmentations:
    """All augmentations of a sample, in the order in which they are applied."""

    crop: Crop
    flips_and_rotations: Sequence[FlipOrRotation]
    colours: Sequence[Colour]

    def sample_view(
        self, size: Size, rng: Generator, centre: Point | None = None, factor: float = 1.0
    ) -> View:
        """Draw the view of an image, see `Crop.sample_view`, and flip and rotate it."""
        view = self.crop.sample_view(size, rng, centre, factor)
        for transform in self.flips_and_rotations:
            view = transform.sample_view(view, rng)
        return view

    def apply_colours(self, image: Image, rng: Generator) -> Image:
        """Return an `(h, w, 3)` uint8 RGB image with changed colours."""
        for colour in self.colours:
            image = colour.apply_colours(image, rng)
        return image


def build_augmentations(cfg: CfgNode) -> Augmentations:
    """Build the augmentations of `cfg.INPUT`, without those that change nothing."""
    inputs = cfg.INPUT
    return Augmentations(
        _build_crop(inputs), _build_flips_and_rotations(inputs), _build_colours(inputs)
    )


def _build_crop(inputs: CfgNode) -> Crop:
    if inputs.ZOOM:
        return FixedScaleCrop(inputs.ZOOM, inputs.ZOOM_JITTER, inputs.WINDOW)
    return ShortestEdgeCrop(
        inputs.CROP.TYPE if inputs.CROP.ENABLED else None,
        tuple(inputs.CROP.SIZE),
        inputs.MIN_SIZE_TRAIN,
        inputs.MIN_SIZE_TRAIN_SAMPLING,
        inputs.MAX_SIZE_TRAIN,
    )


def _build_flips_and_rotations(inputs: CfgNode) -> list[FlipOrRotation]:
    flip = inputs.RANDOM_FLIP
    horizontal, vertical = flip in ("horizontal", "both"), flip in ("vertical", "both")
    flips: list[FlipOrRotation] = [Flip(horizontal, vertical)] if horizontal or vertical else []
    return [*flips, QuarterTurn()] if inputs.QUARTER_TURNS else flips


def _build_colours(inputs: CfgNode) -> list[Colour]:
    """Build the colour changes in the order of the light: stain, lamp, lens, camera."""
    colours: list[Colour] = []
    if inputs.STAIN_JITTER or inputs.STAIN_COLOUR_JITTER:
        colours.append(StainJitter(inputs.STAIN_JITTER, inputs.STAIN_COLOUR_JITTER))
    if inputs.LIGHT_JITTER:
        colours.append(LightJitter(inputs.LIGHT_JITTER))
    if inputs.BLUR:
        colours.append(Blur(inputs.BLUR))
    if tuple(inputs.BRIGHTNESS) != (1, 1):
        colours.append(Brightness(*inputs.BRIGHTNESS))
    if tuple(inputs.CONTRAST) != (1, 1):
        colours.append(Contrast(*inputs.CONTRAST))
    return colours
