"""Read MATLAB files with a label map and the classes of its cells, as HoVer-Net's and Lizard's.

`inst_map` is the label map. The classes, `inst_type` or `class`, are in the order of `inst_uid` or
`id` if there is one, else of the labels: CoNSeP (Graham et al. 2019, doi
10.1016/j.media.2019.101563) and Lizard (Graham et al. 2021, arXiv:2108.11195).

The format is that of MATLAB's versions 5 to 7 (MathWorks, MAT-File Format). It is not read by
`scipy.io.loadmat`, which some damaged files crash.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import file_start
from cellseg.limits import check_image_memory

_LABELS, _CLASSES, _IDS = "inst_map", ("inst_type", "class"), ("inst_uid", "id")
_MOST_CELLS = 10_000_000

_MAGIC = b"MATLAB 5.0"
_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15  # types of elements
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"
}  # fmt: skip
_KINDS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse"}  # matrices; else numbers
_COMPLEX = 0x800
_ORDERS: dict[bytes, Literal["<", ">"]] = {b"IM": "<", b"MI": ">"}  # of bytes
_START = 1024  # bytes of a variable that its size, type and name fit into


@dataclass(frozen=True)
class _Variable:
    """A variable: its shape, its type, and its element in the file, which may be compressed."""

    shape: tuple[int, ...]
    kind: str
    order: Literal["<", ">"]
    element: memoryview
    is_compressed: bool

    def read(self) -> NDArray[Any]:
        """Return the numbers, in column-major order. Raises ValueError or zlib.error."""
        size = 8 * math.prod(self.shape) + _START
        content = _unpack(self.element, size) if self.is_compressed else self.element
        *_, end = _describe(content, self.order)
        number, data, _ = _sub_element(content, end, self.order)
        values = np.frombuffer(data, np.dtype(_NUMBERS[number]).newbyteorder(self.order))
        return values.astype(values.dtype.newbyteorder("=")).reshape(self.shape, order="F")


def read_instance_map(path: Path) -> NDArray[Any]:
    """Read the label map (height, width).

    Raises InputError if the file can't be read, is damaged, or has no such label map.
    """
    variables = _read_variables(path)
    found = variables.get(_LABELS)
    if found is None or found.kind != "number" or len(found.shape) != 2:
        names = f"has {', '.join(variables)}" if variables else "is empty"
        what = f"{_LABELS} of shape {found.shape} ({found.kind})" if found else names
        raise InputError(
            f"{path}: {what}, expected the label map {_LABELS} (height, width) of integers; save "
            "it as label.tif"
        )
    check_image_memory(path, *found.shape, 8)
    return _values(path, found)


def read_instance_classes(path: Path, labels: NDArray[Any]) -> dict[int, str] | None:
    """Return the class of each of the rising `labels` (N,) of the label map as text, if any.

    Raises InputError if the classes don't fit the labels, or as `read_instance_map`.
    """
    variables = _read_variables(path)
    name = next((each for each in _CLASSES if each in variables), None)
    ids_name = next((each for each in _IDS if each in variables), None)
    if name is None:
        return None
    classes, ids = _integers(path, name, variables[name]), labels
    if ids_name:
        ids = _integers(path, ids_name, variables[ids_name])
    elif len(labels) and len(classes) != len(labels) and len(classes) == labels[-1]:
        ids = np.arange(1, len(classes) + 1)  # some have no pixel
    if len(ids) != len(classes):
        raise InputError(
            f"{path}: {len(classes)} classes in {name} for {len(ids)} {ids_name or 'label'}s, "
            "expected one each; fix it"
        )
    class_of: dict[int, str] = {}
    for n, k in zip(ids, classes, strict=True):
        if class_of.setdefault(int(n), str(int(k))) != str(int(k)):
            raise InputError(f"{path}: label {int(n)} of {ids_name} has two classes; fix it")
    return class_of


def _integers(path: Path, name: str, variable: _Variable) -> NDArray[Any]:
    if variable.kind == "number" and math.prod(variable.shape) <= _MOST_CELLS:
        values = _values(path, variable).reshape(-1)
        if (np.isfinite(values) & (values % 1 == 0)).all():
            return values
    raise InputError(f"{path}: {name} has other values than integers, one for each cell; fix it")


def _values(path: Path, variable: _Variable) -> NDArray[Any]:
    try:
        return variable.read()
    except (ValueError, KeyError, struct.error, zlib.error):
        raise _damaged(path) from None


def _read_variables(path: Path) -> dict[str, _Variable]:
    """Return the variables of a file, by name, without their values."""
    start = file_start(path, _HEADER) or b""
    if not start.startswith(_MAGIC):
        found = "of version 7.3" if start.startswith(b"MATLAB 7") else "not a MATLAB file"
        raise InputError(
            f"{path}: {found}, expected version 5 to 7; save it with save(…, '-v7'), or the label "
            "map as label.tif"
        )
    try:
        content = memoryview(path.read_bytes())
        order = _ORDERS[bytes(content[126:_HEADER])]
        variables, at = {}, _HEADER
        while at < len(content):
            kind, length = struct.unpack_from(f"{order}II", content, at)
            element = content[at + 8 : at + 8 + length]
            at += 8 + length
            if len(element) < length or kind not in (_MATRIX, _COMPRESSED):
                raise _damaged(path)
            beginning = _unpack(element, _START) if kind == _COMPRESSED else element
            name, shape, matrix_kind, _ = _describe(beginning, order)
            variables[name] = _Variable(shape, matrix_kind, order, element, kind == _COMPRESSED)
    except OSError as error:
        raise InputError(
            f"{path}: can't be read ({error.strerror}); check its permissions"
        ) from None
    except (ValueError, KeyError, struct.error, zlib.error):
        raise _damaged(path) from None
    return variables


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: damaged, can't be read as a MATLAB file; copy it again")


def _unpack(element: memoryview, most: int) -> memoryview:
    """Return the beginning of what is in a compressed element, without the tag."""
    return memoryview(zlib.decompressobj().decompress(element, most + 8))[8:]


def _describe(content: memoryview, order: str) -> tuple[str, tuple[int, ...], str, int]:
    """Return name, shape and type of a matrix, and where its values begin."""
    _, flags, at = _sub_element(content, 0, order)
    _, sides, at = _sub_element(content, at, order)
    _, name, at = _sub_element(content, at, order)
    (bits,) = struct.unpack_from(f"{order}I", flags)
    shape = struct.unpack(f"{order}{len(sides) // 4}i", sides)
    kind = _KINDS.get(bits & 0xFF, "complex" if bits & _COMPLEX else "number")
    text = bytes(name).decode("ascii")
    if not text.isprintable() or min(shape, default=0) < 0:
        raise ValueError
    return text, shape, kind, at


def _sub_element(content: memoryview, at: int, order: str) -> tuple[int, memoryview, int]:
    """Return type and data of a part of a matrix, and where the next part begins.

    Raises ValueError if it is cut off, which slicing alone would hide.
    """
    (tag,) = struct.unpack_from(f"{order}I", content, at)
    if tag >> 16:  # up to four bytes, within the tag
        kind, length, begin, end = tag & 0xFFFF, tag >> 16, at + 4, at + 8
    else:
        (length,) = struct.unpack_from(f"{order}I", content, at + 4)
        kind, begin = tag, at + 8
        end = begin + (length + 7) // 8 * 8
    data = content[begin : begin + length]
    if len(data) < length:
        raise ValueError
    return kind, data, end
