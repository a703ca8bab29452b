"""Cross-validation: one run for each fold, in `fold1`, `fold2` … of one folder, and a summary."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from scipy import stats

from cellseg import runs
from cellseg.config import load_config
from cellseg.errors import InputError
from cellseg.files import display_path, write_json
from cellseg.learn import session
from cellseg.learn.continued import warn_of_other_classes, warn_of_seen_images
from cellseg.learn.samples import TrainingData, load_training_data
from cellseg.learn.scale import median_resolution
from cellseg.learn.session import Launch, Session
from cellseg.learn.validation import choose_max_detections, describe_max_detections

_SCORE = "validation/AP50"


@dataclass(frozen=True)
class Estimate:
    """Mean over folds, with its 95 % confidence interval.

    Attributes
    ----------
    mean
        Mean of the folds that have a value.
    low, high
        Bounds of the interval; None with fewer than two values.
    folds
        Number of folds that have a value.
    """

    mean: float
    low: float | None
    high: float | None
    folds: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f}  [{self.low:.3f}, {self.high:.3f}]"


def begin(root: Path, cfg: CfgNode, launch: Launch) -> int:
    """Train a new run for each fold. Return the exit code."""
    folder = runs.new_run(root.absolute(), cfg.RECIPE)
    try:
        return _train_folds(folder, cfg, {}, launch)
    except InputError:
        if not list(folder.glob("*/*.pth")):  # nothing to resume
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(folder: Path, cfgs: dict[Path, CfgNode], launch: Launch) -> int:
    """Resume the runs of a cross-validation, by their configs. Return the exit code.

    Folds without a run are trained from the start.
    """
    if launch.machines > 1:
        raise InputError(
            f"{display_path(folder)}: a cross-validation can be resumed on one machine only; leave "
            "--num_machines out"
        )
    cfg = next(iter(cfgs.values())).clone()
    return _train_folds(folder, cfg, cfgs, launch)


def _train_folds(folder: Path, cfg: CfgNode, resumed: dict[Path, CfgNode], launch: Launch) -> int:
    """Train the unfinished runs of all folds, and write the summary of their scores."""
    data = load_training_data(cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS)
    # All are prepared before the first is trained: they use the same data, and --resume finds them.
    existing = {run: session.resume(run, of_fold, launch, data) for run, of_fold in resumed.items()}
    own = [f.cfg.DATA.MPP == median_resolution(f.data.train) for f in existing.values()]
    if own and all(own):  # not given, so that a further fold has its own, too
        cfg.DATA.MPP = 0.0
    sessions: dict[Path, Session] = {}
    for number in range(1, cfg.DATA.FOLDS + 1):
        run = folder / f"fold{number}"
        sessions[run] = existing.get(run) or _begin_fold(run, number, cfg, data, launch)
    to_train = {run: fold for run, fold in sessions.items() if not _is_done(run, fold.cfg)}
    for run in to_train:
        session.check_checkpoint(run)
    if not resumed:
        warn_of_other_classes(cfg, data)
        held_out = [sample for fold in sessions.values() for sample in fold.data.validation]
        warn_of_seen_images(cfg, held_out)
    for number, (run, fold) in enumerate(sessions.items(), 1):
        finished = "" if run in to_train else ": finished"
        print(f"fold {number} of {len(sessions)}{finished}")
        if finished:
            continue
        code = session.train_in_processes(fold, launch)
        if code:
            return code
    names = [category["name"] for category in data.categories]
    summary = {
        "max_detections": choose_max_detections(data, all_images=True),
        **summarise_folds([read_last_scores(run) for run in sessions], names),
    }
    write_json(folder / runs.SUMMARY, summary, indent=1)
    print(f"{as_text(summary)}\nwritten to {display_path(folder / runs.SUMMARY)}")
    return 0


def _is_done(run: Path, cfg: CfgNode) -> bool:
    """Return whether a fold is as long as planned, and its checkpoint was deleted."""
    if not (run / runs.FINAL).is_file() or (run / runs.LAST).is_file():
        return False
    return bool(load_config(run / runs.CONFIG).SOLVER.MAX_ITER >= cfg.SOLVER.MAX_ITER)


def _begin_fold(
    run: Path, number: int, cfg: CfgNode, data: TrainingData, launch: Launch
) -> Session:
    """Create the run of one fold; `data` has the images of all folds."""
    cfg = cfg.clone()
    cfg.DATA.FOLD = number
    # Before the folder: there may be too many folds.
    fold = session.prepare(cfg, data, new=False, source=launch.source)
    fold = session.set_processes(fold, launch)
    session.limit_warmup(fold, launch.command)
    run.mkdir(exist_ok=True)
    session.create(fold, run, launch.command)
    return fold


def read_last_scores(run: Path) -> dict[str, float]:
    """Read the last AP50 of a finished run, 0 to 1, by class name; "" for all classes.

    Raises InputError if the curves are damaged.
    """
    path = run / runs.METRICS
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return {
            name.removeprefix(_SCORE).lstrip(): runs.rescale_score(value, last)
            for name, value in last.items()
            if name.startswith(_SCORE)
        }
    except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: not the curves of a finished run ({error}); delete the folder {run} to "
            "train this fold again"
        ) from None


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimate a mean and its confidence interval by Student's t-distribution.

    `values` are one or more numbers, one for each fold, and `level` is the probability. The
    folds are assumed to be independent. Since two runs share most of their training images, the
    interval is rather too narrow than too wide (Bengio & Grandvalet, JMLR 5, 2004).
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, None, n)
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Estimate(mean, float(mean - half), float(mean + half), n)


def summarise_folds(
    scores: Sequence[dict[str, float]], class_names: Sequence[str]
) -> dict[str, Any]:
    """Summarise the scores of the folds, in the form of the summary file.

    Parameters
    ----------
    scores
        Result of `read_last_scores` for each fold. A class without validation images in a fold
        is missing there.
    class_names
        In the order of the classes.

    Returns
    -------
    `AP50` for all classes and `classes` for each class with a value: a dict of `mean`, `low`,
    `high` and `folds`, see `Estimate`. `folds`: the scores of each fold.
    """
    estimates = {}
    for name in ("", *class_names):
        values = [score[name] for score in scores if name in score]
        if values:
            estimates[name] = dataclasses.asdict(estimate(values))
    return {
        "AP50": estimates.pop("", None),
        "classes": estimates,
        "folds": [
            {"AP50": score.get(""), "classes": {n: score[n] for n in class_names if n in score}}
            for score in scores
        ],
    }


def as_text(summary: dict[str, Any]) -> str:
    """Format a summary as a table."""
    rows = {"all classes": summary["AP50"], **summary["classes"]}
    width = max(map(len, rows))
    lines = [f"  {name:{width}}  {Estimate(**row)}" for name, row in rows.items() if row]
    title = f"AP50 of the final weights over {len(summary['folds'])} folds, mean [95 % interval]"
    if "max_detections" in summary:
        title += f", {describe_max_detections(summary['max_detections'])}"
    return "\n".join([f"{title}:", *lines])
