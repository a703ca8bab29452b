"""RoIAlign of Mask R-CNN (He et al., ICCV 2017), faster on a CPU."""

from __future__ import annotations

import torch
from torch.nn import functional
from torchvision.ops import roi_align


def precise(features: torch.Tensor) -> torch.Tensor:
    """Convert features to the type that they are pooled in, float32 or float64.

    `RoIAlign` converts whole feature maps each time, which is best done once for several parts of
    the boxes.
    """
    return features if features.dtype == torch.float64 else features.float()


class RoIAlign(torch.nn.Module):
    """torchvision's `RoIAlign`, in a third of its time on a CPU if bins have few samples.

    Each sample is a weighted sum of its four neighbours, computed for all channels at once.

    Parameters
    ----------
    output_size
        Bins along each axis.
    spatial_scale
        Features per pixel of the boxes: 1 / stride.
    sampling_ratio
        Samples along each axis of a bin; 0 for about one per feature, as in torchvision.
    aligned
        Whether the first feature's centre is at 0.5 features, and not at 0.
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        pair = (output_size, output_size) if isinstance(output_size, int) else output_size
        self.output_size = (int(pair[0]), int(pair[1]))
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, features: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Pool `(N, C, h, w)` features over `(K, 5)` boxes. Return `(K, C, *output_size)`.

        A box is its image's index and XYXY. Features outside the map repeat the border for one
        feature, then are 0. Boxes get no gradient.
        """
        if self.sampling_ratio <= 0 or features.device.type != "cpu":
            options = (self.spatial_scale, self.sampling_ratio, self.aligned)
            result: torch.Tensor = roi_align(features, boxes, self.output_size, *options)
            return result
        n, channels, height, width = features.shape
        rows, columns = self.output_size
        with torch.no_grad():
            corners = boxes[:, 1:].float() * self.spatial_scale - (0.5 if self.aligned else 0.0)
            x, x_weight = self._neighbours(corners[:, 0], corners[:, 2], columns, width)
            y, y_weight = self._neighbours(corners[:, 1], corners[:, 3], rows, height)
            y = y + (boxes[:, 0].long() * height)[:, None, None]
            # (K, rows, columns, neighbours in y, neighbours in x)
            indices = y[:, :, None, :, None] * width + x[:, None, :, None, :]
            weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        table = precise(features).permute(0, 2, 3, 1).reshape(n * height * width, channels)
        pooled = functional.embedding_bag(
            indices.flatten(0, 2).flatten(1),
            table,
            per_sample_weights=weights.flatten(0, 2).flatten(1).to(table.dtype),
            mode="sum",
        )
        pooled = pooled.view(len(boxes), rows, columns, channels).permute(0, 3, 1, 2)
        return pooled.to(features.dtype)

    def _neighbours(
        self, low: torch.Tensor, high: torch.Tensor, bins: int, length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of the features next to each sample along one axis, and their weights.

        Both are `(K, bins, 2 * sampling_ratio)`.
        """
        size = high - low
        if not self.aligned:  # as in the first RoIAlign
            size = size.clamp(min=1)
        n = bins * self.sampling_ratio
        steps = (torch.arange(n, dtype=torch.float32) + 0.5) / n
        at = low[:, None] + size[:, None] * steps
        inside = (at >= -1) & (at <= length)
        at = at.clamp(0, length - 1)
        first = at.nan_to_num().floor()  # NaN boxes give NaN by their weights
        fraction = at - first
        first = first.long()
        weight = inside / self.sampling_ratio
        weights = torch.stack([1 - fraction, fraction], -1) * weight[..., None]
        indices = torch.stack([first, (first + 1).clamp(max=length - 1)], -1)
        shape = (len(low), bins, 2 * self.sampling_ratio)
        return indices.view(shape), weights.view(shape)
