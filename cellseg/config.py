"""The configuration of a run: Detectron2's keys and those of this project.

Priority of a value: KEY VALUE pairs of the command line, its flags, the recipe in `configs/`
(or the user's config file), the defaults in `cellseg.keys`. An unknown key or a value of the
wrong type is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode

from cellseg.device import ENGINES, choose_engine, detectron2_problem
from cellseg.errors import InputError
from cellseg.files import check_ordinary
from cellseg.keys import (
    CROP_SIZES,
    DETECTRON2_RANGES,
    FLAGS,
    NETWORK_RANGES,
    OWN,
    PREDICTION_RANGES,
    SHARED_KEYS,
    SIDE_RANGE,
    TRAINING_RANGES,
    Allowed,
    Range,
)
from cellseg.limits import CONFIG_BYTES, CONFIG_VALUES
from cellseg.messages import warn
from cellseg.runs import check_recipe_name

# An installed package contains the recipes, a checkout has them next to the package.
_INSTALLED = Path(__file__).resolve().parent / "configs"
RECIPES = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"


def default_config(engine: str) -> CfgNode:
    """Return an engine's default config: the Detectron2 keys that it supports, and `OWN`."""
    if engine == "detectron2":
        from detectron2.config import get_cfg

        cfg = get_cfg()
    else:
        cfg = CfgNode(SHARED_KEYS)
    cfg.set_new_allowed(True)
    cfg.merge_from_other_cfg(type(cfg)(OWN))
    cfg.set_new_allowed(False)
    cfg.ENGINE = engine
    return cfg


# Key -> key from which it is computed: a length in epochs, a fraction of the run, the data, or a
# least length.
_DERIVED_KEYS = {
    "SOLVER.MAX_ITER": "SOLVER.EPOCHS",
    "SOLVER.EPOCHS": "SOLVER.MIN_ITER",
    "SOLVER.WARMUP_ITERS": "SOLVER.WARMUP_EPOCHS",
    "SOLVER.CHECKPOINT_PERIOD": "SOLVER.CHECKPOINT_EPOCHS",
    "TEST.EVAL_PERIOD": "TEST.EVAL_EPOCHS",
    "SOLVER.STEPS": "SOLVER.STEP_FRACTIONS",
    "INPUT.ZOOM": "INPUT.ZOOM_FROM_DATA",
    "MODEL.ANCHOR_GENERATOR.SIZES": "MODEL.ANCHOR_GENERATOR.FROM_DATA",
}


# Keys that are computed from the data since runs know CELLS_PER_MEGAPIXEL -> their values in the
# recipes before; other values were the user's.
_FORMER_LIMITS = {
    "MODEL.RPN.PRE_NMS_TOPK_TEST": (1000, 6000),
    "MODEL.RPN.POST_NMS_TOPK_TEST": (1000,),
    "TEST.DETECTIONS_PER_IMAGE": (800,),
}


def recipe_names() -> list[str]:
    """Return the names of the recipes in `configs/`, the values of `--model`."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _did_you_mean(name: object, names: Iterable[object]) -> str:
    """Return a question for the closest of `names` in any case, or "" if none is close."""
    folded = {str(n).casefold(): n for n in names}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]}?" if close else ""


def load_recipe(name: str, engine: str = "auto") -> CfgNode:
    """Load a recipe of `configs/` by its name, for an engine."""
    names = recipe_names()
    if name not in names:
        hint = _did_you_mean(name, names) or f"there are {', '.join(names)}"
        raise InputError(f"--model {name}: no such recipe in configs/; {hint}")
    return load_config(RECIPES / f"{name}.yaml", engine)


def load_config(path: Path, engine: str = "auto") -> CfgNode:
    """Load a config file: a recipe with `_BASE_`, or the `config.yaml` of a run.

    Parameters
    ----------
    path
        The YAML file.
    engine
        "auto" or an engine, for a file that doesn't set ENGINE. That of a run does.

    Raises
    ------
    InputError
        If the file is missing or not YAML, contains a key or type of value that the engine
        doesn't know, or sets another engine.
    """
    cfg = CfgNode()
    try:
        loaded = _Checked.load_yaml_with_base(str(path))
        cfg = default_config(_config_engine(loaded, path, engine))
        defaults = flatten(cfg)
        cfg.merge_from_other_cfg(_with_floats(type(cfg)(loaded), cfg))
        for key in _overridden_keys(path):
            cfg.merge_from_list([key, type(defaults[key])()])
        if "ENGINE" in loaded and "CELLS_PER_MEGAPIXEL" not in loaded.get("DATA", {}):
            for key, values in _FORMER_LIMITS.items():  # a former run
                if attrgetter(key)(cfg) in values:
                    cfg.merge_from_list([key, 0])
    except FileNotFoundError as error:
        raise InputError(
            f"{error.filename or path}: no such config file; the recipes are in configs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read as a config file ({error})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({error}), expected a config file") from None
    except KeyError as error:
        raise InputError(f"{path}: {_unknown_key_message(str(error.args[0]), cfg)}") from None
    except RecursionError:
        raise InputError(
            f"{path}: circular _BASE_, or values nested too deeply; remove them"
        ) from None
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a config of this project ({error})") from None
    for key, value in flatten(cfg).items():  # yacs accepts None for any key
        if value is None and defaults.get(key, "a section") is not None:
            raise InputError(f"{path}: {key} has no value; set it or remove it")
    if cfg.VERSION != SHARED_KEYS["VERSION"]:
        raise InputError(
            f"{path}: not a config of this project (VERSION {cfg.VERSION}, expected "
            f"{SHARED_KEYS['VERSION']})"
        )
    cfg.RECIPE = cfg.RECIPE or path.stem
    return cfg


class _Checked(CfgNode):  # type: ignore[misc]
    """Reads config files after checking their size."""

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        check_ordinary(filename)
        text = Path(filename).read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader) if len(text) <= CONFIG_BYTES else None
        # Aliases refer to one value in many places, which then is copied to each.
        if len(text) > CONFIG_BYTES or _count_values(root, {}) > CONFIG_VALUES:
            raise InputError(
                f"{filename}: too long for a config file, perhaps by its aliases (*name), expected "
                f"at most {CONFIG_BYTES} characters and {CONFIG_VALUES} values; remove some"
            )
        if not isinstance(root, yaml.MappingNode):
            found = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value"}
            raise InputError(
                f"{filename}: not a config of this project ({found.get(type(root), 'empty')}), "
                "expected keys with values, such as SOLVER and MODEL; restore it from a copy, or "
                "use another"
            )
        return io.StringIO(text)


def _count_values(node: yaml.Node | None, counts: dict[int, int]) -> int:
    """Return the number of values in a YAML node, where an alias counts as what it refers to."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counts:
        counts[id(node)] = CONFIG_VALUES  # a node within itself is endless
        parts = itertools.chain.from_iterable(
            part if isinstance(part, tuple) else (part,) for part in node.value
        )
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


def _with_floats(loaded: CfgNode, cfg: CfgNode) -> CfgNode:
    """Convert integers to floats where the default is one, since merging rejects them."""
    for key, value in loaded.items():
        if isinstance(value, CfgNode) and isinstance(cfg.get(key), CfgNode):
            _with_floats(value, cfg[key])
        elif type(value) is int and isinstance(cfg.get(key), float):
            loaded[key] = float(value)
    return loaded


def _overridden_keys(path: Path) -> set[str]:
    """Return the keys set in a file's `_BASE_` from which keys set in the file are computed."""
    own = CfgNode(yaml.safe_load(path.read_text(encoding="utf-8")))
    bases = own.pop("_BASE_", [])
    keys = flatten(own)
    overridden: set[str] = set()
    for base in [bases] if isinstance(bases, str) else bases:
        overridden |= _overridden_keys(path.parent / Path(base).expanduser())
    for key, setter in _DERIVED_KEYS.items():
        if setter in keys:
            overridden.discard(setter)
        elif key in keys:
            overridden.add(setter)
    return overridden


def _config_engine(loaded: object, path: Path, wanted: str) -> str:
    """Return the engine that a config file sets, else the one for `wanted`."""
    named = loaded.get("ENGINE") if isinstance(loaded, dict) else None
    if named is None:
        return choose_engine(wanted)
    if named not in ENGINES:
        raise InputError(f"{path}: ENGINE {named!r}: expected {' or '.join(ENGINES)}")
    if named == "detectron2" and detectron2_problem():
        raise InputError(
            f"{path}: made with --engine detectron2, which can't be used here "
            f"({detectron2_problem()}); make setup builds it, or train a recipe with "
            "--engine torchvision"
        )
    if wanted not in ("auto", named):
        raise InputError(f"{path}: made with --engine {named}, not {wanted}; leave --engine out")
    return str(named)


def _unknown_key_message(message: str, cfg: CfgNode) -> str:
    key = message.rpartition(" ")[2]
    more = " for --engine torchvision (--engine detectron2 has more)"
    hint = _did_you_mean(key, flatten(cfg)) or "see cellseg/keys.py and Detectron2's defaults"
    return f"there is no key {key}{more if cfg.ENGINE == 'torchvision' else ''}; {hint}"


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Return the config as a flat dict from `SECTION.KEY` to value."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        nested = isinstance(value, CfgNode)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def set_value(cfg: CfgNode, key: str, value: object) -> None:
    """Set a key, and turn off the one that it would be computed from."""
    cfg.merge_from_list([key, value])
    if setter := _DERIVED_KEYS.get(key):
        cfg.merge_from_list([setter, type(attrgetter(setter)(cfg))()])


def set_given(cfg: CfgNode, values: Mapping[str, object]) -> None:
    """Set keys as `set_value` does, but those with None, of flags that were left out."""
    for key, value in values.items():
        if value is not None:
            set_value(cfg, key, value)


def merge_options(cfg: CfgNode, options: Sequence[str]) -> None:
    """Set the KEY VALUE pairs from the end of a command line.

    Raise InputError if a key has no value or is unknown, or its value has the wrong type.
    """
    for n, option in enumerate(options):
        is_key = n % 2 == 0  # a value may be a negative number
        if option.startswith("--") or (is_key and option.startswith("-")):
            raise InputError(f"{option}: flags must stand before the KEY VALUE pairs")
    if len(options) % 2:
        raise InputError(f"{options[-1]}: this has no value, expected KEY VALUE pairs at the end")
    defaults = flatten(cfg)
    for key, value in zip(options[::2], options[1::2], strict=True):
        if key not in defaults:
            raise InputError(_unknown_key_message(key, cfg))
        if key in ("ENGINE", "VERSION"):  # other keys depend on them
            raise InputError(f"{key} {value}: can't be set as an option; see --engine")
        default = defaults[key]
        try:
            # yacs parses 1 as an int and then rejects it for a float.
            set_value(cfg, key, float(value) if isinstance(default, float) else value)
            if default is not None and flatten(cfg)[key] is None:
                raise ValueError("None is no value")
        except (ValueError, AssertionError, KeyError) as error:
            raise InputError(
                f"{key} {value}: a value like {default!r} is expected ({error})"
            ) from None


_BUILD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@contextlib.contextmanager
def config_errors(source: object) -> Iterator[None]:
    """Raise what a library raises while it builds from a config as a one-line InputError.

    Detectron2 checks most keys only then, each in another way. The traceback goes to the log.
    `source` names the config in the message.
    """
    try:
        yield
    except _BUILD_ERRORS as error:
        logging.getLogger(__name__).info("building failed", exc_info=True)
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise InputError(
            f"{source}: the network can't be built ({type(error).__name__}: {reason}); fix the "
            "keys that differ from the recipe in configs/"
        ) from error


# Detectron2 keys without effect -> what to use instead.
_UNUSED_KEYS = {
    "TEST.AUG.ENABLED": "use TEST.SYMMETRIES or TEST.SCALES",
    "TEST.PRECISE_BN.ENABLED": "SOLVER.EMA also averages the statistics",
    "MODEL.LOAD_PROPOSALS": "proposals come only from the network",
    "MODEL.KEYPOINT_ON": "cells have no keypoints",
    "MODEL.RPN.BOUNDARY_THRESH": "anchors that reach out of the image are trained too",
    "MODEL.RPN.IOU_LABELS": "use MODEL.RPN.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_LABELS": "use MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "VIS_PERIOD": "--show_batch draws a batch, and TensorBoard has held-out images",
    "DATALOADER.SAMPLER_TRAIN": "use DATALOADER.REPEAT_THRESHOLD or INPUT.CROP_ON_CLASS",
    "SOLVER.REFERENCE_WORLD_SIZE": "use --batch_size, --lr and --processes",
    "SOLVER.NUM_DECAYS": "use SOLVER.STEPS or SOLVER.STEP_FRACTIONS",
    "CUDNN_BENCHMARK": "cuDNN chooses its algorithms by rules",
    "FLOAT32_PRECISION": "use SOLVER.AMP.ENABLED",
}
# The same for keys that most config files for Detectron2 set.
_UNUSED_IF_GIVEN = {
    "OUTPUT_DIR": "use --output_dir",
    "DATASETS.TRAIN": "use --data or --annotations",
    "DATASETS.TEST": "use --val_fraction",
    "INPUT.MASK_FORMAT": "masks are bit masks",
}


def check_unused_keys(cfg: CfgNode, given: Sequence[str] | None = None) -> None:
    """Raise InputError if a key has no effect: any of a new run, or one that was `given`."""
    own, known = flatten(cfg), flatten(default_config(cfg.ENGINE))
    for key in own if given is None else given:
        if key in _UNUSED_KEYS and own[key] != known[key]:
            raise InputError(f"{key} {own[key]}: has no effect here; {_UNUSED_KEYS[key]}")
        if key in _UNUSED_IF_GIVEN and given is not None and own[key] != "bitmask":
            raise InputError(f"{key} {own[key]}: has no effect here; {_UNUSED_IF_GIVEN[key]}")
        if key == "SOLVER.NESTEROV" and own[key] and cfg.SOLVER.OPTIMIZER != "SGD":
            raise InputError(
                f"{key} {own[key]}: has no effect with {cfg.SOLVER.OPTIMIZER}; use --optimizer SGD"
            )


# Keys that training computes from the cells.
_FROM_CELLS = ("DATA.LONGEST_CELL", "DATA.CELLS_PER_MEGAPIXEL")
# Keys that have no effect with a fixed scale, and those that have none without.
_WITHOUT_SCALE = (
    "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST",
    "INPUT.CROP.ENABLED", "INPUT.CROP.TYPE", "INPUT.CROP.SIZE",
)  # fmt: skip
_WITH_SCALE = ("INPUT.WINDOW", "INPUT.WINDOWS_BY_AREA", "INPUT.ZOOM_JITTER")
# Keys of the validation.
_VALIDATION = ("TEST.EVAL_PERIOD", "TEST.EVAL_EPOCHS")


def check_given_keys(cfg: CfgNode, given: Sequence[str]) -> None:
    """Check the keys given on the command line of a training for those without effect.

    Raises InputError for the first; a warning for those of a validation that there is not.
    """
    check_unused_keys(cfg, given)
    has_scale = cfg.INPUT.ZOOM or cfg.INPUT.ZOOM_FROM_DATA
    for key in given:
        value = attrgetter(key)(cfg)
        if key in _FROM_CELLS:
            raise InputError(
                f"{key} {value}: train.py computes it from the training cells; leave it out, and "
                "give it to inference.py"
            )
        if key in _WITHOUT_SCALE and has_scale:
            raise InputError(
                f"{key} {value}: has no effect with a fixed scale; set INPUT.ZOOM and "
                "INPUT.WINDOW, or INPUT.ZOOM 0 for images of one size"
            )
        if key in _WITH_SCALE and not has_scale:
            raise InputError(
                f"{key} {value}: has no effect without a fixed scale; add INPUT.ZOOM_FROM_DATA "
                "True or an INPUT.ZOOM, or leave it out"
            )
        if (
            key in _VALIDATION
            and value
            and not (cfg.DATA.VAL_FRACTION or cfg.DATA.VAL_IMAGES or cfg.DATA.FOLDS)
        ):
            warn(f"no validation images (--val_fraction), so {key} has no effect")


def check_prediction_keys(cfgs: Sequence[CfgNode], given: Sequence[str]) -> None:
    """Check the keys given on the command line of a prediction for those without effect.

    `cfgs` are those of one or more networks. Raises InputError for the first that was meant to
    change the prediction; a warning for those of training.
    """
    check_unused_keys(cfgs[0], given)
    for key in given:
        value = attrgetter(key)(cfgs[0])
        if key == "MODEL.WEIGHTS":
            raise InputError(f"{key} {value}: are initial weights; choose a run with --checkpoint")
        if key in _WITHOUT_SCALE and all(cfg.INPUT.ZOOM for cfg in cfgs):
            raise InputError(f"{key} {value}: has no effect with a fixed scale; use INPUT.ZOOM")
    of_training = [
        key
        for key in given
        if key in TRAINING_RANGES
        or not (
            key in PREDICTION_RANGES
            or key == "DATA.ROOT"  # of --dataset train
            or key.startswith(("MODEL.", "TEST."))
        )
    ]
    if of_training:
        warn(f"keys of training, which have no effect here: {', '.join(of_training)}")


def check_values(cfg: CfgNode) -> None:
    """Check the values of all keys for training.

    Raise InputError if one is out of its range in `cellseg.keys` or contradicts another.
    """
    check_recipe_name(cfg.RECIPE)
    check_prediction_values(cfg)
    _check_ranges(cfg, TRAINING_RANGES)
    inputs, solver, data = cfg.INPUT, cfg.SOLVER, cfg.DATA
    if solver.WEIGHT_DECAY_BIAS is not None:  # of no type
        _check_ranges(cfg, {"SOLVER.WEIGHT_DECAY_BIAS": Range(0)})
    if solver.CLIP_GRADIENTS.NORM_TYPE != math.inf:  # the largest gradient
        _check_ranges(cfg, {"SOLVER.CLIP_GRADIENTS.NORM_TYPE": Range(0, above=True)})
    if not inputs.ZOOM and inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
        _check_ranges(cfg, {"INPUT.MIN_SIZE_TRAIN": SIDE_RANGE}, "MIN_SIZE_TRAIN_SAMPLING range")
    if not inputs.ZOOM and inputs.CROP.ENABLED:  # with a ZOOM, crops are of INPUT.WINDOW
        size = {"INPUT.CROP.SIZE": CROP_SIZES[inputs.CROP.TYPE]}
        _check_ranges(cfg, size, f"INPUT.CROP.TYPE {inputs.CROP.TYPE}")
    if data.FOLDS == 1 or not 0 <= data.FOLD <= data.FOLDS:
        raise InputError(
            f"DATA.FOLDS {data.FOLDS} and DATA.FOLD {data.FOLD}: expected 2 folds or more and the "
            "number of one, or 0 for none"
        )
    if solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END}: expected at most SOLVER.BASE_LR "
            f"({solver.BASE_LR})"
        )


def check_prediction_values(cfg: CfgNode) -> None:
    """Raise InputError if a key that prediction reads is out of its range in `cellseg.keys`."""
    _check_ranges(cfg, NETWORK_RANGES)
    if cfg.ENGINE == "detectron2":
        _check_ranges(cfg, DETECTRON2_RANGES)
    _check_ranges(cfg, PREDICTION_RANGES)


def _check_ranges(cfg: CfgNode, ranges: Mapping[str, Allowed], setting: str = "") -> None:
    """Raise InputError for the first value out of its range, which depends on `setting`."""
    for key, allowed in ranges.items():
        value = attrgetter(key)(cfg)
        if value in allowed:
            continue
        if isinstance(allowed, tuple):
            expected = f"one of {', '.join(map(str, allowed))}"
            hint = f"; {_did_you_mean(value, allowed)}".rstrip("; ")
        else:
            expected, hint = str(allowed), f" with {setting}" if setting else ""
        name = f"{FLAGS[key]} ({key})" if key in FLAGS else key
        raise InputError(f"{name} {value}: {expected} is expected{hint}")
