"""The engines: what builds the network of a config.

An engine is a module of this package, `detectron2` or `torchvision`, with

- `check(cfg)`, which refuses what the engine is known not to have;
- `build_network(cfg)`: the network of a config, on its device;
- `initial_weights(cfg, wanted)`: where the weights to begin with are, adapting `cfg` to them;
  it refuses what it can't read.

A network is a `torch.nn.Module`. In training, called with samples of
`cellseg.learn.mapper.CellMapper`, it gives a dict of losses; its `detect` takes images and
gives a `Detections` each; its `adapt_weights` gives what a file of weights holds under its own
names. All other packages speak to these alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import torch
from fvcore.common.config import CfgNode

from cellseg.errors import InputError

ZOO = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")  # short name, address


@dataclass(frozen=True)
class Detections:
    """The N cells that a network finds in one image, in the network's pixels.

    Attributes
    ----------
    boxes
        `(N, 4)` float32, XYXY, right and bottom exclusive, none of them empty.
    scores
        `(N,)` float32 in 0…1.
    classes
        `(N,)` int64, 0…K−1.
    masks
        `(N, M, M)` float32: how likely each part of a grid over the box is the cell's.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: torch.Tensor) -> Detections:
        return Detections(
            self.boxes[index], self.scores[index], self.classes[index], self.masks[index]
        )


def get_engine(name: str) -> ModuleType:
    """Return the module of an engine."""
    return importlib.import_module(f"cellseg.network.{name}")


def check_network(cfg: CfgNode) -> None:
    """Check that the config is one of a Mask R-CNN, which all steps rely on, as its engine has it.

    Raises
    ------
    InputError
        If it is not.
    """
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
        As `check_network` does, or if the parts of the network don't fit together.
    """
    check_network(cfg)
    network: torch.nn.Module = get_engine(cfg.ENGINE).build_network(cfg)
    # How the libraries of convolutions store them: in the other order they copy all the time.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
