"""Read what the results are measured against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.read.annotate import annotate_image
from cellseg.read.coco import (
    COCO,
    build_coco,
    class_names,
    image_records,
    load_coco,
    select_images,
)
from cellseg.read.images import read_image_list, read_test_list
from cellseg.read.layout import CLASS_NAMES, TEST_LIST, TrainImage
from cellseg.read.names import pair_by_name
from cellseg.read.results import (
    find_sidecar_ground_truth,
    read_results,
    select_annotated,
    sidecar_path,
)


def read_ground_truth(path: Path, data: Path) -> COCO:
    """Read annotations from a COCO file, or from a folder of label maps.

    Parameters
    ----------
    path
        A COCO file, or a folder `<image>/class<K>.tif` with a folder for each annotated
        image of the test list, empty if there is no cell in it.
    data
        The data folder, needed for a folder of label maps alone: its test list gives the
        ids, its `train__annot.json`, where there is one, the classes.

    Returns
    -------
    A COCO dict as of `cellseg.read.coco.load_coco`. Of a folder, it has the images that
    are annotated; their ids are the test list's.

    Raises
    ------
    InputError
        If there is no such file, something in it is damaged or doesn't fit its image.
    """
    return _read_folder(Path(path), Path(data)) if Path(path).is_dir() else load_coco(path)


def _read_folder(folder: Path, data: Path) -> COCO:
    images: dict[str, list[ImageRecord]] = {}
    for image in read_test_list(data):
        images.setdefault(Path(image.file_name).stem, []).append(image)
    annotations = data / "train__annot.json"
    names = class_names(load_coco(annotations)) if annotations.exists() else list(CLASS_NAMES)
    folders = [path for path in _entries(folder) if path.is_dir()]
    if not folders:
        raise InputError(
            f"{folder}: no folder in it, expected <image>/class<K>.tif for each annotated image;"
            " name the folder that holds them, or a COCO file"
        )
    annotated, ids = [], []
    for each in tqdm(folders, desc="reading truth", unit="image", leave=False, disable=None):
        if each.name not in images:
            raise InputError(
                f"{each}: no image of that name in {data / TEST_LIST}; remove the folder,"
                " or give the images' data folder with --data"
            )
        if len(images[each.name]) > 1:
            both = " and ".join(image.file_name for image in images[each.name])
            raise InputError(
                f"{each}: {both} in {data / TEST_LIST} are both called so; rename one of them"
                " there and in the folder of the test images"
            )
        image = images[each.name][0]
        source = TrainImage(each.name, image.path, _class_files(each, len(names)), ())
        cells = annotate_image(source)
        if cells.size != image.size:
            listed = " x ".join(map(str, image.size or ()))
            raise InputError(
                f"{image.path}: {cells.size[0]} x {cells.size[1]} (height x width), but"
                f" {data / TEST_LIST} says {listed}; mend the list"
            )
        ids.append(image.id)
        annotated.append(replace(cells, file_name=image.file_name))
    return build_coco(annotated, names, ids)


def _class_files(folder: Path, n_classes: int) -> dict[int, Path]:
    files = {}
    for path in _entries(folder):
        match = re.fullmatch(r"class([1-9][0-9]*)\.tiff?", path.name, re.IGNORECASE)
        if not match or int(match[1]) > n_classes or int(match[1]) in files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it, or rename it"
            )
        files[int(match[1])] = path
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise InputError(
            f"{folder}: can't be listed ({error.strerror}); check its rights"
        ) from None


def find_ground_truth(paths: Sequence[Path]) -> Path | None:
    """Return the annotations that inference.py left beside the first of some results, if it did.

    Raises
    ------
    InputError
        If it did beside some of them alone: they are hardly of the same images then.
    """
    sidecar = find_sidecar_ground_truth(paths[0])
    for path in paths[1:]:
        if (sidecar is None) != (find_sidecar_ground_truth(path) is None):
            raise InputError(
                f"{path}: of {paths[0]} and this, one alone has the annotations of held-out images"
                " beside it; compare results of the same images, or name their annotations with"
                " --truth"
            )
    return sidecar


def find_default_ground_truth(paths: Sequence[Path], data: Path) -> Path | None:
    """Return the annotations of some results where none are named, None where it can't be told.

    They are those that inference.py left beside the results, else `test_masks` in the data
    folder, which need not be there; None if results are of a user's own images.

    Raises
    ------
    InputError
        As `find_ground_truth` does.
    """
    if any(sidecar_path(path, "list").is_file() for path in paths):
        return None
    return find_ground_truth(paths) or data / "test_masks"


def read_results_with_ground_truth(
    paths: Sequence[Path], source: Path, data: Path, *, only_annotated: bool = False
) -> tuple[COCO, list[list[Any]]]:
    """Read results and what they are measured against, of the same images.

    Parameters
    ----------
    paths
        Results, as of `cellseg.read.results.read_results`; several to be compared.
    source, data
        The annotations and the data folder, as of `read_ground_truth`.
    only_annotated
        Whether to leave out detections in images that aren't annotated.

    Returns
    -------
    The ground truth of the images that were predicted, where that is known, and the detections of
    each of `paths`, with the ground truth's ids.

    Raises
    ------
    InputError
        If something can't be read; of results to compare, if an annotated image is none of
        those that they are of; if it can't be told which images they are of.
    """
    all_results = [read_results(path) for path in paths]
    ground_truth = read_ground_truth(source, data)
    if len(paths) > 1:
        for path in paths:
            _check_same_images(path, ground_truth, source)
    predicted = [{image["id"] for image in ground_truth["images"]} for _ in paths]
    for n, path in enumerate(paths):
        if sidecar_path(path, "list").is_file():
            all_results[n], predicted[n] = _renumber_images(
                ground_truth, source, all_results[n], path, only_annotated
            )
        if not_in_both := predicted[n] ^ predicted[0]:
            name = next(i["file_name"] for i in ground_truth["images"] if i["id"] in not_in_both)
            raise InputError(
                f"{path}: {name} of {source} was predicted for one of the two alone; compare "
                "results of the same images, or name the annotations of those in both with --truth"
            )
    ground_truth = select_images(ground_truth, predicted[0])
    if only_annotated:
        all_results = [select_annotated(results, ground_truth) for results in all_results]
    return ground_truth, all_results


def _check_same_images(path: Path, ground_truth: COCO, source: Path) -> None:
    """Check that results of validation images, if they are, are of all images of the ground truth.

    Runs may have held out different images: what one of them was not asked to predict would
    count as missed by it.
    """
    sidecar = find_sidecar_ground_truth(path)
    if sidecar is None:
        return
    validation = {(image["id"], image["file_name"]) for image in load_coco(sidecar)["images"]}
    for image in ground_truth["images"]:
        if (image["id"], image["file_name"]) not in validation:
            raise InputError(
                f"{path}: image {image['id']} of {source}, {image['file_name']}, is not among"
                f" those held out, {sidecar}; compare results of the same images, or name the"
                " annotations of those that both held out with --truth, and --only_annotated"
            )


def _renumber_images(
    ground_truth: COCO, source: Path, results: list[Any], path: Path, only_annotated: bool
) -> tuple[list[Any], set[int]]:
    """Return results of a user's own images the ids that the ground truth has for these.

    Their ids are places in the list that inference.py left beside them, so the names tell.
    The ground truth's ids of all images in it are given too.
    """
    list_path = sidecar_path(path, "list")
    listed = read_image_list(list_path, "predict again with inference.py")
    ids = pair_by_name(listed, list_path, image_records(ground_truth, Path()), source)
    remedy = (
        f"call the images alike in both, or remove {list_path} if the ids are those of {source}"
    )
    if not ids:
        raise InputError(f"{path}: none of the images in {list_path} is in {source}; {remedy}")
    names = {image.id: image.file_name for image in listed}
    renumbered = []
    for n, entry in enumerate(results):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) is not int:
            renumbered.append(entry)  # whoever scores it says what is wrong
        elif image_id not in names:
            raise InputError(
                f"{path}: entry {n}: image_id {image_id} is not in {list_path}; predict again with"
                " inference.py"
            )
        elif image_id in ids:
            renumbered.append({**entry, "image_id": ids[image_id]})
        elif not only_annotated:
            raise InputError(
                f"{path}: entry {n}: its image, {names[image_id]}, is not in {source}; leave such"
                f" results out with --only_annotated, or {remedy}"
            )
    return renumbered, set(ids.values())
