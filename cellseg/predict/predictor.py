"""The network at work: an image in, `Predictions` out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from fvcore.common.config import CfgNode
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.learn.checkpoint import load_weights
from cellseg.learn.config import building, check_network
from cellseg.network import Finder, Found, build_network
from cellseg.predict.masks import encode_masks
from cellseg.predictions import Predictions
from cellseg.view import View, shortest_edge, to_tensor


class Predictor:
    """Predicts with a trained network, one image at a time."""

    def __init__(self, network: torch.nn.Module, cfg: CfgNode) -> None:
        """
        Parameters
        ----------
        network
            The network.
        cfg
            Its config, whose `INPUT` says how much an image is zoomed.
        """
        self.network = network
        self.cfg = cfg

    @classmethod
    def load(cls, cfg: CfgNode, weights: Path) -> Predictor:
        """Build the network of a run's config and load its weights.

        Raises
        ------
        InputError
            If the config gives no Mask R-CNN, or the file does not hold its weights.
        """
        check_network(cfg)
        with building("the run's config"):
            network = build_network(cfg)
        load_weights(network, weights)
        return cls(network, cfg)

    def predict(self, image: NDArray[np.uint8]) -> Predictions:
        """Find the cells of an image.

        Parameters
        ----------
        image
            `(H, W, 3)` uint8, RGB.

        Raises
        ------
        InputError
            If the GPU's memory is too small for it.
        """
        height, width = image.shape[:2]
        view = self._whole(height, width)
        was_training = self.network.training
        self.network.eval()
        try:
            found = self._find(view, image)
        except torch.OutOfMemoryError:
            raise InputError(
                f"an image of {height} x {width} pixels, enlarged to {view.shape[0]} x "
                f"{view.shape[1]}, is too large for the GPU's memory; predict with --device cpu, "
                "or enlarge less with INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"
            ) from None
        finally:
            self.network.train(was_training)
        boxes = found.boxes.clamp(torch.zeros(4), torch.tensor([width, height] * 2))
        found = found[(boxes[:, 2:] > boxes[:, :2]).all(1)]
        found = found[torch.argsort(found.scores, descending=True, stable=True)]
        return Predictions(
            size=(height, width),
            boxes=found.boxes.numpy(),
            scores=found.scores.numpy(),
            classes=found.classes.numpy(),
            masks=encode_masks(found.masks, found.boxes, (height, width)),
        )

    def _whole(self, height: int, width: int) -> View:
        """Give the view of a whole image."""
        inputs = self.cfg.INPUT
        if inputs.ZOOM:
            size = max(1, round(height * inputs.ZOOM)), max(1, round(width * inputs.ZOOM))
        else:
            size = shortest_edge((height, width), inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)
        return View((0, 0, width, height), size)

    def _find(self, view: View, image: NDArray[np.uint8]) -> Found:
        """Find the cells in a view; they come back in the image's pixels, on the CPU."""
        finder: Finder = self.network  # type: ignore[assignment]
        found = finder.find([to_tensor(view.apply_image(image), self.cfg.INPUT.FORMAT)])[0]
        return Found(
            view.invert_boxes(found.boxes.float().cpu()),
            found.scores.float().cpu(),
            found.classes.cpu(),
            view.invert_grids(found.masks.float().cpu()),
        )
