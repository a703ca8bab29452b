"""Predict slides with sides of 5,000 to 20,000 pixels: time and memory without the network.

    python bench/slide.py [--sides 5000 10000 20000]

A compressed, tiled TIFF is predicted as in inference.py: read by windows, resized, stored tile by
tile, merged, written, and read again for the check. A fake network returns known cells at the
density of 200,000 in 20,000 x 20,000 pixels. Each slide has its own process, to measure memory.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import tifffile
import torch

from bench.apart import call_apart
from cellseg.config import default_config
from cellseg.images import ImageRecord
from cellseg.network import Detections
from cellseg.network.limits import Limits
from cellseg.predict.job import PredictionJob, predict_here
from cellseg.predict.predictor import Predictor
from cellseg.predict.tiles import Tile, TilePlan
from cellseg.read.image_lists import list_entry, read_size
from cellseg.write.submission import check_submission, write_submission

STEP = 20_000 / 200_000**0.5  # px between the centres of neighbours
RADII = 8, 22  # px; neighbours may touch but not overlap
SEGMENT = 512  # px: side of the TIFF's tiles
SCALE = 1.33
CATEGORIES = (1, 2, 3, 4)

Exists = Callable[[torch.Tensor], torch.Tensor]
"""Returns which discs there are, `(N,)` bool, by their column and row, `(N, 2)`."""


class FakeNetwork(torch.nn.Module):
    """Returns the known cells of one tile after the other; parameters are those of `discs`."""

    def __init__(self, plan: TilePlan, step: float = STEP, exists: Exists | None = None) -> None:
        super().__init__()
        self.tiles = iter(plan)
        self.grid = int(plan.size[0] / step), step, exists

    def detect(self, images: Sequence[torch.Tensor], limits: Limits) -> list[Detections]:  # noqa: ARG002
        """Return the cells of the next tiles."""
        return [discs(next(self.tiles), *self.grid) for _ in images]


def discs(tile: Tile, per_side: int, step: float, exists: Exists | None = None) -> Detections:
    """Return the discs of a tile, from a deterministic jittered grid.

    `per_side` and `step` are the number of columns and rows and their distance in pixels;
    `exists` says which discs there are, all by default.
    """
    left, top, right, bottom = tile.window
    columns = torch.arange(max(0, int(left / step) - 1), min(per_side, int(right / step) + 2))
    rows = torch.arange(max(0, int(top / step) - 1), min(per_side, int(bottom / step) + 2))
    grid = torch.cartesian_prod(columns, rows).double()
    if exists is not None:
        grid = grid[exists(grid)]
    # Pseudo-random by index: fractional parts of multiples of irrational numbers.
    low, high = (radius * step / STEP for radius in RADII)
    radius = low + (high - low) * (grid @ torch.tensor([0.618034, 0.754878]).double() % 1)
    moves = torch.tensor([[0.569840, 0.732051], [0.414214, 0.236068]]).double()
    centre = (grid + 0.5) * step + (step / 2 - radius[:, None]) * (2 * (grid @ moves % 1) - 1)
    edge = torch.tensor([left, top, right, bottom])
    boxes = torch.cat([centre - radius[:, None], centre + radius[:, None]], 1)
    boxes = boxes.clamp(edge[:2].repeat(2), edge[2:].repeat(2))
    shown = ((boxes[:, 2:] - boxes[:, :2]) > 1).all(1)
    boxes, centre, radius, grid = boxes[shown], centre[shown], radius[shown], grid[shown]

    # Distance of each grid cell from the disc's centre.
    parts = (torch.arange(28) + 0.5) / 28
    x, y = (
        boxes[:, axis, None] + (boxes[:, axis + 2] - boxes[:, axis])[:, None] * parts
        for axis in (0, 1)
    )
    distance = torch.hypot(
        x[:, None, :] - centre[:, 0, None, None], y[:, :, None] - centre[:, 1, None, None]
    )
    return Detections(
        ((boxes - edge[:2].repeat(2)) * SCALE).float(),
        (0.5 + 0.5 * (grid @ torch.tensor([0.259921, 0.442250]).double() % 1)).float(),
        (grid.sum(1) % len(CATEGORIES)).long(),
        (0.5 + (radius[:, None, None] - distance) / 4).clamp(0, 1).float(),
    )


def write_slide(path: Path, side: int) -> None:
    """Write a tiled TIFF of smooth noise, the same compressed tile throughout."""
    noise = np.random.default_rng(0).normal(0, 40, (SEGMENT, SEGMENT, 3))
    segment = (200 + cv2.GaussianBlur(noise, (0, 0), 2)).astype(np.uint8)
    compressed = zlib.compress(segment.tobytes())
    tifffile.imwrite(
        path, (compressed for _ in range((-(-side // SEGMENT)) ** 2)), shape=(side, side, 3),
        dtype=np.uint8, tile=(SEGMENT, SEGMENT), photometric="rgb", compression="zlib",
    )  # fmt: skip


def laps(clock: Callable[[], float] = time.perf_counter) -> Iterator[tuple[float, float]]:
    """Yield the seconds since the last lap, and the peak MB so far."""
    began = clock()
    while True:
        now = clock()
        yield now - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = now


def measure(folder: Path, side: int) -> tuple[Any, ...]:
    """Return the number of tiles and cells, the bytes stored, and the laps of the steps."""
    torch.set_num_threads(1)  # the fake network counts on the order of the tiles
    cfg = default_config("torchvision")
    cfg.INPUT.ZOOM = SCALE
    cfg.DATA.LONGEST_CELL = 65.0  # 99 % of NYCU HW3's cells are shorter
    cfg.TEST.DETECTIONS_PER_IMAGE = 800
    predictor = Predictor([], [cfg])
    image = ImageRecord(1, "slide.tif", folder / "slide.tif", None)
    predictor = Predictor([FakeNetwork(predictor.plan(read_size(image)))], [cfg])
    job = PredictionJob.begin(predictor, [], [image], folder / "results.json", all_tiles=True)
    lap = laps()
    steps = [next(lap)]
    job.run(predict_here(predictor))
    steps.append(next(lap))
    kept = sum(path.stat().st_size for path in job.store.folder.iterdir())
    with write_submission(job.results, CATEGORIES) as writer:
        for _, cells in job.merge(predictor):
            writer.add(image.id, cells)
    steps.append(next(lap))
    count, _ = check_submission(job.results, [list_entry(image)], CATEGORIES)
    steps.append(next(lap))
    assert count == int(side / STEP) ** 2, "cells were lost or added"
    return len(job.parts[0].plan), count, kept, steps


def main() -> None:
    """Measure each side in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[5000, 10_000, 20_000])
    args = parser.parse_args()
    print("seconds, and peak MB until then:")
    print(
        f"{'side':>7}{'tiles':>7}{'cells':>8}{'store, MB':>10}{'start':>12}{'tiles':>14}"
        f"{'merge, write':>14}{'check':>14}"
    )
    for side in args.sides:
        with tempfile.TemporaryDirectory() as folder:
            write_slide(Path(folder) / "slide.tif", side)
            tiles, cells, kept, steps = call_apart(measure, Path(folder), side)
        times = "".join(f"{seconds:8.1f}{mb:6.0f}" for seconds, mb in steps[1:])
        print(f"{side:7}{tiles:7}{cells:8}{kept / 2**20:10.0f}{steps[0][1]:12.0f}{times}")


if __name__ == "__main__":
    main()
