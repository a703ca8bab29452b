"""Time and memory of the report: of a full test set, and of a slide.

The test set has 101 synthetic images of NYCU HW3's sizes, with up to 800 cells; the slide 20,480 px
a side and 200,000 cells. The time is that from the start of loading until the first image is drawn.

    python bench/report.py
    python bench/report.py --slide [--truth] [--side 20480] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import report
from cellseg import rle
from cellseg.read.coco import load_coco
from cellseg.rle import boxes_xyxy, encode, label_map_to_runs, xyxy_to_xywh
from tests.look.browser import open_page, wait_until_ready

N_IMAGES = 101
MEGAPIXELS = 42.9  # of all images, and the sides of the largest, as in NYCU HW3's test list
LARGEST = (1577, 1987)


def ragged_disk(rng: np.random.Generator, smallest: float, largest: float) -> np.ndarray:
    """Return the corners of a disk about 0, `(24, 2)`, with a mean radius between the two."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    radius = rng.uniform(smallest, largest) * rng.uniform(0.85, 1.15, 24)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def disks(rng: np.random.Generator, size: tuple[int, int], n_cells: int) -> np.ndarray:
    """Return a label map of ragged disks that overlap little."""
    labels = np.zeros(size, np.int32)
    for n in range(1, n_cells + 1):
        disk = ragged_disk(rng, 6, 16)
        points = rng.uniform(0, size[::-1]) + disk
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


BLOCK = 2048  # px, of the slide


def make_slide(folder: Path, side: int, n_cells: int) -> None:
    """Write a slide with tissue of two densities, its detections and its ground truth."""
    rng = np.random.default_rng(0)
    n_blocks = side // BLOCK
    step = 33  # px, between the cells of the densest tissue
    labels = disks_in_rows(rng, BLOCK, step)
    n_labels = int(labels.max())
    noise = cv2.GaussianBlur(rng.normal(0, 40, (BLOCK, BLOCK, 3)), (0, 0), 1.3)
    noise += rng.normal(0, 5, noise.shape)
    centre = (n_blocks - 1) / 2
    keep = np.zeros((n_blocks, n_blocks))
    for row, column in np.ndindex(keep.shape):
        away = np.hypot(row - centre, column - centre) / (n_blocks / 2)
        keep[row, column] = max(0.02, 1.15 - away) if (row + column) % 3 else 0.35
    keep *= n_cells / (keep.sum() * n_labels)
    classes = rng.choice(4, n_labels, p=[0.5, 0.4, 0.02, 0.08])
    masks: list[rle.MaskRuns] = []
    of_class: list[np.ndarray] = []

    def tiles():
        for row in range(n_blocks):
            band = np.empty((BLOCK, side, 3), np.uint8)
            for column in range(n_blocks):
                kept = np.flatnonzero(rng.random(n_labels) < keep[row, column]) + 1
                here = np.where(np.isin(labels, kept), labels, 0)
                tissue = np.where((here > 0)[..., None], (110, 70, 150), (215, 160, 205)) + noise
                left = column * BLOCK
                band[:, left : left + BLOCK] = tissue.clip(0, 255)
                found, runs = label_map_to_runs(here)
                x, y = np.divmod(runs.starts, BLOCK)
                starts = (left + x) * side + row * BLOCK + y
                ends = starts + runs.ends - runs.starts
                masks.append(rle.MaskRuns((side, side), starts, ends, runs.offsets))
                # The right half has more of the second class.
                of_class.append(
                    np.where((column > centre) & (found % 3 > 0), 1, classes[found - 1])
                )
            for top, left in itertools.product(range(0, BLOCK, 512), range(0, side, 512)):
                yield band[top : top + 512, left : left + 512]

    tifffile.imwrite(
        folder / "slide.tif", tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(512, 512),
        photometric="rgb", compression="jpeg", resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    runs = rle.concatenate((side, side), masks)
    k = np.concatenate(of_class)
    image = {"id": 1, "file_name": "slide.tif", "height": side, "width": side, "mpp": 0.25}
    listed = {**image, "file_name": str((folder / "slide.tif").resolve())}
    (folder / "results-list.json").write_text(json.dumps([listed]))
    with open(folder / "results.json", "w") as file:
        entries = [
            {"image_id": 1, "category_id": int(c) + 1, "segmentation": mask, "score": score}
            for mask, c, score in zip(
                encode(runs), k, rng.beta(4, 1.5, len(runs)).round(4).tolist(), strict=True
            )
        ]
        json.dump(entries, file)
    # The ground truth: some cells are missing, some of another class, all a little lower.
    some = np.flatnonzero(rng.random(len(runs)) < 0.9)
    moved = rle.select_masks(runs, some)
    moved = rle.MaskRuns(moved.size, moved.starts + 2, moved.ends + 2, moved.offsets)
    k = np.where(rng.random(len(k)) < 0.05, 0, k)[some]
    truth = {
        "images": [image],
        "categories": [{"id": c, "name": f"class{c}"} for c in range(1, 5)],
        "annotations": [
            {
                "id": n, "image_id": 1, "category_id": int(c) + 1, "segmentation": mask,
                "bbox": box, "area": int(a), "iscrowd": 0,
            }
            for n, (mask, c, box, a) in enumerate(
                zip(
                    encode(moved), k, xyxy_to_xywh(boxes_xyxy(moved)).tolist(), rle.areas(moved),
                    strict=True,
                ), 1,
            )
        ],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(truth))
    print(f"{len(runs)} cells")


def disks_in_rows(rng: np.random.Generator, side: int, step: int) -> np.ndarray:
    """Return a label map of ragged disks that don't touch each other or the edge."""
    labels = np.zeros((side, side), np.int32)
    places = itertools.product(range(step, side - step, step), repeat=2)
    for n, (y, x) in enumerate(places, 1):
        disk = ragged_disk(rng, 7, 13)
        points = (x, y) + rng.uniform(-2, 2, 2) + disk
        cv2.fillPoly(labels, [points.round().astype(np.int32)], n)
    return labels


def bench_slide(folder: Path, side: int, with_truth: bool) -> None:
    """Write the page of a slide, open it, and move through it."""
    if not (folder / "slide.tif").exists():
        make_slide(folder, side, round(200_000 * (side / 20480) ** 2))
    argv = [sys.executable, report.__file__, str(folder / "results.json")]
    argv += ["--data", str(folder), "--resamples", "0"]
    if with_truth:
        argv += ["--truth", str(folder / "truth.json")]
    began = time.perf_counter()
    subprocess.run(argv, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"written in {time.perf_counter() - began:.1f} s, of the CPU "
        f"{used.ru_utime + used.ru_stime:.1f} s; {used.ru_maxrss / 1e6:.2f} GB at most"
    )
    with open_page(folder / "report.html") as driver:
        driver.set_script_timeout(60)
        print(f"first view after {wait_until_ready(driver):.0f} ms", end=", ")
        print(f"all its tiles after {driver.execute_async_script(STEP, 'none')[1]:.0f} ms")
        for name in STEPS:
            frames, loaded = zip(
                *(driver.execute_async_script(STEP, name) for _ in range(8)), strict=True
            )
            print(
                f"{name}: a step {np.median(frames):.0f} ms, at most {max(frames):.0f} ms; "
                f"with all its tiles {np.median(loaded):.0f} ms, at most {max(loaded):.0f} ms"
            )
        driver.execute_cdp_cmd("Performance.enable", {})
        driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        heap = {one["name"]: one["value"] for one in metrics}["JSHeapUsedSize"]
        print(f"slider: {driver.execute_script(SLIDE):.0f} ms; heap {heap / 1e6:.0f} MB")


STEPS = ("zoom in", "pan", "slider", "zoom out")
STEP = """
const [name, done] = arguments, began = performance.now();
const canvas = document.getElementById("canvas");
const key = (key, shiftKey = false) =>
  canvas.dispatchEvent(new KeyboardEvent("keydown", {key, shiftKey, bubbles: true}));
if (name === "zoom in") key("+");
if (name === "zoom out") key("-");
if (name === "pan") for (let n = 0; n < 3; n++) key("ArrowRight", true);
if (name === "slider") {
  const slider = document.getElementById("score");
  slider.value = (Number(slider.value) + 0.07) % 1;
  slider.dispatchEvent(new Event("input"));
}
let frame = null;
const wait = () => {
  frame ??= performance.now() - began;
  if (frame > 0 && canvas.dataset.missing === "0") done([frame, performance.now() - began]);
  else requestAnimationFrame(wait);
};
requestAnimationFrame(() => requestAnimationFrame(wait));
"""


def main() -> None:
    """Write the page, and open it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide", action="store_true")
    parser.add_argument("--truth", action="store_true", help="with ground truth for the slide")
    parser.add_argument("--side", type=int, default=20480, help="of the slide, in px")
    parser.add_argument("--keep", type=Path, help="folder to write to (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if args.slide:
            bench_slide(folder, args.side, args.truth)
        else:
            bench_test_set(folder)


def bench_test_set(folder: Path) -> None:
    """Write the page of a test set, and open it three times."""
    make(folder)
    began = time.perf_counter()
    truth = ["--truth", str(folder / "truth.json"), "--data", str(folder), "--resamples", "100"]
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
