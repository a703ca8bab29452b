"""Predict the homework's test images on the CPU: what all but the network costs beside it.

    python bench/overhead.py [--images 101] [--forward 5]

R50-DC5 at 1000/1333, without trained weights, looks at some of the images; its time for all
follows from their pixels as it sees them. Untrained it finds no cells, hence its mask head
has nothing to do, and the share of the rest is rather too large. The rest, from reading LZW
files to the checked zip, is timed with made-up cells in its place: 1400 a megapixel, 800 an
image at most.
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

from bench.prediction import make_masks
from bench.sizes import image_sizes
from cellseg.learn.config import load_recipe
from cellseg.network import Found, build_network
from cellseg.predict.images import ListedImage
from cellseg.predict.journal import Journal
from cellseg.predict.predictor import Predictor
from cellseg.predict.shares import joined, missing_looks, predict_share
from cellseg.view import shortest_edge
from cellseg.write.submission import check_submission, write_submission, write_zip

RECIPE = "mask_rcnn_R_50_DC5_3x"
CATEGORIES = (1, 2, 3, 4)
Size = tuple[int, int]


class StandIn(torch.nn.Module):
    """Says of the first image what was made up for it, and so on."""

    def __init__(self, sizes: Sequence[Size]) -> None:
        super().__init__()
        self.found = iter([make_up(size, number) for number, size in enumerate(sizes)])

    def find(self, images: Sequence[torch.Tensor]) -> list[Found]:
        """Give what was made up, in the pixels of the images."""
        return [self._zoomed(next(self.found), image.shape[1:]) for image in images]

    def _zoomed(self, cells: tuple[Size, Found], seen: Sequence[int]) -> Found:
        (height, width), found = cells
        zoom = torch.tensor([seen[1] / width, seen[0] / height] * 2)
        return Found(found.boxes * zoom, found.scores, found.classes, found.masks)


def make_up(size: Size, seed: int) -> tuple[Size, Found]:
    """Make up the cells of an image of that size, in its pixels."""
    n = min(800, 1 + size[0] * size[1] * 1400 // 10**6)
    torch.manual_seed(seed)
    masks, boxes = make_masks(n, *size)
    return size, Found(boxes, torch.rand(n), torch.arange(n) % len(CATEGORIES), masks)


def write_images(folder: Path, sizes: Sequence[Size]) -> list[ListedImage]:
    """Write images of smooth noise as the homework's are stored: RGBA, LZW, predictor 2."""
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
        listed.append(ListedImage(number, path.name, path, (height, width)))
    return listed


def time_rest(folder: Path, images: Sequence[ListedImage], predictor: Predictor) -> float:
    """Seconds from reading the images to the checked zip."""
    began = time.perf_counter()
    plans = {number: predictor.plan(image.read_size()) for number, image in enumerate(images)}
    journal = Journal(folder / "parts", {})
    predict_share(predictor, journal, missing_looks(images, plans, journal), 0, 1)
    results = folder / "test-results.json"
    with write_submission(results, CATEGORIES) as writer:
        for number, cells in joined(predictor, journal, plans, {}):
            writer.add(images[number].id, cells)
    journal.remove()
    check_submission(write_zip(results), [image.entry() for image in images], CATEGORIES)
    return time.perf_counter() - began


def time_network(sizes: Sequence[Size]) -> float:
    """Seconds that the network takes for a megapixel as it sees it."""
    cfg = load_recipe(RECIPE, "torchvision")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    network: Any = build_network(cfg).eval()
    seconds = 0.0
    with torch.no_grad():
        network.find([torch.zeros((3, 256, 256), dtype=torch.uint8)])  # libraries warm up
        for size in sizes:
            image = torch.randint(0, 256, (3, *seen(size)), dtype=torch.uint8)
            began = time.perf_counter()
            network.find([image])
            took = time.perf_counter() - began
            print(f"network: {size[0]} x {size[1]}: {took:.2f} s")
            seconds += took
    return seconds / megapixels(sizes)


def seen(size: Size) -> Size:
    """Height and width as the network sees an image."""
    return shortest_edge(size, 1000, 1333)


def megapixels(sizes: Sequence[Size]) -> float:
    """Megapixels that the network sees."""
    return sum(height * width for height, width in map(seen, sizes)) / 10**6


def main() -> None:
    """Time both and print the share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=101, metavar="N", help="(101)")
    parser.add_argument(
        "--forward", type=int, default=5, metavar="N", help="that the network looks at (5)"
    )
    args = parser.parse_args()
    sizes = image_sizes(args.images)
    cfg = load_recipe(RECIPE, "torchvision")
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), sizes)
        rest = time_rest(Path(folder), images, Predictor([StandIn(sizes)], [cfg]))
    network = time_network(sizes[:: -(-len(sizes) // args.forward)]) * megapixels(sizes)
    print(f"{len(sizes)} images: network {network:.1f} s, all else {rest:.1f} s")
    print(f"all else is {rest / (network + rest):.1%} of both")


if __name__ == "__main__":
    main()
