"""Train a Mask R-CNN on the annotated images of a data folder."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg import runs
from cellseg.device import choose_device, count_cores
from cellseg.errors import InputError
from cellseg.files import clear_leftovers, write_atomic, write_json

if TYPE_CHECKING:
    import torch
    from fvcore.common.config import CfgNode

    from cellseg.learn.samples import TrainingData

MODEL = "mask_rcnn_R_50_DC5_3x"
WORKERS = 4  # processes that load images for a GPU, where the recipe is for the CPU
MOST_PARAMETERS = 200_000_000  # trainable ones that the homework allows


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
        "--engine", metavar="NAME",
        help="detectron2, torchvision or auto: Detectron2 where it can be used (auto)",
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
    data.add_argument(
        "--folds", type=utils.whole_number, metavar="K",
        help="cross-validate: train K runs, each with another Kth of the images held out",
    )  # fmt: skip
    data.add_argument(
        "--show-batch", "--show_batch", type=Path, nargs="?", const=Path("batch.png"),
        metavar="FILE",
        help="draw a batch as the network would see it (batch.png), and do not train",
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
    utils.add_processes(where, "batch", "run")
    where.add_argument(
        "--output_dir", type=Path, default=utils.RUNS, metavar="DIR",
        help="folder of the runs (tensorboard)",
    )  # fmt: skip
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="KEY VALUE",
        help="keys of Detectron2's config or the project's, such as SOLVER.WARMUP_ITERS 200",
    )  # fmt: skip
    args = parser.parse_with_keys(argv)
    if args.model and args.config_file:
        parser.error("--model and --config-file: give one of them")
    # What a run began with is what it goes on with.
    began_with = {
        "--config-file": args.config_file,
        "--weights": args.weights,
        "--folds": args.folds is not None,
        "MODEL.WEIGHTS": "MODEL.WEIGHTS" in args.options,
    }
    if args.resume not in (None, "newest"):
        began_with["--model"] = args.model
    for flag, value in began_with.items():
        if args.resume and value:
            parser.error(f"--resume and {flag}: the run has its own; give one of them")
    utils.check_processes(parser, args)
    if args.folds is not None and args.folds < 2:
        parser.error(f"--folds {args.folds}: 2 or more is expected")
    if args.folds and args.val_fraction:
        parser.error("--folds and --val_fraction: each fold is held out once; give one of them")
    if args.folds and args.num_machines > 1:
        parser.error(
            "--folds and --num_machines: give each machine folds of its own with DATA.FOLDS K "
            "DATA.FOLD N, and no --folds"
        )
    if args.show_batch and args.show_batch.suffix.lower() != ".png":
        parser.error(f"--show-batch {args.show_batch}: a file that ends in .png is expected")
    return args


def configure(args: argparse.Namespace, run: Path | None) -> CfgNode:
    """Build the config from the recipe (or the run that is resumed), the flags and the options."""
    from cellseg import config
    from cellseg.learn.weights import choose_initial_weights
    from cellseg.network import check_network

    engine = args.engine or "auto"
    if run:
        cfg = config.load_config(run / runs.CONFIG, engine)
    elif args.config_file:
        cfg = config.load_config(args.config_file, engine)
    else:
        cfg = config.load_recipe(args.model or MODEL, engine)
    began = cfg.SOLVER.clone()

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
    check_network(cfg)
    if run:
        check_same_solver(run, cfg.SOLVER, began)
    else:
        config.check_idle(cfg)
    if cfg.SEED < 0 and args.num_machines > 1:
        raise InputError(f"--seed {cfg.SEED}: each machine would draw another; give a number")
    if cfg.SEED < 0:  # kept, so that the run can be resumed and repeated
        cfg.SEED = random.SystemRandom().randrange(2**32)
    cfg.MODEL.DEVICE = choose_device(args.device, args.options, cfg.MODEL.DEVICE)
    wanted = args.num_workers is not None or "DATALOADER.NUM_WORKERS" in args.options
    if cfg.MODEL.DEVICE.startswith("cuda") and not wanted:
        # Recipes for the CPU leave it every core; a GPU would wait for its images.
        cfg.DATALOADER.NUM_WORKERS = cfg.DATALOADER.NUM_WORKERS or WORKERS
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, count_cores())
    if not (run or args.show_batch):
        choose_initial_weights(cfg, args.weights)
    return cfg


def check_same_solver(run: Path, solver: CfgNode, began: CfgNode) -> None:
    """Refuse to go on with a run in other steps than those that it counts."""
    for flag, key in (("--optimizer", "OPTIMIZER"), ("--batch_size", "IMS_PER_BATCH")):
        if solver[key] != began[key]:
            raise InputError(
                f"{flag} {solver[key]}: {utils.shown(run)} began with {began[key]}, and goes on "
                "from its steps; leave it out (SOLVER.ACCUMULATE splits a batch), or begin a new "
                "run without --resume"
            )


def check_same_data(run: Path, annotations: Path, held_out: Sequence[str]) -> None:
    """Refuse to go on with a run on other images than it began with."""
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
    from cellseg.learn.folds import fold_runs

    command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
    folder = to_resume(args)
    folds = fold_runs(folder) if folder else []
    resumed: list[Path | None] = [*folds] if folds else [folder]
    cfg, *others = [configure(args, run) for run in resumed]
    if args.show_batch:
        return show_batch(cfg, args.show_batch)
    if folder and folds:
        if {"DATA.FOLD", "DATA.FOLDS"} & set(args.options):
            raise InputError(
                f"{utils.shown(folder)}: a cross-validation that goes on has its folds; leave "
                "DATA.FOLD and DATA.FOLDS out"
            )
        if args.num_machines > 1:
            raise InputError(
                f"{utils.shown(folder)}: a cross-validation, which one machine goes on with; leave "
                "--num_machines out"
            )
        check_shares(args, cfg)
        known = dict(zip(folds, (cfg, *others), strict=True))
        wanted = [folder / f"fold{number}" for number in range(1, cfg.DATA.FOLDS + 1)]
        if folds != wanted:  # some were deleted, or never begun
            for of_fold in known:
                prepare(known[of_fold].clone(), of_fold)  # they are to be of the same data
            for number, of_fold in enumerate(wanted, 1):
                if of_fold not in known:
                    known[of_fold] = begin_fold(of_fold, cfg, number, command)
        return train_folds(args, folder, [known[of_fold] for of_fold in wanted])
    if cfg.DATA.FOLDS and not cfg.DATA.FOLD:
        return cross_validate(args, cfg, command)
    data, reasons = prepare(cfg, folder)
    check_shares(args, cfg)
    run = folder
    if run is None and args.machine_rank == 0:
        run = runs.new_run(args.output_dir.absolute(), cfg.RECIPE)
        record(run, cfg, data, reasons, command)
    if run is not None:
        cfg.OUTPUT_DIR = str(run.absolute())
    return train_run(args, cfg, data, new=folder is None)


def to_resume(args: argparse.Namespace) -> Path | None:
    """Find the folder of the run, or of the cross-validation, to go on with, if any."""
    from cellseg.learn.folds import fold_runs

    if not args.resume:
        return None
    if args.resume == "newest":
        return runs.newest_run(args.output_dir, args.model or "*", finished=False)
    folder = Path(args.resume)
    return folder if fold_runs(folder) else runs.open_run(folder)


def check_shares(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Refuse processes that can't be had, and a batch that they can't share."""
    from cellseg.distributed import check_launch

    n_processes = args.num_gpus * args.num_machines
    if n_processes > 1:
        check_launch(args.num_gpus, cfg.MODEL.DEVICE)
    if cfg.SOLVER.IMS_PER_BATCH % n_processes:
        raise InputError(
            f"--batch_size {cfg.SOLVER.IMS_PER_BATCH}: {n_processes} processes share a batch, so a "
            f"multiple of {n_processes} is expected"
        )


def record(
    run: Path, cfg: CfgNode, data: TrainingData, reasons: Sequence[str], command: Sequence[str]
) -> None:
    """Write down what makes a run; `reasons` are those of the keys that follow from the data."""
    runs.write_record(
        run,
        command,
        Path(cfg.DATA.ANNOTATIONS),
        data.categories,
        [sample.name for sample in data.train],
        [sample.name for sample in data.held_out],
        reasons,
    )


def train_run(args: argparse.Namespace, cfg: CfgNode, data: TrainingData, new: bool) -> int:
    """Train the run whose folder is `OUTPUT_DIR`, in all processes; give the exit code."""
    if args.machine_rank == 0:
        for name in (runs.LAST, runs.BEST, runs.FINAL):  # not all of them are soon written again
            clear_leftovers(Path(cfg.OUTPUT_DIR) / name)
        if new:  # the config of a resumed run may not fit what it left
            write_config(cfg)
    cfg.freeze()
    n_processes = args.num_gpus * args.num_machines
    announce(cfg, data, n_processes)
    if n_processes == 1:
        return train(cfg, new)
    return train_together(args, cfg, new)


def write_config(cfg: CfgNode) -> None:
    """Write a run's config into its folder."""
    with write_atomic(Path(cfg.OUTPUT_DIR) / runs.CONFIG) as file:
        file.write(cfg.dump())


def cross_validate(args: argparse.Namespace, cfg: CfgNode, command: Sequence[str]) -> int:
    """Begin a run for each fold of the images, and train them; give the exit code."""
    check_shares(args, cfg)
    folder = runs.new_run(args.output_dir.absolute(), cfg.RECIPE)
    try:
        # All runs at once, so that --resume knows what is to be done.
        numbers = range(1, cfg.DATA.FOLDS + 1)
        cfgs = [begin_fold(folder / f"fold{n}", cfg, n, command) for n in numbers]
        return train_folds(args, folder, cfgs)
    except InputError:
        if not list(folder.glob("*/*.pth")):  # there is nothing in it to go on with
            shutil.rmtree(folder, ignore_errors=True)
        raise


def begin_fold(run: Path, cfg: CfgNode, number: int, command: Sequence[str]) -> CfgNode:
    """Make the run of one fold of a cross-validation; give its config."""
    cfg = cfg.clone()
    cfg.DATA.FOLD = number
    data, reasons = prepare(cfg, None)  # before the folder, as there may be too many folds
    run.mkdir(exist_ok=True)
    cfg.OUTPUT_DIR = str(run)
    record(run, cfg, data, reasons, command)
    write_config(cfg)
    return cfg


def train_folds(args: argparse.Namespace, folder: Path, cfgs: Sequence[CfgNode]) -> int:
    """Train the runs of a cross-validation as far as they are not, and sum up their scores."""
    from cellseg.learn.folds import as_text, fold_runs, last_scores, summarise

    folds = fold_runs(folder)
    for run, cfg in zip(folds, cfgs, strict=True):
        print(f"fold {cfg.DATA.FOLD} of {cfg.DATA.FOLDS}")
        cfg.OUTPUT_DIR = str(run.absolute())
        data, _ = prepare(cfg, run)
        code = train_run(args, cfg, data, new=False)
        if code:
            return code
    names = [category["name"] for category in runs.read_record(folds[0])["categories"]]
    summary = summarise([last_scores(run) for run in folds], names)
    write_json(folder / runs.SUMMARY, summary, indent=1)
    print(f"{as_text(summary)}\nwritten to {utils.shown(folder / runs.SUMMARY)}")
    return 0


def show_batch(cfg: CfgNode, path: Path) -> int:
    """Draw the first batch of a training, augmented; give the exit code."""
    from cellseg.learn.mapper import build_stream
    from cellseg.look.batch import draw_batch
    from cellseg.look.overlay import write_png

    data, _ = prepare(cfg, None)
    stream = build_stream(cfg, data)
    samples = [stream[position] for position in range(cfg.SOLVER.IMS_PER_BATCH)]
    names = [category["name"] for category in data.categories]
    write_png(path, draw_batch(samples, names, cfg.INPUT.FORMAT))
    print(f"{utils.shown(path)}: " + ", ".join(sample["name"] for sample in samples))
    return 0


def prepare(cfg: CfgNode, run: Path | None) -> tuple[TrainingData, list[str]]:
    """Load the data, and set what the config takes from them; give both, this as its reasons."""
    from cellseg.config import building
    from cellseg.learn.mapper import build_stream
    from cellseg.learn.optimizer import set_schedule
    from cellseg.learn.scale import follow_data
    from trainer import Trainer

    data = Trainer.data(cfg)
    if run:
        check_same_data(run, Path(cfg.DATA.ANNOTATIONS), [s.name for s in data.held_out])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.categories)
    with building("the config"):
        reasons = follow_data(cfg, data.train)
    print(*reasons, sep="\n", end="\n" if reasons else "")
    set_schedule(cfg, build_stream(cfg, data).epoch_length)
    return data, reasons


def announce(cfg: CfgNode, data: TrainingData, n_processes: int) -> None:
    """Say what is about to be trained."""
    held = f", {len(data.held_out)} held out" if data.held_out else ""
    solver = cfg.SOLVER
    many = f" in {n_processes} processes" if n_processes > 1 else ""
    print(
        f"training {cfg.RECIPE} on {cfg.MODEL.DEVICE}{many}: {len(data.train)} images{held}, "
        f"{len(data.categories)} classes; {solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} "
        f"images, {solver.OPTIMIZER} at {solver.BASE_LR:g}\n"
        f"run folder: {utils.shown(cfg.OUTPUT_DIR)}",
        flush=True,
    )
    if solver.MAX_ITER <= solver.WARMUP_ITERS:
        print(
            f"note: the warm-up of {solver.WARMUP_ITERS} iterations is longer than the run; "
            "shorten it with SOLVER.WARMUP_ITERS"
        )
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        print(
            "note: without weights to begin with, random layers stay as they are: end the command "
            "with MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN, or take --model small_fpn"
        )
    if cfg.TEST.PATIENCE and not data.held_out:
        print("note: nothing is held out to be scored (--val_fraction), so TEST.PATIENCE is idle")


def announce_network(network: torch.nn.Module) -> None:
    """Say how many parameters learn, and whether they are more than the homework allows."""
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    print(f"trainable parameters: {count:,}", flush=True)
    if count > MOST_PARAMETERS:
        print(
            f"warning: the homework allows {MOST_PARAMETERS:,} trainable parameters; choose a "
            "smaller recipe to submit"
        )


def train_together(args: argparse.Namespace, cfg: CfgNode, new: bool) -> int:
    """Train in several processes; give the exit code."""
    from cellseg.distributed import launch

    launch(
        args.num_gpus, train, cfg, new, device=cfg.MODEL.DEVICE,
        n_machines=args.num_machines, machine=args.machine_rank, address=args.dist_url,
    )  # fmt: skip
    finished = (Path(cfg.OUTPUT_DIR) / runs.FINAL).is_file()
    return 0 if finished or args.machine_rank else 130


def train(cfg: CfgNode, new: bool) -> int:
    """Train in this process, perhaps one of several; give the exit code."""
    utils.quiet_libraries()
    import torch

    from cellseg.config import building
    from cellseg.distributed import rank
    from cellseg.learn.folds import fold_runs
    from cellseg.learn.hooks import TrainingStopped, log_to_file
    from trainer import Trainer

    run = Path(cfg.OUTPUT_DIR)
    first = rank() == 0
    in_folds = run in fold_runs(run.parent)
    stop_logging = log_to_file(run / "log.txt") if first else None
    try:
        torch.manual_seed(cfg.SEED)
        try:
            with building(run / runs.CONFIG):
                trainer = Trainer(cfg)
            trainer.resume_or_load(resume=not new)
            if trainer.start_iter >= trainer.max_iter and not (run / runs.FINAL).is_file():
                raise InputError(
                    f"--resume {utils.shown(run)}: {trainer.start_iter} iterations are done on the "
                    f"way to more, and {trainer.max_iter} are wanted now; want more, or predict "
                    "with what there is"
                )
            if first and not new:
                write_config(cfg)
            if first:
                announce_network(trainer.step.network)
        except InputError:
            if new and first:  # there is nothing in it to go on with
                shutil.rmtree(run, ignore_errors=True)
            raise
        if trainer.start_iter >= trainer.max_iter:
            print(f"nothing left to do: {trainer.start_iter} iterations are done")
            return 0
        trainer.train()
        if in_folds and trainer.asked_to_stop:  # too late for this fold, but not for the next
            raise TrainingStopped(trainer.max_iter)
    except TrainingStopped as stop:
        if first:
            print(
                f"stopped after iteration {stop} of {cfg.SOLVER.MAX_ITER}; go on with: "
                f"python train.py --resume {utils.shown(run.parent if in_folds else run)}"
            )
        return 130
    finally:
        if stop_logging:
            stop_logging()
    if first:
        print(f"finished; predict with: python inference.py --checkpoint {utils.shown(run)}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
