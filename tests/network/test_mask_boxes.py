"""Masks in enlarged boxes."""

from __future__ import annotations

import math

import pycocotools.mask
import pytest
import torch

from cellseg import config
from cellseg.network import build_network, enlarge_boxes
from cellseg.predict.masks import encode_masks
from tests.network.network_cases import LIMITS, sample

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's


def test_boxes_are_enlarged_about_their_centres():
    boxes = torch.tensor([[10.0, 20, 30, 24], [0, 0, 1, 1], [5, 5, 5, 9]])
    larger = torch.tensor([[5.0, 19, 35, 25], [-0.25, -0.25, 1.25, 1.25], [5, 4, 5, 10]])
    assert torch.equal(enlarge_boxes(boxes, 1.5), larger)
    assert enlarge_boxes(boxes, 1.0) is boxes
    assert enlarge_boxes(torch.zeros(0, 4), 2.0).shape == (0, 4)


@pytest.fixture
def build(tiny, engine):
    """Build the tiny network with a factor and more keys, for training."""

    def build(scale, **keys):
        cfg = config.load_config(tiny, engine)
        keys = {"DEVICE": "cpu", "PIXEL_STD": "[57.0,57.0,57.0]", **keys}
        keys["ROI_MASK_HEAD.BOX_SCALE"] = scale
        words = [str(word) for key, value in keys.items() for word in (f"MODEL.{key}", value)]
        config.merge_options(cfg, words)
        torch.manual_seed(0)
        return build_network(cfg).train()

    return build


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=pytest.mark.one_engine), 1.6])
def test_masks_are_predicted_in_the_boxes_that_they_are_trained_in(build, engine, scale):
    """After training on one sample, its cells are outlined; in other boxes, 1.6 times as long."""
    network = build(scale)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    gt = sample(cells=[(8, 10, 38, 44, 0), (44, 20, 84, 52, 3)])
    with _event_storage(engine):
        for _ in range(100):
            optimizer.zero_grad()
            sum(network([gt]).values()).backward()
            optimizer.step()
    (cells,) = network.eval().detect([gt["image"]], LIMITS)
    found = encode_masks(cells.masks, cells.mask_boxes, gt["masks"].size)
    truth = [_encoded(gt["masks"], n) for n in range(2)]
    assert pycocotools.mask.iou(found, truth, [False] * 2).max(0).min() > 0.5


@pytest.mark.parametrize("scale", [1.0, 1.6])
def test_the_targets_of_enlarged_boxes(build, engine, scale):
    """With the same logit everywhere, the loss tells the share of the grids that is cell.

    Only the true boxes count as cells. An ellipse fills pi / 4 of its box.
    """
    network = build(scale, **{"ROI_HEADS.IOU_THRESHOLDS": "[0.999]"})
    heads = network.roi_heads
    is_detectron2 = engine == "detectron2"
    last = heads.mask_head.predictor if is_detectron2 else heads.mask_predictor.mask_fcn_logits
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, 2.0)
    with _event_storage(engine), torch.no_grad():
        loss = network([sample(cells=[(28, 20, 58, 44, 1)])])["loss_mask"]
    cell, background = (torch.nn.functional.softplus(torch.tensor(sign * 2.0)) for sign in (-1, 1))
    share = (background - loss) / (background - cell)
    assert share == pytest.approx(math.pi / 4 / scale**2, abs=0.02)


def _encoded(masks, n):
    full = torch.zeros(masks.size, dtype=torch.uint8)
    left, top, right, bottom = masks[n].boxes[0].int().tolist()
    full[top:bottom, left:right] = masks.crop(n).byte()
    return pycocotools.mask.encode(full.numpy().copy(order="F"))


def _event_storage(engine):
    if engine == "torchvision":
        return torch.enable_grad()
    from detectron2.utils.events import EventStorage

    return EventStorage()
