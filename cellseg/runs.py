"""Run folders: `tensorboard/<recipe>/<run>/`, all that one training leaves behind."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import display_path, read_json, write_json

CONFIG = "config.yaml"  # enough to repeat the run
RECORD = "run.json"  # command, versions, data, split
LAST = "last.pth"  # weights, optimizer, schedule, iteration: what --resume goes on from
FINAL = "model_final.pth"  # weights after the last iteration; a run that has it is finished
BEST = "model_best.pth"  # weights that scored best on the validation images

SUMMARY = "cross-validation.json"  # beside the runs of all folds, when they are finished

METRICS = "metrics.json"  # a line of JSON for each point of the curves

_PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "pycocotools", "tifffile")


def new_run(root: Path, recipe: str) -> Path:
    """Make the folder of a new run, named after the time."""
    now = datetime.datetime.now()
    while True:
        run = root / recipe / now.strftime("%Y%m%d-%H%M%S")
        try:
            run.mkdir(parents=True)
        except OSError as error:
            if os.path.lexists(run):  # another began in this second
                now += datetime.timedelta(seconds=1)
                continue
            raise InputError(
                f"{run}: can't be made ({error.strerror}); choose another --output_dir"
            ) from None
        else:
            return run


def find_newest_run(root: Path, recipe: str = "*", finished: bool = True) -> Path:
    """Find the newest run below `root`.

    Parameters
    ----------
    root
        The folder of runs, `tensorboard/`.
    recipe
        Look at the runs of this recipe alone; "*" for any.
    finished
        Among the runs that came to their end, by when they did; otherwise among those,
        cross-validations as a whole too, that did not, by when they began.

    Raises
    ------
    InputError
        If there is none.
    """
    runs = [
        config.parent
        for config in root.glob(f"*/*/{CONFIG}")
        if recipe in ("*", config.parent.parent.name)
    ]
    if finished:
        done = [run for run in runs if (run / FINAL).is_file()]
        if done:
            return max(done, key=lambda run: ((run / FINAL).stat().st_mtime, run.name))
        hint = (
            f"{len(runs)} are not finished: go on with python train.py --resume, or name one "
            "with --checkpoint"
            if runs
            else "train first: python train.py"
        )
        raise InputError(f"{root}: no finished run in it; {hint}")
    unfinished = [run for run in runs if not (run / FINAL).is_file()]
    in_folds = {config.parents[1] for config in root.glob(f"*/*/fold*/{CONFIG}")}
    unfinished += [
        folder
        for folder in in_folds
        if recipe in ("*", folder.parent.name) and not (folder / SUMMARY).is_file()
    ]
    if not unfinished:
        raise InputError(f"{root}: no unfinished run in it to resume; begin one without --resume")
    return max(unfinished, key=lambda run: run.name)


def list_fold_runs(folder: Path) -> list[Path]:
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


def resolve_run_folder(path: Path) -> Path:
    """Check that a path names a run folder (or a file in one) and give the folder."""
    run = path.parent if path.is_file() else path
    if not (run / CONFIG).is_file():
        raise InputError(
            f"{path}: not a run, it has no {CONFIG}; name a folder like "
            "tensorboard/mask_rcnn_R_50_DC5_3x/20250401-120000"
        )
    return run


def choose_weights(run: Path, name: str | None = None) -> Path:
    """Choose a run's weights: those named, else the best, else the final ones."""
    candidates = [name] if name else [BEST, FINAL]
    for candidate in candidates:
        if (run / candidate).is_file():
            return run / candidate
    available = sorted(path.name for path in run.glob("*.pth"))
    raise InputError(
        f"{run}: no {' or '.join(candidates)} in it; "
        + (
            f"--weight_name takes {', '.join(available)}"
            if available
            else "the run has saved no weights yet"
        )
    )


def write_record(
    run: Path,
    command: Sequence[str],
    annotations: Path,
    categories: Sequence[dict[str, Any]],
    train: Sequence[str],
    validation: Sequence[str],
    reasons: Sequence[str],
) -> None:
    """Write what made a run: the command line, versions, the data's hash, classes and split.

    `categories` are those of the annotation file, `{"id", "name"}` in the order of the classes
    inside, `train` and `validation` names of images, and `reasons` say, a line each, what the
    config took from the data.
    """
    write_json(
        run / RECORD,
        {
            "command": list(command),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "versions": package_versions(),
            "annotations": {"path": str(annotations), "sha256": file_hash(annotations)},
            "categories": list(categories),
            "train": list(train),
            "held_out": list(validation),
            "from_data": list(reasons),
        },
        indent=1,
    )


def read_record(run: Path) -> dict[str, Any]:
    """Read what `write_record` wrote."""
    remedy = "the run is damaged; choose another"
    record = read_json(run / RECORD, "record of the run", remedy)
    try:
        is_valid = (
            isinstance(record["annotations"], dict)
            and len(record["categories"]) > 0
            and all(type(c["id"]) is int and type(c["name"]) is str for c in record["categories"])
            and all(type(name) is str for name in record["held_out"])
        )
    except (KeyError, TypeError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{run / RECORD}: not the record of a run; {remedy}")
    return dict(record)


def find_weights(path: Path, name: str | None = None) -> Path:
    """Return the weights that a path names, or those that `choose_weights` takes in a run's folder.

    Parameters
    ----------
    path
        A run's folder, or a file of weights in it.
    name
        The file of the weights to take, in a folder that `path` names.

    Raises
    ------
    InputError
        If there are none, or `name` is not the name of a file alone: in another folder, it
        would be of another run; or `path` names another file.
    """
    run = resolve_run_folder(path)
    if name and Path(name).name != name:
        raise InputError(
            f"--weight_name {name}: lies in a folder, but the bare name of a file in the run's "
            "folder is expected; name the run with --checkpoint"
        )
    named = path.name if path.is_file() and path.suffix == ".pth" else None
    if name and named and name != named:
        raise InputError(
            f"--weight_name {name}: --checkpoint {path} names other weights; leave one of them out"
        )
    return choose_weights(run, name or named)


def common_categories(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the categories of runs whose findings are to be fused, `{"id", "name"}` each.

    Raises
    ------
    InputError
        If they are not the same in all.
    """
    categories = [read_record(run)["categories"] for run in runs]
    for run, other in zip(runs, categories, strict=True):
        if other != categories[0]:
            raise InputError(
                f"{run}: has other classes ({_category_text(other)}) than {runs[0]} "
                f"({_category_text(categories[0])}), so that what they find can't be fused; "
                "predict with each alone"
            )
    return list(categories[0])


def common_validation(runs: Sequence[Path]) -> list[str]:
    """Return the names of the images that runs held out, sorted.

    Raises
    ------
    InputError
        If the first held none out, or another run others: it has learned from them.
    """
    names, *others = [sorted(read_record(run)["held_out"]) for run in runs]
    if not names:
        raise InputError(f"--dataset val: {display_path(runs[0])} held no images out")
    if any(other != names for other in others):
        raise InputError(
            "--dataset val: the runs held other images out, so that each has learned from what "
            "another is scored by; predict with one at a time"
        )
    return names


def _category_text(categories: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{category['id']} {category['name']}" for category in categories)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers."""
    found_versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found_versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found_versions[package] = "missing"
    return found_versions


def file_hash(path: Path, digest: hashlib._Hash | None = None) -> str:
    """Return the SHA-256 of a file, or another digest, in hexadecimal."""
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
