"""Cross-validation: each fold of the images is held out once, by a run of its own.

The runs lie in one folder, `fold1`, `fold2` … with a summary beside them.
"""

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
from cellseg.errors import InputError
from cellseg.files import display_path, write_json
from cellseg.learn import session
from cellseg.learn.samples import load_training_data
from cellseg.learn.session import Launch

_SCORE = "validation/AP50"


@dataclass(frozen=True)
class Estimate:
    """A mean over folds, and the interval that it lies in with a probability of 95 %.

    Attributes
    ----------
    mean
        The mean of the folds that have a number.
    low, high
        The interval's bounds; None with fewer than two numbers.
    folds
        How many folds have a number.
    """

    mean: float
    low: float | None
    high: float | None
    folds: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f}  [{self.low:.1f}, {self.high:.1f}]"


def begin(root: Path, cfg: CfgNode, launch: Launch) -> int:
    """Begin a run for each fold of the images, and train them; return the exit code."""
    folder = runs.new_run(root.absolute(), cfg.RECIPE)
    try:
        return _train_folds(folder, cfg, {}, launch)
    except InputError:
        if not list(folder.glob("*/*.pth")):  # there is nothing in it to go on with
            shutil.rmtree(folder, ignore_errors=True)
        raise


def resume(folder: Path, cfgs: dict[Path, CfgNode], launch: Launch) -> int:
    """Go on with the runs in a cross-validation's folder, by their configs.

    Folds whose run was deleted or never begun are begun now. Returns the exit code.
    """
    if launch.machines > 1:
        raise InputError(
            f"{display_path(folder)}: a cross-validation, which one machine goes on with; leave "
            "--num_machines out"
        )
    cfg = next(iter(cfgs.values())).clone()
    session.check_processes(cfg, launch)
    return _train_folds(folder, cfg, cfgs, launch)


def _train_folds(folder: Path, cfg: CfgNode, resumed: dict[Path, CfgNode], launch: Launch) -> int:
    """Train the runs of all folds as far as they are not, and sum up their scores."""
    data = load_training_data(cfg.DATA.ROOT, cfg.DATA.ANNOTATIONS)
    # All before the first is trained, so that they are of the same data and --resume knows them.
    sessions = {run: session.resume(run, of_fold, data) for run, of_fold in resumed.items()}
    folds = [folder / f"fold{number}" for number in range(1, cfg.DATA.FOLDS + 1)]
    for number, run in enumerate(folds, 1):
        if run not in sessions:
            of_fold = cfg.clone()
            of_fold.DATA.FOLD = number
            sessions[run] = session.prepare(of_fold, data, new=False)
            run.mkdir(exist_ok=True)
            session.create(sessions[run], run, launch.command)
    for number, run in enumerate(folds, 1):
        print(f"fold {number} of {len(folds)}")
        code = session.train_in_processes(sessions[run], launch)
        if code:
            return code
    names = [category["name"] for category in data.categories]
    summary = summarise_folds([read_last_scores(run) for run in folds], names)
    write_json(folder / runs.SUMMARY, summary, indent=1)
    print(f"{as_text(summary)}\nwritten to {display_path(folder / runs.SUMMARY)}")
    return 0


def read_last_scores(run: Path) -> dict[str, float]:
    """Read a finished run's last scores: AP50 in percent, by class, "" for their mean.

    Raises
    ------
    InputError
        If its curves are damaged.
    """
    path = run / runs.METRICS
    try:
        last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        scores = {
            name.removeprefix(_SCORE).lstrip(): float(value)
            for name, value in last.items()
            if name.startswith(_SCORE)
        }
    except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: not the curves of a finished run ({error}); delete the folder {run} to "
            "train this fold again"
        ) from None
    return scores


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Estimate a mean and its interval by Student's t-distribution, n − 1 degrees of freedom.

    The folds' scores are taken for independent. As any two runs share most of their
    training images, the interval is rather too narrow than too wide (Bengio & Grandvalet,
    JMLR 5, 2004).

    Parameters
    ----------
    values
        One or more numbers, one a fold.
    level
        The probability.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, None, n)
    half = stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Estimate(mean, float(mean - half), float(mean + half), n)


def summarise_folds(
    scores: Sequence[dict[str, float]], class_names: Sequence[str]
) -> dict[str, Any]:
    """Summarise the folds' scores, as the summary's file has them.

    Parameters
    ----------
    scores
        For each fold what `read_last_scores` gives. A fold may lack a class that none of its
        validation images has.
    class_names
        In the order of the classes.

    Returns
    -------
    `AP50`: for all classes, and `classes` for each that has a number, a dict of the mean,
    the bounds `low` and `high` and the number of `folds`; and `folds`: the numbers.
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
    """Return a summary as a table to print."""
    rows = {"all classes": summary["AP50"], **summary["classes"]}
    width = max(map(len, rows))
    lines = [
        f"  {name:{width}}  {Estimate(**row)}" for name, row in rows.items() if row is not None
    ]
    title = f"AP50 of the final weights over {len(summary['folds'])} folds, mean [95 % interval]:"
    return "\n".join([title, *lines])
