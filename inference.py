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
    from fvcore.common.config import CfgNode

    from cellseg.images import ImageRecord
    from cellseg.predict.journal import Journal
    from cellseg.predict.predictor import Predictor
    from cellseg.predict.shares import Plans
    from cellseg.predict.tiles import TilePlan

TTA = ("flips", "turns", "scales")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = utils.CommandParser(
        "Predict the test images with the newest finished run, and write test-results.json and\n"
        "the zip to submit into the run's folder. What was written is then checked.",
        "python inference.py --checkpoint tensorboard/mask_rcnn_R_50_DC5_3x/20250401-120000",
    )
    model = parser.add_argument_group("network")
    model.add_argument(
        "--checkpoint", type=Path, nargs="+", metavar="RUN",
        help="folder of the run, or weights in it (the newest finished one); what several runs "
        "find is fused",
    )  # fmt: skip
    model.add_argument(
        "--weight_name", metavar="FILE",
        help="weights in that folder (model_best.pth if there, else model_final.pth)",
    )  # fmt: skip
    model.add_argument(
        "--engine", metavar="NAME",
        help="detectron2 or torchvision; a run knows its own, another is refused",
    )  # fmt: skip
    model.add_argument("--device", metavar="NAME", help="cuda, cpu (CUDA if there is a GPU)")
    looks = parser.add_argument_group("how to look")
    looks.add_argument(
        "--tta", nargs="*", choices=TTA, metavar="VIEWS",
        help="look several times and fuse what is found: flips (4 views), turns (8) and scales "
        "(times 3); flips if nothing is said",
    )  # fmt: skip
    looks.add_argument(
        "--tile", type=utils.whole_number, metavar="PIXELS",
        help="side of the tiles that larger images are cut into (a few times the largest cells; "
        "runs without INPUT.ZOOM look at whole images)",
    )  # fmt: skip
    looks.add_argument(
        "--overlap", type=utils.whole_number, metavar="PIXELS",
        help="of neighbouring tiles (a little more than the largest cells)",
    )  # fmt: skip
    looks.add_argument(
        "--across_classes", action="store_true",
        help="of cells that overlap, keep the best whatever their classes",
    )  # fmt: skip
    looks.add_argument(
        "--batch", type=utils.whole_number, metavar="N", help="views at once on a GPU (1)"
    )
    looks.add_argument(
        "--amp", action="store_true", help="mixed precision, where the device has it"
    )
    utils.add_processes(looks, "tiles", "results")
    images = parser.add_argument_group("images")
    images.add_argument(
        "--data", type=Path, default=utils.DATA, metavar="DIR", help="data folder (nycu-hw3-data)"
    )
    images.add_argument(
        "--dataset", choices=("test", "train", "val"), default="test",
        help="the test list, all annotated images, or those that the run held out, with the "
        "annotations to score them by (test)",
    )  # fmt: skip
    images.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="for train and val (train__annot.json in the data folder)",
    )  # fmt: skip
    images.add_argument(
        "--images", type=Path, nargs="+", metavar="PATH",
        help="any images, or folders of them, instead; they need no list",
    )  # fmt: skip
    images.add_argument(
        "--level", type=utils.whole_number, default=0, metavar="N",
        help="with --images: which level of a pyramid (0, the finest)",
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
        "--max_detections", type=int, metavar="N",
        help="keep the best N cells of an image, or of a tile of it (the run's own, 800)",
    )  # fmt: skip
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="keys of the config, such as INPUT.MIN_SIZE_TEST 800",
    )  # fmt: skip
    args = parser.parse_with_keys(argv)
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        parser.error(f"--score_threshold {args.score_threshold}: a number from 0 to 1 is expected")
    if args.max_detections is not None and args.max_detections < 1:
        parser.error(f"--max_detections {args.max_detections}: 1 or more is expected")
    if args.images and args.dataset != "test":
        parser.error("--images and --dataset: give one of them")
    if args.annotations and args.dataset == "test":
        parser.error("--annotations: is for --dataset train or val")
    if args.level and not args.images:
        parser.error("--level: is for --images")
    for flag in ("tile", "overlap", "batch"):
        if getattr(args, flag) == 0:
            parser.error(f"--{flag} 0: 1 or more is expected")
    utils.check_processes(parser, args)
    return args


def configure(args: argparse.Namespace, run: Path) -> CfgNode:
    """Give a run's config as the flags want it."""
    from cellseg import runs
    from cellseg.config import load_config, merge_options

    cfg = load_config(run / runs.CONFIG, args.engine or "auto")
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
        flags["TEST.SYMMETRIES"] = 8 if "turns" in views else 4 if "flips" in views else 1
        flags["TEST.SCALES"] = (0.8, 1.0, 1.25) if "scales" in views else (1.0,)
    for key, value in flags.items():
        if value is not None:
            cfg.merge_from_list([key, value])
    merge_options(cfg, args.options)
    cfg.MODEL.DEVICE = args.device
    return cfg


def load_predictor(args: argparse.Namespace, weights: Sequence[Path]) -> Predictor:
    """Build the networks of the runs in which these weights are, as the flags want them."""
    from cellseg.predict.predictor import Predictor, load_network

    cfgs = [configure(args, path.parent) for path in weights]
    if args.overlap and not (cfgs[0].TEST.TILE or any(cfg.INPUT.ZOOM for cfg in cfgs)):
        raise InputError(
            f"--overlap {args.overlap}: is of tiles, but runs without INPUT.ZOOM look at whole "
            "images; give --tile too"
        )
    networks = [load_network(cfg, path) for cfg, path in zip(cfgs, weights, strict=True)]
    return Predictor(networks, cfgs)


def list_wanted(args: argparse.Namespace, folders: Sequence[Path]) -> tuple[str, list[ImageRecord]]:
    """List the images to predict, and name the results."""
    from cellseg import runs
    from cellseg.read import images
    from cellseg.read.results import FILE_NAME

    if args.images:
        return "images-results.json", images.list_any_images(args.images, args.level)
    if args.dataset == "test":
        return FILE_NAME, images.read_test_list(args.data)
    annotations = args.annotations or args.data / utils.ANNOTATIONS
    names = None
    if args.dataset == "val":
        names, *others = [sorted(runs.read_record(run)["held_out"]) for run in folders]
        if not names:
            raise InputError(f"--dataset val: {utils.shown(folders[0])} held no images out")
        if any(other != names for other in others):
            raise InputError(
                "--dataset val: the runs held other images out, so that each has learned from what "
                "another is scored by; predict with one at a time"
            )
    return f"{args.dataset}-results.json", images.list_annotated_images(
        args.data, annotations, names
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Predict, write, check; give the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from cellseg import runs
    from cellseg.device import choose_device
    from cellseg.distributed import check_launch
    from cellseg.predict.journal import Journal, signature
    from cellseg.predict.shares import missing_looks

    checkpoints = args.checkpoint or [runs.newest_run(utils.RUNS)]
    folders = [runs.open_run(path) for path in checkpoints]
    category_ids = [category["id"] for category in runs.shared_categories(folders)]
    name, images = list_wanted(args, folders)
    args.device = choose_device(args.device, args.options)
    if args.num_gpus * args.num_machines > 1:
        check_launch(args.num_gpus, args.device)
    weights = [runs.find_weights(path, args.weight_name) for path in checkpoints]
    print("weights: " + ", ".join(map(utils.shown, weights)))
    predictor = load_predictor(args, weights)

    results = place_of_results(args.output or folders[0], name)
    plans, bad = plan_images(predictor, images)
    journal = Journal(
        results.with_name(results.stem + ".parts"),
        signature(weights, predictor.cfgs, images),
        begin=args.machine_rank == 0,
    )
    try:
        predict(args, weights, predictor, journal, images, plans)
        if args.machine_rank:
            print("done; machine 0 writes the results")
            return 0
        faults = journal.faults()
        if undone := len({key for key, _ in missing_looks(images, plans, journal)} - set(faults)):
            raise InputError(f"{undone} tiles were not done; the same command goes on from here")
        for (number, _), fault in faults.items():
            bad.setdefault(number, fault)
        if len(bad) < len(images):
            write(args, predictor, journal, (results, images, plans, bad), category_ids)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    if not (bad and journal.done()):
        journal.remove()
    if len(bad) == len(images):
        raise InputError(
            f"none of the {len(images)} images can be used, the same command tries them again; "
            f"{min(bad.items())[1]}"
        )
    for number in sorted(bad):
        print(f"left out: {bad[number]}", file=sys.stderr)
    if bad:
        raise InputError(
            f"{len(bad)} of {len(images)} images left out, see above; the same command tries them "
            "again, and all of them if a file was changed"
        )
    return 0


def place_of_results(output: Path, name: str) -> Path:
    """Give the file of the results: `output`, or `name` in it if it is a folder."""
    if output.suffix != ".json":
        return output / name
    if output.is_dir():  # else found out at the end alone, when the work is done
        raise InputError(f"--output {output}: can't be written, it is a folder; name a file")
    return output


def plan_images(
    predictor: Predictor, images: Sequence[ImageRecord]
) -> tuple[Plans, dict[int, str]]:
    """Plan the tiles of the images, by their numbers in the list, and say which are bad."""
    from cellseg.read.images import read_size

    plans: dict[int, TilePlan] = {}
    bad: dict[int, str] = {}
    for number, image in enumerate(images):
        try:
            size = read_size(image)
        except InputError as error:
            bad[number] = str(error)
        else:
            plans[number] = predictor.plan(size)
    return plans, bad


def predict(
    args: argparse.Namespace,
    weights: Sequence[Path],
    predictor: Predictor,
    journal: Journal,
    images: Sequence[ImageRecord],
    plans: Plans,
) -> None:
    """Predict the tiles that are missing, in this process or in several."""
    from cellseg.distributed import launch
    from cellseg.predict.shares import missing_looks, predict_share

    looks = missing_looks(images, plans, journal)
    if n_done := sum(map(len, plans.values())) - len(looks):
        print(f"going on: {n_done} tiles were done before")
    if args.num_machines == 1 and (args.num_gpus == 1 or len(looks) < 2):
        predict_share(predictor, journal, looks, 0, 1)
    else:
        launch(
            args.num_gpus, _predict_in_process, args, weights, journal, images, plans,
            device=args.device,
            n_machines=args.num_machines, machine=args.machine_rank, address=args.dist_url,
        )  # fmt: skip


def _predict_in_process(
    args: argparse.Namespace,
    weights: Sequence[Path],
    journal: Journal,
    images: Sequence[ImageRecord],
    plans: Plans,
) -> None:
    utils.quiet_libraries()
    from cellseg.distributed import build_barrier, rank, world_size
    from cellseg.predict.shares import missing_looks, predict_share

    barrier = build_barrier()
    journal.check()
    looks = missing_looks(images, plans, journal)
    barrier()  # none begins before all know what is missing, none ends before all is done
    predict_share(load_predictor(args, weights), journal, looks, rank(), world_size())
    barrier()


def write(
    args: argparse.Namespace,
    predictor: Predictor,
    journal: Journal,
    what: tuple[Path, list[ImageRecord], Plans, dict[int, str]],
    category_ids: Sequence[int],
) -> None:
    """Merge the tiles into the results, zip them where they are to be submitted, and check."""
    from cellseg.files import write_json
    from cellseg.predict.shares import joined
    from cellseg.read.images import list_entry
    from cellseg.read.results import beside
    from cellseg.write.submission import check_submission, write_submission, write_zip

    results, images, plans, bad = what
    with write_submission(results, category_ids) as writer:
        for number, cells in joined(predictor, journal, plans, bad):
            writer.add(images[number].id, cells)
    annotated = args.dataset != "test"
    for other, mine in {"list": args.images, "truth": annotated}.items():
        if not mine:  # of results that were there before
            beside(results, other).unlink(missing_ok=True)
    used = [image for number, image in enumerate(images) if number not in bad]
    listed = [list_entry(image) for image in used]
    if args.images:
        write_json(beside(results, "list"), listed, indent=1)
    truth = write_truth(args, results, used) if annotated else None
    submitted = not args.images and not annotated
    archive = write_zip(results) if submitted else None
    count, empty = check_submission(archive or results, listed, category_ids)
    print(
        f"{count} cells in {len(listed)} images"
        + (f", {len(empty)} of them without any" if empty else "")
        + f": {utils.shown(results)}"
    )
    if archive and count:
        print(f"checked, and ready to submit: {utils.shown(archive)}")
    elif archive:
        print(
            f"not to be submitted: {utils.shown(archive)} is without a cell, and the server can't "
            "score that; lower --score_threshold, or train for longer",
            file=sys.stderr,
        )
    if truth:
        print(f"score them: python evaluate.py {utils.shown(results)} --truth {utils.shown(truth)}")


def write_truth(args: argparse.Namespace, results: Path, images: Sequence[ImageRecord]) -> Path:
    """Write the annotations of the images beside their results, which are scored by them.

    By the whole annotation file, all cells of images that were not held out would count as
    missed; by the test list, whose ids are the same numbers, other images would be meant.
    """
    from cellseg.files import write_json
    from cellseg.read.coco import load_coco, only_images
    from cellseg.read.results import beside

    path = beside(results, "truth")
    coco = load_coco(args.annotations or args.data / utils.ANNOTATIONS)
    write_json(path, only_images(coco, {image.id for image in images}))
    return path


if __name__ == "__main__":
    utils.run_command(main)
