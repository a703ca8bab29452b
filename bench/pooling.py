"""Features of boxes on a CPU: torchvision's RoIAlign beside this project's, in one run.

    python bench/pooling.py [--boxes N]

Both pool small_fpn's features, as many channels of a batch of windows, for the box head and
for the mask head, forwards and backwards. What they give is compared.
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
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--boxes", type=int, default=300, help="in all windows (300)")
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
        for _ in range(ROUNDS):  # in turn, so that a busy moment meets both
            for name, pool in ways.items():
                given = features.clone().requires_grad_()
                began = time.perf_counter()
                pooled = pool(given, boxes)
                between = time.perf_counter()
                pooled.backward(torch.ones_like(pooled))
                times[name].append((between - began, time.perf_counter() - between))
                results[name] = (pooled.detach(), given.grad)
        apart = max(
            float((ours - theirs).abs().max())
            for ours, theirs in zip(*results.values(), strict=True)
        )
        medians = {
            name: [1000 * statistics.median(part) for part in zip(*each, strict=True)]
            for name, each in times.items()
        }
        for name, (forwards, backwards) in medians.items():
            print(f"{head:25}{name:14}{forwards:8.2f}{backwards:8.2f}")
        theirs, ours = (sum(each) for each in medians.values())
        print(f"{head:25}{theirs / ours:.1f} times as fast; at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
