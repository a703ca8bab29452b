"""The views in which a network looks at a place: scales times symmetries."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from cellseg.predict.tiles import Tile
from cellseg.view import View, shortest_edge

# Flips and quarter turns: (flip_x, flip_y, transpose). So many of the first ones as
# TEST.SYMMETRIES says: none, left-right, both ways, and all eight of the square.
SYMMETRIES = (
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
        `TEST.SYMMETRIES`.
    """
    inputs = cfg.INPUT
    zoom_y = zoom_x = inputs.ZOOM
    if not inputs.ZOOM:
        zoomed = shortest_edge(size, inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)
        zoom_y, zoom_x = zoomed[0] / size[0], zoomed[1] / size[1]
    height, width = tile.size
    return [
        View(
            (0, 0, width, height),
            (max(1, round(height * zoom_y * scale)), max(1, round(width * zoom_x * scale))),
            *symmetry,
        )
        for scale in cfg.TEST.SCALES
        for symmetry in SYMMETRIES[: cfg.TEST.SYMMETRIES]
    ]
