"""Run folders, `tensorboard/<recipe>/<run>/`: the files of one training."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cellseg import process
from cellseg.errors import InputError
from cellseg.files import LOCK, display_path, lock_file, read_json, safe_name, write_json
from cellseg.text import is_printable

CONFIG = "config.yaml"  # all settings of the run
RECORD = "run.json"  # command line, versions, data, split
LAST = "last.pth"  # weights, optimizer, schedule and iteration, for --resume
FINAL = "model_final.pth"  # weights of the last iteration; only finished runs have it
BEST = "model_best.pth"  # weights with the best score on the validation images
SUMMARY = "cross-validation.json"  # in the parent folder of all folds, once they are finished
METRICS = "metrics.json"  # a line of JSON for each point of the curves
# Key beside scores in metrics and checkpoints: the score of a perfect network, 1.0. Runs of earlier
# versions lack it; their scores are percentages.
FULL_SCORE = "full_score"

_PACKAGES = (
    "torch",
    "torchvision",
    "detectron2",
    "numpy",
    "pycocotools",
    "tifffile",
    "openslide-python",
)


def new_run(root: Path, recipe: str) -> Path:
    """Create the folder of a new run, named by the time.

    Raises InputError if it can't be created, or `recipe` is not a plain name.
    """
    check_recipe_name(recipe)
    now = datetime.datetime.now()
    while True:
        run = root / recipe / now.strftime("%Y%m%d-%H%M%S")
        try:
            run.mkdir(parents=True)
        except OSError as error:
            if os.path.lexists(run):  # another run started in this second
                now += datetime.timedelta(seconds=1)
                continue
            raise InputError(
                f"{run}: can't be created ({error.strerror}); choose another --output_dir"
            ) from None
        return run


def check_recipe_name(name: str) -> None:
    """Raise InputError unless the name of a recipe can be that of a folder: it may be a path."""
    if name != safe_name(name):
        raise InputError(
            f"RECIPE {name}: the name of a folder in --output_dir is expected, without slashes"
        )


def check_run_folder(run: Path) -> None:
    """Raise InputError if the folder of a run that is trained was removed: it has its config."""
    if not run.is_dir():
        raise InputError(
            f"{run}: the run folder was removed or moved while the run was trained; restore it and "
            "resume with --resume, or train again"
        )


@contextlib.contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Lock the folder of a run that is trained in the block.

    Raises InputError if another command trains it.
    """
    path = run / LOCK
    try:
        unlock = lock_file(path)
    except BlockingIOError as error:
        raise InputError(
            f"{run}: another training of it is running ({error}); wait until it has ended"
        ) from None
    except OSError as error:
        raise InputError(
            f"{run}: can't be written ({error.strerror}); check its permissions"
        ) from None
    process.unfinished.add(str(path))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            path.unlink()
        process.unfinished.discard(str(path))
        unlock()


def find_newest_run(root: Path, recipe: str = "*") -> Path:
    """Return the finished run in `root`, the folder of runs (`tensorboard/`), that ended last.

    `recipe` is that of the run; "*" for any. Raises InputError if there is none.
    """
    runs = _list_runs(root, recipe)
    if done := [run for run in runs if (run / FINAL).is_file()]:
        return max(done, key=lambda run: ((run / FINAL).stat().st_mtime, run.name))
    hint = (
        f"{len(runs)} are not finished: resume with python train.py --resume, or choose one "
        "with --checkpoint"
        if runs
        else "train first: python train.py"
    )
    raise InputError(f"{root}: no finished run in it; {hint}")


def find_unfinished_run(root: Path, recipe: str = "*") -> Path:
    """Return the unfinished run or cross-validation that started last; see `find_newest_run`."""
    unfinished = [run for run in _list_runs(root, recipe) if not (run / FINAL).is_file()]
    folders = {fold.parent for fold in _list_runs(root, recipe, "*/*/fold*")}
    unfinished += [folder for folder in folders if not (folder / SUMMARY).is_file()]
    if not unfinished:
        raise InputError(f"{root}: no unfinished run to resume; start a new one without --resume")
    return max(unfinished, key=lambda run: run.name)


def _list_runs(root: Path, recipe: str, folders: str = "*/*") -> list[Path]:
    """Return the runs in `root` of a recipe, "*" for any, in folders of this form."""
    runs = [config.parent for config in root.glob(f"{folders}/{CONFIG}")]
    return [run for run in runs if recipe in ("*", run.relative_to(root).parts[0])]


def list_fold_runs(folder: Path) -> list[Path]:
    """Return the runs of a cross-validation, fold 1 first; empty for other folders."""
    numbers = {int(run.name[4:]): run for run in folder.glob("fold*") if run.name[4:].isdecimal()}
    return [run for _, run in sorted(numbers.items()) if (run / CONFIG).is_file()]


def resolve_run_folder(path: Path) -> Path:
    """Return the run folder that a path is, or in which it is a file; else raise InputError."""
    run = path.parent if path.is_file() else path
    if not (run / CONFIG).is_file():
        raise InputError(
            f"{path}: not a run, it has no {CONFIG}; expected a folder like "
            "tensorboard/mask_rcnn_R_50_DC5_3x/20250401-120000"
        )
    return run


def choose_weights(run: Path, name: str | None = None) -> Path:
    """Return a run's weights: the file `name`, else the best, else the final ones."""
    candidates = [name] if name else [BEST, FINAL]
    for candidate in candidates:
        if (run / candidate).is_file():
            return run / candidate
    available = ", ".join(sorted(path.name for path in run.glob("*.pth")))
    if not available:
        hint = "no weights are saved yet; train.py --resume"
    elif name:
        hint = f"--weight_name takes {available}"
    else:
        hint = f"name a file instead of the folder: {run}/{available}"
    raise InputError(f"{run}: no {' or '.join(candidates)} in it; {hint}")


def write_record(
    run: Path,
    command: Sequence[str],
    annotations: Path,
    categories: Sequence[dict[str, Any]],
    train: Sequence[str],
    validation: Sequence[str],
    reasons: Sequence[str],
    processes: int = 1,
) -> None:
    """Write the record of a run: command line, versions, hash of the data, classes and split.

    `categories` are `{"id", "name"}` of the annotation file in the order of the classes 0…K−1,
    `train` and `validation` image names, `reasons` one line per value computed from the data,
    `processes` their number on each machine.
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
            "processes": processes,
        },
        indent=1,
    )


def are_categories(value: Any) -> bool:
    """Return whether a value of a JSON file is a list of categories, `{"id", "name"}`."""
    try:
        are = all(
            type(each["id"]) is int and is_printable(each["name"]) and each["name"].strip()
            for each in value
        )
        return are and len({each["id"] for each in value}) == len(value) > 0
    except (KeyError, TypeError, AttributeError):
        return False


def read_record(run: Path) -> dict[str, Any]:
    """Read the record that `write_record` wrote."""
    remedy = "the run is damaged; choose another"
    record = read_json(run / RECORD, "record of the run", remedy)
    try:
        is_valid = (
            isinstance(record["annotations"], dict)
            and are_categories(record["categories"])
            and all(is_printable(name) for name in record["held_out"])
        )
    except (KeyError, TypeError, AttributeError):
        is_valid = False
    if not is_valid:
        raise InputError(f"{run / RECORD}: not the record of a run; {remedy}")
    return dict(record)


def recorded_processes(run: Path) -> int:
    """Return the number of processes that a run was started with on each machine."""
    record = read_record(run)
    number = record.get("processes")
    if number is None:  # a run of an earlier version, with a flag unless it was 1
        words = " ".join(map(str, record.get("command") or ())).replace("-gpus", "_gpus")
        flag = re.search(r"--num_gpus[ =](\d+)", words)
        number = int(flag[1]) if flag else 1
    return number if type(number) is int and number > 0 else 1


def rescale_score(value: float, saved: Mapping[str, Any]) -> float:
    """Return a score from 0 to 1, which was `saved` in a dict with or without `FULL_SCORE`."""
    return float(value) / (1.0 if saved.get(FULL_SCORE) == 1.0 else 100.0)


def find_weights(path: Path, name: str | None = None) -> Path:
    """Return the weights file for the value of `--checkpoint` and of `--weight_name`.

    Parameters
    ----------
    path
        A run folder, or a weights file in one.
    name
        Name of a weights file in the folder; by default as in `choose_weights`.

    Raises
    ------
    InputError
        If there are no weights, `name` contains a folder (perhaps that of another run), or
        `path` is another file.
    """
    run = resolve_run_folder(path)
    if name and Path(name).name != name:
        raise InputError(
            f"--weight_name {name}: expected a file name without folder; pass the run with "
            "--checkpoint"
        )
    named = path.name if path.is_file() and path.suffix == ".pth" else None
    if name and named and name != named:
        raise InputError(
            f"--weight_name {name}: --checkpoint {path} is another file; leave one of them out"
        )
    return choose_weights(run, name or named)


def common_categories(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the categories of all runs, `{"id", "name"}`; raise InputError if they differ."""
    categories = [read_record(run)["categories"] for run in runs]
    for run, other in zip(runs, categories, strict=True):
        if other != categories[0]:
            raise InputError(
                f"{run}: has other classes ({category_text(other)}) than {runs[0]} "
                f"({category_text(categories[0])}), so their detections can't be fused; predict "
                "with each run separately"
            )
    return list(categories[0])


def find_annotations(runs: Sequence[Path], path: Path | None) -> Path:
    """Return the annotations that runs were trained with: `path`, or their own if that is None.

    Raises InputError if they are not found, or are not those of every run.
    """
    records = [read_record(run)["annotations"] for run in runs]
    found = path or Path(str(records[0].get("path")))
    if not found.is_file():
        raise InputError(
            f"{found}: no such file, expected the annotations of {display_path(runs[0])}; set "
            "where they are now with --data or --annotations"
        )
    for run, record in zip(runs, records, strict=True):
        if record.get("sha256") != file_hash(found):
            raise InputError(
                f"{found}: not the annotations that {display_path(run)} was trained with "
                f"({record.get('path')}); leave out --data and --annotations, or predict other "
                "images with --images, and score them with evaluate.py --truth"
            )
    return found


def common_validation(runs: Sequence[Path]) -> list[str]:
    """Return the names of the validation images of runs, sorted.

    Raises
    ------
    InputError
        If there are none, or the runs differ: each was trained on images of another's set.
    """
    names, *others = [sorted(read_record(run)["held_out"]) for run in runs]
    if not names:
        raise InputError(
            f"--dataset val: {display_path(runs[0])} has no validation images; train with "
            "--val_fraction, or use --dataset train"
        )
    if any(other != names for other in others):
        raise InputError(
            "--dataset val: the runs have different validation images, so each was trained on "
            "another's; predict with one run at a time"
        )
    return names


def category_text(categories: Sequence[dict[str, Any]]) -> str:
    """Return the ids and names of categories for a message."""
    return ", ".join(f"{category['id']} {category['name']}" for category in categories)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return versions


def file_hash(path: Path, digest: hashlib._Hash | None = None) -> str:
    """Return the hexadecimal SHA-256, or another digest, of a file."""
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
