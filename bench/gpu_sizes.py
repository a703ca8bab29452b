"""Measure what images of new sizes cost on a GPU, and what makes them cheaper.

    python bench/gpu_sizes.py [--images 24] [--cells 150] [--only NAME ...]

cuDNN prepares each convolution for each new size of its input. Images of NYCU HW3's sizes are
predicted twice by `mask_rcnn_R_50_DC5_3x` with random weights, from pixels in memory to boxes and
masks; each row in a process of its own, since some settings are read when torch begins. The rows
predict the same images, so their numbers of detections are about equal. `--device cpu --tiny`
rehearses it; rows of CUDA then measure nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import torch
from torch.nn import functional

import utils
from bench.gpu import TINY_SIZES, keep_small, machine, prediction_config, require_gpu
from bench.overhead import write_images
from bench.sizes import image_sizes
from cellseg.device import choose_engine, detectron2_problem
from cellseg.images import ImageRecord
from cellseg.messages import plural
from cellseg.network import build_network
from cellseg.network.folding import fold_batch_norms
from cellseg.predict.inputs import InputReader, TileJob
from cellseg.predict.predictor import Predictor
from cellseg.predict.unusual import BrightnessCheck

MASKS = 100  # of a part of the mask head
MINUTES = 3  # limit of a row


class Row(NamedTuple):
    """A setting that is measured."""

    environment: Mapping[str, str] = MappingProxyType({})
    cudnn: bool = True
    change: str = ""
    threads: int = 1


ROWS = {
    "as it is": Row(),
    "cuDNN off": Row(cudnn=False),
    "cuDNN off but in the mask head": Row(change="cudnn for masks"),
    "mask head with multiples of 100": Row(change="pad masks"),
    "cuDNN off but in the mask head, with multiples of 100": Row(change="both"),
    "memory in expandable segments": Row({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
    "cuDNN's former interface": Row({"TORCH_CUDNN_V8_API_DISABLED": "1"}),
    "cuDNN's heuristic B": Row({"TORCH_CUDNN_USE_HEURISTIC_MODE_B": "1"}),
    "two threads": Row(threads=2),
    "four threads": Row(threads=4),
    "cuDNN off, two threads": Row(cudnn=False, threads=2),
    "DefaultPredictor": Row(change="baseline"),
}


def measure(row: Row, args: Namespace) -> dict[str, float]:
    """Return milliseconds per image of a new size, and again, peak memory and detections."""
    torch.backends.cudnn.enabled = row.cudnn
    torch.manual_seed(0)
    sizes = TINY_SIZES if args.tiny else image_sizes()
    count = args.images + 1  # the first warms up
    sizes = sizes[:: max(1, len(sizes) // count)][:count]
    keys = ["TEST.DETECTIONS_PER_IMAGE", str(args.cells), "TEST.AMP", "True"]
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), sizes)
        if row.change == "baseline":
            tasks = baseline_tasks(images, args, keys)
        else:
            tasks = prediction_tasks(images, args, keys, row.change)
    on_gpu = args.device.startswith("cuda")
    stream = threading.local()  # threads live as long as the process, and keep their streams

    def begin() -> None:
        stream.of_thread = torch.cuda.Stream(args.device) if on_gpu and row.threads > 1 else None

    def run(task: Callable[[], int]) -> int:
        with torch.cuda.stream(stream.of_thread) if stream.of_thread else nullcontext():
            return task()

    with ThreadPoolExecutor(row.threads, initializer=begin) as pool:
        warm_up, *rest = tasks
        list(pool.map(run, [warm_up] * row.threads))
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            detections = sum(pool.map(run, rest))
            if on_gpu:
                torch.cuda.synchronize(args.device)
            seconds.append(time.perf_counter() - began)
    first, again = (1000 * each / len(rest) for each in seconds)
    peak = torch.cuda.max_memory_reserved(args.device) / 2**30 if on_gpu else 0.0
    return {"new": first, "again": again, "GiB": peak, "detections": detections}


def prediction_tasks(
    images: Sequence[ImageRecord], args: Namespace, keys: Sequence[str], change: str
) -> list[Callable[[], int]]:
    """Return functions that predict an image each and return its number of detections."""
    cfg = prediction_config(args, args.engine, keys)
    network: Any = build_network(cfg)
    keep_small(network)
    fold_batch_norms(network)
    if change in ("cudnn for masks", "both"):
        for part in (network.backbone, network.proposal_generator):
            part.forward = _without_cudnn(part.forward)
    if change in ("pad masks", "both"):
        network.roi_heads.mask_head.layers = _padded(network.roi_heads.mask_head.layers)
    predictor = Predictor([network.eval()], [cfg])
    reader = InputReader([cfg], BrightnessCheck())
    inputs = []
    for image in images:
        assert image.size is not None
        (tile,) = predictor.plan(image.size)
        inputs.append(reader.prepare(TileJob(image.path, 0, image.size, tile)))
    reader.close()

    def predict(of_image: Any) -> int:
        ((detections,),) = predictor._detect([of_image])  # type: ignore[misc]  # no error here
        return len(detections.scores)

    return [partial(predict, of_image) for of_image in inputs]


def baseline_tasks(
    images: Sequence[ImageRecord], args: Namespace, keys: Sequence[str]
) -> list[Callable[[], int]]:
    """Return the same with Detectron2's predictor, in float32."""
    from detectron2.engine import DefaultPredictor

    predictor = DefaultPredictor(prediction_config(args, "detectron2", keys))
    keep_small(predictor.model)

    def predict(pixels: Any) -> int:
        return len(predictor(pixels)["instances"].to("cpu"))

    return [partial(predict, cv2.imread(str(image.path))) for image in images]


def _without_cudnn(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with torch.backends.cudnn.flags(enabled=False):
            return forward(*args)

    return call


def _padded(layers: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return the layers of a mask head for multiples of `MASKS` boxes; others are zeros."""

    def call(boxes: torch.Tensor) -> torch.Tensor:
        zeros = [0, 0] * (boxes.dim() - 1) + [0, -len(boxes) % MASKS]
        return layers(functional.pad(boxes, zeros))[: len(boxes)]

    return call


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = utils.CommandParser(
        "Measure prediction of images of new sizes on a GPU, with several settings.",
        "python bench/gpu_sizes.py --only 'as it is' 'cuDNN off'\n"
        "python bench/gpu_sizes.py --device cpu --tiny",
    )
    flag = parser.add_argument
    flag("--images", type=utils.positive_int, default=24, metavar="N", help="number of images (24)")
    flag("--cells", type=utils.positive_int, default=150, metavar="N", help="cells per image (150)")
    flag("--only", nargs="+", choices=ROWS, metavar="ROW", help="some of " + ", ".join(ROWS))
    flag("--device", metavar="NAME", help="cuda, cuda:1, cpu (cuda)")
    flag("--tiny", action="store_true", help="a tiny network on tiny images")
    flag("--row", choices=ROWS, metavar="ROW", help="measure one row in this process, as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each row in a process, and print the table. Return the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    args.device, args.engine = require_gpu(args.device), choose_engine("auto")
    if args.row:
        print(json.dumps(measure(ROWS[args.row], args)))
        return 0
    print(f"{machine(args.device)}, {plural(args.images, 'image')}, up to {args.cells} cells each")
    print("| | new size | again | GiB | detections |\n| --- | --- | --- | --- | --- |")
    failed = 0
    words = ["--images", args.images, "--cells", args.cells, "--device", args.device]
    words += ["--tiny"] * args.tiny
    for name in args.only or ROWS:
        if args.engine != "detectron2" and ROWS[name].change:
            print(f"| {name} | needs Detectron2: {detectron2_problem()} | | | |")
            continue
        command = [sys.executable, __file__, "--row", name, *map(str, words)]
        environment = os.environ | ROWS[name].environment
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=60 * MINUTES
            )
            shown = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
            failed += 1
            reason = done.stderr.strip() if not isinstance(error, subprocess.TimeoutExpired) else ""
            print(f"| {name} | failed: {(reason or str(error)).splitlines()[-1]} | | | |")
            continue
        times = f"{shown['new']:.0f} ms | {shown['again']:.0f} ms"
        print(f"| {name} | {times} | {shown['GiB']:.1f} | {shown['detections']:.0f} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    utils.run_command(main)
