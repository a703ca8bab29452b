"""Time AP and pycocotools' AP in one run, which must be equal, then all other metrics.

    python bench/evaluation.py [--images N]

About 15,000 ground-truth cells and 13,000 detections in 101 images of the sizes of NYCU HW3's test
list. Nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.sizes import image_sizes
from cellseg.read.coco import AnnotatedImage, build_coco
from cellseg.read.pairs import pair_by_image
from cellseg.rle import label_map_to_runs
from cellseg.score.ap import mask_ap
from cellseg.score.summary import score
from cellseg.synthetic import draw_tissue

CLASSES = ["class1", "class2", "class3", "class4"]


def draw_cells(n_images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and detections: shifted by pixels, some missed, some misclassified."""
    rng = np.random.default_rng(0)
    sheet = draw_tissue(2600, 2100, rng, 370, 1.0)[1]
    truth: list[AnnotatedImage] = []
    moved: list[AnnotatedImage] = []
    for n, (height, width) in enumerate(image_sizes(n_images)):
        top, left = rng.integers(4, (2596 - height, 2096 - width))
        down, right = rng.integers(-4, 5, 2)
        for images, y, x in ((truth, top, left), (moved, top + down, left + right)):
            windows = [labels[y : y + height, x : x + width] for labels in sheet]
            cells = {k: label_map_to_runs(window)[1] for k, window in enumerate(windows, 1)}
            images.append(AnnotatedImage(f"{n}.tif", (height, width), cells, Counter()))
    results = [
        {
            "image_id": cell["image_id"],
            "category_id": cell["category_id"] if rng.random() < 0.9 else int(rng.integers(1, 5)),
            "segmentation": cell["segmentation"],
            "bbox": cell["bbox"],
            "score": float(rng.random()),
        }
        for cell in build_coco(moved, CLASSES)["annotations"]
        if rng.random() < 0.87
    ]
    return build_coco(truth, CLASSES), results


def pycocotools_ap(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Return the AP of all detections by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "segm")
        evaluation.params.maxDets = [1, 100, len(results)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    return float(precision[precision > -1].mean())


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result."""
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=101, help="number of images (default: 101)")
    truth, results = draw_cells(parser.parse_args().images)
    print(f"{len(truth['annotations'])} ground-truth cells, {len(results)} detections")
    theirs, their_ap = timed(lambda: pycocotools_ap(truth, copy.deepcopy(results)))

    def our_mask_ap() -> float:
        return mask_ap(pair_by_image(truth, results), len(CLASSES))[None].ap

    ours, our_ap = min(timed(our_mask_ap) for _ in range(3))
    print(f"pycocotools {theirs:6.2f} s   AP {their_ap:.12f}")
    print(f"this        {ours:6.2f} s   AP {our_ap:.12f}   {theirs / ours:.0f} times as fast")
    plain, _ = timed(lambda: score(pair_by_image(truth, results), CLASSES, n_resamples=0))
    resampled, _ = timed(lambda: score(pair_by_image(truth, results), CLASSES, n_resamples=1000))
    print(f"all metrics {plain:6.2f} s   {theirs / plain:.0f} times as fast as pycocotools' AP")
    print(f"intervals   {resampled - plain:6.2f} s   from 1000 resamples")


if __name__ == "__main__":
    main()
