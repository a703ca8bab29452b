"""Depthwise convolutions, compared with torch's and timm's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cellseg.compiler import without_compiler
from cellseg.network.depthwise import DepthwiseConv2d, replace_depthwise


@pytest.fixture(scope="module")
def layers():
    """timm's layers, imported for these tests only."""
    with without_compiler():
        return pytest.importorskip("timm.layers")


def gradients(conv, x, upstream):
    x = x.clone().requires_grad_()
    conv.zero_grad()
    y = conv(x)
    y.backward(upstream[..., : y.shape[2], : y.shape[3]].to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in conv.parameters())]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 3), st.integers(7, 13), st.integers(7, 13)),
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    same=st.booleans(),
    bias=st.booleans(),
    stored=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_values_and_gradients_are_torchs(layers, seed, size, kernel, stride, same, bias, stored):
    torch.manual_seed(seed)
    kind = layers.Conv2dSame if same else nn.Conv2d
    padding = 0 if same else (kernel[0] // 2, kernel[1] // 2)
    theirs = kind(6, 6, kernel, stride, padding, groups=6, bias=bias)
    ours = copy.deepcopy(theirs)
    ours = DepthwiseConv2d(ours, same)
    batch, height, width = size
    x = torch.randn(batch, 6, height, width).contiguous(memory_format=stored)
    upstream = torch.randn(batch, 6, 30, 30)
    for a, b in zip(gradients(ours, x, upstream), gradients(theirs, x, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1)])
def test_mixed_precision(layers, kernel, stride):
    torch.manual_seed(0)
    theirs = layers.Conv2dSame(8, 8, kernel, stride, groups=8, bias=False)
    ours = DepthwiseConv2d(copy.deepcopy(theirs), True)
    x, upstream = torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = gradients(ours, x, upstream)
    exact = gradients(theirs, x, upstream)
    assert low[0].dtype == torch.bfloat16
    assert low[1].dtype == low[2].dtype == torch.float32
    for a, b in zip(low, exact, strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


def test_only_depthwise_convolutions_are_replaced(layers):
    inner = nn.Sequential(layers.Conv2dSame(8, 8, 5, groups=8))
    body = nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4),
        inner,
        nn.Conv2d(8, 8, 3, groups=8, dilation=2),
    )  # fmt: skip
    names, x = list(body.state_dict()), torch.randn(1, 4, 16, 16)
    expected = body(x)
    replace_depthwise(body, layers.Conv2dSame)
    replaced = [isinstance(module, DepthwiseConv2d) for module in body]
    assert replaced == [False, True, False, False, False]
    assert isinstance(inner[0], DepthwiseConv2d)
    assert list(body.state_dict()) == names
    torch.testing.assert_close(body(x), expected)
    for copied in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))):
        torch.testing.assert_close(copied(x), expected)


def test_frozen_weights_get_no_gradient():
    conv = DepthwiseConv2d(nn.Conv2d(4, 4, 5, padding=2, groups=4), False)
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert x.grad is not None
    assert conv.bias is not None
    assert conv.bias.grad is not None
