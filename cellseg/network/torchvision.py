"""torchvision's Mask R-CNN, built from the config keys of Detectron2.

The keys have the same meaning. Anchors, RoI pooling and ResNet widths are replaced where
torchvision's differ, so that the detections with the same weights are the same. Different from
Detectron2 are the smooth L1 losses of boxes, with a beta of 1/9, and the proposal losses, which
are means over the drawn anchors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights, ResNeXt101_32X8D_Weights
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)

from cellseg.errors import InputError
from cellseg.network.auxiliary import build_auxiliary_head
from cellseg.network.engines import ZOO, Detections, distinct_masks, enlarge_boxes
from cellseg.network.limits import (
    BoxDetections,
    Limits,
    Proposals,
    box_chunks,
    detection_selection,
    limited_by,
    mask_chunks,
    select_proposals,
)
from cellseg.network.mask_loss import mask_loss
from cellseg.network.pooling import RoIAlign, precise
from cellseg.network.resnet import BLOCKS, FPN, NORMS, Backbone
from cellseg.network.timm_backbone import TIMM_FPN, TimmBackbone, check_name

# Supported values of keys that have more in Detectron2.
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
    "ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2",),
    "ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "ROI_MASK_HEAD.NORM": ("", *NORMS),
    "ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2",),
}

_SHAPE = ("DEPTH", "NUM_GROUPS", "WIDTH_PER_GROUP", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS")
_IMAGENET = {
    (50, 1, 64, 64, 256): ResNet50_Weights.IMAGENET1K_V1,
    (101, 1, 64, 64, 256): ResNet101_Weights.IMAGENET1K_V1,
    (101, 32, 8, 64, 256): ResNeXt101_32X8D_Weights.IMAGENET1K_V1,
}

# Detections have longer sides, in network pixels, as in torchvision.
_MIN_SIZE = 0.01

# Such as `resnet50-0676ba61.pth`.
_CLASSIFIER_FILES = {
    Path(weights.url).name
    for kind in (ResNet50_Weights, ResNet101_Weights, ResNeXt101_32X8D_Weights)
    for weights in kind
}


class CellRCNN(nn.Module):
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870)."""

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
        strides, channels = _input_features(model, "ROI_HEADS", self.backbone)
        self.auxiliary = build_auxiliary_head(model, channels, strides[0])
        for name, values in {"mean": model.PIXEL_MEAN, "std": model.PIXEL_STD}.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the training losses of samples of `CellMapper`, with Detectron2's names."""
        device = self.mean.device
        targets = [
            {
                "boxes": sample["boxes"].to(device),
                "labels": sample["classes"].to(device) + 1,  # 0 is the background
                "masks": sample["masks"].to(device),
            }
            for sample in samples
        ]
        images, for_rpn, for_heads = self._extract_features([sample["image"] for sample in samples])
        proposals, losses = self.rpn(images, for_rpn, targets)
        losses = {
            "loss_rpn_cls": losses["loss_objectness"],
            "loss_rpn_loc": losses["loss_rpn_box_reg"],
            **self.roi_heads.losses(for_heads, proposals, targets),
        }
        if self.auxiliary:
            masks, classes = zip(*((of["masks"], of["labels"] - 1) for of in targets), strict=True)
            losses |= self.auxiliary.losses(for_heads[0], masks, classes)
        return losses

    @torch.no_grad()
    def detect(self, images: Sequence[torch.Tensor], limits: Limits) -> list[Detections]:
        """Detect the cells of `(3, h, w)` uint8 images in the channel order of the config."""
        batch, for_rpn, for_heads = self._extract_features(images)
        proposals = self.rpn.propose(batch, for_rpn, limits)
        return self.roi_heads.detect(for_heads, proposals, batch.image_sizes, limits)

    def adapt_weights(self, data: dict[str, Any]) -> dict[str, Any]:
        """Convert the content of a weights file to this network's names.

        Weights of a run have these names; those of torchvision's or timm's classifiers are loaded
        into the backbone. Raises ValueError for weights of Detectron2's network.
        """
        state = dict(data.get("model", data))
        if any(name.startswith(("backbone.stem.", "backbone.bottom_up.")) for name in state):
            raise ValueError("weights of Detectron2's network, expected torchvision's")
        own: dict[str, Any] = {}
        if isinstance(self.backbone.body, TimmBackbone):
            own = self.backbone.body.adapt_weights(state)
        elif "conv1.weight" in state:
            own = state
        return {f"backbone.body.{name}": value for name, value in own.items()} or state

    def _extract_features(
        self, images: Sequence[torch.Tensor]
    ) -> tuple[ImageList, dict[str, torch.Tensor], list[torch.Tensor]]:
        """Return the batch of images, and its features for the RPN and for the heads.

        Images are normalised, then padded with zeros at the right and the bottom.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        stride = self.backbone.coarsest_stride
        height, width = (-(-max(side) // stride) * stride for side in zip(*sizes, strict=True))
        batch = self.mean.new_zeros((len(images), 3, height, width))
        for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
            padded[:, :h, :w] = (image.to(self.mean.device) - self.mean) / self.std
        features = self.backbone(batch)
        for_rpn = {name: features[name] for name in self.rpn_features}
        return ImageList(batch, sizes), for_rpn, [features[name] for name in self.roi_features]


class CellHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads, with `CellMasks` as ground truth and mask grids over boxes as output.

    torchvision's own use masks of the size of the image.

    Attributes
    ----------
    max_masks
        Maximum number of cells per image that train the mask head; 0 for all.
    mask_scale
        Factor by which boxes are enlarged for the mask head.
    one_mask_per_box
        Whether the mask head predicts one mask for all classes.
    select
        `select_detections` with the values of the config.
    """

    max_masks = 0
    mask_scale = 1.0
    one_mask_per_box = False
    select: partial[BoxDetections]

    def losses(
        self,
        features: list[torch.Tensor],
        proposals: list[torch.Tensor],
        targets: list[dict[str, Any]],
    ) -> dict[str, torch.Tensor]:
        """Return the losses on a random sample of the proposals."""
        proposals, matches, labels, deltas = self.select_training_samples(proposals, targets)
        logits, regression = self._classify(features, proposals)
        if regression.shape[1] == 4:  # one box for all classes
            regression = regression.repeat(1, logits.shape[1])
        loss_cls, loss_box_reg = fastrcnn_loss(logits, regression, labels, deltas)

        is_cell = [_draw(label > 0, self.max_masks) for label in labels]
        boxes = [
            enlarge_boxes(proposal[cell], self.mask_scale)
            for proposal, cell in zip(proposals, is_cell, strict=True)
        ]
        classes = torch.cat([label[cell] - 1 for label, cell in zip(labels, is_cell, strict=True)])
        masks = [
            target["masks"][match[cell]]
            for target, match, cell in zip(targets, matches, is_cell, strict=True)
        ]
        grids = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))
        return {
            "loss_cls": loss_cls,
            "loss_box_reg": loss_box_reg,
            "loss_mask": mask_loss(grids, classes, masks, boxes),
        }

    def detect(
        self,
        features: list[torch.Tensor],
        proposals: list[Proposals],
        sizes: list[tuple[int, int]],
        limits: Limits,
    ) -> list[Detections]:
        """Classify proposals for images of some sizes. Return detections, highest score first."""
        rois = [of_image.boxes for of_image in proposals]
        features = [precise(level) for level in features]
        parts = [self._classify(features, chunk) for chunk in box_chunks(rois)]
        logits, regression = (torch.cat(part) for part in zip(*parts, strict=True))
        probs = logits.softmax(1)[:, 1:]
        refined = self.box_coder.decode_single(regression, torch.cat(rois)).unflatten(1, (-1, 4))
        refined = refined[:, -probs.shape[1] :]  # without the background's
        counts = [len(roi) for roi in rois]
        boxes_and_probs = torch.split(refined, counts), torch.split(probs, counts)
        selected = [
            self.select(box, prob, of_image.logits, size, limits)
            for box, prob, of_image, size in zip(*boxes_and_probs, proposals, sizes, strict=True)
        ]
        distinct = [distinct_masks(cells.boxes, self.one_mask_per_box) for cells in selected]
        of_masks = [(cells, index) for cells, (index, _) in zip(selected, distinct, strict=True)]
        boxes = [enlarge_boxes(cells.boxes[index], self.mask_scale) for cells, index in of_masks]
        classes = [cells.classes[index] for cells, index in of_masks]
        grids = [
            self._predict_mask_logits(features, chunk, torch.cat(chunk_classes)).sigmoid()
            for chunk, chunk_classes in zip(
                *(mask_chunks(lists, logits.device) for lists in (boxes, classes)), strict=True
            )
        ]
        masks = torch.split(torch.cat(grids), [len(box) for box in boxes])
        return [
            Detections(
                cells.boxes,
                cells.scores,
                cells.classes,
                mask[mask_of],
                limited_by=limited_by(of_image, cells),
                mask_scale=self.mask_scale,
            )
            for cells, mask, (_, mask_of), of_image in zip(
                selected, masks, distinct, proposals, strict=True
            )
        ]

    def _classify(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(N, K + 1)` logits, background first, and `(N, 4 (K + 1))` box regressions.

        Class-agnostic box regressions are `(N, 4)`.
        """
        pooled = self.box_head(self.box_roi_pool(features, boxes))
        logits, regression = self.box_predictor(pooled)
        return logits.float(), regression.float()

    def _predict_mask_logits(
        self, features: list[torch.Tensor], boxes: list[torch.Tensor], classes: torch.Tensor
    ) -> torch.Tensor:
        """Return the `(N, M, M)` mask logits of boxes for their classes in 0…K−1."""
        pooled = self.mask_head(self.mask_roi_pool(features, boxes))
        logits: torch.Tensor = self.mask_predictor(pooled)
        if logits.shape[1] == 1:  # for all classes
            return logits[:, 0].float()
        return logits[torch.arange(len(classes), device=classes.device), classes].float()


class _Anchors(nn.Module):
    """Detectron2's anchors, at multiples of the stride and not rounded to whole pixels.

    torchvision's `AnchorGenerator` infers the stride from the sizes of image and feature map, and
    rounds the anchors to the precision of the features.
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
            centred = self.get_buffer(f"level{level}")
            rows, columns = (torch.arange(n, device=centred.device) for n in feature.shape[-2:])
            y, x = torch.meshgrid(rows * stride, columns * stride, indexing="ij")
            centres = torch.stack([x, y, x, y], -1).view(-1, 1, 4)
            anchors.append((centres + centred).view(-1, 4))
        return [torch.cat(anchors)] * len(images.image_sizes)


class _ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's RPN, with limits for each image in prediction."""

    def propose(
        self, images: ImageList, features: dict[str, torch.Tensor], limits: Limits
    ) -> list[Proposals]:
        """Return the proposals of each image."""
        maps = list(features.values())
        logits, deltas = self.head(maps)
        counts = [level[0].numel() for level in logits]
        anchors = self.anchor_generator(images, maps)
        objectness, deltas = concat_box_prediction_layers(logits, deltas)
        objectness = objectness.view(len(anchors), -1)
        boxes = self.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
        proposals = []
        for number, size in enumerate(images.image_sizes):
            of_image = boxes[number].split(counts), objectness[number].split(counts)
            proposals.append(
                select_proposals(*of_image, size, limits, self.nms_thresh, self.min_size)
            )
        return proposals


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """torchvision's RPN head, with float32 output in mixed precision, so that boxes are exact."""

    def forward(self, features: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        return tuple([level.float() for level in levels] for levels in super().forward(features))


def _draw(chosen: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask with at most `count` of the true elements, drawn at random; 0 for all."""
    if not count or chosen.sum() <= count:
        return chosen
    indices = chosen.nonzero()[:, 0]
    drawn = torch.zeros_like(chosen)
    drawn[indices[torch.randperm(len(indices), device=chosen.device)[:count]]] = True
    return drawn


def check(cfg: CfgNode) -> None:
    """Raise InputError if only Detectron2 supports a value, or if timm lacks the network."""
    for key, values in _SUPPORTED_VALUES.items():
        if (value := attrgetter(key)(cfg.MODEL)) not in values:
            raise InputError(
                f"MODEL.{key} {value!r}: only Detectron2 has it; "
                f"{' or '.join(map(repr, values))} is expected, or --engine detectron2"
            )
    if cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        check_name(cfg.MODEL.TIMM.NAME)


def build_network(cfg: CfgNode) -> CellRCNN:
    """Build the network of a config, on its device. Raise InputError if parts do not fit."""
    network: CellRCNN = CellRCNN(cfg).to(cfg.MODEL.DEVICE)
    return network


def _input_features(model: CfgNode, part: str, backbone: Backbone) -> tuple[list[int], int]:
    """Return the strides and the channels of the input features of a part of the network."""
    names = model[part].IN_FEATURES
    if not names or not set(names) <= set(backbone.strides):
        raise InputError(
            f"MODEL.{part}.IN_FEATURES {list(names)}: features of the backbone are expected, "
            f"{', '.join(backbone.strides)}"
        )
    return [backbone.strides[name] for name in names], backbone.channels[names[0]]


def _build_rpn(model: CfgNode, backbone: Backbone) -> _ProposalNetwork:
    keys = model.RPN
    strides, channels = _input_features(model, "RPN", backbone)
    sizes, ratios = (_per_level(model, key, len(strides)) for key in ("SIZES", "ASPECT_RATIOS"))
    anchors = _Anchors(sizes, ratios, strides)
    if len(set(anchors.counts)) > 1:
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR: {anchors.counts} anchors for the features "
            f"{', '.join(keys.IN_FEATURES)}; the same number for each is expected"
        )
    background, cell = keys.IOU_THRESHOLDS
    rpn = _ProposalNetwork(
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
    """Return the anchors' sizes or ratios for each level; a single list is used for all."""
    lists = list(model.ANCHOR_GENERATOR[key])
    if lists and not isinstance(lists[0], list | tuple):
        lists = [lists]
    if len(lists) not in (1, n_levels):
        raise InputError(
            f"MODEL.ANCHOR_GENERATOR.{key} {lists}: one list, or one for each of the {n_levels} "
            "features of MODEL.RPN.IN_FEATURES is expected"
        )
    return lists * n_levels if len(lists) == 1 else lists


def _build_heads(cfg: CfgNode, backbone: Backbone) -> CellHeads:
    keys, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    strides, channels = _input_features(cfg.MODEL, "ROI_HEADS", backbone)
    (threshold,) = keys.IOU_THRESHOLDS
    box_head, width = _build_box_head(channels * box.POOLER_RESOLUTION**2, box)
    box_predictor = FastRCNNPredictor(width, keys.NUM_CLASSES + 1)
    if box.CLS_AGNOSTIC_BBOX_REG:
        box_predictor.bbox_pred = nn.Linear(width, 4)
    heads = CellHeads(
        RoIAlign(box.POOLER_RESOLUTION, strides, box.POOLER_SAMPLING_RATIO),
        box_head,
        box_predictor,
        fg_iou_thresh=threshold,
        bg_iou_thresh=threshold,
        batch_size_per_image=keys.BATCH_SIZE_PER_IMAGE,
        positive_fraction=keys.POSITIVE_FRACTION,
        bbox_reg_weights=box.BBOX_REG_WEIGHTS,
        score_thresh=keys.SCORE_THRESH_TEST,
        nms_thresh=keys.NMS_THRESH_TEST,
        detections_per_img=0,  # these three: `select` has them
        mask_roi_pool=RoIAlign(mask.POOLER_RESOLUTION, strides, mask.POOLER_SAMPLING_RATIO),
        mask_head=MaskRCNNHeads(
            channels, [mask.CONV_DIM] * mask.NUM_CONV, dilation=1, norm_layer=NORMS.get(mask.NORM)
        ),
        mask_predictor=MaskRCNNPredictor(
            mask.CONV_DIM if mask.NUM_CONV else channels,
            mask.CONV_DIM,
            1 if mask.CLS_AGNOSTIC_MASK else keys.NUM_CLASSES,
        ),
    )
    heads.max_masks, heads.mask_scale = mask.BATCH_SIZE_PER_IMAGE, mask.BOX_SCALE
    heads.one_mask_per_box = mask.CLS_AGNOSTIC_MASK
    heads.select = detection_selection(cfg, _MIN_SIZE)
    # Detectron2's initialisation, with smaller weights than torchvision's.
    for layer, std in (
        (heads.box_predictor.cls_score, 0.01),
        (heads.box_predictor.bbox_pred, 0.001),
        (heads.mask_predictor.mask_fcn_logits, 0.001),
    ):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return heads


def _build_box_head(width: int, keys: CfgNode) -> tuple[nn.Sequential, int]:
    """Build the fully connected layers. Return them and the width of their output."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for number in range(6, 6 + keys.NUM_FC):  # torchvision's names, after VGG's layers
        layers[f"fc{number}"], width = nn.Linear(width, keys.FC_DIM), keys.FC_DIM
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers), width


def initial_weights(cfg: CfgNode, wanted: str) -> str:
    """Return the address of "imagenet" weights for a config; other names are kept.

    For these and other classifiers of torchvision or timm the config is adapted: they were trained
    on RGB of unit deviation and with strides in 3 x 3 convolutions, unlike the weights that the
    recipes in `configs/` are written for.

    Raises
    ------
    InputError
        If there are none, or if they are in the format of Detectron2's zoo.
    """
    if wanted.startswith(ZOO) or wanted.endswith(".pkl"):
        raise InputError(
            f"--weights {wanted}: in the format of Detectron2's zoo, which torchvision can't read; "
            "use --weights imagenet, none, or --engine detectron2"
        )
    is_timm = cfg.MODEL.BACKBONE.NAME == TIMM_FPN
    if wanted not in ("imagenet", "coco"):
        if not is_timm and (wanted.startswith("timm://") or Path(wanted).name in _CLASSIFIER_FILES):
            _use_classifier_preprocessing(cfg)
        return wanted
    if is_timm and wanted == "imagenet" and cfg.MODEL.WEIGHTS:
        return str(cfg.MODEL.WEIGHTS)
    shape = tuple(cfg.MODEL.RESNETS[key] for key in _SHAPE)
    if wanted == "coco" or is_timm or shape not in _IMAGENET:
        raise InputError(
            f"--weights {wanted}: torchvision has none for {cfg.RECIPE}; use --weights none, a "
            "path, or --engine detectron2"
        )
    _use_classifier_preprocessing(cfg)
    url: str = _IMAGENET[shape].url
    return url


def _use_classifier_preprocessing(cfg: CfgNode) -> None:
    """Set the preprocessing and the strides of the classifiers of torchvision and timm."""
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
