"""From a sample of the annotation file to what the network takes: crop, flip, zoom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.learn.samples import Sample
from cellseg.read.tiff import read_image
from cellseg.rle import Runs, crop_mask, decode, xywh_to_xyxy


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Build the augmentations that the config names, in the order in which they apply."""
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    augmentations.append(
        ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    )
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("none", "horizontal", "vertical", "both"):
        raise InputError(
            f"INPUT.RANDOM_FLIP {flip}: one of none, horizontal, vertical, both is expected"
        )
    if flip in ("horizontal", "both"):
        augmentations.append(T.RandomFlip(horizontal=True, vertical=False))
    if flip in ("vertical", "both"):
        augmentations.append(T.RandomFlip(horizontal=False, vertical=True))
    low, high = cfg.INPUT.BRIGHTNESS
    if (low, high) != (1, 1):
        augmentations.append(T.RandomBrightness(low, high))
    return augmentations


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's, but a strip's short side keeps at least one pixel."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform


def to_tensor(image: NDArray[np.uint8], image_format: str) -> torch.Tensor:
    """Turn an `(H, W, 3)` uint8 RGB image into the `(3, H, W)` tensor of the network's format."""
    if image_format == "BGR":
        image = image[:, :, ::-1]
    # A copy in any case: of a side of one pixel, a flip leaves a negative stride that numpy
    # takes for contiguous and torch refuses.
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


class CellMapper:
    """Turns a sample into the dict that Detectron2's networks train on.

    The image is read as prediction reads it. Cells that the crop leaves out are dropped;
    those that it cuts keep what is inside, and their boxes are taken from what is left.
    """

    @configurable
    def __init__(self, *, augmentations: Sequence[T.Augmentation], image_format: str) -> None:
        """
        Parameters
        ----------
        augmentations
            Applied in this order, to the image and its masks alike.
        image_format
            "BGR" or "RGB", the order of the channels that the network takes.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "augmentations": build_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, sample: Sample) -> dict[str, Any]:
        image = read_image(sample["file_name"])
        if image.shape[:2] != (sample["height"], sample["width"]):
            raise InputError(
                f"{sample['file_name']}: {image.shape[0]} x {image.shape[1]} pixels, but the "
                f"annotations say {sample['height']} x {sample['width']}; run python annotation.py"
            )
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        size = augmented.image.shape[:2]
        return {
            "file_name": sample["file_name"],
            "image_id": sample["image_id"],
            "height": size[0],
            "width": size[1],
            "image": to_tensor(augmented.image, self.image_format),
            "instances": self._instances(sample, transforms, size),
        }

    def _instances(
        self, sample: Sample, transforms: T.TransformList, size: tuple[int, int]
    ) -> Instances:
        masks, classes = [], []
        annotations = sample["annotations"]
        if annotations:
            boxes = xywh_to_xyxy(np.array([a["bbox"] for a in annotations], np.float64))
            boxes = transforms.apply_box(boxes).clip(0, [size[1], size[0], size[1], size[0]])
            runs = decode([a["segmentation"] for a in annotations])
            window, after = _split_crop(transforms, sample)
            # Most cells are outside the crop; don't draw those.
            for index in np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1)):
                mask = after.apply_segmentation(_draw(runs, index, window))
                if mask.any():
                    masks.append(torch.from_numpy(np.array(mask, bool, order="C")))
                    classes.append(annotations[index]["class"])
        bitmasks = BitMasks(
            torch.stack(masks) if masks else torch.zeros((0, *size), dtype=torch.bool)
        )
        instances = Instances(size)
        # The boxes of what the crop left of each mask, not the cropped boxes: of a cell
        # that slants out of the crop, less may be left than its box.
        instances.gt_boxes = bitmasks.get_bounding_boxes() if masks else Boxes(torch.zeros(0, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_masks = bitmasks
        return instances


def _split_crop(
    transforms: T.TransformList, sample: Sample
) -> tuple[tuple[int, int, int, int], T.TransformList]:
    """Give the window (XYXY) that a leading crop leaves of the image, and what follows it."""
    first, *rest = transforms.transforms
    if isinstance(first, T.CropTransform):
        return (first.x0, first.y0, first.x0 + first.w, first.y0 + first.h), T.TransformList(rest)
    return (0, 0, sample["width"], sample["height"]), transforms


def _draw(runs: Runs, index: int, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Draw one mask in a window of the image: `(H, W)` uint8, 0 or 1."""
    left, top, right, bottom = window
    canvas = np.zeros((bottom - top, right - left), np.uint8)
    (x0, y0, x1, y1), mask = crop_mask(runs, index)
    inner = slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right))
    if inner[0].start < inner[0].stop and inner[1].start < inner[1].stop:
        canvas[
            inner[0].start - top : inner[0].stop - top, inner[1].start - left : inner[1].stop - left
        ] = mask[inner[0].start - y0 : inner[0].stop - y0, inner[1].start - x0 : inner[1].stop - x0]
    return canvas
