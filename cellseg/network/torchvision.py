"""torchvision's Mask R-CNN, built from the config keys of Detectron2.

The keys mean what they mean there. The parts are torchvision's, and have their names, save
where those would change a key's meaning: the anchors, the pooling of boxes, the widths of
the ResNet. With the same weights it finds what Detectron2's finds. torchvision's own are
the smooth L1 losses of boxes, with a beta of 1/9, and that the proposals' losses are means
over the anchors drawn, however few.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet50_Weights, ResNet101_Weights, ResNeXt101_32X8D_Weights
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops.poolers import LevelMapper

from cellseg.errors import InputError
from cellseg.network.engines import ZOO, Detections
from cellseg.network.pooling import RoIAlign
from cellseg.network.resnet import BLOCKS, FPN, NORMS, Backbone
from cellseg.network.timm_backbone import TIMM_FPN, TimmBackbone, check_name

# The values that there are here, of keys that have others in Detectron2.
_SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {
    "BACKBONE.NAME": ("build_resnet_backbone", FPN, TIMM_FPN),
    "RESNETS.DEPTH": tuple(BLOCKS),
    "RESNETS.NORM": tuple(NORMS),
    "RESNETS.RES5_DILATION": (1, 2),
    "FPN.NORM": ("", *NORMS),
    "ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "ANCHOR_GENERATOR.OFFSET": (0.0,),
    "PROPOSAL_GENERATOR.NAME": ("RPN",),
    "RPN.HEAD_NAME": ("StandardRPNHead",),
    "ROI_HEADS.NAME": ("StandardROIHeads",),
    "ROI_BOX_HEAD.NAME": ("FastRCNNConvFCHead",),
    "ROI_BOX_HEAD.NUM_CONV": (0,),
    "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "ROI_MASK_HEAD.NORM": ("", *NORMS),
    "ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
}

# (DEPTH, NUM_GROUPS, WIDTH_PER_GROUP, STEM_OUT_CHANNELS, RES2_OUT_CHANNELS) -> weights
_IMAGENET = {
    (50, 1, 64, 64, 256): ResNet50_Weights.IMAGENET1K_V1,
    (101, 1, 64, 64, 256): ResNet101_Weights.IMAGENET1K_V1,
    (101, 32, 8, 64, 256): ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
}

# The names of these and later files, as `resnet50-0676ba61.pth`.
_CLASSIFIER_FILES = {
    Path(weights.url).name
    for kind in (ResNet50_Weights, ResNet101_Weights, ResNeXt101_32X8D_Weights)
    for weights in kind
}


class CellRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870): samples or images in, losses or cells out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        model = cfg.MODEL
        self.backbone = Backbone(model)
        self.rpn = _build_rpn(model, self.backbone)
        self.roi_heads = _build_heads(cfg, self.backbone)
        self.rpn_features = tuple(model.RPN.IN_FEATURES)
        self.roi_features = tuple(model.ROI_HEADS.IN_FEATURES)
        for name, values in {"mean": model.PIXEL_MEAN, "std": model.PIXEL_STD}.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the losses of some samples, in training, under Detectron2's names.

        Parameters
        ----------
        samples
            What `cellseg.learn.mapper.CellMapper` gives; some or all may have no cell.
        """
        device = self.mean.device
        targets = [
            {
                "boxes": sample["boxes"].to(device),
                "labels": sample["classes"].to(device) + 1,  # 0 is torchvision's background
                "masks": sample["masks"].to(device),
            }
            for sample in samples
        ]
        images, for_rpn, for_heads = self._extract_features([sample["image"] for sample in samples])
        proposals, losses = self.rpn(images, for_rpn, targets)
        return {
            "loss_rpn_cls": losses["loss_objectness"],
            "loss_rpn_loc": losses["loss_rpn_box_reg"],
            **self.roi_heads.losses(for_heads, proposals, targets),
        }

    @torch.no_grad()
    def detect(self, images: Sequence[torch.Tensor]) -> list[Detections]:
        """Find the cells of `(3, h, w)` uint8 images in the config's channel order.

        The network must be in evaluation mode.
        """
        batch, for_rpn, for_heads = self._extract_features(images)
        proposals, _ = self.rpn(batch, for_rpn)
        return self.roi_heads.detect(for_heads, proposals, batch.image_sizes)

    def adapt_weights(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the weights of a file under this network's names.

        A run's own have them; those of the classifiers of torchvision or timm go to the
        backbone.

        Raises
        ------
        ValueError
            If they are those of a network of Detectron2.
        """
        state = dict(data.get("model", data))
        if any(name.startswith(("backbone.stem.", "backbone.bottom_up.")) for name in state):
            raise ValueError("they are of Detectron2's network, and this is torchvision's")
        own: dict[str, Any] = {}
        if isinstance(self.backbone.body, TimmBackbone):
            own = self.backbone.body.adapt_weights(state)
        elif "conv1.weight" in state:
            own = state
        return {f"backbone.body.{name}": value for name, value in own.items()} or state

    def _extract_features(
        self, images: Sequence[torch.Tensor]
    ) -> tuple[ImageList, dict[str, torch.Tensor], list[torch.Tensor]]:
        """Return the images as a batch, and its features for the proposals and for the heads.

        Images are normalised, and then padded at the right and the bottom with zeros.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        stride = self.backbone.coarsest_stride
        height, width = (-(-max(side) // stride) * stride for side in zip(*sizes, strict=True))
        batch = self.mean.new_zeros((len(images), 3, height, width))
        for place, image, (h, w) in zip(batch, images, sizes, strict=True):
            place[:, :h, :w] = (image.to(self.mean.device) - self.mean) / self.std
        features = self.backbone(batch)
        for_rpn = {name: features[name] for name in self.rpn_features}
        return ImageList(batch, sizes), for_rpn, [features[name] for name in self.roi_features]


class CellHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, whose masks never leave their boxes.

    torchvision's own learn from and give masks, or so do its users, of the whole image.
    Here the ground truth is `CellMasks` and what is found a grid over each box.
    """

    def losses(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        targets: list[dict[str, Any]],
    ) -> dict[str, torch.Tensor]:
        """Return the losses on proposals, of which the samples to learn from are drawn."""
        proposals, matches, labels, deltas = self.select_training_samples(proposals, targets)
        logits, regression = self._classify(features, proposals)
        loss_cls, loss_box_reg = fastrcnn_loss(logits, regression, labels, deltas)

        is_cell = [label > 0 for label in labels]
        boxes = [proposal[cell] for proposal, cell in zip(proposals, is_cell, strict=True)]
        classes = torch.cat([label[cell] - 1 for label, cell in zip(labels, is_cell, strict=True)])
        grids = self._predict_mask_logits(features, boxes, classes)
        gt_grids = torch.cat(
            [
                target["masks"][match[cell]].crop_and_resize(box, grids.shape[-1])
                for target, match, cell, box in zip(targets, matches, is_cell, boxes, strict=True)
            ]
        ).float()
        # A mean, which without a cell is 0 and not 0/0.
        loss_mask = functional.binary_cross_entropy_with_logits(grids, gt_grids, reduction="sum")
        return {
            "loss_cls": loss_cls,
            "loss_box_reg": loss_box_reg,
            "loss_mask": loss_mask / max(gt_grids.numel(), 1),
        }

    def detect(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        sizes: list[tuple[int, int]],
    ) -> list[Detections]:
        """Find the cells among the proposals for images of some sizes, best first."""
        logits, regression = self._classify(features, proposals)
        boxes, scores, labels = self.postprocess_detections(logits, regression, proposals, sizes)
        classes = [label - 1 for label in labels]
        grids = self._predict_mask_logits(features, boxes, torch.cat(classes)).sigmoid()
        masks = torch.split(grids, [len(box) for box in boxes])
        return [Detections(*cells) for cells in zip(boxes, scores, classes, masks, strict=True)]

    def _classify(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(N, K + 1)` logits, the background's first, and `(N, 4 (K + 1))` regressions."""
        pooled = self.box_head(self.box_roi_pool(features, boxes))
        logits, regression = self.box_predictor(pooled)
        return logits.float(), regression.float()

    def _predict_mask_logits(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor], classes: torch.Tensor
    ) -> torch.Tensor:
        """Return the `(N, M, M)` mask logits of boxes, each for its class in 0…K−1."""
        pooled = self.mask_head(self.mask_roi_pool(features, boxes))
        logits: torch.Tensor = self.mask_predictor(pooled)
        return logits[torch.arange(len(classes), device=classes.device), classes].float()


class _RoIPool(nn.Module):
    """Pools the features of boxes, each from the level that suits its size.

    It is what Detectron2 calls ROIAlignV2. torchvision's `MultiScaleRoIAlign` samples half
    a pixel beside it, and guesses the strides from the first image, wrongly if it is small.
    """

    def __init__(self, strides: Sequence[int], part: CfgNode) -> None:
        super().__init__()
        options = (part.POOLER_RESOLUTION, part.POOLER_SAMPLING_RATIO)
        self.poolers = nn.ModuleList(RoIAlign(options[0], 1 / s, options[1]) for s in strides)
        self.levels = LevelMapper(strides[0].bit_length() - 1, strides[-1].bit_length() - 1)

    def forward(self, features: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Return `(N, C, resolution, resolution)` for the `(n, 4)` XYXY boxes of each image."""
        rois = torch.cat([functional.pad(box, (1, 0), value=n) for n, box in enumerate(boxes)])
        level = self.levels(boxes)
        pooled = [
            pooler(feature, rois[level == n])
            for n, (feature, pooler) in enumerate(zip(features, self.poolers, strict=True))
        ]
        by_level = torch.argsort(level, stable=True)
        return torch.cat(pooled)[torch.argsort(by_level)]


class _Anchors(nn.Module):
    """Detectron2's anchors: at each feature's own stride, and not rounded to whole pixels.

    torchvision's `AnchorGenerator` takes the stride from how often a feature map fits into
    the image, and in mixed precision rounds the anchors with the features.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.counts = []
        for level, (side, ratio) in enumerate(zip(sizes, ratios, strict=True)):
            root = torch.tensor(ratio).sqrt()  # of height / width
            half = torch.tensor(side).float()[:, None, None] / 2 * torch.stack([1 / root, root], 1)
            half = half.view(-1, 2)
            self.register_buffer(f"level{level}", torch.cat([-half, half], 1), persistent=False)
            self.counts.append(len(half))

    def forward(self, images: ImageList, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the anchors `(A, 4)` of each image, XYXY in pixels."""
        anchors = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            around = self.get_buffer(f"level{level}")
            rows, columns = (torch.arange(n, device=around.device) for n in feature.shape[-2:])
            y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
            centres = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
            anchors.append((centres + around).view(-1, 4))
        return [torch.cat(anchors)] * len(images.image_sizes)


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """torchvision's head, which in mixed precision too gives boxes that are not rounded."""

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        return tuple([level.float() for level in levels] for levels in super().forward(features))


def check(cfg: CfgNode) -> None:
    """Raise InputError for what only Detectron2 has, and what timm does not have."""
    for key, values in _SUPPORTED_VALUES.items():
        if (value := attrgetter(key)(cfg.MODEL)) not in values:
            raise InputError(
                f"MODEL.{key} {value!r}: only Detectron2 has it; "
                f"{' or '.join(map(repr, values))} is expected, or --engine detectron2"
            )
    if cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        check_name(cfg.MODEL.TIMM.NAME)


def build_network(cfg: CfgNode) -> CellRCNN:
    """Build the network of a config, on its device.

    Raises
    ------
    InputError
        If the config asks for features that there aren't.
    """
    network: CellRCNN = CellRCNN(cfg).to(cfg.MODEL.DEVICE)
    return network


def _input_features(model: CfgNode, part: str, backbone: Backbone) -> tuple[list[int], int]:
    """Return the strides and the channels of the features that a part of the network looks at."""
    names = model[part].IN_FEATURES
    if not names or not set(names) <= set(backbone.strides):
        raise InputError(
            f"MODEL.{part}.IN_FEATURES {list(names)}: some of {', '.join(backbone.strides)} are "
            "expected, which the backbone has"
        )
    return [backbone.strides[name] for name in names], backbone.channels[names[0]]


def _build_rpn(model: CfgNode, backbone: Backbone) -> RegionProposalNetwork:
    keys = model.RPN
    strides, channels = _input_features(model, "RPN", backbone)
    sizes, ratios = (_per_level(model, key, len(strides)) for key in ("SIZES", "ASPECT_RATIOS"))
    anchors = _Anchors(sizes, ratios, strides)
    if len(set(anchors.counts)) > 1:
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR: {anchors.counts} anchors for the features "
            f"{', '.join(keys.IN_FEATURES)}; as many for each are expected"
        )
    background, cell = keys.IOU_THRESHOLDS
    rpn = RegionProposalNetwork(
        anchors,
        _ProposalHead(channels, anchors.counts[0]),
        fg_iou_thresh=cell,
        bg_iou_thresh=background,
        batch_size_per_image=keys.BATCH_SIZE_PER_IMAGE,
        positive_fraction=keys.POSITIVE_FRACTION,
        pre_nms_top_n={"training": keys.PRE_NMS_TOPK_TRAIN, "testing": keys.PRE_NMS_TOPK_TEST},
        post_nms_top_n={"training": keys.POST_NMS_TOPK_TRAIN, "testing": keys.POST_NMS_TOPK_TEST},
        nms_thresh=keys.NMS_THRESH,
    )
    rpn.min_size = max(rpn.min_size, model.PROPOSAL_GENERATOR.MIN_SIZE)
    return rpn


def _per_level(model: CfgNode, key: str, n_levels: int) -> list[Sequence[float]]:
    """Return the anchors' sizes or ratios for each level; one list serves them all."""
    lists = list(model.ANCHOR_GENERATOR[key])
    if len(lists) not in (1, n_levels):
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.{key} {lists}: one list, or one for each of the {n_levels} "
            "features of MODEL.RPN.IN_FEATURES, is expected"
        )
    return lists * n_levels if len(lists) == 1 else lists


def _build_heads(cfg: CfgNode, backbone: Backbone) -> CellHeads:
    keys, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    strides, channels = _input_features(cfg.MODEL, "ROI_HEADS", backbone)
    (threshold,) = keys.IOU_THRESHOLDS
    box_head, width = _build_box_head(channels * box.POOLER_RESOLUTION**2, box)
    heads = CellHeads(
        _RoIPool(strides, box),
        box_head,
        FastRCNNPredictor(width, keys.NUM_CLASSES + 1),
        fg_iou_thresh=threshold,
        bg_iou_thresh=threshold,
        batch_size_per_image=keys.BATCH_SIZE_PER_IMAGE,
        positive_fraction=keys.POSITIVE_FRACTION,
        bbox_reg_weights=box.BBOX_REG_WEIGHTS,
        score_thresh=keys.SCORE_THRESH_TEST,
        nms_thresh=keys.NMS_THRESH_TEST,
        detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        mask_roi_pool=_RoIPool(strides, mask),
        mask_head=MaskRCNNHeads(
            channels, [mask.CONV_DIM] * mask.NUM_CONV, dilation=1, norm_layer=NORMS.get(mask.NORM)
        ),
        mask_predictor=MaskRCNNPredictor(
            mask.CONV_DIM if mask.NUM_CONV else channels, mask.CONV_DIM, keys.NUM_CLASSES
        ),
    )
    # Detectron2's beginning: torchvision's larger guesses would have to be unlearnt first.
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01),
        (heads.box_predictor.bbox_pred, 0.001),
        (heads.mask_predictor.mask_fcn_logits, 0.001),
    ):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return heads


def _build_box_head(width: int, keys: CfgNode) -> tuple[nn.Sequential, int]:
    """Build the fully connected layers; return them, and how wide what comes out is."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(6, 6 + keys.NUM_FC):  # torchvision's names, after VGG's layers
        layers[f"fc{number}"], width = nn.Linear(width, keys.FC_DIM), keys.FC_DIM
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers), width


def initial_weights(cfg: CfgNode, wanted: str) -> str:
    """Name the weights that "imagenet" means for a config, and adapt the config to them.

    So it does to a file that has a name of torchvision's or timm's classifiers: all of these
    were trained on RGB of unit deviation, and with the strides of a block in its 3 x 3
    convolution; the recipes in `configs/` are written for others.

    Raises
    ------
    InputError
        If there are none of that kind, or they are in the form of Detectron2's zoo.
    """
    if wanted.startswith(ZOO) or wanted.endswith(".pkl"):
        raise InputError(
            f"--weights {wanted}: in the form of Detectron2's zoo, which torchvision can't read; "
            "take --weights imagenet, none, or --engine detectron2"
        )
    is_timm = cfg.MODEL.BACKBONE.NAME == TIMM_FPN
    if wanted not in ("imagenet", "coco"):
        if not is_timm and (wanted.startswith("timm://") or Path(wanted).name in _CLASSIFIER_FILES):
            _use_classifier_preprocessing(cfg)
        return wanted
    if is_timm and wanted == "imagenet" and cfg.MODEL.WEIGHTS:
        return str(cfg.MODEL.WEIGHTS)
    keys = cfg.MODEL.RESNETS
    shape = (
        keys.DEPTH,
        keys.NUM_GROUPS,
        keys.WIDTH_PER_GROUP,
        keys.STEM_OUT_CHANNELS,
        keys.RES2_OUT_CHANNELS,
    )
    if wanted == "coco" or is_timm or shape not in _IMAGENET:
        raise InputError(
            f"--weights {wanted}: torchvision has none for {cfg.RECIPE}; take --weights none, a "
            "path, or --engine detectron2"
        )
    _use_classifier_preprocessing(cfg)
    url: str = _IMAGENET[shape].url
    return url


def _use_classifier_preprocessing(cfg: CfgNode) -> None:
    """Feed the network as the classifiers of torchvision and timm were."""
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
