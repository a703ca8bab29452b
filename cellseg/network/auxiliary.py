"""A head that is used in training only: it says of each pixel of the features what it is.

The other heads learn from some boxes, and from their pooled features. This one learns from all
pixels: the class, as the semantic branch of Hybrid Task Cascade (Chen et al., CVPR 2019,
arXiv:1901.07518), and the position within the cell, horizontal and vertical, as HoVer-Net (Graham
et al., Medical Image Analysis 58, 2019, arXiv:1812.06499), which separates cells that touch.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import attrgetter

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn import functional

from cellseg.cellmasks import CellMasks

_CHANNELS = 64
_IGNORED = -100  # class of pixels outside of an image: padding of its batch
_OUTSIDE = -2  # "owner" of these pixels; -1 is the background's
_LEAST_HALF = 4.0  # of a box, in network pixels: positions in the smallest cells say little
_BETA = 0.2  # below, the loss of positions is quadratic


class AuxiliaryHead(nn.Module):
    """Two convolutions, for K + 1 classes (background last) and two positions.

    Parameters
    ----------
    channels
        Channels of the features.
    stride
        Stride of the features in network pixels.
    n_classes
        K.
    weight
        Weight of the losses.
    """

    def __init__(self, channels: int, stride: int, n_classes: int, weight: float) -> None:
        super().__init__()
        self.stride, self.n_classes, self.weight = stride, n_classes, weight
        self.conv = nn.Conv2d(channels, _CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(_CHANNELS)
        self.predictor = nn.Conv2d(_CHANNELS, n_classes + 3, 1)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.01)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `(N, K + 1, h, w)` logits and `(N, 2, h, w)` positions, both float32."""
        output = self.predictor(functional.relu(self.norm(self.conv(features)))).float()
        return output[:, : self.n_classes + 1], output[:, self.n_classes + 1 :]

    def losses(
        self,
        features: torch.Tensor,
        masks: Sequence[CellMasks],
        classes: Sequence[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Return the cross entropy of the classes, and the smooth L1 loss of the positions.

        Parameters
        ----------
        features
            `(N, C, h, w)` of N images.
        masks, classes
            Cells of each image, and their `(n,)` int64 classes, on the features' device.
        """
        logits, positions = self(features)
        true_classes, true_positions = self._targets(masks, classes, features.shape[-2:])
        is_cell = (true_classes >= 0) & (true_classes < self.n_classes)
        error = functional.smooth_l1_loss(positions, true_positions, reduction="none", beta=_BETA)
        # Means, or 0 without pixels: a tiny image has none on the grid.
        loss_cls = functional.cross_entropy(logits, true_classes, reduction="sum")
        loss_cls = loss_cls / (true_classes != _IGNORED).sum().clamp(min=1)
        loss_position = (error * is_cell[:, None]).sum() / (2 * is_cell.sum()).clamp(min=1)
        return {
            "loss_auxiliary_cls": self.weight * loss_cls,
            "loss_auxiliary_position": self.weight * loss_position,
        }

    def _targets(
        self, masks: Sequence[CellMasks], classes: Sequence[torch.Tensor], shape: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `(N, h, w)` classes of N images and the `(N, 2, h, w)` positions, x and y.

        A position is 0 at the centre of the cell's box, −1 at its left or top side, and 1 at the
        other; nearer to 0 in boxes smaller than 8 network pixels.
        """
        (h, w), device = shape, masks[0].device
        owner = torch.full((len(masks), h, w), _OUTSIDE, device=device)
        first = cell = 0
        for _, group in itertools.groupby(masks, attrgetter("size")):
            parts = list(group)
            owners = CellMasks.owners(parts, self.stride)
            at = (slice(first, first + len(parts)), slice(owners.shape[1]), slice(owners.shape[2]))
            owner[at] = torch.where(owners < 0, owners, owners + cell)
            first, cell = first + len(parts), cell + sum(map(len, parts))
        of_cells = torch.cat([*classes, torch.tensor([_IGNORED, self.n_classes], device=device)])
        boxes = torch.cat([*(part.boxes for part in masks), torch.zeros((2, 4), device=device)])
        low, high = boxes.view(-1, 2, 2).unbind(1)
        half = ((high - low) / 2).clamp(min=_LEAST_HALF)
        x, y = (torch.arange(n, device=device) * self.stride + self.stride / 2 for n in (w, h))
        places = torch.stack([x.expand(h, w), y[:, None].expand(h, w)], -1)
        positions = (places - ((low + high) / 2)[owner]) / half[owner]
        positions = positions.where((owner >= 0)[..., None], 0)
        return of_cells[owner], positions.permute(0, 3, 1, 2)


def build_auxiliary_head(model: CfgNode, channels: int, stride: int) -> AuxiliaryHead | None:
    """Build the head of a config's `MODEL` for features, None if its losses have no weight."""
    weight, n_classes = model.AUXILIARY_HEAD.LOSS_WEIGHT, model.ROI_HEADS.NUM_CLASSES
    return AuxiliaryHead(channels, stride, n_classes, weight) if weight else None
