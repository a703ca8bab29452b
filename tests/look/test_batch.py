"""Pictures of a batch and of a validation image: positions of crops and outlines."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask

from cellseg.cellmasks import CellMasks
from cellseg.colours import class_colour
from cellseg.look.batch import draw_batch, draw_middle
from cellseg.look.overlay import draw_comparison
from cellseg.predictions import Predictions
from tests.learn.cell_cases import image_of


def sample(height, width, colour, cells=()):
    """Return a plain sample whose cells are (class, left, top, right, bottom)."""
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
    crops = [torch.ones(y1 - y0, x1 - x0, dtype=torch.bool) for _, x0, y0, x1, y1 in cells]
    return {
        "name": "x",
        "image": image,
        "classes": torch.tensor([cell[0] for cell in cells], dtype=torch.int64),
        "masks": CellMasks.from_crops((height, width), [cell[1:3] for cell in cells], crops),
    }


def at(picture, x, y):
    return tuple(picture[y, x].tolist())


def test_positions_of_crops_and_outlines():
    """Of three crops of up to 500 x 600 px, two are in the first row; none is enlarged."""
    red, green, blue = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    batch = [
        sample(500, 400, red, [(1, 10, 20, 40, 60)]),
        sample(300, 600, green, [(0, 0, 0, 5, 300)]),
        sample(500, 600, blue, [(2, 590, 490, 600, 500), (0, 590, 490, 600, 495)]),
    ]
    picture = draw_batch(batch, ["a", "b", "c"], "RGB")
    assert picture.shape[1] == 600 + 4 + 600
    assert at(picture, 5, 5) == red
    assert at(picture, 500, 5) == at(picture, 601, 5) == at(picture, 700, 400) == (160,) * 3
    assert at(picture, 700, 100) == green
    assert at(picture, 100, 600) == blue
    # The first and last pixels of a cell, and none around it.
    for x, y in ((10, 20), (39, 59), (10, 40)):
        assert at(picture, x, y) == class_colour(1)
    for x, y in ((9, 20), (10, 19), (40, 59), (39, 60), (20, 40)):
        assert at(picture, x, y) == red
    assert at(picture, 604, 0) == at(picture, 608, 299) == class_colour(0)
    assert at(picture, 599, 504 + 499) == class_colour(2)
    assert at(picture, 599, 504 + 490) == class_colour(0)


def test_bgr_samples():
    picture = draw_batch([sample(600, 900, (10, 20, 30))], ["a"], "BGR")
    assert at(picture, 0, 0) == (30, 20, 10)


def test_a_batch_without_cells():
    picture = draw_batch([sample(1, 1, (1, 2, 3))], ["a"], "RGB")
    assert at(picture, 0, 0) == (1, 2, 3)
    assert picture.dtype == np.uint8


def encode_masks(masks):
    """Encode `(N, H, W)` uint8 by pycocotools."""
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


def test_only_the_middle_of_a_large_image_is_drawn():
    """A cell in the middle, one cut by the window, one outside, and a low-score one.

    The first is detected as another class, too.
    """
    image = np.full((600, 1000, 3), 200, np.uint8)
    corners = [(500, 300), (239, 300), (100, 300), (600, 300)]  # the window is from 244 and 44
    masks = np.zeros((4, 600, 1000), np.uint8)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[y : y + 10, x : x + 10] = 1
    rles = encode_masks(masks)
    classes = np.array([0, 1, 0, 1])
    boxes = [(x, y, x + 10, y + 10) for x, y in corners]
    sample = image_of(boxes, classes, rles, size=(600, 1000))
    scores = np.array([0.9, 0.8, 0.7, 0.4], np.float32)
    boxes_xyxy = np.zeros((5, 4), np.float32)
    detected = np.array([0.72, 0.8, 0.7, 0.4, 0.54], np.float32)  # 0.72² + 0.54² = 0.9²
    predictions = Predictions(
        (600, 1000), boxes_xyxy, detected, np.array([0, 1, 0, 1, 1]), [*rles, rles[0]]
    )
    inside, likely = [0, 1, 3], [0, 1]
    expected = draw_comparison(
        image[44:556, 244:756],
        encode_masks(masks[inside, 44:556, 244:756]),
        classes[inside],
        encode_masks(masks[likely, 44:556, 244:756]),
        classes[likely],
        ["a", "b"],
        scores[likely],
    )
    assert (draw_middle(image, sample, predictions, ["a", "b"]) == expected).all()
