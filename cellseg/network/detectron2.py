"""Detectron2's Mask R-CNN."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, GeneralizedRCNN
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.network.engines import Detections
from cellseg.network.limits import (
    Limits,
    Proposals,
    box_chunks,
    count_detections,
    mask_chunks,
    select_proposals,
)
from cellseg.network.pooling import RoIAlign
from cellseg.network.timm_backbone import TIMM_FPN, TimmBackbone, check_name


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


@ROI_HEADS_REGISTRY.register()
class CellHeads(StandardROIHeads):  # type: ignore[misc]
    """Heads whose mask head is trained on at most `max_masks` cells per image; 0 for all.

    In prediction, the box head computes the proposals in parts, which bounds the memory.
    """

    max_masks = 0

    def _forward_mask(self, features: Any, instances: Sequence[Instances]) -> Any:
        if self.training and self.max_masks:
            # Sampled proposals are in random order, those of cells first.
            instances = [proposals[: self.max_masks] for proposals in instances]
        return super()._forward_mask(features, instances)

    def _forward_box(
        self, features: dict[str, torch.Tensor], proposals: Sequence[Instances]
    ) -> Any:
        if self.training:
            return super()._forward_box(features, proposals)
        maps = [features[name] for name in self.box_in_features]
        parts = []
        for chunk in box_chunks(proposals):
            pooled = self.box_pooler(maps, [instances.proposal_boxes for instances in chunk])
            parts.append(self.box_predictor(self.box_head(pooled)))
        predictions = tuple(torch.cat(part) for part in zip(*parts, strict=True))
        return self.box_predictor.inference(predictions, proposals)[0]


@ROI_HEADS_REGISTRY.register()
class CellCascadeHeads(CascadeROIHeads, CellHeads):  # type: ignore[misc]
    """The same as a cascade."""


_HEADS = {"StandardROIHeads": "CellHeads", "CascadeROIHeads": "CellCascadeHeads"}


class CellRCNN(GeneralizedRCNN):  # type: ignore[misc]
    """Detectron2's `GeneralizedRCNN` for samples of `CellMapper`, with `Detections` as output.

    Weights have the same names as in Detectron2.
    """

    def forward(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the training losses of some samples."""
        inputs = [{"image": s["image"], "instances": _instances(s)} for s in samples]
        losses: dict[str, torch.Tensor] = super().forward(inputs)
        return losses

    @torch.no_grad()
    def detect(self, images: Sequence[torch.Tensor], limits: Limits) -> list[Detections]:
        """Detect the cells of `(3, h, w)` images in the config's channel order."""
        batch = self.preprocess_image([{"image": image} for image in images])
        features = self.backbone(batch.tensor)
        proposals = _propose(self.proposal_generator, features, batch.image_sizes, limits)
        cells = _classify(self.roi_heads, features, batch.image_sizes, proposals)
        limited_by = []
        for number, instances in enumerate(cells):
            n, key = count_detections(instances.scores, limits)
            cells[number] = instances[:n]
            limited_by.append(proposals[number].limited_by + key)
        parts = [
            self.roi_heads.forward_with_given_boxes(features, chunk)
            for chunk in mask_chunks(cells, self.device)
        ]
        detections = []
        for number, keys in enumerate(limited_by):
            instances = Instances.cat([part[number] for part in parts])
            boxes = instances.pred_boxes
            boxes.clip(instances.image_size)
            instances = instances[boxes.nonempty()]
            detections.append(
                Detections(
                    instances.pred_boxes.tensor,
                    instances.scores,
                    instances.pred_classes,
                    instances.pred_masks[:, 0],
                    limited_by=keys,
                )
            )
        return detections

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


def _classify(
    heads: ROIHeads,
    features: dict[str, torch.Tensor],
    sizes: Sequence[tuple[int, int]],
    proposals: Sequence[Proposals],
) -> list[Instances]:
    """Return all detections of each image without masks, best first."""
    rois = [
        Instances(size, proposal_boxes=Boxes(of_image.boxes), objectness_logits=of_image.logits)
        for size, of_image in zip(sizes, proposals, strict=True)
    ]
    if isinstance(heads, StandardROIHeads):
        return list(heads._forward_box(features, rois))
    detected, _ = heads(None, features, rois)
    for instances in detected:
        instances.remove("pred_masks")
    return list(detected)


def _instances(sample: dict[str, Any]) -> Instances:
    instances = Instances(tuple(sample["image"].shape[1:]))
    instances.gt_boxes = Boxes(sample["boxes"])
    instances.gt_classes = sample["classes"]
    instances.gt_masks = sample["masks"]
    return instances


def check(cfg: CfgNode) -> None:
    """Raise InputError if timm lacks the network. Detectron2 checks other keys when it builds."""
    if cfg.MODEL.BACKBONE.NAME == TIMM_FPN:
        check_name(cfg.MODEL.TIMM.NAME)


def build_network(cfg: CfgNode) -> CellRCNN:
    """Build the network of a config, on its device."""
    # torch's remarks on Detectron2's code
    warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    name = cfg.MODEL.ROI_HEADS.NAME
    with_own_heads = cfg.clone()
    with_own_heads.defrost()
    with_own_heads.MODEL.ROI_HEADS.NAME = _HEADS.get(name, name)
    network: CellRCNN = CellRCNN(with_own_heads).to(cfg.MODEL.DEVICE)
    network.roi_heads.max_masks = cfg.MODEL.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE
    for module in network.modules():
        if isinstance(module, ROIPooler):
            module.level_poolers = torch.nn.ModuleList(map(_exact_pooler, module.level_poolers))
        elif isinstance(module, FastRCNNOutputLayers):
            module.test_topk_per_image = -1  # limited in `detect`
    return network


def _exact_pooler(pooler: torch.nn.Module) -> torch.nn.Module:
    """Replace Detectron2's pooler, which in mixed precision rounds boxes by up to 4 pixels."""
    if not isinstance(pooler, ROIAlign):
        return pooler
    options = (pooler.spatial_scale, pooler.sampling_ratio, pooler.aligned)
    return RoIAlign(pooler.output_size, *options)


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
