"""Train a Mask R-CNN on the annotated images of a data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg import runs
from cellseg.device import choose_device

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from cellseg.learn.session import Session

DEFAULT_RECIPE = "mask_rcnn_R_50_DC5_3x"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; flags left out are None and mean what the recipe says."""
    parser = utils.CommandParser(
        "Train a Mask R-CNN on the images that annotation.py has annotated. Everything that the\n"
        "run leaves behind lands in tensorboard/<model>/<time>/. Flags left out mean what the\n"
        "recipe in configs/ says; the defaults below are those of " + DEFAULT_RECIPE + ".",
        f"python train.py --model {DEFAULT_RECIPE} --epochs 225 --batch_size 14 --lr 0.001 "
        "--optimizer Adagrad --scheduler WarmupCosineLR",
    )
    # fmt: off
    what = parser.add_argument_group("what to train").add_argument
    what("-m", "--model", metavar="NAME", help=f"a recipe in configs/ ({DEFAULT_RECIPE})")
    what("--config_file", type=Path, metavar="FILE",
         help="a config file of your own, or the config.yaml of a former run, in place of --model")
    what("--engine", default="auto", metavar="NAME",
         help="detectron2, torchvision or auto: Detectron2 where it can be used (auto)")
    what("--weights", metavar="WHICH",
         help="what to begin from: imagenet (the default), coco, none, a path or a URL")
    what("--resume", nargs="?", const="newest", metavar="RUN",
         help="go on with a run that was stopped: the newest unfinished one, or the folder named")
    data = parser.add_argument_group("data").add_argument
    data("--data", type=Path, metavar="DIR", help="data folder (nycu-hw3-data)")
    data("--annotations", type=Path, metavar="FILE",
         help="what annotation.py wrote (train__annot.json in the data folder)")
    data("--val_fraction", type=float, metavar="PART",
         help="part of the images to hold out and score by AP50 during training, 0 to below 1 (0)")
    data("--groups", type=Path, metavar="FILE",
         help="JSON {image: group} or CSV image,group: a group (patient, slide) is never split")
    data("--folds", type=utils.non_negative_int, metavar="K",
         help="cross-validate: train K runs, each with another Kth of the images held out")
    data("--show_batch", type=Path, nargs="?", const="batch.png", metavar="FILE",
         help="draw a batch as the network would see it (batch.png), and do not train")
    how = parser.add_argument_group("how to train").add_argument
    how("-e", "--epochs", type=float, metavar="N", help="passes over the images (225)")
    how("-b", "--batch_size", type=int, metavar="N", help="images a step (14)")
    how("-l", "--lr", "--base_lr", type=float, metavar="RATE", help="learning rate (0.001)")
    how("-o", "--optimizer", metavar="NAME", help="SGD, Adam, AdamW or Adagrad (Adagrad)")
    how("-s", "--scheduler", metavar="NAME",
        help="WarmupCosineLR or WarmupMultiStepLR (WarmupCosineLR)")
    how("--seed", type=int, metavar="N", help="of every random choice; -1 draws one (42)")
    on = parser.add_argument_group("where")
    on.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu (CUDA if there is a GPU)")
    on.add_argument("--num_workers", type=int, metavar="N", help="processes that load images (4)")
    utils.add_process_flags(on, "batch", "run")
    on.add_argument("--output_dir", type=Path, default=utils.RUNS, metavar="DIR",
        help="folder of the runs (tensorboard)")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="keys of Detectron2's config or the project's, such as SOLVER.WARMUP_ITERS 200")
    # fmt: on
    args = parser.parse_with_keys(argv)
    utils.check_process_flags(parser, args)
    fixed_flags = {  # which is what a run goes on with
        "--config_file": args.config_file,
        "--weights": args.weights,
        "--folds": args.folds is not None,
        "MODEL.WEIGHTS": "MODEL.WEIGHTS" in args.options,
        "--model": args.model and args.resume != "newest",
    }
    for flag, given in fixed_flags.items():
        if args.resume and given:
            parser.error(f"--resume and {flag}: the run has its own; give one of them")
    if args.model and args.config_file:
        parser.error("--model and --config_file: give one of them")
    if args.epochs is not None and not args.epochs > 0:
        parser.error(f"--epochs {args.epochs}: a positive number is expected")
    if args.folds in (0, 1):
        parser.error(f"--folds {args.folds}: 2 or more is expected")
    if args.folds and args.val_fraction:
        parser.error("--folds and --val_fraction: each fold is held out once; give one of them")
    if args.folds and args.num_machines > 1:
        parser.error(
            "--folds and --num_machines: give each machine folds of its own with DATA.FOLDS K "
            "DATA.FOLD N, and no --folds"
        )
    if args.show_batch and args.show_batch.suffix.lower() != ".png":
        parser.error(f"--show_batch {args.show_batch}: a file that ends in .png is expected")
    return args


def setup(args: argparse.Namespace, run: Path | None = None) -> CfgNode:
    """Build the config from the recipe (or the run that is resumed), the flags and the options."""
    from cellseg import config
    from cellseg.learn import session
    from cellseg.learn.weights import choose_initial_weights
    from cellseg.network import check_network

    if run or args.config_file:
        cfg = config.load_config(run / runs.CONFIG if run else args.config_file, args.engine)
    else:
        cfg = config.load_recipe(args.model or DEFAULT_RECIPE, args.engine)
    began = cfg.clone()
    flags = {
        "SOLVER.EPOCHS": args.epochs,
        "SOLVER.IMS_PER_BATCH": args.batch_size,
        "SOLVER.BASE_LR": args.lr,
        "SOLVER.OPTIMIZER": args.optimizer,
        "SOLVER.LR_SCHEDULER_NAME": args.scheduler,
        "SEED": args.seed,
        "DATALOADER.NUM_WORKERS": args.num_workers,
        "DATA.VAL_FRACTION": args.val_fraction,
        "DATA.FOLDS": args.folds,
        "DATA.FOLD": 0 if args.folds else None,
        "DATA.GROUPS": args.groups and str(args.groups.absolute()),
    }
    for key, value in flags.items():
        if value is not None:
            cfg.merge_from_list([key, value])
    # A resumed run, or one repeated from its config, keeps its data unless told otherwise.
    if args.data or not cfg.DATA.ROOT:
        cfg.DATA.ROOT = str((args.data or utils.DATA).absolute())
        cfg.DATA.ANNOTATIONS = str(Path(cfg.DATA.ROOT) / utils.ANNOTATIONS)
    if args.annotations:
        cfg.DATA.ANNOTATIONS = str(args.annotations.absolute())
    config.merge_options(cfg, args.options)
    config.check_values(cfg)
    check_network(cfg)
    if run:
        session.check_same_start(run, cfg, began)
    else:
        config.check_unused_keys(cfg)
    session.set_seed(cfg, args.num_machines)
    cfg.MODEL.DEVICE = choose_device(args.device, args.options, cfg.MODEL.DEVICE)
    chosen = args.num_workers is not None or "DATALOADER.NUM_WORKERS" in args.options
    session.set_workers(cfg, chosen)
    if not (run or args.show_batch):
        choose_initial_weights(cfg, args.weights)
    return cfg


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on training; return the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from cellseg.learn import cross_validation, session

    command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
    launch = session.Launch(
        command, train, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url
    )
    folder = session.find_run(args.resume, args.output_dir, args.model) if args.resume else None
    folds = runs.list_fold_runs(folder) if folder else []
    resumed: list[Path | None] = [*folds] or [folder]
    cfgs = [setup(args, run) for run in resumed]
    if args.show_batch:
        return draw_first_batch(cfgs[0], args.show_batch)
    if folder and folds:
        return cross_validation.resume(folder, dict(zip(folds, cfgs, strict=True)), launch)
    (cfg,) = cfgs
    session.check_processes(cfg, launch)
    if cfg.DATA.FOLDS and not cfg.DATA.FOLD:
        return cross_validation.begin(args.output_dir, cfg, launch)
    if folder:
        return session.train_in_processes(session.resume(folder, cfg), launch)
    return session.train_in_processes(session.begin(args.output_dir, cfg, launch), launch)


def train(run: Session) -> int:
    """Train a run in this process, which may be one of several; return the exit code."""
    utils.quiet_libraries()
    from cellseg.learn import session
    from trainer import Trainer

    return session.train(run, Trainer)


def draw_first_batch(cfg: CfgNode, path: Path) -> int:
    """Draw the first batch of a training, augmented; return the exit code."""
    from cellseg.learn import session
    from cellseg.learn.mapper import build_stream
    from cellseg.look.batch import draw_batch
    from cellseg.look.overlay import write_png

    run = session.prepare(cfg)
    for reason in run.reasons:
        print(reason)
    stream = build_stream(cfg, run.data)
    samples = [stream[position] for position in range(cfg.SOLVER.IMS_PER_BATCH)]
    names = [category["name"] for category in run.data.categories]
    write_png(path, draw_batch(samples, names, cfg.INPUT.FORMAT))
    print(f"{utils.display_path(path)}: " + ", ".join(sample["name"] for sample in samples))
    return 0


if __name__ == "__main__":
    utils.run_command(main)
