"""Predict NYCU HW3's test images on the CPU: overhead compared with the network.

    python bench/overhead.py [--images 101] [--forward 10]

R50-DC5 at 1000/1333 with random weights is timed on one image of each of `--forward` groups of
images of similar size, and extrapolated by pixels; `--forward 101` extrapolates nothing. Random
weights detect no cells, so the mask head is idle and the overhead is rather overestimated. The
rest, from reading LZW files to the checked zip, is timed with fake detections: 1400 per
megapixel, at most 800 per image. It includes reading and encoding, which in prediction run
parallel to the network. Where other processes run, CPU seconds are more reliable.
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
from cellseg.network.limits import Limits, choose_limits
from cellseg.predict.job import PredictionJob, predict_here
from cellseg.predict.predictor import Predictor
from cellseg.read.image_lists import list_entry
from cellseg.view import resize_shortest_edge
from cellseg.write.submission import check_submission, write_submission, write_zip

RECIPE = "mask_rcnn_R_50_DC5_3x"
CATEGORIES = (1, 2, 3, 4)
Size = tuple[int, int]
Seconds = NDArray[np.float64]


class FakeNetwork(torch.nn.Module):
    """Returns random detections for one image after the other."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.detections = iter(
            [random_detections(size, number) for number, size in enumerate(sizes)]
        )

    def detect(self, images: Sequence[torch.Tensor], limits: Limits) -> list[Detections]:  # noqa: ARG002
        """Return detections in network pixels."""
        result = []
        for image, (size, cells) in zip(images, self.detections, strict=False):
            scale = torch.tensor([image.shape[2] / size[1], image.shape[1] / size[0]] * 2)
            boxes = cells.boxes * scale
            result.append(Detections(boxes, cells.scores, cells.classes, cells.masks))
        return result


def random_detections(size: Size, seed: int) -> tuple[Size, Detections]:
    """Return the size and random detections of an image of that size, in its pixels."""
    n = min(800, 1 + size[0] * size[1] * 1400 // 10**6)
    torch.manual_seed(seed)
    masks, boxes = make_masks(n, *size)
    return size, Detections(boxes, torch.rand(n), torch.arange(n) % len(CATEGORIES), masks)


def write_images(folder: Path, sizes: Sequence[Size]) -> list[ImageRecord]:
    """Write images of smooth noise in the format of NYCU HW3: RGBA, LZW, predictor 2."""
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
    """Return wall-clock seconds and CPU seconds of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def time_rest(folder: Path, images: Sequence[ImageRecord], predictor: Predictor) -> Seconds:
    """Return the seconds (see `clocks`) from reading the images to the checked zip."""
    began = clocks()
    job = PredictionJob.begin(predictor, [], images, folder / "test-results.json")
    job.run(predict_here(predictor))
    with write_submission(job.results, CATEGORIES) as writer:
        for image, cells in job.merge(predictor):
            writer.add(image.id, cells)
    job.close()
    check_submission(write_zip(job.results), [list_entry(image) for image in images], CATEGORIES)
    return clocks() - began


def time_network(sizes: Sequence[Size], n_parts: int) -> Seconds:
    """Return the seconds of the network for all images, extrapolated from one of each part."""
    cfg = load_recipe(RECIPE, "torchvision")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    network: Any = build_network(cfg).eval()
    limits = choose_limits(cfg, 0)  # 1000 proposals
    seconds, rates = np.zeros(2), []
    with torch.no_grad():
        network.detect([torch.zeros((3, 256, 256), dtype=torch.uint8)], limits)  # warm-up
        for part in np.array_split(sorted(map(megapixels, sizes)), n_parts):
            middle = part[len(part) // 2]
            height, width = network_size(next(size for size in sizes if megapixels(size) == middle))
            image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
            began = clocks()
            network.detect([image], limits)
            took = clocks() - began
            print(f"network: {height} x {width}: {took[0]:.2f} s; for {len(part)} images")
            seconds += took * part.sum() / middle
            rates.append(took[0] / middle)
    print(f"network: {min(rates):.2f} to {max(rates):.2f} s per megapixel")
    return seconds


def network_size(size: Size) -> Size:
    """Return height and width of an image in network pixels."""
    return resize_shortest_edge(size, 1000, 1333)


def megapixels(size: Size) -> float:
    """Return the network's megapixels of an image."""
    height, width = network_size(size)
    return height * width / 10**6


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=101, metavar="N", help="(101)")
    parser.add_argument(
        "--forward", type=int, default=10, metavar="N", help="images for the network (10)"
    )
    args = parser.parse_args()
    n_forward = min(args.forward, args.images)
    sizes = image_sizes(args.images)
    cfg = load_recipe(RECIPE, "torchvision")
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), sizes)
        rest = time_rest(Path(folder), images, Predictor([FakeNetwork(sizes)], [cfg]))
    network = time_network(sizes, n_forward)
    how = "measured" if n_forward == len(sizes) else f"extrapolated from {n_forward} of them"
    print(f"{len(sizes)} images, {torch.get_num_threads()} threads; network {how}, rest measured")
    for number, clock in enumerate(("seconds", "CPU seconds")):
        print(
            f"{clock}: network {network[number]:.1f}, rest {rest[number]:.1f}, "
            f"{rest[number] / network[number]:.1%} of the network's"
        )


if __name__ == "__main__":
    main()
