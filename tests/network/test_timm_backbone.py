"""timm's networks as backbones: features, freezing, weights, a step and a search."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.weights import load_initial_weights
from cellseg.network import build_network, check_network
from tests.bitmasks import from_bitmasks

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

timm = pytest.importorskip("timm")

FAMILIES = {  # channels of the four stages, parameters up to the last
    "convnextv2_atto": ([40, 80, 160, 320], 3_386_760),
    "resnet10t": ([64, 128, 256, 512], 4_922_488),
}


@pytest.fixture(params=[pytest.param("detectron2", marks=pytest.mark.detectron2), "torchvision"])
def engine(request):
    """Each engine; Detectron2's heads write scalars to a storage as they learn."""
    with contextlib.ExitStack() as stack:
        if request.param == "detectron2":
            from detectron2.utils.events import EventStorage

            stack.enter_context(EventStorage())
        yield request.param


@pytest.fixture
def load(engine, tiny, tmp_path):
    """Load the tiny network's config with a backbone of timm."""

    def load(name, *options, freeze_at=0):
        path = tmp_path / "timm.yaml"
        path.write_text(tiny.read_text().replace("dilated_c5", "fpn"))
        cfg = config.load_config(path, engine)
        keys = {
            "DEVICE": "cpu",
            "BACKBONE.NAME": "build_timm_fpn_backbone",
            "BACKBONE.FREEZE_AT": freeze_at,
            "TIMM.NAME": name,
            "FPN.OUT_CHANNELS": 16,
        }
        for key, value in keys.items():
            config.merge_options(cfg, [f"MODEL.{key}", str(value)])
        config.merge_options(cfg, options)
        return cfg

    return load


@pytest.fixture
def build(load):
    def build(name, *options, freeze_at=0) -> Any:
        torch.manual_seed(0)
        return build_network(load(name, *options, freeze_at=freeze_at))

    return build


def of_timm(network):
    """The part of a network that is timm's, below the pyramid."""
    backbone = network.backbone
    return backbone.bottom_up if hasattr(backbone, "bottom_up") else backbone.body


def picture(height=64, width=96):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def sample():
    full = torch.zeros(2, 64, 96, dtype=torch.bool)
    full[0, 10:34, 8:30] = full[1, 20:50, 40:72] = True
    masks = from_bitmasks(full)
    return {
        "image": picture(),
        "boxes": masks.boxes,
        "classes": torch.tensor([0, 3]),
        "masks": masks,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_features(build, name):
    channels, n_parameters = FAMILIES[name]
    network = build(name)
    pyramid, body = network.backbone, of_timm(network)
    assert sum(p.numel() for p in body.parameters()) == n_parameters
    assert all(p.requires_grad for p in body.parameters())
    assert body.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    assert list(body.channels.values()) == channels
    features = body(torch.zeros(1, 3, 64, 96))
    for key, stride in body.strides.items():
        shape = (1, body.channels[key], 64 // stride, 96 // stride)
        assert features[key].shape == shape
    levels = pyramid(torch.zeros(1, 3, 64, 96))
    assert {key: level.shape[-1] for key, level in levels.items()} == {
        "p2": 24,
        "p3": 12,
        "p4": 6,
        "p5": 3,
        "p6": 2,
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_and_a_search(build, name):
    network = build(name)
    losses = network([sample(), sample()])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for key, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None, key
    for found in network.eval().detect([picture(), picture(50, 70)]):
        assert found.masks.shape == (len(found), 28, 28)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("convnextv2_atto", 1, {"stem_0", "stem_1"}),
        ("convnextv2_atto", 2, {"stem_0", "stem_1", "stages_0"}),
        ("resnet10t", 1, {"conv1", "bn1"}),
        ("resnet10t", 3, {"conv1", "bn1", "layer1", "layer2"}),
    ],
)
def test_frozen_stages(build, name, freeze_at, frozen):
    network = build(name, freeze_at=freeze_at)
    body = of_timm(network).body
    learning = {key.split(".")[0] for key, p in body.named_parameters() if p.requires_grad}
    everything = {key.split(".")[0] for key in body.state_dict()}
    assert everything - learning == frozen
    before = {key: value.clone() for key, value in body.state_dict().items()}
    network([sample()])
    for key, value in body.state_dict().items():  # nor do the statistics move
        if key.split(".")[0] in frozen:
            assert torch.equal(value, before[key]), key


def test_stages_that_can_not_be_frozen(build):
    for name, freeze_at in (("resnet10t", 6), ("mobilenetv3_small_050", 1)):
        with pytest.raises(InputError, match=rf"FREEZE_AT {freeze_at}: {name} has no such stage"):
            build(name, freeze_at=freeze_at)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_of_timms_whole_network(build, name, tmp_path):
    """With them, the features are those that timm's network computes on its way."""
    from safetensors.torch import save_file

    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    network = build(name)
    load_initial_weights(network, str(path))
    images = torch.rand(1, 3, 64, 96)
    expected = whole.forward_intermediates(images, intermediates_only=True)[-4:]
    features = of_timm(network.eval())(images).values()
    for found, wanted in zip(features, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_a_runs_own_weights_come_back(build, tmp_path):
    network = build("convnextv2_atto", freeze_at=1)
    path = tmp_path / "model_best.pth"
    torch.save({"model": network.state_dict()}, path)
    torch.manual_seed(5)
    again = build("convnextv2_atto", freeze_at=1)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    load_initial_weights(again, str(path))
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnextv2_bsae", "timm has no such network; did you mean convnextv2_base?"),
        ("", "timm.list_models"),
        ("vit_tiny_patch16_224", "of strides (16, 16, 16, 16)"),
        ("swin_tiny_patch4_window7_224", "its features are NHWC"),
    ],
)
def test_networks_that_do_not_fit(build, name, expected):
    with pytest.raises(InputError) as caught:
        build(name)
    assert f"MODEL.TIMM.NAME {name}".strip() in str(caught.value).replace("'", "")
    assert expected in str(caught.value)


def test_an_unknown_name_is_refused_before_weights_are_looked_for(load):
    with pytest.raises(InputError, match="timm has no such network"):
        check_network(load("convnextv2_bsae"))


def test_without_timm(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="needs timm, which can't be imported"):
        build_network(load("resnet10t"))
