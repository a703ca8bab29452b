"""Depthwise convolutions whose gradients take a fraction of the time on a CPU.

In oneDNN, which torch uses, the gradients of bfloat16 inputs with a stride, and of kernels larger
than 3 x 3, are 5 to 60 times as slow as others. Here the former are computed in float32, the latter
as gradients of 3 x 3 kernels that together cover the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_BLOCK = 3  # side of the kernels with fast gradients


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with the parameters and the output of another one.

    Parameters
    ----------
    conv
        The convolution; its parameters are shared.
    same
        Whether the input is padded to an output of 1 / stride of its size, as in TensorFlow. The
        padding of `conv` is used otherwise.
    """

    def __init__(self, conv: nn.Conv2d, same: bool) -> None:
        options: dict[str, Any] = {
            name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "groups")
        }
        has_bias = conv.bias is not None
        super().__init__(
            conv.in_channels, conv.out_channels, bias=has_bias, device="meta", **options
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.same = same

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.same:
            x = functional.pad(x, self._same_padding(x))
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        inputs = (x, self.weight.to(x.dtype), bias, self.stride, self.padding)
        result: torch.Tensor = _Depthwise.apply(*inputs)  # type: ignore[no-untyped-call]
        return result

    def _same_padding(self, x: torch.Tensor) -> list[int]:
        """Return the padding at the left, right, top and bottom; the larger half comes last."""
        padding = []
        for axis in (1, 0):
            length, kernel, stride = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            padding += [total // 2, total - total // 2]
        return padding


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            exact = torch.float32 if max(ctx.stride) > 1 else x.dtype
            of_x, _ = _gradients(
                gradient.to(exact), x.to(exact), weight.to(exact), ctx.stride, ctx.padding, True
            )
            of_x = of_x.to(x.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_x, of_weight, of_bias, None, None


def _weight_gradient(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> torch.Tensor:
    """Return the gradient of the kernels, in blocks of at most 3 x 3."""
    rows, columns = (_block_starts(length) for length in weight.shape[2:])
    if len(rows) == len(columns) == 1:
        return _gradients(gradient, x, weight, stride, padding, False)[1]
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    result = torch.empty_like(weight)
    for top in rows:
        for left in columns:
            block = (..., slice(top, top + _BLOCK), slice(left, left + _BLOCK))
            kernel = weight[block].contiguous()
            height, width = (
                (n - 1) * step + side
                for n, step, side in zip(gradient.shape[2:], stride, kernel.shape[2:], strict=True)
            )
            seen = x[..., top : top + height, left : left + width]
            result[block] = _gradients(gradient, seen, kernel, stride, (0, 0), False)[1]
    return result


def _block_starts(length: int) -> list[int]:
    """Return the starts of blocks that cover a side of a kernel; the last two may overlap."""
    last = max(length - _BLOCK, 0)
    return sorted({*range(0, last, _BLOCK), last})


def _gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    of_input: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return torch's gradients of the input, or of the kernels; the other one is undefined."""
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = (
        torch.ops.aten.convolution_backward(
            gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight),
            (of_input, not of_input, False),
        )
    )  # fmt: skip
    return gradients[:2]


def replace_depthwise(body: nn.Module, same_type: type[nn.Conv2d]) -> None:
    """Replace the depthwise convolutions of a network.

    `same_type` is the type of those whose input is padded as in TensorFlow. Other types than this
    and torch's own stay.
    """
    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and _is_replaceable(child, same_type):
                setattr(module, name, DepthwiseConv2d(child, isinstance(child, same_type)))


def _is_replaceable(conv: nn.Conv2d, same_type: type[nn.Conv2d]) -> bool:
    return (
        type(conv) in (nn.Conv2d, same_type)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )
