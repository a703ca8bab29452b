"""Warnings of images and weights with which cells are missed."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.messages import listed, plural, warn
from cellseg.read.brightness import DARK_TEXT, count_bright, is_dark


class BrightnessCheck:
    """Finds the images whose tiles are all dark.

    Attributes
    ----------
    counts
        The number of pixels, and of bright ones, of the tiles of each image.
    """

    def __init__(self) -> None:
        self.counts: dict[Path, tuple[int, int]] = {}

    def add(self, image: Path, tile: NDArray[np.uint8]) -> None:
        """Add the pixels of a tile of an image."""
        self.add_counts({image: (tile.shape[0] * tile.shape[1], count_bright(tile))})

    def add_counts(self, counts: Mapping[Path, tuple[int, int]]) -> None:
        """Add the counts of other tiles."""
        for image, (n_pixels, n_bright) in counts.items():
            before = self.counts.get(image, (0, 0))
            self.counts[image] = before[0] + n_pixels, before[1] + n_bright

    def warn(self) -> None:
        """Warn if there are dark images."""
        dark = [image for image, (n, n_bright) in self.counts.items() if is_dark(n_bright, n)]
        if dark:
            warn(
                f"{DARK_TEXT}: {len(dark)}: {listed(dark)}; scale the values as in the training "
                "images"
            )


_PROPOSALS = re.compile(r"rpn[._]head$")
# Of boxes (of a cascade, one for each stage) and masks, in both engines.
_HEADS = re.compile(r"(box_predictor(\.\d+)?|mask_predictor|mask_head\.predictor)$")


def _tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors in nested lists and tuples."""
    if isinstance(values, torch.Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)]


@contextlib.contextmanager
def warn_of_values_not_finite(networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Warn at the end of the block if heads of networks gave NaN or infinite values.

    Detections with these are dropped, so cells would be missing without a word.
    """
    batches: list[list[torch.Tensor]] = []  # whether values are finite, for each call of a head
    of_thread = threading.local()

    def begin(_module: torch.nn.Module, _inputs: Any) -> None:
        of_thread.batch = []
        batches.append(of_thread.batch)

    def check(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        finite = [value.isfinite().all() for value in _tensors(outputs)]
        of_thread.batch.append(torch.stack(finite).all())

    hooks = []
    for name, module in (named for network in networks for named in network.named_modules()):
        if _PROPOSALS.search(name):  # once for each batch, and first
            hooks.append(module.register_forward_pre_hook(begin))
        if _PROPOSALS.search(name) or _HEADS.search(name):
            hooks.append(module.register_forward_hook(check))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bad = sum(not torch.stack(finite).all() for finite in batches if finite)
    if bad:
        n = plural(len(batches), "batch", "batches")
        warn(
            f"values of the network are not finite (NaN) in {bad} of {n}, so cells are missing "
            "there: the weights are damaged, or too large for --amp; choose others with "
            "--weight_name"
        )
