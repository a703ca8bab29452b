"""Fold batch normalisation into convolutions, for prediction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Detectron2, torchvision and timm have each their own class of statistics that are not trained.
_FROZEN = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")
# May stand between a convolution and its batch norm: without effect in evaluation mode.
_PASSED_OVER = (nn.Identity, nn.Dropout, nn.Dropout2d)

_SIDE = 64  # of the image that is tried
_TOLERANCE = 2e-3  # of the features' norm: far more than rounding, less than a wrong fold


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> None:
    """Scale and shift the weights of convolutions instead of their outputs, in evaluation mode.

    The network can't be trained afterwards. Its backbone is left as it is if it has batch norms
    that don't normalise the convolution in front of them, which is tried out with a small image, or
    if it doesn't take small images.
    """
    network.eval()
    backbone: nn.Module = network.backbone  # type: ignore[assignment]
    for part in network.children():
        if part is not backbone:
            _fold_all(part)
    if next(_pairs(backbone), None) is None:
        return
    parameter = next(backbone.parameters())
    drawn = torch.randn(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    image = drawn.to(parameter.device, parameter.dtype)
    # Exact on a GPU too: cuDNN's convolutions round.
    with torch.backends.cudnn.flags(enabled=False):
        try:
            expected = backbone(image)
        except (RuntimeError, AssertionError):  # timm's networks for images of a fixed size
            return
        unfolded = [
            (conv, conv.weight, conv.bias, parent, name, getattr(parent, name))
            for conv, parent, name in _pairs(backbone)
        ]
        _fold_all(backbone)
        folded = backbone(image)
    if not all(_is_close(folded[name], value) for name, value in expected.items()):
        for conv, weight, bias, parent, name, norm in unfolded:
            conv.weight, conv.bias = weight, bias
            setattr(parent, name, norm)


def _fold_all(part: nn.Module) -> None:
    for conv, parent, name in list(_pairs(part)):
        _fold(conv, parent, name)


def _pairs(part: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module, str]]:
    return itertools.chain.from_iterable(map(_normalised, part.modules()))


def _normalised(module: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.Module, str]]:
    """Yield each convolution with a batch norm, and the parent and the name of the batch norm.

    It is the `norm` of Detectron2's convolutions, and comes next in other modules.
    """
    if isinstance(module, nn.Conv2d) and _is_batch_norm(getattr(module, "norm", None)):
        yield module, module, "norm"
    children = [
        (name, child)
        for name, child in module.named_children()
        if not isinstance(child, _PASSED_OVER)
    ]
    for (_, before), (name, norm) in itertools.pairwise(children):
        while isinstance(before, nn.Sequential) and len(before):
            before = before[-1]
        if isinstance(before, nn.Conv2d) and _is_batch_norm(norm):
            yield before, module, name


def _is_batch_norm(module: object) -> bool:
    is_batch_norm = isinstance(module, nn.BatchNorm2d) or type(module).__name__ in _FROZEN
    return is_batch_norm and getattr(module, "running_mean", None) is not None


def _fold(conv: nn.Conv2d, parent: nn.Module, name: str) -> None:
    norm = getattr(parent, name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    # timm's batch norms apply the activation too.
    setattr(parent, name, getattr(norm, "act", None) or nn.Identity())


def _is_close(value: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((value - expected).norm() <= _TOLERANCE * expected.norm())
