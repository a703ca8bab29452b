"""This project's network against Detectron2's: the same detections, and the differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cellseg.config import load_config, merge_options
from cellseg.errors import InputError
from cellseg.network import build_network
from cellseg.network.limits import choose_limits
from tests.bitmasks import to_full
from tests.network.network_cases import picture, sample

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
]

BOX, MASK = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")
RES5 = "MODEL.ROI_HEADS.NAME Res5ROIHeads MODEL.RESNETS.RES5_DILATION 1 MODEL.RESNETS.OUT_FEATURES "
RES5 += "['res4'] MODEL.RPN.IN_FEATURES ['res4'] MODEL.ROI_HEADS.IN_FEATURES ['res4']"


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("dilated_c5", ""),
        ("dilated_c5", f"{BOX} True {MASK} True"),
        ("dilated_c5", RES5),
        ("cascade_fpn", "MODEL.FPN.OUT_CHANNELS 16"),
        ("cascade_fpn", f"MODEL.FPN.OUT_CHANNELS 16 {MASK} True"),
    ],
)
@pytest.mark.parametrize("threshold", ["0.0", "1.0"])
def test_detections_are_detectron2s(tiny, tmp_path, monkeypatch, base, options, threshold):
    """With the same fixed limits, also if proposals are classified in parts."""
    from detectron2.modeling import GeneralizedRCNN

    path = tmp_path / "config.yaml"
    path.write_text(tiny.read_text().replace("dilated_c5", base))
    cfg = load_config(path, "detectron2")
    options += f" MODEL.DEVICE cpu MODEL.ROI_HEADS.SCORE_THRESH_TEST {threshold}"
    merge_options(cfg, [*options.split(), "TEST.DETECTIONS_PER_IMAGE", "12"])
    torch.manual_seed(0)
    network: Any = build_network(cfg).eval()
    images = [picture(64, 96), picture(50, 60, seed=1)]
    monkeypatch.setattr("cellseg.network.limits._BOXES", 7)
    with torch.no_grad():
        theirs = GeneralizedRCNN.inference(
            network, [{"image": image} for image in images], do_postprocess=False
        )
    for cells, expected in zip(
        network.detect(images, choose_limits(cfg, 64 * 96)), theirs, strict=True
    ):
        assert len(cells) == len(expected) == (12 if threshold == "0.0" else 0)
        torch.testing.assert_close(cells.boxes, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(cells.scores, expected.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(cells.classes, expected.pred_classes)
        torch.testing.assert_close(cells.masks, expected.pred_masks[:, 0], rtol=1e-4, atol=1e-4)


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


def test_heads_that_pool_once_can_not_enlarge_boxes(tiny):
    cfg = load_config(tiny, "detectron2")
    merge_options(cfg, [*RES5.split(), "MODEL.ROI_MASK_HEAD.BOX_SCALE", "1.25"])
    with pytest.raises(InputError, match=r"BOX_SCALE 1\.25: .*Res5ROIHeads"):
        build_network(cfg)


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("dilated_c5", ""),
        ("dilated_c5", f"{BOX} True {MASK} True"),
        ("dilated_c5", RES5),
        ("fpn", "MODEL.FPN.OUT_CHANNELS 16 MODEL.RPN.BBOX_REG_LOSS_TYPE giou"),
        ("cascade_fpn", "MODEL.FPN.OUT_CHANNELS 16"),
    ],
)
def test_losses_are_detectron2s(tiny, tmp_path, base, options):
    """If all anchors and proposals are drawn, of images of two sizes, one of them without cells."""
    from detectron2.modeling import GeneralizedRCNN
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    path = tmp_path / "config.yaml"
    path.write_text(tiny.read_text().replace("dilated_c5", base))
    cfg = load_config(path, "detectron2")
    all_of_them = "BATCH_SIZE_PER_IMAGE 100000 {}.POSITIVE_FRACTION 1.0"
    for part in ("MODEL.RPN", "MODEL.ROI_HEADS"):
        options += f" {part}.{all_of_them.format(part)}"
    merge_options(cfg, f"MODEL.DEVICE cpu {options}".split())
    torch.manual_seed(0)
    network: Any = build_network(cfg).train()
    theirs = GeneralizedRCNN(cfg).train()
    theirs.load_state_dict(network.state_dict())
    samples = [sample(), sample(50, 60, [(5, 4, 21, 30, 1)]), sample(cells=[])]
    inputs = []
    for each in samples:
        instances = Instances(tuple(each["image"].shape[1:]))
        instances.gt_boxes = Boxes(each["boxes"])
        instances.gt_classes = each["classes"]
        instances.gt_masks = BitMasks(to_full(each["masks"]))
        inputs.append({"image": each["image"], "instances": instances})
    with EventStorage():
        expected = theirs(inputs)
        losses = network(samples)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name
        assert loss.item() > 0


def test_proposals_come_from_the_rpn(tiny):
    cfg = load_config(tiny, "detectron2")
    merge_options(cfg, ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"])
    with pytest.raises(InputError, match="PrecomputedProposals: RPN is expected"):
        build_network(cfg)
