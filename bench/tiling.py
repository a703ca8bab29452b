"""Merge the tiles of images with sides of 5,000 to 20,000 pixels: time and memory.

    python bench/tiling.py [--sides 5000 10000 20000]

Discs at the density of 200,000 cells in 20,000 x 20,000 pixels stand for the detections of a
perfect network. They are drawn tile by tile and counted batch by batch, never all in memory.
Merging includes drawing, which is also timed separately, and decoding the merged masks, whose
number and pixels must equal the ground truth. Each image has its own process, to measure memory.
Seconds are CPU time of one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from bench.apart import call_apart
from cellseg.predict.merge import merge_tiles
from cellseg.predict.tiles import Tile, choose_tile_size, plan_tiles
from cellseg.predictions import Predictions
from cellseg.rle import areas, boxes_xyxy, decode, encode, join_runs

STEP = 20_000 / 200_000**0.5  # px between the centres of neighbours
WINDOW = 1000  # px
RADII = 8, 22  # px; neighbours may touch but not overlap


def discs(tile: Tile, size: tuple[int, int]) -> Predictions:
    """Return the discs of a tile, from a deterministic jittered grid."""
    left, top, right, bottom = tile.window
    n = int(min(size) / STEP)
    columns = np.arange(max(0, int(left / STEP) - 1), min(n, int(right / STEP) + 2))
    rows = np.arange(max(0, int(top / STEP) - 1), min(n, int(bottom / STEP) + 2))
    i, j = (grid.ravel() for grid in np.meshgrid(columns, rows))
    # Pseudo-random by index: fractional parts of multiples of irrational numbers.
    low, high = RADII
    radius = low + (high - low) * ((i * 0.618034 + j * 0.754878) % 1)
    room = STEP / 2 - radius
    x = (i + 0.5) * STEP + room * (2 * ((i * 0.569840 + j * 0.414214) % 1) - 1)
    y = (j + 0.5) * STEP + room * (2 * ((i * 0.732051 + j * 0.236068) % 1) - 1)

    # Pixels with their centre in the disc, column by column.
    column = x[:, None].astype(np.int64) + np.arange(-high - 1, high + 2)
    half = np.sqrt(np.maximum(radius[:, None] ** 2 - (column + 0.5 - x[:, None]) ** 2, 0))
    start = np.ceil(y[:, None] - half - 0.5).astype(np.int64).clip(top, bottom) - top
    end = np.ceil(y[:, None] + half - 0.5).astype(np.int64).clip(top, bottom) - top
    shown = (column >= left) & (column < right) & (end > start)
    base = (column[shown] - left) * (bottom - top)
    kept, disc = np.unique(np.nonzero(shown)[0], return_inverse=True)
    mask_runs = join_runs(tile.size, len(kept), disc, base + start[shown], base + end[shown])
    return Predictions(
        tile.size,
        boxes_xyxy(mask_runs).astype(np.float32),
        ((i * 0.259921 + j * 0.442250) % 1)[kept].astype(np.float32),
        (i + j)[kept] % 4,
        encode(mask_runs),
    )


def measure(side: int) -> tuple[int, int, float, float, float]:
    """Return the number of tiles and cells, the CPU seconds, and the peak MB."""
    plan = plan_tiles((side, side), *choose_tile_size(65))  # 99 % of NYCU HW3's cells are shorter
    began = time.process_time()
    for tile in plan:
        discs(tile, plan.size)
    drawn = time.process_time() - began
    began = time.process_time()
    cells = pixels = 0
    for batch in merge_tiles(plan, (discs(tile, plan.size) for tile in plan)):
        cells += len(batch)
        pixels += int(areas(decode(batch.masks)).sum())
    merged = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert (cells, pixels) == count_ground_truth(side), "the result is not the ground truth"
    return len(plan), cells, drawn, merged, memory


def count_ground_truth(side: int) -> tuple[int, int]:
    """Count the discs of an image and their pixels, in adjacent windows."""
    pixels = 0
    for left in range(0, side, WINDOW):
        for top in range(0, side, WINDOW):
            window = left, top, min(left + WINDOW, side), min(top + WINDOW, side)
            cells = discs(Tile(window, (False,) * 4), (side, side))
            pixels += int(areas(decode(cells.masks)).sum())
    return int(side / STEP) ** 2, pixels


def main() -> None:
    """Measure each side in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10_000, 20_000])
    args = parser.parse_args()
    print(f"{'side':>7}{'tiles':>7}{'cells':>9}{'drawn, s':>10}{'and merged, s':>15}{'MB':>6}")
    for side in args.sides:
        tiles, cells, drawn, merged, memory = call_apart(measure, side)
        print(f"{side:7}{tiles:7}{cells:9}{drawn:10.1f}{merged:15.1f}{memory:6.0f}")


if __name__ == "__main__":
    main()
