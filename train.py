"""Train a Mask R-CNN on the annotated images of a data folder."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg.errors import InputError

if TYPE_CHECKING:
    from detectron2.config import CfgNode

MODEL = "mask_rcnn_R_50_DC5_3x"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags left out are None and mean what the recipe says."""
    parser = utils.CommandParser(
        "Train a Mask R-CNN on the images that annotation.py has annotated. Everything that the\n"
        "run leaves behind lands in tensorboard/<model>/<time>/. Flags left out mean what the\n"
        "recipe in configs/ says; the defaults below are those of " + MODEL + ".",
        "python train.py --model mask_rcnn_R_50_DC5_3x --epochs 225 --batch_size 14 --lr 0.001 "
        "--optimizer Adagrad --scheduler WarmupCosineLR",
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("-m", "--model", metavar="NAME", help=f"a recipe in configs/ ({MODEL})")
    what.add_argument(
        "--config-file", "--config_file", type=Path, metavar="FILE",
        help="a config file of your own, or the config.yaml of a former run, in place of --model",
    )  # fmt: skip
    what.add_argument(
        "--weights", metavar="WHICH",
        help="what to begin from: imagenet (the default), coco, none, a path or a URL",
    )  # fmt: skip
    what.add_argument(
        "--resume", nargs="?", const="newest", metavar="RUN",
        help="go on with a run that was stopped: the newest unfinished one, or the folder named",
    )  # fmt: skip

    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="data folder (nycu-hw3-data)")
    data.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="what annotation.py wrote (train__annot.json in the data folder)",
    )  # fmt: skip
    data.add_argument(
        "--val_fraction", type=float, metavar="PART",
        help="part of the images to hold out and score by AP50 during training, 0 to below 1 (0)",
    )  # fmt: skip
    data.add_argument(
        "--groups", type=Path, metavar="FILE",
        help="JSON {image: group} or CSV image,group: a group (patient, slide) is never split",
    )  # fmt: skip

    how = parser.add_argument_group("how to train")
    how.add_argument("-e", "--epochs", type=float, metavar="N", help="passes over the images (225)")
    how.add_argument("-b", "--batch_size", type=int, metavar="N", help="images a step (14)")
    how.add_argument(
        "-l", "--lr", "--base_lr", type=float, metavar="RATE", help="learning rate (0.001)"
    )
    how.add_argument(
        "-o", "--optimizer", metavar="NAME", help="SGD, Adam, AdamW or Adagrad (Adagrad)"
    )
    how.add_argument(
        "-s", "--scheduler", metavar="NAME",
        help="WarmupCosineLR or WarmupMultiStepLR (WarmupCosineLR)",
    )  # fmt: skip
    how.add_argument(
        "--seed", type=int, metavar="N", help="of every random choice; -1 draws one (42)"
    )

    where = parser.add_argument_group("where")
    where.add_argument(
        "--device", metavar="NAME", help="cuda, cuda:1, cpu (CUDA if there is a GPU)"
    )
    where.add_argument(
        "--num_workers", type=int, metavar="N", help="processes that load images (4)"
    )
    where.add_argument(
        "--output_dir", type=Path, default=utils.RUNS, metavar="DIR",
        help="folder of the runs (tensorboard)",
    )  # fmt: skip
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="keys of Detectron2's config or the project's, such as SOLVER.WARMUP_ITERS 200",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.model and args.config_file:
        parser.error("--model and --config-file: give one of them")
    # What a run began with is what it goes on with.
    began_with = {"--config-file": args.config_file, "--weights": args.weights}
    if args.resume not in (None, "newest"):
        began_with["--model"] = args.model
    for flag, value in began_with.items():
        if args.resume and value:
            parser.error(f"--resume and {flag}: the run has its own; give one of them")
    return args


def configure(args: argparse.Namespace, run: Path | None) -> CfgNode:
    """Build the config from the recipe (or the run that is resumed), the flags and the options."""
    from cellseg import runs
    from cellseg.learn import config
    from cellseg.learn.weights import choose_initial_weights

    if run:
        cfg = config.load_config(run / runs.CONFIG)
    elif args.config_file:
        cfg = config.load_config(args.config_file)
    else:
        cfg = config.load_recipe(args.model or MODEL)

    flags = {
        "SOLVER.EPOCHS": args.epochs,
        "SOLVER.IMS_PER_BATCH": args.batch_size,
        "SOLVER.BASE_LR": args.lr,
        "SOLVER.OPTIMIZER": args.optimizer,
        "SOLVER.LR_SCHEDULER_NAME": args.scheduler,
        "SEED": args.seed,
        "DATALOADER.NUM_WORKERS": args.num_workers,
        "DATA.VAL_FRACTION": args.val_fraction,
        "DATA.GROUPS": args.groups and str(args.groups.absolute()),
    }
    for key, value in flags.items():
        if value is not None:
            cfg.merge_from_list([key, value])
    if args.num_workers is None:
        cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    if args.epochs is not None and not args.epochs > 0:
        raise InputError(f"--epochs {args.epochs}: a positive number is expected")
    # A resumed run, or one repeated from its config, keeps its data unless told otherwise.
    if args.data or not cfg.DATA.ROOT:
        cfg.DATA.ROOT = str((args.data or utils.DATA).absolute())
        cfg.DATA.ANNOTATIONS = str(Path(cfg.DATA.ROOT) / utils.ANNOTATIONS)
    if args.annotations:
        cfg.DATA.ANNOTATIONS = str(args.annotations.absolute())
    config.merge_options(cfg, args.options)
    config.check_values(cfg)
    cfg.MODEL.DEVICE = utils.choose_device(args.device, args.options, cfg.MODEL.DEVICE)
    if not run:
        choose_initial_weights(cfg, args.weights)
    return cfg


def check_same_data(run: Path, annotations: Path, held_out: Sequence[str]) -> None:
    """Refuse to go on with a run on other images than it began with."""
    from cellseg import runs

    record = runs.read_record(run)
    if record["annotations"].get("sha256") != runs.file_hash(annotations):
        raise InputError(
            f"{annotations}: not the annotations that {utils.shown(run)} began with; restore "
            "them, or begin a new run without --resume"
        )
    if set(record["held_out"]) != set(held_out):
        raise InputError(
            f"{utils.shown(run)}: held out other images when it began, which it must not see now; "
            "leave --val_fraction, --groups and --seed as they were, or begin a new run without "
            "--resume"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training; give the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from cellseg import runs

    run = None
    if args.resume:
        run = (
            runs.newest_run(args.output_dir, args.model or "*", finished=False)
            if args.resume == "newest"
            else runs.open_run(Path(args.resume))
        )
    cfg = configure(args, run)

    from detectron2.utils.env import seed_all_rng

    from cellseg.files import write_atomic
    from cellseg.learn.config import building, set_schedule
    from cellseg.learn.hooks import TrainingStopped, log_to_file
    from trainer import Trainer

    data = Trainer.data(cfg)
    if run:
        check_same_data(run, Path(cfg.DATA.ANNOTATIONS), [s["name"] for s in data.held_out])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.categories)
    set_schedule(cfg, len(data.train))
    new = run is None
    if run is None:
        run = runs.new_run(args.output_dir.absolute(), cfg.RECIPE)
        runs.write_record(
            run,
            [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)],
            Path(cfg.DATA.ANNOTATIONS),
            data.categories,
            [sample["name"] for sample in data.train],
            [sample["name"] for sample in data.held_out],
        )
    cfg.OUTPUT_DIR = str(run.absolute())
    with write_atomic(run / runs.CONFIG) as file:
        file.write(cfg.dump())
    cfg.freeze()

    held = f", {len(data.held_out)} held out" if data.held_out else ""
    solver = cfg.SOLVER
    print(
        f"training {cfg.RECIPE} on {cfg.MODEL.DEVICE}: {len(data.train)} images{held}, "
        f"{len(data.categories)} classes; {solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} "
        f"images, {solver.OPTIMIZER} at {solver.BASE_LR:g}\nrun folder: {utils.shown(run)}",
        flush=True,
    )
    if solver.MAX_ITER <= solver.WARMUP_ITERS:
        print(
            f"note: the warm-up of {solver.WARMUP_ITERS} iterations is longer than the run; "
            "shorten it with SOLVER.WARMUP_ITERS"
        )
    stop_logging = log_to_file(run / "log.txt")
    try:
        seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
        try:
            with building(run / runs.CONFIG):
                trainer = Trainer(cfg)
            trainer.resume_or_load(resume=not new)
        except InputError:
            if new:  # there is nothing in it to go on with
                shutil.rmtree(run, ignore_errors=True)
            raise
        if trainer.start_iter >= trainer.max_iter:
            print(f"nothing left to do: {trainer.start_iter} iterations are done")
            return 0
        trainer.train()
    except TrainingStopped as stop:
        print(
            f"stopped after iteration {stop} of {solver.MAX_ITER}; go on with: "
            f"python train.py --resume {utils.shown(run)}"
        )
        return 130
    finally:
        stop_logging()
    print(f"finished; predict with: python inference.py --checkpoint {utils.shown(run)}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
