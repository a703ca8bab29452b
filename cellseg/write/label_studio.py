"""Cells as predictions of Label Studio tasks: polygons, or brush masks.

https://labelstud.io/guide/predictions. The labelling configuration needs a tag `Image` with the
name "image" and a tag `PolygonLabels` or `BrushLabels` with the name "label".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from cellseg.errors import InputError
from cellseg.files import check_own, to_json, write_atomic
from cellseg.images import ImageCells
from cellseg.rle import Ints, MaskRuns, crop_mask, decode
from cellseg.write.coco import task_names
from cellseg.write.ids import cell_ids
from cellseg.write.polygons import traced_rings

_START = '[\n{"data":{"image":"/data/local-files/?d='
_MODEL = "cellseg"


def write_label_studio(
    path: Path,
    images: Sequence[ImageCells],
    names: Sequence[str],
    brush: bool = False,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Write a task for each image, with its cells as a prediction; return the number of cells.

    Polygons are in percent of the image, one for each piece of a cell; brush masks are Label
    Studio's RLE. Masks without pixels are left out.

    Parameters
    ----------
    path
        The file.
    images
        Images with their cells. A task's image is a local file of that name:
        `/data/local-files/?d=NAME`.
    names
        The K class names.
    brush
        Write brush masks.
    progress
        Called with the number of cells that were written.

    Raises
    ------
    InputError
        If the file can't be written, or is somebody else's.
    """
    check_own(path, re.escape(_START.encode()) + rb"|\[\n\]", "Label Studio's tasks")
    count = 0
    with write_atomic(path) as file:
        file.write("[")
        for n, (image, name) in enumerate(zip(images, task_names(images), strict=True)):
            url = f"/data/local-files/?d={quote(name, errors='surrogateescape')}"
            file.write((",\n" if n else "\n") + f'{{"data":{{"image":{to_json(url)}}},')
            mean = 0.0
            if image.scores is not None and len(image.scores):
                mean = round(float((image.scores / len(image.scores)).sum()), 6)
            file.write(f'"predictions":[{{"model_version":"{_MODEL}","score":{mean},"result":[')
            separator = "\n"
            for results in (_brushes if brush else _polygons)(image, names):
                count += 1
                for result in results:
                    file.write(separator + to_json(result, separators=(",", ":")))
                    separator = ",\n"
            file.write("\n]}]}")
            progress(len(image.masks))
        file.write("\n]\n")
    return count


def _polygons(image: ImageCells, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the polygons of each cell."""
    height, width = image.size
    ids = cell_ids(image.name, image.masks)
    for n, rings in enumerate(traced_rings(image.masks, image.size)):
        results = []
        for piece, ring in enumerate(rings):
            points = (ring * (100 / width, 100 / height)).tolist()
            value = {"points": points, "closed": True, "polygonlabels": [names[image.classes[n]]]}
            id_ = f"{ids[n]}#{piece}" if piece else ids[n]
            results.append(_result(image, n, id_, "polygonlabels", value))
        if results:
            yield results


def _brushes(image: ImageCells, names: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield the mask of each cell."""
    if 4 * image.size[0] * image.size[1] >= 1 << 32:
        raise InputError(
            f"{image.file_name}: {image.size[0]} x {image.size[1]} pixels are too many for Label "
            "Studio's brush masks; use label-studio, which writes polygons"
        )
    ids = cell_ids(image.name, image.masks)
    for begin in range(0, len(image.masks), _BLOCK):
        mask_runs = decode(image.masks[begin : begin + _BLOCK], image.size)
        for index in range(len(mask_runs)):
            if mask_runs.offsets[index] == mask_runs.offsets[index + 1]:
                continue
            n = begin + index
            label = names[image.classes[n]]
            value = {"format": "rle", "rle": brush_rle(mask_runs, index), "brushlabels": [label]}
            yield [_result(image, n, ids[n], "brushlabels", value)]


_BLOCK = 2048  # cells decoded at once


def _result(
    image: ImageCells, n: int, id_: str, kind: str, value: dict[str, Any]
) -> dict[str, Any]:
    result = {
        "id": id_,
        "type": kind,
        "from_name": "label",
        "to_name": "image",
        "original_width": image.size[1],
        "original_height": image.size[0],
        "image_rotation": 0,
        "value": value,
    }
    if image.scores is not None:
        result["score"] = round(float(image.scores[n]), 6)
    return result


_SIZES = (3, 4, 8, 16)  # bits of the lengths of runs


def brush_rle(mask_runs: MaskRuns, index: int) -> list[int]:
    """Return one mask as Label Studio's RLE, a list of bytes.

    The format is thi.ng/rle-pack: of the RGBA values of the image, row by row, 255 within the mask.
    Header: number of values (32 bits), their bits − 1 (5), and four sizes of lengths − 1 (4 each).
    Then for each run a 1, the index of the size of its length (2), its length − 1, and the value.
    """
    height, width = mask_runs.size
    box, mask = crop_mask(mask_runs, index)
    rows, columns = np.nonzero(mask)
    at = (rows + box[1]) * width + columns + box[0]
    first = np.append(True, np.diff(at) > 1)
    starts = at[first]
    ends = at[np.append(first[1:], True)] + 1
    bounds = np.concatenate([[0], np.stack([starts, ends], axis=1).reshape(-1), [height * width]])
    values = np.arange(len(bounds) - 1) % 2 * 255
    lengths, of_run = _limit(4 * np.diff(bounds), values)
    bits = [_bits(4 * height * width, 32), _bits(7, 5), *(_bits(size - 1, 4) for size in _SIZES)]
    for length, value in zip(lengths.tolist(), of_run.tolist(), strict=True):
        kind = next(n for n, size in enumerate(_SIZES) if length <= 1 << size)
        bits += ["1", _bits(kind, 2), _bits(length - 1, _SIZES[kind]), _bits(value, 8)]
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _limit(lengths: Ints, values: Ints) -> tuple[Ints, Ints]:
    """Split runs of more than 2^16 values, and leave out those of none."""
    most = 1 << _SIZES[-1]
    n_parts = -(-lengths // most)
    parts = np.full(int(n_parts.sum()), most, np.int64)
    last = np.cumsum(n_parts)[lengths > 0] - 1
    parts[last] = lengths[lengths > 0] - (n_parts[lengths > 0] - 1) * most
    return parts, np.repeat(values, n_parts)


def _bits(number: int, count: int) -> str:
    return f"{number:0{count}b}"
