"""Warnings of images and weights with which cells are missed."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def warn_of_values_not_finite(networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Warn at the end of the block if networks gave proposals of NaN or infinite scores.

    Detections from these are dropped, so cells would be missing without a word.
    """
    finite: list[torch.Tensor] = []

    def check(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        scores, boxes = outputs  # each a list of tensors, one for each level of the pyramid
        finite.append(torch.stack([value.isfinite().all() for value in (*scores, *boxes)]).all())

    hooks = [
        module.register_forward_hook(check)
        for network in networks
        for name, module in network.named_modules()
        if name.endswith(("rpn.head", "rpn_head"))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bad = int((~torch.stack(finite)).sum()) if finite else 0
    if bad:
        n = plural(len(finite), "batch", "batches")
        warn(
            f"values of the network are not finite (NaN) in {bad} of {n}, so cells are missing "
            "there: the weights are damaged, or too large for --amp; choose others with "
            "--weight_name"
        )
