"""Train a Mask R-CNN on the annotated images of a data folder."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg import runs
from cellseg.device import choose_device
from cellseg.errors import InputError
from cellseg.files import display_path, open_json

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from cellseg.learn.session import Session

DEFAULT_RECIPE = "mask_rcnn_R_50_DC5_3x"
FOR_THE_CPU = ("lite_fpn", "small_fpn", "demo")


def get_parser() -> utils.CommandParser:
    """Build the argument parser; flags left out are None, for the recipe's value."""
    parser = utils.CommandParser(
        "Train a Mask R-CNN on the images annotated with annotation.py. Write checkpoints, curves\n"
        "and config to tensorboard/<model>/<time>/. Flags that are left out have the recipe's\n"
        f"value; the defaults below are those of {DEFAULT_RECIPE}.",
        f"python train.py --model {DEFAULT_RECIPE} --epochs 225 --batch_size 14 --lr 0.001 "
        "--optimizer Adagrad --scheduler WarmupCosineLR\n"
        "python train.py -m lite_fpn --val_fraction 0.15\n"
        "python train.py --resume\n"
        "python train.py --weights tensorboard/lite_fpn/20250401-120000 --epochs 2",
    )
    # fmt: off
    add = parser.add_argument_group("what to train").add_argument
    add("-m", "--model", metavar="NAME", help=f"recipe in configs/ ({DEFAULT_RECIPE})")
    add("--config_file", type=Path, metavar="FILE",
        help="config file, or the config.yaml of an earlier run, in place of --model")
    add("--engine", default="auto", metavar="NAME",
        help="detectron2, torchvision or auto: Detectron2 where available (auto)")
    add("--weights", metavar="WHICH",
        help="initial weights: imagenet (the default), coco, none, timm://NAME, a path, a URL or "
        "a run; without --model and --config_file, the run goes on: its config, classes, scale, "
        "data and validation images are kept, and AP50 before and after is printed")
    add("--resume", nargs="?", const="newest", metavar="RUN",
        help="resume a stopped run: the newest one or the given folder")
    data = parser.add_argument_group("data")
    utils.add_limits(data)
    add = data.add_argument
    add("--data", type=Path, metavar="DIR", help="data folder (nycu-hw3-data)")
    add("--annotations", type=Path, metavar="FILE",
        help="annotation file from annotation.py (train__annot.json in the data folder)")
    add("--val_fraction", type=float, metavar="FRACTION",
        help="fraction of the images for validation (AP50 during training), 0 to below 1 (0)")
    add("--groups", type=Path, metavar="FILE",
        help="JSON {image: group} or CSV image,group; groups (patient, slide) are not split")
    add("--folds", type=utils.non_negative_int, metavar="K",
        help="K-fold cross-validation: train K runs")
    add("--show_batch", type=Path, nargs="?", const="batch.png", metavar="FILE",
        help="write one augmented batch as a picture (batch.png) and exit")
    add = parser.add_argument_group("how to train").add_argument
    add("-e", "--epochs", type=float, metavar="N",
        help="passes over the training images (225), in lite_fpn over their area (15)")
    add("-b", "--batch_size", type=int, metavar="N", help="images per iteration (14)")
    add("-l", "--lr", "--base_lr", type=float, metavar="RATE", help="learning rate (0.001)")
    add("-o", "--optimizer", metavar="NAME", help="SGD, Adam, AdamW or Adagrad (Adagrad)")
    add("-s", "--scheduler", metavar="NAME",
        help="WarmupCosineLR or WarmupMultiStepLR (WarmupCosineLR)")
    add("--seed", type=int, metavar="N", help="random seed; -1 for a random one (42)")
    where = parser.add_argument_group("where")
    add = where.add_argument
    add("--device", metavar="NAME", help="cuda, cuda:1, cpu (cuda if available)")
    add("--num_workers", type=int, metavar="N", help="data loading workers (4)")
    utils.add_process_flags(where)
    add("--output_dir", type=Path, default=utils.RUNS, metavar="DIR",
        help="folder of the runs (tensorboard)")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="config keys of Detectron2 or this project, such as SOLVER.WARMUP_ITERS 200")
    # fmt: on
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, and check which flags go together."""
    parser = get_parser()
    args = parser.parse_with_keys(argv)
    utils.check_process_flags(parser, args)
    fixed_flags = {  # that a resumed run can't change
        "--config_file": args.config_file,
        "--weights": args.weights,
        "--folds": args.folds is not None,
        "MODEL.WEIGHTS": "MODEL.WEIGHTS" in args.options,
        "--model": args.model and args.resume != "newest",
    }
    for flag, given in fixed_flags.items():
        if args.resume and given:
            parser.error(f"--resume and {flag}: the run's own value is used; leave {flag} out")
    if args.model and args.config_file:
        parser.error("--model and --config_file: give one of them")
    if args.epochs is not None and not args.epochs > 0:
        parser.error(f"--epochs {args.epochs}: a positive number is expected")
    if args.folds in (0, 1):
        parser.error(f"--folds {args.folds}: 2 or more is expected")
    if args.folds and args.val_fraction:
        parser.error("--folds and --val_fraction: each fold is the validation set once; give one")
    if args.folds and args.num_machines > 1:
        parser.error("--folds and --num_machines: give each machine DATA.FOLDS K DATA.FOLD N")
    if args.show_batch and args.show_batch.suffix.lower() != ".png":
        parser.error(f"--show_batch {args.show_batch}: a file that ends in .png is expected")
    return args


def setup(args: argparse.Namespace, run: Path | None = None) -> CfgNode:
    """Build the config from the recipe (or the run to resume), the flags and the options."""
    from cellseg import config
    from cellseg.learn import session
    from cellseg.learn.continued import find_former_run, keep_former_values
    from cellseg.learn.weights import choose_initial_weights
    from cellseg.network import check_network
    from cellseg.read.coco import COCO_REMEDY

    begins_anew = run or args.model or args.config_file
    former = None if begins_anew else find_former_run(args.weights)
    if former:
        check_split_is_kept(former, args)
    source = run or former
    path = source / runs.CONFIG if source else args.config_file
    recipe = args.model or DEFAULT_RECIPE
    cfg = config.load_config(path, args.engine) if path else config.load_recipe(recipe, args.engine)
    original = cfg.clone()
    if former:
        keep_former_values(cfg, former)
    elif args.weights:
        cfg.DATA.CONTINUES = ""
    set_flags(cfg, args)
    config.merge_options(cfg, args.options)
    config.check_values(cfg)
    check_network(cfg)
    if run:
        session.check_same_start(run, cfg, original)
    if not source:
        config.check_unused_keys(cfg)
    config.check_given_keys(cfg, args.options[::2])
    held_out = cfg.DATA.VAL_FRACTION or cfg.DATA.FOLDS or cfg.DATA.VAL_IMAGES
    if args.groups and not held_out:
        raise InputError(
            f"--groups {args.groups}: has no effect without validation images; "
            f"{'' if run else 'add --val_fraction or --folds, or '}leave it out"
        )
    session.set_seed(cfg, args.num_machines)
    advice = "" if cfg.RECIPE in FOR_THE_CPU else f"; --model {FOR_THE_CPU[0]} is made for it"
    cfg.MODEL.DEVICE = choose_device(args.device, args.options, cfg.MODEL.DEVICE, advice)
    chosen = args.num_workers is not None or "DATALOADER.NUM_WORKERS" in args.options
    session.set_workers(cfg, chosen)
    if not (run or args.show_batch):
        if args.weights != "none":  # before they are downloaded
            with open_json(cfg.DATA.ANNOTATIONS, "annotations", COCO_REMEDY):
                pass
        choose_initial_weights(cfg, args.weights)
    return cfg


def name_source(args: argparse.Namespace, folder: Path | None) -> str:
    """Return what the network is chosen with, for messages: flags and keys, or the run resumed."""
    model = None if folder else args.model  # --resume --model NAME only says which run
    given = [("--config_file", args.config_file), ("--model", model)]
    given += [
        pair
        for pair in zip(args.options[::2], args.options[1::2], strict=False)
        if pair[0].startswith("MODEL.")
    ]
    words = " ".join(f"{name} {value}" for name, value in given if value)
    return words or (f"the config of {display_path(folder)}" if folder else "the config")


def check_split_is_kept(former: Path, args: argparse.Namespace) -> None:
    """Raise InputError if flags split the images otherwise than the run that is continued."""
    keys = {*args.options[::2]} & {"DATA.VAL_FRACTION", "DATA.FOLDS", "DATA.FOLD"}
    splits = args.val_fraction or args.folds or keys
    if splits and runs.read_record(former)["held_out"]:
        raise InputError(
            f"--weights {args.weights}: the run's validation images are used; leave out "
            f"{', '.join(['--val_fraction', '--folds', *sorted(keys)])}, or begin a new run with "
            "--model"
        )


def set_flags(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set the values of the flags that were given, and the data."""
    from cellseg.config import set_given
    from cellseg.keys import FLAGS

    if args.val_fraction is not None or args.folds:
        cfg.DATA.VAL_IMAGES = []
    # Of the flags, --batch is of inference.py.
    flags = {key: getattr(args, flag.removeprefix("--"), None) for key, flag in FLAGS.items()}
    flags |= {
        "DATA.FOLDS": args.folds,
        "DATA.FOLD": 0 if args.folds else None,
        "DATA.GROUPS": args.groups and str(args.groups.absolute()),
    }
    set_given(cfg, flags)
    # A run that is resumed, or repeated from its config, keeps its data by default.
    if args.data or not cfg.DATA.ROOT:
        cfg.DATA.ROOT = str((args.data or utils.DATA).absolute())
        cfg.DATA.ANNOTATIONS = str(Path(cfg.DATA.ROOT) / utils.ANNOTATIONS)
    if args.annotations:
        cfg.DATA.ANNOTATIONS = str(args.annotations.absolute())


def main(argv: Sequence[str] | None = None) -> int:
    """Train a new run, a stopped one or all folds of a cross-validation. Return the exit code."""
    args = parse(argv)
    utils.quiet_libraries()
    from cellseg.learn import cross_validation, session

    command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
    folder = session.find_run(args.resume, args.output_dir, args.model) if args.resume else None
    launch = session.Launch(
        command, train, args.processes, args.num_machines, args.machine_rank, args.dist_url,
        name_source(args, folder),
    )  # fmt: skip
    folds = runs.list_fold_runs(folder) if folder else []
    resumed: list[Path | None] = [*folds] or [folder]
    cfgs = [setup(args, run) for run in resumed]
    if args.show_batch:
        return draw_first_batch(cfgs[0], args.show_batch)
    if folder and folds:
        return cross_validation.resume(folder, dict(zip(folds, cfgs, strict=True)), launch)
    (cfg,) = cfgs
    if cfg.DATA.FOLDS and not cfg.DATA.FOLD:
        return cross_validation.begin(args.output_dir, cfg, launch)
    run = (
        session.resume(folder, cfg, launch)
        if folder
        else session.begin(args.output_dir, cfg, launch)
    )
    return session.train_in_processes(run, launch)


def train(run: Session) -> int:
    """Train a run in this process, one of the launch. Return the exit code."""
    utils.quiet_libraries()
    from cellseg.learn import session
    from trainer import Trainer

    return session.train(run, Trainer)


def draw_first_batch(cfg: CfgNode, path: Path) -> int:
    """Draw the first augmented batch of a training to a PNG file. Return the exit code."""
    from cellseg.learn import session
    from cellseg.learn.mapper import build_stream
    from cellseg.look.batch import draw_batch
    from cellseg.png import write_png

    run = session.prepare(cfg)
    images = [sample.path for sample in (*run.data.train, *run.data.validation)]
    utils.check_outputs({"--show_batch": path}, images)
    stream, classes = build_stream(cfg, run.data), [c["name"] for c in run.data.categories]
    samples = [stream[position] for position in range(cfg.SOLVER.IMS_PER_BATCH)]
    write_png(path, draw_batch(samples, classes, cfg.INPUT.FORMAT), "--show_batch")
    names = ", ".join(sample["name"] for sample in samples)
    print(*run.reasons, f"{display_path(path)}: {names}", sep="\n")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
