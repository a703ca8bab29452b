"""TTA views of a tile: scales times flips and rotations."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from cellseg.predict.tiles import Tile
from cellseg.read.resolution import magnification
from cellseg.view import View, resize_shortest_edge

# Flips and quarter turns: (flip_x, flip_y, transpose). TEST.SYMMETRIES takes the first 1 (none),
# 2 (left-right), 4 (both flips) or all 8.
ORIENTATIONS = (
    (False, False, False),
    (True, False, False),
    (False, True, False),
    (True, True, False),
    (False, False, True),
    (True, False, True),
    (False, True, True),
    (True, True, True),
)


def plan_views(
    tile: Tile, size: tuple[int, int], cfg: CfgNode, mpp: float | None = None
) -> list[View]:
    """Return the views of a tile, in pixels of the tile.

    Parameters
    ----------
    tile
        Tile.
    size
        Height and width of the image in pixels, which determine the scale where the config
        has no fixed one.
    cfg
        Config with `INPUT.ZOOM`, or `INPUT.MIN_SIZE_TEST` and `MAX_SIZE_TEST`; `TEST.SCALES`
        and `TEST.SYMMETRIES`; `DATA.MPP`.
    mpp
        Micrometres per pixel of the image, if known. A fixed scale is multiplied by
        `magnification`.
    """
    inputs = cfg.INPUT
    if inputs.ZOOM or not inputs.MIN_SIZE_TEST:
        factor = magnification(mpp, cfg.DATA.MPP)
        scale_y = scale_x = (inputs.ZOOM or 1.0) * factor
    else:  # whatever the resolution
        factor = 1.0
        resized = resize_shortest_edge(size, inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)
        scale_y, scale_x = resized[0] / size[0], resized[1] / size[1]
    height, width = tile.size
    views = []
    for tta_scale in cfg.TEST.SCALES:
        view_height = max(1, round(height * scale_y * tta_scale))
        view_size = view_height, max(1, round(width * scale_x * tta_scale))
        views += [
            View((0, 0, width, height), view_size, *orientation, sharp=factor > 1)
            for orientation in ORIENTATIONS[: cfg.TEST.SYMMETRIES]
        ]
    return views
