"""Mask head targets in training: this project's `CellMasks` and Detectron2's `BitMasks`.

    python bench/masks.py [--cells N] [--boxes N]

`BitMasks` keeps an array of the whole image for each cell and samples the targets from it;
`CellMasks` keeps and samples the cells only. The targets of both are compared.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellseg.cellmasks import CellMasks
from cellseg.device import detectron2_problem
from cellseg.rle import label_map_to_runs
from cellseg.synthetic import draw_tissue
from cellseg.view import View

if TYPE_CHECKING:
    from detectron2.structures import BitMasks

HEIGHT, WIDTH = 608, 800
MASK_SIZE = 28  # the mask head's grid


def draw_masks(n_cells: int) -> CellMasks:
    """Draw an annotated image and return the masks of its first n cells."""
    # Some more than needed, since crowded tissue gets fewer than requested.
    density = 1.3 * n_cells / (HEIGHT * WIDTH / 1e6)
    labels = np.sum(draw_tissue(HEIGHT, WIDTH, np.random.default_rng(0), density)[1], axis=0)
    assert labels.max() >= n_cells, f"only {labels.max()} cells fit"
    mask_runs = label_map_to_runs(np.where(labels <= n_cells, labels, 0))[1]
    return View((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH)).apply_masks(mask_runs)[1]


def draw_whole(masks: CellMasks) -> BitMasks:
    """Draw each cell in an array of the whole image."""
    from detectron2.structures import BitMasks

    whole = torch.zeros((len(masks), *masks.size), dtype=torch.bool)
    for n, (left, top, right, bottom) in enumerate(masks.boxes.int().tolist()):
        whole[n, top:bottom, left:right] = masks.crop(n)
    return BitMasks(whole)


def propose(masks: CellMasks, n_boxes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw boxes like the network's proposals. Return the cell index of each, and the boxes."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(len(masks), (n_boxes,), generator=generator)
    boxes = masks.boxes[cells]
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    boxes = boxes + 0.08 * sides * torch.randn(boxes.shape, generator=generator)
    return cells, boxes.clamp(torch.zeros(4), torch.tensor([WIDTH, HEIGHT] * 2))


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Return the minimum seconds of five runs, and the result."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        targets = run()
        seconds.append(time.perf_counter() - began)
    return min(seconds), targets


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--boxes", type=int, default=128)
    args = parser.parse_args()
    if detectron2_problem():
        parser.error(f"Detectron2 is not available: {detectron2_problem()}")
    masks = draw_masks(args.cells)
    whole = draw_whole(masks)
    cells, boxes = propose(masks, args.boxes)
    # Includes the selection of the cells, which copies whole masks.
    slow, expected = timed(lambda: whole[cells].crop_and_resize(boxes, MASK_SIZE))
    fast, ours = timed(lambda: masks[cells].crop_and_resize(boxes, MASK_SIZE))
    same = ((ours & expected).sum((1, 2)) / (ours | expected).sum((1, 2))).mean().item()
    large, small = whole.tensor.nbytes / 1e6, len(pickle.dumps(masks)) / 1e6

    print(f"{args.cells} cells in {HEIGHT} x {WIDTH}, targets of {args.boxes} boxes")
    print(f"{'':14}{'MB':>10}{'seconds':>10}")
    print(f"{'Detectron2':14}{large:10.2f}{slow:10.4f}")
    print(f"{'this project':14}{small:10.2f}{fast:10.4f}")
    print(f"{'ratio':14}{large / small:9.0f}x{slow / fast:9.0f}x")
    print(f"mean IoU of the targets: {same:.6f}")


if __name__ == "__main__":
    main()
