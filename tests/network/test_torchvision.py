"""torchvision's Mask R-CNN against Detectron2's with the same weights, and by itself."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, resnet101, resnext101_32x8d
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d, box_iou, roi_align

import cellseg.network.torchvision as engine
from cellseg import config
from cellseg.errors import InputError
from cellseg.network.resnet import ResNet
from cellseg.network.torchvision import build_network, check, initial_weights
from tests.bitmasks import from_bitmasks

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # Detectron2's

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"}
BASES = ("dilated_c5", "fpn")


@pytest.fixture
def load(tiny, tmp_path):
    """Load the tiny network's config, with another base or some keys of its own."""

    def load(base="dilated_c5", *options, engine="torchvision"):
        path = tmp_path / f"{base}.yaml"
        path.write_text(tiny.read_text().replace("dilated_c5", base))
        cfg = config.load_config(path, engine)
        config.merge_options(cfg, ["MODEL.DEVICE", "cpu", *map(str, options)])
        return cfg

    return load


def picture(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def sample(height=64, width=96, cells=((8, 10, 30, 34, 0), (40, 20, 72, 44, 3))):
    """A sample of bright ellipses, each given by its box and its class, on noise."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    boxes = torch.tensor([cell[:4] for cell in cells], dtype=torch.float32).view(-1, 4)
    middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    distance = ((torch.stack([x, y], -1) - middle[:, None, None]) / radius[:, None, None]) ** 2
    full = distance.sum(-1) <= 1
    masks = from_bitmasks(full)
    image = picture(height, width) // 4
    image[:, full.any(0)] += 150
    classes = torch.tensor([cell[4] for cell in cells], dtype=torch.int64)
    return {"image": image, "boxes": masks.boxes, "classes": classes, "masks": masks}


EMPTY = sample(48, 80, cells=())


def settled(network, look):
    """Let the normalisations of a random network see something, as training would."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()
        look([picture(64, 96), picture(64, 96, seed=1)])
    return network.eval()


def build(cfg):
    torch.manual_seed(0)
    network = build_network(cfg)
    return settled(network, network._extract_features)


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
    """Detectron2's weights under torchvision's names, with a background among the classes."""
    mine = {}
    for name, value in state.items():
        for pattern, new in _NAMES:
            name = re.sub(pattern, new, name)
        if "cls_score" in name:
            value = torch.cat([value[-1:], value[:-1]])
        elif "bbox_pred" in name and "box_predictor" in name:
            value = torch.cat([torch.zeros_like(value[:4]), value])
        mine[name] = value
    return mine


# Normalised beyond the backbone too, as networks without pretrained weights want it.
NORMED = ("MODEL.FPN.NORM", "BN", "MODEL.ROI_MASK_HEAD.NORM", "BN")


@pytest.fixture(params=[(base, ()) for base in BASES] + [("fpn", NORMED)], ids=str)
def both(request, load):
    """Two networks with the same random weights, Detectron2's and torchvision's."""
    from cellseg.network import detectron2

    base, norms = request.param
    options = [
        *norms,
        *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6),  # all there are: nothing is drawn by chance
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10**4),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[13.7, 32]]),
    ]
    theirs_cfg = load(base, *options, engine="detectron2")
    config.merge_options(
        theirs_cfg,
        [
            *("MODEL.RPN.SMOOTH_L1_BETA", str(1 / 9)),
            *("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", str(1 / 9)),
        ],
    )
    torch.manual_seed(0)
    theirs = detectron2.build_network(theirs_cfg)
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if re.search("bbox_pred|predictor.weight", name):
                value *= 10  # Detectron2 begins with hardly any difference between boxes
            elif "norm.weight" in name or "norm.bias" in name:
                value += 0.1 * torch.randn_like(value)
    settled(theirs, lambda images: theirs.backbone(torch.stack(images) - theirs.pixel_mean))
    mine = build_network(load(base, *options))
    mine.load_state_dict(translated(theirs.state_dict()))
    return theirs, mine


@pytest.mark.detectron2
def test_same_weights_find_the_same(both):
    theirs, mine = (network.eval() for network in both)
    for images in (
        [picture(64, 96), picture(50, 60, seed=1)],
        [picture(32, 32)],  # smaller than what an anchor needs to be whole
    ):
        for expected, found in zip(theirs.detect(images), mine.detect(images), strict=True):
            assert len(found) == len(expected) > 20
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
            assert torch.equal(found.classes, expected.classes)
            torch.testing.assert_close(found.masks, expected.masks, rtol=1e-4, atol=1e-4)


@pytest.mark.detectron2
def test_same_weights_have_the_same_losses(both):
    theirs, mine = (network.train() for network in both)
    from detectron2.utils.events import EventStorage

    with EventStorage(), torch.no_grad():
        expected, losses = (network([sample(), EMPTY]) for network in (theirs, mine))
    assert set(losses) == set(expected) == LOSSES
    for name in ("loss_cls", "loss_box_reg", "loss_mask"):
        torch.testing.assert_close(losses[name], expected[name], rtol=1e-4, atol=1e-5)
    # Detectron2 divides by the number that was to be drawn, torchvision by the one drawn.
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
            network = build(cfg)
            counts[name] = [
                sum(p.numel() for p in network.parameters() if p.requires_grad or frozen)
                for frozen in (False, True)
            ]
    background = 4 * (cfg.MODEL.ROI_BOX_HEAD.FC_DIM + 1)
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
def test_it_learns_a_sample_by_heart(load, base):
    torch.manual_seed(0)
    network = build_network(load(base, "MODEL.PIXEL_STD", [57.0] * 3)).train()
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    truth = sample(64, 64, cells=[(8, 10, 30, 34, 0), (34, 30, 62, 54, 3)])
    steps = []
    for _ in range(16):
        losses = network([truth])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        steps.append({name: loss.item() for name, loss in losses.items()})
    # What is guessed at random: a cell or none, one of 4 classes or none, within or without.
    first = {"loss_rpn_cls": math.log(2), "loss_cls": math.log(5), "loss_mask": math.log(2)}
    for name, part in {"loss_rpn_cls": 0.2, "loss_cls": 0.5, "loss_mask": 0.9}.items():
        assert steps[0][name] == pytest.approx(first[name], rel=0.1), name
        assert sum(step[name] for step in steps[-4:]) / 4 < part * first[name], name


def test_the_masks_learn_the_ground_truth_in_their_own_class(load):
    """One box, one class: the loss is the mean cross entropy of that class's grid alone."""
    network = build_network(load("fpn")).train()
    truth = sample(cells=[(8, 10, 30, 34, 2)])
    predictor = network.roi_heads.mask_predictor
    last = predictor.mask_fcn_logits
    nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([50.0, -50.0, 3.0, 50.0])
    losses = network([truth])
    # Each grid is 3 throughout. Over proposals that lie a little off, the ground truth's share
    # varies.
    share = truth["masks"].crop_and_resize(truth["boxes"], 28).float().mean()
    at_truth = share * math.log1p(math.exp(-3)) + (1 - share) * math.log1p(math.exp(3))
    assert 0.5 * at_truth < losses["loss_mask"] < 2 * at_truth


def test_mixed_precision_leaves_boxes_and_losses_whole(load):
    network = build(load("fpn"))
    with torch.autocast("cpu", torch.bfloat16):
        found = network.detect([picture(64, 96)])[0]
        batch, for_rpn, _ = network._extract_features([picture(64, 96)])
        proposals = network.rpn(batch, for_rpn)[0][0]
        losses = network.train()([sample(32, 40, cells=[(8, 10, 30, 30, 0)])])
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert {part.dtype for part in (found.boxes, found.scores, found.masks)} == {torch.float32}
    assert (found.boxes != found.boxes.bfloat16()).any()
    assert proposals.dtype == torch.float32


# Prediction --------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_detections(load, base):
    options = ("TEST.DETECTIONS_PER_IMAGE", 12, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.19)
    network = build(load(base, *options))
    images = [picture(64, 96), picture(33, 35), picture(5, 70), picture(1, 1)]
    all_found = network.detect(images)
    assert len(all_found) == len(images)
    assert 0 < len(all_found[0]) <= 12
    for image, found in zip(images, all_found, strict=True):
        n, (_, height, width) = len(found), image.shape
        assert found.boxes.shape == (n, 4)
        assert found.boxes.dtype == found.scores.dtype == found.masks.dtype == torch.float32
        assert found.classes.dtype == torch.int64
        assert found.masks.shape == (n, 28, 28)
        assert ((found.masks >= 0) & (found.masks <= 1)).all()
        assert (found.scores > 0.19).all()
        assert torch.equal(found.scores, found.scores.sort(descending=True).values)
        assert ((found.classes >= 0) & (found.classes < 4)).all()
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        same_class = found.classes[:, None] == found.classes
        assert (box_iou(found.boxes, found.boxes)[same_class.triu(1)] <= 0.5).all()


def test_no_detections(load):
    network = build(load("fpn", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.99))
    for found in network.detect([picture(64, 64), picture(40, 40)]):
        assert len(found) == 0
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 28, 28)


@pytest.mark.parametrize("base", BASES)
def test_padding_changes_nothing(load, base):
    """An image that the others are padded to is found the same cells in, alone or with them."""
    network = build(load(base))
    large, small = picture(64, 96), picture(40, 50, seed=1)
    alone, together = network.detect([large])[0], network.detect([small, large])[1]
    assert len(alone) == len(together) > 0
    torch.testing.assert_close(together.boxes, alone.boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(together.masks, alone.masks, rtol=1e-4, atol=1e-4)


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
    (found,) = anchors(image_list, features)
    expected = [
        [-4, -4, 4, 4],
        [0, -4, 8, 4],
        [-0.75, -3, 0.75, 3],  # 1.5 x 6: four times as high as wide, not rounded
        [-4, -16, 4, 16],
    ]
    assert found.tolist() == expected
    assert anchors.counts == [1, 2]


def test_boxes_are_pooled_from_the_level_of_their_size():
    part = config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision").MODEL.ROI_BOX_HEAD
    pool = engine._RoIPool([4, 8, 16], part)
    torch.manual_seed(0)
    features = [torch.rand(2, 3, 256 // stride, 256 // stride) for stride in (4, 8, 16)]
    # Lin et al., equation 1: level 4 at 224 pixels, one less for each halving.
    boxes = [
        torch.tensor([[0.0, 0, 230, 230], [5, 5, 25, 20]]),
        torch.zeros(0, 4),
        torch.tensor([[10.0, 20, 130, 140], [7, 7, 7, 7]]),
    ]
    features = [torch.cat([feature, feature[:1] * 2]) for feature in features]
    pooled = pool(features, boxes)
    for got, (level, image, box) in zip(
        pooled, [(2, 0, 0), (0, 0, 1), (1, 2, 0), (0, 2, 1)], strict=True
    ):
        roi = torch.cat([torch.zeros(1), boxes[image][box]])[None]
        feature = features[level][image : image + 1]
        expected = roi_align(feature, roi, 7, 1 / 4 / 2**level, 0, aligned=True)[0]
        torch.testing.assert_close(got, expected)
    assert pool(features, [torch.zeros(0, 4)] * 3).shape == (0, 3, 7, 7)


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        ("mask_rcnn_R_50_DC5_3x", resnet50),
        ("mask_rcnn_R_101_FPN_3x", resnet101),
        ("mask_rcnn_X_101_32x8d_FPN_3x", resnext101_32x8d),
    ],
)
def test_a_resnet_of_the_usual_widths_is_torchvisions(recipe, theirs):
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
    found = network.backbone.body(image)
    assert list(found) == list(expected)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


def test_a_runs_weights_keep_their_names(load):
    network = build_network(load("fpn"))
    state = network.state_dict()
    assert network.adapt_weights({"model": state, "AP50": 1.0}) == state
    assert network.adapt_weights(state) == state


def test_a_run_of_detectron2_is_not_begun_with(load):
    network = build_network(load("fpn"))
    for name in ("backbone.stem.conv1.weight", "backbone.bottom_up.stem.conv1.weight"):
        for data in ({name: torch.zeros(1)}, {"model": {name: torch.zeros(1)}}):
            with pytest.raises(ValueError, match="they are of Detectron2's network"):
                network.adapt_weights(data)


def test_frozen_stages_do_not_learn(load):
    for freeze_at, frozen in {0: (), 1: ("conv1",), 3: ("conv1", "layer1", "layer2")}.items():
        body: Any = build_network(load("fpn", "MODEL.BACKBONE.FREEZE_AT", freeze_at)).backbone.body
        for name, parameter in body.named_parameters():
            assert parameter.requires_grad != name.startswith(frozen or "none"), name
        kind = FrozenBatchNorm2d if freeze_at == 3 else nn.BatchNorm2d
        assert isinstance(body.layer2[0].bn1, kind)
        assert isinstance(body.layer3[0].bn1, nn.BatchNorm2d)


@pytest.mark.parametrize("in_1x1", [True, False])
def test_the_stride_and_the_dilation_are_where_the_config_wants_them(load, in_1x1):
    body: Any = build_network(
        load("dilated_c5", "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1)
    ).backbone.body
    first, second = ((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2))
    assert (body.layer2[0].conv1.stride, body.layer2[0].conv2.stride) == (first, second)
    assert {block.conv2.dilation for block in body.layer4} == {(2, 2)}
    assert {block.conv2.stride for block in body.layer4} == {(1, 1)}
    assert body.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 16}
    assert body(torch.rand(1, 3, 64, 96))["res5"].shape == (1, 128, 4, 6)


def test_stages_that_nothing_needs_are_not_built(load):
    features = ("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"])
    network = build_network(load("dilated_c5", "MODEL.RESNETS.OUT_FEATURES", ["res4"], *features))
    assert not hasattr(network.backbone.body, "layer4")
    assert network.eval().detect([picture(40, 40)])[0].masks.shape[1:] == (28, 28)


# The config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("BACKBONE.NAME", "build_mobilenet", "'build_resnet_backbone' or 'build_resnet_fpn"),
        ("RESNETS.DEPTH", 18, "50 or 101 or 152 is expected"),
        ("RESNETS.NORM", "GN", "'BN' or 'FrozenBN' is expected"),
        ("ROI_HEADS.NAME", "CascadeROIHeads", "'StandardROIHeads' is expected"),
        ("ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "'ROIAlignV2' is expected"),
        ("ROI_MASK_HEAD.NAME", "PointRendMaskHead", "'MaskRCNNConvUpsampleHead' is expected"),
        ("ANCHOR_GENERATOR.OFFSET", 0.5, "0.0 is expected"),
    ],
)
def test_what_only_detectron2_has(load, key, value, expected):
    with pytest.raises(InputError) as caught:
        check(load("fpn", f"MODEL.{key}", value))
    message = str(caught.value)
    assert message.startswith(f"MODEL.{key} {value!r}: only Detectron2 has it; ")
    assert expected in message
    assert message.endswith("--engine detectron2")


def test_features_and_anchors_that_do_not_fit(load):
    for part in ("RPN", "ROI_HEADS"):
        with pytest.raises(InputError, match=rf"MODEL.{part}.IN_FEATURES \['p7'\]: .*p2, .*p6 are"):
            build_network(load("fpn", f"MODEL.{part}.IN_FEATURES", ["p7"]))
    anchors = "MODEL.ANCHOR_GENERATOR"
    with pytest.raises(InputError, match=r"SIZES \[\[8\], \[16\]\]: one list, or .* 5 features"):
        build_network(load("fpn", f"{anchors}.SIZES", [[8], [16]]))
    with pytest.raises(InputError, match=r"\[3, 3, 3, 3, 6\] anchors .* p2, p3, .*as many"):
        build_network(load("fpn", f"{anchors}.SIZES", [[8], [16], [32], [64], [64, 128]]))


@pytest.mark.parametrize(
    ("recipe", "file"),
    [
        ("mask_rcnn_R_50_DC5_3x", "resnet50-"),
        ("mask_rcnn_R_101_FPN_3x", "resnet101-"),
        ("mask_rcnn_X_101_32x8d_FPN_3x", "resnext101_32x8d-"),
    ],
)
def test_imagenet_weights_want_rgb_of_unit_deviation(recipe, file):
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
def test_a_classifiers_file_means_the_same_as_its_name(wanted, classifier):
    cfg, by_name = (config.load_recipe("mask_rcnn_R_50_FPN_3x", "torchvision") for _ in range(2))
    before = cfg.dump()
    initial_weights(by_name, "imagenet")
    assert initial_weights(cfg, wanted) == wanted
    assert cfg.dump() == (by_name.dump() if classifier else before)


@pytest.mark.parametrize(
    ("recipe", "wanted"), [("demo", "imagenet"), ("mask_rcnn_R_50_FPN_3x", "coco")]
)
def test_there_are_no_such_weights(recipe, wanted):
    cfg = config.load_recipe(recipe, "torchvision")
    before = cfg.dump()
    with pytest.raises(InputError, match=f"--weights {wanted}: torchvision has none for {recipe}"):
        initial_weights(cfg, wanted)
    assert cfg.dump() == before
