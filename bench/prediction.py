"""Encode the masks of one image: this project and Detectron2 with pycocotools.

    python bench/prediction.py

The baseline pastes each mask into an array of the whole image (Detectron2's
`paste_masks_in_image`) and encodes that (`pycocotools.mask.encode`). Both must give the same
RLEs. Memory is the peak that each adds in a separate process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from pycocotools import mask as coco_mask

from bench.apart import call_apart
from cellseg.device import detectron2_problem
from cellseg.predict.masks import encode_masks
from cellseg.rle import RLE


def make_masks(n: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n masks like the mask head's, and boxes of NYCU HW3's cell sizes."""
    rng = np.random.default_rng(0)
    centres = rng.random((n, 2)) * [width, height]
    # NYCU HW3's cells: longest side 26 px at the median, 65 at the 99th percentile.
    sides = np.exp(rng.normal(np.log(24), 0.4, (n, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    boxes = boxes.clip(0, [width, height, width, height])
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 28)] * 2, indexing="ij")
    noise = torch.nn.functional.interpolate(torch.randn(n, 1, 5, 5), (28, 28), mode="bicubic")
    masks = torch.sigmoid(6 * (0.9 - x**2 - y**2) + noise[:, 0])
    return masks, torch.tensor(boxes, dtype=torch.float32)


def detectron2(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> list[RLE]:
    """Paste masks into the whole image, then encode them."""
    from detectron2.layers.mask_ops import paste_masks_in_image

    return encode_each(paste_masks_in_image(masks, boxes, size))


def encode_each(full: torch.Tensor) -> list[RLE]:
    """Encode `(N, H, W)` bool masks of the whole image, one after the other."""
    arrays = full.cpu().numpy()
    encoded = [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in arrays]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]


def measure(
    way: Callable[..., list[RLE]], n: int, size: tuple[int, int]
) -> tuple[float, float, list[RLE]]:
    """Return the minimum seconds of three runs, the MiB that they added, and the RLEs."""
    torch.manual_seed(0)
    masks, boxes = make_masks(n, *size)
    way(*make_masks(4, 64, 64), (64, 64))  # warm-up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        rles = way(masks, boxes, size)
        seconds.append(time.perf_counter() - began)
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return min(seconds), added / 1024, rles


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=800)
    parser.add_argument("--height", type=int, default=2500)
    parser.add_argument("--width", type=int, default=1987)
    args = parser.parse_args()
    if detectron2_problem():
        parser.error(f"Detectron2 is not available: {detectron2_problem()}")
    size = (args.height, args.width)
    measured = {}
    for name, way in (("Detectron2", detectron2), ("this project", encode_masks)):
        measured[name] = call_apart(measure, way, args.masks, size)
    assert measured["Detectron2"][2] == measured["this project"][2], "the RLEs differ"
    print(f"{args.masks} masks on {args.height} x {args.width}, the same RLEs")
    print(f"{'':14}{'seconds':>10}{'MiB':>10}")
    for name, (seconds, mib, _) in measured.items():
        print(f"{name:14}{seconds:10.3f}{mib:10.1f}")
    (slow, large, _), (fast, small, _) = measured.values()
    print(f"{'ratio':14}{slow / fast:9.0f}x{large / max(small, 0.1):9.0f}x")


if __name__ == "__main__":
    main()
