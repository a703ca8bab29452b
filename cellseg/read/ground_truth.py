"""Read the ground truth of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import EvalImage, ImageRecord
from cellseg.messages import in_images, plural, warn
from cellseg.read.coco import (
    COCO,
    annotations_by_image,
    image_records,
    load_coco,
    select_images,
)
from cellseg.read.copies import checked_for_copies, checked_for_repeated_cells
from cellseg.read.foreign_coco import load_coco_as_written
from cellseg.read.image_lists import ListedImages, has_list, read_listed_images, read_test_list
from cellseg.read.layout import TEST_LIST
from cellseg.read.names import check_distinct, image_name, path_parts
from cellseg.read.pairs import iter_pairs, pair_by_name, select_annotated
from cellseg.read.regions import Regions
from cellseg.read.results import (
    AGAIN,
    MANIFEST,
    check_same_classes,
    find_sidecar_ground_truth,
    iter_results,
    sidecar_path,
    warn_of_lost_classes,
)
from cellseg.read.truth_folder import read_truth_folder
from cellseg.read.window import wrong_size
from cellseg.rle import RLE, centroids, decode, select_masks


def check_annotations(path: Path, how: str = "") -> None:
    """Raise InputError if annotations are missing; `how` ends the advice."""
    if not path.exists():
        raise InputError(
            f"{path}: annotations not found; pass a COCO file or a folder of label maps or outlines"
            f"{how}"
        )


def read_ground_truth(path: Path, data: Path) -> COCO:
    """Read annotations from a COCO file, or from a folder of label maps or outlines.

    Parameters
    ----------
    path
        A COCO file, or a folder `<image>/class<K>.tif` with a subfolder for each annotated image
        of the test list, empty if it has no cells, or as in `train/` of a data folder; or a
        folder with a label map or outlines for each, of the image's name.
    data
        The data folder, only for a folder: its test list defines the ids, its
        `train__annot.json`, if any, the classes.

    Returns
    -------
    A COCO dict as of `cellseg.read.coco.load_coco`, for a folder of the annotated images.

    Raises
    ------
    InputError
        If a file is missing or damaged, or doesn't fit its image, or an image is listed twice.
    """
    if not path.is_dir():
        coco = load_coco_as_written(path)
        check_distinct(path, [image["file_name"] for image in coco["images"]], data)
        return coco
    return read_truth_folder(path, data, read_test_list(data), data / TEST_LIST)


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
    if any(map(has_list, paths)):
        return None
    return find_ground_truth(paths) or data / "test_masks"


def read_results_with_ground_truth(
    paths: Sequence[Path], source: Path, data: Path, *, only_annotated: bool = False
) -> tuple[COCO, list[Iterator[EvalImage]]]:
    """Read ground truth, and results of the same images as they are needed.

    Parameters
    ----------
    paths
        Results as of `results_file`, or folders of many slides; several to compare.
    source, data
        The annotations and the data folder, as of `read_ground_truth`.
    only_annotated
        Ignore detections in images that aren't annotated.

    Returns
    -------
    The ground truth of the predicted images, or of all where these are unknown; and for each of
    `paths` these images by ascending id of the ground truth, one at a time, and of many slides one
    slide at a time; at the end they warn of detections and cells that occur twice. Those of a
    user's own have the path, level, resolution and tissue of the list next to the results.

    Raises
    ------
    InputError
        If something can't be read or isn't valid, images can't be identified, results of a user's
        own images are of some that aren't annotated, or results to compare are not of all
        annotated images. Results that aren't valid raise it when their images are taken.
    """
    all_listed = [read_listed_images(path) for path in paths]
    parts = [
        part
        for path, own in zip(paths, all_listed, strict=True)
        for part in ([part for part, _ in own.parts] if own else [path])
    ]
    for part in parts:
        next(iter_results(part), None)  # a file that can't be read is said before all else
    check_annotations(source, " with --truth")
    ground_truth = _read_for([own for own in all_listed if own], source, data)
    check_same_classes(parts, ground_truth["categories"], source)
    if len(paths) > 1:
        for path, own in zip(paths, all_listed, strict=True):
            if not own:
                _check_same_images(path, ground_truth, source)
    annotated = {image["id"] for image in ground_truth["images"]}
    all_ids = [
        _pair_with_list(ground_truth, source, path, own, only_annotated)
        if own
        else {id_: id_ for id_ in annotated}
        for path, own in zip(paths, all_listed, strict=True)
    ]
    predicted = [set(ids.values()) for ids in all_ids]
    for path, theirs in zip(paths, predicted, strict=True):
        if not_in_both := theirs ^ predicted[0]:
            name = next(i["file_name"] for i in ground_truth["images"] if i["id"] in not_in_both)
            raise InputError(
                f"{path}: {name} of {source} is in only one of the two results; compare results "
                "of the same images, or set the annotations of those in both with --truth"
            )
    for path, own, ids in zip(paths, all_listed, all_ids, strict=True):
        if own:
            _print_pairs(path, own.images, ids, ground_truth, source)
    _check_same_regions(paths, all_listed, all_ids)
    ground_truth = select_images(ground_truth, predicted[0])
    warn_of_lost_classes(parts, ground_truth, source)
    images = []
    for path, own, ids in zip(paths, all_listed, all_ids, strict=True):
        if own:
            of_path = _own_images(ground_truth, own, ids)
        else:
            some = iter_results(path)
            some = select_annotated(some, ground_truth) if only_annotated else some
            of_path = iter_pairs(ground_truth, some, path)
        images.append(checked_for_copies(path, of_path))
    images[0] = checked_for_repeated_cells(source, images[0])  # the others have the same
    return ground_truth, images


def _check_same_regions(
    paths: Sequence[Path],
    lists: Sequence[ListedImages | None],
    all_ids: Sequence[dict[int, int]],
) -> None:
    """Check that results to compare were predicted in the same regions, if in any."""
    regions = [
        {ids[i.id]: i.region_mask for i in own.images if i.id in ids and i.region_mask}
        if own
        else {}
        for own, ids in zip(lists, all_ids, strict=True)
    ]
    for path, theirs in zip(paths, regions, strict=True):
        if theirs != regions[0]:
            raise InputError(
                f"{path}: was predicted in other regions than {paths[0]}; compare results of the "
                "same regions (--regions of inference.py)"
            )


def _read_for(lists: Sequence[ListedImages], source: Path, data: Path) -> COCO:
    """Read the ground truth for results: that of listed images, if `source` is a folder."""
    if not lists or not source.is_dir():
        return read_ground_truth(source, data)
    listed = {image.file_name: image for own in lists for image in own.images}
    records = [replace(image, id=n) for n, image in enumerate(listed.values(), 1)]
    others = {file_name: None for own in lists for file_name in own.others}
    missing = [file_name for file_name in others if file_name not in listed]
    return read_truth_folder(source, data, records, lists[0].source, missing)


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


def _pair_with_list(
    ground_truth: COCO, source: Path, path: Path, own: ListedImages, only_annotated: bool
) -> dict[int, int]:
    """Return the ground truth's ids of a user's own images, for those in both, by name.

    Raises InputError if there are none, or, without `only_annotated`, detections in another image.
    """
    # Slides without results may be those of the same name.
    others = [
        ImageRecord(-n, file_name, Path(file_name), None)
        for n, file_name in enumerate(own.others, 1)
    ]
    annotated = image_records(ground_truth, Path())
    ids = pair_by_name([*own.images, *others], own.source, annotated, source)
    ids = {image.id: ids[image.id] for image in own.images if image.id in ids}
    if not ids:
        raise InputError(
            f"{path}: none of the images in {own.source} is in {source}; {_same_names(own, source)}"
        )
    file_names = {image.id: image.file_name for image in own.images}
    for part, of_part in own.parts if not only_annotated else ():
        unknown = {n: file_names[id_] for n, id_ in of_part.items() if id_ not in ids}
        for n, entry in enumerate(iter_results(part) if unknown else ()):
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if type(image_id) is int and image_id in unknown:
                raise InputError(
                    f"{part}: entry {n}: its image, {unknown[image_id]}, is not in {source}; "
                    f"ignore such results with --only_annotated, or {_same_names(own, source)}"
                )
    return ids


def _same_names(own: ListedImages, source: Path) -> str:
    remedy = "use the same names in both"
    if own.source.name == MANIFEST:
        return remedy
    return f"{remedy}, or remove {own.source} if the ids are those of {source}"


def _own_images(ground_truth: COCO, own: ListedImages, ids: dict[int, int]) -> Iterator[EvalImage]:
    """Yield a user's own images that have ground truth, with it and what their list says.

    `ids` are their ids in the ground truth, by which they are sorted. Detections in other images
    are left out.
    """
    records = {image.id: (image, name) for image, name in zip(own.images, own.names, strict=True)}
    gt_images = {image["id"]: image for image in ground_truth["images"]}
    annotations = annotations_by_image(ground_truth)
    own_ids = {gt_id: id_ for id_, gt_id in ids.items()}
    n_outside: dict[str, int] = {}

    def renumbered(part: Path, of_part: dict[int, int]) -> Iterator[Any]:
        for n, entry in enumerate(iter_results(part)):
            image_id = entry.get("image_id") if isinstance(entry, dict) else None
            if type(image_id) is not int:
                yield entry  # the check of entries reports it
            elif image_id not in of_part:
                list_path = sidecar_path(part, "list")
                raise InputError(
                    f"{part}: entry {n}: image_id {image_id} is not in {list_path}; {AGAIN}"
                )
            elif of_part[image_id] in ids:
                yield {**entry, "image_id": ids[of_part[image_id]]}

    # A part is of one slide, or there is one part. Those without ground truth are only checked.
    gt_ids = [[ids[id_] for id_ in of_part.values() if id_ in ids] for _, of_part in own.parts]
    for some, (part, of_part) in sorted(
        zip(gt_ids, own.parts, strict=True), key=lambda each: each[0]
    ):
        of_images = {
            **ground_truth,
            "images": [gt_images[id_] for id_ in some],
            "annotations": [each for id_ in some for each in annotations[id_]],
        }
        for image in iter_pairs(of_images, renumbered(part, of_part), part):
            record, name = records[own_ids[image.id]]
            if record.region_mask:
                if record.size != image.size:
                    raise wrong_size(
                        record.path, image.size, record.region_mask["size"],
                        f" as in {own.source}; pass the ground truth of this image",
                    )  # fmt: skip
                n_before = len(image.gt_classes)
                image = _in_regions(image, record.region_mask)
                n_outside[name] = n_before - len(image.gt_classes)
            yield replace(
                image,
                name=name,
                path=record.path,
                level=record.level,
                mpp=record.mpp or image.mpp,
                tissue_px=record.tissue_px,
            )
    if n := sum(n_outside.values()):
        warn(
            f"{own.source}: ground-truth cells outside the regions that were predicted, not "
            f"counted: {n}, {in_images([name for name, each in n_outside.items() if each])}"
        )


def _in_regions(image: EvalImage, mask: RLE) -> EvalImage:
    """Return an image with the ground truth in regions: by centroid, as detections; and crowds."""
    regions = Regions(image.path, 1, decode([mask], image.size))
    inside = np.flatnonzero(regions.contain(centroids(image.gt_runs)) | image.crowd)
    return replace(
        image,
        gt_masks=[image.gt_masks[n] for n in inside],
        gt_runs=select_masks(image.gt_runs, inside),
        gt_classes=image.gt_classes[inside],
        crowd=image.crowd[inside],
    )


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
        has_folders = any((source / image_name(image.file_name)).is_dir() for image in listed)
        how = f"by the names of its {'folders' if has_folders else 'files'}"
    print(f"{display_path(path)}: {plural(len(ids), 'image')} matched with {source}, {how}")
    if n_unknown := len(listed) - len(ids):
        warn(f"{path}: {plural(n_unknown, 'image')} not in {source}, so not scored")
    if n_unpredicted := len(names) - len(ids):
        warn(f"{source}: {plural(n_unpredicted, 'image')} not in {path}, so not scored")
