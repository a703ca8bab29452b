"""The network at work: an image in, `Predictions` out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.learn.checkpoint import RunCheckpointer
from cellseg.learn.config import building, check_network
from cellseg.learn.mapper import ResizeShortestEdge, to_tensor
from cellseg.predict.masks import encode_masks
from cellseg.predictions import Predictions


class Detectron2Engine:
    """Predicts with a Detectron2 network, one image at a time."""

    def __init__(
        self, model: GeneralizedRCNN, min_size: int, max_size: int, image_format: str
    ) -> None:
        """
        Parameters
        ----------
        model
            The network.
        min_size, max_size
            The image is zoomed until its short side has `min_size` pixels, or its long
            side `max_size` if that comes first; 0 leaves it as it is.
        image_format
            "BGR" or "RGB", the order of the channels that the network takes.
        """
        self.model = model
        self.resize = ResizeShortestEdge([min_size, min_size], max_size)
        self.image_format = image_format

    @classmethod
    def of_model(cls, model: GeneralizedRCNN, cfg: CfgNode) -> Detectron2Engine:
        """Make an engine of a network that is there already, as in validation."""
        return cls(model, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.FORMAT)

    @classmethod
    def load(cls, cfg: CfgNode, weights: Path) -> Detectron2Engine:
        """Build the network of a run's config and load its weights.

        Raises
        ------
        InputError
            If the config gives no Mask R-CNN, or the file does not hold its weights.
        """
        check_network(cfg)
        with building("the run's config"):
            model = build_model(cfg)
        RunCheckpointer(model).load(str(weights))
        return cls.of_model(model, cfg)

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
        zoomed = self.resize.get_transform(image).apply_image(image)
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                inputs = [{"image": to_tensor(zoomed, self.image_format)}]
                found = self.model.inference(inputs, do_postprocess=False)[0]
        except torch.OutOfMemoryError:
            raise InputError(
                f"an image of {height} x {width} pixels, enlarged to {zoomed.shape[0]} x "
                f"{zoomed.shape[1]}, is too large for the GPU's memory; predict with --device cpu, "
                "or enlarge less with INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"
            ) from None
        finally:
            self.model.train(was_training)
        boxes = found.pred_boxes
        boxes.scale(width / found.image_size[1], height / found.image_size[0])
        boxes.clip((height, width))
        found = found[boxes.nonempty()]
        order = torch.argsort(found.scores, descending=True, stable=True)
        found = found[order].to("cpu")
        return Predictions(
            size=(height, width),
            boxes=found.pred_boxes.tensor.numpy(),
            scores=found.scores.numpy(),
            classes=found.pred_classes.numpy(),
            masks=encode_masks(found.pred_masks[:, 0], found.pred_boxes.tensor, (height, width)),
        )
