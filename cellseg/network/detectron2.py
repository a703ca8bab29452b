"""Detectron2's Mask R-CNN."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from cellseg.compiler import without_compiler
from cellseg.errors import InputError
from cellseg.keys import Range
from cellseg.network.auxiliary import AuxiliaryHead, build_auxiliary_head
from cellseg.network.engines import Detections, distinct_masks, enlarge_boxes
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
from cellseg.network.matching import draw_samples, match_boxes, top_proposals
from cellseg.network.pooling import RoIAlign, precise
from cellseg.network.timm_backbone import TIMM_FPN, TimmBackbone, check_name

with without_compiler():
    from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
    from detectron2.layers import ROIAlign, ShapeSpec, wrappers
    from detectron2.modeling import BACKBONE_REGISTRY, Backbone, GeneralizedRCNN
    from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
    from detectron2.modeling.box_regression import _dense_box_regression_loss
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
    from detectron2.modeling.roi_heads import (
        ROI_HEADS_REGISTRY,
        CascadeROIHeads,
        Res5ROIHeads,
        StandardROIHeads,
    )
    from detectron2.structures import Boxes, Instances

# Detectron2's convolutions ask each time, by importing the compiler.
wrappers.check_if_dynamo_compiling = torch.compiler.is_compiling


class _BottomUp(TimmBackbone, Backbone):  # type: ignore[misc]
    """A timm network as a backbone of Detectron2."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.channels[name], stride=stride)
            for name, stride in self.strides.items()
        }


@BACKBONE_REGISTRY.register()  # type: ignore[misc]
def build_timm_fpn_backbone(cfg: CfgNode, _input_shape: ShapeSpec) -> FPN:
    """Build the network of `MODEL.TIMM.NAME` with a feature pyramid of strides 4 to 64."""
    return FPN(
        bottom_up=_BottomUp(cfg.MODEL.TIMM.NAME, cfg.MODEL.BACKBONE.FREEZE_AT),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )


@dataclass(frozen=True)
class _Drawn:
    """The anchors of N images that train the RPN, `(N, S)` each.

    Attributes
    ----------
    index
        Index of the anchor.
    valid
        Whether it is one; others fill up the rows.
    is_cell
        Whether it is of a cell.
    boxes
        `(N, S, 4)`, of this cell.
    """

    index: torch.Tensor
    valid: torch.Tensor
    is_cell: torch.Tensor
    boxes: torch.Tensor


@PROPOSAL_GENERATOR_REGISTRY.register()
class CellRPN(RPN):  # type: ignore[misc]
    """Detectron2's RPN, which in training takes all images of a batch at once."""

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: Sequence[Boxes], instances: Sequence[Instances]
    ) -> tuple[_Drawn, None]:
        """Draw the anchors that are trained."""
        boxes = Boxes.cat(anchors).tensor
        cells = [of.gt_boxes.tensor for of in instances]
        _, low, high, _ = self.anchor_matcher.thresholds
        cell, labels = match_boxes(boxes[None], cells, low, high, best_of_each=True)
        index, valid = draw_samples(labels, self.batch_size_per_image, self.positive_fraction)
        is_cell = valid & (labels.gather(1, index) == 1)
        return _Drawn(index, valid, is_cell, _with_zero_row(cells)[cell.gather(1, index)]), None

    def losses(
        self,
        anchors: Sequence[Boxes],
        logits: Sequence[torch.Tensor],
        drawn: _Drawn,
        deltas: Sequence[torch.Tensor],
        _boxes: None,
    ) -> dict[str, torch.Tensor]:
        """Return Detectron2's losses of the drawn anchors."""
        chosen = Boxes.cat(anchors).tensor[drawn.index]
        predicted = torch.cat([*deltas], 1).gather(1, drawn.index[..., None].expand(-1, -1, 4))
        loss_loc = _dense_box_regression_loss(
            [chosen.flatten(0, 1)],
            self.box2box_transform,
            [predicted.flatten(0, 1)[None]],
            [drawn.boxes.flatten(0, 1)],
            drawn.is_cell.flatten()[None],
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        loss_cls = functional.binary_cross_entropy_with_logits(
            torch.cat([*logits], 1).gather(1, drawn.index).float(),
            drawn.is_cell.float(),
            drawn.valid.float(),
            reduction="sum",
        )
        count = self.batch_size_per_image * len(drawn.index)
        losses = {"loss_rpn_cls": loss_cls / count, "loss_rpn_loc": loss_loc / count}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: Sequence[Boxes],
        logits: Sequence[torch.Tensor],
        deltas: Sequence[torch.Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Return the proposals of each image that train the heads."""
        proposals = top_proposals(
            self._decode_proposals(anchors, deltas),
            logits,
            sizes,
            iou=self.nms_thresh,
            pre_nms=self.pre_nms_topk[self.training],
            post_nms=self.post_nms_topk[self.training],
            min_size=self.min_box_size,
        )
        return [
            Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=of_boxes)
            for size, (boxes, of_boxes) in zip(sizes, proposals, strict=True)
        ]


def _with_zero_row(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate the values of all cells, and one row of zeros: there may be no cell."""
    return torch.cat([*parts, parts[0].new_zeros((1, *parts[0].shape[1:]))])


# The refined boxes of the proposals of each image, and their class probabilities.
_Classified = tuple[list[torch.Tensor], list[torch.Tensor]]


class _BatchSampling:
    """`ROIHeads` that take all images of a batch at once to draw the proposals for training."""

    proposal_append_gt: bool
    proposal_matcher: Any
    batch_size_per_image: int
    positive_fraction: float
    num_classes: int

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: Sequence[Instances], targets: Sequence[Instances]
    ) -> list[Instances]:
        """Draw the proposals that train the heads, those of cells first; see `ROIHeads`."""
        cells = [of.gt_boxes.tensor for of in targets]
        boxes = [of.proposal_boxes.tensor for of in proposals]
        if self.proposal_append_gt:
            boxes = [torch.cat(pair) for pair in zip(boxes, cells, strict=True)]
        padded, device = pad_sequence(boxes, batch_first=True), boxes[0].device
        thresholds = self.proposal_matcher.thresholds  # infinite at both ends
        cell, labels = match_boxes(padded, cells, thresholds[1], thresholds[-2])
        counts = torch.tensor([[len(box)] for box in boxes]).to(device)
        labels[torch.arange(padded.shape[1], device=device) >= counts] = -1  # the padding
        index, valid = draw_samples(labels, self.batch_size_per_image, self.positive_fraction)
        is_cell = labels.gather(1, index) == 1
        cell = cell.gather(1, index)
        classes = _with_zero_row([of.gt_classes for of in targets])[cell]
        drawn = valid.flatten().nonzero()[:, 0]
        n_drawn = valid.sum(1).tolist()
        of_image = [
            torch.split(value.flatten(0, 1)[drawn], n_drawn)
            for value in (
                padded.gather(1, index[..., None].expand(-1, -1, 4)),
                classes.where(is_cell, self.num_classes),
                _with_zero_row(cells)[cell],
                cell,
            )
        ]
        samples, n_before = [], 0
        for target, box, of_box, true_box, number in zip(targets, *of_image, strict=True):
            sample = Instances(target.image_size, proposal_boxes=Boxes(box), gt_classes=of_box)
            if len(target):
                sample.gt_boxes = Boxes(true_box)
                sample.gt_masks = target.gt_masks[number - n_before]
            samples.append(sample)
            n_before += len(target)
        return samples


@ROI_HEADS_REGISTRY.register()
class CellHeads(_BatchSampling, StandardROIHeads):  # type: ignore[misc]
    """Heads whose mask head is trained on some of the cells, in enlarged boxes.

    Attributes
    ----------
    max_masks
        Maximum number of cells per image that train the mask head; 0 for all.
    mask_scale
        Factor by which boxes are enlarged for the mask head.
    """

    max_masks = 0
    mask_scale = 1.0

    def _forward_mask(self, features: Any, instances: Sequence[Instances]) -> Any:
        if not self.training:
            return super()._forward_mask(features, instances)
        # Drawn proposals are in random order, those of cells first.
        n_cells = torch.stack([(of.gt_classes < self.num_classes).sum() for of in instances])
        if self.max_masks:
            n_cells = n_cells.clamp(max=self.max_masks)
        counts = n_cells.tolist()
        cells = [of[:count] for of, count in zip(instances, counts, strict=True)]
        boxes = torch.cat([of.proposal_boxes.tensor for of in cells])
        of_image = torch.split(enlarge_boxes(boxes, self.mask_scale), counts)
        maps = [features[name] for name in self.mask_in_features]
        logits = self.mask_head.layers(self.mask_pooler(maps, [Boxes(box) for box in of_image]))
        loss = mask_loss(
            logits,
            torch.cat([of.gt_classes for of in cells]),
            [of.gt_masks for of in cells if len(of)],
            [box for box in of_image if len(box)],
        )
        return {"loss_mask": self.mask_head.loss_weight * loss}

    def classify(
        self, features: dict[str, torch.Tensor], proposals: Sequence[Instances]
    ) -> _Classified:
        """Return the refined boxes and the class probabilities of the proposals of each image.

        Boxes are `(P, K, 4)` XYXY in network pixels, or `(P, 1, 4)` for all classes, and
        probabilities `(P, K)`, without the background's.
        """
        maps = [features[name] for name in self.box_in_features]
        pooled = self.box_pooler(maps, [instances.proposal_boxes for instances in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        return _decode(self.box_predictor, predictions, proposals)


@ROI_HEADS_REGISTRY.register()
class CellCascadeHeads(CascadeROIHeads, CellHeads):  # type: ignore[misc]
    """The same as a cascade: the boxes of the last head, and the mean probabilities of all."""

    def classify(
        self, features: dict[str, torch.Tensor], proposals: Sequence[Instances]
    ) -> _Classified:
        """Return boxes and class probabilities as `CellHeads.classify` does."""
        maps = [features[name] for name in self.box_in_features]
        sizes = [instances.image_size for instances in proposals]
        stages: list[_Classified] = []
        for stage, predictor in enumerate(self.box_predictor):
            if stages:
                boxes = [box[:, 0] for box in stages[-1][0]]
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, stage)
            stages.append(_decode(predictor, predictions, proposals))
        by_image = zip(*(probs for _, probs in stages), strict=True)
        return stages[-1][0], [torch.stack(probs).mean(0) for probs in by_image]


@ROI_HEADS_REGISTRY.register()
class CellRes5Heads(_BatchSampling, Res5ROIHeads):  # type: ignore[misc]
    """Heads that share the last stage of a ResNet."""

    def classify(
        self, features: dict[str, torch.Tensor], proposals: Sequence[Instances]
    ) -> _Classified:
        """Return boxes and class probabilities as `CellHeads.classify` does."""
        maps = [features[name] for name in self.in_features]
        boxes = [instances.proposal_boxes for instances in proposals]
        pooled = self._shared_roi_transform(maps, boxes)
        return _decode(self.box_predictor, self.box_predictor(pooled.mean((2, 3))), proposals)


_HEADS = {
    "StandardROIHeads": "CellHeads",
    "CascadeROIHeads": "CellCascadeHeads",
    "Res5ROIHeads": "CellRes5Heads",
}


def _decode(predictor: Any, predictions: Any, proposals: Sequence[Instances]) -> _Classified:
    boxes = predictor.predict_boxes(predictions, proposals)
    probs = predictor.predict_probs(predictions, proposals)
    return [box.unflatten(1, (-1, 4)) for box in boxes], [prob[:, :-1] for prob in probs]


class CellRCNN(GeneralizedRCNN):  # type: ignore[misc]
    """Detectron2's `GeneralizedRCNN` for samples of `CellMapper`, with `Detections` as output.

    Weights have the same names as in Detectron2.

    Attributes
    ----------
    auxiliary
        Head that is used in training only (`MODEL.AUXILIARY_HEAD`), or None.
    one_mask_per_box
        Whether the mask head predicts one mask for all classes.
    select
        `select_detections` with the values of the config.
    """

    auxiliary: AuxiliaryHead | None
    one_mask_per_box: bool
    select: partial[BoxDetections]

    def forward(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the training losses of some samples."""
        cells = [_instances(sample).to(self.device) for sample in samples]
        images = self.preprocess_image([{"image": sample["image"]} for sample in samples])
        features = self.backbone(images.tensor)
        proposals, of_proposals = self.proposal_generator(images, features, cells)
        _, of_heads = self.roi_heads(images, features, proposals, cells)
        losses: dict[str, torch.Tensor] = {**of_heads, **of_proposals}
        if self.auxiliary:
            finest = features[self.roi_heads.in_features[0]]
            masks, classes = zip(*((cell.gt_masks, cell.gt_classes) for cell in cells), strict=True)
            losses |= self.auxiliary.losses(finest, masks, classes)
        return losses

    @torch.no_grad()
    def detect(self, images: Sequence[torch.Tensor], limits: Limits) -> list[Detections]:
        """Detect the cells of `(3, h, w)` images in the config's channel order."""
        batch = self.preprocess_image([{"image": image} for image in images])
        features = self.backbone(batch.tensor)
        proposals = _propose(self.proposal_generator, features, batch.image_sizes, limits)
        features = {name: precise(features[name]) for name in self.roi_heads.in_features}
        selected = self._detect_boxes(features, batch.image_sizes, proposals, limits)
        scale = self.roi_heads.mask_scale
        distinct = [distinct_masks(cells.boxes, self.one_mask_per_box) for cells in selected]
        instances = [
            Instances(
                size,
                pred_boxes=Boxes(enlarge_boxes(cells.boxes[index], scale)),
                pred_classes=cells.classes[index],
            )
            for size, cells, (index, _) in zip(batch.image_sizes, selected, distinct, strict=True)
        ]
        parts = [
            self.roi_heads.forward_with_given_boxes(features, chunk)
            for chunk in mask_chunks(instances, self.device)
        ]
        return [
            Detections(
                cells.boxes,
                cells.scores,
                cells.classes,
                torch.cat([instances.pred_masks[:, 0] for instances in masked])[mask_of],
                limited_by=limited_by(of_image, cells),
                mask_scale=scale,
            )
            for cells, of_image, (_, mask_of), masked in zip(
                selected, proposals, distinct, zip(*parts, strict=True), strict=True
            )
        ]

    def _detect_boxes(
        self,
        features: dict[str, torch.Tensor],
        sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals],
        limits: Limits,
    ) -> list[BoxDetections]:
        """Classify the proposals of each image, in parts to bound the memory, and select."""
        rois = [
            Instances(size, proposal_boxes=Boxes(of_image.boxes))
            for size, of_image in zip(sizes, proposals, strict=True)
        ]
        parts = [self.roi_heads.classify(features, chunk) for chunk in box_chunks(rois)]
        boxes, probs = (
            [torch.cat(of_image) for of_image in zip(*lists, strict=True)]
            for lists in zip(*parts, strict=True)
        )
        return [
            self.select(box, prob, of_image.logits, size, limits)
            for box, prob, of_image, size in zip(boxes, probs, proposals, sizes, strict=True)
        ]

    def adapt_weights(self, data: dict[str, Any]) -> dict[str, Any]:
        """Convert the content of a weights file to this network's names.

        Detectors of Detectron2's zoo have these names. The names of its backbones, from Caffe2 and
        others, are matched by their ends, and timm's are converted by a rule.
        """
        if "model" in data and not data.get("matching_heuristics"):
            return dict(data["model"])
        caffe2 = "model" not in data
        blobs = data.get("blobs", data) if caffe2 else data["model"]
        state = {
            name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in blobs.items()
            if not name.endswith("_momentum")
        }
        if any(name in self.state_dict() for name in state):
            return state
        bottom_up = getattr(self.backbone, "bottom_up", None)
        if isinstance(bottom_up, TimmBackbone):
            own = bottom_up.adapt_weights(state)
            return {f"backbone.bottom_up.{name}": value for name, value in own.items()}
        aligned: dict[str, Any] = align_and_update_state_dicts(
            self.state_dict(), state, c2_conversion=caffe2
        )
        return aligned


def _propose(
    rpn: RPN, features: dict[str, torch.Tensor], sizes: Sequence[tuple[int, int]], limits: Limits
) -> list[Proposals]:
    """Return the proposals of each image: `RPN.forward`, with limits for each image."""
    maps = [features[name] for name in rpn.in_features]
    logits, deltas = rpn.rpn_head(maps)
    logits = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
    deltas = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, -2) for level in deltas]
    boxes = rpn._decode_proposals(rpn.anchor_generator(maps), deltas)
    proposals = []
    for number, size in enumerate(sizes):
        of_image = [level[number] for level in boxes], [level[number] for level in logits]
        proposals.append(
            select_proposals(*of_image, size, limits, rpn.nms_thresh, rpn.min_box_size)
        )
    return proposals


def _instances(sample: dict[str, Any]) -> Instances:
    instances = Instances(tuple(sample["image"].shape[1:]))
    instances.gt_boxes = Boxes(sample["boxes"])
    instances.gt_classes = sample["classes"]
    instances.gt_masks = sample["masks"]
    return instances


def check(cfg: CfgNode) -> None:
    """Raise InputError for another proposal generator than the RPN, if its head has layers without
    channels, if timm lacks the network, or if the heads can't enlarge boxes.

    Detectron2 checks other keys when it builds.
    """
    if (generator := cfg.MODEL.PROPOSAL_GENERATOR.NAME) != "RPN":
        raise InputError(f"MODEL.PROPOSAL_GENERATOR.NAME {generator}: RPN is expected")
    if not all(dim == -1 or dim in Range(1, whole=True) for dim in cfg.MODEL.RPN.CONV_DIMS):
        raise InputError(
            f"MODEL.RPN.CONV_DIMS {cfg.MODEL.RPN.CONV_DIMS}: numbers of channels of 1 or more, or "
            "-1 for that of the features, are expected"
        )
    scale, heads = cfg.MODEL.ROI_MASK_HEAD.BOX_SCALE, cfg.MODEL.ROI_HEADS.NAME
    if scale != 1 and heads == "Res5ROIHeads":
        raise InputError(
            f"MODEL.ROI_MASK_HEAD.BOX_SCALE {scale}: {heads} pool once for boxes and masks; 1 is "
            "expected"
        )
    if cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        check_name(cfg.MODEL.TIMM.NAME)


def build_network(cfg: CfgNode) -> CellRCNN:
    """Build the network of a config, on its device."""
    # torch's remarks on Detectron2's code
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    name = cfg.MODEL.ROI_HEADS.NAME
    with_own_parts = cfg.clone()
    with_own_parts.defrost()
    with_own_parts.MODEL.ROI_HEADS.NAME = _HEADS.get(name, name)
    with_own_parts.MODEL.PROPOSAL_GENERATOR.NAME = "CellRPN"
    network: CellRCNN = CellRCNN(with_own_parts)
    finest = network.backbone.output_shape()[network.roi_heads.in_features[0]]
    network.auxiliary = build_auxiliary_head(cfg.MODEL, finest.channels, finest.stride)
    network.to(cfg.MODEL.DEVICE)
    masks = cfg.MODEL.ROI_MASK_HEAD
    network.roi_heads.max_masks = masks.BATCH_SIZE_PER_IMAGE
    network.roi_heads.mask_scale = masks.BOX_SCALE
    network.one_mask_per_box = masks.CLS_AGNOSTIC_MASK
    network.select = detection_selection(cfg)
    for module in [*network.modules()]:
        for child, pooler in module.named_children():
            if isinstance(pooler, ROIPooler) and isinstance(pooler.level_poolers[0], ROIAlign):
                setattr(module, child, _Pooler.like(pooler))
    return network


class _Pooler(RoIAlign):
    """`RoIAlign` for Detectron2's `Boxes`; `ROIPooler` rounds boxes in mixed precision."""

    @classmethod
    def like(cls, pooler: ROIPooler) -> _Pooler:
        """Build the equivalent of a Detectron2 pooler."""
        levels = pooler.level_poolers
        strides = [round(1 / level.spatial_scale) for level in levels]
        return cls(pooler.output_size, strides, levels[0].sampling_ratio, levels[0].aligned)

    def forward(self, features: Sequence[torch.Tensor], boxes: Sequence[Boxes]) -> torch.Tensor:
        return super().forward(features, [of_image.tensor for of_image in boxes])


def initial_weights(cfg: CfgNode, wanted: str) -> str:
    """Return the address of "imagenet" or "coco" weights for a config; other names are kept.

    Raises
    ------
    InputError
        If there are none.
    """
    if wanted == "imagenet":
        if not cfg.MODEL.WEIGHTS:
            raise InputError(
                f"--weights imagenet: not available for {cfg.RECIPE}; train it with --weights none"
            )
        return str(cfg.MODEL.WEIGHTS)
    if wanted != "coco":
        return wanted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which is deprecated
        from detectron2 import model_zoo
    try:
        return str(model_zoo.get_checkpoint_url(f"COCO-InstanceSegmentation/{cfg.RECIPE}.yaml"))
    except RuntimeError:
        raise InputError(
            f"--weights coco: not in Detectron2's zoo for {cfg.RECIPE}; use --weights imagenet, "
            "none or a path"
        ) from None
