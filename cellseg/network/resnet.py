"""ResNets of any width, with or without a feature pyramid, built from torchvision's parts.

With torchvision's widths, torchvision's weights fit.
"""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torchvision.models import resnet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cellseg.network.timm_backbone import TIMM_FPN, TimmBackbone

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of each stage, by depth
NORMS = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d}
FPN = "build_resnet_fpn_backbone"


class _Bottleneck(resnet.Bottleneck):  # type: ignore[misc]
    """torchvision's bottleneck with any width, and the stride in the 1 x 1 or 3 x 3 convolution."""

    def __init__(
        self,
        channels: tuple[int, int, int],
        stride: int,
        dilation: int,
        norm: type[nn.Module],
        keys: CfgNode,
    ) -> None:
        nn.Module.__init__(self)  # skips that of torchvision, which fixes the widths
        before, within, after = channels
        first, second = (stride, 1) if keys.STRIDE_IN_1X1 else (1, stride)
        self.conv1 = resnet.conv1x1(before, within, first)
        self.bn1 = norm(within)
        self.conv2 = resnet.conv3x3(within, within, second, keys.NUM_GROUPS, dilation)
        self.bn2 = norm(within)
        self.conv3 = resnet.conv1x1(within, after)
        self.bn3 = norm(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(resnet.conv1x1(before, after, stride), norm(after))


class ResNet(nn.Module):
    """ResNet (He et al. 2016, arXiv:1512.03385) of `MODEL.RESNETS`.

    `strides` and `channels` are those of its features, by name: "res2", "res3" …
    """

    def __init__(self, keys: CfgNode, freeze_at: int) -> None:
        super().__init__()
        # The stem counts as the first stage. Frozen stages have frozen statistics.
        norms = [FrozenBatchNorm2d if n < freeze_at else NORMS[keys.NORM] for n in range(5)]
        before, total = keys.STEM_OUT_CHANNELS, 4
        self.conv1 = nn.Conv2d(3, before, 7, stride=2, padding=3, bias=False)
        self.bn1 = norms[0](before)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        last = max(int(name.removeprefix("res")) for name in keys.OUT_FEATURES)
        for layer, count in enumerate(BLOCKS[keys.DEPTH][: last - 1], start=1):
            within = keys.NUM_GROUPS * keys.WIDTH_PER_GROUP * 2 ** (layer - 1)
            after = keys.RES2_OUT_CHANNELS * 2 ** (layer - 1)
            dilation = keys.RES5_DILATION if layer == 4 else 1
            stride = 1 if layer == 1 or dilation == 2 else 2
            blocks = []
            for step in [stride] + [1] * (count - 1):
                widths = (before, within, after)
                blocks.append(_Bottleneck(widths, step, dilation, norms[layer], keys))
                before = after
            self.add_module(f"layer{layer}", nn.Sequential(*blocks))
            total *= stride
            self.strides[f"res{layer + 1}"] = total
            self.channels[f"res{layer + 1}"] = after
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for stage in [self.conv1, *self._layers()][:freeze_at]:
            stage.requires_grad_(False)

    def _layers(self) -> list[nn.Module]:
        return [self.get_submodule(f"layer{n}") for n in range(1, len(self.strides) + 1)]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of `(B, 3, H, W)` images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for name, layer in zip(self.strides, self._layers(), strict=True):
            features[name] = x = layer(x)
        return features


class Backbone(nn.Module):
    """A ResNet or a timm network, with or without a feature pyramid (arXiv:1612.03144).

    `strides` and `channels` are those of its features, by name: "res2", "res3" …, or "p2", "p3" …
    with a pyramid. `coarsest_stride` is that of the network below the pyramid.
    """

    def __init__(self, model: CfgNode) -> None:
        super().__init__()
        is_timm = model.BACKBONE.NAME == TIMM_FPN
        self.body = (
            TimmBackbone(model.TIMM.NAME, model.BACKBONE.FREEZE_AT)
            if is_timm
            else ResNet(model.RESNETS, model.BACKBONE.FREEZE_AT)
        )
        self.strides, self.channels = self.body.strides, self.body.channels
        self.coarsest_stride = max(self.strides.values())
        self.in_features = model.FPN.IN_FEATURES if is_timm or model.BACKBONE.NAME == FPN else ()
        if self.in_features:
            channels = [self.channels[name] for name in self.in_features]
            self.fpn = FeaturePyramidNetwork(
                channels, model.FPN.OUT_CHANNELS, LastLevelMaxPool(), NORMS.get(model.FPN.NORM)
            )
            levels = [int(name.removeprefix("res")) for name in self.in_features]
            self.strides = {f"p{level}": 2**level for level in [*levels, levels[-1] + 1]}
            self.channels = dict.fromkeys(self.strides, model.FPN.OUT_CHANNELS)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features of `(B, 3, H, W)` images."""
        features: dict[str, torch.Tensor] = self.body(images)
        if not self.in_features:
            return features
        pyramid = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self.strides, pyramid.values(), strict=True))
