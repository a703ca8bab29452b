"""Threads of one process on a CPU, with and without other work: torch's waiting and this project's.

    python bench/threads.py [--recipe NAME]

The backbone of a recipe, with random weights, takes four windows of 256 px forwards, and forwards
and backwards, in a process of its own for each way: as torch is by default, as the commands set it
(`cellseg/device.py`), and with one thread. Each twice, on idle cores and beside a process that
uses one of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cellseg.device import thread_variables

WAYS = {"torch's default": {}, "this project": None, "one thread": {"OMP_NUM_THREADS": "1"}}
ROUNDS = 7


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="lite_fpn", help="recipe in configs/ (lite_fpn)")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.recipe)
        return
    command = [sys.executable, __file__, "--recipe", args.recipe, "--measure"]
    for load in ("idle", "one core busy"):
        for _ in range(2):
            for name, variables in WAYS.items():
                other = [sys.executable, "-c", "while True: pass"]
                # In a session of its own, as programs of other users are.
                busy = subprocess.Popen(other, start_new_session=True) if load != "idle" else None
                try:
                    values = thread_variables() if variables is None else variables
                    result = subprocess.run(
                        command, env=os.environ | values, check=True, capture_output=True, text=True
                    )
                finally:
                    if busy:
                        busy.kill()
                        busy.wait()
                print(f"{load}, {name}: {result.stdout.splitlines()[-1]}", flush=True)


def measure(recipe: str) -> None:
    """Print the times of this process."""
    import torch

    from cellseg.config import load_recipe, merge_options
    from cellseg.network import build_network

    cfg = load_recipe(recipe)
    merge_options(cfg, ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"])
    backbone: Any = build_network(cfg).backbone
    images = torch.randn((4, 3, 256, 256), generator=torch.Generator().manual_seed(0))

    def forward() -> torch.Tensor:
        return torch.stack([maps.square().mean() for maps in backbone(images).values()]).sum()

    def detect() -> None:
        with torch.no_grad():
            forward()

    print(
        f"{median_ms(detect):.0f} ms forwards, {median_ms(lambda: forward().backward()):.0f} ms "
        f"forwards and backwards, {torch.get_num_threads()} threads"
    )


def median_ms(function: Callable[[], None]) -> float:
    """Return the median time of a call in milliseconds, after two that are not counted."""
    times = []
    for _ in range(ROUNDS + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[2:])


if __name__ == "__main__":
    main()
