"""Sidecar files of results: their images, if not those of the test list, and their classes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import check_own, write_json
from cellseg.read.coco import load_coco, select_images
from cellseg.read.image_lists import ImageSet
from cellseg.read.results import sidecar_path
from cellseg.runs import CONFIG, read_record

_DESCRIPTION = "Annotations of the predicted images (inference.py)"

# The beginning of each sidecar file.
_OWN = {
    "list": rb'\[\n \{\n  "file_name": ',
    "classes": rb'\[\n \{\n  "id": ',
    "data": rb'\{\n "data": ',
    "truth": re.escape(f'{{"info": {{"description": "{_DESCRIPTION}"'.encode()),
}


def check_sidecars(results: Path) -> None:
    """Raise InputError if the user's own files have the names of the sidecar files of results.

    Those of earlier versions can only be told by the run folder that they are in.
    """
    for what, own in _OWN.items():
        path = sidecar_path(results, what)
        if not (path.parent / CONFIG).is_file():
            check_own(path, own, "a file next to results")


def write_data_folder(results: Path, data: Path | None) -> None:
    """Write which data folder the test list of results is in; with None, remove that of earlier."""
    path = sidecar_path(results, "data")
    if data is None:
        path.unlink(missing_ok=True)
    else:
        write_json(path, {"data": str(data.absolute())}, indent=1)


def write_sidecars(
    results: Path,
    images: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    predicted: ImageSet,
) -> Path | None:
    """Write the sidecar files of results and remove those of earlier results.

    The list of a user's own images is written. Annotations are written of these images only, with
    the folder that the file names are relative to, so that scoring ignores the others and doesn't
    mistake the ids for those of the test list. Raises InputError as `check_sidecars`.

    Parameters
    ----------
    results
        The results file.
    images
        The predicted images, in the form of the test list.
    categories
        The classes of the results. They are written if neither the annotations nor the record of
        a run in the same folder have them.
    predicted
        What the images are.

    Returns
    -------
    The path of the annotations, or None.
    """
    check_sidecars(results)
    own, annotations, data = predicted.is_own, predicted.annotations, predicted.data
    known = annotations is not None
    with contextlib.suppress(InputError):  # no run
        known = known or read_record(results.parent)["categories"] == list(categories)
    for what, needed in {"list": own, "classes": not known, "truth": annotations}.items():
        if not needed:
            sidecar_path(results, what).unlink(missing_ok=True)
    if own:
        write_json(sidecar_path(results, "list"), images, indent=1)
    if not known:
        write_json(sidecar_path(results, "classes"), list(categories), indent=1)
    if annotations is None:
        return None
    path = sidecar_path(results, "truth")
    selected = select_images(load_coco(annotations), {image["id"] for image in images})
    info = {
        "info": {"description": _DESCRIPTION} | ({"data": str(data.absolute())} if data else {})
    }
    write_json(path, info | selected | info)
    return path
