"""Images and samples for the tests of networks."""

from __future__ import annotations

import torch

from cellseg.network.limits import Limit, Limits
from tests.bitmasks import from_bitmasks

LIMITS = Limits(Limit(100, 100), Limit(60, 60), Limit(800, 800))
CELLS = ((8, 10, 30, 34, 0), (40, 20, 72, 44, 3))  # box and class


def picture(height=64, width=96, seed=0):
    """Return a `(3, height, width)` uint8 image of noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def sample(height=64, width=96, cells=CELLS):
    """Return a sample of bright ellipses on noise, each given by its box and its class."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    boxes = torch.tensor([cell[:4] for cell in cells], dtype=torch.float32).view(-1, 4)
    middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    distance = ((torch.stack([x, y], -1) - middle[:, None, None]) / radius[:, None, None]) ** 2
    full = distance.sum(-1) <= 1
    masks = from_bitmasks(full)
    image = picture(height, width) // 4
    image[:, full.any(0)] += 150
    classes = torch.tensor([cell[4] for cell in cells], dtype=torch.int64)
    return {"image": image, "boxes": masks.boxes, "classes": classes, "masks": masks}
