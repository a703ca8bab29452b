"""Detectron2's cascade of box heads under the project's network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from cellseg import config
from cellseg.network import build_network
from tests.bitmasks import from_bitmasks

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
]

STAGES = range(3)


@pytest.fixture(autouse=True)
def storage():
    """Detectron2's heads write scalars to one as they learn."""
    from detectron2.utils.events import EventStorage

    with EventStorage():
        yield


@pytest.fixture
def cfg(tiny, tmp_path):
    path = tmp_path / "cascade.yaml"
    path.write_text(tiny.read_text().replace("dilated_c5", "cascade_fpn"))
    cfg = config.load_config(path, "detectron2")
    config.merge_options(cfg, ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", "16"])
    return cfg


@pytest.fixture
def network(cfg) -> Any:
    torch.manual_seed(0)
    return build_network(cfg)


def sample(n_cells=2):
    full = torch.zeros(2, 64, 96, dtype=torch.bool)
    full[0, 10:34, 8:30] = full[1, 20:50, 40:72] = True
    image = torch.full((3, 64, 96), 40, dtype=torch.uint8)
    image[:, full.any(0)] = 200
    masks = from_bitmasks(full[:n_cells])
    classes = torch.tensor([0, 3])[:n_cells]
    return {"image": image, "boxes": masks.boxes, "classes": classes, "masks": masks}


@pytest.mark.parametrize("counts", [(2, 2), (2, 0), (0, 0)])
def test_every_head_learns(network, counts):
    losses = network([sample(n) for n in counts])
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_mask"} | {
        f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in STAGES
    }
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for stage in STAGES:
        weight = network.roi_heads.box_predictor[stage].cls_score.weight
        assert weight.grad.abs().sum() > 0


def test_cascade_detections(network):
    images = [sample()["image"], sample()["image"][:, :50, :70]]
    for found, image in zip(network.eval().detect(images), images, strict=True):
        height, width = image.shape[1:]
        assert len(found)
        assert (found.boxes[:, :2] >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert set(found.classes.tolist()) <= set(range(4))
        assert found.masks.shape == (len(found), 28, 28)


def test_the_boxes_are_refined_head_by_head(network, monkeypatch):
    """Each head sees the boxes that the one before made of its own."""
    heads = network.roi_heads
    seen = []
    run_stage = heads._run_stage

    def run(features, proposals, stage):
        predictions = run_stage(features, proposals, stage)
        boxes = heads.box_predictor[stage].predict_boxes(predictions, proposals)
        seen.append((torch.cat([p.proposal_boxes.tensor for p in proposals]), torch.cat(boxes)))
        return predictions

    monkeypatch.setattr(heads, "_run_stage", run)
    for predictor in heads.box_predictor:
        torch.nn.init.constant_(predictor.bbox_pred.bias, 1.0)
    image = sample()["image"]
    network.eval().detect([image])
    assert len(seen) == len(STAGES)
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    for (_, made), (given, _) in pairwise(seen):
        torch.testing.assert_close(given, made.clamp(min=0).minimum(limit))
