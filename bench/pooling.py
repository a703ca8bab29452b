"""RoIAlign on a CPU: torchvision's and this project's, in one run.

    python bench/pooling.py [--boxes N]

Both pool small_fpn's features of a batch of windows for the box head and for the mask head,
forwards and backwards. The results are compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellseg.network.pooling import RoIAlign

N, CHANNELS, SIDE, STRIDE = 4, 64, 48, 4  # windows of 192 px, features of stride 4
ROUNDS = 20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--boxes", type=int, default=300, help="number of boxes in all windows (300)"
    )
    n_boxes = parser.parse_args().boxes
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((N, CHANNELS, SIDE, SIDE), generator=generator)
    features = features.contiguous(memory_format=torch.channels_last)
    corners = torch.rand((n_boxes, 2), generator=generator) * (SIDE * STRIDE - 20)
    sizes = 10 + torch.rand((n_boxes, 2), generator=generator) * 50
    number = torch.randint(0, N, (n_boxes, 1), generator=generator)
    boxes = torch.cat([number, corners, corners + sizes], 1)
    print(f"{n_boxes} boxes, {torch.get_num_threads()} threads; ms forwards, backwards")
    for head, bins in {"box head, 7 x 7 bins": 7, "mask head, 14 x 14 bins": 14}.items():
        ways: dict[str, torch.nn.Module] = {
            "torchvision": torchvision.ops.RoIAlign(bins, 1 / STRIDE, 1, aligned=True),
            "this project": RoIAlign(bins, 1 / STRIDE, 1),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        results = {}
        for _ in range(ROUNDS):  # interleaved, so that other load affects both
            for name, pool in ways.items():
                inputs = features.clone().requires_grad_()
                began = time.perf_counter()
                pooled = pool(inputs, boxes)
                between = time.perf_counter()
                pooled.backward(torch.ones_like(pooled))
                times[name].append((between - began, time.perf_counter() - between))
                results[name] = (pooled.detach(), inputs.grad)
        pairs = zip(*results.values(), strict=True)
        difference = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
        medians = {
            name: [1000 * statistics.median(part) for part in zip(*each, strict=True)]
            for name, each in times.items()
        }
        for name, (forwards, backwards) in medians.items():
            print(f"{head:25}{name:14}{forwards:8.2f}{backwards:8.2f}")
        theirs, ours = (sum(each) for each in medians.values())
        print(f"{head:25}{theirs / ours:.1f} times as fast; differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
