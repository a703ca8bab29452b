"""What many slides and workers cost besides the network.

    python bench/cohort.py [--slides 1000] [--workers 8] [--tile_seconds 0.02]
    python bench/cohort.py --checkpoint RUN --images PATH [--tile PIXELS]

The first predicts a cohort of small slides with workers that return made-up cells, and prints the
client's CPU time for each tile, and its memory while slides are added. The second predicts images
with one process on one core and with two workers on two, as commands, and compares their results
and times.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from bench.tiling import discs
from cellseg.config import default_config
from cellseg.images import ImageRecord
from cellseg.predict.cohort import Cohort, Outcome
from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import Predictor
from cellseg.predict.workers import local_workers
from cellseg.read.image_lists import ImageSet
from cellseg.read.slide_table import read_slide_table
from cellseg.write.results import write_results

PROJECT = Path(__file__).resolve().parents[1]
SIDE, TILE, OVERLAP = 1100, 600, 100  # pixels: 4 tiles a slide
CATEGORIES = [{"id": n, "name": f"class{n}"} for n in range(1, 5)]


class FakePredictor(Predictor):
    """Returns the discs of `bench/tiling.py` in each tile, after some seconds."""

    def __init__(self, seconds: float = 0.0) -> None:
        cfg = default_config("torchvision")
        cfg.TEST.TILE, cfg.TEST.OVERLAP = TILE, OVERLAP
        super().__init__([], [cfg])
        self.seconds = seconds

    def predict_tiles(self, jobs, brightness=None):  # noqa: ARG002
        for job in jobs:
            time.sleep(self.seconds)
            yield discs(job.tile, job.size)


class Load:
    """Loads a `FakePredictor` in a worker."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> FakePredictor:
        return FakePredictor(self.seconds)


def megabytes() -> float:
    """Return the memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def simulate(folder: Path, n: int, n_workers: int, seconds: float) -> None:
    """Predict a cohort of `n` slides and print what it cost the client."""
    Image.new("RGB", (SIDE, SIDE), (200, 150, 180)).save(folder / "0.png")
    for number in range(1, n):
        os.link(folder / "0.png", folder / f"{number}.png")
    table = folder / "slides.csv"
    table.write_text("path\n" + "".join(f"{number}.png\n" for number in range(n)))
    predictor, memory = FakePredictor(), []

    def begin(image: ImageRecord, results: Path) -> PredictionJob:
        return PredictionJob.begin(predictor, [], [image], results, all_tiles=True)

    def write(job: PredictionJob) -> Outcome:
        (listed,), _ = write_results(job, predictor, CATEGORIES, ImageSet("", []))
        memory.append(megabytes())
        return Outcome(sum(listed["cells"].values()), None, "")

    slides = read_slide_table(table)
    with local_workers(n_workers, "cpu", Load(seconds)) as workers:
        began, cpu = time.monotonic(), time.process_time()
        cohort = Cohort(slides, folder / "out", lambda _: "", begin, write)
        cohort.run(workers.predict, in_background=True)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
    n_tiles = n * len(predictor.plan((SIDE, SIDE)))
    n_bytes = sum(path.stat().st_size for path in (folder / "out").glob("*/images-results.json"))
    marks = [memory[round(part * (n - 1))] for part in (0, 0.1, 0.5, 1)]
    print(
        f"{n} slides, {n_tiles} tiles, {n_workers} workers: {wall:.0f} s, of the client's CPU "
        f"{1000 * cpu / n_tiles:.1f} ms a tile; results {n_bytes / 1e6:.0f} MB; client's memory "
        f"after the first slide, 10, 50 and 100 %: {', '.join(f'{m:.0f}' for m in marks)} MB; "
        f"load {os.getloadavg()[0]:.1f}",
        file=sys.stderr,
    )


def compare(folder: Path, run: Path, images: Path, tile: int) -> None:
    """Predict images with one and two processes, and print their times."""
    written, walls = [], []
    cores = sorted(os.sched_getaffinity(0))[:2]
    for n in (1, 2):
        output = folder / str(n)
        argv = [sys.executable, "inference.py", "--checkpoint", run, "--images", images]
        argv += ["--output", output, "--device", "cpu", "--workers", str(n)]
        argv += ["--tile", str(tile)] if tile else []
        began = time.monotonic()
        subprocess.run(
            ["taskset", "-c", ",".join(map(str, cores[:n])), *map(str, argv)],
            cwd=PROJECT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=1800,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        walls.append(time.monotonic() - began)
        written.append((output / "images-results.json").read_bytes())
        print(f"{n} on {n} of the cores: {walls[-1]:.1f} s, load {os.getloadavg()[0]:.1f}")
    assert written[0] == written[1], "the results differ"
    print(f"the same results; ratio {walls[1] / walls[0]:.2f}, with the start of the processes")


def main() -> None:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tile_seconds", type=float, default=0.02)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--tile", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.checkpoint:
            compare(Path(folder), args.checkpoint, args.images, args.tile)
        else:
            simulate(Path(folder), args.slides, args.workers, args.tile_seconds)


if __name__ == "__main__":
    main()
