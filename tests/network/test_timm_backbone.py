"""timm's networks as backbones: features, freezing, weights, training and detection."""

from __future__ import annotations

import contextlib
import re
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from cellseg import config
from cellseg.errors import InputError
from cellseg.learn.weights import load_initial_weights
from cellseg.network import build_network, check_network
from tests.network.network_cases import LIMITS, picture, sample

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # Detectron2's
    pytest.mark.skipif(find_spec("timm") is None, reason="needs timm"),  # imported by few tests
]


FAMILIES = {  # channels of the four stages, number of parameters
    "convnextv2_atto": ([40, 80, 160, 320], 3_386_760),
    "resnet10t": ([64, 128, 256, 512], 4_922_488),
}


@pytest.fixture(params=[pytest.param("detectron2", marks=pytest.mark.detectron2), "torchvision"])
def engine(request):
    """Each engine; Detectron2's heads need a storage for scalars in training."""
    with contextlib.ExitStack() as stack:
        if request.param == "detectron2":
            from detectron2.utils.events import EventStorage

            stack.enter_context(EventStorage())
        yield request.param


@pytest.fixture
def load(engine, tiny, tmp_path):
    """Load the tiny network's config with a backbone of timm."""

    def load(name, freeze_at=0):
        path = tmp_path / "timm.yaml"
        path.write_text(tiny.read_text().replace("dilated_c5", "fpn"))
        cfg = config.load_config(path, engine)
        options = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"]
        options += ["MODEL.BACKBONE.FREEZE_AT", str(freeze_at), "MODEL.FPN.OUT_CHANNELS", "16"]
        config.merge_options(cfg, [*options, "MODEL.TIMM.NAME", name])
        return cfg

    return load


@pytest.fixture
def build(load):
    def build(name, freeze_at=0) -> Any:
        torch.manual_seed(0)
        return build_network(load(name, freeze_at))

    return build


def timm_backbone(network):
    """Return timm's part of a network, below the pyramid."""
    backbone = network.backbone
    return backbone.bottom_up if hasattr(backbone, "bottom_up") else backbone.body


@pytest.mark.parametrize("name", FAMILIES)
def test_features(build, name):
    channels, n_parameters = FAMILIES[name]
    network = build(name)
    pyramid, body = network.backbone, timm_backbone(network)
    assert sum(p.numel() for p in body.parameters()) == n_parameters
    assert all(p.requires_grad for p in body.parameters())
    assert body.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    assert list(body.channels.values()) == channels
    features = body(torch.zeros(1, 3, 64, 96))
    for key, stride in body.strides.items():
        assert features[key].shape == (1, body.channels[key], 64 // stride, 96 // stride)
    widths = {key: level.shape[-1] for key, level in pyramid(torch.zeros(1, 3, 64, 96)).items()}
    assert widths == {"p2": 24, "p3": 12, "p4": 6, "p5": 3, "p6": 2}


@pytest.mark.parametrize("name", FAMILIES)
def test_training_and_detection(build, name):
    network = build(name)
    losses = network([sample(), sample()])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    for key, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None, key
    for detections in network.eval().detect([picture(), picture(50, 70)], LIMITS):
        assert detections.masks.shape == (len(detections), 28, 28)


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("convnextv2_atto", 1, {"stem_0", "stem_1"}),
        ("convnextv2_atto", 2, {"stem_0", "stem_1", "stages_0"}),
        ("resnet10t", 1, {"conv1", "bn1"}),
        ("resnet10t", 3, {"conv1", "bn1", "layer1", "layer2"}),
        ("tf_efficientnet_lite0", 1, {"conv_stem", "bn1", "blocks.0"}),
        ("tf_efficientnet_lite0", 3, {"conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"}),
    ],
)
def test_frozen_stages(build, name, freeze_at, frozen):
    def part(key):
        return re.findall(r"^(?:blocks\.\d|\w+)", key)[0]

    network = build(name, freeze_at=freeze_at)
    body = timm_backbone(network).body
    trainable = {part(key) for key, p in body.named_parameters() if p.requires_grad}
    everything = {part(key) for key in body.state_dict()}
    assert everything - trainable == frozen
    before = {key: value.clone() for key, value in body.state_dict().items()}
    network([sample()])
    for key, value in body.state_dict().items():  # batch statistics included
        if part(key) in frozen:
            assert torch.equal(value, before[key]), key


def test_stages_that_can_not_be_frozen(build):
    for name, freeze_at in (("resnet10t", 6), ("tf_efficientnet_lite0", 6)):
        with pytest.raises(InputError, match=rf"FREEZE_AT {freeze_at}: .*{name}"):
            build(name, freeze_at=freeze_at)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_of_timms_whole_network(build, name, tmp_path):
    """With these, the features are those of timm's network."""
    from safetensors.torch import save_file

    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    whole = timm.create_model(name).eval()
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    network = build(name)
    load_initial_weights(network, str(path))
    images = torch.rand(1, 3, 64, 96)
    expected = whole.forward_intermediates(images, intermediates_only=True)[-4:]
    features = timm_backbone(network.eval())(images).values()
    torch.testing.assert_close([*features], expected)


def test_weights_of_a_run_are_loaded(build, tmp_path):
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
        ("convnextv2_bsae", "did you mean convnextv2_base?"),
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


def test_an_unknown_name_is_an_error_before_weights_are_downloaded(load):
    with pytest.raises(InputError, match=r"MODEL\.TIMM\.NAME 'convnextv2_bsae'"):
        check_network(load("convnextv2_bsae"))


def test_without_timm(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"MODEL\.BACKBONE\.NAME .*pip install timm"):
        build_network(load("resnet10t"))


@pytest.mark.parametrize("most", [0, 1])
def test_a_part_of_the_cells_trains_the_mask_head(load, most):
    cfg = load("resnet10t")
    config.merge_options(cfg, ["MODEL.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE", str(most)])
    torch.manual_seed(0)
    network: Any = build_network(cfg)
    assert cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    counts = []
    first_layer = next(iter(network.roi_heads.mask_head.children()))
    first_layer.register_forward_pre_hook(lambda _module, inputs: counts.append(len(inputs[0])))
    losses = network.train()([sample(), sample()])
    assert all(torch.isfinite(loss) for loss in losses.values())
    (count,) = counts
    assert count == 2 if most else count >= 4  # the two cells of each sample are proposals too
    (detections,) = network.eval().detect([picture()], LIMITS)
    assert sum(counts[1:]) == len(detections)
