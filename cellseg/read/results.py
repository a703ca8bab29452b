"""Results of inference or a submission, of one set of images or many slides, and their sidecars."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import re
import sys
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cellseg.errors import InputError
from cellseg.files import file_start, open_json, read_json
from cellseg.limits import ZIP_BYTES, ZIP_RATIO
from cellseg.messages import listed, plural, warn
from cellseg.read.csv_table import read_rows
from cellseg.read.json_list import NotAListError, json_items
from cellseg.read.layout import ANNOTATIONS
from cellseg.read.names import comparable_name, name_outputs_uniquely
from cellseg.runs import RECORD, are_categories, read_record
from cellseg.text import json_type, one_line

RESULTS_FILE = "test-results.json"
OWN_RESULTS_FILE = "images-results.json"  # of the user's own images
MANIFEST = "manifest.csv"  # of many slides, in the folder of theirs
REMEDY = "run inference.py, or choose another results file"
AGAIN = "predict again with inference.py"

# RuntimeError: encrypted; its subclass NotImplementedError: unusual compression.
_ZIP_ERRORS: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError,
)  # fmt: skip
if sys.version_info >= (3, 14):  # where zipfile reads this compression, too
    from compression.zstd import ZstdError

    _ZIP_ERRORS = (*_ZIP_ERRORS, ZstdError)


def read_results(path: Path) -> list[Any]:
    """Return all detections of `iter_results`."""
    return list(iter_results(path))


def iter_results(path: Path) -> Iterator[Any]:
    """Yield the detections of a COCO results file, one by one; `pair_by_image` checks them.

    Parameters
    ----------
    path
        A JSON file, a zip with `test-results.json`, or a folder (see `results_file`).

    Raises
    ------
    InputError
        If the file is missing, damaged, perhaps after some detections, a device or a pipe, or not
        a list.
    """
    path = results_file(path)
    # By content; any file name can be a zip or JSON.
    opened = _open_zip(path) if _is_zip(path) else open_json(path, "results", REMEDY)
    try:
        with opened as file:
            yield from json_items(file)
    except NotAListError as error:
        raise InputError(
            f"{path}: contains {json_type(error.args[0])}, expected a list of detections"
            f" {{image_id, category_id, segmentation, score}}; {REMEDY}"
        ) from None


def results_file(path: Path) -> Path:
    """Return the results file that a path is, or that inference.py wrote into that folder.

    That is `test-results.json`, or the only other one; raises InputError if there are several.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / RESULTS_FILE] if (path / RESULTS_FILE).exists() else _results_in(path)
    if not found and is_cohort(path):
        raise InputError(
            f"{path}: holds many slides, expected the results of one; choose one of the folders "
            f"that its {MANIFEST} lists"
        )
    if len(found) > 1:
        names = " and ".join(other.name for other in found)
        raise InputError(f"{path}: holds {names}; choose one of these files")
    return found[0] if found else path / RESULTS_FILE


def _results_in(folder: Path) -> list[Path]:
    files = [folder / f"{name}-results.json" for name in ("test", "images", "val", "train")]
    return [file for file in files if file.is_file()]


def is_cohort(path: Path) -> bool:
    """Return whether a path is a folder of many slides' folders, from a table of slides."""
    return (path / MANIFEST).is_file()


def cohort_results(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return name and folder of a cohort's slides that are done, and the paths of the others.

    Both are in the order of the table. A folder is that of the slide's name in `folder`, as
    `inference.py` chose it. Warns of the others. Raises InputError if the manifest is damaged, no
    slide is done, or `folder` has results itself.
    """
    manifest = folder / MANIFEST
    if results_in := _results_in(folder):
        raise InputError(
            f"{folder}: holds {results_in[0].name} and {MANIFEST}; choose that file, or move it"
        )
    rows = [row for _, row in read_rows(manifest, ("path", "cells", "error"))]
    names = name_outputs_uniquely(manifest, [row["path"] for row in rows])
    done, others = [], []
    reasons = defaultdict[str, list[str]](list)
    for row, name in zip(rows, names, strict=True):
        place = folder / name
        if row["error"]:
            reasons["failed (see its column error)"].append(row["path"])
        elif not row["cells"]:
            reasons["not done (give the same command again)"].append(row["path"])
        elif not (place / OWN_RESULTS_FILE).is_file():
            reasons["done, but their results are missing"].append(f"{place}/{OWN_RESULTS_FILE}")
        else:
            done.append((name, place))
            continue
        others.append(row["path"])
    for what, which in reasons.items():
        warn(f"{manifest}: {plural(len(which), 'slide')} left out, {what}: {listed(which)}")
    if not done:
        raise InputError(f"{manifest}: no slide with results; predict its slides again")
    return done, others


def _is_zip(path: Path) -> bool:
    start = file_start(path, 2)
    return start is not None and (start == b"PK" or path.suffix.lower() == ".zip")


@contextlib.contextmanager
def _open_zip(path: Path) -> Iterator[IO[str]]:
    """Open the results in a zip; raise InputError for errors on opening and in the block."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if PurePosixPath(n).name == RESULTS_FILE]
            if not names:
                found = ", ".join(archive.namelist()[:3]) or "nothing"
                raise InputError(
                    f"{path}: the zip holds {found}, expected {RESULTS_FILE}; write it with "
                    "inference.py"
                )
            if len(names) > 1:
                raise InputError(
                    f"{path}: the zip holds {listed(names)}, expected only {RESULTS_FILE}; zip "
                    "that file by itself"
                )
            entry = archive.getinfo(names[0])
            # More is not read either: a zip ends at the size that it claims.
            if entry.file_size > max(ZIP_BYTES, ZIP_RATIO * entry.compress_size):
                raise InputError(
                    f"{path}: {entry.compress_size} bytes that unpack to {entry.file_size}, too "
                    f"many for results; unpack it yourself if you trust it, or {REMEDY}"
                )
            with archive.open(entry) as member:
                yield io.TextIOWrapper(member, "utf-8-sig")  # as open_json
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {RESULTS_FILE} in it is not JSON ({error}); {REMEDY}") from None
    except _ZIP_ERRORS as error:
        raise InputError(f"{path}: a zip that can't be read ({error}); {REMEDY}") from None


SIDECARS = ("list", "truth", "classes", "data")


def sidecar_path(results: Path, what: str) -> Path:
    """Return the path of a file that inference.py writes next to results, a file or a folder.

    `what` is one of `SIDECARS`: "list" for the list of a user's own images, "truth" for the
    annotations, "classes" for the classes of results that are not in the folder of their run,
    "data" for the data folder of their test list.
    """
    file = results_file(results)
    return file.with_name(f"{file.stem}-{what}.json")


def find_sidecar_ground_truth(results: Path) -> Path | None:
    """Return the annotations that inference.py wrote next to results, or None."""
    path = sidecar_path(results, "truth")
    return path if path.is_file() else None


def read_result_categories(results: Path) -> list[dict[str, Any]] | None:
    """Return the categories of results, `{"id", "name"}`, or None if they are not known.

    They are those that inference.py wrote next to them, else those of the run whose folder they
    are in. Raises InputError if they are damaged.
    """
    path = sidecar_path(results, "classes")
    if not path.is_file():
        run = path.parent
        return list(read_record(run)["categories"]) if (run / RECORD).is_file() else None
    categories = read_json(path, "classes of the results", AGAIN)
    if not are_categories(categories):
        raise InputError(f"{path}: not the classes of results; {AGAIN}")
    return [{"id": category["id"], "name": category["name"]} for category in categories]


def check_same_classes(
    parts: Sequence[Path], categories: Sequence[Mapping[str, Any]], source: object
) -> None:
    """Raise InputError if results know one of the classes of annotations under another id.

    Warns of ids with another name in both, unless one of the names only numbers the class. Of
    several results with the same classes, such as the slides of a table, the first is named.
    """
    for results, theirs in _distinct_classes(parts):
        _check_classes(results, theirs, categories, source)


def _distinct_classes(parts: Iterable[Path]) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Yield the first of the results with each list of classes, and these, where they are known."""
    checked: list[object] = []
    for results in parts:
        theirs = None
        with contextlib.suppress(InputError):  # damaged, which scores don't depend on
            theirs = read_result_categories(results)
        if theirs is not None and theirs not in checked:
            yield results, theirs
            checked.append(theirs)


def _check_classes(
    results: Path,
    theirs: Sequence[Mapping[str, Any]],
    categories: Sequence[Mapping[str, Any]],
    source: object,
) -> None:
    ids = {comparable_name(each["name"]): each["id"] for each in categories}
    names = {each["id"]: each["name"] for each in categories}
    others = []
    for each in sorted(theirs, key=itemgetter("id")):
        id_, name = each["id"], each["name"]
        known, other = ids.get(comparable_name(name), id_), names.get(id_, "none")
        if known != id_:
            raise InputError(
                f"{results}: class {id_} is {name}, but in {source} that is class {known}, and "
                f"class {id_} is {other}; number the classes in the same order in both"
            )
        if comparable_name(name) not in ids and not _NUMBERED.search(f"{name}\n{other}"):
            others.append(f"{name} ({other})")
    if others:
        warn(
            f"{results}: classes that have other names in {source}: {len(others)}: "
            f"{listed(others)}; if they are others, number them in the same order in both"
        )


def warn_of_lost_classes(
    parts: Sequence[Path], ground_truth: Mapping[str, Any], source: object
) -> None:
    """Warn of ground-truth cells of classes that results don't have."""
    cells = (each for each in ground_truth["annotations"] if not each["iscrowd"])
    n_cells = Counter(each["category_id"] for each in cells)
    for results, theirs in _distinct_classes(parts):
        known = {each["id"] for each in theirs}
        lost = {
            each["name"]: n
            for each in ground_truth["categories"]
            if (n := n_cells[each["id"]]) and each["id"] not in known
        }
        if lost:
            warn(
                f"{source}: {plural(sum(lost.values()), 'cell')} of classes that {results} doesn't "
                f"have, all false negatives: {listed([*lost])}; if its classes were merged, "
                f"{ANNOTATIONS} in the data folder has to say so (--merge_classes of "
                "annotation.py), or pass a COCO file of them"
            )


_NUMBERED = re.compile(r"^(class ?\d+|none)$", re.IGNORECASE | re.MULTILINE)


def find_data_folder(path: Path, needed: bool = True) -> Path | None:
    """Return the data folder of results or annotations, None if it is not known or not found.

    inference.py wrote it next to results: with the annotations of `--dataset val` or `train`, or
    that of the test list. Of `train__annot.json` it is its folder. Warns if that of a test list is
    `needed` and not there any more.
    """
    if path.name == ANNOTATIONS:
        return path.parent
    if is_cohort(path):
        return None
    is_sidecar = path.is_file() and path.name.endswith("-truth.json")
    truth = path if is_sidecar else sidecar_path(path, "truth")
    for file, before in ((truth, '{"info": '), (sidecar_path(path, "data"), "")):
        with contextlib.suppress(OSError, ValueError):
            with open(file, encoding="utf-8") as opened:
                start = opened.read(_INFO)
            info = json.JSONDecoder().raw_decode(start, start.index(before) + len(before))[0]
            folder = info.get("data") if isinstance(info, dict) else None
            if isinstance(folder, str) and Path(folder).is_dir():
                return Path(folder)
            if isinstance(folder, str) and file != truth and needed:
                warn(
                    f"{path}: the data folder that was predicted, {one_line(folder)}, is not there "
                    "any more; name the one with its images and ids with --data"
                )
    return None


_INFO = 1 << 16  # characters that hold the info at the beginning of such annotations


def find_newest_results(runs: Path) -> Path:
    """Return the newest results of the runs: `<runs>/<model>/<run>/test-results.json`.

    Raises InputError if there are none.
    """
    found = list(runs.glob(f"*/*/{RESULTS_FILE}"))
    if not found:
        raise InputError(f"{runs}: no results ({RESULTS_FILE}) in any run; {REMEDY}")
    return max(found, key=lambda path: path.stat().st_mtime)
