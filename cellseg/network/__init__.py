"""Mask R-CNN in two engines: Detectron2 and torchvision."""

from cellseg.network.engines import (
    ZOO,
    Detections,
    build_network,
    check_network,
    enlarge_boxes,
    get_engine,
)

__all__ = ["ZOO", "Detections", "build_network", "check_network", "enlarge_boxes", "get_engine"]
