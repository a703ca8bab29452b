"""Read results: what inference wrote, or what is about to be sent to the server."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.read.coco import COCO

FILE_NAME = "test-results.json"
REMEDY = "run inference.py, or name another results file"


def read_results(path: Path) -> list[Any]:
    """Read a list of detections in COCO's result form.

    Parameters
    ----------
    path
        A JSON file, a zip that holds `test-results.json`, or a run folder that does.

    Returns
    -------
    The list; `cellseg.score.match.side_by_side` checks its entries against the truth.

    Raises
    ------
    InputError
        If there is no such file, or it is damaged or not a list.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE_NAME
    # By its first bytes: a zip is one under any name, and so is JSON.
    value = _read_zip(path) if _is_zip(path) else read_json(path, "results", REMEDY)
    if not isinstance(value, list):
        raise InputError(
            f"{path}: holds a {type(value).__name__}, expected a list of detections"
            f" {{image_id, category_id, segmentation, score}}; {REMEDY}"
        )
    return value


def _is_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK" or path.suffix.lower() == ".zip"
    except OSError:
        return False  # read_json says why


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if PurePosixPath(n).name == FILE_NAME]
            if not names:
                held = ", ".join(archive.namelist()[:3]) or "nothing"
                raise InputError(
                    f"{path}: the zip holds {held}, but no {FILE_NAME}; write it with inference.py"
                )
            return json.loads(archive.read(min(names, key=len)).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {FILE_NAME} in it is not JSON ({error}); {REMEDY}") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted; NotImplementedError, one of its kind: odd compression.
        raise InputError(f"{path}: a zip that can't be read ({error}); {REMEDY}") from None


def only_annotated(results: list[Any], truth: COCO) -> list[Any]:
    """Leave out the detections in images that the truth doesn't have."""
    annotated = {image["id"] for image in truth["images"]}
    return [
        entry
        for entry in results
        if not isinstance(entry, dict)
        or not isinstance(entry.get("image_id"), int)
        or entry["image_id"] in annotated
    ]


def newest_results(runs: Path) -> Path:
    """The results of the run that wrote them last: `<runs>/<model>/<run>/test-results.json`.

    Raises
    ------
    InputError
        If no run has any.
    """
    found = list(runs.glob(f"*/*/{FILE_NAME}"))
    if not found:
        raise InputError(f"{runs}: no run has a {FILE_NAME} yet; {REMEDY}")
    return max(found, key=lambda path: path.stat().st_mtime)
