"""Predict images with trained networks, and write the file to submit."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg import process
from cellseg.errors import InputError
from cellseg.files import display_path

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from cellseg.predict.networks import Networks
    from cellseg.read.image_lists import ImageSet


def get_parser() -> utils.CommandParser:
    """Build the argument parser; flags left out are None, for the value in the run's config."""
    parser = utils.CommandParser(
        "Predict the test images with the newest finished run, and write test-results.json and\n"
        "the zip to submit into the run's folder. The results are then checked. --images predicts\n"
        "your own images and slides instead: docs/tissue.md and docs/slides.md.",
        "python inference.py --checkpoint tensorboard/mask_rcnn_R_50_DC5_3x/20250401-120000\n"
        "python inference.py --images slides/ more/cells.png --output predicted/\n"
        "python inference.py --images slides.csv --output cohort/ --workers 4",
    )
    # fmt: off
    add = parser.add_argument_group("network").add_argument
    add("--checkpoint", type=Path, nargs="+", metavar="RUN",
        help="run folder, or weights in it (the newest finished run); several are fused")
    add("--weight_name", metavar="FILE",
        help="weights file in that folder (model_best.pth if it exists, else model_final.pth)")
    add("--engine", default="auto", metavar="NAME", help="detectron2, torchvision (the run's)")
    add("--device", metavar="NAME", help="cuda, cpu (CUDA if there is a GPU)")
    add = parser.add_argument_group("tiles and views").add_argument
    add("--tta", nargs="*", metavar="VIEWS", choices=("mirror", "flips", "turns", "scales"),
        help="fuse several views of each tile: mirror (2), flips (the default, 4), turns (8), "
        "scales (times 3)")
    add("--tile", type=utils.positive_int, metavar="PIXELS",
        help="tile size in pixels (a few times the largest cells; without INPUT.ZOOM no tiles)")
    add("--overlap", type=utils.positive_int, metavar="PIXELS",
        help="overlap of tiles in pixels (a little more than the largest cells)")
    add("--across_classes", action="store_true",
        help="class-agnostic suppression of overlapping cells")
    add("--batch", type=utils.positive_int, metavar="N", help="views at once (1)")
    add("--amp", action="store_true",
        help="mixed precision on a GPU (a CPU uses bfloat16 wherever it is fast)")
    add("--workers", "--num_gpus", "--processes", type=utils.positive_int, default=1, metavar="N",
        help="processes on this machine that predict tiles, on GPUs one each (1)")
    add("--scheduler", metavar="ADDRESS",
        help="predict on the workers of this Dask scheduler, such as tcp://10.0.0.1:8786")
    for former in ("--num_machines", "--machine_rank", "--dist_url"):
        add(former, help=argparse.SUPPRESS)
    images = parser.add_argument_group("images")
    add = images.add_argument
    add("--data", type=Path, metavar="DIR",
        help="data folder (nycu-hw3-data next to this script; for train and val the run's own)")
    utils.add_limits(images)
    add("--dataset", choices=("test", "train", "val"), default="test",
        help="the test list, all annotated images, or the run's validation images (test)")
    add("--annotations", type=Path, metavar="FILE",
        help="the run's annotation file for train and val, where it is now (the run's own path)")
    add("--images", type=Path, nargs="+", metavar="PATH",
        help="images, folders of images, or a CSV table of slides, to predict instead")
    add("--mpp", type=utils.micrometres, metavar="MICROMETRES",
        help="micrometres per pixel at full resolution (as the files say, else as in training)")
    add("--level", type=utils.non_negative_int, metavar="N",
        help="pyramid level for --images (the one that suits the run's micrometres per pixel)")
    add("--regions", type=Path, metavar="FILE",
        help="predict inside these outlines of the image only (GeoJSON, full-resolution pixels)")
    add("--all_tiles", action="store_true",
        help="predict tiles without tissue too (of more than a few tiles, only those with some)")
    add = parser.add_argument_group("results").add_argument
    add("--output", type=Path, metavar="PATH", help="a .json file or folder (the run's folder)")
    add("--zip", action="store_true",
        help="write a zip in any case (only of the test list with the data folder's classes)")
    add("--score_threshold", type=utils.fraction, metavar="S",
        help="minimum score, 0 to 1 (0.01 or the recipe's: AP counts low scores too)")
    add("--max_detections", type=utils.positive_int, metavar="N",
        help="maximum detections per image, or per tile (room for all cells of the area)")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config keys, such as TEST.MASK_IOU 0.4")
    # fmt: on
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and check which flags go together."""
    parser = get_parser()
    args = parser.parse_with_keys(argv)
    if args.images and args.dataset != "test":
        parser.error("--images and --dataset: give one of them")
    if args.annotations and args.dataset == "test":
        parser.error("--annotations: needs --dataset train or val")
    if args.level and not args.images:
        parser.error("--level: needs --images")
    if len(args.checkpoint or ()) > 1 and not args.output:
        parser.error("--checkpoint: several are fused; choose where to write with --output")
    if args.num_machines or args.machine_rank or args.dist_url:
        parser.error(
            "--num_machines, --machine_rank, --dist_url: several machines are a Dask cluster now; "
            "pass the address of its scheduler with --scheduler (docs/slides.md)"
        )
    if args.scheduler == "":  # as of an unset variable
        parser.error("--scheduler: is empty; pass the address that `dask scheduler` prints")
    if args.scheduler and args.workers > 1:
        parser.error("--scheduler and --workers: the cluster has its own workers; give one")
    return args


def configure(args: argparse.Namespace, run: Path) -> CfgNode:
    """Return a run's config with the values of the flags."""
    from cellseg import runs
    from cellseg.config import load_config, merge_options, set_given
    from cellseg.device import ANY_DEVICE

    cfg = load_config(run / runs.CONFIG, args.engine)
    flags = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": args.score_threshold,
        "TEST.DETECTIONS_PER_IMAGE": args.max_detections,
        "TEST.TILE": args.tile,
        "TEST.OVERLAP": args.overlap,
        "TEST.BATCH": args.batch,
        "TEST.AMP": args.amp or None,
        "TEST.ACROSS_CLASSES": args.across_classes or None,
    }
    if args.tta is not None:
        views = args.tta or ["flips"]
        counts = {"mirror": 2, "flips": 4, "turns": 8}
        flags["TEST.SYMMETRIES"] = max(counts.get(view, 1) for view in views)
        flags["TEST.SCALES"] = (0.8, 1.0, 1.25) if "scales" in views else (1.0,)
    set_given(cfg, flags)
    merge_options(cfg, args.options)
    cfg.MODEL.DEVICE = args.device or ANY_DEVICE
    return cfg


def find_networks(args: argparse.Namespace) -> Networks:
    """Return the networks of the runs. Sets the device that was left out."""
    from cellseg import config, runs
    from cellseg.device import choose_device
    from cellseg.predict.networks import Networks, check_networks

    checkpoints = args.checkpoint or [runs.find_newest_run(utils.RUNS)]
    categories = runs.common_categories([runs.resolve_run_folder(path) for path in checkpoints])
    if not args.scheduler:
        args.device = choose_device(args.device, args.options)
    weights = [runs.find_weights(path, args.weight_name) for path in checkpoints]
    if len({path.resolve() for path in weights}) < len(weights):
        raise InputError("--checkpoint: names the same weights twice; name each run once")
    print("weights: " + ", ".join(map(display_path, weights)))
    cfgs = [configure(args, path.parent) for path in weights]
    config.check_prediction_keys(cfgs, args.options[::2])
    if args.overlap and not (cfgs[0].TEST.TILE or any(cfg.INPUT.ZOOM for cfg in cfgs)):
        raise InputError("--overlap: runs without INPUT.ZOOM predict whole images; pass --tile too")
    networks = Networks(weights, cfgs, categories)
    check_networks(networks)
    return networks


def list_images(args: argparse.Namespace, networks: Networks) -> ImageSet:
    """List the images to predict: the user's own, the test list, or the runs' annotated ones."""
    from cellseg import runs
    from cellseg.read import image_lists
    from cellseg.read.coco import data_categories
    from cellseg.read.image_lists import ImageSet
    from cellseg.read.results import OWN_RESULTS_FILE, RESULTS_FILE

    if args.images:
        return ImageSet(OWN_RESULTS_FILE, image_lists.list_image_files(args.images))
    if args.dataset == "test":
        data = args.data or utils.DATA
        listed = image_lists.read_test_list(data)
        return ImageSet(RESULTS_FILE, listed, data, categories=data_categories(data))
    validation = runs.common_validation(networks.runs) if args.dataset == "val" else None
    annotations = args.annotations or (args.data and args.data / utils.ANNOTATIONS)
    annotations = runs.find_annotations(networks.runs, annotations)
    data = args.data or Path(networks.cfgs[0].DATA.ROOT)
    listed = image_lists.list_annotated_images(data, annotations, validation)
    return ImageSet(f"{args.dataset}-results.json", listed, data, annotations)


def predict_slides(args: argparse.Namespace, networks: Networks) -> None:
    """Predict the slides of a table."""
    from cellseg.write.slides import predict_table

    table = args.images[0]
    if args.zip:
        raise InputError(f"--images {table}: a table of slides, no submission; leave --zip out")
    if args.regions:
        raise InputError(
            f"--images {table}: a table of slides; leave --regions out, and name the outlines "
            "of each slide in its column regions"
        )
    process.advise("run the same command again to continue")
    predict_table(
        table, args.output or networks.runs[0] / table.stem, networks, mpp=args.mpp,
        level=args.level, all_tiles=args.all_tiles, workers=args.workers, scheduler=args.scheduler,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write and check the results. Return the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from cellseg.predict.job import PredictionJob
    from cellseg.predict.part import describe_parts, warn_of_empty_parts
    from cellseg.predict.resolution import set_resolution
    from cellseg.predict.workers import connect
    from cellseg.read.slide_table import is_slide_table
    from cellseg.write.results import (
        check_results_output,
        choose_results,
        warn_of_replaced,
        write_checked_results,
    )
    from cellseg.write.sidecars import write_data_folder

    networks = find_networks(args)
    if is_slide_table(args.images or ()):
        predict_slides(args, networks)
        return 0
    listed = list_images(args, networks)
    if args.regions and len(listed.images) > 1:
        raise InputError(
            f"--regions {args.regions}: outlines of one image, but {len(listed.images)} are "
            "predicted; pass one image with --images"
        )
    images = [replace(image, regions=args.regions or image.regions) for image in listed.images]
    images, resolution = set_resolution(images, networks.cfgs, args.mpp, args.level)
    print(resolution)
    results = choose_results(args.output or networks.runs[0], listed.results_name)
    check_results_output(results, args.zip or listed.is_test)
    warn_of_replaced(results, images if listed.is_own else ())
    with connect(networks, args.workers, args.scheduler) as (predictor, predict):
        job = PredictionJob.begin(predictor, networks.weights, images, results, args.all_tiles)
        for line in describe_parts(list(job.parts.values())):
            print(line)
        warn_of_empty_parts(job.parts.values())
        process.advise("run the same command again to continue")
        job.run(predict)
    job.collect_failures()
    if job.usable:
        write_checked_results(job, predictor, networks.categories, listed, args.zip)
        # Not the default, which may move with this project.
        is_elsewhere = listed.is_test and listed.data != utils.DATA
        write_data_folder(results, listed.data if is_elsewhere else None)
    job.close()
    return 0


if __name__ == "__main__":
    utils.run_command(main)
