"""Differences of this project's network from Detectron2's."""

from __future__ import annotations

import pytest
import torch

from cellseg.config import load_config
from cellseg.network import build_network

pytestmark = pytest.mark.detectron2


@pytest.mark.parametrize("head", ["box_pooler", "mask_pooler"])
@pytest.mark.parametrize("mixed", [False, True])
def test_boxes_are_not_rounded(tiny, head, mixed):
    """In features that rise by 1 from cell to cell, a box's mean is the value at its centre."""
    from detectron2.structures import Boxes

    cfg = load_config(tiny, "detectron2")
    cfg.MODEL.DEVICE = "cpu"
    pool = getattr(build_network(cfg).roi_heads, head)
    # 0 at x = 1000, for strides of 16 px. Near 1000, bfloat16 has only every fourth integer.
    ramp = (torch.arange(70.0) + 0.5 - 1000 / 16).expand(1, 1, 70, 70)
    boxes = torch.tensor([[993.0, 500.0, 1013.0, 520.0], [990.5, 500.0, 1012.5, 520.0]])
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        features = ramp.bfloat16() if mixed else ramp
        means = pool([features], [Boxes(boxes)]).mean((1, 2, 3))
    expected = torch.tensor([3.0, 1.5]) / 16
    assert torch.allclose(means.float(), expected, atol=0.004 if mixed else 1e-5)
