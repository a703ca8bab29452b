"""The views in which a network looks at a place: scales times flips and rotations."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from cellseg.predict.tiles import Tile
from cellseg.view import View, resize_shortest_edge

# Flips and quarter turns: (flip_x, flip_y, transpose). So many of the first ones as
# TEST.SYMMETRIES says: none, left-right, both ways, and all eight of the square.
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


def plan_views(tile: Tile, size: tuple[int, int], cfg: CfgNode) -> list[View]:
    """List the views of a tile, in the tile's own pixels.

    Parameters
    ----------
    tile
        The tile.
    size
        Height and width of the image in pixels, which decide the zoom where the config
        has no fixed one.
    cfg
        `INPUT.ZOOM`, or `INPUT.MIN_SIZE_TEST` and `MAX_SIZE_TEST`; `TEST.SCALES` and
        `TEST.ORIENTATIONS`.
    """
    inputs = cfg.INPUT
    scale_y = scale_x = inputs.ZOOM
    if not inputs.ZOOM:
        resized = resize_shortest_edge(size, inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)
        scale_y, scale_x = resized[0] / size[0], resized[1] / size[1]
    height, width = tile.size
    return [
        View(
            (0, 0, width, height),
            (
                max(1, round(height * scale_y * tta_scale)),
                max(1, round(width * scale_x * tta_scale)),
            ),
            *orientation,
        )
        for tta_scale in cfg.TEST.SCALES
        for orientation in ORIENTATIONS[: cfg.TEST.SYMMETRIES]
    ]
