"""One training run: begin or resume it, and train it in one process or several."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from cellseg import distributed, runs
from cellseg.config import config_errors
from cellseg.device import count_cores
from cellseg.errors import InputError
from cellseg.files import display_path, remove_unfinished, write_atomic
from cellseg.learn.hooks import TrainingStopped, log_to_file
from cellseg.learn.mapper import build_stream
from cellseg.learn.optimizer import set_schedule
from cellseg.learn.samples import TrainingData, load_training_data, split_data
from cellseg.learn.scale import set_keys_from_data

WORKERS = 4  # processes that load images for a GPU, where the recipe is for the CPU
MAX_PARAMETERS = 200_000_000  # trainable ones that NYCU HW3 allows


@dataclass(frozen=True)
class Session:
    """A run that is ready to be trained, as each process gets it."""

    cfg: CfgNode  # complete; OUTPUT_DIR is the run's folder
    data: TrainingData  # split
    reasons: list[str]  # what the config takes from the data and why, a line each
    new: bool  # whether the folder is to go if nothing can be built from the config


@dataclass(frozen=True)
class Launch:
    """How a training is started: by which command, and in which processes."""

    command: list[str]
    train: Callable[[Session], int]  # trains in one process; returns the exit code
    per_machine: int = 1
    machines: int = 1
    machine_rank: int = 0  # this one's number; machine 0 writes the run
    dist_url: str = "auto"  # where machine 0 is found

    @property
    def processes(self) -> int:
        """How many processes on all machines share a batch."""
        return self.per_machine * self.machines


BuildTrainer = Callable[[CfgNode, TrainingData], Any]  # returns a `DefaultTrainer`


def find_run(name: str, root: Path, recipe: str | None) -> Path:
    """Return the folder of the run, or of the cross-validation, that `--resume` names."""
    if name == "newest":
        return runs.find_newest_run(root, recipe or "*", finished=False)
    return Path(name) if runs.list_fold_runs(Path(name)) else runs.resolve_run_folder(Path(name))


def set_seed(cfg: CfgNode, machines: int) -> None:
    """Draw a seed where the config leaves it open (-1), which several machines can't."""
    if cfg.SEED < 0 and machines > 1:
        raise InputError(f"--seed {cfg.SEED}: each machine would draw another; give a number")
    if cfg.SEED < 0:  # kept, so that the run can be resumed and repeated
        cfg.SEED = random.SystemRandom().randrange(2**32)


def set_workers(cfg: CfgNode, chosen: bool) -> None:
    """Limit the processes that load images to the cores; `chosen` is whether the user did."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not chosen:
        # Recipes for the CPU leave it every core; a GPU would wait for its images.
        cfg.DATALOADER.NUM_WORKERS = cfg.DATALOADER.NUM_WORKERS or WORKERS
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, count_cores())


def check_same_start(run: Path, cfg: CfgNode, original: CfgNode) -> None:
    """Raise InputError for to go on with a run in other steps than those that it counts, or as another fold."""
    for name, section, key in (
        ("--optimizer", "SOLVER", "OPTIMIZER"),
        ("--batch_size", "SOLVER", "IMS_PER_BATCH"),
        ("DATA.FOLDS", "DATA", "FOLDS"),
        ("DATA.FOLD", "DATA", "FOLD"),
    ):
        if cfg[section][key] != original[section][key]:
            split = " (SOLVER.ACCUMULATE splits a batch)" if key == "IMS_PER_BATCH" else ""
            raise InputError(
                f"{name} {cfg[section][key]}: {display_path(run)} began with "
                f"{original[section][key]}, and goes on from its steps; leave it out{split}, or "
                "begin a new run without --resume"
            )


def check_same_data(run: Path, session: Session) -> None:
    """Raise InputError for to go on with a run on other images than it began with."""
    record, annotations = runs.read_record(run), session.cfg.DATA.ANNOTATIONS
    if record["annotations"].get("sha256") != runs.file_hash(Path(annotations)):
        raise InputError(
            f"{annotations}: not the annotations that {display_path(run)} began with; restore "
            "them, or begin a new run without --resume"
        )
    if set(record["held_out"]) != {sample.name for sample in session.data.validation}:
        raise InputError(
            f"{display_path(run)}: held out other images when it began, which it must not see now; "
            "leave --val_fraction, --groups and --seed as they were, or begin a new run without "
            "--resume"
        )


def check_processes(cfg: CfgNode, launch: Launch) -> None:
    """Raise InputError for processes that are not available, and a batch that they can't share evenly."""
    n = launch.processes
    if n > 1:
        distributed.check_launch(launch.per_machine, cfg.MODEL.DEVICE)
    if cfg.SOLVER.IMS_PER_BATCH % n:
        raise InputError(
            f"--batch_size {cfg.SOLVER.IMS_PER_BATCH}: {n} processes share a batch, so a multiple "
            f"of {n} is expected"
        )


def prepare(cfg: CfgNode, data: TrainingData | None = None, new: bool = True) -> Session:
    """Split the data as a config says, and set what the config takes from them.

    `data` are all images of the config's annotation file, which is loaded without.
    """
    data_cfg = cfg.DATA
    data = data or load_training_data(data_cfg.ROOT, data_cfg.ANNOTATIONS)
    data = split_data(
        data, data_cfg.VAL_FRACTION, data_cfg.FOLDS, data_cfg.FOLD, data_cfg.GROUPS, cfg.SEED
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.categories)
    with config_errors("the config"):
        reasons = set_keys_from_data(cfg, data.train)
    set_schedule(cfg, build_stream(cfg, data).epoch_length)
    return Session(cfg, data, reasons, new)


def begin(root: Path, cfg: CfgNode, launch: Launch) -> Session:
    """Load the data of a new run, and make its folder below `root`."""
    session = prepare(cfg)
    if launch.machine_rank == 0:
        create(session, runs.new_run(root.absolute(), cfg.RECIPE), launch.command)
    return session


def create(session: Session, run: Path, command: Sequence[str]) -> None:
    """Write what makes a new run, its record and its config, into its folder."""
    cfg, data = session.cfg, session.data
    cfg.OUTPUT_DIR = str(run.absolute())
    runs.write_record(
        run,
        command,
        Path(cfg.DATA.ANNOTATIONS),
        data.categories,
        [sample.name for sample in data.train],
        [sample.name for sample in data.validation],
        session.reasons,
    )
    _write_config(cfg)


def resume(run: Path, cfg: CfgNode, data: TrainingData | None = None) -> Session:
    """Go on with a run on the data that it began with; `data` as `prepare` takes them."""
    session = prepare(cfg, data, new=False)
    check_same_data(run, session)
    cfg.OUTPUT_DIR = str(run.absolute())
    return session


def train_in_processes(session: Session, launch: Launch) -> int:
    """Train a run in all processes of a launch; return the exit code."""
    cfg = session.cfg
    if launch.machine_rank == 0:
        for name in (runs.LAST, runs.BEST, runs.FINAL):  # not all of them are soon written again
            remove_unfinished(Path(cfg.OUTPUT_DIR) / name)
    cfg.freeze()
    print_training(session, launch.processes)
    if launch.processes == 1:
        return launch.train(session)
    distributed.launch(
        launch.per_machine, launch.train, session, device=cfg.MODEL.DEVICE,
        n_machines=launch.machines, machine_rank=launch.machine_rank, dist_url=launch.dist_url,
    )  # fmt: skip
    finished = (Path(cfg.OUTPUT_DIR) / runs.FINAL).is_file()
    return 0 if finished or launch.machine_rank else 130


def train(session: Session, build_trainer: BuildTrainer) -> int:
    """Train a run in this process, perhaps one of several; return the exit code."""
    run, first = Path(session.cfg.OUTPUT_DIR), distributed.rank() == 0
    in_folds = run in runs.list_fold_runs(run.parent)
    with contextlib.ExitStack() as stack:
        if first:
            stack.callback(log_to_file(run / "log.txt"))
        try:
            trainer = _start(session, build_trainer)
            if trainer.start_iter >= trainer.max_iter:
                print(f"nothing left to do: {trainer.start_iter} iterations are done")
                return 0
            trainer.train()
            if in_folds and trainer.stop_requested:  # too late for this fold, not for the next
                raise TrainingStopped(trainer.max_iter)
        except TrainingStopped as stop:
            if first:
                print(
                    f"stopped after iteration {stop} of {session.cfg.SOLVER.MAX_ITER}; go on with: "
                    f"python train.py --resume {display_path(run.parent if in_folds else run)}"
                )
            return 130
    if first:
        print(f"finished; predict with: python inference.py --checkpoint {display_path(run)}")
    return 0


def _start(session: Session, build_trainer: BuildTrainer) -> Any:
    """Build the trainer, and load the checkpoint or the weights that it begins with."""
    cfg, run, first = session.cfg, Path(session.cfg.OUTPUT_DIR), distributed.rank() == 0
    torch.manual_seed(cfg.SEED)
    try:
        with config_errors(run / runs.CONFIG):
            trainer = build_trainer(cfg, session.data)
        trainer.resume_or_load(resume=not session.new)
        if trainer.start_iter >= trainer.max_iter and not (run / runs.FINAL).is_file():
            raise InputError(
                f"--resume {display_path(run)}: {trainer.start_iter} iterations are done on the "
                f"way to more, and {trainer.max_iter} are wanted now; want more, or predict with "
                "what there is"
            )
        if first and not session.new:  # only now, as it might not have fitted what the run left
            _write_config(cfg)
        if first:
            print_parameter_count(trainer.step.network)
    except InputError:
        if session.new and first:  # there is nothing in it to go on with
            shutil.rmtree(run, ignore_errors=True)
        raise
    return trainer


def _write_config(cfg: CfgNode) -> None:
    with write_atomic(Path(cfg.OUTPUT_DIR) / runs.CONFIG) as file:
        file.write(cfg.dump())


def print_training(session: Session, n_processes: int) -> None:
    """Print what is about to be trained."""
    cfg, data, solver = session.cfg, session.data, session.cfg.SOLVER
    n_validation = f", {len(data.validation)} held out" if data.validation else ""
    many = f" in {n_processes} processes" if n_processes > 1 else ""
    lines = [
        *session.reasons,
        f"training {cfg.RECIPE} on {cfg.MODEL.DEVICE}{many}: {len(data.train)} "
        f"images{n_validation}, {len(data.categories)} classes; {solver.MAX_ITER} iterations of "
        f"{solver.IMS_PER_BATCH} images, {solver.OPTIMIZER} at {solver.BASE_LR:g}",
        f"run folder: {display_path(cfg.OUTPUT_DIR)}",
    ]
    if solver.MAX_ITER <= solver.WARMUP_ITERS:
        lines.append(
            f"note: the warm-up of {solver.WARMUP_ITERS} iterations is longer than the run; "
            "shorten it with SOLVER.WARMUP_ITERS"
        )
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        lines.append(
            "note: without weights to begin with, random layers stay as they are: end the command "
            "with MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN, or take --model small_fpn"
        )
    if cfg.TEST.PATIENCE and not data.validation:
        lines.append(
            "note: nothing is held out to be scored (--val_fraction), so TEST.PATIENCE is idle"
        )
    print(*lines, sep="\n", flush=True)


def print_parameter_count(network: torch.nn.Module) -> None:
    """Print how many parameters learn, and whether they are more than NYCU HW3 allows."""
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    print(f"trainable parameters: {count:,}", flush=True)
    if count > MAX_PARAMETERS:
        print(
            f"warning: the homework allows {MAX_PARAMETERS:,} trainable parameters; choose a "
            "smaller recipe to submit"
        )
