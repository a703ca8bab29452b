"""Measure 200,000 cells of one image of 20,000 x 20,000 pixels: time and memory of the table.

    python bench/table.py [--side 20000] [--cells 200000]

The image is uncompressed, 1.2 GB of disk. The baseline (scikit-image, one cell after the other for
shapes and stains, without neighbours) is timed on some of the cells and scaled up.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.color
import skimage.measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.export import PROJECT, measure, write_case, write_image
from cellseg.read.cells import read_predicted_cells
from cellseg.read.window import open_image
from cellseg.rle import crop_mask, decode


def baseline_seconds(data: Path, n_cells: int) -> float:
    """Return the seconds of CPU per cell of scikit-image's measures of one cell after the other."""
    _, (image,) = read_predicted_cells(data / "test-results.json", data)
    some = np.linspace(0, len(image.masks) - 1, n_cells).astype(int)
    mask_runs = decode([image.masks[n] for n in some], image.size)
    begin = time.process_time()
    with open_image(image.path) as pixels:
        for n in range(n_cells):
            box, mask = crop_mask(mask_runs, n)
            left, top, right, bottom = (int(side) for side in box)
            stains = skimage.color.rgb2hed(pixels.read((left, top, right, bottom)))[..., :2]
            skimage.measure.regionprops_table(
                mask.astype(int), stains,
                ["area", "centroid", "bbox", "perimeter", "axis_major_length", "axis_minor_length",
                 "eccentricity", "solidity", "intensity_mean", "intensity_std"],
            )  # fmt: skip
    return (time.process_time() - begin) / n_cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=20_000, help="pixels, a multiple of 2000 (default: 20000)"
    )
    parser.add_argument("--cells", type=int, default=200_000, help="(default: 200000)")
    parser.add_argument(
        "--tables", nargs="+", default=["cells.csv", "cells.parquet"], help="(default: both)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        count = write_case(data, args.side, args.cells)
        write_image(data / "test" / "slide.tif", args.side)
        load = f"load {os.getloadavg()[0]:.1f}"
        print(f"{count} cells in {args.side} x {args.side}, {load}", flush=True)
        export = [sys.executable, str(PROJECT / "export.py"), str(data / "test-results.json")]
        export += ["--data", str(data), "--mpp", "0.25"]
        for name in args.tables:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds, memory = measure([*export, "--table", str(data / name)])
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            size = (data / name).stat().st_size >> 20
            print(
                f"{name:14} {seconds:6.1f} s, {cpu:6.1f} s of CPU, {memory:5.0f} MB, "
                f"file of {size} MB", flush=True,
            )  # fmt: skip
        each = baseline_seconds(data, min(500, count))
        print(f"one cell at a time: {each * 1e3:.2f} ms a cell, {each * count:.0f} s for all")


if __name__ == "__main__":
    main()
