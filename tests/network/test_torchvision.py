"""torchvision's Mask R-CNN, compared with Detectron2's with the same weights, and by hand."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, resnet101, resnext101_32x8d
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d, box_iou

import cellseg.network.torchvision as engine
from cellseg import config
from cellseg.errors import InputError
from cellseg.network.limits import choose_limits
from cellseg.network.resnet import ResNet
from cellseg.network.torchvision import build_network, check, initial_weights
from tests.network.network_cases import LIMITS, picture, sample
from tests.training import same

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
BASES = ("dilated_c5", "fpn")


@pytest.fixture
def load(tiny, tmp_path):
    """Load the tiny network's config, with another base or other keys."""

    def load(base="dilated_c5", *options, engine="torchvision"):
        path = tmp_path / f"{base}.yaml"
        path.write_text(tiny.read_text().replace("dilated_c5", base))
        cfg = config.load_config(path, engine)
        config.merge_options(cfg, ["MODEL.DEVICE", "cpu", *map(str, options)])
        return cfg

    return load


EMPTY = sample(48, 80, cells=())


def set_statistics(network, extract_features):
    """Set the batch statistics of a random network, as training would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()
        extract_features([picture(64, 96), picture(64, 96, seed=1)])
    return network.eval()


def build(cfg):
    torch.manual_seed(0)
    network = build_network(cfg)
    return set_statistics(network, network._extract_features)


# Against Detectron2 ------------------------------------------------------------------


_NAMES: list[tuple[str, Any]] = [
    (r"backbone\.(bottom_up\.)?stem\.", "backbone.body."),
    (r"backbone\.(bottom_up\.)?res(\d)", lambda m: f"backbone.body.layer{int(m[2]) - 1}"),
    (r"shortcut\.norm", "downsample.1"),
    (r"shortcut", "downsample.0"),
    (r"conv(\d)\.norm", r"bn\1"),
    (r"(fpn_lateral\d|fpn_output\d|mask_fcn\d)\.norm\.", r"\1.1."),
    (r"(fpn_lateral\d|fpn_output\d|mask_fcn\d)\.(?=[a-z])", r"\1.0."),
    (r"backbone\.fpn_lateral(\d)", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}"),
    (r"backbone\.fpn_output(\d)", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}"),
    (r"proposal_generator\.rpn_head\.conv", "rpn.head.conv.0.0"),
    (r"proposal_generator\.rpn_head\.objectness_logits", "rpn.head.cls_logits"),
    (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn.head.bbox_pred"),
    (r"box_head\.fc(\d)", lambda m: f"box_head.fc{int(m[1]) + 5}"),
    (r"mask_head\.mask_fcn(\d)", lambda m: f"mask_head.{int(m[1]) - 1}"),
    (r"mask_head\.deconv", "mask_predictor.conv5_mask"),
    (r"mask_head\.predictor", "mask_predictor.mask_fcn_logits"),
]


def translated(state):
    """Convert Detectron2's weights to torchvision's names.

    With a box for the background, unless one is for all classes.
    """
    mine = {}
    for name, value in state.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        if "cls_score" in name:
            value = torch.cat([value[-1:], value[:-1]])
        elif "bbox_pred" in name and "box_predictor" in name and len(value) > 4:
            value = torch.cat([torch.zeros_like(value[:4]), value])
        mine[name] = value
    return mine


# Normalisation after the backbone, for networks without pretrained weights.
NORMED = ("MODEL.FPN.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN")


AGNOSTIC = (
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
)
SCALED = ("MODEL.ROI_MASK_HEAD.BOX_SCALE", 1.5)
POWERED = (
    *("MODEL.ROI_HEADS.OBJECTNESS_POWER", 0.4),
    *("MODEL.ROI_HEADS.FOREGROUND_POWER", 0.3),
)


@pytest.fixture(
    params=[
        *((base, ()) for base in BASES),
        ("fpn", NORMED),
        ("fpn", AGNOSTIC),
        ("fpn", SCALED),
        ("dilated_c5", AGNOSTIC[:2]),
        ("dilated_c5", (*AGNOSTIC[2:], *POWERED)),
    ],
    ids=str,
)
def both(request, load):
    """Two networks with the same random weights, Detectron2's and torchvision's."""
    from cellseg.network import detectron2

    base, more = request.param
    options = [
        *more,
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6),  # all, so that no anchors are drawn
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**4),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[13.7, 32]]),
    ]
    theirs_cfg = load(base, *options, engine="detectron2")
    for part in ("RPN", "ROI_BOX_HEAD"):
        config.merge_options(theirs_cfg, [f"MODEL.{part}.SMOOTH_L1_BETA", str(1 / 9)])
    torch.manual_seed(0)
    theirs = detectron2.build_network(theirs_cfg)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if re.search("bbox_pred|predictor.weight", name):
                value *= 10  # Detectron2's initial weights hardly distinguish boxes
            elif "norm.weight" in name or "norm.bias" in name:
                value += 0.1 * torch.randn_like(value)
    set_statistics(theirs, lambda images: theirs.backbone(torch.stack(images) - theirs.pixel_mean))
    mine = build_network(load(base, *options))
    mine.load_state_dict(translated(theirs.state_dict()))
    return theirs, mine


@pytest.mark.detectron2
def test_same_weights_have_the_same_detections(both):
    theirs, mine = (network.eval() for network in both)
    small = [picture(32, 32)]  # smaller than some anchors
    for images in ([picture(64, 96), picture(50, 60, seed=1)], small):
        for expected, result in zip(
            theirs.detect(images, LIMITS), mine.detect(images, LIMITS), strict=True
        ):
            assert len(result) == len(expected) > 20
            torch.testing.assert_close(result.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(result.scores, expected.scores, rtol=1e-4, atol=1e-5)
            assert torch.equal(result.classes, expected.classes)
            assert result.mask_scale == expected.mask_scale
            torch.testing.assert_close(result.masks, expected.masks, rtol=1e-4, atol=1e-4)


@pytest.mark.detectron2
def test_same_weights_have_the_same_losses(both):
    theirs, mine = (network.train() for network in both)
    from detectron2.utils.events import EventStorage

    with EventStorage(), torch.no_grad():
        expected, losses = (network([sample(), EMPTY]) for network in (theirs, mine))
    assert set(losses) == set(expected) == LOSSES
    for name in ("loss_cls", "loss_box_reg", "loss_mask"):
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5)
    # Detectron2 divides by the number of anchors to draw, torchvision by the number drawn.
    ratio = losses["loss_rpn_cls"] / expected["loss_rpn_cls"]
    torch.testing.assert_close(losses["loss_rpn_loc"], ratio * expected["loss_rpn_loc"])
    assert losses["loss_rpn_loc"] > 0


@pytest.mark.detectron2
@pytest.mark.parametrize("recipe", ["demo", "mask_rcnn_R_50_FPN_3x", "mask_rcnn_R_50_DC5_3x"])
def test_parameters_are_detectron2s_and_a_background_box(recipe):
    from detectron2.modeling import build_model

    counts = {}
    with torch.device("meta"):
        for name, build in {"detectron2": build_model, "torchvision": build_network}.items():
            cfg = config.load_recipe(recipe, name)
            cfg.MODEL.DEVICE = "meta"
            cfg.MODEL.AUXILIARY_HEAD.LOSS_WEIGHT = 0.0  # which Detectron2 has not
            network = build(cfg)
            counts[name] = [
                sum(p.numel() for p in network.parameters() if p.requires_grad or frozen)
                for frozen in (False, True)
            ]
    keys = cfg.MODEL.ROI_BOX_HEAD
    background = 0 if keys.CLS_AGNOSTIC_BBOX_REG else 4 * (keys.FC_DIM + 1)
    assert counts["torchvision"] == [n + background for n in counts["detectron2"]]


# Training ----------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("batch", [[sample(), EMPTY], [EMPTY], [EMPTY, EMPTY]], ids=len)
def test_losses_reach_every_weight(load, base, batch):
    torch.manual_seed(0)
    network = build_network(load(base)).train()
    losses = network(batch)
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if all(len(s["masks"]) == 0 for s in batch):
        assert losses["loss_mask"] == losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0


@pytest.mark.parametrize("base", BASES)
def test_training_on_one_sample_lowers_the_losses(load, base):
    torch.manual_seed(0)
    network = build_network(load(base, "MODEL.PIXEL_STD", [57.0] * 3)).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    gt = sample(64, 64, cells=[(8, 10, 30, 34, 0), (34, 30, 62, 54, 3)])
    steps = []
    for _ in range(16):
        losses = network([gt])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        steps.append({name: loss.item() for name, loss in losses.items()})
    # Chance level: a cell or none, one of 4 classes or none, inside or outside.
    first = {"loss_rpn_cls": math.log(2), "loss_cls": math.log(5), "loss_mask": math.log(2)}
    for name, factor in {"loss_rpn_cls": 0.2, "loss_cls": 0.5, "loss_mask": 0.9}.items():
        assert steps[0][name] == pytest.approx(first[name], rel=0.1), name
        assert sum(step[name] for step in steps[-4:]) / 4 < factor * first[name], name


def test_the_mask_loss_is_that_of_the_ground_truth_class(load):
    """One box, one class: the loss is the mean cross entropy of the grid of this class."""
    network = build_network(load("fpn")).train()
    gt = sample(cells=[(8, 10, 30, 34, 2)])
    last = network.roi_heads.mask_predictor.mask_fcn_logits
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([50.0, -50.0, 3.0, 50.0])
    losses = network([gt])
    # All logits of the grid are 3. Proposals near the cell contain other fractions of it.
    filled = gt["masks"].crop_and_resize(gt["boxes"], 28).float().mean()
    expected = filled * math.log1p(math.exp(-3)) + (1 - filled) * math.log1p(math.exp(3))
    assert 0.5 * expected < losses["loss_mask"] < 2 * expected


def test_boxes_and_losses_are_float32_in_mixed_precision(load):
    network = build(load("fpn"))
    with torch.autocast("cpu", torch.bfloat16):
        detections = network.detect([picture(64, 96)], LIMITS)[0]
        batch, for_rpn, _ = network._extract_features([picture(64, 96)])
        proposals = network.rpn.propose(batch, for_rpn, LIMITS)[0].boxes
        losses = network.train()([sample(32, 40, cells=[(8, 10, 30, 30, 0)])])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    parts = (detections.boxes, detections.scores, detections.masks)
    assert {part.dtype for part in parts} == {torch.float32}
    assert (detections.boxes != detections.boxes.bfloat16()).any()
    assert proposals.dtype == torch.float32


# Prediction --------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_detections(load, base):
    options = ("TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.19)
    cfg = load(base, *options)
    network = build(cfg)
    images = [picture(64, 96), picture(33, 35), picture(5, 70), picture(1, 1)]
    detections = network.detect(images, choose_limits(cfg, 64 * 96))
    assert len(detections) == len(images)
    assert 0 < len(detections[0]) <= 12
    for image, cells in zip(images, detections, strict=True):
        n, (_, height, width) = len(cells), image.shape
        assert cells.boxes.shape == (n, 4)
        assert cells.boxes.dtype == cells.scores.dtype == cells.masks.dtype == torch.float32
        assert cells.classes.dtype == torch.int64
        assert cells.masks.shape == (n, 28, 28)
        assert ((cells.masks >= 0) & (cells.masks <= 1)).all()
        assert (cells.scores > 0.19).all()
        assert torch.equal(cells.scores, cells.scores.sort(descending=True).values)
        assert ((cells.classes >= 0) & (cells.classes < 4)).all()
        assert (cells.boxes >= 0).all()
        assert (cells.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (cells.boxes[:, 2:] > cells.boxes[:, :2]).all()
        same_class = cells.classes[:, None] == cells.classes
        assert (box_iou(cells.boxes, cells.boxes)[same_class.triu(1)] <= 0.5).all()


def test_no_detections(load):
    network = build(load("fpn", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99))
    for detections in network.detect([picture(64, 64), picture(40, 40)], LIMITS):
        assert len(detections) == 0
        assert detections.boxes.shape == (0, 4)
        assert detections.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("base", BASES)
def test_padding_does_not_change_detections(load, base):
    network = build(load(base))
    large, small = picture(64, 96), picture(40, 50, seed=1)
    single, in_batch = network.detect([large], LIMITS)[0], network.detect([small, large], LIMITS)[1]
    assert len(single) == len(in_batch) > 0
    torch.testing.assert_close(in_batch.boxes, single.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(in_batch.masks, single.masks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("base", "size"), [("dilated_c5", (48, 64)), ("fpn", (64, 64))])
def test_images_are_normalised_and_then_padded(load, base, size):
    cfg = load(base, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0], "MODEL.PIXEL_STD", [1.0, 2.0, 4.0])
    network = build_network(cfg)
    images = torch.full((3, 40, 50), 5, dtype=torch.uint8), torch.full((3, 33, 64), 3).byte()
    batch, for_rpn, for_heads = network._extract_features(images)
    assert batch.image_sizes == [(40, 50), (33, 64)]
    assert batch.tensors.shape == (2, 3, *size)
    assert batch.tensors[0, :, 39, 49].tolist() == [4, 1.5, 0.5]
    assert batch.tensors[1, :, 32, 63].tolist() == [2, 0.5, 0]
    assert batch.tensors[0].sum() == 40 * 50 * 6
    assert list(for_rpn) == list(cfg.MODEL.RPN.IN_FEATURES)
    assert len(for_heads) == len(cfg.MODEL.ROI_HEADS.IN_FEATURES)


# Parts -------------------------------------------------------------------------------


def test_anchors_by_hand():
    anchors = engine._Anchors([[8], [3, 16]], [[1.0], [4.0]], [4, 64])
    features = [torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)]
    image_list = type("Images", (), {"image_sizes": [(4, 8)]})()
    (result,) = anchors(image_list, features)
    expected = [
        [-4, -4, 4, 4],
        [0, -4, 8, 4],
        [-0.75, -3, 0.75, 3],  # 1.5 x 6: four times as high as wide, not rounded
        [-4, -16, 4, 16],
    ]
    assert result.tolist() == expected
    assert anchors.counts == [1, 2]


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        ("mask_rcnn_R_50_DC5_3x", resnet50),
        ("mask_rcnn_R_101_FPN_3x", resnet101),
        ("mask_rcnn_X_101_32x8d_FPN_3x", resnext101_32x8d),
    ],
)
def test_resnets_of_recipes_have_torchvisions_weights(recipe, theirs):
    keys = config.load_recipe(recipe, "torchvision").MODEL.RESNETS
    keys.NORM = "BN"
    with torch.device("meta"):
        mine = {k: v.shape for k, v in ResNet(keys, 0).state_dict().items()}
        expected = {k: v.shape for k, v in theirs().state_dict().items()}
    assert mine == {k: v for k, v in expected.items() if not k.startswith("fc.")}


def test_a_classifiers_weights_give_its_features(load):
    torch.manual_seed(0)
    classifier = resnet50().eval()
    norms: list[Any] = [m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_var.uniform_(0.5, 2)
        norm.running_mean.normal_()
    widths = ("STEM_OUT_CHANNELS", 64, "RES2_OUT_CHANNELS", 256, "WIDTH_PER_GROUP", 64)
    options = [f"MODEL.RESNETS.{word}" if isinstance(word, str) else word for word in widths]
    cfg = load("fpn", *options, "MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", 2)
    initial_weights(cfg, "imagenet")
    network = build_network(cfg).eval()
    state = network.adapt_weights(classifier.state_dict())
    missing, _ = network.load_state_dict(state, strict=False)
    assert not [name for name in missing if "body" in name]
    image = torch.rand(1, 3, 64, 64)
    names = {f"layer{n}": f"res{n + 1}" for n in range(1, 5)}
    expected = create_feature_extractor(classifier, names)(image)
    features = network.backbone.body(image)
    assert list(features) == list(expected)
    torch.testing.assert_close(features, dict(expected), rtol=1e-3, atol=1e-4)


def test_weights_of_a_run_keep_their_names(load):
    network = build_network(load("fpn"))
    state = network.state_dict()
    assert network.adapt_weights({"model": state, "AP50": 1.0}) == state
    assert network.adapt_weights(state) == state


def test_weights_of_detectron2_are_an_error(load):
    network = build_network(load("fpn"))
    for name in ("backbone.stem.conv1.weight", "backbone.bottom_up.stem.conv1.weight"):
        for data in ({name: torch.zeros(1)}, {"model": {name: torch.zeros(1)}}):
            with pytest.raises(ValueError, match="Detectron2's network"):
                network.adapt_weights(data)


def test_frozen_stages_are_not_trained(load):
    for freeze_at, frozen in {0: (), 1: ("conv1",), 3: ("conv1", "layer1", "layer2")}.items():
        body: Any = build_network(load("fpn", "MODEL.BACKBONE.FREEZE_AT", freeze_at)).backbone.body
        for name, parameter in body.named_parameters():
            assert parameter.requires_grad != name.startswith(frozen or "none"), name
        norm = FrozenBatchNorm2d if freeze_at == 3 else nn.BatchNorm2d
        assert isinstance(body.layer2[0].bn1, norm)
        assert isinstance(body.layer3[0].bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_stride_and_dilation(load, in_1x1):
    cfg = load("dilated_c5", "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1)
    body: Any = build_network(cfg).backbone.body
    first, second = ((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2))
    assert (body.layer2[0].conv1.stride, body.layer2[0].conv2.stride) == (first, second)
    assert {block.conv2.dilation for block in body.layer4} == {(2, 2)}
    assert {block.conv2.stride for block in body.layer4} == {(1, 1)}
    assert body.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 16}
    assert body(torch.rand(1, 3, 64, 96))["res5"].shape == (1, 128, 4, 6)


def test_unused_stages_are_not_built(load):
    features = ("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"])
    network = build_network(load("dilated_c5", "MODEL.RESNETS.OUT_FEATURES", ["res4"], *features))
    assert not hasattr(network.backbone.body, "layer4")
    assert network.eval().detect([picture(40, 40)], LIMITS)[0].masks.shape[1:] == (28, 28)


# The config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BACKBONE.NAME", "build_mobilenet", "'build_resnet_backbone' or 'build_resnet_fpn"),
        ("RESNETS.DEPTH", 18, "50 or 101 or 152"),
        ("RESNETS.NORM", "GN", "'BN' or 'FrozenBN'"),
        ("ROI_HEADS.NAME", "CascadeROIHeads", "'StandardROIHeads'"),
        ("ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "'ROIAlignV2'"),
        ("ROI_MASK_HEAD.NAME", "PointRendMaskHead", "'MaskRCNNConvUpsampleHead'"),
        ("ANCHOR_GENERATOR.OFFSET", 0.5, "0.0"),
    ],
)
def test_values_that_only_detectron2_supports(load, key, value, expected):
    message = rf"MODEL.{key} {value!r}: .*{expected}.*--engine detectron2"
    with pytest.raises(InputError, match=message):
        check(load("fpn", f"MODEL.{key}", value))


def test_features_and_anchors_that_do_not_fit(load):
    for part in ("RPN", "ROI_HEADS"):
        with pytest.raises(InputError, match=rf"MODEL.{part}.IN_FEATURES \['p7'\]: .*p2, .*p6"):
            build_network(load("fpn", f"MODEL.{part}.IN_FEATURES", ["p7"]))
    anchors = "MODEL.ANCHOR_GENERATOR"
    with pytest.raises(InputError, match=r"SIZES \[\[8\], \[16\]\]: .* 5 features"):
        build_network(load("fpn", f"{anchors}.SIZES", [[8], [16]]))
    with pytest.raises(InputError, match=r"\[3, 3, 3, 3, 6\] anchors .* p2, p3, "):
        build_network(load("fpn", f"{anchors}.SIZES", [[8], [16], [32], [64], [64, 128]]))


def test_one_list_of_anchor_sizes_is_for_all_features(load):
    one, *others = [
        list(
            build_network(
                load("fpn", "MODEL.ANCHOR_GENERATOR.SIZES", sizes)
            ).rpn.anchor_generator.buffers()
        )
        for sizes in ([8, 16], [[8, 16]], [[8, 16]] * 5)
    ]
    assert [len(boxes) for boxes in one] == [2 * 3] * 5  # of three shapes
    for boxes in one:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        assert areas.tolist() == pytest.approx([8**2] * 3 + [16**2] * 3)
    assert all(same(one, other) for other in others)


@pytest.mark.parametrize(
    ("recipe", "file"),
    [
        ("mask_rcnn_R_50_DC5_3x", "resnet50-"),
        ("mask_rcnn_R_101_FPN_3x", "resnet101-"),
        ("mask_rcnn_X_101_32x8d_FPN_3x", "resnext101_32x8d-"),
    ],
)
def test_imagenet_weights_set_rgb_of_unit_deviation(recipe, file):
    cfg = config.load_recipe(recipe, "torchvision")
    url = initial_weights(cfg, "imagenet")
    assert url.startswith(f"https://download.pytorch.org/models/{file}")
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1


@pytest.mark.parametrize(
    ("wanted", "classifier"),
    [
        ("resnet50-0676ba61.pth", True),
        ("some/where/resnet50-11ad3fa6.pth", True),
        ("https://download.pytorch.org/models/resnext101_32x8d-8ba56ff5.pth", True),
        ("timm://resnet50.a1_in1k", True),
        ("runs/x/20250101-000000/model_best.pth", False),
        ("my-resnet50.pth", False),
        ("resnet50-20250401.pth", False),
    ],
)
def test_a_classifiers_file_adapts_the_config(wanted, classifier):
    cfg, by_name = (config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision") for _ in range(2))
    before = cfg.dump()
    initial_weights(by_name, "imagenet")
    assert initial_weights(cfg, wanted) == wanted
    assert cfg.dump() == (by_name.dump() if classifier else before)


@pytest.mark.parametrize(
    ("recipe", "wanted"), [("small_fpn", "imagenet"), ("mask_rcnn_R_50_FPN_3x", "coco")]
)
def test_weights_that_are_not_available(recipe, wanted):
    cfg = config.load_recipe(recipe, "torchvision")
    before = cfg.dump()
    with pytest.raises(InputError, match=f"--weights {wanted}: .*{recipe}"):
        initial_weights(cfg, wanted)
    assert cfg.dump() == before
