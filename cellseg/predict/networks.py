"""Check the networks of runs before they are loaded and their detections fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.messages import warn
from cellseg.runs import CONFIG, RECORD


def check_networks(weights: Sequence[Path], cfgs: Sequence[CfgNode], n_classes: int) -> None:
    """Raise InputError if a run's network has other than `n_classes`, those of its record.

    Warns of scores that can't be compared, and of tiles that cut many cells.
    """
    for path, cfg in zip(weights, cfgs, strict=True):
        if (n := cfg.MODEL.ROI_HEADS.NUM_CLASSES) != n_classes:
            raise InputError(
                f"{display_path(path.parent / RECORD)}: {n_classes} classes, but the network of "
                f"{CONFIG} has {n}; restore the run's files, or train again"
            )
    for key in ("OBJECTNESS_POWER", "FOREGROUND_POWER"):
        powers = {cfg.MODEL.ROI_HEADS[key] for cfg in cfgs}
        if len(powers) > 1:
            warn(
                f"the runs' scores have different scales (MODEL.ROI_HEADS.{key} "
                f"{' and '.join(f'{power:g}' for power in sorted(powers))}), which their mean "
                f"favours; end the command with MODEL.ROI_HEADS.{key} 0"
            )
    longest = max(cfg.DATA.LONGEST_CELL for cfg in cfgs)
    if 0 < cfgs[0].TEST.TILE < 2 * longest:
        warn(
            f"tiles of {cfgs[0].TEST.TILE} px are small for cells of up to {longest:.0f} px, as in "
            f"training: many are cut; use --tile {4 * math.ceil(longest)} or more"
        )
