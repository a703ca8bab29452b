"""Small cases for the tests of scoring, from mask arrays and pycocotools' RLEs."""

from __future__ import annotations

import warnings

import numpy as np
import pycocotools.mask


def rle(mask):
    coded = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(n) for n in coded["size"]], "counts": coded["counts"].decode()}


def decode(coded):
    with warnings.catch_warnings():
        # pycocotools 2.0.11 triggers a warning of numpy 2.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pycocotools.mask.decode(coded).astype(bool)


def truth_of(images, names=("a", "b", "c")):
    """Return a COCO dict of `{image id: (size, [(class, mask, iscrowd)])}`."""
    annotations: list[dict] = []
    for image_id, (_, cells) in images.items():
        for class_id, mask, crowd in cells:
            coded = rle(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "segmentation": coded,
                    "area": int(np.count_nonzero(mask)),
                    "bbox": pycocotools.mask.toBbox(coded).tolist(),
                    "iscrowd": int(crowd),
                }
            )
    return {
        "images": [
            {"id": id, "file_name": f"{id}.tif", "height": size[0], "width": size[1]}
            for id, (size, _) in images.items()
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def entry(image_id, class_id, mask, score):
    return {
        "image_id": image_id,
        "category_id": class_id,
        "segmentation": rle(mask),
        "score": score,
        "bbox": pycocotools.mask.toBbox(rle(mask)).tolist(),
    }


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def random_case(
    rng, *, n_images=4, n_classes=3, n_gt=6, n_results=10, crowds=True, ties=True, largest=14
):
    """Return ground truth and results with crowds, ties, empty masks, overlaps, images and
    classes missing on one or both sides, and ids that are not 1…n."""
    images = {}
    results = []
    ids = rng.permutation(np.arange(3, 3 + 2 * n_images))[:n_images].tolist()
    gt_classes = rng.choice(n_classes, rng.integers(0, n_classes + 1), replace=False) + 1
    result_classes = rng.choice(n_classes, rng.integers(0, n_classes + 1), replace=False) + 1

    def box(size):
        top, left = rng.integers(0, size[0]), rng.integers(0, size[1])
        return top, left, top + rng.integers(0, 8), left + rng.integers(0, 8)

    for id in ids:
        size = (int(rng.integers(1, largest)), int(rng.integers(1, largest)))
        cells = []
        if len(gt_classes):
            for _ in range(rng.integers(0, n_gt + 1)):
                crowd = crowds and rng.random() < 0.15
                cells.append((int(rng.choice(gt_classes)), rectangle(size, *box(size)), crowd))
        images[id] = (size, cells)
        if len(result_classes):
            for _ in range(rng.integers(0, n_results + 1)):
                if cells and rng.random() < 0.7:  # a cell, moved and cut a little
                    class_id, mask, _ = cells[rng.integers(len(cells))]
                    mask = np.roll(mask, rng.integers(-1, 2), axis=int(rng.integers(2)))
                    if class_id not in result_classes or rng.random() < 0.2:
                        class_id = int(rng.choice(result_classes))
                else:
                    mask, class_id = rectangle(size, *box(size)), int(rng.choice(result_classes))
                score = float(rng.integers(0, 6) / 5) if ties else float(rng.random())
                results.append(entry(id, class_id, mask, score))
    order = rng.permutation(len(results))
    return truth_of(images, [f"class{k + 1}" for k in range(n_classes)]), [
        results[i] for i in order
    ]


def first_and_last(mask):
    """Return column and row of the first and the last pixel of a mask, column by column."""
    pixels = sorted((x, y) for y, x in np.argwhere(mask).tolist()) or [(-1, -1)]
    return (*pixels[0], *pixels[-1])


def naive_label_maps(truth, results, image, threshold=0.5, overlap="score"):
    """Draw both label maps of an image, mask by mask.

    Return the two `(H, W)` maps, with indices in the ground truth and in the results plus 1 as
    labels, and the class of each label.
    """
    size = (image["height"], image["width"])
    gt_map, pred_map = np.zeros(size, int), np.zeros(size, int)
    gt_class, pred_class = {}, {}
    cells = []
    for n, a in enumerate(x for x in truth["annotations"] if x["image_id"] == image["id"]):
        mask = decode(a["segmentation"])
        if not a["iscrowd"]:
            cells.append((-mask.sum(), *(-end for end in first_and_last(mask)), -n, mask))
            gt_class[n + 1] = a["category_id"]
    for *_, n, mask in sorted(cells, key=lambda c: c[:6]):
        gt_map[mask] = 1 - n
    detections = []
    for n, r in enumerate(x for x in results if x["image_id"] == image["id"]):
        mask = decode(r["segmentation"])
        if r["score"] >= threshold:
            key = {"score": r["score"], "smaller": -mask.sum(), "larger": mask.sum()}[overlap]
            detections.append((key, -n, mask))
            pred_class[n + 1] = r["category_id"]
    for _, n, mask in sorted(detections, key=lambda c: c[:2]):
        pred_map[mask] = 1 - n
    return gt_map, pred_map, gt_class, pred_class


def labels_of(label_map):
    return [label for label in np.unique(label_map).tolist() if label]
