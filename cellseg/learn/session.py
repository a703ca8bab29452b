"""One training run: begin or resume it, and train it in one process or several."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from cellseg import distributed, process, runs
from cellseg.config import config_errors, load_config
from cellseg.device import count_cores, detectron2_problem
from cellseg.errors import InputError
from cellseg.files import display_path, remove_unfinished, shell_path, write_atomic
from cellseg.keys import FLAGS
from cellseg.learn.continued import (
    check_former_run,
    warn_of_other_classes,
    warn_of_seen_images,
)
from cellseg.learn.hooks import TrainingStopped, log_to_file
from cellseg.learn.mapper import build_stream
from cellseg.learn.memory import report_memory
from cellseg.learn.optimizer import set_schedule
from cellseg.learn.samples import TrainingData, load_training_data, split_data
from cellseg.learn.scale import (
    set_keys_from_data,
    warn_of_resolutions,
    warn_of_unsuitable_scale,
)
from cellseg.messages import listed, plural, warn
from cellseg.read.layout import CLASS_NAMES

WORKERS = 4  # data loading workers on a GPU, where the recipe is for the CPU and has none
MIN_ITERATIONS = 100  # shorter runs would not make up for the start of more processes
MAX_PARAMETERS = 200_000_000  # trainable ones allowed by NYCU HW3


@dataclass(frozen=True)
class Session:
    """A run that is ready for training, as passed to each process."""

    cfg: CfgNode  # complete; OUTPUT_DIR is the run folder
    data: TrainingData  # split
    reasons: list[str]  # for the config values chosen from the data, one line each
    new: bool  # whether the run folder is deleted if nothing can be built from the config
    source: str  # what the config is from, for messages
    processes: int = 1  # on this machine


@dataclass(frozen=True)
class Launch:
    """Command and processes of a training."""

    command: list[str]
    train: Callable[[Session], int]  # trains in one process; returns the exit code
    per_machine: int | None = None  # processes; None for those of a resumed run, or a good number
    machines: int = 1
    machine_rank: int = 0  # rank 0 writes the run
    dist_url: str = "auto"  # address of machine 0
    source: str = "the config"  # what it is from, for messages


BuildTrainer = Callable[[CfgNode, TrainingData], Any]  # returns a `DefaultTrainer`


def find_run(name: str, root: Path, recipe: str | None) -> Path:
    """Return the folder of the run or cross-validation that `--resume` names."""
    if name == "newest":
        return runs.find_unfinished_run(root, recipe or "*")
    return Path(name) if runs.list_fold_runs(Path(name)) else runs.resolve_run_folder(Path(name))


def set_seed(cfg: CfgNode, machines: int) -> None:
    """Draw a seed if it is -1. Raise InputError if several machines would each draw one."""
    if cfg.SEED < 0 and machines > 1:
        raise InputError(f"--seed {cfg.SEED}: each machine would use a different seed; set one")
    if cfg.SEED < 0:  # stored, so that the run can be resumed and repeated
        cfg.SEED = random.SystemRandom().randrange(2**32)


def set_workers(cfg: CfgNode, chosen: bool) -> None:
    """Limit the data loading workers to the CPU cores; `chosen` if the user set their number."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not chosen:
        # Recipes for the CPU have no workers, for which a GPU would wait.
        cfg.DATALOADER.NUM_WORKERS = cfg.DATALOADER.NUM_WORKERS or WORKERS
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, count_cores())


def check_same_start(run: Path, cfg: CfgNode, original: CfgNode) -> None:
    """Raise InputError if a resumed run would have another optimizer, batch, fold or inputs."""
    for key in (
        "SOLVER.OPTIMIZER", "SOLVER.IMS_PER_BATCH", "DATA.FOLDS", "DATA.FOLD", "DATA.MPP",
        "INPUT.ZOOM", "INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD",
        "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    ):  # fmt: skip
        value, former = attrgetter(key)(cfg), attrgetter(key)(original)
        if value != former:
            split = " (SOLVER.ACCUMULATE splits a batch)" if key == "SOLVER.IMS_PER_BATCH" else ""
            raise InputError(
                f"{FLAGS.get(key, key)} {value}: {display_path(run)} was started "
                f"with {former}; leave it out{split}, or start a new run without --resume"
            )


def check_same_data(run: Path, session: Session) -> None:
    """Raise InputError if the annotations or the validation set of a run have changed."""
    record, annotations = runs.read_record(run), session.cfg.DATA.ANNOTATIONS
    if record["annotations"].get("sha256") != runs.file_hash(Path(annotations)):
        raise InputError(
            f"{annotations}: not the annotations that {display_path(run)} was started with; "
            "restore them, or start a new run without --resume"
        )
    if set(record["held_out"]) != {sample.name for sample in session.data.validation}:
        raise InputError(
            f"{display_path(run)}: the validation set changed since the run was started; leave "
            "--val_fraction, --groups and --seed as they were, or start a new run without --resume"
        )


def set_processes(session: Session, launch: Launch, run: Path | None = None) -> Session:
    """Return the session with its number of processes: given, of the `run` to resume, or chosen.

    Raise InputError if they are not available or can't split a batch evenly.
    """
    cfg = session.cfg
    recorded = runs.recorded_processes(run) if run else 0
    n = launch.per_machine or recorded or choose_processes(cfg, launch.machines)
    total = n * launch.machines
    if total > 1:
        distributed.check_launch(n, cfg.MODEL.DEVICE)
    if cfg.SOLVER.IMS_PER_BATCH % total:
        raise InputError(
            f"--batch_size {cfg.SOLVER.IMS_PER_BATCH}: split among {total} processes, so a "
            f"multiple of {total} is expected"
        )
    if recorded and n != recorded:
        session.reasons.append(
            f"note: the run was started with --processes {recorded}, now {n}: each batch has the "
            "same images, but batch normalisation averages over those of a process"
        )
    return dataclasses.replace(session, processes=n)


def choose_processes(cfg: CfgNode, machines: int = 1) -> int:
    """Return a good number of processes for the CPU; 1 on a GPU and for a short run.

    As many as torch has threads, if each gets 4 images of a batch for its normalisation, or half
    of a smaller batch, but 2. Threads wait for each other in every layer, with other work on the
    cores mostly; processes do once a step.
    """
    solver = cfg.SOLVER
    is_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    if not is_cpu or machines > 1 or solver.MAX_ITER < MIN_ITERATIONS or detectron2_problem():
        return 1
    batch = solver.IMS_PER_BATCH
    least = max(2, min(4, batch // 2))
    numbers = range(1, torch.get_num_threads() + 1)
    return max(n for n in numbers if n == 1 or (batch % n == 0 and batch // n >= least))


def prepare(
    cfg: CfgNode, data: TrainingData | None = None, new: bool = True, source: str = "the config"
) -> Session:
    """Split the data by a config, and set the config values that depend on them.

    `data` are all images of the config's annotation file, which is loaded by default. `source` is
    what the config is from, for messages.
    """
    data_cfg = cfg.DATA
    data = data or load_training_data(data_cfg.ROOT, data_cfg.ANNOTATIONS)
    data = split_data(
        data,
        data_cfg.VAL_FRACTION,
        data_cfg.FOLDS,
        data_cfg.FOLD,
        data_cfg.GROUPS,
        cfg.SEED,
        data_cfg.VAL_IMAGES,
    )
    n_classes, given = len(data.categories), cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if given not in (n_classes, len(CLASS_NAMES)):  # the recipes have that of NYCU HW3
        warn(
            f"MODEL.ROI_HEADS.NUM_CLASSES {given}: not used, as {data_cfg.ANNOTATIONS} has "
            f"{plural(n_classes, 'class', 'classes')}"
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = n_classes
    with config_errors(source):
        reasons = set_keys_from_data(cfg, data.train)
    set_schedule(cfg, build_stream(cfg, data).epoch_length)
    return Session(cfg, data, reasons, new, source)


def limit_warmup(session: Session, command: Sequence[str]) -> None:
    """Shorten a warm-up that is longer than a new run.

    Raise InputError if it is in the command.
    """
    solver = session.cfg.SOLVER
    n, warmup = solver.MAX_ITER, solver.WARMUP_ITERS
    if warmup <= n:
        return
    if {"SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_EPOCHS"}.intersection(command):
        raise InputError(
            f"SOLVER.WARMUP_ITERS {warmup}: the warm-up is longer than the run of "
            f"{plural(n, 'iteration')}, which would never reach its learning rate; end the command "
            f"with SOLVER.WARMUP_ITERS {n // 10}, or train longer (--epochs)"
        )
    solver.WARMUP_ITERS, solver.WARMUP_EPOCHS = n // 10, 0.0
    session.reasons.append(
        f"SOLVER.WARMUP_ITERS {n // 10} instead of {warmup}, as the run has only "
        f"{plural(n, 'iteration')}"
    )


def begin(root: Path, cfg: CfgNode, launch: Launch) -> Session:
    """Load the data of a new run, and create its folder below `root`."""
    session = set_processes(prepare(cfg, source=launch.source), launch)
    limit_warmup(session, launch.command)
    if cfg.DATA.CONTINUES:
        check_former_run(cfg, session.data)
    else:
        warn_of_other_classes(cfg, session.data)
    warn_of_seen_images(cfg, session.data.validation)
    if launch.machine_rank == 0:
        create(session, runs.new_run(root.absolute(), cfg.RECIPE), launch.command)
    return session


def create(session: Session, run: Path, command: Sequence[str]) -> None:
    """Write the record and the config of a new run into its folder."""
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
        session.processes,
    )
    _write_config(cfg)


def resume(run: Path, cfg: CfgNode, launch: Launch, data: TrainingData | None = None) -> Session:
    """Load the data of a run to resume, `data` as in `prepare`. Raise InputError if changed.

    Scale, anchors and length are those of the run's config, whatever would be chosen now.
    """
    inputs, anchors, own = cfg.INPUT, cfg.MODEL.ANCHOR_GENERATOR, load_config(run / runs.CONFIG)
    chosen_from_data = inputs.ZOOM_FROM_DATA, anchors.FROM_DATA
    inputs.ZOOM_FROM_DATA = anchors.FROM_DATA = False
    session = set_processes(prepare(cfg, data, new=False, source=launch.source), launch, run)
    inputs.ZOOM_FROM_DATA, anchors.FROM_DATA = chosen_from_data
    if cfg.SOLVER.EPOCHS and cfg.SOLVER.EPOCHS == own.SOLVER.EPOCHS:
        cfg.SOLVER.MAX_ITER = own.SOLVER.MAX_ITER
    check_same_data(run, session)
    cfg.OUTPUT_DIR = str(run.absolute())
    return session


def train_in_processes(session: Session, launch: Launch) -> int:
    """Train a run in all processes of a launch. Return the exit code.

    Raises InputError if another command trains it.
    """
    if launch.machine_rank:
        return _train_in_processes(session, launch)
    run = Path(session.cfg.OUTPUT_DIR)
    with runs.locked_run(run):
        for name in (runs.LAST, runs.BEST, runs.FINAL):
            remove_unfinished(run / name)
        return _train_in_processes(session, launch)


def _train_in_processes(session: Session, launch: Launch) -> int:
    cfg = session.cfg
    cfg.freeze()
    n_processes = session.processes * launch.machines
    print_training(session, n_processes)
    if not launch.machine_rank:
        process.advise(_how_to_resume(Path(cfg.OUTPUT_DIR)))
    if n_processes == 1:
        return launch.train(session)
    distributed.launch(
        session.processes, launch.train, session, device=cfg.MODEL.DEVICE,
        n_machines=launch.machines, machine_rank=launch.machine_rank, dist_url=launch.dist_url,
    )  # fmt: skip
    finished = (Path(cfg.OUTPUT_DIR) / runs.FINAL).is_file()
    return 0 if finished or launch.machine_rank else 130


def train(session: Session, build_trainer: BuildTrainer) -> int:
    """Train a run in this process, one of the launch. Return the exit code."""
    run, first = Path(session.cfg.OUTPUT_DIR), distributed.rank() == 0
    in_folds = run in runs.list_fold_runs(run.parent)
    with contextlib.ExitStack() as stack:
        if first:
            stack.callback(log_to_file(run / "log.txt"))
        try:
            trainer = _start(session, build_trainer)
            if trainer.start_iter >= trainer.max_iter:
                if first and not (run / runs.FINAL).is_file():
                    network, done = trainer.step.eval_network, trainer.start_iter
                    trainer.checkpointer.save_weights(runs.FINAL, network, iteration=done)
                    print(f"{display_path(run / runs.FINAL)}: missing, written from {runs.LAST}")
                print(f"nothing to do: {plural(trainer.start_iter, 'iteration')} done, as planned")
                return 0
            trainer.train()
            if in_folds and trainer.stop_requested:  # after this fold, but before the next
                raise TrainingStopped(trainer.max_iter)
        except TrainingStopped as stop:
            if first:
                print(
                    f"stopped after iteration {stop} of {session.cfg.SOLVER.MAX_ITER}; "
                    f"{_how_to_resume(run)}"
                )
            return 130
    if first:
        if session.cfg.DATA.CONTINUES and not session.data.validation:
            former = display_path(session.cfg.DATA.CONTINUES)
            print(
                f"AP50 before and after: not known, as {former} has no validation images "
                "(train a first run with --val_fraction)"
            )
        runs.check_run_folder(run)
        for name in (runs.CONFIG, runs.RECORD, runs.FINAL):
            if not (run / name).is_file():
                raise InputError(
                    f"{run / name}: was removed while the run was trained, so it can't be used; "
                    "restore it, or train again"
                )
        print(f"finished; predict with: python inference.py --checkpoint {shell_path(run)}")
    return 0


def _how_to_resume(run: Path) -> str:
    folder = run.parent if run in runs.list_fold_runs(run.parent) else run
    return f"resume with: python train.py --resume {shell_path(folder)}"


def _start(session: Session, build_trainer: BuildTrainer) -> Any:
    """Build the trainer, and load the checkpoint or the initial weights."""
    cfg, run, first = session.cfg, Path(session.cfg.OUTPUT_DIR), distributed.rank() == 0
    torch.manual_seed(cfg.SEED)
    if not session.new:
        check_checkpoint(run)
        if first and (run / runs.METRICS).is_file() and not (run / runs.LAST).is_file():
            warn(f"{display_path(run)}: without a checkpoint ({runs.LAST}), so it starts anew")
    try:
        with config_errors(session.source):
            trainer = build_trainer(cfg, session.data)
        trainer.resume_or_load(resume=not session.new)
        if trainer.start_iter >= trainer.max_iter:
            check_length(run, cfg, trainer.start_iter, trainer.max_iter)
        elif first and not session.new:  # only after the checkpoint was found to fit
            _write_config(cfg)
        if first:
            print_parameter_count(trainer.step.network)
            stream = build_stream(cfg, session.data)
            report_memory(cfg, trainer.step.network, stream, session.processes)
    except InputError:
        if session.new and first:  # nothing to resume
            shutil.rmtree(run, ignore_errors=True)
        raise
    return trainer


def check_checkpoint(run: Path) -> None:
    """Raise InputError if a run to resume is finished, but without the checkpoint to go on from."""
    if (run / runs.FINAL).is_file() and not (run / runs.LAST).is_file():
        raise InputError(
            f"{display_path(run / runs.LAST)}: no such file, so the run, which is finished, can't "
            f"go on; restore it, or begin a new run with --weights {display_path(run)}"
        )


def check_length(run: Path, cfg: CfgNode, done: int, end: int) -> None:
    """Raise InputError if a run without iterations left gets another length."""
    length = attrgetter("SOLVER.MAX_ITER", "TEST.PATIENCE")
    if length(cfg) != length(load_config(run / runs.CONFIG)):
        raise InputError(
            f"--resume {display_path(run)}: {plural(done, 'iteration')} already done, but the run "
            f"now ends after {end}; raise --epochs, SOLVER.MAX_ITER or "
            "TEST.PATIENCE, or predict with the existing weights"
        )


def _write_config(cfg: CfgNode) -> None:
    with write_atomic(Path(cfg.OUTPUT_DIR) / runs.CONFIG) as file:
        file.write(cfg.dump())


def print_training(session: Session, n_processes: int) -> None:
    """Print what is trained, and warn of settings that are probably wrong."""
    cfg, data, solver = session.cfg, session.data, session.cfg.SOLVER
    n_validation = f", {len(data.validation)} for validation" if data.validation else ""
    many = f" in {n_processes} processes" if n_processes > 1 else ""
    rate = f"{solver.BASE_LR:g}"
    if solver.BACKBONE_MULTIPLIER != 1:
        rate += f" ({solver.BASE_LR * solver.BACKBONE_MULTIPLIER:g} in the backbone)"
    print(
        *session.reasons,
        f"training {cfg.RECIPE} on {cfg.MODEL.DEVICE}{many}: {plural(len(data.train), 'image')}"
        f"{n_validation}, {plural(len(data.categories), 'class', 'classes')}; "
        f"{plural(solver.MAX_ITER, 'iteration')} of {plural(solver.IMS_PER_BATCH, 'image')}, "
        f"{solver.OPTIMIZER} at {rate}",
        f"run folder: {display_path(cfg.OUTPUT_DIR)}",
        sep="\n",
        flush=True,
    )
    warn_of_resolutions(data.train + data.validation, cfg.DATA.MPP, bool(cfg.INPUT.ZOOM))
    warn_of_unsuitable_scale(cfg, data.train)
    warn_of_classes_without_cells(data)
    if solver.MAX_ITER <= solver.WARMUP_ITERS:
        warn(
            f"the warm-up of {plural(solver.WARMUP_ITERS, 'iteration')} lasts for the whole run; "
            "shorten it with SOLVER.WARMUP_ITERS"
        )
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT:
        warn(
            "without initial weights the frozen layers stay random: end the command with "
            "MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN, or use --model lite_fpn"
        )
    if cfg.TEST.PATIENCE and not data.validation:
        warn("no validation images (--val_fraction), so TEST.PATIENCE has no effect")


def warn_of_classes_without_cells(data: TrainingData) -> None:
    """Warn of classes that no training cell has, which the network can't learn."""
    n_train, n_validation = (
        Counter(k for image in images for k in image.classes.tolist())
        for images in (data.train, data.validation)
    )
    missing = [
        category["name"] + (f" ({n} in the validation set)" if (n := n_validation[k]) else "")
        for k, category in enumerate(data.categories)
        if not n_train[k]
    ]
    if missing:
        warn(
            f"classes without training cells, which can't be learnt: {len(missing)}: "
            f"{listed(missing)}"
        )


def print_parameter_count(network: torch.nn.Module) -> None:
    """Print the number of trainable parameters, and a warning if NYCU HW3 does not allow it."""
    count = sum(p.numel() for p in network.parameters() if p.requires_grad)
    print(f"trainable parameters: {count:,}", flush=True)
    if count > MAX_PARAMETERS:
        warn(
            f"NYCU HW3 allows {MAX_PARAMETERS:,} trainable parameters; choose a smaller recipe to "
            "submit"
        )
