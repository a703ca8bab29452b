"""Read MATLAB files with a label map and the classes of its cells, as HoVer-Net's and Lizard's.

`inst_map` is the label map. The classes, `inst_type` or `class`, are in the order of `inst_uid` or
`id` if there is one, else of the labels: CoNSeP (Graham et al. 2019, doi
10.1016/j.media.2019.101563) and Lizard (Graham et al. 2021, arXiv:2108.11195).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import file_start
from cellseg.limits import check_image_memory

_LABELS, _CLASSES, _IDS = "inst_map", ("inst_type", "class"), ("inst_uid", "id")
_MAGIC = b"MATLAB 5.0"
_MOST_CELLS = 10_000_000


def read_instance_map(path: Path) -> NDArray[Any]:
    """Read the label map (height, width). Raises InputError if there is none, or as `_load`."""
    contents = _contents(path)
    shape, kind = contents.get(_LABELS, ((), ""))
    if len(shape) != 2 or kind in ("cell", "struct", "char", "object", "function", "sparse"):
        found = f"{_LABELS} of shape {shape} ({kind})" if _LABELS in contents else _listed(contents)
        raise InputError(
            f"{path}: {found}, expected the label map {_LABELS} (height, width); save it as "
            "label.tif"
        )
    check_image_memory(path, shape[0], shape[1], 8)
    labels: NDArray[Any] = _load(path, [_LABELS])[_LABELS]
    if labels.dtype.kind not in "buif":
        raise InputError(f"{path}: {_LABELS} of {labels.dtype}, expected integers; save it again")
    return labels


def read_instance_classes(path: Path, labels: NDArray[Any]) -> dict[int, str] | None:
    """Return the class of each of the rising `labels` (N,) of the label map as text, if any.

    Raises InputError if the classes don't fit the labels.
    """
    contents = _contents(path)
    name = next((each for each in _CLASSES if each in contents), None)
    ids_name = next((each for each in _IDS if each in contents), None)
    if name is None:
        return None
    names = [each for each in (name, ids_name) if each]
    if max(math.prod(contents[each][0]) for each in names) > _MOST_CELLS:
        raise _damaged(path)
    loaded = _load(path, names)
    classes, ids = _vector(path, loaded, name), labels
    if ids_name:
        ids = _vector(path, loaded, ids_name)
    elif len(labels) and len(classes) != len(labels) and len(classes) == labels[-1]:
        ids = np.arange(1, len(classes) + 1)  # some have no pixel
    if len(ids) != len(classes):
        raise InputError(
            f"{path}: {len(classes)} classes in {name} for {len(ids)} "
            f"{f'of {ids_name}' if ids_name else 'labels'}, expected one each; fix it"
        )
    return {int(n): str(int(k)) for n, k in zip(ids, classes, strict=True)}


def _vector(path: Path, loaded: dict[str, Any], name: str) -> NDArray[Any]:
    values = np.asarray(loaded[name]).reshape(-1)
    if values.dtype.kind not in "buif" or not (np.isfinite(values) & (values % 1 == 0)).all():
        raise InputError(f"{path}: {name} has other values than integers; fix it")
    return values


def _contents(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and type of the variables in a file, without reading them."""
    start = file_start(path, len(_MAGIC)) or b""
    if start != _MAGIC:
        found = "of version 7.3" if start.startswith(b"MATLAB 7") else "not a MATLAB file"
        raise InputError(
            f"{path}: {found}, expected version 5 to 7; save it with save(…, '-v7'), or the label "
            "map as label.tif"
        )
    try:
        return {name: (tuple(shape), kind) for name, shape, kind in scipy.io.whosmat(path)}
    except Exception:  # noqa: BLE001 (damaged files can cause any error)
        raise _damaged(path) from None


def _load(path: Path, names: list[str]) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = scipy.io.loadmat(path, variable_names=names)
    except Exception:  # noqa: BLE001 (damaged files can cause any error)
        raise _damaged(path) from None
    if missing := [name for name in names if name not in loaded]:
        raise InputError(f"{path}: {missing[0]} can't be read; save it again")
    return loaded


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged, can't be read as a MATLAB file; copy it again")


def _listed(contents: dict[str, Any]) -> str:
    return f"has {', '.join(contents)}" if contents else "empty"
