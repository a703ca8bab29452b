"""Read the ground truth of results."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageRecord
from cellseg.messages import listed as listed_names
from cellseg.messages import plural, warn
from cellseg.read.annotate import annotate_image, annotate_without_pixels, warn_of_images
from cellseg.read.coco import (
    COCO,
    build_coco,
    data_categories,
    image_records,
    load_coco,
    select_images,
)
from cellseg.read.images import read_image_list, read_test_list
from cellseg.read.layout import TEST_LIST, TrainImage, list_entries, read_train_folder
from cellseg.read.names import image_name, pair_by_name, path_parts
from cellseg.read.results import (
    find_sidecar_ground_truth,
    read_result_categories,
    read_results,
    select_annotated,
    sidecar_path,
)


def read_ground_truth(path: Path, data: Path) -> COCO:
    """Read annotations from a COCO file, or from a folder of label maps.

    Parameters
    ----------
    path
        A COCO file, or a folder `<image>/class<K>.tif` with a subfolder for each annotated image
        of the test list, empty if it has no cells, or as in `train/` of a data folder.
    data
        The data folder, only for label maps: its test list defines the ids, its
        `train__annot.json`, if any, the classes.

    Returns
    -------
    A COCO dict as of `cellseg.read.coco.load_coco`, for label maps of the annotated images.

    Raises
    ------
    InputError
        If a file is missing or damaged, or doesn't fit its image.
    """
    if not Path(path).is_dir():
        return load_coco(path)
    return _read_folder(Path(path), Path(data), read_test_list(data), Path(data) / TEST_LIST)


def _read_folder(
    folder: Path,
    data: Path,
    listed: Sequence[ImageRecord],
    list_path: Path,
    all_listed: bool = True,
) -> COCO:
    """Read a folder of label maps of listed images, whose ids the images get.

    `all_listed` makes label maps of other images an error, else a warning.
    """
    images: dict[str, list[ImageRecord]] = {}
    for image in listed:
        images.setdefault(image_name(image.file_name), []).append(image)
    names = [category["name"] for category in data_categories(data)]
    remedy = "expected <image>/class<K>.tif for each annotated image, or a COCO file"
    folders = [path for path in list_entries(folder, remedy) if path.is_dir()]
    if not folders:
        raise InputError(f"{folder}: no folder in it, {remedy}; choose another")
    annotated, ids = [], []
    others = [each.name for each in folders if each.name not in images]
    if len(others) == len(folders) and not all_listed:
        raise InputError(
            f"{folder}: none of its folders ({listed_names(others)}) has the name of an image in "
            f"{list_path}; pass the folder of the label maps, {remedy}"
        )
    if others and not all_listed:
        n = plural(len(others), "image")
        warn(f"{folder}: {n} not in {list_path}, so not scored: {listed_names(others)}")
        folders = [each for each in folders if each.name in images]
    for each in tqdm(folders, "reading ground truth", unit="image", leave=False, disable=None):
        if each.name not in images:
            raise InputError(
                f"{each}: no image of this name in {list_path}; remove the folder,"
                " or set the images' data folder with --data"
            )
        if len(images[each.name]) > 1:
            both = " and ".join(image.file_name for image in images[each.name])
            raise InputError(
                f"{each}: {both} in {list_path} both have this name; rename one of them"
                " there and in the folder of the test images"
            )
        image = images[each.name][0]
        if any(path.stem.lower() == "image" for path in each.iterdir()):
            cells = annotate_image(read_train_folder(each, len(names)), names)
        else:
            files = _class_files(each, len(names))
            if image.size and not image.path.exists():
                cells = annotate_without_pixels(image.path, files, image.size)
            else:
                cells = annotate_image(TrainImage(each.name, image.path, files, ()), names)
        if cells.size != image.size:
            expected = " x ".join(map(str, image.size or ()))
            raise InputError(
                f"{image.path}: {cells.size[0]} x {cells.size[1]} (height x width), expected"
                f" {expected} as in {list_path}; fix the list"
            )
        ids.append(image.id)
        annotated.append(replace(cells, file_name=image.file_name))
    warn_of_images(annotated)
    return build_coco(annotated, names, ids)


def _class_files(folder: Path, n_classes: int) -> dict[int, Path]:
    files = {}
    for path in list_entries(folder, "choose another"):
        match = re.fullmatch(r"class([1-9][0-9]*)\.(tiff?|png|npy)", path.name, re.IGNORECASE)
        if not match or int(match[1]) > n_classes or int(match[1]) in files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it or rename it"
            )
        files[int(match[1])] = path
    return files


def find_ground_truth(paths: Sequence[Path]) -> Path | None:
    """Return the annotations that inference.py wrote next to the first of some results, if any.

    Raises InputError if not all of the results have some or none, hence hardly the same images.
    """
    sidecar = find_sidecar_ground_truth(paths[0])
    for path in paths[1:]:
        if (sidecar is None) != (find_sidecar_ground_truth(path) is None):
            raise InputError(
                f"{path}: only one of {paths[0]} and this has validation annotations next to it;"
                " compare results of the same images, or set their annotations with --truth"
            )
    return sidecar


def find_default_ground_truth(paths: Sequence[Path], data: Path) -> Path | None:
    """Return the default annotations of some results, None if they are of a user's own images.

    They are those that inference.py wrote next to the results, else `test_masks` in the data
    folder, which may be missing. Raises InputError if `find_ground_truth` does.
    """
    if any(sidecar_path(path, "list").is_file() for path in paths):
        return None
    return find_ground_truth(paths) or data / "test_masks"


_AGAIN = "predict again with inference.py"


def read_results_with_ground_truth(
    paths: Sequence[Path], source: Path, data: Path, *, only_annotated: bool = False
) -> tuple[COCO, list[list[Any]]]:
    """Read results and their ground truth, of the same images.

    Parameters
    ----------
    paths
        Results, as of `cellseg.read.results.read_results`; several to compare.
    source, data
        The annotations and the data folder, as of `read_ground_truth`.
    only_annotated
        Ignore detections in images that aren't annotated.

    Returns
    -------
    The ground truth of the predicted images, or of all where these are unknown, and the
    detections of each of `paths`, with the ground truth's image ids.

    Raises
    ------
    InputError
        If something can't be read, images can't be identified, or results to compare are not
        of all annotated images.
    """
    all_results = [read_results(path) for path in paths]
    lists = [each for path in paths if (each := sidecar_path(path, "list")).is_file()]
    if lists and Path(source).is_dir():
        listed = {
            image.file_name: image for each in lists for image in read_image_list(each, _AGAIN)
        }
        records = [replace(image, id=n) for n, image in enumerate(listed.values(), 1)]
        ground_truth = _read_folder(Path(source), Path(data), records, lists[0], all_listed=False)
    else:
        ground_truth = read_ground_truth(source, data)
    for path in paths:
        _check_same_classes(path, ground_truth, source)
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
                f"{path}: {name} of {source} is in only one of the two results; compare results "
                "of the same images, or set the annotations of those in both with --truth"
            )
    ground_truth = select_images(ground_truth, predicted[0])
    if only_annotated:
        all_results = [select_annotated(results, ground_truth) for results in all_results]
    return ground_truth, all_results


def _check_same_classes(path: Path, ground_truth: COCO, source: Path) -> None:
    """Check that results and ground truth don't have the same classes with other ids."""
    theirs: dict[int, str] = {}
    with contextlib.suppress(InputError):  # damaged, which scores don't depend on
        theirs = {each["id"]: each["name"] for each in read_result_categories(path) or ()}
    ours = {each["id"]: each["name"] for each in ground_truth["categories"]}
    if theirs.keys() == ours.keys() and set(theirs.values()) == set(ours.values()):
        for number, name in ours.items():
            if theirs[number] != name:
                raise InputError(
                    f"{path}: class {number} is {theirs[number]}, but in {source} it is {name}; "
                    "number the classes in the same order in both"
                )


def _check_same_images(path: Path, ground_truth: COCO, source: Path) -> None:
    """Check that results with a validation set have all images of the ground truth in it.

    Cells in images that a run was not asked to predict would count as its false negatives.
    """
    sidecar = find_sidecar_ground_truth(path)
    if sidecar is None:
        return
    validation = {(image["id"], image["file_name"]) for image in load_coco(sidecar)["images"]}
    for image in ground_truth["images"]:
        if (image["id"], image["file_name"]) not in validation:
            raise InputError(
                f"{path}: image {image['id']} of {source}, {image['file_name']}, is not in its"
                f" validation set, {sidecar}; compare results of the same images, or set the"
                " annotations of the images in both with --truth, and --only_annotated"
            )


def _renumber_images(
    ground_truth: COCO, source: Path, results: list[Any], path: Path, only_annotated: bool
) -> tuple[list[Any], set[int]]:
    """Return results of a user's own images with the image ids of the ground truth.

    Their ids index the list that inference.py wrote next to them; images are paired by name.
    The ground truth's ids of the listed images are returned too.
    """
    list_path = sidecar_path(path, "list")
    listed = read_image_list(list_path, _AGAIN)
    ids = pair_by_name(listed, list_path, image_records(ground_truth, Path()), source)
    remedy = f"use the same names in both, or remove {list_path} if the ids are those of {source}"
    if not ids:
        raise InputError(f"{path}: none of the images in {list_path} is in {source}; {remedy}")
    names = {image.id: image.file_name for image in listed}
    _print_pairs(path, listed, ids, ground_truth, source)
    renumbered = []
    for n, entry in enumerate(results):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if type(image_id) is not int:
            renumbered.append(entry)  # the check of entries reports it
        elif image_id not in names:
            raise InputError(
                f"{path}: entry {n}: image_id {image_id} is not in {list_path}; {_AGAIN}"
            )
        elif image_id in ids:
            renumbered.append({**entry, "image_id": ids[image_id]})
        elif not only_annotated:
            raise InputError(
                f"{path}: entry {n}: its image, {names[image_id]}, is not in {source}; ignore such"
                f" results with --only_annotated, or {remedy}"
            )
    return renumbered, set(ids.values())


def _print_pairs(
    path: Path,
    listed: Sequence[ImageRecord],
    ids: dict[int, int],
    ground_truth: COCO,
    source: Path,
) -> None:
    """Print how many images were matched and how, and warn of those that were not."""
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    same_path = sum(
        path_parts(image.file_name)[-len(parts) :] == parts and len(parts) > 1
        for image in listed
        if image.id in ids and (parts := path_parts(names[ids[image.id]]))
    )
    by_name = len(ids) - same_path
    how = " and ".join(
        f"{n} by {what}" for n, what in ((same_path, "path"), (by_name, "file name")) if n
    )
    if source.is_dir():  # whose images have the listed paths
        how = "by the names of its folders"
    print(f"{display_path(path)}: {plural(len(ids), 'image')} matched with {source}, {how}")
    if n_unknown := len(listed) - len(ids):
        warn(f"{path}: {plural(n_unknown, 'image')} not in {source}, so not scored")
    if n_unpredicted := len(names) - len(ids):
        warn(f"{source}: {plural(n_unpredicted, 'image')} not in {path}, so not scored")
