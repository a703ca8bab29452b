"""From a sample of the annotation file to what the network learns from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.learn.augment import build_augmentations
from cellseg.learn.samples import Sample, TrainingData
from cellseg.learn.stream import SampleStream, choose_centre, repeat_factors
from cellseg.read.tiff import read_image
from cellseg.rle import decode
from cellseg.view import to_tensor


class CellMapper:
    """Turns a sample into the dict that the networks train on.

    The image is read as prediction reads it. Cells that the crop leaves out are dropped;
    those that it cuts keep what is inside, and their boxes are taken from what is left.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.augmentations = build_augmentations(cfg)
        self.crop_on_class = cfg.INPUT.CROP_ON_CLASS
        self.image_format = cfg.INPUT.FORMAT

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        """Read and augment a sample.

        Returns
        -------
        `image`, `(3, h, w)` uint8 in the config's channel order; `boxes`, `(N, 4)` float32
        XYXY in its pixels; `classes`, `(N,)` int64; `masks`, `CellMasks`; and the sample's
        `name`.
        """
        image = read_image(sample["file_name"])
        if image.shape[:2] != (sample["height"], sample["width"]):
            raise InputError(
                f"{sample['file_name']}: {image.shape[0]} x {image.shape[1]} pixels, but the "
                f"annotations say {sample['height']} x {sample['width']}; run python annotation.py"
            )
        annotations = sample["annotations"]
        size = (sample["height"], sample["width"])
        runs = decode([annotation["segmentation"] for annotation in annotations], size)
        centre = choose_centre(sample, self.crop_on_class, rng)
        view = self.augmentations.view(size, rng, centre)
        kept, masks = view.apply_masks(runs)
        classes = np.array([annotation["class"] for annotation in annotations], np.int64)[kept]
        image = self.augmentations.image(view.apply_image(image), rng)
        return {
            "name": sample["name"],
            "image": to_tensor(image, self.image_format),
            # Of a cell that slants out of the crop, less may be left than its cropped box.
            "boxes": masks.boxes,
            "classes": torch.from_numpy(classes),
            "masks": masks,
        }


def build_stream(cfg: CfgNode, data: TrainingData) -> SampleStream:
    """Build the stream of samples that a config trains on."""
    samples = data.train
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        samples = [sample for sample in samples if sample["annotations"]]
    factors = repeat_factors(samples, cfg.DATALOADER.REPEAT_THRESHOLD)
    return SampleStream(samples, CellMapper(cfg), cfg.SEED, factors)
