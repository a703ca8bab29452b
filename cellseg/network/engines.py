"""The engines, which build networks.

An engine is a module of this package, `detectron2` or `torchvision`, with

- `check(cfg)`: raise InputError for config values that the engine does not support;
- `build_network(cfg)`: build the network of a config, on its device;
- `initial_weights(cfg, wanted)`: return the address of initial weights, and adapt `cfg` to them.

A network is a `torch.nn.Module` with

- `forward(samples)`: the training losses, by name, of samples of `cellseg.learn.mapper.CellMapper`;
- `detect(images, limits)`: the `Detections` of each image, with at most so many proposals and
  detections (`cellseg.network.limits`);
- `adapt_weights(data)`: the content of a weights file under this network's names.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType

import torch
from fvcore.common.config import CfgNode
from torch import nn

from cellseg.errors import InputError

ZOO = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")  # short name, address


@dataclass(frozen=True)
class Detections:
    """The N detected cells of one image, in network pixels.

    Attributes
    ----------
    boxes
        `(N, 4)` float32, XYXY, right and bottom exclusive, not empty.
    scores
        `(N,)` float32, 0 to 1.
    classes
        `(N,)` int64, 0…K−1.
    masks
        `(N, M, M)` float32: probability of the cell on a grid over the box, or over the enlarged
        box (`mask_boxes`).
    limited_by
        Config keys of the limits that left out boxes that are probably cells.
    mask_scale
        Factor by which the boxes are enlarged, about their centres, for the masks.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor
    limited_by: tuple[str, ...] = field(default=(), kw_only=True)
    mask_scale: float = field(default=1.0, kw_only=True)

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: torch.Tensor) -> Detections:
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.classes[index],
            self.masks[index],
            limited_by=self.limited_by,
            mask_scale=self.mask_scale,
        )

    @property
    def mask_boxes(self) -> torch.Tensor:
        """The boxes of the grids of the masks, `(N, 4)`; they may reach out of the image."""
        return enlarge_boxes(self.boxes, self.mask_scale)


def enlarge_boxes(boxes: torch.Tensor, factor: float) -> torch.Tensor:
    """Enlarge `(N, 4)` XYXY boxes about their centres. A factor of 1 keeps them bit for bit."""
    if factor == 1:
        return boxes
    low, high = boxes[:, :2], boxes[:, 2:]
    margin = (high - low) * ((factor - 1) / 2)
    return torch.cat([low - margin, high + margin], 1)


def distinct_masks(boxes: torch.Tensor, class_agnostic: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the detections whose masks differ: those of a box may be one mask for all classes.

    Parameters
    ----------
    boxes
        `(N, 4)` XYXY, different within a class.
    class_agnostic
        Whether the mask head predicts one mask for all classes.

    Returns
    -------
    Index of a detection of each of the M masks, `(M,)`, and index of the mask of each detection,
    `(N,)`.
    """
    index = torch.arange(len(boxes), device=boxes.device)
    if not class_agnostic:
        return index, index
    masks, mask_of = torch.unique(boxes, dim=0, return_inverse=True)
    return mask_of.new_empty(len(masks)).scatter(0, mask_of, index), mask_of


def get_engine(name: str) -> ModuleType:
    """Return the module of an engine."""
    return importlib.import_module(f"cellseg.network.{name}")


def check_network(cfg: CfgNode) -> None:
    """Raise InputError if a config is not of a Mask R-CNN that its engine supports."""
    if not cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_ON "
            f"{cfg.MODEL.MASK_ON}: GeneralizedRCNN with masks on is expected"
        )
    get_engine(cfg.ENGINE).check(cfg)


def build_network(cfg: CfgNode) -> torch.nn.Module:
    """Build the network of a config, on its device.

    Raises
    ------
    InputError
        If the engine does not support it, or if its parts do not fit together.
    """
    check_network(cfg)
    network: torch.nn.Module = get_engine(cfg.ENGINE).build_network(cfg)
    convolutions = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    depthwise = any(conv.groups == conv.in_channels > 1 for conv in convolutions)
    if not (depthwise and torch.device(cfg.MODEL.DEVICE).type == "cuda"):
        # The order of the convolution libraries, which would copy from the other one. For depthwise
        # convolutions in this order, cuDNN takes seconds to prepare for each new image size.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
