"""What stands beside results of other images than the test list's, and tells which these are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.files import write_json
from cellseg.read.coco import load_coco, select_images
from cellseg.read.results import sidecar_path


def write_beside(
    results: Path, images: Sequence[dict[str, Any]], own: bool, annotations: Path | None
) -> Path | None:
    """Write which images results are of, where the test list doesn't tell.

    What former results of other images have left there is removed.

    Parameters
    ----------
    results
        The results file.
    images
        The images that were predicted, in the form of the test list.
    own
        Whether they are a user's own: then this list is written.
    annotations
        The COCO file that they are of: then its part of them is written. By all of it, the
        cells of other images would count as missed; by the test list, whose ids are the same
        numbers, other images would be meant.

    Returns
    -------
    The file of these annotations, or None.
    """
    for what, wanted in {"list": own, "truth": annotations}.items():
        if not wanted:
            sidecar_path(results, what).unlink(missing_ok=True)
    if own:
        write_json(sidecar_path(results, "list"), images, indent=1)
    if annotations is None:
        return None
    path = sidecar_path(results, "truth")
    write_json(path, select_images(load_coco(annotations), {image["id"] for image in images}))
    return path
