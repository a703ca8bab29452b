"""Predict NYCU HW3's test images on the CPU: what all but the network costs beside it.

    python bench/overhead.py [--images 101] [--forward 10]

R50-DC5 at 1000/1333, without trained weights, looks at one image of each of `--forward`
parts of the list, which are in the order of the pixels that it sees. Its time for a part
is that of this image, times their pixels; with `--forward 101` nothing is extrapolated.
Untrained it finds no cells, hence its mask head has nothing to do, and the share of the
rest is rather too large. The rest, from reading LZW files to the checked zip, is timed
with made-up cells in its place: 1400 a megapixel, 800 an image at most. So is what runs
beside the network in prediction, reading and encoding: as if nothing overlapped. CPU
seconds say more than seconds where other work runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray

from bench.prediction import make_masks
from bench.sizes import image_sizes
from cellseg.config import load_recipe
from cellseg.images import ImageRecord
from cellseg.network import Detections, build_network
from cellseg.predict.job import PredictionJob
from cellseg.predict.predictor import Predictor
from cellseg.read.images import list_entry
from cellseg.view import resize_shortest_edge
from cellseg.write.submission import check_submission, write_submission, write_zip

RECIPE = "mask_rcnn_R_50_DC5_3x"
CATEGORIES = (1, 2, 3, 4)
Size = tuple[int, int]
Seconds = NDArray[np.float64]


class FakeNetwork(torch.nn.Module):
    """Says of the first image what was made up for it, and so on."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.found = iter([random_detections(size, number) for number, size in enumerate(sizes)])

    def detect(self, images: Sequence[torch.Tensor]) -> list[Detections]:
        """Return what was made up, in the pixels of the images."""
        return [self._resized(next(self.found), image.shape[1:]) for image in images]

    def _resized(self, cells: tuple[Size, Detections], network_size: Sequence[int]) -> Detections:
        (height, width), found = cells
        scale = torch.tensor([network_size[1] / width, network_size[0] / height] * 2)
        return Detections(found.boxes * scale, found.scores, found.classes, found.masks)


def random_detections(size: Size, seed: int) -> tuple[Size, Detections]:
    """Make up the cells of an image of that size, in its pixels."""
    n = min(800, 1 + size[0] * size[1] * 1400 // 10**6)
    torch.manual_seed(seed)
    masks, boxes = make_masks(n, *size)
    return size, Detections(boxes, torch.rand(n), torch.arange(n) % len(CATEGORIES), masks)


def write_images(folder: Path, sizes: Sequence[Size]) -> list[ImageRecord]:
    """Write images of smooth noise as NYCU HW3's are stored: RGBA, LZW, predictor 2."""
    listed = []
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes, 1):
        noise = rng.normal(0, 40, (height, width, 4)).astype(np.float32)
        image = (200 + cv2.GaussianBlur(noise, (0, 0), 2)).clip(0, 255).astype(np.uint8)
        image[:, :, 3] = 255
        path = folder / f"{number}.tif"
        tifffile.imwrite(
            path, image, photometric="rgb", extrasamples=["unassalpha"], compression="lzw",
            predictor=2,
        )  # fmt: skip
        listed.append(ImageRecord(number, path.name, path, (height, width)))
    return listed


def clocks() -> Seconds:
    """Seconds of the wall's clock, and of this process on any core."""
    return np.array([time.perf_counter(), time.process_time()])


def time_rest(folder: Path, images: Sequence[ImageRecord], predictor: Predictor) -> Seconds:
    """Seconds from reading the images to the checked zip, as `clocks` has them."""
    began = clocks()
    job = PredictionJob.begin(predictor, [], images, folder / "test-results.json")
    job.predict(predictor, job.pending())
    with write_submission(job.results, CATEGORIES) as writer:
        for image, cells in job.merge(predictor):
            writer.add(image.id, cells)
    job.close()
    check_submission(write_zip(job.results), [list_entry(image) for image in images], CATEGORIES)
    return clocks() - began


def time_network(sizes: Sequence[Size], n_parts: int) -> Seconds:
    """Seconds that the network takes for all images, from its time for one of each part."""
    cfg = load_recipe(RECIPE, "torchvision")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    network: Any = build_network(cfg).eval()
    seconds, rates = np.zeros(2), []
    with torch.no_grad():
        network.detect([torch.zeros((3, 256, 256), dtype=torch.uint8)])  # libraries warm up
        for part in np.array_split(sorted(map(megapixels, sizes)), n_parts):
            middle = part[len(part) // 2]
            height, width = network_size(next(size for size in sizes if megapixels(size) == middle))
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            began = clocks()
            network.detect([image])
            took = clocks() - began
            print(f"network: {height} x {width}: {took[0]:.2f} s; {len(part)} images like it")
            seconds += took * part.sum() / middle
            rates.append(took[0] / middle)
    print(f"network: {min(rates):.2f} to {max(rates):.2f} s a megapixel")
    return seconds


def network_size(size: Size) -> Size:
    """Height and width as the network sees an image."""
    return resize_shortest_edge(size, 1000, 1333)


def megapixels(size: Size) -> float:
    """Megapixels that the network sees of an image."""
    height, width = network_size(size)
    return height * width / 10**6


def main() -> None:
    """Time both and print the share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=101, metavar="N", help="(101)")
    parser.add_argument(
        "--forward", type=int, default=10, metavar="N", help="that the network looks at (10)"
    )
    args = parser.parse_args()
    n_seen = min(args.forward, args.images)
    sizes = image_sizes(args.images)
    cfg = load_recipe(RECIPE, "torchvision")
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), sizes)
        rest = time_rest(Path(folder), images, Predictor([FakeNetwork(sizes)], [cfg]))
    network = time_network(sizes, n_seen)
    line = "measured" if n_seen == len(sizes) else f"extrapolated from {n_seen} of them"
    print(
        f"{len(sizes)} images, {torch.get_num_threads()} threads; network {line}, the rest measured"
    )
    for number, clock in enumerate(("seconds", "CPU seconds")):
        print(
            f"{clock}: network {network[number]:.1f}, all else {rest[number]:.1f}, "
            f"{rest[number] / network[number]:.1%} of the network's"
        )


if __name__ == "__main__":
    main()
