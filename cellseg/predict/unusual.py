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

DARK = 64
"""Of 255; stained tissue has a bright background, and crops without any are brighter too."""


class BrightnessCheck:
    """Finds the images whose tiles are all dark; those of an image follow each other."""

    def __init__(self) -> None:
        self._dark: list[Path] = []
        self._image: Path | None = None
        self._brightest = 0

    def add(self, image: Path, tile: NDArray[np.uint8]) -> None:
        """Add the pixels of a tile of an image."""
        if image != self._image:
            self._finish_image()
            self._image, self._brightest = image, 0
        if self._brightest <= DARK:
            self._brightest = max(self._brightest, int(tile.max()))

    def _finish_image(self) -> None:
        if self._image and self._brightest <= DARK:
            self._dark.append(self._image)

    def warn(self) -> None:
        """Warn if there are dark images."""
        self._finish_image()
        if self._dark:
            warn(
                f"{plural(len(self._dark), 'image')} with no pixel above {DARK} of 255, almost "
                f"black or not of the full range: {listed(self._dark)}; scale the values as in "
                "the training images"
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
