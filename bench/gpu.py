"""Test on a GPU, and measure speed and learning, in one call.

    python bench/gpu.py [--parts tests training prediction] [--minutes M] [--profile]
    python bench/gpu.py --parts learning --data DIR [--minutes M] [KEY VALUE ...]

Nothing is built or downloaded; networks have random weights. Both sides of a ratio are
measured in the same call; the baseline is Detectron2 in float32. The table is printed last and
written as Markdown. `--device cpu --tiny` rehearses all of it without a GPU.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import REMAINDER, BooleanOptionalAction, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import tifffile
import torch
from fvcore.common.config import CfgNode

import annotation
import inference
import train
import utils
from bench.annotation import draw_data
from bench.learning import CURVE, OURS, score, train_for
from bench.mapper import detectron2_mapper, detectron2_record, write_rgb
from bench.overhead import time_rest, write_images
from bench.prediction import encode_each
from bench.sizes import image_sizes
from cellseg import runs
from cellseg.config import merge_options
from cellseg.device import choose_device, choose_engine, count_cores, detectron2_problem
from cellseg.errors import InputError
from cellseg.files import display_path, read_json, write_atomic
from cellseg.images import ImageRecord
from cellseg.learn.optimizer import build_optimizer
from cellseg.learn.samples import TrainingData
from cellseg.learn.session import prepare
from cellseg.network import build_network
from cellseg.network.folding import fold_batch_norms
from cellseg.predict.predictor import Predictor
from cellseg.read.window import read_image
from cellseg.runs import package_versions
from cellseg.synthetic import write_dataset
from trainer import Trainer

RECIPE = "mask_rcnn_R_50_DC5_3x"
MINUTES = {"tests": 3.0, "training": 3.0, "prediction": 3.0, "learning": 8.0}
PILOT = (80,)  # iterations that are timed before the learning
SLIDE, MPP = 8192, 0.25  # side in pixels, micrometres per pixel
IMAGES = 209
# Random weights reach the maximum of detections: the recipe's 800, and NYCU HW3's mean.
CELLS = (800, 150)
# Inputs of unit variance, since weights are random.
RANDOM = ["MODEL.PIXEL_STD", "[57.0, 57.0, 57.0]"]
# Network and images small enough for a minute on a CPU.
TINY = shlex.split("""
    MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN MODEL.RESNETS.STEM_OUT_CHANNELS 8
    MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 4
    MODEL.RPN.PRE_NMS_TOPK_TEST 100 MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.ROI_BOX_HEAD.FC_DIM 32
    MODEL.ROI_MASK_HEAD.CONV_DIM 16 MODEL.ROI_MASK_HEAD.NUM_CONV 1 INPUT.MIN_SIZE_TRAIN (64,)
    INPUT.MIN_SIZE_TEST 64 INPUT.MAX_SIZE_TEST 100 SOLVER.WARMUP_ITERS 0
""")
TINY_SIZES = [(60, 70), (72, 50), (33, 35), (64, 64)]
# Of any recipe; small batches leave a GPU idle.
LEARNING = ["SOLVER.IMS_PER_BATCH", "16"]
PROFILED = 3  # steps or images
NONE = "–"


class Row(NamedTuple):
    """Row of the table."""

    what: str
    baseline: str = ""
    here: str = ""
    ratio: str = ""
    target: str = ""


HEAD = Row("what", "Detectron2", "here", "ratio", "target")
RULE = Row("---", "---", "---", "---", "---")


@dataclass(frozen=True)
class Pace:
    """Speed of a training."""

    rate: float  # images per second
    waiting: float  # fraction of the time spent waiting for data
    filled: float  # fraction of the batches' pixels that are no padding
    memory: str  # peak GPU memory, for the table


def run_tests(args: Namespace) -> Iterator[Row]:
    """Run the tests that are marked `gpu`."""
    words = ["tests/test_gpu.py", "-k", "moving_average and torchvision"] if args.tiny else []
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", *words]
    try:
        done = subprocess.run(
            command, cwd=utils.PROJECT, env=os.environ | {"TEST_GPU": args.device},
            capture_output=True, text=True,
            timeout=60 * (MINUTES["tests"] if args.tiny else minutes_of("tests", args)),
        )  # fmt: skip
        print(done.stdout + done.stderr, file=sys.stderr)
        *_, outcome = ["", *(done.stdout.strip() or done.stderr.strip()).splitlines()]
        outcome = outcome.strip("= ")
        if done.returncode:  # also where no test ran at all
            outcome = f"failed, exit code {done.returncode}: {outcome}"
    except subprocess.TimeoutExpired:
        outcome = "failed: timed out, pass more --minutes"
    yield Row("tests on the GPU", NONE, outcome, "", "no failure")


def measure_training(args: Namespace) -> Iterator[Row]:
    """Measure the throughput of training, with Detectron2 and here."""
    end = time.perf_counter() + 60 * minutes_of("training", args)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        data = Path(folder)
        if args.tiny:
            write_dataset(data, n_train=6, n_test=1, sizes=TINY_SIZES, cells_per_megapixel=3000)
        else:
            draw_data(data, IMAGES)
        annotation.main(["--data", folder])
        baseline = None
        if not detectron2_problem():
            seconds = (end - time.perf_counter()) * 0.4
            baseline = _unless_out_of_memory(lambda: train_detectron2(args, data, seconds))
        amp = ["SOLVER.AMP.ENABLED", str(args.amp)]
        variants = {"": amp, ", not grouped": [*amp, "DATALOADER.ASPECT_RATIO_GROUPING", "False"]}
        if args.amp:
            variants[", float32"] = ["SOLVER.AMP.ENABLED", "False"]
        paces: dict[str, Pace | None] = {}
        for number, (name, keys) in enumerate(variants.items()):
            left = (end - time.perf_counter()) / (len(variants) - number)
            measure = partial(train_here, args, data, left, keys, not number)
            paces[name] = _unless_out_of_memory(measure)
    for name, here in paces.items():
        what, target = f"training, batch {args.batch}, images/s{name}", "≥ 1.5 ×"
        yield _compared(what, baseline, here, lambda p: p.rate, "" if name else target)
        yield _row("… waiting for data", baseline, here, lambda p: f"{p.waiting:.1%}", "< 10 %")
        yield _compared("… excluding waiting", baseline, here, lambda p: p.rate / (1 - p.waiting))
        yield _row("… image, not padding", baseline, here, lambda p: f"{p.filled:.0%}")
        yield _row("… peak memory", baseline, here, lambda p: p.memory)


def configure(args: Namespace, engine: str, data: Path, *keys: str) -> tuple[CfgNode, TrainingData]:
    """Return the config of a training on a data folder, and the loaded data."""
    flags = ["-m", RECIPE, "--engine", engine, "--data", data, "--device", args.device]
    flags += ["--weights", "none", "-b", args.batch, "--num_workers", args.workers]
    cfg = train.setup(train.parse([*map(str, flags), *random_weight_keys(args), *keys]))
    loaded = prepare(cfg).data
    cfg.OUTPUT_DIR = str(data)
    return cfg, loaded


def train_detectron2(args: Namespace, data: Path, seconds: float) -> Pace:
    """Measure training with Detectron2's mapper, `BitMasks`, loader and network, in float32."""
    from detectron2.data import build_detection_train_loader
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    cfg, loaded = configure(args, "detectron2", data)
    # Without images without cells, as in its DefaultTrainer.
    samples = [sample for sample in loaded.train if sample.masks]
    write_rgb(data, samples)
    loader = build_detection_train_loader(
        [detectron2_record(sample, data) for sample in samples],
        mapper=detectron2_mapper(cfg.INPUT.MIN_SIZE_TRAIN),
        total_batch_size=args.batch,
        num_workers=args.workers,
    )
    torch.manual_seed(0)
    network = build_model(cfg).train()
    keep_small(network)
    optimizer = build_optimizer(cfg, network)

    def step(samples: list[Any]) -> None:
        losses = network(samples)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.stack([loss.detach() for loss in losses.values()]).tolist()  # as for its logs
        optimizer.step()

    with EventStorage():
        return pace(iter(loader), step, args, seconds)


def train_here(
    args: Namespace, data: Path, seconds: float, keys: Sequence[str], profile: bool
) -> Pace:
    """Measure training as in train.py."""
    cfg, loaded = configure(args, args.engine, data, *keys)
    torch.manual_seed(0)
    trainer = Trainer(cfg, loaded)
    keep_small(trainer.step.network)
    seeds = itertools.count()

    def step(samples: list[Any]) -> None:
        trainer.step.step(samples, next(seeds))

    batches = trainer.build_train_loader(cfg, loaded)
    with _storage():
        result = pace(batches, step, args, seconds)
        if args.profile and profile:
            with profiled("training"):
                for _ in range(PROFILED):
                    step(next(batches))
    return result


def keep_small(network: torch.nn.Module) -> None:
    """Scale down residual branches, so that features have the magnitude of a trained network."""
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.endswith(("conv3.norm", "bn3")):
                weight: Any = module.weight
                weight.fill_(0.1)


def pace(
    batches: Iterator[Any], step: Callable[[list[Any]], None], args: Namespace, seconds: float
) -> Pace:
    """Measure iterations for `seconds`, after those whose batches were prefetched."""
    end = time.perf_counter() + seconds
    ahead = 2 + 2 * args.workers
    while ahead and time.perf_counter() < end - seconds / 2:
        step(next(batches))
        ahead -= 1
    _synchronise(args.device)
    on_gpu = args.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(args.device)
    began, waited, images, steps = time.perf_counter(), 0.0, 0, 0
    pixels = padded = 0
    while steps < 2 or time.perf_counter() < end:
        waiting_since = time.perf_counter()
        samples = next(batches)
        waited += time.perf_counter() - waiting_since
        step(samples)
        shapes = [sample["image"].shape[1:] for sample in samples]
        pixels += sum(height * width for height, width in shapes)
        padded += len(shapes) * max(h for h, _ in shapes) * max(w for _, w in shapes)
        images += len(samples)
        steps += 1
    _synchronise(args.device)
    took = time.perf_counter() - began
    peak = f"{torch.cuda.max_memory_allocated(args.device) / 2**30:.1f} GiB" if on_gpu else NONE
    return Pace(images / took, waited / took, pixels / padded, peak)


def measure_prediction(args: Namespace) -> Iterator[Row]:
    """Measure the prediction of images of NYCU HW3's sizes, with Detectron2 and here."""
    end = time.perf_counter() + 60 * minutes_of("prediction", args)
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), TINY_SIZES if args.tiny else image_sizes())
        for number, cells in enumerate(args.cells):
            left = (end - time.perf_counter()) / (len(args.cells) - number)
            yield from _predict(args, Path(folder), images, cells, left)


def _predict(
    args: Namespace, folder: Path, images: Sequence[ImageRecord], cells: int, seconds: float
) -> Iterator[Row]:
    keys = ["TEST.DETECTIONS_PER_IMAGE", str(cells), "TEST.AMP", str(args.amp)]
    end = time.perf_counter() + seconds
    baseline = None
    if not detectron2_problem():
        predict = partial(predict_detectron2, args, images, keys, seconds / 2)
        if measured := _unless_out_of_memory(predict):
            baseline, count = measured
            images = images[:count]  # the same for both
    flips = ["TEST.SYMMETRIES", "4", "TEST.BATCH", "4"]
    for name, more, part in (("", [], 0.4), (", four flips", flips, 1.0)):
        left = max(0.0, end - time.perf_counter()) * part
        here = predict_here(args, folder, images, [*keys, *more], left)
        what, target = f"prediction, {cells} cells an image{name}, images/s", "≥ 3 ×"
        yield _compared(what, baseline, here, lambda rate: rate, "" if name else target)


def prediction_config(args: Namespace, engine: str, keys: Sequence[str]) -> CfgNode:
    """Return the config of a prediction with random weights."""
    flags = ["-m", RECIPE, "--engine", engine, "--device", args.device, "--weights", "none"]
    # Numbers, since Detectron2 can't compute them: its own for this network.
    lists = ["MODEL.RPN.PRE_NMS_TOPK_TEST", "6000", "MODEL.RPN.POST_NMS_TOPK_TEST", "1000"]
    cfg = train.setup(train.parse([*flags, *lists, *random_weight_keys(args)]))
    merge_options(cfg, keys)
    return cfg


def predict_detectron2(
    args: Namespace, images: Sequence[ImageRecord], keys: Sequence[str], seconds: float
) -> tuple[float, int]:
    """Predict with `DefaultPredictor` and encode each mask. Return images/s and their number."""
    from detectron2.engine import DefaultPredictor

    torch.manual_seed(0)
    predictor = DefaultPredictor(prediction_config(args, "detectron2", keys))
    keep_small(predictor.model)

    def predict(image: ImageRecord) -> None:
        instances = predictor(cv2.imread(str(image.path)))["instances"]
        encode_each(instances.pred_masks)

    predict(images[0])
    began, count = time.perf_counter(), 0
    for image in images:
        predict(image)
        count += 1
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began), count


def predict_here(
    args: Namespace, folder: Path, images: Sequence[ImageRecord], keys: list[str], seconds: float
) -> float:
    """Predict as inference.py does, from the files to the checked zip. Return images/s."""
    torch.manual_seed(0)
    cfg = prediction_config(args, args.engine, keys)
    network = build_network(cfg)
    keep_small(network)
    fold_batch_norms(network)  # as when weights are loaded
    predictor = Predictor([network], [cfg])

    def rate(part: Sequence[ImageRecord]) -> float:
        return len(part) / float(time_rest(folder, part, predictor)[0])

    rate(images[:1])
    result = rate(images[: max(1, int(seconds * rate(images[:4])))])
    if args.profile:
        with profiled("prediction"):
            rate(images[:PROFILED])
    return result


def measure_learning(args: Namespace) -> Iterator[Row]:
    """Train and score on the test images."""
    recipe, keys = (RECIPE, [*random_weight_keys(args), "SOLVER.IMS_PER_BATCH", "2"])
    if not args.tiny:
        recipe, keys = args.recipe, LEARNING
    keys = [*keys, *args.options]
    args.output.mkdir(parents=True, exist_ok=True)
    flags = ["-m", recipe, "--engine", args.engine, "--num_workers", str(args.workers)]
    result = {}
    with contextlib.redirect_stdout(sys.stderr):
        annotations = args.output / "annotations.json"
        annotation.main(["--data", str(args.data), "--output", str(annotations)])
        run, took, _ = train_for(
            flags, keys, args.data, args.output, minutes_of("learning", args), args.device,
            weights=args.weights or ("none" if args.tiny else None),
            pilot=(CURVE,) if args.tiny else PILOT,
        )  # fmt: skip
        for name, words in {"": [], ", four flips": ["--tta", "flips"]}.items():
            result[name], _ = score(run, args.data, words, args.device)
    for name, metrics in result.items():
        for cap, what in {"100": "100 detections", "all": "no cap"}.items():
            value = metrics[f"AP50@{cap}"]["mean of classes"]
            here = f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            target = "≥ 0.45" if (name, cap) == ("", "100") else ""
            what = f"AP50 at {what}{name}, {recipe}, {took:.1f} min"
            yield Row(what, NONE, here, "", target)


def measure_slide(args: Namespace) -> Iterator[Row]:
    """Measure the prediction of a slide of test images with the run of the learning."""
    run = runs.find_newest_run(args.output / "runs")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        slide = Path(folder) / "slide.tif"
        side = 256 if args.tiny else SLIDE
        write_slide(slide, sorted((args.data / "test_release").glob("*.tif")), side)
        flags = ["--checkpoint", str(run), "--device", args.device, "--images", str(slide)]
        flags += ["--output", folder] + ["--amp"] * args.amp + ["--batch", str(args.views)]
        began = time.perf_counter()
        inference.main([*flags, "--score_threshold", "0.3"])
        seconds = time.perf_counter() - began
        cells = len(read_json(Path(folder) / "images-results.json", "results", ""))
    area = (side * MPP / 1000) ** 2
    what = f"slide of {side} x {side} px at {MPP} µm, {area:.2f} mm², {cells} cells, s per mm²"
    yield Row(what, NONE, f"{seconds / area:.2f}", "", "HoVer-NeXt: 3.2")


def write_slide(path: Path, images: Sequence[Path], side: int) -> None:
    """Write a mosaic of repeated images as a tiled TIFF with sides of `side` pixels."""
    sheet = np.full((side, side, 3), 235, np.uint8)
    top = 0
    endless = itertools.cycle([read_image(image) for image in images])
    while top < side:
        left = row = 0
        while left < side:
            image = next(endless)
            part = sheet[top : top + image.shape[0], left : left + image.shape[1]]
            part[:] = image[: part.shape[0], : part.shape[1]]
            left += image.shape[1]
            row = max(row, image.shape[0])
        top += row
    tifffile.imwrite(path, sheet, photometric="rgb", tile=(256, 256))


def minutes_of(part: str, args: Namespace) -> float:
    """Return the time limit of a part in minutes."""
    return float(args.minutes or MINUTES[part])


def random_weight_keys(args: Namespace) -> list[str]:
    """Return the config keys of a network with random weights."""
    return [*RANDOM, *(TINY if args.tiny else [])]


def _unless_out_of_memory(measure: Callable[[], Any]) -> Any:
    """Measure and free memory; return None if the GPU's memory is too small."""
    result = None
    try:
        result = measure()
    except torch.OutOfMemoryError as error:
        print(f"out of memory: {str(error).splitlines()[0]}", file=sys.stderr)
    gc.collect()
    torch.cuda.empty_cache()
    return result


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _storage() -> contextlib.AbstractContextManager[Any]:
    """Return the event storage that Detectron2's heads need."""
    if detectron2_problem():
        return contextlib.nullcontext()
    from detectron2.utils.events import EventStorage

    storage: contextlib.AbstractContextManager[Any] = EventStorage()
    return storage


@contextlib.contextmanager
def profiled(what: str) -> Iterator[None]:
    """Print the slowest operators."""
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with profile(activities=activities, acc_events=True) as profiler:
        yield
    by = f"self_{'device' if gpu else 'cpu'}_time_total"
    table = profiler.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=50)
    print(f"{what}, profiled:\n{table}", file=sys.stderr)


def _row(what: str, baseline: Any, here: Any, form: Callable[[Any], str], target: str = "") -> Row:
    """Return the row of two values, each of which may be missing."""
    slow, fast = (NONE if x is None else form(x) for x in (baseline, here))
    return Row(what, slow, fast, "", target)


def _compared(
    what: str, baseline: Any, here: Any, value: Callable[[Any], float], target: str = ""
) -> Row:
    """Return the row of two rates, each of which may be missing, and their ratio."""
    row = _row(what, baseline, here, lambda x: f"{value(x):.2f}", target)
    if baseline is None or here is None:
        return row
    return row._replace(ratio=f"{value(here) / value(baseline):.1f} ×")


def machine(device: str) -> str:
    """Return the name of the device."""
    if not device.startswith("cuda"):
        return "CPU"
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def as_markdown(args: Namespace, command: Sequence[str], rows: Sequence[Row]) -> str:
    """Format the table as Markdown, with versions and the command."""
    versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
    lines = [
        f"## {datetime.date.today()}, {machine(args.device)}",
        "",
        f"{versions}, CUDA {torch.version.cuda}; {count_cores()} cores, {args.workers} of them "
        f"loading images; engine {args.engine}",
        "",
        f"    {shlex.join(command)}",
        "",
        *(f"| {' | '.join(row)} |" for row in (HEAD, RULE, *rows)),
    ]
    return "\n".join(lines) + "\n"


def as_text(rows: Sequence[Row]) -> str:
    """Format the table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


RUN: dict[str, Callable[[Namespace], Iterator[Row]]] = {
    "tests": run_tests,
    "training": measure_training,
    "prediction": measure_prediction,
    "learning": measure_learning,
    "slide": measure_slide,
}


def require_gpu(device: str | None) -> str:
    """Return the device; raise InputError if it was left out and there is no GPU."""
    if not (device or torch.cuda.is_available()):
        raise InputError(
            "no CUDA GPU that torch can use: make doctor shows what is missing, --device cpu "
            "--tiny rehearses without one"
        )
    return choose_device(device)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse the command line."""
    parser = utils.CommandParser(
        "Run and print a table of: the GPU tests, the throughput of training and prediction\n"
        "compared with Detectron2, and the AP50 after a short training.",
        "python bench/gpu.py\npython bench/gpu.py --parts learning --data tissue\n"
        "python bench/gpu.py --device cpu --tiny",
    )
    # fmt: off
    flag = parser.add_argument
    flag("--parts", nargs="+", choices=RUN, default=["tests", "training", "prediction"],
         metavar="PART", help=f"some of {', '.join(RUN)}; slide needs learning (the first 3)")
    flag("--minutes", type=float, metavar="M",
         help="time limit of each part (3; learning: 8 of training, then the scoring)")
    flag("--data", type=Path, metavar="DIR", help="data folder for learning, with test_masks/")
    flag("--recipe", default=OURS, metavar="NAME", help=f"for learning ({OURS})")
    flag("--weights", metavar="WHICH",
         help="initial weights for learning, as in train.py (the recipe's)")
    flag("--views", type=int, default=8, metavar="N", help="tiles of the slide per batch (8)")
    flag("--engine", default="auto", metavar="NAME", help="as in train.py (auto)")
    flag("--device", metavar="NAME", help="cuda, cuda:1, cpu (cuda)")
    flag("--batch", type=int, default=14, metavar="N", help="images per iteration (14)")
    flag("--workers", type=utils.non_negative_int, default=4, metavar="N",
         help="data loading workers, on both sides (4)")
    flag("--cells", type=int, nargs="+", default=CELLS, metavar="N",
         help="maximum detections per image, in prediction (800 and 150)")
    flag("--amp", action=BooleanOptionalAction, default=True,
         help="mixed precision, not for Detectron2")
    flag("--profile", action="store_true", help="print the slowest operators")
    flag("--tiny", action="store_true", help="a tiny network on tiny images")
    flag("--output", type=Path, default=Path("gpu-benchmark"), metavar="DIR",
         help="folder of table.md and the run of the learning (gpu-benchmark)")
    flag("options", nargs=REMAINDER, metavar="KEY VALUE", help="config keys for learning")
    # fmt: on
    args = parser.parse_args(argv)
    if args.minutes is not None and not args.minutes > 0:
        parser.error(f"--minutes {args.minutes}: a positive number is expected")
    if {"learning", "slide"} & set(args.parts) and not args.data:
        parser.error("--parts learning or slide: --data DIR with test_masks/ is needed")
    if args.batch < 1 or min(args.cells) < 1:
        parser.error("--batch and --cells: 1 or more is expected")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print the table. Return the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    args.device = require_gpu(args.device)
    args.workers = min(args.workers, count_cores())
    if args.tiny:
        args.batch, args.workers, args.minutes = 2, 0, args.minutes or 0.05
    args.engine = choose_engine(args.engine)
    if detectron2_problem():
        print("no baseline, Detectron2 is not available:", detectron2_problem())
    command = ["python", "bench/gpu.py", *(sys.argv[1:] if argv is None else argv)]
    rows: list[Row] = []
    for part in args.parts:
        try:
            for row in RUN[part](args):
                print("  ".join(filter(None, row)), file=sys.stderr, flush=True)
                rows.append(row)
        except Exception as error:  # noqa: BLE001 keep the results of the other parts
            if not isinstance(error, InputError):
                traceback.print_exc()
            outcome = f"failed: {type(error).__name__}: {error}"
            rows.append(Row(part, NONE, outcome.splitlines()[0]))
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "table.md"
    with write_atomic(path) as file:
        file.write(as_markdown(args, command, rows))
    print(f"{machine(args.device)}; written to {display_path(path)}\n{as_text([HEAD, *rows])}")
    return int(any(row.here.startswith("failed") for row in rows))


if __name__ == "__main__":
    utils.run_command(main)
