"""Mask R-CNN in two engines: Detectron2 and torchvision."""

import importlib

from cellseg.compiler import without_compiler

with without_compiler():
    importlib.import_module("torchvision.ops")

from cellseg.network.engines import (
    ZOO,
    Detections,
    build_network,
    check_network,
    enlarge_boxes,
    get_engine,
)

__all__ = ["ZOO", "Detections", "build_network", "check_network", "enlarge_boxes", "get_engine"]
