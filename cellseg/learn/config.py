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

import numpy as np
import yaml
from fvcore.common.config import CfgNode

from cellseg.errors import InputError
from cellseg.learn.augment import build_augmentations
from cellseg.learn.samples import Sample
from cellseg.network import (
    ENGINES,
    check_network,
    choose_engine,
    default_keys,
    detectron2_problem,
)
from cellseg.network.keys import DETECTRON2_ALONE, SHARED
from cellseg.predict.views import check_looks

RECIPES = Path(__file__).resolve().parents[2] / "configs"
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")
SCHEDULERS = ("WarmupCosineLR", "WarmupMultiStepLR")
CLIP_TYPES = ("value", "norm", "full_model")


def default_config(engine: str) -> CfgNode:
    """Give an engine's default config and, commented here, the project's own keys."""
    cfg = default_keys(engine)
    cfg.ENGINE = engine
    # The recipe that the run began with: the name of a file in configs/.
    cfg.RECIPE = ""
    cfg.DATA = type(cfg)()
    # Data folder; the annotations' file names are relative to it.
    cfg.DATA.ROOT = ""
    # COCO file that annotation.py wrote.
    cfg.DATA.ANNOTATIONS = ""
    # Part of the training images that is held out and scored during training.
    cfg.DATA.VAL_FRACTION = 0.0
    # Cross-validation: the images are split into so many folds, 0 for none, …
    cfg.DATA.FOLDS = 0
    # … of which this one, from 1 on, is held out; 0 trains a run for each.
    cfg.DATA.FOLD = 0
    # File that names each image's group (patient, slide); a group is never split.
    cfg.DATA.GROUPS = ""
    # The network's pixels for each pixel of the image, in training and prediction alike;
    # 0 zooms as Detectron2 does, until the short side is as in MIN_SIZE_TRAIN or _TEST.
    cfg.INPUT.ZOOM = 0.0
    # Choose ZOOM by the training cells' own sizes. Giving ZOOM alone sets this to False.
    cfg.INPUT.ZOOM_FROM_DATA = False
    # With a ZOOM, training sees windows of this side, in the network's pixels …
    cfg.INPUT.WINDOW = 512
    # … at a zoom drawn from ZOOM / (1 + this) to ZOOM * (1 + this).
    cfg.INPUT.ZOOM_JITTER = 0.0
    # How likely a window is laid around a cell of a class drawn for it, rare ones as often
    # as frequent ones, and not anywhere.
    cfg.INPUT.CROP_ON_CLASS = 0.0
    # INPUT.RANDOM_FLIP may be "both" beside Detectron2's choices.
    cfg.INPUT.QUARTER_TURNS = False
    # Brightness and contrast are multiplied by numbers drawn from here. (1, 1) leaves them.
    cfg.INPUT.BRIGHTNESS = (1.0, 1.0)
    cfg.INPUT.CONTRAST = (1.0, 1.0)
    # The largest sigma of a Gaussian blur, in the network's pixels.
    cfg.INPUT.BLUR = 0.0
    # The densities of haematoxylin and eosin are multiplied by numbers from 1 - this to 1 + this.
    cfg.INPUT.STAIN_JITTER = 0.0
    # How likely cells of another image are pasted into a sample.
    cfg.INPUT.COPY_PASTE = 0.0
    cfg.MODEL.TIMM = type(cfg)()
    # The network of timm that the backbone build_timm_fpn_backbone takes: convnextv2_base, …
    cfg.MODEL.TIMM.NAME = ""
    # SHA-256 sums, with commas between them, of the pickles (.pkl) that MODEL.WEIGHTS may be;
    # without any, only those from the address of Detectron2's zoo.
    cfg.MODEL.TRUSTED_SHA256 = ""
    # Choose the anchors' sizes by the training cells'. Giving SIZES alone sets this to False.
    cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA = False
    # One of SGD, Adam, AdamW, Adagrad.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The batch goes through the network in so many parts, one after the other.
    cfg.SOLVER.ACCUMULATE = 1
    # Decay of the moving average of the weights, which is then what is scored and kept;
    # 0 for none.
    cfg.SOLVER.EMA = 0.0
    # Lengths in passes over the training images. Where one is not 0, it sets
    # Detectron2's key in iterations: MAX_ITER, WARMUP_ITERS, CHECKPOINT_PERIOD and
    # TEST.EVAL_PERIOD. Giving that key alone sets this one to 0.
    cfg.SOLVER.EPOCHS = 0.0
    cfg.SOLVER.WARMUP_EPOCHS = 0.0
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0.0
    cfg.TEST.EVAL_EPOCHS = 0.0
    # The same for SOLVER.STEPS, in parts of the run's length.
    cfg.SOLVER.STEP_FRACTIONS = ()
    # The longest cell to expect, in pixels of the image: tiles overlap by a little more.
    # Set by the training data; all but one in a thousand of its cells are shorter.
    cfg.DATA.LONGEST_CELL = 0.0
    # Sides of the tiles and of their overlap, in pixels of the image; 0 follows from
    # LONGEST_CELL. Without a ZOOM there are no tiles unless TILE is given.
    cfg.TEST.TILE = 0
    cfg.TEST.OVERLAP = 0
    # What is found in several views is fused: at these scales, times the zoom …
    cfg.TEST.SCALES = (1.0,)
    # … each as it is (1), flipped (2), flipped both ways (4) or turned as well (8).
    cfg.TEST.SYMMETRIES = 1
    # Views that go through the network at once.
    cfg.TEST.BATCH = 1
    # Mixed precision, on a GPU or a processor that computes in bfloat16.
    cfg.TEST.AMP = False
    # Of cells whose masks have at least this IoU, only the best stays …
    cfg.TEST.MASK_IOU = 0.5
    # … in a class, or whatever their class.
    cfg.TEST.ACROSS_CLASSES = False
    # So many scores in a row without a better one end the training; 0 for never.
    cfg.TEST.PATIENCE = 0
    return cfg


# Key -> key that sets it: from lengths in epochs or parts of the run, or from the data.
_RELATIVE = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.WARMUP_ITERS": "SOLVER.WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
    "SOLVER.STEPS": "SOLVER.STEP_FRACTIONS",
    "INPUT.ZOOM": "INPUT.ZOOM_FROM_DATA",
    "MODEL.ANCHOR_GENERATOR.SIZES": "MODEL.ANCHOR_GENERATOR.FROM_DATA",
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


def load_recipe(name: str, engine: str = "auto") -> CfgNode:
    """Load a recipe of `configs/` by its name, for an engine."""
    path = RECIPES / f"{name}.yaml"
    if name not in recipe_names():
        raise InputError(
            f"--model {name}: no such recipe in configs/; {nearest(name, recipe_names())}"
        )
    return load_config(path, engine)


def load_config(path: Path, engine: str = "auto") -> CfgNode:
    """Load a config file: a recipe with `_BASE_`, or the `config.yaml` of a run.

    Parameters
    ----------
    path
        The file.
    engine
        What the user wants, if the file doesn't say, as a run's does: "auto", or an engine.

    Raises
    ------
    InputError
        If the file is missing, not YAML, has a key or a type of value that the engine
        does not know, or is of another engine.
    """
    cfg = CfgNode()
    try:
        loaded = CfgNode.load_yaml_with_base(str(path))
        cfg = default_config(_engine_of(loaded, path, engine))
        cfg.merge_from_other_cfg(_with_floats(type(cfg)(loaded), cfg))
        for key in _overruled(path):
            cfg.merge_from_list([key, type(flatten(cfg)[key])()])
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
    empty = _emptied(cfg, default_config(cfg.ENGINE))
    if empty:
        raise InputError(f"{path}: {empty} has no value; give it one, or take it out")
    if cfg.VERSION != SHARED["VERSION"]:
        raise InputError(
            f"{path}: not a config of this project (VERSION {cfg.VERSION}, expected "
            f"{SHARED['VERSION']})"
        )
    if not cfg.RECIPE:
        cfg.RECIPE = path.stem
    return cfg


def _emptied(cfg: CfgNode, former: CfgNode) -> str | None:
    """Name a key that has no value any more, which yacs takes from anyone."""
    now, before = flatten(cfg), flatten(former)
    gone = (key for key in now if now[key] is None and before.get(key, "a section") is not None)
    return next(gone, None)


def _with_floats(loaded: CfgNode, cfg: CfgNode) -> CfgNode:
    """Turn whole numbers into floats where the default is one: merging would refuse them."""
    for key, value in loaded.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _with_floats(value, cfg[key])
        elif type(value) is int and isinstance(cfg.get(key), float):
            loaded[key] = float(value)
    return loaded


def _overruled(path: Path) -> set[str]:
    """Name the keys of a config file's `_BASE_` that set a key which the file itself gives."""
    own = CfgNode(yaml.safe_load(path.read_text(encoding="utf-8")))
    bases = own.pop("_BASE_", [])
    keys = flatten(own)
    overruled: set[str] = set()
    for base in [bases] if isinstance(bases, str) else bases:
        overruled |= _overruled(path.parent / Path(base).expanduser())
    for key, setter in _RELATIVE.items():
        if setter in keys:
            overruled.discard(setter)
        elif key in keys:
            overruled.add(setter)
    return overruled


def _engine_of(loaded: object, path: Path, wanted: str) -> str:
    """Choose the engine of a config file, which may name it."""
    named = loaded.get("ENGINE") if isinstance(loaded, dict) else None
    if named is None:
        return choose_engine(wanted)
    if named not in ENGINES:
        raise InputError(f"{path}: ENGINE {named!r}: {' or '.join(ENGINES)} is expected")
    if named == "detectron2" and detectron2_problem():
        raise InputError(
            f"{path}: made with --engine detectron2, which can't be used here "
            f"({detectron2_problem()}); make setup builds it, or train a recipe anew with "
            "torchvision"
        )
    if wanted not in ("auto", named):
        raise InputError(f"{path}: made with --engine {named}, not {wanted}; leave --engine out")
    return str(named)


def _unknown(message: str, cfg: CfgNode) -> str:
    key = message.rpartition(" ")[2]
    keys = list(flatten(cfg))
    if _has(DETECTRON2_ALONE, key) and not _has(keys, key):
        return f"only Detectron2 has {key}; leave it out, or take --engine detectron2"
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else "cellseg/learn/config.py and Detectron2's defaults list the keys"
    )
    return f"there is no key {key}; {hint}"


def _has(keys: Iterable[str], key: str) -> bool:
    """Whether a key, or a section of keys, is among some."""
    return any(f"{known}.".startswith(f"{key}.") for known in keys)


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
        if key in ("ENGINE", "VERSION"):  # which the other keys hang on
            raise InputError(f"{key} {value}: can't be set so; leave it out, or see --engine")
        try:
            # yacs takes 1 for an int and then refuses it where a float stands.
            cfg.merge_from_list([key, float(value) if isinstance(keys[key], float) else value])
            if flatten(cfg)[key] is None and keys[key] is not None:
                raise ValueError("None is no value")
        except (ValueError, AssertionError, KeyError) as error:
            raise InputError(
                f"{key} {value}: a value like {keys[key]!r} is expected ({error})"
            ) from None
        if key in _RELATIVE:
            cfg.merge_from_list([_RELATIVE[key], type(flatten(cfg)[_RELATIVE[key]])()])


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


def follow_data(cfg: CfgNode, samples: Sequence[Sample]) -> list[str]:
    """Set the longest cell, and the zoom and the anchors where they are left to the data.

    Returns
    -------
    A line for each that says what was chosen and why.
    """
    from cellseg.learn.scale import choose_anchors, choose_zoom, measure_cells

    sizes = measure_cells(samples)
    cfg.DATA.LONGEST_CELL = sizes.longest
    reasons = []
    if cfg.INPUT.ZOOM_FROM_DATA or cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA:
        strides = [_stride(name, cfg) for name in cfg.MODEL.RPN.IN_FEATURES]
        if cfg.INPUT.ZOOM_FROM_DATA:
            zoom = choose_zoom(sizes, min(strides))
            cfg.INPUT.ZOOM = zoom.value
            reasons.append(zoom.reason)
        if cfg.MODEL.ANCHOR_GENERATOR.FROM_DATA:
            anchors = choose_anchors(sizes, _typical_zoom(cfg, samples), strides)
            cfg.MODEL.ANCHOR_GENERATOR.SIZES = anchors.sizes
            reasons.append(anchors.reason)
    return reasons


def _typical_zoom(cfg: CfgNode, samples: Sequence[Sample]) -> float:
    """Give the zoom of the training; without a fixed one, the median of its crops'."""
    if cfg.INPUT.ZOOM:
        return float(cfg.INPUT.ZOOM)
    augmentations, rng = build_augmentations(cfg), np.random.default_rng(0)
    views = [augmentations.view((s["height"], s["width"]), rng, None) for s in samples]
    zooms = [
        math.sqrt(math.prod(view.size) / ((right - left) * (bottom - top)))
        for view in views
        for left, top, right, bottom in [view.window]
    ]
    return round(float(np.median(zooms)), 2)


def _stride(feature: str, cfg: CfgNode) -> int:
    """Give the stride of a feature map by its name, such as p2 or res5."""
    stride: int = 2 ** int(feature[-1])
    return stride // cfg.MODEL.RESNETS.RES5_DILATION if feature == "res5" else stride


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


# Keys of Detectron2's own trainer -> what to do instead.
_IDLE = {
    "TEST.AUG.ENABLED": "give TEST.SYMMETRIES or TEST.SCALES",
    "TEST.PRECISE_BN.ENABLED": "SOLVER.EMA averages the statistics too",
    "MODEL.LOAD_PROPOSALS": "proposals are found by the network alone",
    "MODEL.KEYPOINT_ON": "cells have no keypoints",
    "DATALOADER.SAMPLER_TRAIN": "give DATALOADER.REPEAT_THRESHOLD or INPUT.CROP_ON_CLASS",
}


def check_idle(cfg: CfgNode) -> None:
    """Check that a new run is given no keys that would change nothing.

    Raises
    ------
    InputError
        If it is.
    """
    own, known = flatten(cfg), flatten(default_config(cfg.ENGINE))
    for key, instead in _IDLE.items():
        if own.get(key) != known.get(key):
            raise InputError(f"{key} {own[key]}: changes nothing here; {instead}")


def check_values(cfg: CfgNode) -> None:
    """Check the network's kind, the augmentations and all numbers of a training.

    Raises
    ------
    InputError
        If one is unknown or out of its range.
    """
    check_network(cfg)
    build_augmentations(cfg)
    check_looks(cfg)
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
    if solver.CLIP_GRADIENTS.CLIP_TYPE not in CLIP_TYPES:
        raise InputError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {solver.CLIP_GRADIENTS.CLIP_TYPE}: one of "
            f"{', '.join(CLIP_TYPES)} is expected"
        )
    positive = {
        "--lr (SOLVER.BASE_LR)": solver.BASE_LR,
        "--batch_size (SOLVER.IMS_PER_BATCH)": solver.IMS_PER_BATCH,
        "SOLVER.MAX_ITER": solver.MAX_ITER,
        "SOLVER.CHECKPOINT_PERIOD": solver.CHECKPOINT_PERIOD,
        "SOLVER.ACCUMULATE": solver.ACCUMULATE,
        "INPUT.WINDOW": cfg.INPUT.WINDOW,
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
        "INPUT.ZOOM_JITTER": cfg.INPUT.ZOOM_JITTER,
        "DATALOADER.REPEAT_THRESHOLD": cfg.DATALOADER.REPEAT_THRESHOLD,
        "TEST.PATIENCE": cfg.TEST.PATIENCE,
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
    folds, fold = cfg.DATA.FOLDS, cfg.DATA.FOLD
    if folds == 1 or not 0 <= fold <= folds:
        raise InputError(
            f"DATA.FOLDS {folds} and DATA.FOLD {fold}: 2 folds or more, and the number of one, "
            "are expected, or 0 for none"
        )
    if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
        raise InputError(f"INPUT.FORMAT {cfg.INPUT.FORMAT}: RGB or BGR is expected")
    if not 0 <= cfg.DATA.VAL_FRACTION < 1:
        raise InputError(
            f"--val_fraction {cfg.DATA.VAL_FRACTION}: a number from 0 to below 1 is expected"
        )
    for name, value in {
        "SOLVER.EMA": solver.EMA,
        "INPUT.CROP_ON_CLASS": cfg.INPUT.CROP_ON_CLASS,
        "INPUT.COPY_PASTE": cfg.INPUT.COPY_PASTE,
    }.items():
        if not 0 <= value <= 1:
            raise InputError(f"{name} {value}: a number from 0 to 1 is expected")
    if solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END}: no more than SOLVER.BASE_LR "
            f"({solver.BASE_LR}) is expected"
        )
