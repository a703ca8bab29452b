"""Cross-validation: each fold of the images is held out once, by a run of its own.

The runs lie in one folder, `fold1`, `fold2` … with a summary beside them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cellseg.errors import InputError
from cellseg.learn.samples import TrainingData
from cellseg.read.split import read_groups, split_folds
from cellseg.runs import CONFIG, CURVES

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


def take_fold(data: TrainingData, fold: int, n_folds: int, groups: str, seed: int) -> TrainingData:
    """Hold out one fold of the images.

    Parameters
    ----------
    data
        With all images to train on.
    fold
        The fold to hold out, from 1 on; 0 holds out none.
    n_folds, groups, seed
        As `split_folds` takes them; `groups` is a file's path, or empty.

    Raises
    ------
    InputError
        If there is no such fold, or the split can't be made.
    """
    if not 0 <= fold <= n_folds:
        raise InputError(f"DATA.FOLD {fold}: a number from 1 to DATA.FOLDS {n_folds} is expected")
    names = [sample.name for sample in data.train]
    group_of = read_groups(Path(groups), names) if groups else None
    folds = split_folds(names, n_folds, max(seed, 0), group_of)
    held = set(folds[fold - 1]) if fold else set()
    return dataclasses.replace(
        data,
        train=[sample for sample in data.train if sample.name not in held],
        held_out=[sample for sample in data.train if sample.name in held],
    )


def fold_runs(folder: Path) -> list[Path]:
    """List the runs of a cross-validation, fold 1 first; none if the folder is not one."""
    numbers = {
        run: run.name.removeprefix("fold")
        for run in folder.glob("fold*")
        if (run / CONFIG).is_file()
    }
    return sorted(
        (run for run, number in numbers.items() if number.isdecimal()),
        key=lambda run: int(numbers[run]),
    )


def last_scores(run: Path) -> dict[str, float]:
    """Read a finished run's last scores: AP50 in percent, by class, "" for their mean.

    Raises
    ------
    InputError
        If its curves are damaged.
    """
    path = run / CURVES
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


def summarise(scores: Sequence[dict[str, float]], class_names: Sequence[str]) -> dict[str, Any]:
    """Summarise the folds' scores, as the summary's file has them.

    Parameters
    ----------
    scores
        For each fold what `last_scores` gives. A fold may lack a class that none of its
        held-out images has.
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
    """Give a summary as a table to print."""
    rows = {"all classes": summary["AP50"], **summary["classes"]}
    width = max(map(len, rows))
    lines = [
        f"  {name:{width}}  {Estimate(**row)}" for name, row in rows.items() if row is not None
    ]
    title = f"AP50 of the final weights over {len(summary['folds'])} folds, mean [95 % interval]:"
    return "\n".join([title, *lines])
