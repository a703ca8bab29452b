"""Detectron2's cascade of box heads in this project's network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from cellseg import config
from cellseg.network import build_network
from tests.network.network_cases import CELLS, LIMITS, sample

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
]

STAGES = range(3)


@pytest.fixture(autouse=True)
def storage():
    """The storage for scalars that Detectron2's heads need in training."""
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


@pytest.mark.parametrize("counts", [(2, 2), (2, 0), (0, 0)])
def test_every_head_is_trained(network, counts):
    losses = network([sample(cells=CELLS[:n]) for n in counts])
    by_stage = {f"loss_{part}_stage{stage}" for part in ("cls", "box_reg") for stage in STAGES}
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_mask"} | by_stage
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for stage in STAGES:
        weight = network.roi_heads.box_predictor[stage].cls_score.weight
        assert weight.grad.abs().sum() > 0


def test_cascade_detections(network):
    images = [sample()["image"], sample()["image"][:, :50, :70]]
    for detections, image in zip(network.eval().detect(images, LIMITS), images, strict=True):
        height, width = image.shape[1:]
        corners, ends = detections.boxes[:, :2], detections.boxes[:, 2:]
        assert len(detections)
        assert (corners >= 0).all()
        assert (ends <= torch.tensor([width, height])).all()
        assert (ends > corners).all()
        assert ((detections.scores >= 0) & (detections.scores <= 1)).all()
        assert set(detections.classes.tolist()) <= set(range(4))
        assert detections.masks.shape == (len(detections), 28, 28)


def test_the_boxes_are_refined_head_by_head(network, monkeypatch):
    heads = network.roi_heads
    stages = []
    run_stage = heads._run_stage

    def run(features, proposals, stage):
        predictions = run_stage(features, proposals, stage)
        boxes = heads.box_predictor[stage].predict_boxes(predictions, proposals)
        stages.append((torch.cat([p.proposal_boxes.tensor for p in proposals]), torch.cat(boxes)))
        return predictions

    monkeypatch.setattr(heads, "_run_stage", run)
    for predictor in heads.box_predictor:
        torch.nn.init.constant_(predictor.bbox_pred.bias, 1.0)
    network.eval().detect([sample()["image"]], LIMITS)
    assert len(stages) == len(STAGES)
    limit = torch.tensor([96.0, 64.0, 96.0, 64.0])
    for (_, refined), (proposals, _) in pairwise(stages):
        torch.testing.assert_close(proposals, refined.clamp(min=0).minimum(limit))
