"""The configuration of a run: Detectron2's keys and the project's own.

A value is looked up in this order: KEY VALUE pairs of the command line, its flags, the
recipe in `configs/` (or a file of the user's), the defaults below and Detectron2's. An
unknown key or a value of the wrong type is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from cellseg.errors import InputError

RECIPES = Path(__file__).resolve().parents[2] / "configs"
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")
SCHEDULERS = ("WarmupCosineLR", "WarmupMultiStepLR")


def default_config() -> CfgNode:
    """Give Detectron2's default config and, commented here, the project's own keys."""
    cfg = get_cfg()
    # The recipe that the run began with: the name of a file in configs/.
    cfg.RECIPE = ""
    cfg.DATA = CfgNode()
    # Data folder; the annotations' file names are relative to it.
    cfg.DATA.ROOT = ""
    # COCO file that annotation.py wrote.
    cfg.DATA.ANNOTATIONS = ""
    # Part of the training images that is held out and scored during training.
    cfg.DATA.VAL_FRACTION = 0.0
    # File that names each image's group (patient, slide); a group is never split.
    cfg.DATA.GROUPS = ""
    # Brightness is multiplied by a number drawn from here. (1, 1) leaves it alone.
    # INPUT.RANDOM_FLIP may be "both" beside Detectron2's choices.
    cfg.INPUT.BRIGHTNESS = (1.0, 1.0)
    # One of SGD, Adam, AdamW, Adagrad.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Lengths in passes over the training images. Where one is not 0, it sets
    # Detectron2's key in iterations: MAX_ITER, WARMUP_ITERS, CHECKPOINT_PERIOD and
    # TEST.EVAL_PERIOD. Giving that key on the command line sets this one to 0.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    # The same for SOLVER.STEPS, in parts of the run's length.
    cfg.SOLVER.STEP_FRACTIONS = ()
    return cfg


# Key in iterations -> key in epochs (or parts of the run) that sets it.
_RELATIVE = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.WARMUP_ITERS": "SOLVER.WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
    "SOLVER.STEPS": "SOLVER.STEP_FRACTIONS",
}


def recipe_names() -> list[str]:
    """Name the recipes in `configs/`, which are what `--model` takes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which of `names` the user may have meant, as the end of an error's line."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not close:
        folded = {n.casefold(): n for n in names}
        close = [
            folded[n] for n in difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
        ]
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def load_recipe(name: str) -> CfgNode:
    """Load a recipe of `configs/` by its name."""
    path = RECIPES / f"{name}.yaml"
    if name not in recipe_names():
        raise InputError(
            f"--model {name}: no such recipe in configs/; {nearest(name, recipe_names())}"
        )
    return load_config(path)


def load_config(path: Path) -> CfgNode:
    """Load a config file: a recipe with `_BASE_`, or the `config.yaml` of a run.

    Raises
    ------
    InputError
        If the file is missing, not YAML, or has a key or a type of value that the
        project does not know.
    """
    cfg = default_config()
    try:
        with path.open(encoding="utf-8") as file:
            yaml.safe_load(file)
        cfg.merge_from_file(str(path), allow_unsafe=False)
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or path}: no such config file; the recipes are in configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a config file ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error}); a config file is expected") from None
    except KeyError as error:
        raise InputError(f"{path}: {_unknown(str(error.args[0]), cfg)}") from None
    except RecursionError:
        raise InputError(f"{path}: its _BASE_ leads back to itself; take it out") from None
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a config of this project ({error})") from None
    if not cfg.RECIPE:
        cfg.RECIPE = path.stem
    return cfg


def _unknown(message: str, cfg: CfgNode) -> str:
    key = message.rpartition(" ")[2]
    keys = list(flatten(cfg))
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else "cellseg/learn/config.py and Detectron2's defaults list the keys"
    )
    return f"there is no key {key}; {hint}"


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Give the config as one dict, `SECTION.KEY` to value."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Set the KEY VALUE pairs that end a command line.

    Raises
    ------
    InputError
        If a key has no value, is unknown, or its value has the wrong type.
    """
    flag = next((option for option in options if option.startswith("--")), None)
    if flag:
        raise InputError(f"{flag}: flags must stand before the KEY VALUE pairs; move it there")
    if len(options) % 2:
        raise InputError(
            f"{options[-1]}: KEY VALUE pairs are expected at the end, but this has no value"
        )
    keys = flatten(cfg)
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key not in keys:
            raise InputError(_unknown(key, cfg))
        try:
            # yacs takes 1 for an int and then refuses it where a float stands.
            cfg.merge_from_list([key, float(value) if isinstance(keys[key], float) else value])
        except (ValueError, AssertionError, KeyError) as error:
            raise InputError(
                f"{key} {value}: a value like {keys[key]!r} is expected ({error})"
            ) from None
        if key in _RELATIVE:
            cfg.merge_from_list([_RELATIVE[key], type(flatten(cfg)[_RELATIVE[key]])()])


def check_network(cfg: CfgNode) -> None:
    """Check that the config is one of a Mask R-CNN, which all steps rely on.

    Raises
    ------
    InputError
        If it is not.
    """
    if not cfg.MODEL.MASK_ON or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise InputError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_ON "
            f"{cfg.MODEL.MASK_ON}: GeneralizedRCNN with masks on is expected"
        )


@contextlib.contextmanager
def building(source: object) -> Iterator[None]:
    """Say in one line what a library finds wrong with a config while it builds from it.

    Detectron2 checks most of its keys only then, each in a way of its own. The traceback
    goes to the log.

    Parameters
    ----------
    source
        What the config is to the user, for the error's text.
    """
    try:
        yield
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        logging.getLogger(__name__).info("building failed", exc_info=True)
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"{source}: nothing can be built from it ({type(error).__name__}: {reason}); mend the "
            "keys that differ from the recipe in configs/"
        ) from error


def set_schedule(cfg: CfgNode, n_images: int) -> None:
    """Turn the lengths in epochs into iterations, for a training set of `n_images`.

    An epoch is as many iterations as hand out every image once, which need not be a
    whole number; the run's length is rounded up, so that no image is left out.

    Raises
    ------
    InputError
        If the batch is larger than the data, or a number of the solver makes no sense.
    """
    check_values(cfg)
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH > n_images:
        raise InputError(
            f"--batch_size {solver.IMS_PER_BATCH}: larger than the training set, which has "
            f"{n_images} images after the split; give {n_images} or less"
        )
    epoch = n_images / solver.IMS_PER_BATCH
    if solver.EPOCHS:
        # The small number keeps 3 epochs of 10/3 iterations from being 11.
        solver.MAX_ITER = max(1, math.ceil(solver.EPOCHS * epoch - 1e-6))
    if solver.WARMUP_EPOCHS:
        solver.WARMUP_ITERS = round(solver.WARMUP_EPOCHS * epoch)
    if solver.CHECKPOINT_EPOCHS:
        solver.CHECKPOINT_PERIOD = max(1, round(solver.CHECKPOINT_EPOCHS * epoch))
    if cfg.TEST.EVAL_EPOCHS:
        cfg.TEST.EVAL_PERIOD = max(1, round(cfg.TEST.EVAL_EPOCHS * epoch))
    if len(solver.STEP_FRACTIONS):
        solver.STEPS = sorted({round(part * solver.MAX_ITER) for part in solver.STEP_FRACTIONS})
    # A short run has not all of them.
    solver.STEPS = tuple(step for step in solver.STEPS if 0 < step < solver.MAX_ITER)


def check_values(cfg: CfgNode) -> None:
    """Check the network's kind, the optimizer, the schedule and the numbers of a training.

    Raises
    ------
    InputError
        If one is unknown or out of its range.
    """
    check_network(cfg)
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise InputError(
            f"--optimizer {solver.OPTIMIZER}: unknown; {nearest(solver.OPTIMIZER, OPTIMIZERS)}"
        )
    if solver.LR_SCHEDULER_NAME not in SCHEDULERS:
        raise InputError(
            f"--scheduler {solver.LR_SCHEDULER_NAME}: unknown; "
            f"{nearest(solver.LR_SCHEDULER_NAME, SCHEDULERS)}"
        )
    positive = {
        "--lr (SOLVER.BASE_LR)": solver.BASE_LR,
        "--batch_size (SOLVER.IMS_PER_BATCH)": solver.IMS_PER_BATCH,
        "SOLVER.MAX_ITER": solver.MAX_ITER,
        "SOLVER.CHECKPOINT_PERIOD": solver.CHECKPOINT_PERIOD,
    }
    for name, value in positive.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"{name} {value}: a positive number is expected")
    not_negative = {
        "--epochs (SOLVER.EPOCHS)": solver.EPOCHS,
        "SOLVER.WARMUP_EPOCHS": solver.WARMUP_EPOCHS,
        "SOLVER.WARMUP_ITERS": solver.WARMUP_ITERS,
        "SOLVER.WEIGHT_DECAY": solver.WEIGHT_DECAY,
        "SOLVER.CHECKPOINT_EPOCHS": solver.CHECKPOINT_EPOCHS,
        "SOLVER.BASE_LR_END": solver.BASE_LR_END,
        "TEST.EVAL_EPOCHS": cfg.TEST.EVAL_EPOCHS,
        "TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD,
        "--num_workers (DATALOADER.NUM_WORKERS)": cfg.DATALOADER.NUM_WORKERS,
    }
    for name, value in not_negative.items():
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"{name} {value}: a number that is not negative is expected")
    if not -1 <= cfg.SEED < 2**32:  # what numpy takes
        raise InputError(f"--seed {cfg.SEED}: a number from 0 to {2**32 - 1}, or -1, is expected")
    for name, steps in {"STEPS": solver.STEPS, "STEP_FRACTIONS": solver.STEP_FRACTIONS}.items():
        if not all(isinstance(step, int | float) and step > 0 for step in steps) or (
            list(steps) != sorted(set(steps))
        ):
            raise InputError(f"SOLVER.{name} {tuple(steps)}: rising positive numbers are expected")
    if not 0 <= cfg.DATA.VAL_FRACTION < 1:
        raise InputError(
            f"--val_fraction {cfg.DATA.VAL_FRACTION}: a number from 0 to below 1 is expected"
        )
    if solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END}: no more than SOLVER.BASE_LR "
            f"({solver.BASE_LR}) is expected"
        )
