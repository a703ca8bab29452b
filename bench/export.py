"""Export one image of 20,000 x 20,000 pixels with 200,000 cells: time and memory.

    python bench/export.py [--overlay]
    python bench/export.py --slides 10 --side 10000 --cells 100000

With `--slides`, a table of as many slides, each with these results, is exported, and scored with
the same cells as ground truth. Otherwise the baseline (pycocotools and OpenCV: decode each whole
mask, trace its contours) is timed on a few cells of the same image and scaled up: all of them would
take days.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import tifffile
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellseg.rle import MaskRuns, encode, label_map_to_runs

PROJECT = Path(__file__).resolve().parents[1]
TILE = 2000  # px: the image consists of shifted copies of one tile


def tile_labels(n_cells: int) -> np.ndarray:
    """Draw about `n_cells` ellipses into a label map of one tile."""
    rng = np.random.default_rng(0)
    labels = np.zeros((TILE, TILE), np.int32)
    per_side = round(n_cells**0.5)
    step = TILE / per_side
    for n in range(per_side**2):
        centre = (np.array(divmod(n, per_side)) + 0.5 + rng.uniform(-0.1, 0.1, 2)) * step
        axes = rng.uniform(0.2, 0.45, 2) * step
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(labels, centre.astype(int), axes.astype(int), angle, 0, 360, n + 1, -1)
    return labels


def write_case(data: Path, side: int, n_cells: int) -> int:
    """Write a data folder with one image of `side` squared, and results. Return the cell count."""
    tiles = side // TILE
    _, mask_runs = label_map_to_runs(tile_labels(n_cells // tiles**2))
    column, row = np.divmod(mask_runs.starts, TILE)
    rng = np.random.default_rng(1)
    results = data / "test-results.json"
    count = 0
    with results.open("w") as file:
        for n in tqdm(range(tiles**2), "generating", disable=None):
            x, y = (np.array(divmod(n, tiles)) * TILE).tolist()
            starts = (column + x) * side + row + y
            moved = MaskRuns(
                (side, side), starts, starts + mask_runs.ends - mask_runs.starts, mask_runs.offsets
            )
            for mask in encode(moved):
                entry = {
                    "image_id": 1,
                    "category_id": int(rng.integers(1, 5)),
                    "segmentation": mask,
                    "score": round(float(rng.uniform(0.5, 1)), 6),
                    "bbox": [x, y, 1, 1],
                }
                file.write(("," if count else "[") + json.dumps(entry))
                count += 1
        file.write("]")
    (data / "test").mkdir()
    (data / "test" / "slide.tif").touch()
    image = {"file_name": "slide.tif", "id": 1, "height": side, "width": side}
    (data / "test_image_name_to_ids.json").write_text(json.dumps([image]))
    return count


def write_cohort(folder: Path, results: Path, side: int, n: int) -> None:
    """Write a folder of `n` slides that all have the same results."""
    for number in range(n):
        slide = folder / f"{number}"
        slide.mkdir(parents=True)
        os.link(results, slide / "images-results.json")
        image = {"file_name": f"{number}.tif", "id": 1, "height": side, "width": side}
        (slide / "images-results-list.json").write_text(json.dumps([image]))
    rows = [f"{number}.tif,1,\n" for number in range(n)]
    (folder / "manifest.csv").write_text("path,cells,error\n" + "".join(rows))


def write_truth(path: Path, results: Path, side: int, n: int) -> None:
    """Write annotations of the `n` slides of `write_cohort`: the cells of these results."""
    numbers = range(1, n + 1)
    images = [
        {"id": i, "file_name": f"{i - 1}.tif", "height": side, "width": side} for i in numbers
    ]
    categories = [{"id": k, "name": f"class{k}"} for k in range(1, 5)]
    cells = [
        (cell["category_id"], cell["segmentation"]) for cell in json.loads(results.read_text())
    ]
    annotations = [
        {"id": id_, "image_id": i, "category_id": k, "segmentation": mask, "iscrowd": 0}
        for id_, (i, (k, mask)) in enumerate(itertools.product(numbers, cells), 1)
    ]
    truth = {"images": images, "categories": categories, "annotations": annotations}
    path.write_text(json.dumps(truth))


def write_image(path: Path, side: int) -> None:
    """Write an RGB image of smooth noise, row of tiles by row of tiles."""
    noise = np.random.default_rng(0).integers(120, 255, (TILE, TILE, 3), dtype=np.uint8)
    row = np.tile(cv2.GaussianBlur(noise, (0, 0), 2), (1, side // TILE, 1)).tobytes()
    tifffile.imwrite(
        path, (row for _ in range(side // TILE)), shape=(side, side, 3), dtype=np.uint8,
        photometric="rgb", rowsperstrip=TILE, compression=None,
    )  # fmt: skip


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command. Return seconds and peak memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}: failed")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def baseline_seconds(results: Path, n_cells: int) -> float:
    """Return the seconds per cell to decode the whole mask and trace its contours."""
    masks = [entry["segmentation"] for entry in json.loads(results.read_text())[:n_cells]]
    begin = time.perf_counter()
    for mask in masks:
        cv2.findContours(pycocotools.mask.decode(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return (time.perf_counter() - begin) / len(masks)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=20_000, help="pixels, a multiple of 2000 (default: 20000)"
    )
    parser.add_argument("--cells", type=int, default=200_000, help="(default: 200000)")
    parser.add_argument("--overlay", action="store_true", help="needs 2 GB of disk")
    parser.add_argument("--slides", type=int, default=0, help="export a table of slides")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        count = write_case(data, args.side, args.cells)
        results = data / "test-results.json"
        print(f"{count} cells in {args.side} x {args.side}, {results.stat().st_size >> 20} MB JSON")
        if args.slides:
            write_cohort(data / "cohort", results, args.side, args.slides)
            write_truth(data / "truth.json", results, args.side, args.slides)
            flags = {
                "export.py": ["--format", "geojson", "--gzip"],
                "evaluate.py": ["--truth", str(data / "truth.json"), "--resamples", "0"],
            }
            for name, some in flags.items():
                command = [sys.executable, str(PROJECT / name), str(data / "cohort"), *some]
                seconds, memory = measure(command)
                print(f"{name:11}  {args.slides} slides: {seconds:6.1f} s, {memory:6.0f} MB")
            return
        export = [sys.executable, str(PROJECT / "export.py"), str(results), "--data", str(data)]
        cases = [["geojson"], ["labels"], ["geojson", "labels"]]
        if args.overlay:
            write_image(data / "test" / "slide.tif", args.side)
            cases += [["overlay"], ["geojson", "labels", "overlay"]]
        for formats in cases:
            seconds, memory = measure([*export, "--format", *formats])
            print(f"{' '.join(formats):22} {seconds:8.1f} s  {memory:6.0f} MB")
        each = baseline_seconds(results, 3)
        print(f"one mask at a time: {each:.2f} s per cell, {each * count / 3600:.1f} h for all")


if __name__ == "__main__":
    main()
