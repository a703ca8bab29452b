"""Going on from the weights of a former run, with its classes, scale and validation images."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from cellseg import runs
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageCells
from cellseg.learn.samples import TrainingData
from cellseg.messages import listed, plural, warn
from cellseg.read.classes import advise_class_names


def find_former_run(weights: str | None) -> Path | None:
    """Return the run that `--weights` names, by its folder or a file in it; None for others."""
    if not weights:
        return None
    path = Path(weights)
    folders = (path, path.parent) if path.is_file() or path.is_dir() else ()
    return next((folder for folder in folders if (folder / runs.CONFIG).is_file()), None)


def keep_former_values(cfg: CfgNode, run: Path) -> None:
    """Fix the scale, the anchors and the validation images in the config of a former run.

    Raises InputError if the run has no valid record.
    """
    cfg.INPUT.ZOOM_FROM_DATA = cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA = False
    if not cfg.INPUT.ZOOM:  # then training doesn't scale images to a resolution
        cfg.DATA.MPP = 0.0
    cfg.DATA.CONTINUES = str(run.absolute())
    held_out = list(runs.read_record(run)["held_out"])
    if held_out:
        cfg.DATA.VAL_IMAGES = held_out
        cfg.DATA.VAL_FRACTION = 0.0
        cfg.DATA.FOLDS = cfg.DATA.FOLD = 0


def check_former_run(cfg: CfgNode, data: TrainingData) -> None:
    """Raise InputError if a new run has other classes than the run that it continues."""
    run = Path(cfg.DATA.CONTINUES)
    record = runs.read_record(run)
    former, names = _class_names(record, data)
    if names != former:
        raise InputError(
            f"--weights {display_path(run)}: its classes are {', '.join(former)}, those of "
            f"{cfg.DATA.ANNOTATIONS} {', '.join(names)}; annotate with "
            f"{advise_class_names(former, ()).partition(': ')[2]}, or begin a new run from its "
            f"weights with --model {cfg.RECIPE}"
        )


def warn_of_seen_images(cfg: CfgNode, validation: Sequence[ImageCells]) -> None:
    """Warn of validation images that the run of the initial weights was trained on."""
    if not (run := find_former_run(cfg.MODEL.WEIGHTS)):
        return
    with contextlib.suppress(InputError):  # no valid record
        trained = {*map(str, runs.read_record(run).get("train") or ())}
        if seen := {sample.name for sample in validation} & trained:
            warn(
                f"{display_path(run)} was trained on {len(seen)} of the "
                f"{plural(len(validation), 'validation image')} (by name), so AP50 is too high"
                f"{' before' if cfg.DATA.CONTINUES else ''}: {listed(sorted(seen))}"
            )


def warn_of_other_classes(cfg: CfgNode, data: TrainingData) -> None:
    """Warn of initial weights from a run with as many classes, but of other names or order."""
    if not (run := find_former_run(cfg.MODEL.WEIGHTS)):
        return
    with contextlib.suppress(InputError):  # no valid record
        former, names = _class_names(runs.read_record(run), data)
        if len(former) == len(names) and former != names:
            warn(
                f"--weights {cfg.MODEL.WEIGHTS}: its classes are {', '.join(former)}, now they are "
                f"{', '.join(names)}; each begins with the weights of the class in its place"
            )


def _class_names(record: dict[str, Any], data: TrainingData) -> tuple[list[str], list[str]]:
    """Return the names of the classes of a run's record, and of the data."""
    former, names = ([c["name"] for c in of] for of in (record["categories"], data.categories))
    return former, names
