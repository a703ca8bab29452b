"""Sidecar files of results: which images they refer to, if not to the test list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.files import write_json
from cellseg.read.coco import load_coco, select_images
from cellseg.read.results import sidecar_path


def write_sidecars(
    results: Path, images: Sequence[dict[str, Any]], own: bool, annotations: Path | None
) -> Path | None:
    """Write the sidecar files of results and remove those of earlier results.

    Parameters
    ----------
    results
        The results file.
    images
        The predicted images, in the form of the test list.
    own
        Whether they are the user's own images; then this list is written.
    annotations
        The COCO file that the image ids refer to; then its annotations of `images` are
        written, so that scoring ignores its other images and doesn't mistake the ids for those
        of the test list.

    Returns
    -------
    The path of these annotations, or None.
    """
    for what, needed in {"list": own, "truth": annotations}.items():
        if not needed:
            sidecar_path(results, what).unlink(missing_ok=True)
    if own:
        write_json(sidecar_path(results, "list"), images, indent=1)
    if annotations is None:
        return None
    path = sidecar_path(results, "truth")
    write_json(path, select_images(load_coco(annotations), {image["id"] for image in images}))
    return path
