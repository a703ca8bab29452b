"""The configuration of a run: Detectron2's keys and the project's own.

A value is looked up in this order: KEY VALUE pairs of the command line, its flags, the
recipe in `configs/` (or a file of the user's), the defaults of `cellseg.keys`. An
unknown key or a value of the wrong type is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from cellseg.device import ENGINES, choose_engine, detectron2_problem
from cellseg.errors import InputError
from cellseg.keys import (
    CROP_SIZES,
    FLAGS,
    OWN,
    PREDICTION_RANGES,
    SHARED_KEYS,
    SIDE_RANGE,
    TRAINING_RANGES,
    Allowed,
)

# An installed package has the recipes within it, a checkout beside it.
_INSTALLED = Path(__file__).resolve().parent / "configs"
RECIPES = _INSTALLED if _INSTALLED.is_dir() else _INSTALLED.parents[1] / "configs"


def default_config(engine: str) -> CfgNode:
    """Return an engine's default config: Detectron2's keys as far as it has them, and `OWN`."""
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


# Key -> key that sets it: from lengths in epochs or parts of the run, or from the data.
_DERIVED_KEYS = {
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


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return which of `names` the user may have meant, as the end of an error's line."""
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
            f"--model {name}: no such recipe in configs/; {did_you_mean(name, recipe_names())}"
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
        cfg = default_config(_config_engine(loaded, path, engine))
        cfg.merge_from_other_cfg(_with_floats(type(cfg)(loaded), cfg))
        for key in _overridden_keys(path):
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
        raise InputError(f"{path}: {_unknown_key_message(str(error.args[0]), cfg)}") from None
    except RecursionError:
        raise InputError(f"{path}: its _BASE_ leads back to itself; take it out") from None
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a config of this project ({error})") from None
    empty = _emptied_key(cfg, default_config(cfg.ENGINE))
    if empty:
        raise InputError(f"{path}: {empty} has no value; give it one, or take it out")
    if cfg.VERSION != SHARED_KEYS["VERSION"]:
        raise InputError(
            f"{path}: not a config of this project (VERSION {cfg.VERSION}, expected "
            f"{SHARED_KEYS['VERSION']})"
        )
    if not cfg.RECIPE:
        cfg.RECIPE = path.stem
    return cfg


def _emptied_key(cfg: CfgNode, former: CfgNode) -> str | None:
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


def _overridden_keys(path: Path) -> set[str]:
    """Name the keys of a config file's `_BASE_` that set a key which the file itself gives."""
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


def _unknown_key_message(message: str, cfg: CfgNode) -> str:
    key = message.rpartition(" ")[2]
    keys = list(flatten(cfg))
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else "cellseg/keys.py and Detectron2's defaults list the keys"
    )
    more = " for --engine torchvision (--engine detectron2 has more)"
    return f"there is no key {key}{more if cfg.ENGINE == 'torchvision' else ''}; {hint}"


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """Return the config as one dict, `SECTION.KEY` to value."""
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
            raise InputError(_unknown_key_message(key, cfg))
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
        if key in _DERIVED_KEYS:
            cfg.merge_from_list([_DERIVED_KEYS[key], type(flatten(cfg)[_DERIVED_KEYS[key]])()])


@contextlib.contextmanager
def config_errors(source: object) -> Iterator[None]:
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


# Keys of Detectron2's own trainer -> what to do instead.
_UNUSED_KEYS = {
    "TEST.AUG.ENABLED": "give TEST.SYMMETRIES or TEST.SCALES",
    "TEST.PRECISE_BN.ENABLED": "SOLVER.EMA averages the statistics too",
    "MODEL.LOAD_PROPOSALS": "proposals are found by the network alone",
    "MODEL.KEYPOINT_ON": "cells have no keypoints",
    "DATALOADER.SAMPLER_TRAIN": "give DATALOADER.REPEAT_THRESHOLD or INPUT.CROP_ON_CLASS",
}


def check_unused_keys(cfg: CfgNode) -> None:
    """Check that a new run is given no keys that would change nothing.

    Raises
    ------
    InputError
        If it is.
    """
    own, known = flatten(cfg), flatten(default_config(cfg.ENGINE))
    for key, instead in _UNUSED_KEYS.items():
        if own.get(key) != known.get(key):
            raise InputError(f"{key} {own[key]}: changes nothing here; {instead}")


def check_values(cfg: CfgNode) -> None:
    """Check the values of all keys, as training wants them.

    Raises
    ------
    InputError
        If one is out of its range in `cellseg.keys`, or doesn't go with another.
    """
    check_prediction_values(cfg)
    _check_ranges(cfg, TRAINING_RANGES)
    inputs, solver, data = cfg.INPUT, cfg.SOLVER, cfg.DATA
    if not inputs.ZOOM:  # else crops are of INPUT.WINDOW
        if inputs.MIN_SIZE_TRAIN_SAMPLING == "range":
            _check_ranges(
                cfg, {"INPUT.MIN_SIZE_TRAIN": SIDE_RANGE}, "MIN_SIZE_TRAIN_SAMPLING range"
            )
        if inputs.CROP.ENABLED:
            size = {"INPUT.CROP.SIZE": CROP_SIZES[inputs.CROP.TYPE]}
            _check_ranges(cfg, size, f"INPUT.CROP.TYPE {inputs.CROP.TYPE}")
    if data.FOLDS == 1 or not 0 <= data.FOLD <= data.FOLDS:
        raise InputError(
            f"DATA.FOLDS {data.FOLDS} and DATA.FOLD {data.FOLD}: 2 folds or more, and the number "
            "of one, are expected, or 0 for none"
        )
    if solver.BASE_LR_END > solver.BASE_LR:
        raise InputError(
            f"SOLVER.BASE_LR_END {solver.BASE_LR_END}: no more than SOLVER.BASE_LR "
            f"({solver.BASE_LR}) is expected"
        )


def check_prediction_values(cfg: CfgNode) -> None:
    """Check the values of the keys that prediction reads.

    Raises
    ------
    InputError
        If one is out of its range in `cellseg.keys`.
    """
    _check_ranges(cfg, PREDICTION_RANGES)


def _check_ranges(cfg: CfgNode, ranges: Mapping[str, Allowed], by: str = "") -> None:
    """Raise InputError for the first value that is not allowed; `by` is the key that decides what is."""
    for key, allowed in ranges.items():
        value = attrgetter(key)(cfg)
        if value in allowed:
            continue
        if isinstance(allowed, tuple):
            expected = f"one of {', '.join(map(str, allowed))}"
            close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
        else:
            expected, hint = str(allowed), f" with {by}" if by else ""
        name = f"{FLAGS[key]} ({key})" if key in FLAGS else key
        raise InputError(f"{name} {value}: {expected} is expected{hint}")
