"""Warnings of images and weights with which cells are missed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellseg.messages import listed, plural, warn
from cellseg.read.brightness import DARK_TEXT, count_bright, is_dark


class BrightnessCheck:
    """Finds the images whose tiles are all dark; those of an image follow each other."""

    def __init__(self) -> None:
        self._dark: list[Path] = []
        self._image: Path | None = None
        self._n_pixels = self._n_bright = 0

    def add(self, image: Path, tile: NDArray[np.uint8]) -> None:
        """Add the pixels of a tile of an image."""
        if image != self._image:
            self._finish_image()
            self._image, self._n_pixels, self._n_bright = image, 0, 0
        self._n_pixels += tile.shape[0] * tile.shape[1]
        self._n_bright += count_bright(tile)

    def _finish_image(self) -> None:
        if self._image and is_dark(self._n_bright, self._n_pixels):
            self._dark.append(self._image)

    def warn(self) -> None:
        """Warn if there are dark images."""
        self._finish_image()
        if self._dark:
            warn(
                f"{DARK_TEXT}: {len(self._dark)}: {listed(self._dark)}; scale the values as in the "
                "training images"
            )


@contextlib.contextmanager
def warn_of_values_not_finite(networks: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Warn at the end of the block if networks gave proposals of NaN or infinite scores.

    Detections from these are dropped, so cells would be missing without a word.
    """
    finite: list[torch.Tensor] = []

    def look(_module: torch.nn.Module, _inputs: Any, outputs: Any) -> None:
        scores, boxes = outputs  # each a list of tensors, one for each level of the pyramid
        finite.append(torch.stack([value.isfinite().all() for value in (*scores, *boxes)]).all())

    hooks = [
        module.register_forward_hook(look)
        for network in networks
        for name, module in network.named_modules()
        if name.endswith(("rpn.head", "rpn_head"))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    bad = sum(not value for value in finite)
    if bad:
        n = plural(len(finite), "batch", "batches")
        warn(
            f"values of the network are not finite (NaN) in {bad} of {n}, so cells are missing "
            "there: the weights are damaged, or too large for --amp; choose others with "
            "--weight_name"
        )
