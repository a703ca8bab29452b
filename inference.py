"""Predict the test images with a trained network, and write the file to submit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg.errors import InputError

if TYPE_CHECKING:
    from cellseg.predict.images import ListedImage
    from cellseg.predict.predictor import Predictor

MAX_DETECTIONS = 800


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = utils.CommandParser(
        "Predict the test images with the newest finished run, and write test-results.json and\n"
        "the zip to submit into the run's folder. What was written is then checked.",
        "python inference.py --checkpoint tensorboard/mask_rcnn_R_50_DC5_3x/20250401-120000",
    )
    model = parser.add_argument_group("network")
    model.add_argument(
        "--checkpoint",
        type=Path,
        metavar="RUN",
        help="folder of the run, or weights in it (the newest finished one)",
    )
    model.add_argument(
        "--weight_name", metavar="FILE",
        help="weights in that folder (model_best.pth if there, else model_final.pth)",
    )  # fmt: skip
    model.add_argument(
        "--engine", metavar="NAME",
        help="detectron2 or torchvision; a run knows its own, another is refused",
    )  # fmt: skip
    model.add_argument("--device", metavar="NAME", help="cuda, cpu (CUDA if there is a GPU)")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data", type=Path, default=utils.DATA, metavar="DIR", help="data folder (nycu-hw3-data)"
    )
    images.add_argument(
        "--dataset", choices=("test", "train", "val"), default="test",
        help="the test list, all annotated images, or those that the run held out (test)",
    )  # fmt: skip
    images.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="for train and val (train__annot.json in the data folder)",
    )  # fmt: skip
    images.add_argument(
        "--images", type=Path, nargs="+", metavar="PATH",
        help="any images, or folders of them, instead; they need no list",
    )  # fmt: skip
    out = parser.add_argument_group("results")
    out.add_argument(
        "--output", type=Path, metavar="PATH",
        help="a .json file or a folder (the run's folder)",
    )  # fmt: skip
    out.add_argument(
        "--score_threshold", type=float, metavar="S",
        help="leave out cells that score below this, 0 to 1 (0.01: AP wants the doubtful ones too)",
    )  # fmt: skip
    out.add_argument(
        "--max_detections", type=int, default=MAX_DETECTIONS, metavar="N",
        help=f"keep the best N cells of an image ({MAX_DETECTIONS})",
    )  # fmt: skip
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="keys of the config, such as INPUT.MIN_SIZE_TEST 800",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score_threshold {args.score_threshold}: a number from 0 to 1 is expected")
    if args.max_detections < 1:
        parser.error(f"--max_detections {args.max_detections}: 1 or more is expected")
    if args.images and args.dataset != "test":
        parser.error("--images and --dataset: give one of them")
    if args.checkpoint and args.checkpoint.is_file() and args.checkpoint.suffix == ".pth":
        # Weights in place of their folder.
        args.weight_name = args.weight_name or args.checkpoint.name
    return args


def load_predictor(args: argparse.Namespace, run: Path) -> Predictor:
    """Build the run's network with its weights, as the flags want it."""
    from cellseg import runs
    from cellseg.learn.config import load_config, merge_options
    from cellseg.predict.predictor import Predictor

    cfg = load_config(run / runs.CONFIG, args.engine or "auto")
    if args.score_threshold is not None:
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.score_threshold
    cfg.TEST.DETECTIONS_PER_IMAGE = args.max_detections
    merge_options(cfg, args.options)
    cfg.MODEL.DEVICE = utils.choose_device(args.device, args.options)
    weights = runs.choose_weights(run, args.weight_name)
    print(f"weights: {utils.shown(weights)}")
    return Predictor.load(cfg, weights)


def list_wanted(args: argparse.Namespace, run: Path) -> tuple[str, list[ListedImage]]:
    """List the images to predict, and name the results."""
    from cellseg import runs
    from cellseg.predict import images
    from cellseg.score.results import FILE_NAME

    if args.images:
        return "images-results.json", images.list_any_images(args.images)
    if args.dataset == "test":
        return FILE_NAME, images.list_test_images(args.data)
    annotations = args.annotations or args.data / utils.ANNOTATIONS
    names = None
    if args.dataset == "val":
        names = runs.read_record(run)["held_out"]
        if not names:
            raise InputError(f"--dataset val: {utils.shown(run)} held no images out")
    return f"{args.dataset}-results.json", images.list_annotated_images(
        args.data, annotations, names
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write, check; give the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from tqdm import tqdm

    from cellseg import runs
    from cellseg.files import write_json
    from cellseg.predict.images import read_ahead
    from cellseg.score.results import FILE_NAME
    from cellseg.write.submission import check_submission, write_submission, write_zip

    run = runs.open_run(args.checkpoint) if args.checkpoint else runs.newest_run(utils.RUNS)
    name, images = list_wanted(args, run)
    category_ids = [category["id"] for category in runs.read_record(run)["categories"]]
    predictor = load_predictor(args, run)

    output = args.output or run
    results = output if output.suffix == ".json" else output / name
    bad: dict[int, InputError] = {}
    with write_submission(results, category_ids) as writer:
        for image, pixels in tqdm(
            read_ahead(images), total=len(images), desc="predicting", unit="image", disable=None
        ):
            if isinstance(pixels, InputError):
                bad[image.id] = pixels
                continue
            try:
                found = predictor.predict(pixels)
            except InputError as problem:
                bad[image.id] = InputError(f"{image.path}: {problem}")
            else:
                writer.add(image.id, found)
        if len(bad) == len(images):
            raise InputError(f"none of the {len(images)} images can be used; {bad[images[0].id]}")
    listed = [image.entry() for image in images if image.id not in bad]
    if args.images:
        write_json(results.with_name(results.stem + "-list.json"), listed, indent=1)
    archive = write_zip(results) if name == FILE_NAME else None
    count, empty = check_submission(archive or results, listed, category_ids)
    print(
        f"{count} cells in {len(listed)} images"
        + (f", {len(empty)} of them without any" if empty else "")
        + f": {utils.shown(results)}"
    )
    if archive:
        print(f"checked, and ready to submit: {utils.shown(archive)}")
    for error in bad.values():
        print(f"left out: {error}", file=sys.stderr)
    if bad:
        raise InputError(
            f"{len(bad)} of {len(images)} images left out, see above; mend them and predict again"
        )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
