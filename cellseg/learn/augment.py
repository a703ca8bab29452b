"""What training changes in a sample by chance: what it sees of the image, and the colours.

Every draw comes from the generator that is handed in, so a sample is a pure function of
the generator's seed.
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


class Crop(ABC):
    """Chooses what a sample shows of its image."""

    @abstractmethod
    def sample_view(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        centre: tuple[float, float] | None = None,
    ) -> View:
        """Draw a view, neither flipped nor turned.

        Parameters
        ----------
        size
            Height and width of the image in pixels.
        rng
            Where the draws come from.
        centre
            A point of the image, x and y in pixels. It comes to lie anywhere in the middle
            half of the window, or further out where the image ends. Without it, every place
            of the window is as likely as any other.
        """


class FlipOrRotation(ABC):
    """Flips or turns a view."""

    @abstractmethod
    def sample_view(self, view: View, rng: np.random.Generator) -> View:
        """Draw a view of the same window."""


class Colour(ABC):
    """Changes colours, and leaves every cell where it is."""

    @abstractmethod
    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        """Draw an image from one, both `(h, w, 3)` uint8 RGB."""


@dataclass(frozen=True)
class ShortestEdgeCrop(Crop):
    """A part of the image, resized until its short side has a given length.

    The sizes are those of Detectron2's `RandomCrop` followed by `ResizeShortestEdge`, but
    no side falls below one pixel.

    Attributes
    ----------
    crop_type
        What the crop measures, at most the image's size:

        - "relative": `crop_size` times the image;
        - "relative_range": drawn from `crop_size` times the image to all of it;
        - "absolute": `crop_size` in pixels;
        - "absolute_range": each side drawn from `crop_size[0]` to `crop_size[1]` pixels;
        - None: the whole image.
    crop_size
        Height and width, but for "absolute_range".
    short_sides
        Lengths in the network's pixels; 0 leaves the crop as it is.
    sampling
        "choice" draws one of `short_sides`, "range" a number from the first to the second.
    longest
        The most that the long side may measure, in the network's pixels.
    """

    crop_type: str | None
    crop_size: tuple[float, float]
    short_sides: Sequence[int]
    sampling: str
    longest: int

    def sample_view(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        centre: tuple[float, float] | None = None,
    ) -> View:
        crop = self._sample_crop_size(size, rng)
        if self.sampling == "range":
            shortest = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        else:
            shortest = int(rng.choice(self.short_sides))
        window = _sample_window(crop, size, rng, centre)
        return View(window, resize_shortest_edge(crop, shortest, self.longest))

    def _sample_crop_size(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw the height and width of the crop."""
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
    """A square window of what the network gets, at one scale for all images.

    Where the image ends before the window does, it is seen whole and not stretched.

    Attributes
    ----------
    scale
        The network's pixels for each pixel of the image.
    jitter
        The zoom is drawn from `scale / (1 + jitter)` to `scale * (1 + jitter)`, evenly in its
        logarithm.
    window
        The square's side, in the network's pixels.
    """

    scale: float
    jitter: float
    window: int

    def sample_view(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        centre: tuple[float, float] | None = None,
    ) -> View:
        spread = math.log1p(self.jitter)
        scale = self.scale * math.exp(rng.uniform(-spread, spread))
        side = max(1, round(self.window / scale))
        height, width = size
        crop = min(side, height), min(side, width)
        output_size = (
            self._output_length(height, side, scale),
            self._output_length(width, side, scale),
        )
        return View(_sample_window(crop, size, rng, centre), output_size)

    def _output_length(self, length: int, side: int, scale: float) -> int:
        """Return how long a side of the image is seen, of which the window takes up to `side`."""
        return self.window if length >= side else max(1, round(length * scale))


def _sample_window(
    crop: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.Generator,
    centre: tuple[float, float] | None,
) -> tuple[int, int, int, int]:
    """Draw where in an image a crop lies, as `Crop.sample_view` says; XYXY in whole pixels."""
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
    """Mirrors every other view, each way for itself.

    Attributes
    ----------
    horizontal, vertical
        Whether left and right, top and bottom may be exchanged.
    """

    horizontal: bool
    vertical: bool

    def sample_view(self, view: View, rng: np.random.Generator) -> View:
        flip_x, flip_y = (rng.random(2) < 0.5).tolist()
        return replace(view, flip_x=self.horizontal and flip_x, flip_y=self.vertical and flip_y)


class QuarterTurn(FlipOrRotation):
    """Turns a view by 0, 90, 180 or 270 degrees.

    With a flip before it, be it one way only, all eight flips and rotations are equally likely.
    """

    def sample_view(self, view: View, rng: np.random.Generator) -> View:
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
    """Stains tissue more or less: haematoxylin and eosin, each for itself.

    Attributes
    ----------
    amount
        A stain's density is multiplied by a number from `1 - amount` to `1 + amount`.
    """

    amount: float

    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        haematoxylin, eosin = rng.uniform(1 - self.amount, 1 + self.amount, 2).tolist()
        return scale_stains(image, haematoxylin, eosin)


@dataclass(frozen=True)
class Blur(Colour):
    """Blurs with a Gaussian, as an image that is out of focus.

    Attributes
    ----------
    sigma_max
        Its standard deviation is drawn from 0 to this, in pixels.
    """

    sigma_max: float

    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        # 1 - [0, 1) is never 0, which OpenCV takes for a sigma that isn't given.
        sigma = self.sigma_max * (1 - rng.random())
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


@dataclass(frozen=True)
class Brightness(Colour):
    """Multiplies an image by a number drawn from `low` to `high`.

    The arithmetic is that of Detectron2's `RandomBrightness`: what overflows is clipped,
    fractions are dropped.
    """

    low: float
    high: float

    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        return _blend(image, 0.0, rng.uniform(self.low, self.high))


@dataclass(frozen=True)
class Contrast(Colour):
    """Multiplies what parts an image from its mean by a number drawn from `low` to `high`.

    The arithmetic is that of Detectron2's `RandomContrast`.
    """

    low: float
    high: float

    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        return _blend(image, image.mean(), rng.uniform(self.low, self.high))


def _blend(image: Image, grey: float, weight: float) -> Image:
    """Mix an image with a grey level; `weight` is the image's, the rest the grey's."""
    mixed = (1 - weight) * grey + weight * np.arange(256, dtype=np.float32)
    return np.asarray(cv2.LUT(image, mixed.clip(0, 255).astype(np.uint8)))


@dataclass(frozen=True)
class Augmentations:
    """All that training does to a sample.

    Attributes
    ----------
    crop
        What the view begins with.
    flips_and_rotations, colours
        Applied in this order.
    """

    crop: Crop
    flips_and_rotations: Sequence[FlipOrRotation]
    colours: Sequence[Colour]

    def sample_view(
        self,
        size: tuple[int, int],
        rng: np.random.Generator,
        centre: tuple[float, float] | None = None,
    ) -> View:
        """Draw the view of an image, as `Crop.sample_view` says, then flipped and turned."""
        view = self.crop.sample_view(size, rng, centre)
        for transform in self.flips_and_rotations:
            view = transform.sample_view(view, rng)
        return view

    def apply_colours(self, image: Image, rng: np.random.Generator) -> Image:
        """Draw the colours of an image, `(h, w, 3)` uint8 RGB."""
        for colour in self.colours:
            image = colour.apply_colours(image, rng)
        return image


def build_augmentations(cfg: CfgNode) -> Augmentations:
    """Build what the keys under INPUT name; what would change nothing is left out."""
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
    flips_and_rotations: list[FlipOrRotation] = []
    if flip != "none":
        flips_and_rotations.append(
            Flip(flip in ("horizontal", "both"), flip in ("vertical", "both"))
        )
    if inputs.QUARTER_TURNS:
        flips_and_rotations.append(QuarterTurn())
    return flips_and_rotations


def _build_colours(inputs: CfgNode) -> list[Colour]:
    """Build the colours in the order of the light: stain, lens, camera."""
    colours: list[Colour] = []
    if inputs.STAIN_JITTER:
        colours.append(StainJitter(inputs.STAIN_JITTER))
    if inputs.BLUR:
        colours.append(Blur(inputs.BLUR))
    if tuple(inputs.BRIGHTNESS) != (1, 1):
        colours.append(Brightness(*inputs.BRIGHTNESS))
    if tuple(inputs.CONTRAST) != (1, 1):
        colours.append(Contrast(*inputs.CONTRAST))
    return colours
