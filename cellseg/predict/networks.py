"""The networks of runs, and their checks before they are loaded and their detections fused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.messages import warn
from cellseg.runs import CONFIG, RECORD


@dataclass(frozen=True)
class Networks:
    """Trained networks of the same classes, whose detections are fused.

    Attributes
    ----------
    weights, cfgs
        Weights file, in the folder of its run, and config of each.
    categories
        The K classes, as in a COCO file.
    """

    weights: Sequence[Path]
    cfgs: Sequence[CfgNode]
    categories: Sequence[dict[str, Any]]

    @property
    def runs(self) -> list[Path]:
        """The run folder of each."""
        return [path.parent for path in self.weights]


def check_networks(networks: Networks) -> None:
    """Raise InputError if a run's network has other classes than its record.

    Warns of scores that can't be compared, and of tiles that cut many cells.
    """
    cfgs, n_classes = networks.cfgs, len(networks.categories)
    for path, cfg in zip(networks.weights, cfgs, strict=True):
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
