"""What the network sees: image and masks go through the same crop, zoom and flips."""

from __future__ import annotations

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from cellseg.errors import InputError
from cellseg.learn import config
from cellseg.learn.mapper import CellMapper, build_augmentations, to_tensor
from cellseg.learn.samples import load_training_data
from cellseg.read.tiff import read_image


def sample_of(tmp_path, image, masks):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    annotations = []
    for number, mask in enumerate(masks):
        rle = pycocotools.mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "bbox": pycocotools.mask.toBbox(rle).tolist(),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "class": number,
            }
        )
    return {
        "name": "x", "file_name": str(path), "image_id": 4,
        "height": image.shape[0], "width": image.shape[1], "annotations": annotations,
    }  # fmt: skip


def mapped(sample, *augmentations, image_format="RGB"):
    return CellMapper(augmentations=augmentations, image_format=image_format)(sample)


class Crop(T.Augmentation):
    """A crop that is not random."""

    def __init__(self, x, y, w, h):
        super().__init__()
        self.window = (x, y, w, h)

    def get_transform(self, image):
        return T.CropTransform(*self.window, image.shape[1], image.shape[0])


def slanted(height=12, width=16):
    """A diagonal of one pixel: what a crop leaves of it has another box than the crop's."""
    mask = np.zeros((height, width), bool)
    for n in range(10):
        mask[n + 1, n + 2] = True
    return mask


def test_by_hand(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    corner = np.zeros((12, 16), bool)
    corner[10:12, 13:16] = True
    found = mapped(sample_of(tmp_path, image, [slanted(), corner]), Crop(4, 0, 8, 6))
    assert (found["height"], found["width"], found["image_id"]) == (6, 8, 4)
    assert np.array_equal(found["image"].numpy(), image[0:6, 4:12].transpose(2, 0, 1))
    instances = found["instances"]
    assert instances.image_size == (6, 8)
    # The corner is outside. Of the slanted cell, the rows 3 to 5 are in the columns 4 to 6.
    assert instances.gt_classes.tolist() == [0]
    assert np.array_equal(instances.gt_masks.tensor[0].numpy(), slanted()[0:6, 4:12])
    assert instances.gt_boxes.tensor.tolist() == [[0, 3, 3, 6]]


def test_channels(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 200
    sample = sample_of(tmp_path, image, [])
    assert mapped(sample, T.NoOpTransform())["image"][:, 0, 0].tolist() == [200, 0, 0]
    bgr = mapped(sample, T.NoOpTransform(), image_format="BGR")["image"]
    assert bgr[:, 0, 0].tolist() == [0, 0, 200]
    assert torch.equal(to_tensor(image, "BGR"), bgr)
    assert bgr.dtype == torch.uint8


def test_no_cells(tmp_path):
    found = mapped(sample_of(tmp_path, np.zeros((5, 6, 3), np.uint8), []), T.NoOpTransform())
    assert len(found["instances"]) == 0
    assert found["instances"].gt_masks.tensor.shape == (0, 5, 6)
    assert found["instances"].gt_boxes.tensor.shape == (0, 4)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # pycocotools
@pytest.mark.parametrize("crop", ["relative", "none"])
@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical", "both"])
def test_equals_transforming_whole_masks(cells, flip, crop):
    """The slow way: each mask decoded in full, and taken through all transforms."""
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    options = ["INPUT.RANDOM_FLIP", flip, "INPUT.MIN_SIZE_TRAIN", "(90,)"]
    options += ["INPUT.CROP.ENABLED", str(crop != "none")]
    config.merge_options(cfg, options)
    annotations = str(cells / "train__annot.json")
    data = load_training_data(str(cells), annotations, 0, "", 0)
    for seed, sample in enumerate(data.train * 2):
        np.random.seed(seed)  # noqa: NPY002 (Detectron2 draws from it)
        found = CellMapper(cfg)(sample)["instances"]
        np.random.seed(seed)  # noqa: NPY002
        augmented = T.AugInput(read_image(sample["file_name"]))
        transforms = T.AugmentationList(build_augmentations(cfg))(augmented)
        masks, classes = [], []
        for annotation in sample["annotations"]:
            whole = np.asarray(pycocotools.mask.decode(annotation["segmentation"]))
            mask = transforms.apply_segmentation(whole).astype(bool)
            if mask.any():
                masks.append(mask)
                classes.append(annotation["class"])
        assert found.gt_classes.tolist() == classes
        assert found.gt_masks.tensor.shape[1:] == augmented.image.shape[:2]
        for mask, ours, box in zip(
            masks, found.gt_masks.tensor.numpy(), found.gt_boxes.tensor.tolist(), strict=True
        ):
            assert np.array_equal(ours, mask)
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == [float(side) for side in tight]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ([], ["RandomCrop", "ResizeShortestEdge", "RandomFlip", "RandomFlip", "RandomBrightness"]),
        (["INPUT.RANDOM_FLIP", "none", "INPUT.BRIGHTNESS", "(1.0, 1.0)"],
         ["RandomCrop", "ResizeShortestEdge"]),
        (["INPUT.CROP.ENABLED", "False", "INPUT.RANDOM_FLIP", "vertical"],
         ["ResizeShortestEdge", "RandomFlip", "RandomBrightness"]),
    ],
)  # fmt: skip
def test_the_config_says_which(options, kinds):
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    config.merge_options(cfg, options)
    assert [type(a).__name__ for a in build_augmentations(cfg)] == kinds


def test_an_unknown_flip():
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    config.merge_options(cfg, ["INPUT.RANDOM_FLIP", "sideways"])
    with pytest.raises(InputError, match=r"INPUT\.RANDOM_FLIP sideways: one of none"):
        build_augmentations(cfg)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1)])
def test_strips_and_single_pixels(tmp_path, shape):
    cfg = config.load_recipe("mask_rcnn_R_50_DC5_3x")
    mask = np.ones(shape, bool)
    found = CellMapper(cfg)(sample_of(tmp_path, np.zeros((*shape, 3), np.uint8), [mask]))
    assert min(found["image"].shape) >= 1
    assert found["instances"].gt_masks.tensor.all()


def test_an_image_that_changed_its_size(tmp_path):
    sample = sample_of(tmp_path, np.zeros((5, 6, 3), np.uint8), []) | {"height": 7}
    with pytest.raises(InputError, match=r"image\.png: 5 x 6 pixels, but the annotations say 7 x"):
        mapped(sample, T.NoOpTransform())
