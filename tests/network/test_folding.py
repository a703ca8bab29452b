"""Batch norms folded into convolutions, against the network with them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cellseg import config
from cellseg.network import build_network
from cellseg.network.folding import fold_batch_norms
from tests.network.network_cases import LIMITS, picture

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

TIMM = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME")
NORMS = ("MODEL.FPN.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN")
OPTIONS = {
    "ResNet": (),
    "frozen statistics": ("MODEL.RESNETS.NORM", "FrozenBN"),
    "ResNet of timm": (*TIMM, "resnet10t", *NORMS),
    "Lite0": (*TIMM, "tf_efficientnet_lite0", *NORMS),
    "Lite0 with frozen stages": (*TIMM, "tf_efficientnet_lite0", "MODEL.BACKBONE.FREEZE_AT", "2"),
    "batch norms in the heads only": (*TIMM, "convnextv2_atto", *NORMS),
}


class Network(nn.Module):
    """A network as `fold_batch_norms` takes it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


class Features(nn.Module):
    """A backbone of layers one after the other."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return {"res2": self.body(x)}


class Normalised(nn.Module):
    """A convolution and a batch norm; with `skip`, the convolution is used elsewhere too."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), skip

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y if self.skip else self.norm(y)


def randomise(network):
    """Give batch norms the statistics and weights of a trained network."""
    for module in network.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.3, 0.3)


def count_batch_norms(network):
    return sum("BatchNorm" in type(module).__name__ for module in network.modules())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_detections_stay_and_batch_norms_go(tiny, tmp_path, engine, options):
    path = tmp_path / "folded.yaml"
    path.write_text(tiny.read_text().replace("dilated_c5", "fpn"))
    cfg = config.load_config(path, engine)
    keys = ("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    config.merge_options(cfg, [*keys, "MODEL.FPN.OUT_CHANNELS", "16", *options])
    torch.manual_seed(0)
    network: Any = build_network(cfg).eval()
    randomise(network)
    assert count_batch_norms(network) > 2
    (expected,) = network.detect([picture(64, 96)], LIMITS)
    fold_batch_norms(network)
    (detections,) = network.detect([picture(64, 96)], LIMITS)
    assert count_batch_norms(network) == 0
    assert len(expected) > 10
    for name in ("boxes", "scores", "classes", "masks"):
        values, true = getattr(detections, name), getattr(expected, name)
        torch.testing.assert_close(values, true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_weights(bias):
    """Worked out by hand: (w x + b - mean) / sqrt(variance + eps) * weight + bias."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=bias), nn.BatchNorm2d(1, eps=0.0)
    with torch.no_grad():
        conv.weight.fill_(3.0)
        norm.weight.fill_(5.0)
        norm.bias.fill_(7.0)
        if conv.bias is not None:
            conv.bias.fill_(2.0)
    norm.register_buffer("running_mean", torch.tensor([1.0]))
    norm.register_buffer("running_var", torch.tensor([4.0]))
    body = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), conv, nn.Identity(), norm)
    network = Network(Features(body))
    fold_batch_norms(network)
    assert conv.weight.item() == 3.0 / 2 * 5
    assert conv.bias is not None
    assert conv.bias.item() == ((2.0 if bias else 0.0) - 1) / 2 * 5 + 7
    assert count_batch_norms(network) == 0


@pytest.mark.parametrize("skip", [False, True])
def test_a_convolution_that_is_used_elsewhere_keeps_its_weights(skip):
    torch.manual_seed(0)
    network = Network(Features(Normalised(skip))).eval()
    randomise(network)
    before = copy.deepcopy(network)
    fold_batch_norms(network)
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(network.backbone(x)["res2"], before.backbone(x)["res2"])
    assert count_batch_norms(network) == (1 if skip else 0)


def test_statistics_that_are_not_finite_stay():
    """The check of the features can't tell what they would be, so nothing is changed."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), norm := nn.BatchNorm2d(4))
    network = Network(Features(body)).eval()
    assert norm.running_var is not None
    norm.running_var.fill_(float("nan"))
    fold_batch_norms(network)
    assert count_batch_norms(network) == 1


def test_a_backbone_that_does_not_take_small_images_stays():
    class Fixed(nn.Sequential):
        def forward(self, x):
            assert x.shape[-1] == 224
            return super().forward(x)

    network = Network(Features(Fixed(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))).eval()
    fold_batch_norms(network)
    assert count_batch_norms(network) == 1
    assert network.backbone(torch.rand(1, 3, 224, 224))["res2"].shape == (1, 4, 222, 222)
