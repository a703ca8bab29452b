"""Run all commands on a small synthetic data set: from images and masks to scores and pictures."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import annotation
import evaluate
import inference
import report
import train
import utils
from cellseg import runs, synthetic
from cellseg.files import display_path, read_json
from cellseg.images import distinct_detections
from cellseg.look.overlay import draw_comparison
from cellseg.png import write_png
from cellseg.read.coco import class_names
from cellseg.read.ground_truth import read_ground_truth
from cellseg.read.pairs import pair_by_image
from cellseg.read.results import read_results
from cellseg.read.window import read_image

MIN_SCORE = 0.5  # of the cells in the pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    parser = utils.CommandParser(
        "Generate a small synthetic data set (layout of NYCU HW3), train a small network on it\n"
        "(2 to 4 minutes on two idle cores, no GPU), predict the test images, evaluate and draw\n"
        "them. Each command is shown as you would type it.",
        "python demo.py --seed 7",
    )
    # fmt: off
    add = parser.add_argument
    add("--seed", type=utils.non_negative_int, default=42, metavar="N",
        help="random seed of the data and the training (42)")
    add("--output", type=Path, default=utils.PROJECT / "demo", metavar="DIR",
        help="output folder (demo)")
    add("--engine", default="auto", metavar="NAME",
        help="detectron2, torchvision or auto: Detectron2 if available (auto)")
    # fmt: on
    args = parser.parse_args(argv)
    began = time.monotonic()

    data = args.output / "data"
    print(f"# 44 synthetic images with their masks: {display_path(data)}")
    synthetic.write_dataset(data, seed=args.seed)
    data_flag = ["--data", str(data)]
    _run_command("annotation", annotation.main, data_flag)
    recipe = ["--model", "demo", "--engine", args.engine, "--seed", str(args.seed)]
    root = args.output / "runs"
    _run_command("train", train.main, [*recipe, *data_flag, "--output_dir", str(root)])
    run = runs.find_newest_run(root)
    _run_command("inference", inference.main, ["--checkpoint", str(run), *data_flag])
    scores = args.output / "scores.json"
    _run_command("evaluate", evaluate.main, [str(run), *data_flag, "--json", str(scores)])
    pictures = draw_pictures(data, run, args.output / "pictures")
    page = args.output / "report.html"
    _run_command("report", report.main, [str(run), *data_flag, "--output", str(page)])

    metrics = read_json(scores, "scores", "run the demo again")["metrics"]
    ap50 = metrics["AP50@100"]["mean of classes"]["value"]
    print(
        f"\n# done in {time.monotonic() - began:.0f} s: AP50 {ap50:.3f} on the test images\n"
        f"# pictures, ground truth left, detections right: {display_path(pictures)}\n"
        f"# page, open it in any browser: {display_path(page)}"
    )
    return 0


def _run_command(name: str, command: Callable[[Sequence[str]], int], argv: list[str]) -> None:
    shown = shlex.join(display_path(word) if "/" in word else word for word in argv)
    print(f"\n$ python {name}.py {shown}")
    if code := command(argv):
        raise SystemExit(code)


def draw_pictures(data: Path, run: Path, folder: Path) -> Path:
    """Draw ground truth and detected cells of each test image side by side; return `folder`."""
    ground_truth = read_ground_truth(data / "test_masks", data)
    names = class_names(ground_truth)
    for eval_image in pair_by_image(ground_truth, read_results(run)):
        cells = distinct_detections(eval_image)
        n_shown = int((cells.scores >= MIN_SCORE).sum())  # best score first
        picture = draw_comparison(
            read_image(data / "test_release" / eval_image.name),
            eval_image.gt_masks,
            eval_image.gt_classes,
            cells.masks[:n_shown],
            cells.classes[:n_shown],
            names,
        )
        write_png(folder / f"{Path(eval_image.name).stem}.png", picture)
    return folder


if __name__ == "__main__":
    utils.run_command(main)
