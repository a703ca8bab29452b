"""Time until Chromium shows the report of a full test set.

101 synthetic images of NYCU HW3's test sizes, with up to 800 cells. The time is that from the
start of loading until the first image is drawn with its outlines.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
from cellseg.read.coco import load_coco
from cellseg.rle import boxes_xyxy, encode, label_map_to_runs, xyxy_to_xywh
from tests.look.browser import open_page, wait_until_ready

N_IMAGES = 101
MEGAPIXELS = 42.9  # of all images, and the sides of the largest, as in NYCU HW3's test list
LARGEST = (1577, 1987)


def disks(rng: np.random.Generator, size: tuple[int, int], n_cells: int) -> np.ndarray:
    """Return a label map of ragged disks that overlap little."""
    labels = np.zeros(size, np.int32)
    for n in range(1, n_cells + 1):
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radius = rng.uniform(6, 16) * rng.uniform(0.85, 1.15, 24)
        centre = rng.uniform(0, size[::-1])
        points = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        cv2.fillPoly(labels, [points.round().astype(np.int32)], n)
    return labels


def make(folder: Path) -> None:
    """Write images, annotations, and results: the ground truth shifted by a few pixels."""
    rng = np.random.default_rng(0)
    truth: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": f"class{k}"} for k in range(1, 5)],
    }
    results = []
    rest = (MEGAPIXELS * 1e6 - LARGEST[0] * LARGEST[1]) / (N_IMAGES - 1)
    for id_ in range(1, N_IMAGES + 1):
        size = LARGEST if id_ == 1 else (int(rest**0.5 * 0.9), int(rest**0.5 / 0.9))
        n_cells = 800 if id_ == 1 else int(rng.integers(10, 400))
        labels = disks(rng, size, n_cells)
        # Compresses like tissue, to about 0.3 bytes per pixel: fine structure and noise.
        noise = cv2.GaussianBlur(rng.normal(0, 40, (*size, 3)), (0, 0), 1.3)
        tissue = np.where((labels > 0)[..., None], (110, 70, 150), (215, 160, 205)) + noise
        tissue += rng.normal(0, 5, (*size, 3))
        tifffile.imwrite(folder / f"{id_}.tif", tissue.clip(0, 255).astype(np.uint8))
        truth["images"].append(
            {"id": id_, "file_name": f"{id_}.tif", "height": size[0], "width": size[1]}
        )
        _, runs = label_map_to_runs(labels)
        _, moved = label_map_to_runs(np.roll(labels, rng.integers(-4, 5, 2), (0, 1)))
        classes = rng.integers(1, 5, len(runs)).tolist()
        boxes = xyxy_to_xywh(boxes_xyxy(runs)).tolist()
        for mask, k, box in zip(encode(runs), classes, boxes, strict=True):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1, "image_id": id_, "category_id": k,
                    "segmentation": mask, "bbox": box, "iscrowd": 0,
                }
            )  # fmt: skip
        for mask, k in zip(encode(moved), classes, strict=False):
            score = float(np.float32(rng.random()))
            results.append(
                {"image_id": id_, "category_id": k, "segmentation": mask, "score": score}
            )
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    assert len(load_coco(folder / "truth.json")["images"]) == N_IMAGES


def main() -> None:
    """Write the page, and open it three times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        began = time.perf_counter()
        truth = ["--truth", str(folder / "truth.json"), "--data", name, "--resamples", "100"]
        report.main([str(folder / "results.json"), *truth])
        print(f"written in {time.perf_counter() - began:.1f} s")
        page = folder / "report.html"
        for _ in range(3):
            with open_page(page) as driver:
                ready = wait_until_ready(driver)
                took = driver.execute_script(SLIDE)
                print(f"ready after {ready:.0f} ms; a step of the slider {took:.0f} ms")


SLIDE = """
const slider = document.getElementById("score"), began = performance.now();
slider.value = 0.1;
slider.dispatchEvent(new Event("input"));
return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(
  () => done(performance.now() - began))));
"""


if __name__ == "__main__":
    main()
