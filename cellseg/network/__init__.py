"""The networks, in two engines: Detectron2's Mask R-CNN and torchvision's."""

from cellseg.network.engines import ZOO, Found, build_network, check_network, engine

__all__ = ["ZOO", "Found", "build_network", "check_network", "engine"]
