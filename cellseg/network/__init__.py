"""The networks, in two engines: Detectron2's Mask R-CNN and torchvision's."""

from cellseg.network.engines import ZOO, Detections, build_network, check_network, get_engine

__all__ = ["ZOO", "Detections", "build_network", "check_network", "get_engine"]
