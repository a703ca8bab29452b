"""Predict virtual slides of up to 100,000 x 100,000 pixels with 2 million cells: time and memory.

    python bench/virtual_slide.py [--sides 10000 30000 100000] [--cells N] [--geojson]

A tenth of the slide is tissue, and its pixels are made when they are read. The path is that of
inference.py: tissue is found on a small level, its tiles are read, predicted and stored, merged,
written, and read again for the check. A fake network returns known cells, each in all tiles that
show it; all must be in the results once. Without --cells, there are 2 million in 100,000 x 100,000
pixels, and as many per area in smaller slides. Each slide has its own process, to measure memory.
Seconds are CPU time of one core.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from bench.apart import call_apart
from bench.export import measure as run_command
from bench.slide import SCALE, FakeNetwork, laps
from cellseg.config import default_config
from cellseg.images import ImageRecord
from cellseg.predict.job import PredictionJob, predict_here
from cellseg.predict.predictor import Predictor
from cellseg.predictions import Predictions
from cellseg.read.image_lists import ImageSet
from cellseg.read.windowed_image import WindowedImage
from cellseg.write.results import write_results
from cellseg.write.submission import check_submission

PROJECT = Path(__file__).resolve().parents[1]
DENSITY = 2_000_000 / 100_000**2  # cells per pixel of the slide
TISSUE = 0.1  # of the slide
PIECES = (0.25, 0.3, 0.24), (0.7, 0.65, 0.2)  # x, y of the middle and size, relative to the slide
REDUCED = 1, 4, 16, 64  # px: a pixel of each level
UNIT = 128  # px: whole units are tissue or not
CATEGORIES = [{"id": n, "name": f"class{n}"} for n in range(1, 5)]


def draw_tissue(side: int) -> np.ndarray:
    """Return where the slide has tissue, a bool for each unit: two round pieces."""
    n = -(-side // UNIT)
    y, x = (np.indices((n, n)) + 0.5) / n
    distance = np.min([np.hypot(x - a, y - b) / size for a, b, size in PIECES], axis=0)
    return distance <= np.quantile(distance, TISSUE)


class VirtualSlide(WindowedImage):
    """A slide whose pixels are made when they are read, on any level."""

    def __init__(self, path: Path, side: int, level: int = 0) -> None:
        sizes = [(-(-side // reduced),) * 2 for reduced in REDUCED]
        super().__init__(path, sizes[level], sizes)
        self._unit = UNIT // REDUCED[level]
        self._tissue = draw_tissue(side)
        noise = np.random.default_rng(0).normal(0, 20, (256, 256, 3))
        self._texture = (170 + cv2.GaussianBlur(noise, (0, 0), 2)).astype(np.uint8)
        self._texture[:, :, 1] -= 60

    def close(self) -> None:
        """There is no file."""

    def _fill(self, rgb: np.ndarray, x0: int, y0: int) -> None:
        rows, columns = y0 + np.arange(rgb.shape[0]), x0 + np.arange(rgb.shape[1])
        rgb[:] = 240
        shown = self._tissue[np.ix_(rows // self._unit, columns // self._unit)]
        if shown.any():
            pattern = self._texture[rows % 256].take(columns % 256, axis=1)
            np.copyto(rgb, pattern, where=shown[:, :, None])


class TimedJob(PredictionJob):
    """A job that measures the time of merging, which alternates with writing."""

    merging = 0.0

    def merge(self, predictor: Predictor) -> Iterator[tuple[ImageRecord, Predictions]]:
        """Merge, and add up the CPU time."""
        batches = super().merge(predictor)
        while True:
            began = time.process_time()
            batch = next(batches, None)
            TimedJob.merging += time.process_time() - began
            if batch is None:
                return
            yield batch


def measure(folder: Path, side: int, n_cells: int) -> tuple[Any, ...]:
    """Return the numbers of tiles and cells, the bytes written, and the laps of the steps."""
    torch.set_num_threads(1)  # the fake network counts on the order of the tiles
    tissue = draw_tissue(side)
    step = float(tissue.mean() * side**2 / n_cells) ** 0.5

    def exists(grid: torch.Tensor) -> torch.Tensor:
        column, row = ((grid + 0.5) * step / UNIT).long().unbind(1)
        return torch.from_numpy(tissue)[row, column]

    cfg = default_config("torchvision")
    cfg.INPUT.ZOOM = SCALE
    cfg.DATA.LONGEST_CELL = 1.4 * step
    cfg.TEST.DETECTIONS_PER_IMAGE = 20_000
    path = folder / "slide"
    image = ImageRecord(1, str(path), path, (side, side))
    predictor = Predictor([], [cfg])
    lap = laps(time.process_time)
    start = next(lap)[1]
    job = TimedJob.begin(predictor, [], [image], folder / "images-results.json")
    steps = [next(lap)]
    plan = job.parts[0].plan
    job.run(predict_here(Predictor([FakeNetwork(plan, step, exists)], [cfg])))
    steps.append(next(lap))
    listed, _ = write_results(job, predictor, CATEGORIES, ImageSet("", []))
    seconds, peak = next(lap)
    steps += [(TimedJob.merging, peak), (seconds - TimedJob.merging, peak)]
    count, _ = check_submission(job.results, listed, range(1, 5))
    steps.append(next(lap))
    job.release()

    rows = torch.arange(int(side / step))
    expected = sum(
        int(exists(torch.cartesian_prod(torch.tensor([n]), rows).double()).sum()) for n in rows
    )
    assert count == expected, f"{count} cells of {expected}"
    return len(plan), count, job.results.stat().st_size, start, steps


def measure_virtual(folder: Path, side: int, n_cells: int) -> tuple[Any, ...]:
    """Measure with the virtual slide in place of the file."""

    def open_image(path: Path, level: int = 0) -> WindowedImage:
        return VirtualSlide(path, side, level)

    with mock.patch("cellseg.read.window.open_image", open_image):
        return measure(folder, side, n_cells)


def main() -> None:
    """Measure each side in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--cells", type=int, help="(default: 2 million per 100,000 x 100,000 px)")
    parser.add_argument("--geojson", action="store_true", help="export the cells too")
    args = parser.parse_args()
    print("CPU seconds, and peak MB until then:")
    columns = ("tissue, tiles", "read, store", "merge", "write", "check")
    print(
        f"{'side':>7}{'tiles':>7}{'cells':>9}{'file, MB':>9}{'start':>8}"
        + "".join(f"{name:>14}" for name in columns)
        + f"{'wall, s':>9}{'load':>6}"
    )
    for side in args.sides:
        with tempfile.TemporaryDirectory() as name:
            folder, n_cells = Path(name), args.cells or round(DENSITY * side**2)
            began = time.perf_counter()
            tiles, cells, n_bytes, start, steps = call_apart(measure_virtual, folder, side, n_cells)
            wall = time.perf_counter() - began
            times = "".join(f"{seconds:8.1f}{mb:6.0f}" for seconds, mb in steps)
            print(
                f"{side:7}{tiles:7}{cells:9}{n_bytes / 1e6:9.0f}{start:8.0f}{times}{wall:9.0f}"
                f"{os.getloadavg()[0]:6.1f}",
                flush=True,
            )
            if args.geojson:
                command = [sys.executable, str(PROJECT / "export.py"), "--format=geojson"]
                command.append(str(folder / "images-results.json"))
                seconds, peak = run_command(command)
                size = sum(path.stat().st_size for path in folder.rglob("*.geojson"))
                print(f"GeoJSON: {seconds:.0f} s, {peak:.0f} MB; {size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
