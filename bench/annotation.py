"""Time annotation.py, encoding one instance at a time, and decoding only, in one run.

    python bench/annotation.py [--images N]

Generates training data with the sizes and formats of NYCU HW3 and about 350 cells per megapixel
in a temporary folder (about 0.5 GB for all 209 images).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import annotation
import utils
from bench.sizes import image_sizes
from cellseg.files import read_json, write_json
from cellseg.synthetic import draw_tissue

CELLS_PER_MEGAPIXEL = 350
# Fraction of each class among NYCU HW3's training instances.
MIX = (0.463, 0.498, 0.020, 0.019)


def draw_data(data: Path, n_images: int) -> None:
    """Write training data: windows of one large drawing."""
    rng = np.random.default_rng(0)
    sizes = image_sizes(n_images)
    sheet, sheet_labels = draw_tissue(2600, 2100, rng, CELLS_PER_MEGAPIXEL, 1.0, MIX)
    alpha = np.full((*sheet.shape[:2], 1), 255, np.uint8)
    sheet = np.concatenate([sheet, alpha], axis=2)
    for n, (height, width) in enumerate(sizes):
        folder = data / "train" / f"{n:04d}"
        folder.mkdir(parents=True)
        top, left = rng.integers(0, (2601 - height, 2101 - width))
        window = np.s_[top : top + height, left : left + width]
        tifffile.imwrite(
            folder / "image.tif", sheet[window], photometric="rgb", extrasamples=["unassalpha"],
            compression="lzw", predictor=True, rowsperstrip=64,
        )  # fmt: skip
        for number, labels in enumerate(sheet_labels, 1):
            if labels[window].any():
                tifffile.imwrite(folder / f"class{number}.tif", labels[window].astype(np.float64))


def decode_only(data: Path) -> None:
    """Read the same files."""
    for path in sorted(data.glob("train/*/*.tif")):
        tifffile.imread(path, maxworkers=1)


def one_at_a_time(data: Path) -> int:
    """Compare and encode the whole image for each cell (baseline)."""
    annotations = []
    for path in sorted(data.glob("train/*/*.tif")):
        labels = tifffile.imread(path, maxworkers=1)
        if path.name == "image.tif":
            continue
        for value in np.unique(labels)[1:]:
            rle = pycocotools.mask.encode(np.asfortranarray(labels == value).view(np.uint8))
            rle["counts"] = rle["counts"].decode()
            area = int(pycocotools.mask.area(rle))
            bbox = pycocotools.mask.toBbox(rle).tolist()
            annotations.append({"segmentation": rle, "area": area, "bbox": bbox})
    write_json(data / "baseline.json", annotations)
    return len(annotations)


def this_project(data: Path, jobs: int) -> None:
    """Run annotation.py."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        annotation.main(["--data", str(data), "--jobs", str(jobs)])


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=209, help="number of images (default: 209)")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        draw_data(data, args.images)
        decode_only(data)  # fills the page cache
        this_project(data, 1)
        n_cells = len(read_json(data / utils.ANNOTATIONS, "", "")["annotations"])
        runs: list[tuple[str, int, Callable[[], object]]] = [
            ("decoding only", 3, lambda: decode_only(data)),
            ("this project, --jobs 1", 3, lambda: this_project(data, 1)),
            ("this project, --jobs 2", 3, lambda: this_project(data, 2)),
            ("one instance at a time", 1, lambda: one_at_a_time(data)),
        ]
        seconds = dict.fromkeys((name for name, _, _ in runs), float("inf"))
        # Interleaved, so that other load affects all of them; the best of 3.
        for repeat in range(3):
            for name, repeats, run in runs:
                if repeat < repeats:
                    start = time.perf_counter()
                    run()
                    seconds[name] = min(seconds[name], time.perf_counter() - start)
        mpx = sum(height * width for height, width in image_sizes(args.images)) / 1e6
        print(f"{args.images} images, {mpx:.1f} Mpx, {n_cells} cells")
        for name, _, _ in runs:
            ratio = seconds[name] / seconds["decoding only"]
            print(f"{name:24} {seconds[name]:7.2f} s   {ratio:6.2f} x decoding")


if __name__ == "__main__":
    main()
