"""Train a Mask R-CNN on the annotated images of a data folder."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import utils
from cellseg.errors import InputError

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from cellseg.learn.samples import TrainingData

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
        "--num_gpus", type=utils.whole_number, default=1, metavar="N",
        help="processes on this machine, a GPU each, that share the batch (1)",
    )  # fmt: skip
    where.add_argument(
        "--num_machines", type=utils.whole_number, default=1, metavar="N",
        help="machines that share the batch; run the same command on each (1)",
    )  # fmt: skip
    where.add_argument(
        "--machine_rank", type=utils.whole_number, default=0, metavar="N",
        help="this machine's number; machine 0 writes the run (0)",
    )  # fmt: skip
    where.add_argument(
        "--dist_url", default="auto", metavar="URL",
        help="where machine 0 is to be found, such as tcp://10.0.0.1:29500 (auto: on this machine)",
    )  # fmt: skip
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
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error(
            f"--machine_rank {args.machine_rank}: 0 to {args.num_machines - 1} is expected with "
            f"--num_machines {args.num_machines}"
        )
    if not args.num_gpus:
        parser.error("--num_gpus 0: 1 or more is expected; --device cpu trains without a GPU")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--num_machines: say with --dist_url tcp://HOST:PORT where machine 0 is")
    return args


def configure(args: argparse.Namespace, run: Path | None) -> CfgNode:
    """Build the config from the recipe (or the run that is resumed), the flags and the options."""
    from cellseg import runs
    from cellseg.learn import config
    from cellseg.learn.weights import choose_initial_weights

    engine = args.engine or "auto"
    if run:
        cfg = config.load_config(run / runs.CONFIG, engine)
    elif args.config_file:
        cfg = config.load_config(args.config_file, engine)
    else:
        cfg = config.load_recipe(args.model or MODEL, engine)

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
    if cfg.SEED < 0:  # kept, so that the run can be resumed and repeated
        cfg.SEED = random.SystemRandom().randrange(2**32)
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
    from cellseg.files import write_atomic

    run = None
    if args.resume:
        run = (
            runs.newest_run(args.output_dir, args.model or "*", finished=False)
            if args.resume == "newest"
            else runs.open_run(Path(args.resume))
        )
    cfg = configure(args, run)
    command = [Path(sys.argv[0]).name, *(sys.argv[1:] if argv is None else argv)]
    data = prepare(cfg, run)
    n_processes = args.num_gpus * args.num_machines
    if cfg.SOLVER.IMS_PER_BATCH % n_processes:
        raise InputError(
            f"--batch_size {cfg.SOLVER.IMS_PER_BATCH}: {n_processes} processes share a batch, so a "
            f"multiple of {n_processes} is expected"
        )
    new = run is None
    if run is None and args.machine_rank == 0:
        run = runs.new_run(args.output_dir.absolute(), cfg.RECIPE)
        runs.write_record(
            run,
            command,
            Path(cfg.DATA.ANNOTATIONS),
            data.categories,
            [sample["name"] for sample in data.train],
            [sample["name"] for sample in data.held_out],
        )
    if run is not None:
        cfg.OUTPUT_DIR = str(run.absolute())
    if run is not None and args.machine_rank == 0:
        with write_atomic(run / runs.CONFIG) as file:
            file.write(cfg.dump())
    cfg.freeze()
    announce(cfg, data, n_processes)
    if n_processes == 1:
        return train(cfg, new)
    return train_together(args, cfg, new)


def prepare(cfg: CfgNode, run: Path | None) -> TrainingData:
    """Load the data, and set what the config takes from them."""
    from cellseg.learn.config import follow_data, set_schedule
    from trainer import Trainer

    data = Trainer.data(cfg)
    if run:
        check_same_data(run, Path(cfg.DATA.ANNOTATIONS), [s["name"] for s in data.held_out])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.categories)
    for reason in follow_data(cfg, data.train):
        print(reason)
    set_schedule(cfg, len(data.train))
    return data


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


def train_together(args: argparse.Namespace, cfg: CfgNode, new: bool) -> int:
    """Train in several processes; give the exit code."""
    from cellseg import runs
    from cellseg.network import together

    together(
        args.num_gpus, train, cfg, new,
        n_machines=args.num_machines, machine=args.machine_rank, address=args.dist_url,
    )  # fmt: skip
    finished = (Path(cfg.OUTPUT_DIR) / runs.FINAL).is_file()
    return 0 if finished or args.machine_rank else 130


def train(cfg: CfgNode, new: bool) -> int:
    """Train in this process, perhaps one of several; give the exit code."""
    utils.quiet_libraries()
    import torch

    from cellseg import runs
    from cellseg.learn.config import building
    from cellseg.learn.hooks import TrainingStopped, log_to_file
    from cellseg.learn.step import rank
    from trainer import Trainer

    run = Path(cfg.OUTPUT_DIR)
    first = rank() == 0
    stop_logging = log_to_file(run / "log.txt") if first else None
    try:
        torch.manual_seed(cfg.SEED)
        try:
            with building(run / runs.CONFIG):
                trainer = Trainer(cfg)
            trainer.resume_or_load(resume=not new)
        except InputError:
            if new and first:  # there is nothing in it to go on with
                shutil.rmtree(run, ignore_errors=True)
            raise
        if trainer.start_iter >= trainer.max_iter:
            print(f"nothing left to do: {trainer.start_iter} iterations are done")
            return 0
        trainer.train()
    except TrainingStopped as stop:
        if first:
            print(
                f"stopped after iteration {stop} of {cfg.SOLVER.MAX_ITER}; go on with: "
                f"python train.py --resume {utils.shown(run)}"
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
