"""Read label maps: TIFF, PNG, NPY or MATLAB files, one value per pixel, 0 for background."""

from __future__ import annotations

import io
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import scipy.ndimage
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import file_start
from cellseg.limits import check_image_memory
from cellseg.messages import plural
from cellseg.read.cell_checks import SMALL
from cellseg.read.classes import match_classes
from cellseg.read.csv_table import read_columns
from cellseg.read.image_formats import PNG_MAGIC, decode_errors
from cellseg.read.layout import CLASS_COLUMNS
from cellseg.read.matlab import read_instance_classes, read_instance_map
from cellseg.read.orientation import turn_note
from cellseg.read.picture import pixel_chunks
from cellseg.read.tiff import read_labels
from cellseg.rle import (
    MaskRuns,
    areas,
    boxes_xyxy,
    crop_mask,
    label_map_to_runs,
    select_masks,
)

_ONE_VALUE = "one value per pixel (0 for background, one value per cell)"


def read_label_map(
    path: Path, image: Path, size: tuple[int, int], remedy: str = "", skip_bad: bool = False
) -> tuple[NDArray[Any], MaskRuns, int]:
    """Read a label map: its N labels, rising, their masks, and the number of labels left out.

    TIFF, PNG and NPY are identified by content, MATLAB files by their ending. `image` is the file
    of its image, of `size` (height, width). `remedy` is what to do if the background is not 0.
    With `skip_bad`, labels that are not integers from 0 are left out, unless most are such.

    Raises
    ------
    InputError
        If the file can't be read, is damaged, doesn't have one value per pixel of the image, or
        has values other than integers from 0; or if the background is not 0.
    """
    labels = _read(path)
    if labels.shape != size:
        raise InputError(
            f"{path}: {labels.shape[0]} x {labels.shape[1]} (height x width), expected "
            f"{size[0]} x {size[1]} as {image.name}{turn_note(image, size, labels.shape)}; draw it "
            "on that image"
        )
    values, mask_runs = label_map_to_runs(labels)
    valid = _find_valid(path, values, mask_runs, skip_bad)
    n_bad = _count(values) - len(valid)
    if n_bad:
        values, mask_runs = values[valid], select_masks(mask_runs, valid)
    _check_background(path, values, mask_runs, remedy or _RENUMBER)
    return values, mask_runs, n_bad


def count_labels(path: Path) -> int:
    """Return the number of labels in a label map. Raises InputError if it can't be read."""
    return _count(label_map_to_runs(_read(path))[0])


def _count(values: NDArray[Any]) -> int:
    """Return the number of labels, of which each pixel that is NaN has its own value."""
    n_nan = int(np.isnan(values).sum())
    return len(values) - max(n_nan - 1, 0)


def _read(path: Path) -> NDArray[Any]:
    if _is_matlab(path):
        return read_instance_map(path)
    start = file_start(path, 6) or b""
    if start == b"\x93NUMPY":
        return _read_npy(path)
    return _read_png(path) if start.startswith(PNG_MAGIC) else read_labels(path)


def _is_matlab(path: Path) -> bool:
    return path.suffix.lower() == ".mat"


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        # Mapped, so that a false size in the header takes no memory.
        with np.errstate(over="ignore"):
            labels = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # noqa: BLE001 (damaged files can cause any error)
        raise InputError(
            f"{path}: damaged, or not an array of numbers; save the label map with numpy.save as "
            "integers, or as TIFF or PNG"
        ) from None
    if labels.ndim != 2 or labels.dtype.kind not in "buif":
        raise InputError(
            f"{path}: {labels.dtype} of shape {labels.shape}, expected an integer array (height, "
            "width); save it again"
        )
    check_image_memory(path, labels.shape[0], labels.shape[1], labels.dtype.itemsize)
    return np.array(labels, labels.dtype.newbyteorder("="))


def _read_png(path: Path) -> NDArray[Any]:
    """Read the stored values of a grey PNG, or the indices of one with a palette."""
    with decode_errors(path):
        data = path.read_bytes()
        bits, colour = data[24:26]
        if colour not in (0, 3):
            channels = {2: 3, 4: 2, 6: 4}.get(colour, "unknown")
            raise InputError(f"{path}: {channels} channels, expected {_ONE_VALUE}; save it again")
        width, height = struct.unpack(">II", data[16:24])
        check_image_memory(path, height, width, 4)
        labels: NDArray[Any] = imagecodecs.png_decode(pixel_chunks(data))  # checks the sums too
        if colour == 3:
            with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
                labels = np.array(picture)
    # Decoders spread grey values of fewer bits over 0 to 255.
    spread = colour == 0 and bits < 8
    labels = labels // (255 // (2**bits - 1)) if spread else labels
    return labels > 0 if spread and bits == 1 else labels


def _find_valid(
    path: Path, values: NDArray[Any], mask_runs: MaskRuns, skip_bad: bool
) -> NDArray[np.int64]:
    """Return the indices of the labels that are integers from 0.

    Raises InputError for the first other one; with `skip_bad`, only if most are.
    """
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    else:
        bad = values < 0
    n_labels = _count(values)
    if bad.any() and not (skip_bad and 2 * (n_labels - (~bad).sum()) < n_labels):
        index = np.flatnonzero(bad)[0]
        column, row = np.divmod(mask_runs.starts[mask_runs.offsets[index]], mask_runs.size[0])
        raise InputError(
            f"{path}: label {values[index]} in row {row}, column {column} (from 0), expected "
            "integers: 0 for background, 1 and up for cells; fix the label map"
        )
    return np.flatnonzero(~bad)


def _check_background(path: Path, values: NDArray[Any], mask_runs: MaskRuns, remedy: str) -> None:
    """Raise InputError if a label other than 0 is the background.

    It is the largest, touches all four edges, and surrounds two or more pieces of the rest. A
    large cell of a small image touches the edges, but surrounds no others.
    """
    height, width = mask_runs.size
    if not len(mask_runs):
        return
    sizes = areas(mask_runs)
    index = int(sizes.argmax())
    first, last = (
        mask_runs.starts[mask_runs.offsets[index]],
        mask_runs.ends[mask_runs.offsets[index + 1] - 1],
    )
    if first >= height or last <= (width - 1) * height:  # the usual case, at no cost
        return
    largest = select_masks(mask_runs, np.array([index]))
    if boxes_xyxy(largest)[0].tolist() != [0, 0, width, height]:
        return
    pieces, n_pieces = scipy.ndimage.label(~crop_mask(largest, 0)[1])
    edges = np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]])
    inside = np.bincount(pieces.reshape(-1), minlength=n_pieces + 1) > SMALL
    inside[0] = False
    inside[edges] = False
    if inside.sum() >= 2:
        percent = round(100 * sizes[index] / (height * width))
        raise InputError(
            f"{path}: label {values[index]} covers {percent} % of the image and surrounds "
            f"{inside.sum()} pieces, as a background does, expected 0 for the background; {remedy}"
        )


_RENUMBER = "set it to 0 and number the cells from 1"
_RENUMBER_CLASS = (
    "set it to 0 and number the cells of this class, or remove the file if it shows what is no cell"
)


_BAD_LABELS = "labels that are not integers from 0, ignored"
_MANY_PIECES = "label maps whose labels are in several pieces (one label per cell?)"
_FEW_LABELS = 20  # as a map of classes has instead of one of cells
_MASK = 255  # the label of a mask that says where there are cells, as one of one bit does


def _in_many_pieces(values: NDArray[Any], mask_runs: MaskRuns) -> bool:
    """Return whether few labels have more than two pieces each, on average.

    Of a mask with one label, two large pieces are enough.
    """
    n = len(mask_runs)
    if n > _FEW_LABELS:
        return False
    pieces = [scipy.ndimage.label(crop_mask(mask_runs, k)[1], np.ones((3, 3)))[0] for k in range(n)]
    sizes = [np.bincount(of_label.reshape(-1))[1:] for of_label in pieces]
    is_mask = values.dtype == bool or values.tolist() == [_MASK]
    n_large = sum(int((of_label > SMALL).sum()) for of_label in sizes)
    return sum(map(len, sizes)) > 2 * n or (is_mask and n_large >= 2)


def read_class_files(
    class_files: Mapping[int, Path], image: Path, size: tuple[int, int], skip_bad: bool = False
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Read a label map per class: the masks of each class, and the warnings."""
    cells: dict[int, MaskRuns] = {}
    warnings: Counter[str] = Counter()
    former: list[tuple[NDArray[Any], MaskRuns]] = []
    for number, path in class_files.items():
        values, cells[number], n_bad = read_label_map(path, image, size, _RENUMBER_CLASS, skip_bad)
        warnings[_BAD_LABELS] += n_bad
        # Each class may be numbered from 1, but cells that touch may be one in two classes.
        shared = [_shared_labels(*each, values, cells[number]) for each in former]
        warnings["labels used in two class files of an image"] += len(set().union(*shared))
        warnings["class files without cells"] += not len(values)
        warnings[_MANY_PIECES] += _in_many_pieces(values, cells[number])
        former.append((values, cells[number]))
    return cells, warnings


def _shared_labels(
    one_values: NDArray[Any], one: MaskRuns, other_values: NDArray[Any], other: MaskRuns
) -> set[int | float]:
    """Return the labels that two label maps have for cells that touch or overlap."""
    shared, first, second = np.intersect1d(one_values, other_values, True, return_indices=True)
    a, b = boxes_xyxy(one)[first], boxes_xyxy(other)[second]
    near = ((a[:, :2] <= b[:, 2:]) & (b[:, :2] <= a[:, 2:])).all(axis=1)
    pairs = zip(shared[near].tolist(), first[near], second[near], strict=True)
    return {label for label, i, j in pairs if _touch(crop_mask(one, i), crop_mask(other, j))}


def _touch(
    one: tuple[NDArray[np.int64], NDArray[np.bool_]],
    other: tuple[NDArray[np.int64], NDArray[np.bool_]],
) -> bool:
    """Return whether two masks, each a box and the pixels in it, touch or overlap."""
    left, top, right, bottom = np.stack([one[0], other[0]]).T
    window = np.zeros((2, bottom.max() - top.min(), right.max() - left.min()), bool)
    for canvas, (box, pixels) in zip(window, (one, other), strict=True):
        x, y = box[:2] - (left.min(), top.min())
        canvas[y : y + len(pixels), x : x + pixels.shape[1]] = pixels
    grown = scipy.ndimage.binary_dilation(window[0], np.ones((3, 3)))
    return bool((grown & window[1]).any())


def read_joint_label_map(
    path: Path,
    table: Path | None,
    image: Path,
    size: tuple[int, int],
    class_names: Sequence[str],
    skip_bad: bool = False,
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Read one label map of all classes: the masks of each class, and the warnings.

    The classes are those of `table`, a CSV file with the columns `label` and `class` (1…K, or a
    name, matched by `match_classes` with `class_names`), else those in a MATLAB file, else the
    only one of `class_names`.
    """
    values, mask_runs, n_bad = read_label_map(path, image, size, skip_bad=skip_bad)
    warnings = Counter({_BAD_LABELS: n_bad, _MANY_PIECES: int(_in_many_pieces(values, mask_runs))})
    in_file = read_instance_classes(path, values) if not table and _is_matlab(path) else None
    if table is None and in_file is None:
        if len(class_names) > 1 and len(values):
            raise InputError(
                f"{path}: no classes for its {plural(len(values), 'cell')}, expected a table "
                f"beside it, {path.stem}.csv (classes.csv in an image's folder) with the columns "
                "label,class, or a single class, named with --class_names"
            )
        return ({1: mask_runs} if len(values) else {}), warnings
    class_of, n_unusable = (
        (in_file or {}, 0) if table is None else read_class_table(table, skip_bad)
    )
    warnings["rows of class tables that can't be used, ignored"] = n_unusable
    labels = [int(value) for value in values]
    missing = [label for label in labels if label not in class_of]
    if missing and not skip_bad:
        raise InputError(
            f"{table or path}: no class for {len(missing)} of {plural(len(labels), 'label')} of "
            f"{path.name}, such as {missing[0]}; add them"
        )
    rows_without = len(class_of) - len(labels) + len(missing)
    warnings["rows of class tables without a cell"] += rows_without
    cells = [
        (f"label {label}", class_name(class_of.get(label, ""), class_names)) for label in labels
    ]
    numbers, unused = match_classes(table or path, cells, class_names, skip_bad)
    by_number = {n: np.flatnonzero(np.array(numbers) == n) for n in sorted(set(numbers) - {0})}
    return {n: select_masks(mask_runs, of_class) for n, of_class in by_number.items()}, (
        warnings + unused
    )


def read_class_texts(label_map: Path, table: Path | None) -> set[str]:
    """Return the classes of all cells that a table or a MATLAB file gives, as written there.

    Raises InputError if they can't be read.
    """
    if table is None and _is_matlab(label_map):
        labels = label_map_to_runs(read_instance_map(label_map))[0]
        return set((read_instance_classes(label_map, labels) or {}).values())
    return set(read_class_table(table, skip_bad=True)[0].values()) if table else set()


def class_name(text: str, class_names: Sequence[str]) -> str:
    """Return the name of a class that is given by its number 1…K, else the text."""
    number = -1 if text in class_names else _whole_number(text)
    return class_names[number - 1] if 1 <= number <= len(class_names) else text


def read_class_table(path: Path, skip_bad: bool = False) -> tuple[dict[int, str], int]:
    """Return the class of each label in a CSV file, and the number of rows that can't be used.

    Its columns are `label` and `class`; labels may be floats, as pandas writes them. Raises
    InputError for the first such row; without a label, without a class, or a label's second class;
    with `skip_bad`, the labels of these have no class.
    """
    classes: dict[int, str] = {}
    errors = []
    unclear = set()
    for label, name in read_columns(path, CLASS_COLUMNS, may_be_empty=skip_bad):
        number = _whole_number(label)
        if number < 0:
            found = "is not an integer"
        elif not name:
            found = "has no class"
        elif classes.setdefault(number, name) != name:
            found = "has two classes"
            unclear.add(number)
        else:
            continue
        errors.append(f"{path}: label {label} {found}, expected a class for each; fix it")
    if errors and not skip_bad:
        raise InputError(errors[0])
    # Not the background.
    return {n: name for n, name in classes.items() if n and n not in unclear}, len(errors)


def _whole_number(text: str) -> int:
    """Return the number that a text is, as an integer or a whole float, else -1."""
    digits = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text)
    return int(digits[1]) if digits else -1
