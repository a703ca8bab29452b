"""Load and augment the samples that networks are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.images import ImageCells
from cellseg.learn.augment import build_augmentations
from cellseg.learn.copy_paste import Drawn, paste
from cellseg.learn.samples import TrainingData
from cellseg.learn.stream import SampleStream, choose_crop_centre, count_windows, repeat_factors
from cellseg.read.resolution import magnification
from cellseg.read.window import read_image, wrong_size
from cellseg.rle import MaskRuns, decode
from cellseg.view import View, to_tensor

# Bytes of decoded images that are kept in memory, in each data loading process.
_KEPT_IMAGES = 128 << 20


class CellMapper:
    """Converts a sample to the dict that the networks train on, augmented by `cfg.INPUT`.

    Cells outside the crop are dropped. Cells at its border are cut, and their boxes are those of
    the visible part. Cells of `donors` may be pasted into other samples.
    """

    def __init__(self, cfg: CfgNode, donors: Sequence[ImageCells] = ()) -> None:
        self.augmentations = build_augmentations(cfg)
        self.crop_on_class = cfg.INPUT.CROP_ON_CLASS
        self.copy_paste = cfg.INPUT.COPY_PASTE
        self.image_format = cfg.INPUT.FORMAT
        self.mpp = cfg.DATA.MPP
        self.donors = donors
        self._mask_runs: dict[str, MaskRuns] = {}
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._room = _KEPT_IMAGES

    def __call__(self, sample: ImageCells, rng: np.random.Generator) -> dict[str, Any]:
        """Load and augment a sample.

        Returns
        -------
        `image`, `(3, h, w)` uint8 in the config's channel order; `boxes`, `(N, 4)` float32 XYXY
        in its pixels; `classes`, `(N,)` int64; `masks`, `CellMasks`; and the sample's `name`.
        """
        drawn = self._load_view(sample, rng)
        if self.donors and rng.random() < self.copy_paste:
            donor = self.donors[int(rng.integers(len(self.donors)))]
            drawn = paste(drawn, self._load_view(donor, rng), rng)
        image = self.augmentations.apply_colours(drawn.image, rng)
        return {
            "name": sample.name,
            "image": to_tensor(image, self.image_format),
            "boxes": drawn.masks.boxes,  # may be smaller than the cropped boxes
            "classes": torch.from_numpy(drawn.classes),
            "masks": drawn.masks,
        }

    def shape(self, sample: ImageCells, rng: np.random.Generator) -> tuple[int, int]:
        """Return the height and width of the image drawn with `rng`, without reading the file."""
        return self._draw_view(sample, rng).shape

    def _draw_view(self, sample: ImageCells, rng: np.random.Generator) -> View:
        centre = choose_crop_centre(sample, self.crop_on_class, rng)
        factor = magnification(sample.mpp, self.mpp)
        return self.augmentations.sample_view(sample.size, rng, centre, factor)

    def _load_view(self, sample: ImageCells, rng: np.random.Generator) -> Drawn:
        """Draw a view of a sample."""
        image = self._read(sample)
        view = self._draw_view(sample, rng)
        if sample.name not in self._mask_runs:
            self._mask_runs[sample.name] = decode(sample.masks, sample.size)
        kept, masks = view.apply_masks(self._mask_runs[sample.name])
        return Drawn(view.apply_image(image), masks, sample.classes[kept])

    def _read(self, sample: ImageCells) -> NDArray[np.uint8]:
        """Return the image of a sample, and keep it while there is room."""
        if sample.name in self._images:
            return self._images[sample.name]
        image = read_image(sample.path)
        if image.shape[:2] != sample.size:
            rest = " from the annotations; run annotation.py again"
            raise wrong_size(sample.path, image.shape, sample.size, rest)
        if image.nbytes <= self._room:
            image.flags.writeable = False
            self._images[sample.name] = image
            self._room -= image.nbytes
        return image


def build_stream(cfg: CfgNode, data: TrainingData) -> SampleStream:
    """Build the stream of training samples of a config."""
    samples = data.train
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        samples = [sample for sample in samples if sample.masks]
    factors = repeat_factors(samples, cfg.DATALOADER.REPEAT_THRESHOLD)
    if cfg.INPUT.ZOOM and cfg.INPUT.WINDOWS_BY_AREA:
        scales = [cfg.INPUT.ZOOM * magnification(sample.mpp, cfg.DATA.MPP) for sample in samples]
        factors *= count_windows(samples, scales, cfg.INPUT.WINDOW)
    return SampleStream(samples, CellMapper(cfg, samples), cfg.SEED, factors)
