"""AP50 after equal training time: the baseline recipe and this project's, in one run.

    python bench/learning.py --data DIR [--minutes M] [--seeds N ...] [--only NAME ...]

DIR has `train/` and test images with masks in `test_masks/`. This project's network starts from
ImageNet weights that are part of the set-up, the baseline's from random ones. Some iterations are
timed first, so that the schedule fits the minutes (later seeds reuse the time of the first); then
each recipe is trained and scored on the test images, the baseline with the first seed only, since
it detects hardly a cell. This project's networks are scored with the average of two and of four
flipped views, too. `--ingredients` changes one ingredient at a time of this project's recipe
instead.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import annotation
import evaluate
import inference
import train
from cellseg import runs
from cellseg.device import detectron2_problem
from cellseg.files import read_json, write_json

# A ResNet-50-DC5 of quarter width.
BASELINE = """\
_BASE_: "{configs}/base/dilated_c5.yaml"
MODEL:
  PIXEL_STD: [57.0, 57.0, 57.0]
  BACKBONE: {{FREEZE_AT: 0}}
  RESNETS: {{NORM: BN, STEM_OUT_CHANNELS: 32, RES2_OUT_CHANNELS: 64, WIDTH_PER_GROUP: 16}}
  ROI_BOX_HEAD: {{FC_DIM: 256}}
  ROI_MASK_HEAD: {{NUM_CONV: 2, CONV_DIM: 64}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 4, WARMUP_ITERS: 20}}
"""
OURS = "lite_fpn"

# Flags of the prediction -> what they add to a row's name, for this project's rows.
PREDICTIONS = {
    (): "",
    ("--tta", "mirror"): ", --tta mirror",
    ("--tta", "flips"): ", --tta flips",
}

# Name -> keys that remove the ingredient, or add one.
INGREDIENTS: dict[str, list[str]] = {
    "all of it": [],
    "random weights": ["MODEL.WEIGHTS", ""],
    "half crops to 608, no fixed scale": [
        *("INPUT.ZOOM", "0", "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.5,0.5]"),
        *("INPUT.MIN_SIZE_TRAIN", "(608,)", "INPUT.MIN_SIZE_TEST", "1000"),
        *("INPUT.MAX_SIZE_TEST", "1333"),
    ],
    "scale 1": ["INPUT.ZOOM", "1"],
    "scale 2": ["INPUT.ZOOM", "2"],
    "no scale jitter": ["INPUT.ZOOM_JITTER", "0"],
    "scale jitter 0.25": ["INPUT.ZOOM_JITTER", "0.25"],
    "no auxiliary head": ["MODEL.AUXILIARY_HEAD.LOSS_WEIGHT", "0"],
    "boxes and masks for each class": [
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False"),
        *("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False"),
    ],
    "box head of 256 units": ["MODEL.ROI_BOX_HEAD.FC_DIM", "256"],
    "score without the foreground": [
        *("MODEL.ROI_HEADS.FOREGROUND_POWER", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02"),
    ],
    "score without objectness": [
        *("MODEL.ROI_HEADS.OBJECTNESS_POWER", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.01"),
    ],
    "GIoU loss (Detectron2)": [
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", "5.0"),
    ],
    "windows of 160 px": ["INPUT.WINDOW", "160"],
    "windows of 256 px": ["INPUT.WINDOW", "256"],
    "no sampling by class": ["INPUT.CROP_ON_CLASS", "0"],
    "rare images repeated": ["DATALOADER.REPEAT_THRESHOLD", "0.5"],
    "anchors of three ratios": ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5,1.0,2.0]]"],
    "anchors that fit count from IoU 0.7": ["MODEL.RPN.IOU_THRESHOLDS", "[0.3,0.7]"],
    "a quarter of the boxes cells": ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.25"],
    "masks in the boxes": ["MODEL.ROI_MASK_HEAD.BOX_SCALE", "1"],
    "masks of 28 x 28": ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "14"],
    "all cells train the mask head": ["MODEL.ROI_MASK_HEAD.BATCH_SIZE_PER_IMAGE", "0"],
    "no turns": ["INPUT.QUARTER_TURNS", "False"],
    "stain jitter 0.15": ["INPUT.STAIN_JITTER", "0.15"],
    "copy-paste 0.5": ["INPUT.COPY_PASTE", "0.5"],
    "no moving average": ["SOLVER.EMA", "0"],
    "rate 0.003": ["SOLVER.BASE_LR", "0.003"],
    "rate 0.005": ["SOLVER.BASE_LR", "0.005"],
    "stem and first stage frozen": ["MODEL.BACKBONE.FREEZE_AT", "2"],
    "weight decay 0.05": ["SOLVER.WEIGHT_DECAY", "0.05"],
    "Adagrad 0.001": ["SOLVER.OPTIMIZER", "Adagrad", "SOLVER.BASE_LR", "0.001"],
    "float32 throughout": ["SOLVER.AMP.ENABLED", "False"],
    "no normalisation after the backbone": [
        *("MODEL.FPN.NORM", "", "MODEL.ROI_MASK_HEAD.NORM", ""),
    ],
    "box head of 4 convolutions (Detectron2)": [
        *("MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.CONV_DIM", "64"),
        *("MODEL.ROI_BOX_HEAD.NUM_FC", "1", "MODEL.ROI_BOX_HEAD.NORM", "BN"),
    ],
}
# Printed beside AP50: of any class.
OTHERS = ("PQ", "AJI", "F1")

# Iterations timed first; the metrics hold the median of the last 20. The first iterations are
# faster than later ones, so more are timed where they are fast.
CURVE = 20
PILOT = (2 * CURVE, 12 * CURVE)
PILOT_SECONDS = 90.0


def train_for(
    flags: Sequence[str],
    keys: Sequence[str],
    data: Path,
    output: Path,
    minutes: float,
    device: str = "cpu",
    pace: float | None = None,
    weights: str | None = None,
    pilot: Sequence[int] = PILOT,
) -> tuple[Path, float, float]:
    """Train for some minutes.

    `output` holds `annotations.json`; the run's folder is written there too.

    Parameters
    ----------
    pace
        Seconds per iteration if known; otherwise measured.
    weights
        Initial weights, as `--weights` of train.py; None for the recipe's.
    pilot
        Iterations of the trainings that measure the pace.

    Returns
    -------
    Run folder, minutes, and seconds per iteration.
    """
    flags = [*flags, "--data", str(data), "--annotations", str(output / "annotations.json")]
    flags += ["--device", device, *(["--weights", weights] if weights else []), "--output_dir"]

    def run(folder: Path, iterations: int) -> Path:
        # The warm-up may not be longer than the run.
        longest = ["SOLVER.WARMUP_ITERS", "0"] if iterations <= max(pilot) else []
        train.main([*flags, str(folder), *keys, *longest, "SOLVER.MAX_ITER", str(iterations)])
        return runs.find_newest_run(folder)

    for steps in pilot if pace is None else ():
        if pace is not None:
            steps = min(steps, CURVE * round(PILOT_SECONDS / pace / CURVE))
            if steps <= pilot[0]:
                break
        with tempfile.TemporaryDirectory() as folder:
            timed = run(Path(folder), steps)
            pace = json.loads((timed / runs.METRICS).read_text().splitlines()[-1])["time"]
    assert pace is not None
    iterations = max(1, round(60 * minutes / pace))
    began = time.perf_counter()
    trained = run(output / "runs", iterations)
    seconds = time.perf_counter() - began
    return trained, seconds / 60, seconds / iterations


def score(
    run: Path, data: Path, words: Sequence[str] = (), device: str = "cpu"
) -> tuple[dict[str, Any], float]:
    """Predict the test images of a data folder, and score them.

    `words` are flags and KEY VALUE pairs of inference.py. Return the "metrics" of evaluate.py's
    JSON, and the seconds of the prediction.
    """
    with tempfile.TemporaryDirectory() as folder:
        results, scores = Path(folder) / "test-results.json", Path(folder) / "scores.json"
        began = time.perf_counter()
        flags = ["--checkpoint", str(run), "--data", str(data), "--device", device]
        inference.main([*flags, "--output", str(results), *words])
        seconds = time.perf_counter() - began
        evaluate.main([str(results), "--data", str(data), "--json", str(scores)])
        metrics: dict[str, Any] = read_json(scores, "scores", "")["metrics"]
    return metrics, seconds


def summarise(metrics: dict[str, Any]) -> dict[str, float]:
    """Return the values of a row: AP50 of the classes, their means, and measures of any class."""
    ap50 = metrics["AP50@100"]
    scores = {label: value["value"] for label, value in ap50["classes"].items()}
    scores["mean of classes"] = ap50["mean of classes"]["value"]
    scores["mean, no cap"] = metrics["AP50@all"]["mean of classes"]["value"]
    return scores | {label: metrics[label]["any class"]["value"] for label in OTHERS}


def cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def printed_as_errors() -> Iterator[None]:
    """Redirect standard output to standard error, also of child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("learning"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=20, help="per training (20)")
    parser.add_argument("--iterations", type=int, metavar="N", help="instead of the minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--ingredients", action="store_true", help="change one at a time; not with flips"
    )
    n_processes = 1 if detectron2_problem() else min(2, torch.get_num_threads())
    parser.add_argument(
        "--processes", type=int, default=n_processes, help=f"of each training ({n_processes})"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the rows")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="for every row")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    annotation.main(["--data", str(args.data), "--output", str(args.output / "annotations.json")])
    baseline = args.output / "baseline.yaml"
    baseline.write_text(BASELINE.format(configs=Path(train.__file__).resolve().parent / "configs"))
    rows = {name: (["-m", OURS], keys) for name, keys in INGREDIENTS.items()}
    if not args.ingredients:
        rows = {"this project": (["-m", OURS], [])}
        rows["baseline"] = (["--config_file", str(baseline), "--weights", "none"], [])
    for name in set(args.only or rows) - set(rows):
        parser.error(f"--only {name!r}: expected some of {', '.join(map(repr, rows))}")
    table: dict[str, list[dict[str, float]]] = {}
    paces: dict[str, float] = {}
    for seed in args.seeds:  # interleaved, so that other load affects all rows
        for name, (flags, keys) in rows.items():
            if args.only and name not in args.only:
                continue
            if name == "baseline" and seed != args.seeds[0]:
                continue
            seeded = [*flags, "--seed", str(seed), "--processes", str(args.processes)]
            pace = 60 * args.minutes / args.iterations if args.iterations else paces.get(name)
            began = cpu_seconds()
            with printed_as_errors():
                run, minutes, paces[name] = train_for(
                    seeded, [*keys, *args.set], args.data, args.output, args.minutes, pace=pace
                )
                cpu = cpu_seconds() - began
                predictions = PREDICTIONS if name == "this project" else {(): ""}
                scored = {
                    name + added: score(run, args.data, words)[0]
                    for words, added in predictions.items()
                }
            for row, metrics in scored.items():
                scores = summarise(metrics)
                table.setdefault(row, []).append(scores | {"minutes": minutes, "CPU seconds": cpu})
                rounded = ", ".join(f"{label} {value:.3f}" for label, value in scores.items())
                took = f"{minutes:.1f} minutes, {cpu:.0f} CPU seconds of training"
                print(f"{row}, seed {seed}: {rounded}; {took}", flush=True)
            write_json(args.output / "table.json", table, indent=1)
    others = "".join(f"{label:>7}" for label in OTHERS)
    print(f"\n{'AP50 at 100 detections':38}{'mean':>7}{'minus the first':>18}{others}  seeds")
    first = next(iter(table.values()))
    for name, of_seeds in table.items():
        values = [scores["mean of classes"] for scores in of_seeds]
        mean = statistics.mean(values)
        gain = mean - statistics.mean(scores["mean of classes"] for scores in first)
        each = ", ".join(f"{value:.3f}" for value in values)
        others = "".join(
            f"{statistics.mean(scores[label] for scores in of_seeds):7.3f}" for label in OTHERS
        )
        print(f"{name:38}{mean:7.3f}{gain:+18.3f}{others}  {each}")


if __name__ == "__main__":
    main()
