"""The views in which a network looks at a place: scales times symmetries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from cellseg.errors import InputError
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


_MOST_PIXELS = 100_000  # of a view's sides


def check_looks(cfg: CfgNode) -> None:
    """Check the keys that say how a network looks at an image.

    Raises
    ------
    InputError
        If one makes no sense.
    """
    if cfg.TEST.SYMMETRIES not in (1, 2, 4, 8):
        raise InputError(
            f"TEST.SYMMETRIES {cfg.TEST.SYMMETRIES}: 1 (none), 2 (flipped left to right), 4 (both "
            "ways) or 8 (with quarter turns) is expected"
        )
    if cfg.TEST.BATCH < 1:
        raise InputError(f"--batch (TEST.BATCH) {cfg.TEST.BATCH}: 1 or more is expected")
    for key in ("TILE", "OVERLAP"):
        if cfg.TEST[key] < 0:
            raise InputError(
                f"TEST.{key} {cfg.TEST[key]}: 1 or more is expected, or 0 to choose it"
            )
    box_head = cfg.MODEL.ROI_HEADS
    for name, value, least, most in (
        ("INPUT.ZOOM", cfg.INPUT.ZOOM, 0, 100),
        ("INPUT.MIN_SIZE_TEST", cfg.INPUT.MIN_SIZE_TEST, 0, _MOST_PIXELS),
        ("INPUT.MAX_SIZE_TEST", cfg.INPUT.MAX_SIZE_TEST, 1, _MOST_PIXELS),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", box_head.SCORE_THRESH_TEST, 0, 1),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", box_head.NMS_THRESH_TEST, 0, 1),
        ("TEST.DETECTIONS_PER_IMAGE", cfg.TEST.DETECTIONS_PER_IMAGE, 1, math.inf),
    ):
        if not least <= value <= most:
            expected = (
                f"{least} or more" if most == math.inf else f"a number from {least} to {most}"
            )
            raise InputError(f"{name} {value}: {expected} is expected")
    if not 0 < cfg.TEST.MASK_IOU <= 1:
        raise InputError(
            f"TEST.MASK_IOU {cfg.TEST.MASK_IOU}: a number above 0 and up to 1 is expected"
        )
    scales: Sequence[float] = cfg.TEST.SCALES
    if not len(scales) or not all(isinstance(s, int | float) and 0.1 <= s <= 10 for s in scales):
        raise InputError(
            f"TEST.SCALES {tuple(scales)}: numbers from 0.1 to 10, times the run's own zoom, are "
            "expected"
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
