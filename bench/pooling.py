"""RoIAlign on a CPU: Detectron2's and this project's, in one run.

    python bench/pooling.py [--boxes N]

Both pool lite_fpn's features of a batch of windows, a pyramid of four levels, for the box head and
for the mask head, forwards and backwards. The results are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellseg.compiler import without_compiler
from cellseg.network.pooling import RoIAlign

with without_compiler():
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

N, CHANNELS, SIDE = 4, 64, 192  # windows of 192 px
STRIDES = (4, 8, 16, 32)
ROUNDS = 20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--boxes", type=int, default=300, help="number of boxes in all windows (300)"
    )
    n_boxes = parser.parse_args().boxes
    generator = torch.Generator().manual_seed(0)
    maps = [
        torch.randn((N, CHANNELS, SIDE // stride, SIDE // stride), generator=generator).contiguous(
            memory_format=torch.channels_last
        )
        for stride in STRIDES
    ]
    corners = torch.rand((n_boxes, 2), generator=generator) * (SIDE - 20)
    sizes = 10 + torch.rand((n_boxes, 2), generator=generator) * 50
    boxes = [*torch.cat([corners, corners + sizes], 1).chunk(N)]
    print(f"{n_boxes} boxes, {torch.get_num_threads()} threads; ms forwards, backwards")
    for head, bins in {"box head, 7 x 7 bins": 7, "mask head, 10 x 10 bins": 10}.items():
        ways: dict[str, tuple[torch.nn.Module, list[Any]]] = {
            "Detectron2": (
                ROIPooler(bins, [1 / stride for stride in STRIDES], 1, "ROIAlignV2"),
                [*map(Boxes, boxes)],
            ),
            "this project": (RoIAlign(bins, STRIDES, 1), boxes),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        results = {}
        for _ in range(ROUNDS):  # interleaved, so that other load affects both
            for name, (pool, of_windows) in ways.items():
                inputs = [of_level.clone().requires_grad_() for of_level in maps]
                began = time.perf_counter()
                pooled = pool(inputs, of_windows)
                between = time.perf_counter()
                pooled.backward(torch.ones_like(pooled))
                times[name].append((between - began, time.perf_counter() - between))
                results[name] = [pooled.detach(), *(of_level.grad for of_level in inputs)]
        pairs = zip(*results.values(), strict=True)
        difference = max(float((one - other).abs().max()) for one, other in pairs)
        medians = {
            name: [1000 * statistics.median(part) for part in zip(*each, strict=True)]
            for name, each in times.items()
        }
        for name, (forwards, backwards) in medians.items():
            print(f"{head:25}{name:14}{forwards:8.2f}{backwards:8.2f}")
        slow, fast = (sum(each) for each in medians.values())
        print(f"{head:25}{slow / fast:.1f} times as fast; differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
