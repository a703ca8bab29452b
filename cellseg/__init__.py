"""Segmentation and classification of cells in H&E microscope images with Mask R-CNN.

    from cellseg import Predictor

    predictor = Predictor.from_run("tensorboard/small_fpn/20250401-120000")
    cells = predictor.predict("image.tif").distinct(score_threshold=0.5)

Data flow: `read`, `network`, `learn`, `predict`, `score`, `write`, `look`.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # without the import of typing: each command begins with this package

if TYPE_CHECKING:
    from cellseg.errors import InputError
    from cellseg.predict.predictor import Predictor
    from cellseg.predictions import Predictions
    from cellseg.read.coco import load_coco as load_annotations

__all__ = ["InputError", "Predictions", "Predictor", "__version__", "load_annotations"]
__version__ = "0.1.0"

# Name -> module and attribute, imported at first use: most of the package needs no torch.
_EXPORTS = {
    "InputError": ("cellseg.errors", "InputError"),
    "Predictions": ("cellseg.predictions", "Predictions"),
    "Predictor": ("cellseg.predict.predictor", "Predictor"),
    "load_annotations": ("cellseg.read.coco", "load_coco"),
}

if not TYPE_CHECKING:  # else type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import an exported name."""
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, attribute = _EXPORTS[name]
        return getattr(importlib.import_module(module), attribute)

    def __dir__() -> list[str]:
        return __all__
