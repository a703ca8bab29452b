"""A user's own images, as inference.py listed them next to their results."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.read.images import read_image_list
from cellseg.read.names import name_outputs_uniquely
from cellseg.read.results import AGAIN, MANIFEST, cohort_results, is_cohort, sidecar_path


@dataclass(frozen=True)
class ListedImages:
    """N images of a user's own, and where their results are.

    Attributes
    ----------
    source
        The list, or the manifest of many slides.
    images
        N records, with different ids.
    names
        N names of the images and their outputs, all different.
    parts
        The results: files, or folders as of `results_file`, each with the ids in `images` of the
        image ids in it.
    others
        Paths of slides without results, with which others may share a name.
    """

    source: Path
    images: list[ImageRecord]
    names: list[str]
    parts: list[tuple[Path, dict[int, int]]]
    others: list[str] = field(default_factory=list)


def has_list(path: Path) -> bool:
    """Return whether results are of a user's own images, listed next to them."""
    return is_cohort(path) or sidecar_path(path, "list").is_file()


def read_listed_images(path: Path) -> ListedImages | None:
    """Read the list of results on a user's own images, or those of many slides.

    Parameters
    ----------
    path
        Results as of `results_file`, or a folder of many slides, which get the ids 1, 2, … in the
        order of the table, and as names those of their folders.

    Returns
    -------
    The images; None for results of the test list or of annotations.

    Raises
    ------
    InputError
        If a list is missing or damaged, or `cohort_results` does.
    """
    if not has_list(path):
        return None
    if not is_cohort(path):
        source = sidecar_path(path, "list")
        images = read_image_list(source, AGAIN)
        names = name_outputs_uniquely(source, [image.file_name for image in images])
        ids = {image.id: image.id for image in images}
        return ListedImages(source, images, names, [(path, ids)])
    done, others = cohort_results(path)
    slides = ListedImages(path / MANIFEST, [], [], [], others)
    for name, folder in done:
        source = sidecar_path(folder, "list")
        images = read_image_list(source, AGAIN)
        if len(images) != 1:
            raise InputError(f"{source}: {len(images)} images, expected the slide alone; {AGAIN}")
        id_ = 1 + len(slides.images)
        slides.images.append(replace(images[0], id=id_))
        slides.names.append(name)
        slides.parts.append((folder, {images[0].id: id_}))
    return slides
